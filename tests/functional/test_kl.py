from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.kl import (
    adaptive_kl_coef,
    annealed_kl_coef,
    dual_kl_coef,
    exact_kl,
    k1,
    k2,
    k3,
    sequence_k2_term,
    token_k2_term,
    token_k3_term,
)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_k1_k2_k3_at_a_doubled_probability() -> None:
    estimates = [float(k(logs(0.5), logs(0.25))) for k in (k1, k2, k3)]
    assert estimates == pytest.approx([0.693147, 0.240227, 0.193147], abs=5e-7)


def test_k1_and_k3_average_to_the_exact_kl_and_k2_does_not() -> None:
    policy, reference = (0.7, 0.2, 0.1), (0.2, 0.3, 0.5)
    exact = sum(p * math.log(p / q) for p, q in zip(policy, reference, strict=True))
    means = [float((logs(*policy).exp() * k(logs(*policy), logs(*reference))).sum()) for k in (k1, k2, k3)]
    assert means[0] == pytest.approx(exact)
    assert means[2] == pytest.approx(exact)
    assert abs(means[1] - exact) > 0.05


def test_k3_keeps_its_digits_near_zero() -> None:
    assert k3(torch.tensor(1e-4), torch.tensor(0.0)).item() == pytest.approx(0.5e-8, rel=0.5)
    assert k3(logs(0.5), logs(0.5)).item() == 0.0


def test_erratum_01_kl_weighs_a_difference_of_logs() -> None:
    divergence = exact_kl(logs(0.75, 0.25)[None], logs(0.5, 0.5)[None])
    assert divergence.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert divergence.item() == pytest.approx(0.130812, abs=5e-7)  # the quotient of logs would give 0.8113


def test_erratum_06_the_sampled_estimate_of_example_2_is_zero() -> None:
    estimate = k1(logs(0.6, 0.2, 0.5), logs(0.5, 0.3, 0.4)).sum()
    assert estimate.item() == pytest.approx(0, abs=1e-12)  # 1.2 * 2/3 * 1.25 = 1; the document has 0.1399


@pytest.mark.parametrize("chunk_tokens", [1, 2, 512])
def test_exact_kl_is_the_sum_over_the_vocabulary_at_the_temperature(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    logits, ref_logits = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    divergences = exact_kl(logits, ref_logits, temperature=0.5, chunk_tokens=chunk_tokens)
    for row in range(5):
        weights, ref_weights = (x[row].mul(2).exp() for x in (logits, ref_logits))
        p, q = (weights / weights.sum()).tolist(), (ref_weights / ref_weights.sum()).tolist()
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert divergences[row].item() == pytest.approx(expected)


def test_exact_kl_with_tokens_that_cannot_be_drawn() -> None:
    both, one = torch.tensor([[0.0, 0.0, -math.inf]]), torch.tensor([[0.0, -math.inf, -math.inf]])
    assert exact_kl(one, both).item() == pytest.approx(math.log(2))
    assert exact_kl(both, one).item() == math.inf


def test_exact_kl_has_no_gradient_and_float32_results() -> None:
    logits = torch.zeros(3, 4, dtype=torch.bfloat16).requires_grad_()
    divergences = exact_kl(logits, logits)
    assert not divergences.requires_grad
    assert_close(divergences, torch.zeros(3))


def test_exact_kl_refuses_what_does_not_fit() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="temperature"):
        exact_kl(logits, logits, temperature=0)
    with pytest.raises(ValueError, match="need two logits"):
        exact_kl(logits, logits[:1])
    with pytest.raises(ValueError, match="chunk_tokens"):
        exact_kl(logits, logits, chunk_tokens=0)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (12.0, 0.15 * (1 + 0.2 * 0.0512)),  # clipped above
        (6.6, 0.15 * (1 + 0.1 * 0.0512)),
        (6.0, 0.15),
        (0.0, 0.15 * (1 - 0.2 * 0.0512)),  # clipped below
    ],
)
def test_adaptive_kl_coef_of_ziegler(kl: float, expected: float) -> None:
    assert adaptive_kl_coef(0.15, kl, target=6, horizon=10000, num_responses=512) == pytest.approx(expected)


