"""A stage that waits for people: asked once, waited for, and gone on with wherever it was left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from keel.annotate.people import Away, Opinion, Standing
from keel.config.collect import AnnotatorConfig, CollectConfig, PeopleConfig
from keel.config.data import DataConfig
from keel.data.load import load_comparisons
from keel.errors import UserError
from keel.pipeline import collect
from keel.pipeline.collect import collect_from_people, rounds_done, sample_for_people
from keel.records import PromptItem
from keel.runs import leaving
from keel.schema import Comparison, Sampled
from keel.seeds import Draws
from tests.pipeline.support import Heard, begin_stage
from tests.pipeline.test_collect import A, AnsweringSampler, B, C, prompts_of


class People:
    """A panel in memory, of people who answer one more question at each look at it."""

    where = "They sit next door."

    def __init__(self, *answers: tuple[str, int | None], votes: int = 1, away: int = 0) -> None:
        """(who, what is best) one after the other, `votes` to each question."""
        self.columns: dict[str, Any] = {"round": 2, "policy_version": "v7"}
        self.answers = answers
        self.votes = votes
        self.away = away  # how often it does not answer
        self.open = True
        self.asked: list[Sampled] = []
        self.published = 0
        self.given = 0

    def publish(self, questions: Sequence[Sampled]) -> int:
        self._reach()
        self.published += 1
        new = 0 if self.asked else len(questions)
        self.asked = list(questions)
        return new

    def standing(self) -> Standing:
        self._reach()
        self.given = min(self.given + 1, len(self.answers))
        names = [name for name, _ in self.answers[: self.given]]
        by = {name: names.count(name) for name in dict.fromkeys(names)}
        wanted = self.votes * len(self.asked)
        return Standing(len(self.asked), self.given // self.votes, self.given, wanted, by, self.open)

    def opinions(self) -> list[Opinion]:
        self._reach()
        return [
            Opinion(number // self.votes, name, best, 0, "tie" if best is None else "slight", 1.5)
            for number, (name, best) in enumerate(self.answers[: self.given])
        ]

    def _reach(self) -> None:
        if self.away > 0:
            self.away -= 1
            raise Away("nobody opens")


def nobody_sleeps(seconds: float) -> None:
    """The clock of a test."""


def collected(
    folder: Path,
    panel: People,
    sampler: AnsweringSampler | None = None,
    *,
    count: int = 4,
    console: Heard | None = None,
    pause: Callable[[float], None] = nobody_sleeps,
    prompts: list[PromptItem] | None = None,
    **people: Any,
) -> tuple[dict[str, Any], list[Comparison]]:
    config = CollectConfig(
        prompts=DataConfig(path="prompts.jsonl"),
        annotator=AnnotatorConfig(people=PeopleConfig(project="talk", **people)),
    )
    stage, console, prompts = begin_stage(folder, "collect"), console or Heard(), prompts or prompts_of(count)
    sampler = sampler or AnsweringSampler(lambda prompt, which: C if which else A, 2)
    draws = Draws(0, "collect")
    rounds = sample_for_people(config, sampler, prompts, rounds_done(stage), stage=stage, draws=draws, console=console)
    summary = collect_from_people(config, panel, prompts, rounds, stage=stage, console=console, pause=pause)
    data = DataConfig(path=str(folder / "collect" / "comparisons" / "comparisons.jsonl"), validation=0.0)
    return summary, list(load_comparisons(data).train)


def test_answers_are_comparisons_and_ties_are_none(tmp_path: Path) -> None:
    console = Heard()
    panel = People(("ann", 0), ("ann", None), ("ben", 1), ("ann", 0))
    summary, rows = collected(tmp_path, panel, console=console)
    asked = panel.asked
    assert {one.responses for one in asked} <= {("a", "c c c"), ("c c c", "a")}
    assert rows[1] == Comparison(
        prompt="question 2",
        chosen=asked[2].responses[1],
        rejected=asked[2].responses[0],
        annotator="ben",
        extra={
            "topic": 2,
            "round": 2,
            "policy_version": "v7",
            "chosen_ended": asked[2].responses[1] == "a",
            "rejected_ended": asked[2].responses[0] == "a",
            "chosen_first": False,
            "strength": "slight",
            "duration": 1.5,
        },
    )
    assert [(row.prompt, row.annotator, row.extra["chosen_first"]) for row in rows] == [
        ("question 0", "ann", True),
        ("question 2", "ben", False),
        ("question 3", "ann", True),
    ]
    assert summary == {
        "comparisons": 3,
        "identical_pairs": 0,
        "prompts": 4,
        "annotator": "2 people",
        "noise_ceiling": None,
        "pairs": 4,
        "judged_pairs": 4,
        "judgements": 4,
        "without_a_better_one": 1,
    }
    assert console.said == [
        "collect: 4 pairs wait for people. They sit next door.",
        "collect: 1 of 4 judgements find neither response better, and are left out.",
    ]
    assert [done for stage, done, of in console.progressed if stage == "people"] == [1, 2, 3, 4]


def test_every_vote_is_a_row(tmp_path: Path) -> None:
    panel = People(("ann", 0), ("ben", 1), ("ann", 1), ("ben", 1), votes=2)
    summary, rows = collected(tmp_path, panel, count=2)
    assert [(row.prompt, row.annotator) for row in rows] == [
        ("question 0", "ann"),
        ("question 0", "ben"),
        ("question 1", "ann"),
        ("question 1", "ben"),
    ]
    assert (rows[0].chosen, rows[0].rejected) == (rows[1].rejected, rows[1].chosen)
    assert (summary["judgements"], summary["judged_pairs"]) == (4, 2)


def test_enough_may_be_less_than_all(tmp_path: Path) -> None:
    summary, rows = collected(tmp_path, People(*[("ann", 0)] * 10), count=10, enough=0.7)
    assert (len(rows), summary["judged_pairs"], summary["pairs"], summary["annotator"]) == (7, 7, 10, "ann")


def sampler_of() -> AnsweringSampler:
    return AnsweringSampler(lambda prompt, which: (A, B, C)[(prompt + which) % 3], 2)


def test_told_to_end_it_leaves_and_goes_on_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_PROMPTS_A_ROUND", 2)
    answers = [("ann", 0), ("ben", 1)] * 3
    alone = collected(tmp_path / "alone", People(*answers), sampler_of(), count=6)
    panel = People(*answers)

    def told(seconds: float) -> None:
        monkeypatch.setattr(leaving, "asked", lambda: True)

    with pytest.raises(leaving.Left) as left:
        collected(tmp_path / "left", panel, sampler_of(), count=6, pause=told)
    assert left.value.code == 143
    assert panel.given == 2
    monkeypatch.undo()
    monkeypatch.setattr(collect, "_PROMPTS_A_ROUND", 2)
    sampler, console = sampler_of(), Heard()
    again = collected(tmp_path / "left", panel, sampler, count=6, console=console)
    assert sampler.asked == 0
    assert console.said[0] == "collect: 6 pairs are with people already. They sit next door."
    assert again == alone
    files = [tmp_path / name / "collect" / "comparisons" / "comparisons.jsonl" for name in ("alone", "left")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_who_does_not_wait_leaves_when_all_is_published(tmp_path: Path) -> None:
    panel = People(*[("ann", 0)] * 4)
    for _ in range(3):
        with pytest.raises(leaving.Left):
            collected(tmp_path, panel, wait=False)
    assert len(panel.asked) == 4
    assert len(collected(tmp_path, panel, wait=False)[1]) == 4


def test_people_who_cannot_be_reached_are_asked_again(tmp_path: Path) -> None:
    console = Heard()
    _, rows = collected(tmp_path, People(*[("ann", 0)] * 4, away=5), console=console)
    assert len(rows) == 4
    assert console.said[0] == "collect: nobody opens; it is asked again and again."
    assert console.said[1].startswith("collect: 4 pairs wait")


def test_a_closed_project_is_said(tmp_path: Path) -> None:
    panel = People(("ann", 0))
    panel.open = False
    with pytest.raises(UserError) as error:
        collected(tmp_path, panel)
    assert str(error.value) == (
        "collect: the project talk was closed with 1 of 4 pairs judged; open it again, or lower "
        "collect.annotator.people.enough to go on with those"
    )


def test_a_project_that_is_closed_before_anything_is_judged_is_to_be_opened(tmp_path: Path) -> None:
    panel = People()
    panel.open = False
    with pytest.raises(UserError, match=r"was closed with 0 of 4 pairs judged; open it again$"):
        collected(tmp_path, panel)


def test_nothing_but_ties_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="in all 4 judgements neither response is better"):
        collected(tmp_path, People(*[("ann", None)] * 4))


def test_the_time_that_is_left_follows_from_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One vote every 30 seconds: with two of four left, a minute."""
    seconds = iter(range(0, 1000, 30))
    monkeypatch.setattr("keel.pipeline.people.time.monotonic", lambda: float(next(seconds)))
    seen: list[dict[str, float]] = []

    class Listening(Heard):
        def progress(self, stage: str, done: int, total: int, numbers: Any) -> None:
            if stage == "people":
                seen.append(dict(numbers))

    collected(tmp_path, People(("ann", 0), ("ben", 0), ("ann", 0), ("ann", 0)), console=Listening())
    assert seen == [
        {"ann": 1},
        {"ann": 1, "ben": 1, "minutes left": 1.0},
        {"ann": 2, "ben": 1, "minutes left": 0.5},
        {"ann": 3, "ben": 1, "minutes left": 0.0},
    ]


def test_a_stage_whose_pairs_were_withdrawn_says_so(tmp_path: Path) -> None:
    panel = People(*[("ann", 0)] * 4)

    def withdraw(seconds: float) -> None:
        panel.asked, panel.given = [], 0
        panel.answers = ()

    with pytest.raises(UserError, match="all of its pairs were withdrawn from the project talk"):
        collected(tmp_path, panel, pause=withdraw)


def test_pairs_that_are_withdrawn_while_it_reads_the_answers_are_said(tmp_path: Path) -> None:
    """After the last look at them all were judged; no answer to them stands any more."""

    class Withdrawing(People):
        def opinions(self) -> list[Opinion]:
            self.asked, self.given, self.answers = [], 0, ()
            return super().opinions()

    with pytest.raises(UserError, match="all of its pairs were withdrawn from the project talk"):
        collected(tmp_path, Withdrawing(*[("ann", 0)] * 4))
