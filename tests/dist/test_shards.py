"""Tensors written in shards by some processes, and read by others."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from keel.dist import shards
from keel.dist.fsdp import collected, whole
from keel.dist.shards import read_shards, stored, write_shards
from keel.dist.world import joined, world
from keel.errors import UserError
from tests.dist.crowd import in_processes

LAYOUTS = [(1, None), (2, None), (3, None), (4, 2)]  # processes, and how many of them hold a tensor between them


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "odd": torch.randn(7, 3, generator=generator),
        "few rows": torch.randn(2, 6, generator=generator).bfloat16(),  # fewer than there are processes
        "step": torch.tensor(3.0),
        "large": torch.randn(64, 9, generator=generator),
    }


def spread(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """This process's shards of every tensor that has rows."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = world().mesh
    if mesh is None:
        return values
    placements = [Replicate()] * (mesh.ndim - 1) + [Shard(0)]
    return {name: distribute_tensor(one, mesh, placements) if one.ndim else one for name, one in values.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the number of processes that wrote."""
    folders = {}
    for count, shard in LAYOUTS:
        folder = folders[count] = tmp_path_factory.mktemp(f"by-{count}")

        def work(shard: int | None = shard, folder: Path = folder) -> None:
            with joined(shard=shard):
                write_shards(folder, spread(tensors()))

        in_processes(count, work) if count > 1 else work()
    return folders


@pytest.mark.parametrize(("count", "shard"), LAYOUTS)
def test_any_number_reads_what_any_other_wrote(written: dict[int, Path], count: int, shard: int | None) -> None:
    def work() -> list[bool]:
        with joined(shard=shard):
            found = []
            for folder in written.values():
                empty = {name: torch.zeros_like(one) for name, one in tensors().items()}
                into = spread(empty)
                read_shards(folder, into)
                found += [torch.equal(whole(into[name]), one) for name, one in tensors().items()]
            return found

    results = in_processes(count, work) if count > 1 else [work()]
    assert all(all(result) for result in results)
    assert len(results[0]) == len(LAYOUTS) * len(tensors())


@pytest.mark.parametrize(("count", "shard"), LAYOUTS)
def test_the_files_hold_each_number_once_and_say_where_it_belongs(
    written: dict[int, Path], count: int, shard: int | None
) -> None:
    """Put together by hand, from safetensors alone; nothing else lies there."""
    files = sorted(written[count].iterdir())
    assert {file.suffix for file in files} == {".safetensors"}
    made = {name: torch.full_like(one, torch.nan) for name, one in tensors().items()}
    numbers = 0
    for file in files:
        with safe_open(file, framework="pt") as content:
            offsets = json.loads(content.metadata()["DCP_SHARDING_INFO"])
            for name in content.keys():  # noqa: SIM118  # no mapping
                part, place = content.get_tensor(name), offsets[name]["saved_offsets"]
                index = tuple(slice(start, start + size) for start, size in zip(place, part.shape, strict=True))
                made[name][index] = part
                numbers += part.numel()
    assert numbers == sum(one.numel() for one in tensors().values())
    assert all(torch.equal(made[name], one) for name, one in tensors().items())
    largest = max(file.stat().st_size for file in files)
    assert largest < 4 * 64 * 9 / (shard or count) + 1600  # the header, and what is small


def test_what_is_stored_is_known_without_reading_it(written: dict[int, Path], tmp_path: Path) -> None:
    for folder in written.values():
        known = stored(folder)
        assert {name: (one.shape, one.dtype) for name, one in known.items()} == {
            name: (one.shape, one.dtype) for name, one in tensors().items()
        }
        assert {one.device.type for one in known.values()} == {"meta"}
    assert stored(tmp_path) == {}


def test_strides_do_not_matter(tmp_path: Path) -> None:
    write_shards(tmp_path, {"turned": torch.arange(6.0).reshape(2, 3).T})
    into = {"turned": torch.zeros(3, 2)}
    read_shards(tmp_path, into)
    assert into["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_large_tensors_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_FILE_BYTES", 1000)
    values = {f"{n}": torch.full((200,), float(n)) for n in range(4)} | {"small": torch.zeros(3)}
    write_shards(tmp_path, values)
    assert len(list(tmp_path.iterdir())) == 4
    into = {name: torch.zeros_like(one) for name, one in values.items()}
    read_shards(tmp_path, into)
    assert all(torch.equal(into[name], one) for name, one in values.items())


def test_a_full_disk_under_one_process_is_the_error_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int | str | None:
        with joined():
            from torch.distributed.checkpoint import filesystem

            def full(*args: object, **options: object) -> None:
                if world().rank == 1:
                    raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(filesystem, "_write_files_from_queue", full)
            try:
                write_shards(tmp_path, spread(tensors()))
            except OSError as error:  # what it means for a run is the leader's to say
                return error.errno
            except UserError as error:
                return str(error)
            return None

    assert in_processes(2, work) == [errno.ENOSPC, f"[Errno {errno.ENOSPC}] No space left on device"]


def test_processes_that_see_different_folders_are_told(tmp_path: Path) -> None:
    def work() -> str:
        with joined():
            own = tmp_path / f"host-{world().rank}"
            own.mkdir()
            try:
                write_shards(own, spread(tensors()))
            except UserError as error:
                return str(error)
            return ""

    assert all(
        "give an --out that lies on a file system which all hosts share" in said for said in in_processes(2, work)
    )


def test_the_leader_collects_whole_tensors_and_nobody_else_keeps_one() -> None:
    def work() -> list[str]:
        with joined():
            held = spread(tensors())
            found = collected(([name, f"{name} again"], whole(one)) for name, one in held.items())
            assert all(torch.equal(found[name], one) for name, one in tensors().items() if found)
            assert all(found[f"{name} again"] is found[name] for name in tensors() if found)
            return sorted(found)

    first, second = in_processes(2, work)
    assert len(first) == 2 * len(tensors())
    assert second == []
