"""The guide's estimator works as the guide says, from its own words."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.config import estimators
from keel.config.estimators import ESTIMATORS, Estimator
from keel.config.ppo import PPOConfig
from keel.functional import advantages
from keel.pipeline.credit import estimate_advantages
from tests.engines.helpers import rollout_of
from tests.worlds import random_rows

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "add-an-algorithm.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The guide's function in its module, and its line in the table."""
    function, line, _ = BLOCKS
    space = dict(vars(advantages))
    exec(function, space)  # the page's own code
    monkeypatch.setattr(advantages, "worst_of_n", space["worst_of_n"], raising=False)
    table: dict[str, Estimator] = eval("{" + line + "}", dict(vars(estimators)))
    for name, estimator in table.items():
        monkeypatch.setitem(ESTIMATORS, name, estimator)
    return space["worst_of_n"]


def test_the_guides_test_passes_and_can_fail(added: Any) -> None:
    space = {"torch": torch, "worst_of_n": added}
    exec(BLOCKS[2], space)
    run: Any = space["test_worst_of_n_by_hand"]
    run()
    space["worst_of_n"] = lambda *args, **keys: added(*args, **keys) + 1
    with pytest.raises(AssertionError):
        run()


def test_a_recipe_can_name_it_and_the_loop_knows_what_it_reads(added: Any) -> None:
    config = PPOConfig.model_validate({"prompts": "p", "advantage": {"kind": "worst_of_n"}})
    assert (config.critic, config.per_prompt) == ("none", 4)
    rows = random_rows([(2, 3), (1, 2)], seed=0)
    rollout = rollout_of(rows, torch.zeros(2, 3))
    rewards = torch.ones(2, 3)
    found = estimate_advantages(rewards, rollout, config.advantage)
    assert torch.equal(found, added(rewards, rollout.response_mask, group=rollout.group))
    parameters = set(inspect.signature(added).parameters)
    assert parameters - {"rewards", "response_mask"} == set(ESTIMATORS["worst_of_n"].reads)
