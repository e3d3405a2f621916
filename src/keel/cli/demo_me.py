"""`keel demo --me`: a person's own taste, from some 40 judgements in the terminal to a model."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from keel.annotate.base import Pair
from keel.annotate.terminal import Journal, Key, judge, reading_keys
from keel.assessment.statistics import wilson_interval
from keel.build import generate_responses, run_recipe
from keel.build.judge import score_gaps
from keel.cli.console import TerminalConsole
from keel.cli.judging import pair_screen
from keel.cli.summary import print_summary
from keel.config.recipe import Recipe
from keel.config.sampling import SamplingConfig
from keel.data.write import write_jsonl, write_rows
from keel.demo.judging import (
    REPEATS,
    Favour,
    changes,
    choose_pairs,
    comparisons,
    favours,
    folds,
    from_rows,
    self_agreement,
    to_rows,
)
from keel.demo.language import words
from keel.demo.recipe import my_recipe
from keel.demo.rows import heldout, prompts
from keel.errors import UserError
from keel.inputs import stage_identity, stage_inputs
from keel.report.page import write_report
from keel.runs import files
from keel.runs.console import SilentConsole
from keel.runs.layout import DONE
from keel.runs.metrics import read_lines
from keel.runs.read import read_run
from keel.schema import Comparison, Prompt
from keel.seeds import Draws

PAIRS = 40
FEWEST = 10
"""Judgements below which no reward model is trained."""
_CANDIDATES = 12  # replies a prompt, of which two are shown
_FOLDS = 8
_JUDGING = "judging"  # directory beside the stages: what was shown and what was answered
_PER_PROMPT = 2  # replies of each model to a held-out prompt, for the traits


@dataclass(frozen=True)
class HeldOut:
    """What reward models said of judgements that they were not trained on; counts, a tie being 1/2."""

    right: float
    longer: float
    pairs: int


def demo_me(out: Path, *, num_pairs: int | None, overrides: Sequence[str], fresh_from: str | None) -> None:
    """Judge, train, say how sure it is; the same command goes on wherever it was left.

    `out` is the run's directory; the supervised stage is taken from a demo beside it where there is one.
    Raises UserError if fewer than `FEWEST` pairs were judged.
    """
    judging = out / _JUDGING
    recipe = my_recipe(judging / "comparisons.jsonl", overrides)
    draws = Draws(recipe.seed, _JUDGING)
    with TerminalConsole() as console:
        console.heading("your own taste")
        run_recipe(recipe, out, console=console, only="sft", reuse=_demo_beside(out), fresh_from=fresh_from)
        pairs = _pairs(recipe, out, num_pairs, draws)
    answers = _ask(console, pairs, Journal(judging / "judgements.jsonl"))
    learnt = comparisons(pairs, answers)
    if len(learnt) < FEWEST:
        raise UserError(
            f"pairs to learn from: {len(learnt)}, kept; {FEWEST} are needed and {PAIRS} are better, so go on judging "
            "with the same command"
        )
    changed = _write_comparisons(judging / "comparisons.jsonl", learnt)
    with TerminalConsole(console.rich) as console:
        held_out = _held_out(recipe, out, learnt, console)
        again = "reward" if changed and (out / "reward").exists() else None
        run_recipe(recipe, out, console=console, fresh_from=again)
    page = write_report([out], out / "report.html")
    print_summary(console, [read_run(out)])
    _print_taste(console, recipe, out, pairs, answers, held_out, draws)
    console.say(f"Report: {page}")
    command = f'keel generate {out / "ppo" / "model"} --prompt "how do i clean my kettle ?"'
    console.rich.print(Text(f"Talk to it: {command}"), soft_wrap=True)  # a command to be copied whole


def _demo_beside(out: Path) -> Path | None:
    """A run of the demo whose supervised stage is finished."""
    beside = (out.parent / taste for taste in ("polite", "terse"))
    return next((run for run in beside if (run / "sft" / DONE).exists()), None)


def _pairs(recipe: Recipe, out: Path, num_pairs: int | None, draws: Draws) -> list[Pair]:
    """The pairs to judge: once drawn they stay, for answers belong to them by their order."""
    file = out / _JUDGING / "pairs.jsonl"
    if file.exists():
        pairs = from_rows(read_lines(file))
        drawn = sum(REPEATS not in pair.row for pair in pairs)
        if num_pairs not in (None, drawn):
            raise UserError(
                f"--pairs {num_pairs}: {drawn} pairs are drawn already; leave it out to go on with them, or remove "
                f"{file.parent} to begin anew"
            )
        return pairs
    asked = [row["prompt"] for row in prompts()]
    chosen = [asked[index] for index in draws.permutation("prompts", len(asked))[: num_pairs or PAIRS]]
    replies = _replies(recipe, out / "sft" / "model", chosen, samples=_CANDIDATES)
    grouped = [replies[start : start + _CANDIDATES] for start in range(0, len(replies), _CANDIDATES)]
    candidates = [(group[0][0], [reply for _, reply in group]) for group in grouped]
    pairs = choose_pairs(candidates, draws)
    file.parent.mkdir(exist_ok=True)
    write_rows(file, to_rows(pairs))
    return pairs


def _replies(recipe: Recipe, model: Path, asked: Sequence[str], *, samples: int) -> list[tuple[str, str]]:
    assert recipe.ppo is not None
    sampling = SamplingConfig(max_new_tokens=recipe.ppo.sampling.max_new_tokens)
    rows = generate_responses(
        str(model),
        [Prompt(text) for text in asked],
        sampling,
        samples=samples,
        seed=recipe.seed,
        device=recipe.device,
    )
    return [(str(row["prompt"]), str(row["response"])) for row in rows]


def _ask(console: TerminalConsole, pairs: Sequence[Pair], journal: Journal) -> list[Key]:
    """The answers, asked for where they are missing; each is on the disk before the next pair is shown."""
    try:
        with reading_keys(sys.stdin) as read, pair_screen(console.rich, pairs, journal.answers) as show:
            judge(len(pairs), journal, read, show)
    except (KeyboardInterrupt, SystemExit):
        console.say(f"Stopped; {len(journal.answers)} answers are kept, and the same command goes on after them.")
        raise
    return journal.answers


def _write_comparisons(path: Path, learnt: Sequence[Sequence[Comparison]]) -> bool:
    """True if there were others before."""
    rows = [row for judged in learnt for row in judged]
    earlier = path.read_bytes() if path.exists() else None
    write_jsonl(path, rows)
    return earlier is not None and earlier != path.read_bytes()


def _held_out(recipe: Recipe, out: Path, learnt: Sequence[Sequence[Comparison]], console: TerminalConsole) -> HeldOut:
    """Each judgement scored by a reward model that was trained, as the final one will be, without its fold.

    Kept beside the comparisons with all that decides it, so that a second start does not do it again.
    """
    kept = out / _JUDGING / "held_out.json"
    decided_by = stage_identity(recipe, "reward", stage_inputs(recipe, out, "reward")).to_dict()
    known = files.read_json(kept)
    if known is None or known["identity"] != decided_by:
        gaps: list[tuple[Comparison, float]] = []
        parts = folds(len(learnt), _FOLDS)
        for number, fold in enumerate(parts, start=1):
            rest = [row for index, judged in enumerate(learnt) if index not in fold for row in judged]
            # Replies called equal have no right order.
            asked = [learnt[index][0] for index in fold if len(learnt[index]) == 1]
            gaps += zip(asked, _gaps_without(recipe, out, rest, asked), strict=True)
            console.progress("held out", number, len(parts), {})
        known = {
            "identity": decided_by,
            "right": sum(_half_if_equal(gap) for _, gap in gaps),
            "longer": sum(_half_if_equal(len(words(row.chosen)) - len(words(row.rejected))) for row, _ in gaps),
            "pairs": len(gaps),
        }
        files.write_json(kept, known)
    return HeldOut(known["right"], known["longer"], known["pairs"])


def _gaps_without(recipe: Recipe, out: Path, rest: Sequence[Comparison], asked: Sequence[Comparison]) -> list[float]:
    """A run of the reward stage alone on `rest`, and what its model says of `asked`."""
    assert recipe.reward is not None
    folder = out / _JUDGING / "fold"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_jsonl(folder / "rest.jsonl", rest)
    data = {"path": str(folder / "rest.jsonl"), "validation": 0}
    reward = recipe.reward.model_dump() | {"data": data, "normalise_samples": 16}
    alone: dict[str, Any] = recipe.model_dump() | {"reward": reward, "ppo": None, "evaluate": None}
    run_recipe(Recipe.model_validate(alone), folder, console=SilentConsole(), reuse=out)
    gaps = score_gaps(str(folder / "reward" / "model"), asked, device=recipe.device)
    shutil.rmtree(folder)
    return gaps


def _half_if_equal(difference: float) -> float:
    return 0.5 + 0.5 * ((difference > 0) - (difference < 0))


def _print_taste(
    console: TerminalConsole,
    recipe: Recipe,
    out: Path,
    pairs: Sequence[Pair],
    answers: Sequence[Key],
    held_out: HeldOut,
    draws: Draws,
) -> None:
    """What was preferred, whether the model moved that way, and how sure anybody can be."""
    preferred = favours([judged[0] for judged in comparisons(pairs, answers) if len(judged) == 1])
    asked = [row["prompt"] for row in heldout()]
    before, after = (_replies(recipe, out / stage / "model", asked, samples=_PER_PROMPT) for stage in ("sft", "ppo"))
    moved = changes(before, after, _PER_PROMPT, draws)
    rows = [
        [favour.trait, _share(favour), f"{one.before:.2f}", f"{one.after:.2f}", _interval(one.low, one.high)]
        for favour, one in zip(preferred, moved, strict=True)
    ]
    title = f"Your taste, and what a reply of the model holds ({len(asked)} held-out requests)"
    console.table(title, ["", "you chose more of it", "before", "after", "change (95 %)"], rows)
    console.say(how_sure(pairs, answers, held_out))


def _share(favour: Favour) -> str:
    return f"{favour.chosen} of {favour.pairs}"


def _interval(low: float, high: float) -> str:
    return f"{low:+.2f} … {high:+.2f}"


def how_sure(pairs: Sequence[Pair], answers: Sequence[Key], held_out: HeldOut) -> str:
    """In words: what so few judgements can tell of the reward model, and of the person."""
    aside = [f"{answers.count(key)} {name}" for key, name in ((Key.EQUAL, "equal"), (Key.SKIP, "skipped"))]
    parts = [f"You gave {len(answers)} answers ({', '.join(aside)})."]
    share = held_out.right / held_out.pairs if held_out.pairs else 0.0
    if held_out.pairs:
        low, high = wilson_interval(share, held_out.pairs)
        parts.append(
            f"Held out in turn, {held_out.right:g} of {held_out.pairs} judgements are as a reward model trained on the "
            f"others expects = {share:.0%} (95 % interval {low:.0%} to {high:.0%}); always the longer reply: "
            f"{held_out.longer / held_out.pairs:.0%}."
        )
        if low <= 0.5:
            parts.append("That may still be chance: more judgements (--pairs) would tell.")
    same = self_agreement(pairs, answers)
    if same.pairs:
        parts.append(
            f"Pairs shown again with their sides exchanged: {same.same} of {same.pairs} answered the same way."
        )
    return " ".join(parts)
