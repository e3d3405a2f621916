from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from keel.functional.logprobs import logprobs_and_entropy, token_logprobs
from tests.memory import peak_bytes


def example(rows: int, vocabulary: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(vocabulary, (rows,), generator=generator)


def plain(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The textbook lines, with every intermediate held in memory."""
    logprobs = torch.log_softmax(logits.double() / temperature, dim=-1)
    return logprobs[torch.arange(len(targets)), targets], -(logprobs.exp() * logprobs).sum(-1)


def test_numbers_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    logprobs, entropy = logprobs_and_entropy(logits, torch.tensor([2]))
    assert logprobs.item() == pytest.approx(-2 * math.log(2))
    assert entropy.item() == pytest.approx(1.5 * math.log(2))


def test_erratum_03_entropy_sums_over_the_vocabulary_not_over_the_sampled_token() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log().expand(3, 3)
    _, entropy = logprobs_and_entropy(logits, torch.tensor([0, 1, 2]))
    assert_close(entropy, torch.full((3,), 1.0397207708, dtype=torch.float64))  # over drawn tokens only: .3466 each


def test_mistake_8_logprobs_are_those_of_the_sampling_temperature() -> None:
    logits = torch.tensor([[math.log(4.0), 0.0]], dtype=torch.float64)
    assert token_logprobs(logits, torch.tensor([0]), temperature=2.0).item() == pytest.approx(math.log(2 / 3))
    _, entropy = logprobs_and_entropy(logits, torch.tensor([0]), temperature=2.0)
    assert entropy.item() == pytest.approx(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3))


@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 5, 7, 512, None])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_values_and_gradients_match_the_plain_lines(chunk_tokens: int | None, temperature: float) -> None:
    logits, targets = example(7, 11)
    weights = torch.linspace(-1, 2, 7, dtype=torch.float64)
    results = []
    for function in (plain, lambda x, y, t: logprobs_and_entropy(x, y, temperature=t, chunk_tokens=chunk_tokens)):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = function(leaf, targets, temperature)
        (gradient,) = torch.autograd.grad((weights * logprobs + weights.flip(0) * entropy).sum(), leaf)
        results.append((logprobs, entropy, gradient))
    for got, expected in zip(results[1], results[0], strict=True):
        assert_close(got, expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_gradcheck_logprobs_and_entropy(temperature: float) -> None:
    logits, targets = example(5, 4)
    logits.requires_grad_()

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return logprobs_and_entropy(x, targets, temperature=temperature, chunk_tokens=2)

    assert torch.autograd.gradcheck(both, (logits,))
    assert torch.autograd.gradcheck(lambda x: both(x)[0], (logits,))
    assert torch.autograd.gradcheck(lambda x: both(x)[1], (logits,))
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, temperature=temperature), (logits,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_logits_give_float32_results_and_their_own_gradient_type(dtype: torch.dtype) -> None:
    logits, targets = example(6, 50, dtype=dtype)
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = logprobs_and_entropy(leaf, targets, chunk_tokens=4)
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected_logprobs, expected_entropy = plain(logits, targets, 1.0)
    assert_close(logprobs.double(), expected_logprobs, atol=1e-5, rtol=1e-5)
    assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), leaf)
    assert gradient.dtype == dtype


def test_token_logprobs_is_the_first_half() -> None:
    logits, targets = example(9, 13)
    assert torch.equal(token_logprobs(logits, targets, chunk_tokens=4), logprobs_and_entropy(logits, targets)[0])
    assert token_logprobs(logits[:0], targets[:0]).shape == (0,)


def test_tokens_that_cannot_be_drawn_add_nothing() -> None:
    logits, targets = example(4, 6)
    barred = torch.cat([logits, torch.full((4, 3), -math.inf, dtype=torch.float64)], dim=1)
    results = []
    for x in (logits, barred):
        leaf = x.clone().requires_grad_()
        logprobs, entropy = logprobs_and_entropy(leaf, targets)
        (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), leaf)
        results.append((logprobs, entropy, gradient[:, :6]))
    for got, expected in zip(results[1], results[0], strict=True):
        assert_close(got, expected)


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, -1e30]]).requires_grad_()
    logprobs, entropy = logprobs_and_entropy(logits, torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad((logprobs + entropy).sum(), logits)
    assert gradient.isfinite().all()
    assert_close(logprobs, torch.tensor([-1e4, -math.log(2)]))
    assert_close(entropy, torch.tensor([0.0, math.log(2)]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_above_zero(temperature: float) -> None:
    logits, targets = example(2, 3)
    for function in (logprobs_and_entropy, token_logprobs):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            function(logits, targets, temperature=temperature)


def test_shapes_and_chunk_sizes_that_do_not_fit_are_refused() -> None:
    logits, targets = example(2, 3)
    with pytest.raises(ValueError, match="chunk_tokens"):
        token_logprobs(logits, targets, chunk_tokens=0)
    with pytest.raises(ValueError, match="need logits"):
        token_logprobs(logits, targets[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_entropy", [True, False])
def test_never_more_than_one_chunk_of_temporaries(dtype: torch.dtype, with_entropy: bool) -> None:
    rows, vocabulary, chunk_tokens = 64, 8192, 8
    one_chunk = chunk_tokens * vocabulary * 4
    small = 20_000  # per-row statistics; a chunk is 262,144 bytes, the logits 1 or 2 MiB
    logits, targets = example(rows, vocabulary, dtype=dtype)
    logits.requires_grad_()

    def forward() -> Tensor:
        if with_entropy:
            logprobs, entropy = logprobs_and_entropy(logits, targets, chunk_tokens=chunk_tokens)
            return (logprobs + entropy).sum()
        return token_logprobs(logits, targets, chunk_tokens=chunk_tokens).sum()

    total = forward()
    forward_peak = peak_bytes(forward)
    backward_peak = peak_bytes(lambda: torch.autograd.grad(total, logits))
    gradient = logits.numel() * logits.element_size()
    assert one_chunk / 3 <= forward_peak <= one_chunk + small
    assert one_chunk / 3 <= backward_peak - gradient <= one_chunk + small


def test_the_peak_meter_sees_what_the_plain_lines_hold() -> None:
    logits, targets = example(64, 8192, dtype=torch.float32)
    assert peak_bytes(lambda: plain(logits, targets, 1.0)) >= 3 * logits.numel() * 8


def test_only_the_logits_and_per_row_statistics_are_saved() -> None:
    logits, targets = example(16, 100)
    logits.requires_grad_()
    saved: list[Tensor] = []

    def remember(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        logprobs_and_entropy(logits, targets)
    large = [tensor for tensor in saved if tensor.numel() > len(targets)]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]
