from __future__ import annotations

import os
from pathlib import Path

import pytest

from keel.feedback.watch import tail
from keel.feedback.watch.tail import News, Tail, clean
from keel.runs.metrics import MetricsLog
from tests.feedback.watch.support import AT_LEISURE, lines


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def read(tail: Tail) -> News:
    return tail.read(AT_LEISURE)


def append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def test_only_what_is_new_is_read(path: Path) -> None:
    tail, log = Tail(path), MetricsLog(path)
    assert read(tail) == News()
    log.append(1, {"a": 1.5})
    log.append(2, {"a": 2.5})
    assert read(tail).rows == [{"iteration": 1, "a": 1.5}, {"iteration": 2, "a": 2.5}]
    assert read(tail) == News()
    log.append(3, {"a": 3.5})
    assert read(tail) == News([{"iteration": 3, "a": 3.5}])


def test_a_torn_line_is_no_line_until_its_end_has_come(path: Path) -> None:
    tail = Tail(path)
    append(path, '{"iteration": 1}\n{"iterat')
    assert read(tail).rows == [{"iteration": 1}]
    assert read(tail) == News()
    append(path, 'ion": 2}\n')
    assert read(tail).rows == [{"iteration": 2}]


def test_a_resumed_run_is_read_anew(path: Path) -> None:
    """As runs are: another file in the place of the one before."""
    tail, log = Tail(path), MetricsLog(path)
    for iteration in range(1, 8):
        log.append(iteration, {"a": 1.0})
    read(tail)
    log.truncate_after(4)
    log.append(5, {"a": 2.0})
    news = read(tail)
    assert news.restarted
    assert news.rows == lines(path)
    assert [row["a"] for row in news.rows] == [1, 1, 1, 1, 2]


def test_another_file_is_read_anew_though_it_ends_alike(path: Path, tmp_path: Path) -> None:
    lines_of = [f'{{"iteration": {n}}}\n' for n in range(30)]
    append(path, '{"iteration": 0, "a": 1}\n' + "".join(lines_of[1:]))
    tail = Tail(path)
    read(tail)
    append(tmp_path / "other", '{"iteration": 0, "a": 2}\n' + "".join(lines_of[1:]))
    (tmp_path / "other").replace(path)
    assert read(tail).rows[0] == {"iteration": 0, "a": 2}


@pytest.mark.parametrize("longer", [False, True])
def test_a_file_that_was_written_over_is_read_anew(path: Path, longer: bool) -> None:
    """The same inode: shorter, or longer than it was before anybody looked."""
    append(path, "".join(f'{{"iteration": {n}, "a": 1}}\n' for n in range(100)))
    tail = Tail(path)
    read(tail)
    with path.open("r+", encoding="utf-8") as file:
        file.truncate(0)
        file.write("".join(f'{{"iteration": {n}, "b": 2}}\n' for n in range(200 if longer else 3)))
    assert read(tail) == News(lines(path), restarted=True)


def test_a_file_that_is_gone_takes_its_lines_along(path: Path) -> None:
    tail = Tail(path)
    append(path, '{"iteration": 1}\n')
    read(tail)
    path.unlink()
    assert read(tail) == News(restarted=True)
    assert read(tail) == News()
    append(path, '{"iteration": 2}\n')
    assert read(tail).rows == [{"iteration": 2}]


def test_a_large_file_is_read_a_part_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_CHUNK", 1000)
    append(path, "".join(f'{{"iteration": {n}}}\n' for n in range(1000)))
    follower, found, looks = Tail(path), [], 0
    while (news := follower.read(0.0)).behind:
        found += news.rows
        looks += 1
    assert [row["iteration"] for row in found + news.rows] == list(range(1000))
    assert looks > 10


def test_what_is_no_line_of_a_run_is_passed_over(path: Path) -> None:
    path.write_bytes(b"\x00\xff\xfe binary \n[1, 2]\n{broken\n" + b"[" * 5000 + b'\n"text"\n\n{"iteration": 1}\n')
    assert read(Tail(path)).rows == [{"iteration": 1}]


def test_a_line_without_end_holds_nothing_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_CHUNK", 100)
    append(path, "x" * 1050 + '\n{"iteration": 1}\n')
    assert read(Tail(path)).rows == [{"iteration": 1}]


def test_a_pipe_in_a_files_place_does_not_block(path: Path) -> None:
    os.mkfifo(path)
    assert read(Tail(path)) == News()


def test_strings_can_be_written_and_are_of_bearable_length() -> None:
    row = clean({"a": "half \ud800 of a pair", "b": ["x" * 30_000], "c\udfff": 1})
    assert row["a"] == "half ? of a pair"
    assert len(row["b"][0]) == 20_001
    assert row["c?"] == 1
    nest: list[object] = []
    for _ in range(5000):
        nest = [nest]
    assert clean({"a": nest}) is None
