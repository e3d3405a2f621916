"""What a run says of itself in words: right, and never more than it knows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from keel.report import facts
from keel.runs.read import RunView, read_run
from tests.report.support import SUMMARIES, evaluation, make_run


def run_with(path: Path, **changes: Any) -> RunView:
    return read_run(make_run(path, summaries={"evaluate": evaluation() | changes}))


def test_reliability_is_stated_either_way(tmp_path: Path) -> None:
    good = facts.reliability_note(run_with(tmp_path / "a"))
    assert good is not None
    assert "128 reference samples a prompt on 64 prompts" in good
    assert "1.79 instead of 1.82" in good
    assert good.endswith("reliable at this KL.")
    assert "not" not in good
    changed = evaluation()["frontier"] | {"reliable": False}
    bad = facts.reliability_note(run_with(tmp_path / "b", frontier=changed))
    assert bad is not None
    assert bad.endswith("not reliable, because the KL is beyond log n = 4.9 nats.")


def test_comparison_has_a_column_a_run_and_the_reference(tmp_path: Path) -> None:
    other = evaluation()
    other["reference"]["score"] = 0.2
    other["frontier"]["reliable"] = False
    runs = [read_run(make_run(tmp_path / "a")), read_run(make_run(tmp_path / "b", summaries={"evaluate": other}))]
    rows = {row.label: row for row in facts.comparison(runs)}
    assert rows["score"] == facts.Row("score", "0.00 / 0.20", ("1.68", "1.68"))
    assert rows["on_point"] == facts.Row("on_point", "0.73", ("0.74", "0.74"))
    assert rows["wins by true utility"].values[0] == "87% [84, 90]"
    assert rows["KL (nats a response)"].values[0] == "3.46 ± 0.12"
    assert rows["reached of KL's worth"].values == ("91%", "91% (unreliable)")
    assert rows["reward model right"].values[0] == "81.1% [72, 88]"
    assert rows["NLL of demonstrations"] == facts.Row("NLL of demonstrations", "0.31", ("0.55", "0.55"))


def test_the_kl_of_the_best_of_n_is_an_upper_bound(tmp_path: Path) -> None:
    rows = {row.label: row for row in facts.comparison([run_with(tmp_path / "best", best_of=4)])}
    assert rows["KL (nats a response)"].values[0] == "≤ 3.46 ± 0.12"


def test_comparison_leaves_out_what_nobody_knows(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft", "collect", "reward"), finished=("sft", "reward")))
    assert [row.label for row in facts.comparison([run])] == ["reward model right", "noise allows", "longer wins"]


def test_a_linked_stage_took_no_time(tmp_path: Path) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    shutil.rmtree(second / "sft")
    os.symlink(first / "sft", second / "sft")
    rows = {row.label: row.values for row in facts.timings([read_run(first), read_run(second)])}
    assert rows["sft"] == ("1 min 15 s", "reused")
    assert rows["collect"] == ("9.4 s", "9.4 s")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / "a", "x")), read_run(make_run(tmp_path / "b", "x"))]
    assert facts.labels(runs) == ["x (a)", "x (b)"]


def test_a_stage_that_the_recipe_does_not_have(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", stages=("sft",)))
    assert facts.state(run, "sft") is None
    assert facts.state(run, "ppo") == "the ppo stage has not begun"
    del run.recipe["collect"]
    assert facts.state(run, "collect") == "its recipe has no collect stage"


def test_support_is_in_order() -> None:
    assert set(SUMMARIES) | {"evaluate"} == {"sft", "collect", "reward", "ppo", "evaluate"}
