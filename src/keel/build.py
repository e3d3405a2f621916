"""The composition root: from a recipe to engines to stages. The only place that knows every part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from keel.annotate.scripted import ScriptedAnnotator
from keel.config.data import DataConfig
from keel.config.ppo import RewardSource
from keel.config.recipe import Recipe
from keel.config.sampling import SamplingConfig
from keel.data.load import Loaded, load_comparisons, load_demonstrations, load_prompts
from keel.data.reasons import Check
from keel.engines.base import DrawKey, Scorer
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss, reward_loss, sft_loss
from keel.engines.sampler import CachedSampler
from keel.engines.scorers import (
    FunctionScorer,
    PolicyScorer,
    RewardModelScorer,
    WeightedScorer,
    explain_ratio,
)
from keel.errors import UserError
from keel.inputs import Inputs, stage_identity, stage_inputs
from keel.models.export import save_policy, save_reward_model
from keel.models.load import load_causal_lm, load_classifier, resolve_device
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
from keel.runs.console import Console
from keel.runs.layout import STAGES
from keel.runs.run import Run, StageRun
from keel.schema import Comparison, Prompt
from keel.seeds import Draws
from keel.text.render import Renderer, dialogue_text
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec, load_codec, train_codec
from keel.user_functions import checked

_SCORING_TOKENS = 16_384  # padded tokens a forward without gradient


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    console: Console,
    only: str | None = None,
    reuse: Path | None = None,
    fresh_from: str | None = None,
) -> None:
    """Walk the recipe's stages in `out`: finished ones are skipped, an interrupted one goes on where it was.

    `only` runs that one stage (what it needs must be there). Raises UserError for whatever the user can mend.
    """
    with Run.open(out, recipe.name, reuse=reuse, fresh_from=fresh_from, console=console.say) as run:
        run.write_recipe(recipe.model_dump(mode="json"))
        for name in STAGES:
            if getattr(recipe, name) is None or (only is not None and name != only):
                continue
            inputs = stage_inputs(recipe, out, name)
            _require_there(recipe, out, name, inputs)
            stage = run.stage(name, stage_identity(recipe, name, inputs))
            if stage.finished:
                console.say(f"{name}: finished before, skipped.")
                continue
            stage.begin()
            summary = _RUNNERS[name](Workbench(recipe, inputs, stage, console))
            stage.finish(summary)


def _require_there(recipe: Recipe, out: Path, stage: str, inputs: Inputs) -> None:
    """An earlier stage's artefact that this one needs must exist."""
    sources = [*inputs.models.values(), *(source.model for source in inputs.rewards if source.model)]
    sources += [str(data.path) for data in inputs.data.values() if data.path]
    for source in sources:
        path = Path(source)
        if path.is_relative_to(out) and not path.exists():
            earlier = path.relative_to(out).parts[0]
            raise UserError(f"{stage} needs the {earlier} stage, which has not finished in {out}; run it first")


