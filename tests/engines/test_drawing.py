from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from keel.config.sampling import SamplingConfig
from keel.engines.drawing import choose_tokens, draw_tokens
from keel.errors import UserError
from keel.functional.logprobs import token_logprobs
from keel.seeds import Draws


def logits_row() -> Tensor:
    """Ten tokens of which two are impossible; the others without ties."""
    logits = torch.tensor([1.5, -1.0, -torch.inf, 0.3, 2.0, -3.0, 0.9, -0.4, 0.1, -torch.inf])
    return logits


def naive_probabilities(logits: Tensor, temperature: float, top_k: int, top_p: float) -> list[float]:
    """By hand: rank the tokens, keep the first k until p is reached, renormalise."""
    weights = [math.exp(value / temperature) for value in logits.tolist()]
    total = sum(weights)
    probabilities = [weight / total for weight in weights]
    kept: list[int] = []
    reached = 0.0
    for token in sorted(range(len(probabilities)), key=lambda index: -probabilities[index]):
        if reached >= top_p or (top_k and len(kept) == top_k):
            break
        kept.append(token)
        reached += probabilities[token]
    return [p / reached if token in kept else 0.0 for token, p in enumerate(probabilities)]


CUTS = [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 3, 1.0), (1.0, 1, 1.0), (1.0, 0, 0.5), (1.0, 0, 0.05), (0.8, 4, 0.85)]
CUTS += [(1.0, 30, 0.999), (2.5, 5, 0.3)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CUTS)
def test_evenly_spread_uniforms_hit_each_token_by_its_probability(temperature: float, top_k: int, top_p: float) -> None:
    number = 5000
    uniforms = (torch.arange(number) + 0.5) / number
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    chosen = choose_tokens(logits_row().repeat(number, 1), sampling, uniforms)
    counts = torch.bincount(chosen, minlength=10).tolist()
    expected = naive_probabilities(logits_row(), temperature, top_k, top_p)
    for count, probability in zip(counts, expected, strict=True):
        assert abs(count - number * probability) <= 1.01  # the grid points that an interval of this length holds
        assert count == 0 or probability > 0


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.0, 4, 0.9)])
def test_frequencies_with_counter_based_uniforms(temperature: float, top_k: int, top_p: float) -> None:
    number = 20_000
    uniforms = Draws(0, "test").uniforms("frequency", iteration=0, samples=range(number), length=1)[:, 0]
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    chosen = choose_tokens(logits_row().repeat(number, 1), sampling, torch.from_numpy(uniforms).float())
    counts = torch.bincount(chosen, minlength=10).tolist()
    expected = naive_probabilities(logits_row(), temperature, top_k, top_p)
    possible = [token for token, probability in enumerate(expected) if probability > 0]
    assert sum(counts[token] for token in possible) == number
    chi_square = sum((counts[t] - number * expected[t]) ** 2 / (number * expected[t]) for t in possible)
    assert chi_square < 27.9  # 7 degrees of freedom or fewer: exceeded once in 4,000 seeds


@pytest.mark.parametrize("top_k", [0, 2])
def test_the_ends_of_the_unit_interval(top_k: int) -> None:
    impossible = -torch.inf
    logits = torch.tensor(
        [
            [impossible, 0.0, 1.0, impossible, 2.0, impossible],
            [0.0, impossible, impossible, impossible, impossible, impossible],
            [impossible, impossible, impossible, impossible, impossible, 0.0],
            [200.0, 0.0, -200.0, 400.0, -100.0, -200.0],  # all but one underflow to 0
        ]
    )
    sampling = SamplingConfig(temperature=1.0, top_k=top_k)
    ends = {0.0: [2 if top_k else 1, 0, 5, 3], float(np.nextafter(1.0, 0.0)): [4, 0, 5, 3]}
    for uniform, expected in ends.items():
        assert choose_tokens(logits.clone(), sampling, torch.full((4,), uniform)).tolist() == expected


def test_no_uniform_ever_draws_an_impossible_token() -> None:
    # As many tokens as a real vocabulary, so that sums are rounded; every second one is impossible.
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((1, 60_000), generator=generator) * 3
    logits[:, ::2] = -torch.inf
    logits[:, -5000:] = -torch.inf
    uniforms = torch.cat([torch.linspace(0, 1, 400), 1 - torch.logspace(-9, -5, 100)])
    chosen = choose_tokens(logits.repeat(len(uniforms), 1), SamplingConfig(temperature=1.0), uniforms)
    assert torch.isfinite(logits[0, chosen]).all()


def test_temperature_zero_is_the_argmax() -> None:
    logits = torch.stack([logits_row(), logits_row().flip(0)])
    assert choose_tokens(logits, SamplingConfig(temperature=0.0), torch.tensor([0.99, 0.99])).tolist() == [4, 5]


@pytest.mark.parametrize("vocab", [5, 128, 129, 1000, 1024])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_a_drawn_token_is_where_a_plain_cumulative_sum_reaches_the_uniform(vocab: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn((400, vocab), generator=generator) * 3
    uniforms = torch.rand(400, generator=generator)
    chosen, logprobs = draw_tokens(logits.clone(), temperature, uniforms)
    weights = np.exp(logits.numpy().astype(np.float64) / temperature)
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    expected = (cumulative <= uniforms.numpy()[:, None]).sum(axis=1)
    near = np.abs(cumulative - uniforms.numpy()[:, None]).min(axis=1) < 1e-6  # rounding may take the neighbour
    assert near.mean() < 0.05
    assert chosen.numpy()[~near].tolist() == expected[~near].tolist()
    trained = token_logprobs(logits, chosen, temperature=temperature)
    torch.testing.assert_close(logprobs, trained, rtol=0, atol=1e-5)


def test_logits_that_are_not_finite_end_the_run_with_a_sentence() -> None:
    logits = torch.zeros(2, 300)
    logits[1, 7] = float("nan")
    with pytest.raises(UserError, match="logits are not finite"):
        draw_tokens(logits, 1.0, torch.full((2,), 0.5))
