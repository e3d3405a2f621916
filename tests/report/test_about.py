"""What was trained, by the files themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from keel.report import about
from keel.report.numbers import size
from keel.runs.read import read_run
from tests.report.support import STAGES, make_run


def test_parameters_are_counted_in_the_headers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert about.parameters(read_run(run)) is None
    for stage, sizes in (("sft", [(2, 3)]), ("ppo", [(5, 7), (11,), ()])):
        (run / stage / "model").mkdir()
        tensors = {f"w{index}": np.zeros(shape, np.float32) for index, shape in enumerate(sizes)}
        save_file(tensors, run / stage / "model" / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"w": np.zeros((2, 2), np.float16)}, run / "ppo" / "model" / "model-2.safetensors")
    assert about.parameters(read_run(run)) == 5 * 7 + 11 + 1 + 4
    shutil.rmtree(run / "ppo" / "model")
    assert about.parameters(read_run(run)) == 6
    assert about.model(read_run(run)) == "A model from nothing, 4 layers, 192 wide · 6 parameters"


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 16, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_a_broken_file_has_no_parameters(tmp_path: Path, content: bytes) -> None:
    run = make_run(tmp_path / "run")
    (run / "sft" / "model").mkdir()
    (run / "sft" / "model" / "model.safetensors").write_bytes(content)
    assert about.parameters(read_run(run)) is None


def test_sizes_as_words() -> None:
    assert [size(count) for count in (6, 99_999, 259_328, 949_376, 494_032_768, 999_600_000, 1_543_714_304)] == [
        "6",
        "99,999",
        "0.259 million",
        "0.949 million",
        "494 million",
        "1 billion",
        "1.54 billion",
    ]


def test_sources_are_named_without_their_folders() -> None:
    named = {
        "/home/me/data/demos.jsonl": "demos.jsonl",
        "data/demos.jsonl.gz": "demos.jsonl.gz",
        "../models/tiny": "tiny",
        "owner/model-0.5B": "owner/model-0.5B",
        "my_rules:rows": "my_rules:rows",
        "collect": "collect",
    }
    assert {path: about.source(path) for path in named} == named
    assert about.source({"path": None, "function": "my_rules:rows"}) == "my_rules:rows"
    assert about.source([{"path": "a/b/c.csv", "function": None}, "owner/name"]) == "c.csv + owner/name"
    assert about.source(None) == ""


def test_an_annotator_is_called_scripted_where_a_script_compares(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert about.annotator(run) == "polite"
    run.recipe["collect"]["annotator"] = {"script": "keel.demo:polite"}
    assert about.annotator(run) == "polite (scripted)"
    assert about.annotator(read_run(make_run(tmp_path / "begun", stages=()))) == ""


def test_every_stage_of_the_recipe_is_a_step(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first")
    run = make_run(tmp_path / "run", stages=STAGES[:4], finished=STAGES[:3])
    shutil.rmtree(run / "sft")
    os.symlink(first / "sft", run / "sft")
    found = [(step.stage, step.standing, step.figure, step.note) for step in about.steps(read_run(run))]
    assert found == [
        ("sft", "reused", "500 demonstrations", ""),
        ("collect", "done", "990 comparisons", "by polite"),
        ("reward", "done", "81% right", "of 85% that noise allows"),
        ("ppo", "going", "unfinished", "step 70"),
        ("evaluate", "open", "not begun", ""),
    ]
