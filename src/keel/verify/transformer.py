"""A real tiny transformer in a world of sequences, with the engines that users' models have.

What it computes before it is trained is the world's reference, so the optimum is known as exactly as for a table.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from keel.config.direct import DirectConfig
from keel.config.ppo import PPOConfig
from keel.config.sampling import SamplingConfig
from keel.engines.base import DrawKey
from keel.engines.direct import choices_loss
from keel.engines.learner import GradientLearner
from keel.engines.losses import ppo_loss
from keel.engines.sampler import make_sampler
from keel.engines.scorers import PolicyScorer
from keel.functional.preference import bradley_terry_probability
from keel.models.critic import ValueHead
from keel.models.hidden import hidden_size, last_hidden
from keel.models.policy import Policy, logits_of
from keel.models.scratch import scratch_causal_lm
from keel.pipeline import reference
from keel.pipeline.direct import DirectEngines, train_direct
from keel.pipeline.epochs import total_steps
from keel.pipeline.judgements import by_prompt, microbatches, mixture_of
from keel.pipeline.measures import response_rows
from keel.pipeline.preferences import EncodedChoice, choices_batch
from keel.pipeline.rollouts import Actors
from keel.records import Choices, EncodedRow, PolicyBatch
from keel.runs.console import SilentConsole
from keel.runs.identity import Identity
from keel.runs.run import StageRun
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.templates import install_template
from keel.text.tokenizers import TextCodec
from keel.verify import exact
from keel.verify.tabular import RewardTable, prompt_items, world_sequences
from keel.verify.training import Course, train
from keel.verify.worlds import EOS, PROMPT_LENGTH, World, response_logprobs, sequences, standardised

WORDS = ("<eos>", "a", "b", "c", "d")  # how the world's symbols are spelt
_SPREAD = 0.15  # standard deviation of the start's weights: its distributions are far from uniform
_SCORING_TOKENS = 1 << 16


def start(seed: int = 0) -> nn.Module:
    """A Llama of 7,056 parameters with random weights. Depth serves it better here than width."""
    backbone = scratch_causal_lm(
        hidden=12, layers=3, heads=2, intermediate=48, vocab=len(WORDS), context=16, eos_id=EOS, seed=seed
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Draws(seed, "verify transformer").torch_seed("start"))
        for weight in backbone.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=_SPREAD)
    return backbone


def table(world: World, backbone: nn.Module) -> Tensor:
    """The logits [P, S, V] that the model computes at every state, float64; differentiable.

    A response that fills the limit passes through a state of every length, and all states lie on such responses.
    """
    tree = world.tree
    whole = tree.ended & tree.mask.all(dim=1)
    states = tree.states[whole]
    rows = world_sequences(
        world.prompts.repeat_interleave(len(states), dim=0),
        tree.tokens[whole].repeat(world.num_prompts, 1),
        tree.mask[whole].repeat(world.num_prompts, 1),
    )
    hidden = last_hidden(backbone, rows.tokens)[:, PROMPT_LENGTH - 1 : -1]
    logits = logits_of(backbone, hidden).double().view(world.num_prompts, states.numel(), tree.num_symbols)
    first = torch.stack([(states.flatten() == state).nonzero()[0, 0] for state in range(tree.num_states)])
    return logits[:, first]


def world_around(backbone: nn.Module) -> World:
    """The structured world with the model as its reference."""
    world = sequences("structured")
    with torch.no_grad():
        ref_logits = table(world, backbone)
    rewards = standardised(world.rewards, response_logprobs(world.tree, ref_logits).exp())
    return replace(world, name="transformer", ref_logits=ref_logits, rewards=rewards)


def renderer() -> Renderer:
    """Spells the world's symbols, for the sampler."""
    raw = Tokenizer(token_models.WordLevel({word: index for index, word in enumerate(WORDS)}))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = PreTrainedTokenizerFast  # untyped
    codec = TextCodec(fast(tokenizer_object=raw, eos_token=WORDS[EOS]))
    install_template(codec, "auto")
    return Renderer(codec)


