"""Draws depend on their name alone, and are uniform and fair."""

from __future__ import annotations

import numpy as np
import pytest

from keel.seeds import Draws

DRAWS = Draws(seed=7, stage="ppo")


def test_the_stream_is_philox_under_the_blake2b_key() -> None:
    # Key computed by `printf '[7, "ppo", "sampling", 3, 11]' | b2sum -l 128`, read as a little-endian number.
    key = int.from_bytes(bytes.fromhex("91cb11e03c562e8ec5106af03c41ba88"), "little")
    expected = np.random.Generator(np.random.Philox(key=key)).random(4)
    np.testing.assert_array_equal(DRAWS.generator("sampling", iteration=3, sample=11).random(4), expected)


def test_every_part_of_the_name_counts() -> None:
    streams = [
        DRAWS.generator("a").random(),
        DRAWS.generator("b").random(),
        DRAWS.generator("a", iteration=1).random(),
        DRAWS.generator("a", sample=1).random(),
        Draws(seed=8, stage="ppo").generator("a").random(),
        Draws(seed=7, stage="sft").generator("a").random(),
    ]
    assert len(set(streams)) == len(streams)
    assert streams[0] == Draws(seed=7, stage="ppo").generator("a").random()


def test_neighbouring_parts_of_the_name_are_kept_apart() -> None:
    assert Draws(0, "ab").generator("c").random() != Draws(0, "a").generator("bc").random()
    assert (
        DRAWS.generator("a", iteration=1, sample=23).random() != DRAWS.generator("a", iteration=12, sample=3).random()
    )


def test_a_row_depends_on_its_sample_alone() -> None:
    together = DRAWS.uniforms("sampling", iteration=2, samples=[5, 9, 1], length=6)
    assert together.shape == (3, 6)
    for row, sample in enumerate([5, 9, 1]):
        alone = DRAWS.uniforms("sampling", iteration=2, samples=[sample], length=6)
        np.testing.assert_array_equal(together[row], alone[0])
    assert len(np.unique(together)) == together.size


def test_a_longer_row_extends_the_shorter_one() -> None:
    short = DRAWS.uniforms("sampling", iteration=2, samples=[5], length=3)
    long = DRAWS.uniforms("sampling", iteration=2, samples=[5], length=64)
    np.testing.assert_array_equal(long[:, :3], short)


def test_no_samples_no_rows() -> None:
    assert DRAWS.uniforms("sampling", iteration=0, samples=[], length=3).shape == (0, 3)


def test_uniforms_are_uniform_along_positions_and_across_samples() -> None:
    drawn = DRAWS.uniforms("sampling", iteration=0, samples=range(400), length=100)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    # 40,000 uniforms: standard errors .00144 of the mean, .00037 of the variance; of a correlation .005.
    assert drawn.mean() == pytest.approx(1 / 2, abs=0.006)
    assert drawn.var() == pytest.approx(1 / 12, abs=0.0015)
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.02


def test_permutation_holds_every_index_once_and_changes_with_the_iteration() -> None:
    first, second = DRAWS.permutation("order", 50), DRAWS.permutation("order", 50, iteration=1)
    assert sorted(first.tolist()) == list(range(50))
    assert sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.dtype == np.int64


def test_torch_seed_has_63_bits_and_differs_by_purpose() -> None:
    seeds = [DRAWS.torch_seed(f"weights {i}") for i in range(64)]
    assert len(set(seeds)) == 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_an_integer_names_one_sample_of_one_iteration() -> None:
    names = [("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("b", 0, 0)]
    assert len({DRAWS.integer(purpose, iteration=i, sample=s) for purpose, i, s in names}) == 4
    assert DRAWS.integer("a") == DRAWS.torch_seed("a")


@pytest.mark.parametrize("start", [0, 3, 7, 23])
def test_batches_walk_through_the_epochs_in_order(start: int) -> None:
    endless = [index for epoch in range(6) for index in DRAWS.permutation("order", 7, iteration=epoch).tolist()]
    assert DRAWS.batch_indices("order", 7, batch=17, start=start) == endless[start : start + 17]


def test_two_batches_are_one_batch_of_twice_the_size() -> None:
    whole = DRAWS.batch_indices("order", 10, batch=12, start=4)
    halves = [DRAWS.batch_indices("order", 10, batch=6, start=start) for start in (4, 10)]
    assert halves[0] + halves[1] == whole


@pytest.mark.parametrize(("n", "batch", "start"), [(0, 1, 0), (3, -1, 0), (3, 1, -1)])
def test_impossible_batches_are_refused(n: int, batch: int, start: int) -> None:
    with pytest.raises(ValueError, match=f"cannot take {batch} of {n} items from position {start}"):
        DRAWS.batch_indices("order", n, batch=batch, start=start)
