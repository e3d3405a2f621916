from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from keel.functional.kl import adaptive_kl_coef, exact_kl, k1, k2, k3


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
