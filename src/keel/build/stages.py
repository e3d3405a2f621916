"""Each stage from its configuration: models and data loaded, engines made, the stage run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keel.annotate.scripted import ScriptedAnnotator
from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.data.load import load_comparisons, load_demonstrations
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss, reward_loss, sft_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import (
    PolicyScorer,
    RewardModelScorer,
    explain_ratio,
)
from keel.errors import UserError
from keel.models.export import save_policy, save_reward_model
from keel.models.load import load_classifier
from keel.models.policy import Policy
from keel.models.reward import RewardModel
from keel.models.scratch import scratch_causal_lm
from keel.pipeline.collect import collect_comparisons
from keel.pipeline.epochs import total_steps
from keel.pipeline.evaluate import EvaluateEngines, evaluate
from keel.pipeline.guards import RATIO_TOLERANCE
from keel.pipeline.heldout import HeldOut
from keel.pipeline.ppo import PPOEngines, train_ppo
from keel.pipeline.reward import EncodedPair, RewardEngines, by_prompt, train_reward
from keel.pipeline.rollouts import Actors
from keel.pipeline.sft import train_sft
from keel.records import EncodedRow, Pairs, PolicyBatch, Sequences
from keel.references import resolve
from keel.schema import FIRST_PROBABILITY, Comparison, Prompt
from keel.text.render import Renderer, dialogue_text
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec, train_codec


def run_sft(bench: Workbench) -> dict[str, Any]:
    """Supervised fine-tuning of the base, or of a model from nothing."""
    config = bench.recipe.sft
    assert config is not None
    renderer = _scratch_renderer(bench) if bench.recipe.model.scratch else bench.renderer(bench.inputs.models["base"])
    scratch, base = bench.recipe.model.scratch, bench.inputs.models.get("base", "")
    room = min(config.max_tokens, scratch.context) if scratch else bench.room([base], config.max_tokens)
    loaded = load_demonstrations(config.data, fits=lambda row: renderer.length(row) <= room)
    bench.report(config.data, loaded.check)
    train = [renderer.demonstration(row) for row in loaded.train]
    policy = _scratch_policy(bench, renderer.codec) if scratch else bench.policy(base)
    learner = GradientLearner[Sequences]("sft", policy, sft_loss, config, total_steps=total_steps(config, len(train)))
    return train_sft(
        config,
        learner,
        train,
        [renderer.demonstration(row) for row in loaded.validation],
        export=lambda folder: save_policy(policy.backbone, renderer.codec.hf, folder, eos_ids=renderer.eos_ids),
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def _scratch_renderer(bench: Workbench) -> Renderer:
    """The tokenizer trained on the demonstrations; kept, so that an interrupted run goes on with the same one."""
    folder = bench.stage.artefact("tokenizer")
    if not folder.exists():
        scratch, sft = bench.recipe.model.scratch, bench.recipe.sft
        assert scratch is not None
        assert sft is not None
        rows = load_demonstrations(sft.data).train
        texts = (part for row in rows for part in (dialogue_text(row.prompt), row.response))
        codec = train_codec(texts, vocab=scratch.vocab, context=scratch.context)
        install_template(codec, bench.recipe.model.chat_template)
        codec.save(bench.stage.work("tokenizer"))
        bench.stage.publish("tokenizer")
    return bench.renderer(str(folder))


def _scratch_policy(bench: Workbench, codec: TextCodec) -> Policy:
    scratch = bench.recipe.model.scratch
    assert scratch is not None
    backbone = scratch_causal_lm(
        hidden=scratch.hidden,
        layers=scratch.layers,
        heads=scratch.heads,
        intermediate=scratch.intermediate,
        vocab=len(codec.hf),
        context=scratch.context,
        eos_id=int(codec.hf.eos_token_id),
        seed=bench.draws.torch_seed("weights"),
    )
    return Policy(backbone).to(bench.device).eval()


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by the scripted annotator."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    room = bench.room([source], config.max_prompt_tokens, config.sampling)
    prompts = bench.prompts("collect.prompts", renderer, room)
    script = config.annotator.script
    annotator = ScriptedAnnotator(resolve(script), temperature=config.annotator.temperature, name=script)
    return collect_comparisons(
        config,
        CachedSampler(bench.policy(source), renderer),
        annotator,
        [renderer.item(prompt) for prompt in (*prompts.train, *prompts.validation)],
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def run_reward(bench: Workbench) -> dict[str, Any]:
    """A scalar head on the start model's body, trained on the comparisons."""
    config = bench.recipe.reward
    assert config is not None
    source = bench.inputs.models["init"]
    renderer = bench.renderer(source)
    data = bench.inputs.data["reward.data"]
    room = bench.room([source], config.max_tokens)
    loaded = load_comparisons(data, fits=lambda row: renderer.length(row) <= room)
    bench.report(data, loaded.check)
    if (config.flip_probability or config.label_smoothing) and any(row.margin for row in loaded.train):
        raise UserError(f"{data.name} has margins, which exclude flip_probability and label_smoothing; drop either")
    trust = bench.recipe.model.trust_remote_code
    model = RewardModel(load_classifier(source, new_head=True, trust_remote_code=trust)).to(bench.device).eval()
    model.reset_head(bench.draws.torch_seed("head"))
    train = [_encode_pair(renderer, row) for row in loaded.train]
    num_prompts = len(by_prompt(train))
    learner = GradientLearner[Pairs](
        "reward",
        model,
        reward_loss(config.flip_probability, config.label_smoothing),
        config,
        total_steps=total_steps(config, num_prompts),
        head=model.head,
        head_lr_scale=config.head_lr_scale,
    )
    scorer = RewardModelScorer("reward", model, token_budget=SCORING_TOKENS)
    reference = bench.inputs.models["reference"]
    bench.require_same_tokenizer(renderer, reference, "the reference of the reward stage")
    sampling = config.normalise_sampling
    room = bench.room([reference, source], room, sampling)
    prompts = [item for row in loaded.train if len((item := renderer.item(Prompt(row.prompt))).tokens) <= room]
    if not prompts:
        raise UserError(f"reward: no prompt leaves room for the {sampling.max_new_tokens} tokens of normalise_sampling")
    engines = RewardEngines(
        learner=learner,
        score_rows=scorer.score_rows,
        scorer=scorer,
        reference=CachedSampler(bench.policy(reference), bench.renderer(reference)),
        normalise=model.normalise,
        export=lambda folder, scale: save_reward_model(model, renderer.codec.hf, folder, scale=scale),
    )
    return train_reward(
        config,
        engines,
        train,
        [_encode_pair(renderer, row) for row in loaded.validation],
        prompts,
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def _encode_pair(renderer: Renderer, row: Comparison) -> EncodedPair:
    chosen, rejected = renderer.comparison(row)
    known = row.extra.get(FIRST_PROBABILITY)
    return EncodedPair(chosen, rejected, row.margin or 0.0, row.weight, known if isinstance(known, float) else None)


def _some(prompts: Sequence[Prompt], count: int, bench: Workbench) -> list[Prompt]:
    """At most `count` of the prompts, drawn, so that the order of a file plays no part."""
    order = bench.draws.permutation("held-out prompts", len(prompts)).tolist()
    return [prompts[index] for index in order[:count]]


def run_ppo(bench: Workbench) -> dict[str, Any]:
    """PPO with the critic's head on the policy's backbone and a frozen copy as the reference."""
    config = bench.recipe.ppo
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    reference_source = bench.inputs.models["reference"]
    bench.require_same_tokenizer(renderer, reference_source, "ppo.reference")
    room = bench.room([source, *bench.other_models()], config.max_prompt_tokens, config.sampling)
    loaded = bench.prompts("ppo.prompts", renderer, room)
    train, held_out = loaded.train, loaded.validation
    if config.evaluate.prompts is not None:  # then none of ppo.prompts need be held out
        train = (*loaded.train, *loaded.validation)
        other = bench.prompts("ppo.evaluate.prompts", renderer, room)
        held_out = (*other.train, *other.validation)
    if not held_out:
        raise UserError("ppo has no held-out prompts: raise ppo.prompts.validation or give ppo.evaluate.prompts")
    policy = bench.policy(source, critic=True)
    temperature, budget = config.sampling.temperature, config.update.token_budget
    learner = GradientLearner[PolicyBatch](
        "ppo",
        policy,
        ppo_loss(config.update, temperature),
        config.update,
        total_steps=config.iterations * config.update.epochs * config.update.minibatches,
        head=policy.value_head,
        head_lr_scale=config.update.critic_lr_scale,
    )
    reference = bench.policy(reference_source).requires_grad_(False)
    actors = Actors(
        sampler=CachedSampler(policy, renderer),
        policy=PolicyScorer(policy, temperature=temperature, token_budget=budget),
        reference=PolicyScorer(reference, temperature=temperature, token_budget=SCORING_TOKENS),
        scorer=bench.scorer(renderer),
    )
    engines = PPOEngines(
        actors=actors,
        learner=learner,
        explain_ratio=lambda rollout: explain_ratio(
            policy, rollout, temperature=temperature, tolerance=RATIO_TOLERANCE
        ),
        export=lambda folder: save_policy(policy.backbone, renderer.codec.hf, folder, eos_ids=renderer.eos_ids),
    )
    items = [renderer.item(prompt) for prompt in _some(held_out, config.evaluate.count, bench)]
    return train_ppo(
        config,
        engines,
        [renderer.item(prompt) for prompt in train],
        HeldOut(actors, bench.function("utility"), items, config.sampling, config.kl.coef, bench.draws),
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def run_evaluate(bench: Workbench) -> dict[str, Any]:
    """The policy against its reference."""
    config = bench.recipe.evaluate
    assert config is not None
    policy_source, reference_source = bench.inputs.models["policy"], bench.inputs.models["reference"]
    renderer = bench.renderer(policy_source)
    sampling = config.sampling
    bench.require_same_tokenizer(renderer, reference_source, "evaluate.reference")
    room = bench.room([policy_source, *bench.other_models()], config.max_prompt_tokens, sampling)
    loaded = bench.prompts("evaluate.prompts", renderer, room)
    policy, reference = bench.policy(policy_source), bench.policy(reference_source)
    temperature = sampling.temperature

    def scorer(model: Policy, at: float) -> PolicyScorer:
        return PolicyScorer(model, temperature=at, token_budget=SCORING_TOKENS)

    demonstrations: list[EncodedRow] = []
    if config.demonstrations is not None:
        longest = bench.room([policy_source, reference_source], config.max_prompt_tokens + sampling.max_new_tokens)
        rows = load_demonstrations(config.demonstrations, fits=lambda row: renderer.length(row) <= longest)
        bench.report(config.demonstrations, rows.check)
        demonstrations = [renderer.demonstration(row) for row in (*rows.train, *rows.validation)[: config.count]]
    engines = EvaluateEngines(
        policy_sampler=CachedSampler(policy, renderer),
        reference_sampler=CachedSampler(reference, renderer),
        reference=scorer(reference, temperature),
        likelihood=(scorer(policy, 1.0), scorer(reference, 1.0)),
        scorer=bench.scorer(renderer),
        utility=bench.function("utility"),
        measures={name: measure for name in config.measures if (measure := bench.function(f"measure {name}"))},
    )
    return evaluate(
        config,
        engines,
        [renderer.item(prompt) for prompt in _some((*loaded.train, *loaded.validation), config.count, bench)],
        demonstrations,
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


RUNNERS: Mapping[str, Callable[[Workbench], dict[str, Any]]] = {
    "sft": run_sft,
    "collect": run_collect,
    "reward": run_reward,
    "ppo": run_ppo,
    "evaluate": run_evaluate,
}
