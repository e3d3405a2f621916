"""The advantage estimators that a recipe can name: `advantage.kind` is a function of `functional.advantages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Estimator:
    """What an estimator's function is given besides the rewards and their mask, and what its result is like."""

    reads: tuple[Literal["values", "group", "gamma", "lam", "n"], ...] = ()
    per_sequence: bool = False  # one number a response, on each of its tokens
    whiten: bool | None = None  # whether the advantages are whitened; None: the recipe's choice

    @property
    def critic(self) -> bool:
        return "values" in self.reads

    @property
    def groups(self) -> bool:
        return "group" in self.reads


ESTIMATORS: Mapping[str, Estimator] = {
    "gae": Estimator(("values", "gamma", "lam")),
    "monte_carlo": Estimator(("values", "gamma")),
    "td": Estimator(("values", "gamma")),
    "n_step": Estimator(("values", "gamma", "n")),
    "sequence": Estimator(("values",), per_sequence=True),
    "reinforce": Estimator(per_sequence=True),
    "reward_to_go": Estimator(("gamma",)),
    "reinforce_pp": Estimator(("gamma",), whiten=True),
    "rloo": Estimator(("group",), per_sequence=True, whiten=False),
    "grpo": Estimator(("group",), per_sequence=True, whiten=False),
    "dr_grpo": Estimator(("group",), per_sequence=True, whiten=False),
    "best_of_n": Estimator(("group",), per_sequence=True, whiten=False),
}
