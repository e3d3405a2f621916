from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from keel.config.recipe import Recipe, parse_recipe
from keel.errors import UserError
from keel.runs.layout import STAGES
from keel.starters.facts import ModelFacts, SourceFacts
from keel.starters.plan import Plan, batch_for, plan_recipe, up_to_16
from keel.starters.write import recipe_text
from tests.worlds import one_source

MODEL = ModelFacts("m", "llama", parameters=5_000_000, context=512, vocabulary=1000, own_template=False)
PROMPTS = SourceFacts(
    "prompts.jsonl",
    "prompts",
    total=10_000,
    usable=10_000,
    unusable=0,
    chat=False,
    gives_prompts=True,
    validation=0.05,
    held_out=500,
    prompt_lengths=(*range(1, 101),),
    response_lengths=(),
    row_lengths=(*range(1, 101),),
)
DEMOS = replace(
    PROMPTS,
    name="demos.jsonl",
    kind="demonstrations",
    response_lengths=(*range(101, 201),),
    row_lengths=(*range(102, 302, 2),),
)
PAIRS = replace(DEMOS, name="pairs.jsonl", kind="comparisons")


def recipe_of(plan: Plan) -> Recipe:
    return parse_recipe(yaml.safe_load(recipe_text(plan.keys, "mine.yaml")), "mine.yaml")


def planned(*sources: SourceFacts, model: ModelFacts = MODEL, **options: Any) -> Recipe:
    return recipe_of(plan_recipe("mine", model, sources, **options))


@pytest.mark.parametrize(
    ("sources", "judge", "stages"),
    [
        ((DEMOS,), None, "sft"),
        ((PAIRS,), None, "reward ppo evaluate"),
        ((DEMOS, PAIRS), None, "sft reward ppo evaluate"),
        ((PROMPTS, PAIRS), None, "reward ppo evaluate"),
        ((PROMPTS,), "my_rules:polite", "ppo evaluate"),
        ((DEMOS,), "my_rules:polite", "sft ppo evaluate"),
        ((replace(PAIRS, gives_prompts=False),), None, "reward"),
        ((replace(PAIRS, gives_prompts=False), PROMPTS), None, "reward ppo evaluate"),
    ],
)
def test_the_data_decide_the_stages(sources: tuple[SourceFacts, ...], judge: str | None, stages: str) -> None:
    recipe = planned(*sources, judge=judge)
    assert [stage for stage in STAGES if getattr(recipe, stage) is not None] == stages.split()


def test_prompts_come_from_the_file_that_is_meant_for_them() -> None:
    assert planned(DEMOS, PAIRS, PROMPTS).ppo.prompts.path == "prompts.jsonl"  # type: ignore[union-attr]  # there is one
    assert planned(DEMOS, PAIRS).ppo.prompts.path == "pairs.jsonl"  # type: ignore[union-attr]


def test_what_is_liked_is_a_function_or_a_model_or_both() -> None:
    for judge, kind in (("my_rules:polite", "function"), ("owner/judge", "model")):
        ppo = planned(PROMPTS, judge=judge).ppo
        assert ppo is not None
        assert [getattr(source, kind) for source in ppo.reward] == [judge]
    both = planned(PAIRS, judge="my_rules:polite").ppo
    assert both is not None
    assert [source.logged_as for source in both.reward] == ["reward", "my_rules.polite"]


def test_lengths_hold_ninety_nine_percent() -> None:
    """Rows of 102, 104, …, 300 tokens: the 99th of a hundred has 298, responses 199, prompts 99."""
    recipe = planned(DEMOS, PAIRS)
    assert recipe.sft is not None
    assert recipe.ppo is not None
    assert recipe.sft.max_tokens == 304  # the next multiple of 16
    assert recipe.ppo.sampling.max_new_tokens == 208
    assert recipe.ppo.max_prompt_tokens == 112


def test_prompt_and_response_fit_the_context() -> None:
    recipe = planned(PAIRS, model=replace(MODEL, context=256))
    assert recipe.reward is not None
    assert recipe.ppo is not None
    assert recipe.reward.max_tokens == 256
    assert recipe.ppo.sampling.max_new_tokens + recipe.ppo.max_prompt_tokens == 256
    assert recipe.ppo.max_prompt_tokens == 99  # what the prompts need; the answers get the rest