def train_transformer(world: World, backbone: nn.Module, config: PPOConfig, *, seed: int) -> Course:
    """A copy of the model trained by the stage, with the engines that `keel.build.ppo` gives it."""
    critic = ValueHead(hidden_size(backbone)) if config.critic == "head" else None
    policy = Policy(deepcopy(backbone), critic=critic)
    temperature, update = config.sampling.temperature, config.update
    actors = Actors(
        sampler=make_sampler(policy, renderer()),
        policy=PolicyScorer(policy, temperature=temperature, token_budget=_SCORING_TOKENS),
        reference=PolicyScorer(Policy(backbone), temperature=temperature, token_budget=_SCORING_TOKENS),
        scorer=RewardTable(world),
    )
    learner = GradientLearner[PolicyBatch](
        "ppo",
        policy,
        ppo_loss(config),
        update,
        total_steps=config.iterations * update.epochs * update.minibatches,
        head=() if critic is None else critic.trained(),
        head_lr_scale=update.critic_lr_scale,
    )

    @torch.no_grad()
    def logits() -> Tensor:
        return table(world, policy.backbone)

    return train(world, config, actors, learner, logits, seed=seed)


def fit_exactly(world: World, backbone: nn.Module, *, beta: float, steps: int, lr: float) -> Tensor:
    """The table [P, S, V] of a copy of the model after Adam on the exact J: how near such a model can come to pi*."""
    model = deepcopy(backbone)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(-exact.objective(world, table(world, model), beta).mean())
        optimiser.step()
        schedule.step()
    return table(world, model).detach()


def train_on_preferences(world: World, backbone: nn.Module, config: DirectConfig, *, pairs: int, seed: int) -> Tensor:
    """The table [P, S, V] of a copy of the model after the direct stage.

    The preferences are of `pairs` pairs a prompt, drawn from the model as it starts; each stands in the data both ways
    round, weighted by the Bradley-Terry probability of that outcome, as labels without number would have it.
    """
    draws = Draws(seed, "direct")
    choices = sampled_choices(world, backbone, pairs, draws)
    rows = list(dict.fromkeys(row for choice in choices for row in choice.rows))
    scorer = PolicyScorer(Policy(backbone), temperature=1.0, token_budget=_SCORING_TOKENS)
    ref_logprobs = reference.response_logprobs(scorer, rows, _SCORING_TOKENS).tolist()
    collate = choices_batch(dict(zip(rows, ref_logprobs, strict=True)))
    policy = Policy(deepcopy(backbone))
    steps = total_steps(config, mixture_of(by_prompt(choices, config.max_pairs), (1.0,)).epoch_size)
    learner = GradientLearner("direct", policy, choices_loss(config), config, total_steps=steps)
    engines = DirectEngines[EncodedChoice, Choices](
        learner=learner,
        batches=lambda groups: microbatches(groups, config.token_budget, collate),
        export=lambda folder: None,
    )
    with TemporaryDirectory(prefix="keel-verify-") as folder:
        stage = StageRun(Path(folder) / "direct", Identity({}, {}), lambda sentence: None)
        stage.begin()
        train_direct(config, engines, choices, (), weights=(1.0,), stage=stage, draws=draws, console=SilentConsole())
    with torch.no_grad():
        return table(world, policy.backbone)


def sampled_choices(world: World, backbone: nn.Module, pairs: int, draws: Draws) -> list[EncodedChoice]:
    """Prompt by prompt, each pair both ways round; responses that are the same token for token are no pair."""
    sampler = make_sampler(Policy(backbone), renderer())
    prompts = [item for item in prompt_items(world) for _ in range(2 * pairs)]
    sampling = SamplingConfig(max_new_tokens=world.tree.longest, batch=len(prompts))
    samples = sampler.sample(prompts, sampling, DrawKey(draws, "pairs", 0))
    scores = RewardTable(world).score(samples).total
    rows = [
        EncodedRow((*prompt.tokens, *said), len(prompt.tokens))
        for prompt, said in zip(prompts, response_rows(samples.sequences), strict=True)
    ]
    choices = []
    beats = bradley_terry_probability(scores[::2], scores[1::2]).tolist()
    for one, other, probability in zip(rows[::2], rows[1::2], beats, strict=True):
        if one != other:
            choices.append(EncodedChoice(one, other, weight=probability))
            choices.append(EncodedChoice(other, one, weight=1 - probability))
    return choices
