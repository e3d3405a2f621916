"""Which ensembles a recipe may ask for, and how they may be combined."""

from __future__ import annotations

from typing import Any

import pytest

from keel.config.recipe import parse_recipe
from tests.config.support import PPO, refusal, tree

ENSEMBLE = {"ensemble": {"members": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward": {"ensemble": {"of": "adapters"}}}, "reward.ensemble of: adapters needs model.tune: lora"),
        ({"reward": {"ensemble": {"members": 1}}}, "`reward.ensemble.members`: should be at least 2"),
        ({"ppo": PPO | {"reward": [{"model": "reward", "combine": "min"}]}}, "ppo.reward combines the members of"),
        ({"reward": ENSEMBLE, "ppo": PPO | {"critic": "network"}}, "ppo.critic: network starts from one reward model"),
        (
            {"ppo": PPO | {"reward": [{"model": "m", "uncertainty_coef": 0.1}]}},
            "uncertainty_coef belongs to",
        ),
        ({"ppo": PPO | {"reward": [{"model": "m", "combine": "uncertainty"}]}}, "which needs it; others have none"),
        ({"ppo": PPO | {"reward": [{"function": "m:f", "combine": "min"}]}}, "combine has no effect on a function"),
        (
            {"ppo": PPO | {"reward": [{"model": "m", "combine": "min", "label": 1}]}},
            "combine takes all members of an ensemble and label one of them",
        ),
    ],
)
def test_ensembles_that_do_not_fit(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(**changes)


def test_an_ensemble_is_combined() -> None:
    reward = {"model": "reward", "combine": "uncertainty", "uncertainty_coef": 0.1}
    recipe = parse_recipe(tree(reward=ENSEMBLE, ppo=PPO | {"reward": [reward]}), "r.yaml")
    assert recipe.reward is not None
    assert recipe.reward.ensemble is not None
    assert recipe.reward.ensemble.of == "heads"
