"""What the first screen says of a run: what was trained, whether it worked, and at what KL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from keel.report import numbers
from keel.report.about import Step, model, steps
from keel.report.concerns import concerns
from keel.report.facts import summary
from keel.report.numbers import dig, known, number, percent, percent_range, series
from keel.report.verdict import Verdict, judge_key, verdict
from keel.runs.read import RunView

_MOST_TILES = 4


@dataclass(frozen=True)
class Tile:
    """One figure, large; `rate` is a share with its interval, drawn on a bar from 0 to 100 %."""

    name: str
    value: str
    note: str
    rate: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Card:
    label: str
    model: str
    about: str
    verdict: Verdict
    tiles: list[Tile]
    steps: list[Step]
    num_concerns: int


def card(run: RunView, label: str) -> Card:
    """All that the first screen says of the run."""
    started = str(run.starts[0].get("started", ""))[:10] if run.starts else ""
    seed = run.recipe.get("seed")
    parts = (f"seed {seed}" if seed is not None else "", f"begun {started}" if started else "", _took(run))
    return Card(
        label=label,
        model=model(run),
        about=" · ".join(part for part in parts if part),
        verdict=verdict(run),
        tiles=list(_tiles(run))[:_MOST_TILES],
        steps=steps(run),
        num_concerns=len(concerns(run)),
    )


def _took(run: RunView) -> str:
    """Of all finished stages that were not linked from another run."""
    own = [view.summary for view in run.stages.values() if view.summary and not view.path.is_symlink()]
    return numbers.duration(sum(known(found.get("seconds")) or 0.0 for found in own)) if own else ""


def _tiles(run: RunView) -> Iterator[Tile]:
    """The evaluation's, else what the stages before it have to show, the last stage first."""
    found = summary(run, "evaluate")
    if found:
        yield from _judged(found, dig(run.recipe, "ppo", "kl"))
        return
    yield from _trained(run)
    held_out = dig(summary(run, "direct"), "validation") or {}
    if known(held_out.get("accuracy")) is not None:
        note = "held-out preferences on the right side of the policy’s implicit reward"
        yield Tile("Preferences right", percent(held_out["accuracy"], 1), note)
    reward = summary(run, "reward")
    if known(reward.get("accuracy")) is not None:
        longer = percent(reward.get("longer_wins"))
        interval = reward.get("accuracy_interval")
        yield Tile(
            "Reward model right",
            percent(reward["accuracy"], 1),
            f"{_interval(interval)}; always the longer response: {longer}",
            _rate(reward["accuracy"], interval),
        )
    elif known(reward.get("level_accuracy")) is not None:
        interval = reward.get("level_accuracy_interval")
        yield Tile(
            "Reward model’s level right",
            percent(reward["level_accuracy"], 1),
            f"{_interval(interval)}; always the commonest level: {percent(reward.get('commonest_level'))}",
            _rate(reward["level_accuracy"], interval),
        )
    losses = series(run.stages.get("sft"), "sft/validation/loss") or series(run.stages.get("sft"), "sft/loss")
    if losses:
        yield Tile("Supervised loss", _arrow(losses.ys[0], losses.ys[-1]), "nats a response token, first → last")


def _judged(found: dict[str, Any], leash: Any) -> Iterator[Tile]:
    judge = judge_key(found)
    names = {"utility": "the true utility", "score": "the reward"}
    rate, bounds = dig(found, judge, "win_rate"), dig(found, judge, "win_rate_interval")
    other = percent(dig(found, "score", "win_rate")) if judge == "utility" else numbers.ABSENT
    beside = f"; {other} by the reward" if other != numbers.ABSENT else ""
    if known(rate) is not None:
        note = f"by {names[judge]}, {_interval(bounds)}{beside}"
        yield Tile("Preferred to the reference", percent(rate), note, _rate(rate, bounds))
    yield from _before_after(found)
    if known(found.get("kl")) is not None:
        yield Tile("KL to the reference", number(found["kl"]), _kl_note(found, leash))
    frontier = found.get("frontier")
    if known(dig(frontier, "reached")) is not None:
        reliable = bool(dig(frontier, "reliable"))
        value = percent(dig(frontier, "reached")) if reliable else "unknown"
        yield Tile("Of the best this KL can buy", value, _frontier_note(frontier))


def _before_after(found: dict[str, Any]) -> Iterator[Tile]:
    """The true utility with the score below it, or the score alone; further measures in the note."""
    changes = {
        name: _arrow(dig(found, "reference", *keys), dig(found, "policy", *keys))
        for name, keys in _measured(found).items()
    }
    changes = {name: change for name, change in changes.items() if numbers.ABSENT not in change.split(" → ")}
    if changes:
        (name, change), *others = changes.items()
        yield Tile(f"{name}, before → after", change, ", ".join(f"{name} {change}" for name, change in others))


def _measured(found: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    measures = dig(found, "policy", "measures") or {}
    return {"True utility": ("utility",), "Score": ("score",)} | {name: ("measures", name) for name in measures}


def _trained(run: RunView) -> Iterator[Tile]:
    """Score and KL of PPO on its held-out prompts so far, else of its rollouts."""
    ppo = run.stages.get("ppo")
    for name, keys in (("Score", ("eval/scores", "objective/scores")), ("KL", ("eval/kl", "objective/kl"))):
        key, values = next(((key, found) for key in keys if (found := series(ppo, key))), ("", None))
        if values:
            where = "held-out prompts" if key.startswith("eval/") else "rollouts"
            at = f"{where}, iteration {values.xs[0]:.0f} → {values.xs[-1]:.0f}"
            if name == "KL":
                yield Tile("KL to the reference", number(values.ys[-1]), f"nats a response; {where}, the last")
            else:
                yield Tile("Score, before → after", _arrow(values.ys[0], values.ys[-1]), at)


def _arrow(before: Any, after: Any) -> str:
    return f"{number(before)} → {number(after)}"


def _interval(bounds: Any) -> str:
    text = percent_range(bounds)
    return f"95% interval {text}" if text else "no interval"


def _rate(rate: Any, bounds: Any) -> tuple[float, float, float] | None:
    """(rate, low, high) in percent, within 0 to 100."""
    if not percent_range(bounds):
        return None
    at, low, high = (100 * min(1.0, max(0.0, float(value))) for value in (rate, *bounds))
    return round(at, 1), round(low, 1), round(high, 1)


def _kl_note(found: dict[str, Any], leash: Any) -> str:
    error, token = found.get("kl_standard_error"), found.get("kl_per_token")
    spread = f"± {number(error)} " if known(error) is not None else ""
    limits = [f"; {key} {limit:g}" for key in ("target", "budget") if (limit := known(dig(leash, key))) is not None]
    each = f", {number(token, 3)} a token" if known(token) is not None else ""
    return f"{spread}nats a response{each}{''.join(limits)}"


def _frontier_note(frontier: Any) -> str:
    samples, bound = numbers.count(dig(frontier, "samples_a_prompt")), number(dig(frontier, "bound"))
    if not dig(frontier, "reliable"):
        return f"not reliable: this KL is beyond what {samples} samples a prompt can tell"
    return f"score {number(dig(frontier, 'score'))} of {bound}, by {samples} samples a prompt: reliable"
