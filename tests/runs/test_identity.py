"""Two stages are the same exactly when their settings and the contents of their inputs are."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from keel.runs.identity import Identity, differences, flatten, hash_directory, hash_file

CONFIG = {"ppo.lr": 1e-5, "ppo.sampling.max_new_tokens": 64, "ppo.critic": "head", "ppo.extra": None}
INPUTS = {"prompts": "0123456789abcdef", "policy": "ff" * 32}


def test_flatten_gives_one_dotted_key_a_leaf() -> None:
    nested = {"seed": 0, "ppo": {"reward": [{"model": "reward"}, {"weight": 0.2}], "none": None, "e": {}, "l": []}}
    assert flatten(nested) == {
        "seed": 0,
        "ppo.reward.0.model": "reward",
        "ppo.reward.1.weight": 0.2,
        "ppo.none": None,
        "ppo.e": {},
        "ppo.l": [],
    }


def test_order_plays_no_part() -> None:
    shuffled = Identity(dict(reversed(CONFIG.items())), dict(reversed(INPUTS.items())))
    assert shuffled.digest == Identity(CONFIG, INPUTS).digest
    assert differences(shuffled, Identity(CONFIG, INPUTS)) == []


def test_digest_follows_every_value() -> None:
    digests = {
        Identity(CONFIG, INPUTS).digest,
        Identity(CONFIG | {"ppo.lr": 1.0000001e-5}, INPUTS).digest,
        Identity(CONFIG | {"ppo.new": None}, INPUTS).digest,
        Identity(CONFIG, INPUTS | {"policy": "fe" * 32}).digest,
        Identity(CONFIG, {"prompts": INPUTS["prompts"]}).digest,
    }
    assert len(digests) == 5


def test_digest_is_the_hash_of_sorted_json() -> None:
    text = '{"config": {"a": 1, "b": "é"}, "inputs": {"x": "00"}}'
    assert Identity({"b": "é", "a": 1}, {"x": "00"}).digest == hashlib.sha256(text.encode()).hexdigest()


def test_differences_name_key_old_and_new() -> None:
    old = Identity({"ppo.lr": 1e-5, "ppo.critic": "head", "ppo.gone": True, "same": 1}, INPUTS)
    new = Identity({"same": 1, "ppo.critic": "none", "ppo.lr": 2e-5, "ppo.new": [1]}, INPUTS | {"prompts": "f" * 64})
    assert differences(old, new) == [
        'ppo.critic: "head" → "none"',
        "ppo.lr: 1e-05 → 2e-05",
        "ppo.new: (absent) → [1]",
        "ppo.gone: true → (absent)",
        "input prompts: 0123456789ab → ffffffffffff",
    ]


def test_a_file_in_between_changes_nothing() -> None:
    made = Identity(CONFIG | {"betas": (0.9, 0.95)}, INPUTS)
    read = Identity.from_dict(json.loads(json.dumps(made.to_dict())))
    assert differences(read, made) == []
    assert read.digest == made.digest


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_directory_hash_follows_names_and_contents_and_not_the_place(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "a.txt").write_bytes(b"one")
    (model / "sub" / "b.txt").write_bytes(b"two")
    first = hash_directory(model)

    shutil.copytree(model, tmp_path / "copy")
    assert hash_directory(tmp_path / "copy") == first
    (tmp_path / "link").symlink_to(model)
    assert hash_directory(tmp_path / "link") == first

    (tmp_path / "copy" / "a.txt").write_bytes(b"onE")
    changed = hash_directory(tmp_path / "copy")
    (model / "a.txt").rename(model / "c.txt")
    renamed = hash_directory(model)
    (model / "c.txt").rename(model / "sub" / "a.txt")
    moved = hash_directory(model)
    assert len({first, changed, renamed, moved}) == 4


def test_links_inside_a_directory_stand_for_what_they_name(tmp_path: Path) -> None:
    for name in ("plain", "linked", "blobs"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "w").write_bytes(b"weights")
    (tmp_path / "blobs" / "x").write_bytes(b"weights")
    (tmp_path / "linked" / "w").symlink_to(tmp_path / "blobs" / "x")
    assert hash_directory(tmp_path / "linked") == hash_directory(tmp_path / "plain")


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match="is no directory with files in it"):
            hash_directory(path)