class Workbench:
    """What every stage's runner needs: the recipe, the stage's inputs and directory, and loading with checks."""

    def __init__(self, recipe: Recipe, inputs: Inputs, stage: StageRun, console: Console) -> None:
        self.recipe = recipe
        self.inputs = inputs
        self.stage = stage
        self.console = console
        self.draws = Draws(recipe.seed, stage.name)
        self.device = resolve_device(recipe.device)

    def renderer(self, source: str) -> Renderer:
        """The text side of a model."""
        model = self.recipe.model
        return load_renderer(source, chat_template=model.chat_template, trust_remote_code=model.trust_remote_code)

    def policy(self, source: str, *, critic: bool = False) -> Policy:
        """A causal language model on the device."""
        backbone = load_causal_lm(source, trust_remote_code=self.recipe.model.trust_remote_code)
        return Policy(backbone, critic=critic).to(self.device).eval()

    def prompts(self, key: str, renderer: Renderer, max_tokens: int) -> Loaded[Prompt]:
        """The prompts of one input, those too long left out."""
        loaded = load_prompts(self.inputs.data[key], fits=lambda row: renderer.length(row) <= max_tokens)
        self.report(self.inputs.data[key], loaded.check)
        return loaded

    def report(self, data: DataConfig, check: Check) -> None:
        """Say which rows were left out, if any."""
        if check.unusable:
            reasons = ", ".join(
                f"{count} {reason.value}" for reason, count in check.counts.items() if not reason.is_warning
            )
            self.console.say(
                f"{self.stage.name}: {data.name}: {check.unusable} of {check.total} rows left out ({reasons})."
            )

    def scorer(self, renderer: Renderer) -> Scorer:
        """The weighted rewards of the stage."""
        return WeightedScorer([(self._reward(source, renderer), source.weight) for source in self.inputs.rewards])

    def function(self, key: str) -> Scorer | None:
        """The user's function of that key as a scorer, if there is one."""
        reference = self.inputs.functions.get(key)
        return None if reference is None else FunctionScorer(key, checked(reference, resolve(reference)))

    def _reward(self, source: RewardSource, renderer: Renderer) -> Scorer:
        if source.function is not None:
            return FunctionScorer(source.name, checked(source.function, resolve(source.function)))
        assert source.model is not None
        model = RewardModel(load_classifier(source.model)).to(self.device).eval()
        own = self.renderer(source.model)
        shared = renderer.codec.hf.get_vocab().items() <= own.codec.hf.get_vocab().items()
        return RewardModelScorer(source.name, model, token_budget=_SCORING_TOKENS, renderer=None if shared else own)


def load_renderer(source: str, *, chat_template: str = "auto", trust_remote_code: bool = False) -> Renderer:
    """A model's tokenizer with its one chat template, as the owner of ids."""
    codec = load_codec(source, trust_remote_code=trust_remote_code)
    install_template(codec, chat_template)
    return Renderer(codec)


