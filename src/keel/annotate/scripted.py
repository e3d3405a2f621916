"""An annotator with a known utility and Bradley-Terry noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keel.annotate.base import Judgement, Pair
from keel.errors import UserError

Utility = Callable[[list[str], list[str], list[Mapping[str, Any]]], Sequence[float]]
"""f(prompts, responses, rows) -> one number a response."""


class ScriptedAnnotator:
    """Prefers the first response with probability sigma((u_first - u_second) / temperature).

    Temperature 0 always prefers the better one; equals are decided by the uniform. `name` is what errors call the
    utility, say "my_rules:polite".
    """

    def __init__(self, utility: Utility, *, temperature: float, name: str) -> None:
        """Raises ValueError unless the temperature is finite and at least 0."""
        _check_temperature(temperature)
        self.utility = utility
        self.temperature = temperature
        self.name = name

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
        try:
            values = self._ask(pairs)
        except Exception as error:
            index, culprit = self._first_failure(pairs, error)
            message = f"{self._place(pairs, index)}: it raised {type(culprit).__name__}: {culprit}; mend the function."
            raise UserError(message) from culprit
        if len(values) != 2 * len(pairs):
            raise UserError(
                f"{self._place(pairs, min(len(values) // 2, len(pairs) - 1))}: it returned {len(values)} values for "
                f"{2 * len(pairs)} responses; return one number a response."
            )
        for position, value in enumerate(values):
            if not _is_finite_number(value):
                raise UserError(
                    f"{self._place(pairs, position // 2)}: it returned {value!r} for the response "
                    f"{_responses(pairs[position // 2 : position // 2 + 1])[position % 2]!r}; return a finite number."
                )
        return [(float(values[2 * i]), float(values[2 * i + 1])) for i in range(len(pairs))]

    def _ask(self, pairs: Sequence[Pair]) -> list[Any]:
        rows = [pair.row for pair in pairs for _ in range(2)]
        return list(self.utility([pair.prompt for pair in pairs for _ in range(2)], _responses(pairs), rows))

    def _first_failure(self, pairs: Sequence[Pair], error: Exception) -> tuple[int, Exception]:
        """The first pair that fails when asked alone; the first of all with `error` where only the whole fails."""
        for index, pair in enumerate(pairs):
            try:
                self._ask([pair])
            except Exception as culprit:
                return index, culprit
        return 0, error

    def _place(self, pairs: Sequence[Pair], index: int) -> str:
        return f"Annotator {self.name} failed on pair {index} (prompt {pairs[index].prompt!r})"


def preference_probability(gap: float, temperature: float) -> float:
    """Bradley-Terry: sigma(gap / temperature); at temperature 0 its limit 0, 1/2 or 1."""
    if temperature == 0 or gap == 0:
        return 0.5 + 0.5 * ((gap > 0) - (gap < 0))
    odds = math.exp(-abs(gap) / temperature)
    return (1.0 if gap > 0 else odds) / (1.0 + odds)


def noise_ceiling(gaps: Sequence[float], temperature: float) -> float:
    """The best accuracy attainable against labels of this noise: mean sigma(|gap| / temperature).

    That of a judge who knows the utility and always names the better one. Raises ValueError without gaps, or where
    the temperature is not finite or below 0.
    """
    _check_temperature(temperature)
    if len(gaps) == 0:
        raise ValueError("noise_ceiling needs at least one gap, got none")
    return math.fsum(preference_probability(abs(gap), temperature) for gap in gaps) / len(gaps)


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}")


def _responses(pairs: Sequence[Pair]) -> list[str]:
    return [response for pair in pairs for response in (pair.first, pair.second)]


def _is_finite_number(value: object) -> bool:
    try:
        return math.isfinite(value)  # type: ignore[arg-type]  # whatever the user's function returned
    except (TypeError, ValueError, OverflowError):
        return False
