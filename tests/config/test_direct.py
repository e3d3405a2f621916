from __future__ import annotations

from typing import Any

import pytest

from keel.config.direct import METHODS, DirectConfig
from keel.config.recipe import Recipe, parse_recipe
from keel.errors import UserError
from keel.functional import direct


def recipe_of(settings: dict[str, Any], **stages: Any) -> Recipe:
    return parse_recipe(
        {"name": "x", "model": {"base": "hub/base"}, "direct": {"data": "pairs.jsonl"} | settings, **stages}, "test"
    )


def test_every_method_has_its_loss_and_reads_keys_that_there_are() -> None:
    for kind, method in METHODS.items():
        assert callable(getattr(direct, f"{kind}_loss"))
        assert {*method.reads, *method.defaults} <= set(DirectConfig.model_fields)


def test_simpo_starts_from_its_own_beta_and_what_is_given_stays() -> None:
    assert DirectConfig().beta == 0.1
    assert DirectConfig(kind="simpo").beta == 2.0
    assert DirectConfig(kind="simpo", beta=0.1).beta == 0.1
    assert DirectConfig.model_validate(DirectConfig(kind="simpo").model_dump()).beta == 2.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect with kind: ipo; leave it out"),
        ({"kind": "dpo", "gamma": 0.5}, "gamma has no effect with kind: dpo; leave it out"),
        ({"kind": "hinge", "desirable_weight": 2}, "desirable_weight has no effect with kind: hinge; leave it out"),
        ({"kind": "orpo", "beta": 0.3}, "beta has no effect with kind: orpo; leave it out"),
        ({"kind": "simpo", "lam": 0.3}, "lam has no effect with kind: simpo; leave it out"),
        ({"kind": "simpo", "reference": "sft"}, "reference has no effect with kind: simpo, which has none"),
        ({"kind": "orpo", "length_normalised": True}, "length_normalised has no effect with kind: orpo, which has one"),
        ({"kind": "hinge", "length_normalised": True}, "with kind: hinge, which has one form; leave it out"),
        ({"kind": "orpo", "sft_coef": 1}, "sft_coef has no effect with kind: orpo, whose loss has the likelihood"),
        ({"kind": "kto", "sft_coef": 1}, "sft_coef has no effect with kind: kto, which has no chosen response"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"kind": "ppo"}, "`direct.kind`: no method is called 'ppo'; there are dpo, ipo, hinge, kto, orpo, simpo"),
        ({"kind": ["dpo"]}, "`direct.kind`: input should be a valid string, not ['dpo']"),
        ({"data": "collect"}, "direct.data is `collect`, but the recipe has no collect stage"),
    ],
)
def test_what_would_be_ignored_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        recipe_of(settings)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", METHODS)
def test_a_configuration_written_out_in_full_reads_back(kind: str) -> None:
    recipe = recipe_of({"kind": kind})
    assert parse_recipe(recipe.model_dump(mode="json"), "test") == recipe


def test_without_ppo_the_evaluation_is_given_the_length_that_collect_gives() -> None:
    collect = {
        "prompts": "prompts.jsonl",
        "annotator": {"script": "keel.demo:polite"},
        "sampling": {"max_new_tokens": 40, "top_k": 5},
    }
    recipe = recipe_of({"data": "collect"}, collect=collect, reward={}, evaluate={"prompts": "held.jsonl"})
    assert recipe.evaluate is not None
    assert (recipe.evaluate.sampling.max_new_tokens, recipe.evaluate.sampling.top_k) == (40, 0)
    judges = [{"function": "my_rules:polite"}]
    own = recipe_of({}, evaluate={"prompts": "held.jsonl", "reward": judges, "sampling": {"max_new_tokens": 7}})
    assert own.evaluate is not None
    assert own.evaluate.sampling.max_new_tokens == 7