@pytest.mark.parametrize(("target", "horizon"), [(0, 100), (-1, 100), (6, 0), (math.nan, 100)])
def test_adaptive_kl_coef_refuses_targets_without_meaning(target: float, horizon: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        adaptive_kl_coef(0.1, 1.0, target=target, horizon=horizon, num_responses=1)


# --- the leash as a term of the loss, on all sequences of two tokens over three symbols

FIRST, SECOND = 3, 3  # theta: logits of the first token [3], and of the second after each first [3, 3]


def two_step_logprobs(theta: Tensor) -> Tensor:
    """Log-probabilities [9, 2] of both tokens of every sequence."""
    first, second = theta[0].log_softmax(dim=0), theta[1:].log_softmax(dim=1)
    return torch.stack([first[:, None].expand(FIRST, SECOND), second], dim=-1).reshape(9, 2)


def two_steps() -> tuple[Tensor, Tensor]:
    theta, ref = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return theta.requires_grad_(), two_step_logprobs(ref)


def gradient_of(term: Tensor, weights: Tensor, theta: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad((weights[:, None] * term).sum(), theta)
    return gradient


EVERY = torch.ones(9, 2, dtype=torch.bool)


@pytest.mark.parametrize("baseline", [0.0, 3.0])
@pytest.mark.parametrize("old_is_policy", [True, False])
def test_sequence_k2_has_the_gradient_of_the_sequences_kl(baseline: float, old_is_policy: bool) -> None:
    theta, ref = two_steps()
    logprobs = two_step_logprobs(theta)
    probabilities = logprobs.detach().sum(dim=1).exp()
    (expected,) = torch.autograd.grad((logprobs.sum(dim=1).exp() * (logprobs - ref).sum(dim=1)).sum(), theta)
    logprobs = two_step_logprobs(theta)
    ratio = (logprobs - logprobs.detach()).exp()  # 1, with the gradient of log pi
    offset = torch.full((9,), baseline, dtype=torch.float64)
    term = sequence_k2_term(logprobs, ref, ratio if old_is_policy else 2 * ratio, EVERY, offset)
    scale = 1.0 if old_is_policy else 2.0
    assert_close(gradient_of(term, probabilities, theta), scale * expected)


def test_token_k2_and_k3_have_other_gradients_each_that_of_its_name() -> None:
    theta, ref = two_steps()
    probabilities = two_step_logprobs(theta).detach().sum(dim=1).exp()
    ones = torch.ones(9, 2, dtype=torch.float64)
    k2_gradient = gradient_of(token_k2_term(two_step_logprobs(theta), ref, ones, EVERY), probabilities, theta)
    k3_gradient = gradient_of(token_k3_term(two_step_logprobs(theta), ref, ones, EVERY), probabilities, theta)
    # the reverse and the forward KL of each state, states drawn by a policy that is held fixed
    visits = torch.cat([torch.ones(1, dtype=torch.float64), theta.detach()[0].softmax(dim=0)])
    log_ref = torch.stack([ref.reshape(3, 3, 2)[:, 0, 0], *ref.reshape(3, 3, 2)[:, :, 1]])
    log_pi = theta.log_softmax(dim=1)
    (reverse,) = torch.autograd.grad((visits * (log_pi.exp() * (log_pi - log_ref)).sum(dim=1)).sum(), theta)
    log_pi = theta.log_softmax(dim=1)
    (forward,) = torch.autograd.grad((visits * (log_ref.exp() * (log_ref - log_pi)).sum(dim=1)).sum(), theta)
    assert_close(k2_gradient, reverse)
    assert_close(k3_gradient, forward)
    logprobs = two_step_logprobs(theta)
    (whole,) = torch.autograd.grad((logprobs.sum(dim=1).exp() * (logprobs - ref).sum(dim=1)).sum(), theta)
    assert float((reverse - whole).norm() / whole.norm()) > 0.01  # what the token form misses


def test_the_terms_are_weighted_by_a_ratio_that_only_sequence_k2_differentiates() -> None:
    theta, ref = two_steps()
    ratio = torch.full((9, 2), 1.5, dtype=torch.float64, requires_grad=True)
    detached = two_step_logprobs(theta).detach()
    for term in (token_k2_term, token_k3_term):
        assert not term(detached, ref, ratio, EVERY).requires_grad
        assert_close(term(detached, ref, ratio, EVERY), 1.5 * term(detached, ref, torch.ones_like(ratio), EVERY))
    assert sequence_k2_term(detached, ref, ratio, EVERY, torch.zeros(9)).requires_grad


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(6.0, 0.1), (12.0, 0.1 * math.exp(0.5)), (0.0, 0.1 * math.exp(-0.5)), (-1e3, 0.01), (1e6, 0.1 * math.e)],
)
def test_the_price_of_a_constraint_rises_while_it_is_broken(kl: float, expected: float) -> None:
    assert dual_kl_coef(0.1, kl, limit=6.0, lr=0.5, minimum=0.01) == pytest.approx(expected)


@pytest.mark.parametrize("wrong", [{"limit": 0.0}, {"lr": -1.0}, {"minimum": 0.0}])
def test_a_constraint_without_meaning_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        dual_kl_coef(0.1, 1.0, **{"limit": 1.0, "lr": 0.1, "minimum": 0.01, **wrong})


def test_annealing_falls_in_equal_steps_of_the_logarithm() -> None:
    assert [annealed_kl_coef(1.0, 0.01, p) for p in (0.0, 0.5, 1.0, 3.0)] == pytest.approx([1.0, 0.1, 0.01, 0.01])
    for start, end, progress in ((0.0, 0.1, 0.5), (1.0, 0.0, 0.5), (1.0, 0.1, -0.1)):
        with pytest.raises(ValueError, match="progress >= 0"):
            annealed_kl_coef(start, end, progress)
