from __future__ import annotations

import pytest
import torch

from keel.verify.worlds import EOS, NUM_PROMPTS, Reward, World, bandit, list_responses, response_logprobs, sequences


def test_five_symbols_and_four_tokens_make_341_responses_of_which_256_are_cut() -> None:
    tree = sequences("structured").tree
    rows = {
        tuple(row[:length]) for row, length in zip(tree.tokens.tolist(), tree.mask.sum(dim=1).tolist(), strict=True)
    }
    assert len(rows) == len(tree.tokens) == 1 + 4 + 16 + 64 + 256
    assert all(EOS not in row[:-1] for row in rows)
    assert all(len(row) == 4 or row[-1] == EOS for row in rows)
    assert int((~tree.ended).sum()) == 4**4


def test_a_tree_by_hand() -> None:
    """Symbols 0 (end) and 1, at most 2 tokens: 0; 10; 11."""
    tree = list_responses(2, longest=2, eos=0)
    assert tree.tokens.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert tree.mask.tolist() == [[True, False], [True, True], [True, True]]
    assert tree.states.tolist() == [[0, 0], [0, 1], [0, 1]]
    assert tree.ended.tolist() == [True, True, False]
    assert tree.next_state.tolist() == [[-1, 1], [-1, -1]]
    assert tree.response.tolist() == [[0, -1], [1, 2]]


def test_response_logprobs_against_a_walk_token_by_token() -> None:
    world = sequences("structured")
    probs = world.ref_logits.softmax(dim=-1)
    found = response_logprobs(world.tree, world.ref_logits).exp()
    for prompt, response in ((0, 0), (3, 17), (7, 200), (5, 340)):
        state, product = 0, 1.0
        for token in world.tree.tokens[response][world.tree.mask[response]].tolist():
            product *= float(probs[prompt, state, token])
            state = int(world.tree.next_state[state, token])
        assert float(found[prompt, response]) == pytest.approx(product, rel=1e-12)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(NUM_PROMPTS, dtype=torch.float64))


@pytest.mark.parametrize("world", [bandit(), sequences("structured"), sequences("independent")], ids=lambda w: w.name)
def test_rewards_have_mean_0_and_deviation_1_under_the_reference(world: World) -> None:
    probs = response_logprobs(world.tree, world.ref_logits).exp()
    for prompt in range(NUM_PROMPTS):
        mean = sum(p * r for p, r in zip(probs[prompt].tolist(), world.rewards[prompt].tolist(), strict=True))
        var = sum(p * r * r for p, r in zip(probs[prompt].tolist(), world.rewards[prompt].tolist(), strict=True))
        assert mean == pytest.approx(0.0, abs=1e-12)
        assert var == pytest.approx(1.0, abs=1e-12)


def test_a_structured_reward_is_a_sum_of_positions_and_neighbours() -> None:
    """With the first two tokens and their neighbours fixed, what follows adds the same whatever came before."""
    world = sequences("structured")
    number = {tuple(row): n for n, row in enumerate(world.tree.tokens.tolist()) if world.tree.mask[n].all()}
    r = world.rewards[2]
    one = r[number[1, 2, 3, 4]] - r[number[1, 2, 3, 1]]
    other = r[number[4, 4, 3, 4]] - r[number[4, 4, 3, 1]]
    assert float(one) == pytest.approx(float(other), abs=1e-12)
    independent = sequences("independent").rewards[2]
    assert float(independent[number[1, 2, 3, 4]] - independent[number[1, 2, 3, 1]]) != pytest.approx(
        float(independent[number[4, 4, 3, 4]] - independent[number[4, 4, 3, 1]]), abs=1e-3
    )


def test_a_bandit_has_eight_actions_and_no_end_token() -> None:
    world = bandit()
    assert (world.tree.num_states, world.tree.num_symbols, len(world.tree.tokens)) == (1, 8, 8)
    assert world.eos is None
    assert not world.tree.ended.any()


@pytest.mark.parametrize("world", [bandit(), sequences("structured")], ids=lambda w: w.name)
def test_prompts_are_told_apart_by_their_tokens(world: World) -> None:
    assert world.prompt_numbers(world.prompts).tolist() == list(range(NUM_PROMPTS))
    longer = torch.cat([world.prompts.flip(0), torch.ones((NUM_PROMPTS, 3), dtype=torch.long)], dim=1)
    assert world.prompt_numbers(longer).tolist() == list(reversed(range(NUM_PROMPTS)))


@pytest.mark.parametrize("reward", ["structured", "independent"])
def test_a_seed_makes_a_world(reward: Reward) -> None:
    torch.testing.assert_close(sequences(reward).rewards, sequences(reward).rewards, rtol=0, atol=0)
    assert not torch.allclose(sequences(reward).rewards, sequences(reward, seed=1).rewards)