def test_scores_are_centred_on_samples_that_leave_room_for_their_prompts() -> None:
    """Dialogues give ppo no prompts, but the reward stage samples after them: 99 tokens of 256 are theirs."""
    reward = planned(replace(PAIRS, gives_prompts=False), model=replace(MODEL, context=256)).reward
    assert reward is not None
    assert reward.normalise_sampling.max_new_tokens == 256 - 99


def test_rows_that_a_limit_leaves_out_are_allowed_and_said() -> None:
    """Of 102, 104, …, 300 tokens 22 rows in a hundred pass 256."""
    plan = plan_recipe("mine", replace(MODEL, context=256), [DEMOS])
    sft = recipe_of(plan).sft
    assert sft is not None
    assert 0.22 < one_source(sft.data).max_unusable < 0.35
    assert any("demos.jsonl: 22% of the rows" in note for note in plan.notes)
    roomy = planned(DEMOS).sft
    assert roomy is not None
    assert one_source(roomy.data).max_unusable == 0.05


def test_a_context_that_most_rows_pass_is_refused() -> None:
    with pytest.raises(UserError, match=r"demos\.jsonl: 86% of the rows are longer than the 128 tokens"):
        plan_recipe("mine", replace(MODEL, context=128), [DEMOS])


def test_large_models_take_adapters_and_small_steps() -> None:
    small, large = planned(DEMOS, PAIRS), planned(DEMOS, PAIRS, model=replace(MODEL, parameters=2_900_000_000))
    assert small.ppo is not None
    assert large.ppo is not None
    assert small.model.tune == "full"
    assert small.ppo.update.lr == 2e-4  # the demo's
    assert large.model.tune == "lora"
    assert large.ppo.update.lr == pytest.approx(3e-5)  # ten times 3e-6


def test_the_leash_and_the_published_constants_are_written() -> None:
    ppo = planned(PAIRS, model=replace(MODEL, parameters=100_000_000)).ppo
    assert ppo is not None
    assert (ppo.kl.coef, ppo.advantage.gamma, ppo.advantage.lam) == (0.05, 1.0, 0.95)
    assert (ppo.update.clip_low, ppo.update.clip_high, ppo.update.epochs) == (0.2, 0.2, 4)


def test_few_rows_take_small_batches() -> None:
    assert [batch_for(rows, 1) for rows in (3200, 3199, 1600, 800, 799, 10)] == [64, 32, 32, 16, 8, 8]
    assert batch_for(1600, 2) == 64


@pytest.mark.parametrize(("tokens", "expected"), [(0, 16), (1, 16), (16, 16), (17, 32), (100, 112)])
def test_multiples_of_16(tokens: int, expected: int) -> None:
    assert up_to_16(tokens) == expected


def test_a_small_source_says_what_it_holds_out() -> None:
    few = replace(PAIRS, validation=0.3, held_out=20, usable=60, total=60)
    recipe = planned(few)
    assert recipe.reward is not None
    assert recipe.ppo is not None
    assert recipe.evaluate is not None
    assert getattr(recipe.reward.data, "validation") == one_source(recipe.ppo.prompts).validation == 0.3  # noqa: B009  # a union
    assert one_source(recipe.evaluate.prompts).validation == 0.05  # there none are held out, so nothing is said
    assert (recipe.ppo.evaluate.count, recipe.evaluate.count) == (20, 60)


def test_prompts_kept_apart_are_judged_on() -> None:
    apart = replace(PROMPTS, name="apart.jsonl")
    plan = plan_recipe("mine", MODEL, [PAIRS], held_out=apart)
    evaluate = recipe_of(plan).evaluate
    assert evaluate is not None
    assert one_source(evaluate.prompts).path == "apart.jsonl"
    assert not plan.notes
    assert any("evaluate reads pairs.jsonl" in note for note in plan_recipe("mine", MODEL, [PAIRS]).notes)


def test_what_cannot_be_planned_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="prompts alone do not say what is preferred"):
        plan_recipe("mine", MODEL, [PROMPTS])
    with pytest.raises(UserError, match=r"demos\.jsonl and more\.jsonl both hold demonstrations"):
        plan_recipe("mine", MODEL, [DEMOS, replace(DEMOS, name="more.jsonl")])
