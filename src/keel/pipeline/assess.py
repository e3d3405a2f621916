"""The assessment of a reward: comparisons, the reference's replies and what it never says, and probes, all scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from keel.assessment.findings import OTHER_PROMPTS, Compared, Replies, alarms, comparisons, replies
from keel.assessment.invariance import invariance
from keel.assessment.probes import probes
from keel.assessment.statistics import Floats
from keel.batching import pad_rows
from keel.config.sampling import SamplingConfig
from keel.data.load import Labelled
from keel.engines.base import DrawKey, Sampler, Scorer
from keel.errors import UserError
from keel.functional.ensembles import disagreement
from keel.records import EncodedRow, PromptItem, Samples
from keel.runs.console import Console
from keel.schema import CHOSEN_ENDED, REJECTED_ENDED, Comparison, Dialogue
from keel.seeds import Draws
from keel.text.render import dialogue_text

_CHUNK = 2048  # replies that are token ids at a time
_HOT = 2.0  # times the temperature of the reference, for replies it would hardly give
_INVARIANT_TEXTS = 16
_FLAT = 1e-2  # a spread of scores, as a share of their size, that is none


@dataclass(frozen=True)
class Reply:
    """A response to a prompt, as text; `ended` is False where it was cut off."""

    prompt: PromptItem
    text: str
    ended: bool = True


@dataclass(frozen=True)
class Opinions:
    """What the reward says of replies."""

    scores: Floats  # [N]
    disagreement: Floats | None  # [N], of an ensemble's members
    cut: int  # how many lost the beginning of their prompt


@dataclass(frozen=True)
class Judge:
    """A reward that reads texts; `scale` makes log-odds of its scores, `tolerance` is its rounding in their sd."""

    scorer: Scorer
    scale: float = 1.0
    tolerance: float = 1e-3
    has_room: Callable[[PromptItem, str], bool] = lambda prompt, text: True  # for a text and its whole prompt

    def within(self, prompt: PromptItem, text: str) -> Reply:
        """A reply of which the end is left out that would not be read."""
        while text and not self.has_room(prompt, text):
            text = text[: len(text) * 3 // 4]
        return Reply(prompt, text)

    def opinions(self, given: Sequence[Reply], hear: Callable[[int], object] = lambda done: None) -> Opinions:
        """In the order of the replies; `hear` is told how many are scored."""
        scores, apart, cut = [], [], 0
        for start in range(0, len(given), _CHUNK):
            found = self.scorer.score(_as_samples(given[start : start + _CHUNK]))
            scores.append(found.total)
            apart += [disagreement(members) for members in found.members.values()]
            cut += int(sum(part.sum() for part in found.cut.values()))
            hear(start + len(found.total))
        total = torch.cat(scores).double().numpy()
        if not np.isfinite(total).all():
            first = given[int(np.flatnonzero(~np.isfinite(total))[0])]
            raise UserError(f"the reward gives no finite score to the reply {first.text[:60]!r}: it cannot be judged")
        return Opinions(total, torch.cat(apart).double().numpy() if apart else None, cut)


@dataclass(frozen=True)
class Reference:
    """The model whose replies the reward is to judge in training."""

    sampler: Sampler
    prompts: Sequence[PromptItem]  # that leave room for a reply
    sampling: SamplingConfig


def assess(
    judge: Judge,
    pairs: Sequence[Labelled[Comparison]],
    names: Sequence[str],
    reference: Reference | None,
    *,
    samples: int,
    draws: Draws,
    console: Console,
) -> dict[str, Any]:
    """Everything that docs/guides/assess.md names, for at most `samples` prompts where replies are concerned.

    `names` are those of the pairs' sources. Without a reference the real replies are the data's own.
    """
    compared, cut = _compare(judge, pairs, names, console)
    console.say("Scoring replies that the reference does and does not give, and degenerate ones.")
    real, off = _groups(pairs, reference, samples, draws)
    groups = [
        (real, "real"),
        *((one, "off") for one in off),
        *((one, "probe") for one in _probes(judge, real[1], draws)),
    ]
    scored = [_scored(judge, name, kind, said) for (name, said), kind in groups]
    found = comparisons(compared, judge.scale) | {
        "responses": len(compared.scores),
        "cut": cut,
        "replies": replies(scored),
        "invariance": _invariance(judge, [said for (_, one), _ in groups for said in one[:8]], scored[0].scores),
    }
    return found | {"alarms": alarms(found)}


def _compare(
    judge: Judge, pairs: Sequence[Labelled[Comparison]], names: Sequence[str], console: Console
) -> tuple[Compared, int]:
    """The comparisons with their scores; each response is scored once, and how many prompts were cut."""
    numbers: dict[tuple[Dialogue, str, bool], int] = {}
    given: list[Reply] = []
    ends: list[tuple[int, int]] = []
    for pair in pairs:
        places = []
        for one in _sides(pair.record):
            key = (one.prompt.source, one.text, one.ended)
            if key not in numbers:
                numbers[key] = len(given)
                given.append(one)
            places.append(numbers[key])
        ends.append((places[0], places[1]))
    said = judge.opinions(given, lambda done: console.progress("assess", done, len(given), {}))
    order = {prompt: number for number, prompt in enumerate(dict.fromkeys(key[0] for key in numbers))}
    people = {one: number for number, one in enumerate(dict.fromkeys(pair.record.annotator for pair in pairs))}
    known = [pair.record.first_probability for pair in pairs]
    compared = Compared(
        scores=said.scores,
        lengths=np.array([len(one.text) for one in given], dtype=np.float64),
        prompts=np.array([order[key[0]] for key in numbers]),
        chosen=np.array([one for one, _ in ends]),
        rejected=np.array([other for _, other in ends]),
        sources=tuple(pair.kind or names[pair.source] for pair in pairs),
        annotators=np.array([-1 if pair.record.annotator is None else people[pair.record.annotator] for pair in pairs]),
        margins=np.array([np.nan if pair.record.margin is None else pair.record.margin for pair in pairs]),
        probabilities=np.array([np.nan if one is None else one for one in known]),
    )
    return compared, said.cut


Group = tuple[str, Sequence[Reply]]


def _groups(
    pairs: Sequence[Labelled[Comparison]], reference: Reference | None, samples: int, draws: Draws
) -> tuple[Group, list[Group]]:
    """Real replies, one a prompt; and replies that the reference would hardly give."""
    off: list[Group] = []
    if reference is None:
        name, real = "replies of the data", _of_data(pairs, samples, draws)
    else:
        name, order = "replies of the reference", draws.permutation("prompts", len(reference.prompts)).tolist()
        asked = [reference.prompts[row] for row in order[:samples]]
        hot = reference.sampling.model_copy(update={"temperature": _HOT * reference.sampling.temperature})
        real = _drawn(reference, asked, reference.sampling, draws)
        off.append(("replies of the reference, twice as hot", _drawn(reference, asked, hot, draws)))
    turned = [*real[1:], *real[:1]]
    others = [Reply(one.prompt, other.text, other.ended) for one, other in zip(real, turned, strict=True)]
    return (name, real), [(OTHER_PROMPTS, others)] * (len(real) > 1) + off


def _of_data(pairs: Sequence[Labelled[Comparison]], samples: int, draws: Draws) -> list[Reply]:
    """One response of each prompt, preferred or not by chance."""
    asked = list({pair.record.prompt: pair.record for pair in pairs}.values())
    rows = [asked[row] for row in draws.permutation("prompts", len(asked)).tolist()[:samples]]
    better = draws.generator("sides").random(len(rows)) < 0.5
    return [_sides(row)[0 if good else 1] for row, good in zip(rows, better, strict=True)]


def _drawn(reference: Reference, asked: Sequence[PromptItem], sampling: SamplingConfig, draws: Draws) -> list[Reply]:
    found = reference.sampler.sample(asked, sampling, DrawKey(draws, "reply", iteration=0))
    return [Reply(*one) for one in zip(asked, found.texts, found.ended.tolist(), strict=True)]


def _probes(judge: Judge, real: Sequence[Reply], draws: Draws) -> list[Group]:
    asked = [one.prompt for one in real]
    made = probes([_last_turn(one.source) for one in asked], [one.text for one in real], draws.generator("probes"))
    return [(name, list(map(judge.within, asked, texts))) for name, texts in made.items()]


def _scored(judge: Judge, name: str, kind: str, said: Sequence[Reply]) -> Replies:
    found = judge.opinions(said)
    return Replies(name, kind, found.scores, found.disagreement)


def _invariance(judge: Judge, given: Sequence[Reply], real: Floats) -> dict[str, Any]:
    """On texts of all lengths that there are."""
    ordered = sorted(given, key=lambda one: len(one.prompt.text) + len(one.text))
    places = np.linspace(0, len(ordered) - 1, min(_INVARIANT_TEXTS, len(ordered))).astype(int)
    texts = [ordered[place] for place in places]
    lengths = [len(one.prompt.text) + len(one.text) for one in texts]
    size = max(float(real.std()), _FLAT * float(np.abs(real).max()))  # rounding goes by the size of a score too
    tolerance = judge.tolerance * max(size, _FLAT)
    return invariance(lambda rows: judge.opinions([texts[row] for row in rows]).scores, lengths, tolerance)


def _sides(row: Comparison) -> tuple[Reply, Reply]:
    """The preferred response, and the other one."""
    prompt = item_of(row.prompt, row.extra)
    ended = [row.extra.get(column) is not False for column in (CHOSEN_ENDED, REJECTED_ENDED)]
    return Reply(prompt, row.chosen, ended[0]), Reply(prompt, row.rejected, ended[1])


def item_of(prompt: Dialogue, row: Any) -> PromptItem:
    """A prompt for those who read it as text."""
    return PromptItem(tokens=(), text=dialogue_text(prompt), row=row, source=prompt)


def _last_turn(prompt: Dialogue) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1].content


def _as_samples(given: Sequence[Reply]) -> Samples:
    """Replies for a scorer that reads texts: their ids are nobody's business."""
    return Samples(
        sequences=pad_rows([EncodedRow((0,), 1)] * len(given)),
        logprobs=None,
        ended=torch.tensor([one.ended for one in given]),
        prompts=tuple(one.prompt for one in given),
        texts=tuple(one.text for one in given),
    )
