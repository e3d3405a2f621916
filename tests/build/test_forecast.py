"""The time to expect, by hand."""

from __future__ import annotations

import pytest

from keel.build.forecast import (
    Forecast,
    Measured,
    clock,
    collect_forecast,
    epochs_forecast,
    evaluate_forecast,
    ppo_forecast,
    shrinkage,
    total,
)
from keel.config.data import DataConfig
from keel.config.evaluate import EvaluateConfig
from keel.config.ppo import HeldOutConfig, PPOConfig

DATA = DataConfig(path="prompts.jsonl")


def test_epochs() -> None:
    """10 s in all: two steps of 3 s and 1 s, three validations of 0.5 s (one for the summary), so 4.5 s else."""
    lines = [
        {"time/step_seconds": 3.0, "time/validation_seconds": 0.5},
        {"time/step_seconds": 1.0, "time/validation_seconds": 0.5},
    ]
    measured = Measured(seconds=10.0, peak_bytes=7, lines=list(lines))
    found = epochs_forecast("sft", measured, steps=100, validate_every=30, validation_scale=4.0)
    # the second step is the warm one; validated at 30, 60, 90, at the end and for the summary, on 4 times the rows
    assert found == Forecast("sft", "step", 1.0, 100, 4.5 + 100 * 1.0 + 5 * 2.0, 7)
    short = epochs_forecast(
        "reward", measured, steps=100, validate_every=30, validation_scale=4.0, shrink=0.5, more_seconds=9.0
    )
    assert short.seconds == pytest.approx(4.5 + 50 + 5 + 9)


def test_ppo() -> None:
    """20 s in all: the start's evaluation of 2 s, iterations of 5 s and 4 s, so 9 s else."""
    config = PPOConfig(prompts=DATA, iterations=25, evaluate=HeldOutConfig(every=10))
    rollout = {"sampling": 2.0, "values": 0.25, "reference": 0.25, "scoring": 0.5}
    roles = {f"time/{role}_seconds": seconds for role, seconds in rollout.items()}
    lines = [
        {"time/evaluation_seconds": 2.0},
        {"time/rollout_seconds": 3.0, "time/update_seconds": 2.0},
        {"time/rollout_seconds": 3.0, "time/update_seconds": 1.0, **roles},
    ]
    found = ppo_forecast(config, Measured(seconds=20.0, lines=list(lines)), shrink=0.5)
    assert (found.seconds_a_step, found.steps) == (2.0, 25)
    assert found.seconds == pytest.approx(9.0 + 25 * 2.0 + 4 * 1.0)  # evaluated at 0, 10, 20 and 25
    assert list(found.roles.items()) == [  # of the last iteration's 4 s
        ("sampling", 1.0),
        ("values", 0.125),
        ("reference", 0.125),
        ("scoring", 0.25),
        ("update", 0.5),
    ]


def test_collect() -> None:
    """8 s of 10 s went into 4 prompts."""
    measured = Measured(seconds=10.0, marks={0: 100.0, 1: 103.0, 2: 108.0})
    found = collect_forecast(measured, measured_prompts=4, prompts=100, shrink=0.5)
    assert (found.seconds_a_step, found.seconds) == (1.0, 2.0 + 100)


def test_evaluate() -> None:
    """20 s in all: 6 + 2 s for 4 prompts, 3 s for a frontier of 2 x 10 samples, so 9 s else."""
    small = EvaluateConfig(prompts=DATA, count=4, frontier_prompts=2, frontier_samples=10)
    whole = EvaluateConfig(prompts=DATA, count=200, frontier_prompts=64, frontier_samples=100)
    measured = Measured(seconds=20.0, marks={0: 50.0, 1: 56.0, 2: 58.0, 3: 61.0})
    found = evaluate_forecast(whole, small, measured, prompts=30, shrink=1.0)
    assert found.steps == 30  # there are no more
    assert found.seconds == pytest.approx(9.0 + 30 * 2.0 + 30 * 100 * 0.15)


def test_evaluate_on_fewer_prompts_than_were_asked_for() -> None:
    """The same times, for two prompts and a frontier of 2 x 10 samples: 4 s a prompt, 0.15 s a sample."""
    small = EvaluateConfig(prompts=DATA, count=4, frontier_prompts=3, frontier_samples=10)
    whole = EvaluateConfig(prompts=DATA, count=200, frontier_prompts=64, frontier_samples=100)
    measured = Measured(seconds=20.0, marks={0: 50.0, 1: 56.0, 2: 58.0, 3: 61.0})
    found = evaluate_forecast(whole, small, measured, prompts=2, shrink=1.0)
    assert found.seconds == pytest.approx(9.0 + 2 * 4.0 + 2 * 100 * 0.15)


def test_texts_that_will_be_shorter_cost_less() -> None:
    assert shrinkage(10.0, 20.0, 50.0) == 0.5
    assert shrinkage(10.0, 50.0, 20.0) == 1.0  # a model that ends early has not been seen to write long
    assert shrinkage(10.0, None, 20.0) == shrinkage(10.0, 20.0, None) == 1.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (2.34, "2.3 s"), (59.4, "59 s"), (200.0, "3 min"), (7500.0, "2 h 05 min")],
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_total() -> None:
    assert total([Forecast("a", "step", 1.0, 1, 2.5, 0), Forecast("b", "step", 1.0, 1, 4.0, 0)]) == 6.5
