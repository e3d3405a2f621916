"""Inference servers in the trainer's place as the sampler, from their configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from keel.build.shelf import by_the_leader
from keel.build.workbench import SCORING_TOKENS, Workbench
from keel.config.servers import ServersConfig
from keel.dist.crew import lead
from keel.engines.base import DrawKey
from keel.engines.remote import RemoteSampler
from keel.engines.scorers import PolicyScorer
from keel.models.export import save_policy
from keel.models.policy import Policy, vocabulary_size
from keel.records import PromptItem
from keel.remote.weights import WeightsFolder
from keel.text.render import Renderer

_FOLDER = "servers"  # in the stage's directory: the weights that the servers read
_LOOKED_AT = 4  # prompts of the check at the start


def remote_sampler(
    bench: Workbench,
    config: ServersConfig,
    policy: Policy,
    renderer: Renderer,
    version: Callable[[], str],
    prompts: Sequence[PromptItem],
) -> RemoteSampler:
    """The servers as the sampler of the policy that trains, each of them checked on a few of all `prompts`.

    `version` names the policy's weights as they are now.
    """
    recipe = bench.recipe.ppo
    assert recipe is not None

    def write(folder: Path) -> None:
        save_policy(policy.backbone, renderer.codec.hf, folder, eos_ids=renderer.eos_ids, adapter=policy.adapter)

    sampler = RemoteSampler(
        config,
        renderer,
        vocabulary=vocabulary_size(policy.backbone),
        weights=WeightsFolder(bench.stage.path / _FOLDER, by_the_leader(policy, write)),
        version=version,
    )
    bench.closing.callback(sampler.close)
    scorers = {
        temperature: PolicyScorer(policy, temperature=temperature, token_budget=SCORING_TOKENS)
        for temperature in (recipe.sampling.temperature, 1.0)
    }
    lead(
        lambda: sampler.check(
            prompts[:_LOOKED_AT],
            recipe.sampling,
            DrawKey(bench.draws, "servers", iteration=0),
            context=max(len(prompt.tokens) for prompt in prompts) + recipe.sampling.max_new_tokens,
            scorer=scorers.__getitem__,
        )
    )
    return sampler
