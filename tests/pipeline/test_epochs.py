"""The loop of supervised and reward training: every row once an epoch, and interrupted as uninterrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from keel.config.training import TrainingConfig
from keel.data.mix import Mixture
from keel.pipeline.epochs import total_steps, train_epochs
from keel.runs import leaving
from keel.runs.callbacks import Callback
from keel.runs.metrics import read_lines
from keel.seeds import Draws
from keel.tally import Tally
from tests.pipeline.support import Heard, StopAt, begin_stage


@dataclass(frozen=True)
class Rows:
    numbers: tuple[int, ...]

    @property
    def weight(self) -> float:
        return float(len(self.numbers))


@dataclass
class SummingLearner:
    """Its one weight depends on the order of all rows it has seen."""

    dies_at: int | None = None
    total: float = 0.0
    seen: list[tuple[int, ...]] = field(default_factory=list)
    steps: int = 0

    def step(self, batches: Sequence[Rows], check: Callable[[Tally], None] | None = None) -> Tally:
        if self.steps == self.dies_at:
            raise KeyboardInterrupt
        numbers = tuple(number for batch in batches for number in batch.numbers)
        self.seen.append(numbers)
        for number in numbers:
            self.total = self.total * 0.5 + number
        self.steps += 1
        tally = Tally()
        tally.add("toy/loss", self.total)
        return tally

    def measure(self, batches: Sequence[Rows]) -> Tally:
        raise NotImplementedError

    def skip(self) -> None:
        raise NotImplementedError

    def write(self, folder: Path) -> None:
        (folder / "total").write_text(repr(self.total))

    def read(self, folder: Path, steps: int) -> None:
        self.total, self.steps = float((folder / "total").read_text()), steps


CONFIG = TrainingConfig(epochs=3, batch=4, validate_every=2, checkpoint_every=3)


def walk(
    learner: SummingLearner,
    folder: Path,
    console: Heard | None = None,
    config: TrainingConfig = CONFIG,
    callbacks: Sequence[Callback] = (),
) -> None:
    def validate() -> Tally:
        tally = Tally()
        tally.add("toy/validation/loss", learner.total / 2)
        return tally

    train_epochs(
        config,
        learner,
        mixture=Mixture.whole(10),
        batches=lambda rows: [Rows(tuple(rows[:2])), Rows(tuple(rows[2:]))],
        tokens=lambda row: [(row,)],
        validate=validate,
        stage=begin_stage(folder, "sft", callbacks=callbacks),
        draws=Draws(0, "sft"),
        console=console or Heard(),
        shown=("toy/loss", "toy/validation/loss"),
    )


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "steps"), [(10, 3, 4, 8), (8, 1, 4, 2), (1, 1, 64, 1), (5, 2, 5, 2)]
)
def test_the_last_step_takes_what_is_left(rows: int, epochs: int, batch: int, steps: int) -> None:
    assert total_steps(TrainingConfig(epochs=epochs, batch=batch), rows) == steps


def test_every_row_is_met_once_an_epoch(tmp_path: Path) -> None:
    learner = SummingLearner()
    walk(learner, tmp_path)
    assert [len(numbers) for numbers in learner.seen] == [4, 4, 4, 4, 4, 4, 4, 2]
    rows = [number for numbers in learner.seen for number in numbers]
    epochs = [rows[:10], rows[10:20], rows[20:]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_validation_and_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    console = Heard()
    walk(SummingLearner(), tmp_path, console)
    lines = read_lines(tmp_path / "sft" / "metrics.jsonl")
    assert [line["iteration"] for line in lines] == list(range(1, 9))
    assert [line["iteration"] for line in lines if "toy/validation/loss" in line] == [2, 4, 6, 8]
    assert all(line["time/step_seconds"] >= 0 for line in lines)
    assert [line["iteration"] for line in lines if "time/validation_seconds" in line] == [2, 4, 6, 8]
    kept = sorted(path.name for path in (tmp_path / "sft" / "checkpoints").iterdir())
    assert kept == ["step-00000007", "step-00000008"]  # 7: the last that a longer walk has in common with this one
    assert console.progressed == [("sft", done, 8) for done in range(1, 9)]


@pytest.mark.parametrize("dies_at", [0, 2, 3, 5, 7])
def test_an_interrupted_walk_ends_as_one_left_alone(dies_at: int, tmp_path: Path) -> None:
    alone, cut, again = SummingLearner(), SummingLearner(dies_at=dies_at), SummingLearner()
    walk(alone, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        walk(cut, tmp_path / "cut")
    walk(again, tmp_path / "cut")
    assert again.total == alone.total
    assert again.steps == alone.steps == 8
    start = 7 if dies_at == 7 else dies_at - dies_at % 3
    assert again.seen == alone.seen[start:]  # from the last checkpoint on, no earlier
    assert log(tmp_path / "cut") == log(tmp_path / "alone")


def test_a_finished_walk_does_no_step_again(tmp_path: Path) -> None:
    walk(SummingLearner(), tmp_path)
    again = SummingLearner(dies_at=8)
    walk(again, tmp_path)
    assert (again.steps, again.seen) == (8, [])


@pytest.mark.parametrize(("batch", "redone"), [(4, 1), (5, 0), (64, 1)])
def test_more_epochs_go_on_as_if_there_had_always_been_as_many(batch: int, redone: int, tmp_path: Path) -> None:
    """10 rows, 3 epochs: in batches of 4 or 64 the last step is short of rows, and must be done again in full."""
    short, more = (TrainingConfig(epochs=epochs, batch=batch, checkpoint_every=100) for epochs in (3, 5))
    first, longer, alone = SummingLearner(), SummingLearner(), SummingLearner()
    walk(first, tmp_path / "extended", config=short)
    walk(longer, tmp_path / "extended", config=more)
    walk(alone, tmp_path / "alone", config=more)
    assert longer.total == alone.total
    assert longer.seen == alone.seen[first.steps - redone :]
    lines = [[line["toy/loss"] for line in log(tmp_path / name)] for name in ("extended", "alone")]
    assert lines[0] == lines[1]


def test_a_callback_ends_the_walk_for_good(tmp_path: Path) -> None:
    console, learner, again = Heard(), SummingLearner(), SummingLearner()
    walk(learner, tmp_path, console, callbacks=[StopAt(2)])
    assert learner.steps == 2
    assert console.said == ["sft: ended after 2 of 8 steps: a callback asked for it."]
    walk(again, tmp_path)  # killed before the stage was finished, and started without the callback
    assert (again.steps, again.total, again.seen) == (2, learner.total, [])


def log(folder: Path) -> list[dict[str, Any]]:
    lines = read_lines(folder / "sft" / "metrics.jsonl")
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_what_is_told_to_end_saves_the_step_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "asked", lambda: (tmp_path / "sft" / "metrics.jsonl").exists())
    with pytest.raises(leaving.Left) as left:
        walk(SummingLearner(), tmp_path)
    assert left.value.code == 143
    assert [path.name for path in (tmp_path / "sft" / "checkpoints").iterdir()] == ["step-00000001"]


def test_told_to_end_between_a_checkpoint_and_the_next_step_it_takes_that_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told to end after the step was looked at is not said to be saved by it."""
    asked = False
    monkeypatch.setattr(leaving, "asked", lambda: asked)

    class Telling(Heard):
        def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
            nonlocal asked
            asked = done == 1

    with pytest.raises(leaving.Left):
        walk(SummingLearner(), tmp_path, Telling())
    assert [path.name for path in (tmp_path / "sft" / "checkpoints").iterdir()] == ["step-00000002"]
