"""What draws for PPO: the trainer itself, or inference servers in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from keel.build.shelf import policy_writer
from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.config.servers import ServersConfig
from keel.dist.crew import shared
from keel.engines.ahead import AheadSampler
from keel.engines.base import DrawKey, Sampler
from keel.engines.remote import RemoteSampler
from keel.engines.scorers import PolicyScorer
from keel.models.policy import Policy, vocabulary_size
from keel.records import PromptItem
from keel.remote.weights import WeightsFolder
from keel.text.render import Renderer

_FOLDER = "servers"  # in the stage's directory: the weights that the servers read
_LOOKED_AT = 4  # prompts of the check at the start


def ppo_sampler(
    bench: Workbench, policy: Policy, renderer: Renderer, version: Callable[[], str], prompts: Sequence[PromptItem]
) -> tuple[Sampler, Callable[[], None]]:
    """The sampler, and the check of it that the leader makes first: of servers, on a few of all `prompts`.

    `version` names the policy's weights as they are at the time.
    """
    config = bench.recipe.ppo
    assert config is not None
    if config.servers is None:
        return bench.sampler(policy, renderer), lambda: None

    sampler = RemoteSampler(
        config.servers,
        renderer,
        vocabulary=vocabulary_size(policy.backbone),
        weights=WeightsFolder(bench.stage.path / _FOLDER, shared(policy_writer(policy, renderer))),
        version=version,
    )
    bench.closing.callback(sampler.close)
    scorers = {
        temperature: PolicyScorer(policy, temperature=temperature, token_budget=SCORING_TOKENS)
        for temperature in (config.sampling.temperature, 1.0)
    }
    return sampler, partial(
        sampler.check,
        prompts[:_LOOKED_AT],
        config.sampling,
        DrawKey(bench.draws, "servers", iteration=0),
        context=max(len(prompt.tokens) for prompt in prompts) + config.sampling.max_new_tokens,
        scorer=scorers.__getitem__,
    )


def drawing_ahead(sampler: Sampler, servers: ServersConfig | None) -> AheadSampler | None:
    """The sampler of the rollouts where the next one is drawn while this one trains."""
    if servers is None or not servers.overlap:
        return None
    assert isinstance(sampler, RemoteSampler)
    return AheadSampler(sampler)
