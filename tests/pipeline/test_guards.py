"""Each refusal and each warning has its sentence, and none comes from noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from keel.config.servers import ServersConfig
from keel.errors import UserError
from keel.pipeline.guards import (
    RATIO_TOLERANCE,
    ROUGH_RATIO_TOLERANCE,
    require_ends,
    require_near_servers,
    require_unit_ratio,
    watch_kl_sign,
    watch_variation,
)
from keel.records import Rollout, Scores
from keel.tally import Tally
from tests.pipeline.support import samples_of


def rollout() -> Rollout:
    samples = samples_of([(2, 0), (3, 4)])
    assert samples.logprobs is not None
    zeros = torch.zeros_like(samples.logprobs)
    return Rollout(samples, samples.logprobs, zeros, zeros, Scores(zeros[:, 0], {}), torch.arange(2), 0)


def seen(gap: float) -> Tally:
    tally = Tally()
    tally.extreme("ppo/policy/ratio_gap", gap)
    return tally


def kl(mean: float, error: float) -> dict[str, float]:
    return {"objective/kl": mean, "objective/kl_standard_error": error}


def test_a_ratio_of_one_passes() -> None:
    require_unit_ratio(seen(RATIO_TOLERANCE), rollout(), lambda _: "unasked")


@pytest.mark.parametrize("gap", [1.01e-3, float("inf"), float("nan")])
def test_another_ratio_stops_with_its_cause(gap: float) -> None:
    with pytest.raises(UserError) as raised:
        require_unit_ratio(seen(gap), rollout(), lambda given: f"Cause: {len(given.sequences)} planted faults.")
    assert str(raised.value) == (
        f"ppo: before any update the ratio pi/pi_old is off by {gap:.3g} (at most 0.001 is rounding): the sampler and "
        "the learner do not compute the same probabilities. Cause: 2 planted faults."
    )


def rough_rollout(*gaps: float) -> Rollout:
    """Of a sampler whose log-probabilities are off by so much on the tokens."""
    exact = rollout()
    off = torch.zeros_like(exact.logprobs).masked_scatter(exact.response_mask, torch.tensor(gaps))
    return replace(exact, sampler_logprobs=exact.logprobs - off)


def stale_rollout(*ratios: float) -> Rollout:
    """One that an older policy drew: the ratio to it of each token."""
    given = rough_rollout(*torch.tensor(ratios).log().tolist())
    return replace(given, samples=replace(given.samples, lag=1))


def rough_seen(approx_kl: float) -> Tally:
    tally = seen(0.3)  # a single token, as rounding in bfloat16 may have it
    tally.add("ppo/policy/approxkl", 4 * approx_kl, 4)
    return tally


def test_another_precision_is_judged_by_all_tokens_together() -> None:
    passes = rough_rollout(0.19, 0.0, 0.0, 0.0)  # root mean square 0.095
    require_unit_ratio(rough_seen(0.0), passes, lambda _: "unasked", ROUGH_RATIO_TOLERANCE)
    require_unit_ratio(rough_seen(0.0049), passes, lambda _: "unasked", ROUGH_RATIO_TOLERANCE)
    for tally, given in (
        (rough_seen(0.0), rough_rollout(0.11, -0.11, 0.11, 0.11)),  # the sampler
        (rough_seen(0.0), rough_rollout(0.0, float("nan"), 0.0, 0.0)),
        (rough_seen(0.0061), passes),  # the learner: sqrt(2 x 0.0061) = 0.11
    ):
        with pytest.raises(UserError, match=r"is off by (0\.11|nan) \(at most 0\.1 is rounding\): .* disagree: look$"):
            require_unit_ratio(tally, given, lambda _: "They disagree: look", ROUGH_RATIO_TOLERANCE)


def test_servers_may_be_off_by_their_limit() -> None:
    servers = ServersConfig(urls=("http://a",), max_logprob_gap=0.02)
    require_near_servers(rough_rollout(0.038, 0.0, 0.0, 0.0), servers, lambda _: "unasked")  # root mean square 0.019
    require_near_servers(rough_rollout(9.0, 9.0, 9.0, 9.0), None, lambda _: "unasked")
    for gap, said in ((0.042, "0.021"), (float("nan"), "nan")):
        with pytest.raises(UserError) as raised:
            require_near_servers(rough_rollout(gap, 0.0, 0.0, 0.0), servers, lambda _: "Cause: planted.")
        assert str(raised.value) == (
            f"ppo: the servers' log-probabilities differ from the trainer's by {said} (root mean square a token; "
            "ppo.servers.max_logprob_gap is 0.02). Cause: planted."
        )


def test_three_impossible_kls_in_a_row_stop() -> None:
    said: list[str] = []
    streak = watch_kl_sign(kl(-0.06, 0.01), 0, said.append)
    assert streak == 1
    assert said == [
        "ppo: warning: the KL to the reference is -0.06 nats a response, 6 standard errors below 0, which no true KL "
        "can be: the sampler and the reference disagree (temperature, padding, other weights)."
    ]
    streak = watch_kl_sign(kl(-0.06, 0.01), streak, said.append)
    assert (streak, len(said)) == (2, 2)
    with pytest.raises(UserError, match=r"^ppo: 3 iterations in a row, the KL to the reference is -0.06"):
        watch_kl_sign(kl(-0.06, 0.01), streak, said.append)


def test_one_healthy_iteration_ends_the_streak() -> None:
    said: list[str] = []
    assert watch_kl_sign(kl(0.2, 0.01), 2, said.append) == 0
    assert watch_kl_sign(kl(-0.06, 0.01), 0, said.append) == 1


@pytest.mark.parametrize(
    ("mean", "error"),
    [(-0.02, 0.02), (-0.049, 0.01), (-9e-4, 1e-6), (-1e-7, 0.0), (0.0, 0.0)],
    ids=["one standard error", "not quite five", "too small to matter", "rounding at the start", "nothing"],
)
def test_noise_is_no_reason_to_warn(mean: float, error: float) -> None:
    said: list[str] = []
    assert watch_kl_sign(kl(mean, error), 2, said.append) == 0
    assert said == []


def test_a_rollout_that_hardly_ever_ends_stops() -> None:
    require_ends(torch.tensor([True] + [False] * 9), 0.9, 64)
    require_ends(torch.tensor([False] * 10), 1.0, 64)
    with pytest.raises(UserError) as raised:
        require_ends(torch.tensor([True] + [False] * 19), 0.9, 64)
    assert str(raised.value) == (
        "ppo: 95% of a rollout's responses never end within 64 tokens (ppo.max_truncated is 0.9); raise "
        "ppo.sampling.max_new_tokens, or ppo.max_truncated if responses are meant to be cut"
    )


def test_scores_that_are_all_alike_are_named() -> None:
    said: list[str] = []
    watch_variation(torch.tensor([0.5, 0.5, 0.5]), 4, said.append)
    assert said == [
        "ppo: warning: all 3 responses of iteration 4 have the score 0.5, so only the KL teaches; look at the reward"
    ]
    watch_variation(torch.tensor([0.5, 0.5, 0.6]), 4, said.append)
    watch_variation(torch.tensor([0.5]), 4, said.append)
    assert len(said) == 1


def test_a_batch_drawn_ahead_may_be_an_update_old_and_no_older() -> None:
    servers = ServersConfig(urls=("http://127.0.0.1:1",), overlap=True, max_logprob_gap=0.01, max_staleness=0.2)
    passes = stale_rollout(1.3, 0.7, 1.0, 0.81)  # off by 0.1975 on average, as log-probabilities by 0.25
    require_near_servers(passes, servers, lambda _: "unasked")
    require_unit_ratio(rough_seen(0.0), passes, lambda _: "unasked", 0.01)
    for ratios in ((1.3, 0.7, 1.0, 0.79), (1.0, float("nan"), 1.0, 1.0)):
        with pytest.raises(
            UserError, match=r"ratio went (0\.202|nan) from 1 on average .ppo\.servers\.max_staleness is 0\.2\)"
        ):
            require_near_servers(stale_rollout(*ratios), servers, lambda _: "unasked")
    with pytest.raises(UserError, match="any update the ratio"):  # the learner's own has to be 1 all the same
        require_unit_ratio(rough_seen(0.01), passes, lambda _: "They disagree", 0.1)
