"""What an assessment looks like in words and pictures, on its own page and in its run's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keel.assessment.findings import OTHER_PROMPTS, Compared, Replies, alarms, comparisons, replies
from keel.report import assessment, assessment_page
from keel.report.concerns import concerns
from keel.report.figures import describe, draw
from keel.report.page import render
from keel.runs import files
from keel.runs.read import read_run
from tests.report.support import HOSTILE, make_run


def found(*, apart: bool = False, source: str = "model") -> dict[str, Any]:
    """Forty pairs of ten prompts of two sources, with votes that differ, and a refusal that scores too high."""
    draws = np.random.default_rng(0)
    scores, lengths = draws.normal(size=80), draws.integers(5, 200, size=80).astype(float)
    scores[::2] += 1.5  # the preferred ones
    compared = Compared(
        scores=scores,
        lengths=lengths,
        prompts=np.arange(80) // 8,
        chosen=np.arange(40) * 2,
        rejected=np.arange(40) * 2 + 1,
        sources=("one", "other") * 20,
        annotators=np.full(40, -1),
        margins=np.full(40, np.nan),
        probabilities=draws.uniform(0.5, 1.0, size=40),
    )
    spread = np.full(10, 0.25) if apart else None
    groups = [
        Replies("replies of the data", "real", np.linspace(-1, 1, 10), spread),
        Replies(OTHER_PROMPTS, "off", np.linspace(-3, -1.5, 10), None if spread is None else spread * 2),
        Replies("refusal", "probe", np.full(10, 0.75), spread),
    ]
    invariance = {"texts": 10, "batch": 2e-7, "padding": 1e-7, "order": 0.0, "tolerance": 1e-3, "holds": True}
    made = comparisons(compared, 1.0) | {"replies": replies(groups), "invariance": invariance, "cut": 3}
    about = {"source": source, "data": ["votes.jsonl"], "held_out": False, "ties_left_out": 2, "responses": 80}
    return about | made | {"alarms": alarms(made)}


def test_the_figures_in_words() -> None:
    shown = {row.label: row.values[0] for row in assessment.rows([found()])}
    assert re.fullmatch(r"\d+\.\d% \[\d+, \d+\] of 40", shown["right"])
    assert shown["a score’s change with its batch"] == "2.0e-07 (within 1.0e-03)"
    assert (shown["ties, left out"], shown["replies whose prompt was cut"]) == ("2", "3")
    assert "right on what several people judged" not in shown  # nobody voted twice


def test_chances_that_are_known_are_noise_and_no_people() -> None:
    shown = {row.label: row.values[0] for row in assessment.rows([found() | {"stated_ceiling": 0.85}])}
    assert shown["noise allows"] == "85.0%"
    assert "people allow" not in shown


def test_the_votes_bounds_are_what_people_allow() -> None:
    votes = {"stated_ceiling": None, "ceiling": {"lowest": 0.75, "highest": 0.8536, "model": None}}
    shown = {row.label: row.values[0] for row in assessment.rows([found() | votes])}
    assert shown["people allow"] == "75.0% to 85.4%"
    assert "noise allows" not in shown


def test_members_are_shown_where_there_are_some() -> None:
    assert len(assessment.reply_rows(found())[0]) == 4
    header, *lines = assessment.reply_rows(found(apart=True))
    assert header[-2:] == ["members disagree", "above the real"]
    assert lines[1] == [OTHER_PROMPTS, "−2.25", "0%", "0%", "0.50", "100%"]


def test_every_picture_is_drawn_and_says_what_it_shows() -> None:
    drawn = [*assessment.own_reliability([(found(), "run0")]), *assessment.panels([(found(), "run0")])]
    panels = {panel.title: panel for panel in drawn}
    shown = {title for title, panel in panels.items() if not panel.empty}
    assert shown == {
        "Reliability",
        "Accuracy by margin",
        "Accuracy by length difference",
        "Score against length",
        "Scores of real replies and of probes",
    }
    probes = panels["Scores of real replies and of probes"]
    assert describe(probes).endswith("refusal: 0.75; real replies to other prompts: −2.25; replies of the data: 0.00.")
    svg = draw(probes, 0)
    assert all(name in svg for name in ("refusal", "replies of the data"))


def test_a_page_of_its_own_escapes_what_it_is_given() -> None:
    page = assessment_page.render(found(source=HOSTILE))
    assert "<script>" not in page
    assert "1 alarm" in page
    assert "“refusal” scores above the median real reply (0.75 against 0.00)" in page
    assert page.count("<figure>") == 5
    assert "By source" in page
    assert "By agreement of the annotators" in page


def test_figures_and_page_are_written_side_by_side(tmp_path: Path) -> None:
    made = found()
    page = assessment_page.write(made, tmp_path / "new" / "folder")
    assert page.read_text(encoding="utf-8") == assessment_page.render(made)
    assert assessment.read(page.parent) == made


def test_a_runs_report_shows_it_and_warns(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    before = render([read_run(folder)])
    assert "Reward model, assessed" not in before
    files.write_json(folder / "reward" / assessment.FILE, found())
    run = read_run(folder)
    page = render([run, run])
    assert page.count('id="assessment"') == 1
    assert "On 40 comparisons of 10 prompts, of votes.jsonl." in page
    assert page.count("Of the log-odds that the scores stand for") == 1
    files.write_json(folder / "reward" / assessment.FILE, found() | {"held_out": True})
    assert "Of the log-odds that the scores stand for" not in render([read_run(folder)])  # the stage's own picture
    assert any("“refusal” scores above" in concern.sentence for concern in concerns(run))


@pytest.mark.parametrize("missing", ["ceiling", "calibration", "length", "replies", "by_source"])
def test_what_an_older_file_lacks_is_left_out(missing: str) -> None:
    """A report of a run that was assessed by another version still opens."""
    part = {key: value for key, value in found().items() if key != missing}
    assert assessment.rows([part])
    assert assessment.panels([(part, "run0")])
