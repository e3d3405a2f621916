from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from keel.compare.findings import Row, gather
from keel.compare.page import HEADER, cells, equal_kl, markdown, write
from keel.compare.plan import Planned
from keel.compare.run import execute, run_all
from keel.runs.files import write_json


def made(
    out: Path, name: str, *, stage: str | None, kl: float, truth: float, course: list[tuple[float, float]]
) -> None:
    """A finished run of that name, as it lies on disk."""
    folder = out / name
    summary = {
        "kl": kl,
        "policy": {"utility": truth, "score": 2 * truth, "length": 9.0},
        "reference": {"utility": 1.0, "score": 0.0},
        "utility": {"win_rate": 0.75},
        "score": {"win_rate": 0.9},
    }
    (folder / "evaluate").mkdir(parents=True)
    write_json(folder / "run.json", {"name": name, "starts": []})
    write_json(folder / "recipe.json", {"ppo": {"rollout_batch": 100}} if stage == "ppo" else {})
    write_json(folder / "evaluate" / "done.json", summary)
    write_json(folder / "cost.json", {"cpu_seconds": 5.0, "peak_gib": 0.5})
    if stage:
        (folder / stage).mkdir()
        write_json(folder / stage / "done.json", {})
        lines: list[dict[str, Any]] = [
            {"iteration": index, "eval/kl": at, "eval/utility": value, "objective/length": 10.0}
            for index, (at, value) in enumerate(course)
        ]
        (folder / stage / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def planned(name: str, algorithm: str, leash: float = 1.0) -> Planned:
    return Planned(name, algorithm, 0, leash, {})


def rows_of(out: Path) -> list[Row]:
    made(out, "ppo-0", stage="ppo", kl=4.0, truth=3.0, course=[(0.0, 1.0), (1.0, 2.0), (4.0, 3.0)])
    made(out, "ppo-1", stage="ppo", kl=2.0, truth=2.0, course=[(0.0, 1.0), (1.0, 1.0), (2.0, 2.0)])
    made(out, "dpo-0", stage="direct", kl=1.0, truth=1.5, course=[])
    made(out, "dpo-0-leash0.5", stage="direct", kl=2.25, truth=2.5, course=[])
    made(out, "best_of_4-0", stage=None, kl=0.64, truth=1.8, course=[])
    runs = [planned("ppo-0", "ppo"), planned("ppo-1", "ppo"), planned("dpo-0", "dpo")]
    runs += [planned("dpo-0-leash0.5", "dpo", 0.5), planned("best_of_4-0", "best_of_4"), planned("rloo-0", "rloo")]
    return gather(runs, out)


def test_rows_are_means_over_seeds_and_courses_over_evaluations(tmp_path: Path) -> None:
    ppo, dpo, best = rows_of(tmp_path)  # rloo has not finished
    assert (ppo.algorithm, ppo.seeds, ppo.quantities["truth"]) == ("ppo", 2, (2.5, 0.5))
    assert ppo.courses == [[(0.0, 1.0), (1.0, 2.0), (4.0, 3.0)], [(0.0, 1.0), (1.0, 1.0), (2.0, 2.0)]]
    assert ppo.reach == 2.0
    assert ppo.quantities["sampled_tokens"][0] == 3 * 10 * 100
    assert (ppo.quantities["cpu_seconds"][0], ppo.quantities["peak_gib"][0]) == (5.0, 0.5)
    assert dpo.courses == [[(0.0, 1.0), (1.0, 1.5), (2.25, 2.5)]]  # the start, and its ends at two leashes
    assert best.courses == [[(0.0, 1.0), (0.64, 1.8)]]


def test_at_equal_kl_is_between_the_points_by_the_root_of_the_kl(tmp_path: Path) -> None:
    ppo, dpo, best = rows_of(tmp_path)
    assert equal_kl([ppo, dpo, best]) == 0.64
    assert ppo.at(0.64) == pytest.approx(1.0 + 0.8 * 0.5)  # root .8 of the way from 0 to 1: 1.8 and 1.0
    assert dpo.at(1.5625) == pytest.approx(1.5 + 0.5 * 1.0)  # root 1.25, half-way from 1 to 1.5
    assert best.at(0.64) == pytest.approx(1.8)
    assert math.isnan(best.at(0.7))


def test_the_table_and_its_files(tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    table = [dict(zip(HEADER, cells(row, equal_kl(rows)), strict=True)) for row in rows]
    assert table[0]["true reward"] == "2.50 ± 0.50"
    assert table[0]["win rate"] == "75 ± 0 %"
    assert table[0]["tokens drawn"] == "3 k"
    assert (table[2]["tokens drawn"], table[2]["CPU s"], table[2]["true reward"]) == ("–", "5", "1.80")
    page = write(rows, tmp_path, about={"recipe": "<demo>", "seeds": [0, 1]}).read_text()
    assert "&lt;demo&gt;" in page
    assert page.count("<svg") == 1
    lines = markdown(rows).splitlines()
    assert lines[0].startswith("| algorithm | true reward |")
    assert "at equal KL (0.64 nats)" in lines[0]
    assert len({line.count("|") for line in lines}) == 1
    assert (tmp_path / "compare.md").read_text() == markdown(rows)
    assert json.loads((tmp_path / "compare.json").read_text())["rows"][0]["algorithm"] == "ppo"


def test_a_course_that_turns_back_counts_where_it_first_gets_there() -> None:
    row = Row("x", 1, {}, [[(0.0, 1.0), (4.0, 2.0), (1.0, 9.0)]], [])
    assert row.at(1.0) == pytest.approx(1.5)


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    runs = [planned("bad-0", "ppo"), planned("worse-0", "ppo")]
    failed = run_all(runs, tmp_path, jobs=1, tell=lambda run, error: told.append((run.name, error)))
    assert [run.name for run in failed] == [name for name, _ in told] == ["bad-0", "worse-0"]
    assert "`name` is missing" in told[0][1]
    assert "`model` is missing" in execute({"name": "x"}, tmp_path, "x", threads=1)