def run_sft(bench: Workbench) -> dict[str, Any]:
    """Supervised fine-tuning of the base, or of a model from nothing."""
    config = bench.recipe.sft
    assert config is not None
    renderer = bench.renderer(bench.inputs.models["base"]) if bench.recipe.model.base else _scratch_renderer(bench)
    loaded = load_demonstrations(config.data, fits=lambda row: renderer.length(row) <= config.max_tokens)
    bench.report(config.data, loaded.check)
    train = [renderer.demonstration(row) for row in loaded.train]
    if bench.recipe.model.scratch:
        policy = Policy(_scratch_backbone(bench, renderer.codec)).to(bench.device).eval()
    else:
        policy = bench.policy(bench.inputs.models["base"])
    learner = GradientLearner[Sequences]("sft", policy, sft_loss, config, total_steps=total_steps(config, len(train)))
    return train_sft(
        config,
        learner,
        train,
        [renderer.demonstration(row) for row in loaded.validation],
        export=lambda folder: save_policy(policy.backbone, renderer.codec.hf, folder),
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


def _scratch_backbone(bench: Workbench, codec: TextCodec) -> nn.Module:
    scratch = bench.recipe.model.scratch
    assert scratch is not None
    return scratch_causal_lm(
        hidden=scratch.hidden,
        layers=scratch.layers,
        heads=scratch.heads,
        intermediate=scratch.intermediate,
        vocab=len(codec.hf),
        context=scratch.context,
        eos_id=int(codec.hf.eos_token_id),
        seed=bench.draws.torch_seed("weights"),
    )


def run_collect(bench: Workbench) -> dict[str, Any]:
    """Responses of the start model, compared by the scripted annotator."""
    config = bench.recipe.collect
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    prompts = bench.prompts("collect.prompts", renderer, config.max_prompt_tokens)
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
    loaded = load_comparisons(data, fits=lambda row: renderer.length(row) <= config.max_tokens)
    bench.report(data, loaded.check)
    model = RewardModel(load_classifier(source)).to(bench.device).eval()
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
    scorer = RewardModelScorer("reward", model, token_budget=_SCORING_TOKENS)
    reference = bench.inputs.models["reference"]
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
        [renderer.item(Prompt(row.prompt)) for row in loaded.train],
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


def _encode_pair(renderer: Renderer, row: Comparison) -> EncodedPair:
    chosen, rejected = renderer.comparison(row)
    return EncodedPair(chosen, rejected, row.margin or 0.0, row.weight, row.extra.get("first_probability"))


def run_ppo(bench: Workbench) -> dict[str, Any]:
    """PPO with the critic's head on the policy's backbone and a frozen copy as the reference."""
    config = bench.recipe.ppo
    assert config is not None
    source = bench.inputs.models["policy"]
    renderer = bench.renderer(source)
    loaded = bench.prompts("ppo.prompts", renderer, config.max_prompt_tokens)
    held_out = loaded.validation
    if config.evaluate.prompts is not None:
        other = bench.prompts("ppo.evaluate.prompts", renderer, config.max_prompt_tokens)
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
    reference = bench.policy(bench.inputs.models["reference"]).requires_grad_(False)
    actors = Actors(
        sampler=CachedSampler(policy, renderer),
        policy=PolicyScorer(policy, temperature=temperature, token_budget=budget),
        reference=PolicyScorer(reference, temperature=temperature, token_budget=_SCORING_TOKENS),
        scorer=bench.scorer(renderer),
    )
    engines = PPOEngines(
        actors=actors,
        learner=learner,
        explain_ratio=lambda rollout: explain_ratio(
            policy, rollout, temperature=temperature, tolerance=RATIO_TOLERANCE
        ),
        export=lambda folder: save_policy(policy.backbone, renderer.codec.hf, folder),
    )
    items = [renderer.item(prompt) for prompt in held_out[: config.evaluate.count]]
    return train_ppo(
        config,
        engines,
        [renderer.item(prompt) for prompt in loaded.train],
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
    loaded = bench.prompts("evaluate.prompts", renderer, config.max_prompt_tokens)
    policy, reference = bench.policy(policy_source), bench.policy(reference_source)
    temperature = config.sampling.temperature
    scorers = [
        PolicyScorer(model, temperature=at, token_budget=_SCORING_TOKENS)
        for at in (temperature, 1.0)
        for model in (policy, reference)
    ]
    demonstrations: list[EncodedRow] = []
    if config.demonstrations is not None:
        rows = load_demonstrations(config.demonstrations)
        bench.report(config.demonstrations, rows.check)
        demonstrations = [renderer.demonstration(row) for row in (*rows.train, *rows.validation)[: config.count]]
    engines = EvaluateEngines(
        policy_sampler=CachedSampler(policy, renderer),
        reference_sampler=CachedSampler(reference, renderer),
        policy=scorers[0],
        reference=scorers[1],
        likelihood=(scorers[2], scorers[3]),
        scorer=bench.scorer(renderer),
        utility=bench.function("utility"),
        measures={name: scorer for name in config.measures if (scorer := bench.function(name))},
    )
    return evaluate(
        config,
        engines,
        [renderer.item(prompt) for prompt in (*loaded.train, *loaded.validation)],
        demonstrations,
        stage=bench.stage,
        draws=bench.draws,
        console=bench.console,
    )


_RUNNERS: Mapping[str, Callable[[Workbench], dict[str, Any]]] = {
    "sft": run_sft,
    "collect": run_collect,
    "reward": run_reward,
    "ppo": run_ppo,
    "evaluate": run_evaluate,
}


def generate_responses(
    source: str, prompts: Sequence[Prompt], sampling: SamplingConfig, *, samples: int, seed: int, device: str
) -> list[dict[str, Any]]:
    """`samples` responses of a model to each prompt, one {"prompt", "response", "ended"} each."""
    renderer = load_renderer(source)
    policy = Policy(load_causal_lm(source)).to(resolve_device(device)).eval()
    items = [renderer.item(prompt) for prompt in prompts for _ in range(samples)]
    drawn = CachedSampler(policy, renderer).sample(items, sampling, DrawKey(Draws(seed, "generate"), "response", 0))
    return [
        {"prompt": item.text, "response": text, "ended": ended}
        for item, text, ended in zip(items, drawn.texts, drawn.ended.tolist(), strict=True)
    ]
