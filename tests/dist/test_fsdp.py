"""Weights in shards: how much each process holds, and what comes back when they are gathered."""

from __future__ import annotations

from typing import Any

import torch

from keel.dist.fsdp import collected, gathered, shard, whole
from keel.dist.world import joined, world
from keel.models.adapters import AdapterSpec, adapter_parameters, add_adapter, merged_state, weights_of
from keel.models.policy import Policy
from tests.dist.crowd import in_processes
from tests.worlds import tiny_lm


def held(policy: Policy) -> int:
    """Numbers in this process's memory."""
    tensors: list[Any] = list(policy.parameters())
    return sum(getattr(tensor, "_local_tensor", tensor).numel() for tensor in tensors)


def test_each_process_holds_its_share_and_gathers_the_whole() -> None:
    expected = {name: weight.detach() for name, weight in tiny_lm().named_parameters()}
    numbers = sum(weight.numel() for weight in expected.values())

    def work() -> tuple[int, int, int, bool, bool]:
        with joined():
            policy = Policy(tiny_lm())
            shard(policy)
            before = held(policy)
            one_by_one = all(
                torch.equal(whole(w.detach()), expected[name.removeprefix("backbone.")])
                for name, w in policy.named_parameters()
            )
            with gathered(policy):
                inside = held(policy)
                equal = all(torch.equal(w, expected[n]) for n, w in policy.backbone.named_parameters())
            return before, inside, held(policy), equal, one_by_one

    for before, inside, after, equal, one_by_one in in_processes(2, work):
        assert before == after
        assert abs(before - numbers / 2) <= 0.02 * numbers  # dimensions of odd length are not halved
        assert inside == numbers
        assert equal
        assert one_by_one


def test_copies_of_shards() -> None:
    """Four processes, two hold a model between them: each has half of it, and there are two copies."""

    def work() -> tuple[tuple[int, ...], float]:
        with joined(shard=2):
            policy = Policy(tiny_lm())
            numbers = sum(weight.numel() for weight in policy.parameters())
            shard(policy)
            mesh: Any = world().mesh
            return tuple(mesh.shape), held(policy) / numbers

    for shape, share in in_processes(4, work):
        assert shape == (2, 2)
        assert 0.48 <= share <= 0.52


def test_an_adapter_is_merged_into_weights_that_lie_in_shards() -> None:
    """As `merged_state` does it where they are whole: in the leader, one weight at a time."""

    def adapted() -> Any:
        model = tiny_lm()
        add_adapter(model, "policy", AdapterSpec(rank=3, alpha=5.0), seed=2)
        for number, weight in enumerate(adapter_parameters(model, "policy")):
            weight.data.normal_(generator=torch.Generator().manual_seed(number))
        return model

    expected = merged_state(adapted(), "policy")

    def work() -> tuple[int, bool]:
        with joined():
            model = adapted()
            shard(Policy(model, adapter="policy"))
            found = collected(weights_of(model, "policy", whole))
            return len(found), all(torch.equal(found[name], expected[name]) for name in found)

    assert in_processes(2, work) == [(len(expected), True), (0, True)]
    assert any(not torch.equal(one, tiny_lm().state_dict()[name]) for name, one in expected.items())
