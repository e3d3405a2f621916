"""An annotator with a known utility and Bradley-Terry noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from keel.annotate.base import Judgement, Pair
from keel.user_functions import checked_numbers


class ScriptedAnnotator:
    """Prefers the first response with probability sigma((u_first - u_second) / temperature).

    Temperature 0 always prefers the better one; equals are decided by the uniform. `utility` is a user's function
    (see keel.user_functions) with an opinion on every response; `name` is what errors call it, say "my_rules:polite".
    """

    def __init__(self, utility: Callable[..., Any], *, temperature: float, name: str) -> None:
        """Raises ValueError unless the temperature is finite and at least 0."""
        _check_temperature(temperature)
        self.utility = checked_numbers(name, utility)
        self.temperature = temperature

    def compare(self, pairs: Sequence[Pair], uniforms: Sequence[float]) -> list[Judgement]:
        """One judgement a pair: the first wins where its uniform in [0, 1) lies below the probability.

        Raises ValueError where the numbers of pairs and uniforms differ, UserError where the utility fails.
        """
        if len(pairs) != len(uniforms):
            raise ValueError(f"{len(pairs)} pairs, but {len(uniforms)} uniforms")
        judgements = []
        for (first, second), uniform in zip(self._utilities(pairs), uniforms, strict=True):
            margin = first - second
            probability = preference_probability(margin, self.temperature)
            judgements.append(Judgement(uniform < probability, margin, probability))
        return judgements

    def _utilities(self, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
        """The utilities of both responses of each pair, all asked for in one call."""
        if not pairs:
            return []
        prompts = [pair.prompt for pair in pairs for _ in range(2)]
        responses = [response for pair in pairs for response in (pair.first, pair.second)]
        rows = [pair.row for pair in pairs for _ in range(2)]
        values = self.utility(prompts, responses, rows)
        return list(zip(values[::2], values[1::2], strict=True))


def preference_probability(gap: float, temperature: float) -> float:
    """Bradley-Terry: sigma(gap / temperature); at temperature 0 its limit 0, 1/2 or 1."""
    gap = float(gap)  # numpy has its own rules for booleans
    if temperature == 0 or gap == 0:
        return 0.5 + 0.5 * ((gap > 0) - (gap < 0))
    odds = math.exp(-abs(gap) / temperature)
    return (1.0 if gap > 0 else odds) / (1.0 + odds)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")
