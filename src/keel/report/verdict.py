"""Did it work? One honest sentence, also where it did not, or where it cannot be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keel.instruments.words import sentence
from keel.report.concerns import concerns
from keel.report.facts import judged_stage, state, summary
from keel.report.numbers import dig, known, number, percent, percent_range
from keel.runs.read import RunView


@dataclass(frozen=True)
class Verdict:
    """`kind` is good, mixed, even, bad or open (not judged)."""

    kind: str
    headline: str
    sentence: str

    @property
    def text(self) -> str:
        return f"{self.headline}. {self.sentence}"


def verdict(run: RunView) -> Verdict:
    """By the true utility where it is known, else by the rewards; the win rate's 95 % interval decides."""
    found = summary(run, "evaluate")
    judge = judge_key(found)
    bounds, rate = dig(found, judge, "win_rate_interval"), dig(found, judge, "win_rate")
    if not percent_range(bounds) or known(rate) is None:
        return _unjudged(run)
    odds = (
        f"Preferred to its reference in {percent(rate)} of comparisons (95% interval {percent_range(bounds)}) by "
        f"{judge_name(run)}{_price(found)}."
    )
    if bounds[0] > 0.5:
        return _better(run, odds)
    if bounds[1] < 0.5:
        return _worse(run, odds)
    return Verdict("even", "No clear difference", f"{odds} The interval includes 50%, so it cannot be told.")


def judge_key(found: dict[str, Any]) -> str:
    """Which of an evaluation's comparisons decides."""
    return "utility" if known(dig(found, "utility", "win_rate")) is not None else "score"


def judge_name(run: RunView) -> str:
    """Who decided, and how far that can be trusted."""
    if judge_key(summary(run, "evaluate")) == "utility":
        return "the true utility"
    trained_on, judges = (dig(run.recipe, stage, "reward") for stage in ("ppo", "evaluate"))
    if judged_stage(run) == "direct" or (judges is not None and judges != trained_on):
        return "a reward that it was not trained on (the true utility is not known)"
    kinds = {kind for reward in trained_on or [] for kind in ("model", "function", "service") if reward.get(kind)}
    name = f"reward {kinds.pop()}" if len(kinds) == 1 else "rewards"
    return f"the {name} that it was trained on (the true utility is not known)"


def _better(run: RunView, odds: str) -> Verdict:
    grave = [concern.sentence for concern in concerns(run) if concern.grave]
    if grave:
        return Verdict("mixed", "It worked, but", f"{odds} {' '.join(grave)}")
    return Verdict("good", "It worked", odds)


def _worse(run: RunView, odds: str) -> Verdict:
    found = summary(run, "evaluate")
    proxy = known(dig(found, "score", "win_rate"))
    if judged_stage(run) != "direct" and judge_key(found) == "utility" and proxy is not None and proxy > 0.5:
        gamed = f"{odds} The reward model itself prefers it in {percent(proxy)}: it was gamed."
        return Verdict("bad", "The reward model was gamed", gamed)
    return Verdict("bad", "It got worse", odds)


def _price(found: dict[str, Any]) -> str:
    """What was paid for it, and whether that was well spent."""
    kl, reached = known(found.get("kl")), known(dig(found, "frontier", "reached"))
    if kl is None:
        return ""
    spent = f", for a KL of {number(kl)} nats a response"
    if reached is None or not dig(found, "frontier", "reliable"):
        return spent
    return f"{spent} ({percent(reached)} of the score that this KL can buy)"


def _unjudged(run: RunView) -> Verdict:
    where = next((found for stage in reversed(run.stages) if (found := state(run, stage))), None)
    planned = not run.recipe or run.recipe.get("evaluate") is not None
    reason = where or state(run, "evaluate") or "the evaluation found no win rate"
    return Verdict("open", "Not judged yet" if where or planned else "Not judged", sentence(reason))
