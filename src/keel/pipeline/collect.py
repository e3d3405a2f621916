"""Stage 2, collecting feedback: sample responses, show them in pairs, write down which one is preferred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

from keel.annotate.base import Annotator, Judgement, Pair, noise_ceiling
from keel.annotate.people import Opinion, Panel
from keel.config.collect import CollectConfig
from keel.data.write import write_rows
from keel.engines.base import DrawKey, Sampler
from keel.errors import UserError
from keel.inputs import COMPARISONS, COMPARISONS_FILE
from keel.pipeline.people import Pause, ask_people
from keel.records import PromptItem, Samples
from keel.runs.console import Console
from keel.runs.layout import SAMPLES
from keel.runs.metrics import read_lines
from keel.runs.run import StageRun
from keel.schema import CHOSEN_ENDED, CHOSEN_FIRST, FIRST_PROBABILITY, REJECTED_ENDED, Comparison, Prompt, Sampled
from keel.seeds import Draws

_PROMPTS_A_ROUND = 128
_NOT_CARRIED = {"iteration", *(field.name for field in fields(Comparison))}  # columns of a prompt that others replace


@dataclass(frozen=True)
class Rounds:
    """How many rounds of prompts are done, and how many of their pairs were identical."""

    done: int
    identical: int


@dataclass(frozen=True)
class _Shown:
    """A pair as the annotator sees it, and where its responses stand in the samples."""

    pair: Pair
    number: int  # among all pairs of the stage, identical ones included: names its random draws
    prompt: int  # among all of the stage
    first: int
    second: int


def collect_comparisons(
    config: CollectConfig,
    sampler: Sampler,
    annotator: Annotator,
    prompts: Sequence[PromptItem],
    *,
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Write `comparisons/comparisons.jsonl`, one line a judged pair; returns the stage's summary.

    Works in rounds of prompts; a round that was finished before a kill is not done again. Identical responses
    are no pair: they are counted and left out. The order in which two responses are shown is drawn.
    Raises UserError if no pair is left.
    """

    def judged(shown: Sequence[_Shown], samples: Samples) -> list[dict[str, Any]]:
        uniforms = draws.uniforms("label", iteration=0, samples=[one.number for one in shown], length=1)[:, 0]
        judgements = _judge(annotator, shown, uniforms.tolist(), config)
        return [
            _comparison(one, samples, judgement, config).to_row()
            for one, judgement in zip(shown, judgements, strict=True)
        ]

    begun = rounds_done(stage)
    rounds = _in_rounds(config, sampler, prompts, judged, begun, stage=stage, draws=draws, console=console)
    return _publish(_rows(config, stage), rounds, len(prompts), config.annotator.name, stage)


def rounds_done(stage: StageRun) -> Rounds:
    """Those that were finished before the stage was interrupted; its logs are cut back to them."""
    snapshot = stage.restore()
    return Rounds(snapshot.step, snapshot.state["identical"]) if snapshot else Rounds(0, 0)


