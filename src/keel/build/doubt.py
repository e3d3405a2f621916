"""How unsure a reward model is which response is better: what people are to be asked first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch

from keel.build.assess import normalisation_scale
from keel.build.conversation import load_judge
from keel.errors import UserError
from keel.functional.ensembles import doubt
from keel.pipeline.assess import item_of
from keel.schema import Sampled

_AT_ONCE = 512  # responses


def doubts(source: str, rivals: Sequence[Sampled], *, device: str, say: Callable[[str], None]) -> list[float]:
    """How much telling the better response would tell, in nats (`functional.ensembles.doubt`), a mean over the pairs.

    `source` is a reward model or an ensemble. Raises UserError for a score that is not finite.
    """
    scorer = load_judge(source, device, say=say)
    flat = [
        (item_of(one.prompt, {}), text, end) for one in rivals for text, end in zip(one.responses, one.ended, strict=True)
    ]
    parts = []
    for start in range(0, len(flat), _AT_ONCE):
        prompts, texts, ended = zip(*flat[start : start + _AT_ONCE], strict=True)
        found = scorer.score_texts(prompts, texts, ended)
        parts.append(found.members.get(scorer.name, found.total[:, None]))
    log_odds = torch.cat(parts).double() * normalisation_scale(source)
    if not log_odds.isfinite().all():
        worst = flat[int((~log_odds.isfinite()).any(dim=1).nonzero()[0])][1]
        raise UserError(f"the reward model {source} gives no finite score to the response {worst[:60]!r}")
    found_doubts, start = [], 0
    for one in rivals:
        scores = log_odds[start : start + len(one.responses)]
        start += len(one.responses)
        first, second = zip(*combinations(range(len(scores)), 2), strict=True)
        found_doubts.append(float(doubt(scores[list(first)] - scores[list(second)]).mean()))
    return found_doubts