def num_rounds(prompts: Sequence[PromptItem]) -> int:
    """In how many rounds the prompts are responded to."""
    return -(-len(prompts) // _PROMPTS_A_ROUND)


def sample_for_people(
    config: CollectConfig,
    sampler: Sampler,
    prompts: Sequence[PromptItem],
    begun: Rounds,
    *,
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> Rounds:
    """The first half of collecting from people: sample everything, after the rounds that are done."""
    return _in_rounds(config, sampler, prompts, _unjudged, begun, stage=stage, draws=draws, console=console)


def collect_from_people(
    config: CollectConfig,
    panel: Panel,
    prompts: Sequence[PromptItem],
    rounds: Rounds,
    *,
    stage: StageRun,
    console: Console,
    pause: Pause,
) -> dict[str, Any]:
    """The second half: ask about all pairs that were sampled in those rounds, and write down what is answered.

    Needs no model, for people take days. Each answer is a line; of those by whom neither response is better there is
    none. Raises UserError if no pair is left, or nobody found a response the better one.
    """
    assert config.annotator.people is not None
    pairs = _rows(config, stage)
    items = [prompts[pair["prompt_number"]] for pair in pairs]
    asked = [
        Sampled(item.source, tuple(pair["responses"]), tuple(pair["ended"]))
        for item, pair in zip(items, pairs, strict=True)
    ]
    step = rounds.done
    opinions = ask_people(config.annotator.people, panel, asked, stage=stage, step=step, console=console, pause=pause)
    comparisons = [
        _answered(asked[one.question], one, {**_carried(items[one.question].row), **panel.columns}).to_row()
        for one in opinions
        if one.best is not None
    ]
    equal = len(opinions) - len(comparisons)
    if not comparisons:
        raise UserError(
            f"collect: in all {equal} judgements neither response is better, so there is nothing to learn from; raise "
            "collect.sampling.temperature, or ask for other responses"
        )
    if equal:
        console.say(f"collect: {equal} of {len(opinions)} judgements find neither response better, and are left out.")
    people = sorted({one.annotator for one in opinions})
    name = people[0] if len(people) == 1 else f"{len(people)} people"
    return _publish(comparisons, rounds, len(prompts), name, stage) | _counts(pairs, opinions)


def _counts(pairs: Sequence[Mapping[str, Any]], opinions: Sequence[Opinion]) -> dict[str, Any]:
    return {
        "pairs": len(pairs),
        "judged_pairs": len({one.question for one in opinions}),
        "judgements": len(opinions),
        "without_a_better_one": sum(one.best is None for one in opinions),
    }


def _in_rounds(
    config: CollectConfig,
    sampler: Sampler,
    prompts: Sequence[PromptItem],
    rows_of: Callable[[Sequence[_Shown], Samples], list[dict[str, Any]]],
    begun: Rounds,
    *,
    stage: StageRun,
    draws: Draws,
    console: Console,
) -> Rounds:
    """Log what `rows_of` makes of all pairs as samples, after the rounds that are done."""
    identical, total = begun.identical, num_rounds(prompts)
    console.progress(stage.name, begun.done, total, {})
    for number in range(begun.done + 1, total + 1):
        start = (number - 1) * _PROMPTS_A_ROUND
        part = [prompt for prompt in prompts[start : start + _PROMPTS_A_ROUND] for _ in range(config.per_prompt)]
        key = DrawKey(draws, "response", iteration=0, first_sample=start * config.per_prompt)
        samples = sampler.sample(part, config.sampling, key)
        shown = _pairs(samples, config.per_prompt, draws, first_prompt=start)
        pairs_a_prompt = config.per_prompt * (config.per_prompt - 1) // 2
        identical += len(part) // config.per_prompt * pairs_a_prompt - len(shown)
        stage.log_samples(number, rows_of(shown, samples))
        stage.checkpoint(number, {"identical": identical})
        console.progress(stage.name, number, total, {"comparisons": float(len(shown))})
        if stage.leaving:
            stage.leave(number)
    return Rounds(total, identical)


def _rows(config: CollectConfig, stage: StageRun) -> list[dict[str, Any]]:
    """What all rounds have logged. Raises UserError if no pair is left."""
    rows = [_without_iteration(line) for line in read_lines(stage.path / SAMPLES)]
    if not rows:
        raise UserError(
            f"collect: the {config.per_prompt} responses to each prompt are identical, so there is nothing to compare; "
            "raise collect.sampling.temperature"
        )
    return rows


def _publish(
    comparisons: Sequence[Mapping[str, Any]], rounds: Rounds, prompts: int, annotator: str, stage: StageRun
) -> dict[str, Any]:
    """Write the artefact; returns the summary."""
    write_rows(stage.work(COMPARISONS) / COMPARISONS_FILE, comparisons)
    stage.publish(COMPARISONS)
    return {
        "comparisons": len(comparisons),
        "identical_pairs": rounds.identical,
        "prompts": prompts,
        "annotator": annotator,
        "noise_ceiling": _noise_ceiling(comparisons),
    }


def _pairs(samples: Samples, per_prompt: int, draws: Draws, *, first_prompt: int) -> list[_Shown]:
    """Every pair of different responses to one prompt, in drawn order."""
    shown: list[_Shown] = []
    for offset in range(0, len(samples.texts), per_prompt):
        number = first_prompt + offset // per_prompt
        order = draws.generator("order", sample=number)
        pairs = list(combinations(range(offset, offset + per_prompt), 2))
        for index, (one, other) in enumerate(pairs):
            first, second = (one, other) if order.random() < 0.5 else (other, one)
            if samples.texts[first].strip() == samples.texts[second].strip():
                continue
            prompt = samples.prompts[first]
            pair = Pair(prompt.text, samples.texts[first], samples.texts[second], prompt.row)
            shown.append(_Shown(pair, number * len(pairs) + index, number, first, second))
    return shown


def _judge(
    annotator: Annotator, shown: Sequence[_Shown], uniforms: Sequence[float], config: CollectConfig
) -> list[Judgement]:
    """One judgement a pair. Raises UserError where the annotator gives another number of them."""
    judgements = list(annotator.compare([one.pair for one in shown], uniforms))
    if len(judgements) != len(shown):
        raise UserError(
            f"collect: the annotator {config.annotator.name} gave {len(judgements)} judgements on {len(shown)} pairs; "
            "it must give one a pair, in order"
        )
    return judgements


def _noise_ceiling(comparisons: Sequence[Mapping[str, Any]]) -> float | None:
    """Known where the annotator gives the probability of every judgement."""
    known = [row[FIRST_PROBABILITY] for row in comparisons if FIRST_PROBABILITY in row]
    return noise_ceiling(known) if len(known) == len(comparisons) else None


def _comparison(shown: _Shown, samples: Samples, judgement: Judgement, config: CollectConfig) -> Comparison:
    first_wins, gap, probability = judgement.first_wins, judgement.margin, judgement.probability
    chosen, rejected = (shown.first, shown.second) if first_wins else (shown.second, shown.first)
    ended = samples.ended.tolist()
    return Comparison(
        prompt=samples.prompts[chosen].source,
        chosen=samples.texts[chosen],
        rejected=samples.texts[rejected],
        annotator=config.annotator.name,
        extra={
            **_carried(shown.pair.row),
            CHOSEN_ENDED: ended[chosen],
            REJECTED_ENDED: ended[rejected],
            CHOSEN_FIRST: first_wins,
            **({} if gap is None else {"utility_gap": gap if first_wins else -gap}),
            **({} if probability is None else {FIRST_PROBABILITY: probability}),
        },
    )


def _unjudged(shown: Sequence[_Shown], samples: Samples) -> list[dict[str, Any]]:
    """Pairs as they wait in the samples' log."""
    ended = samples.ended.tolist()
    return [
        {
            **Prompt(samples.prompts[one.first].source).to_row(),
            "prompt_number": one.prompt,
            "responses": [one.pair.first, one.pair.second],
            "ended": [ended[one.first], ended[one.second]],
        }
        for one in shown
    ]


def _answered(question: Sampled, opinion: Opinion, columns: Mapping[str, Any]) -> Comparison:
    assert opinion.best is not None
    chosen, rejected = opinion.best, 1 - opinion.best
    return Comparison(
        prompt=question.prompt,
        chosen=question.responses[chosen],
        rejected=question.responses[rejected],
        annotator=opinion.annotator,
        extra={
            **columns,
            CHOSEN_ENDED: question.ended[chosen],
            REJECTED_ENDED: question.ended[rejected],
            CHOSEN_FIRST: opinion.shown_first == chosen,
            "strength": opinion.strength,
            "duration": opinion.seconds,
        },
    )


def _carried(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in _NOT_CARRIED}


def _without_iteration(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "iteration"}
