"""The benchmarks' own arithmetic and refusals, and Keel's side of them at a minuscule size; no peer is needed."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import active_selection, comparison, dpo, gpu, growth, over_optimisation, ppo, profile, reward, sft
from benchmarks.comparison import UnequalWork, Work, require_same_work
from benchmarks.keel_side import Counted
from benchmarks.measure import Round, Side, Spread, memory_of, peak_memory, rates, shares
from benchmarks.models import EOS, FIRST_WORD, PAD, Models, Size, as_text, end_probability, make_models, random_texts
from benchmarks.table import markdown
from keel.config.recipe import parse_recipe

TINY = Size(hidden=16, layers=1, heads=2, intermediate=32, vocab=64)
WORK = Work("Toy", "rows", exact=("rows",), sampled=("tokens",))


def side(name: str, *rounds: tuple[float, int, int], loss: float | None = None) -> Side:
    """(seconds, rows, tokens) a round."""
    done = tuple(Round(seconds, {"rows": rows, "tokens": tokens}) for seconds, rows, tokens in rounds)
    return Side(name, done, peak_memory=3 * 2**20, first_loss=loss)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(TINY, tmp_path_factory.mktemp("models"), mean_length=4, max_length=8)


def spec_of(models: Models, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "models": models.paths(),
        "vocab": TINY.vocab,
        "rounds": 1,
        "lr": 1e-6,
        "seed": 0,
        "threads": 1,
        "bf16": False,
        "scratch": str(folder),
        **more,
    }


def test_spread_is_median_and_range() -> None:
    assert Spread.of([4.0, 1.0, 10.0]) == Spread(4.0, 1.0, 10.0)
    assert str(Spread(1234.5, 0.5, 2000.0)) == "1,234 (0.5–2,000)"
    with pytest.raises(ValueError, match="no round"):
        Spread.of([])


def test_rates_are_of_each_round() -> None:
    assert rates(side("keel", (2.0, 8, 0), (1.0, 8, 0), (4.0, 8, 0)), "rows") == Spread(4.0, 2.0, 8.0)


def test_shares_are_useful_operations_over_what_the_peak_would_do() -> None:
    one = Round(4.0, {}, {"first": 1.0, "second": 2.0})
    assert shares(Side("keel", (one,), 0), lambda _: {"first": 10.0, "second": 30.0}, peak=20.0) == {
        "all": 0.5,
        "first": 0.5,
        "second": 0.75,
    }


def test_the_peak_is_what_the_kernel_says_otherwise() -> None:
    other = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # which a parent's may raise
    assert other / 2 < peak_memory() < 1.1 * other


def test_equal_work_passes() -> None:
    ours, theirs = side("keel", (1.0, 8, 100), loss=2.0), side("peer", (2.0, 8, 86), loss=2.00001)
    require_same_work(WORK, ours, theirs, loss_tolerance=1e-4)


@pytest.mark.parametrize(
    ("theirs", "what"),
    [
        (side("peer", (1.0, 9, 100), loss=2.0), "round 1: rows: keel 8, peer 9"),
        (side("peer", (1.0, 8, 84), loss=2.0), "tokens a round: keel 100.0, peer 84.0"),
        (side("peer", (1.0, 8, 100), loss=2.1), "the first step's loss"),
        (side("peer", (1.0, 8, 100), (1.0, 8, 100), loss=2.0), "1 rounds, peer 2"),
    ],
)
def test_unequal_work_is_named(theirs: Side, what: str) -> None:
    with pytest.raises(UnequalWork, match=what):
        require_same_work(WORK, side("keel", (1.0, 8, 100), loss=2.0), theirs, loss_tolerance=1e-4)


def run_main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, theirs: Side) -> Path:
    """The command with both sides given; where its figures are."""
    benchmark = comparison.Benchmark(
        module="benchmarks.toy",
        work=WORK,
        peers={"peer": ppo.BENCHMARK.peers["trl"]},
        specify=lambda options, size: {},
        measure=lambda spec: theirs,
        flops=lambda size, spec, one: {"all": 1e9},
    )
    monkeypatch.setattr(comparison, "make_models", lambda size, folder, **lengths: Models(tmp_path))
    monkeypatch.setattr(comparison, "matrix_peaks", lambda variables: {"fp32": 1e9})
    monkeypatch.setattr(comparison, "run_keel", lambda module, spec, variables: side("keel", (1.0, 8, 100)))
    monkeypatch.setattr(comparison, "run_peer", lambda peer, spec, variables: theirs)
    written = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["toy", "--against", "peer", "--json", str(written)])
    comparison.main(benchmark)
    return written


def test_no_ratio_where_the_work_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run_main(monkeypatch, tmp_path, side("peer", (1.0, 7, 100)))
    assert str(left.value) == "No ratio: the two sides did not do the same work (round 1: rows: keel 8, peer 7)."
    assert " x" not in capsys.readouterr().out
    assert not (tmp_path / "figures.json").exists()


def test_the_ratio_is_of_the_medians(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = run_main(monkeypatch, tmp_path, side("peer", (4.0, 8, 110)))
    figures = json.loads(written.read_text())
    assert figures["ratio"] == 4.0
    assert figures["ratio_a_token"] == pytest.approx(100 / (110 / 4))
    assert figures["memory_ratio"] == 1.0
    assert [one["share"]["all"] for one in figures["sides"]] == [1.0, 0.25]
    assert "rate 4.00 x (3.64 x for each token), memory 1.00 x" in capsys.readouterr().out
    figures["machine"]["keel"] = "0123456789+"
    row = "| Toy, small (0123456) | 8 (8–8) rows/s | peer: 2 (2–2) | **4.00 ×** (3.64 × a token) |"
    assert row in markdown([figures])


def test_ends_come_at_the_mean_that_is_asked_for() -> None:
    p = end_probability(30, 64)
    mean = sum(n * p * (1 - p) ** (n - 1) for n in range(1, 64)) + 64 * (1 - p) ** 63
    assert mean == pytest.approx(30, rel=1e-9)


@torch.no_grad()
def test_the_policy_ends_by_itself_and_never_pads(models: Models) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.tensor(random_texts(64, 12, 12, TINY.vocab, seed=9))
    assert int(tokens.min()) >= FIRST_WORD
    for path, low, high in ((models.policy, 0.5, 2.0), (models.endless, 0.0, 1e-6)):
        kind: Any = AutoModelForCausalLM
        probabilities = kind.from_pretrained(path)(tokens).logits.softmax(dim=-1)
        wanted = end_probability(4, 8)
        assert low * wanted <= float(probabilities[..., EOS].mean()) <= high * wanted
        assert float(probabilities[..., PAD].max()) < 1e-6


def test_useful_operations_of_ppo_by_hand() -> None:
    size = Size(hidden=2, layers=1, heads=1, intermediate=3, vocab=10)
    assert (size.body, size.head) == (4 * 4 + 3 * 6, 20)
    done = Round(1.0, {"episodes": 1, "tokens sampled": 5})
    spec = {"prompt_length": 5, "epochs": 2, "critic": "network", "tune": "full"}
    once = 34 * 10 + 20 * 5  # ten tokens through the body, five states through the head
    assert ppo.flops(size, spec, done) == {
        "sampling": 2 * once,
        "scoring": 2 * (once + 2 * 340),
        "updating": 6 * 2 * (once + 340),
    }
    assert ppo.flops(size, spec | {"critic": "head", "tune": "lora"}, done)["updating"] == 4 * 2 * once


def test_keel_does_the_work_of_ppo(models: Models, tmp_path: Path) -> None:
    prompts = [as_text(tokens) for tokens in random_texts(16, 6, 6, TINY.vocab, seed=1)]
    layout = {"critic": "network", "tune": "full", "on_base": None}
    spec = spec_of(models, tmp_path, prompts=prompts, batch=8, epochs=2, minibatches=4, max_length=8, **layout)
    (done,) = ppo.measure(spec).rounds
    sampled = done.counts["tokens sampled"]
    assert 8 <= sampled <= 64
    assert done.counts == {
        "episodes": 8,
        "tokens sampled": sampled,
        "tokens trained": 2 * (8 * 6 + sampled),
        "optimiser steps": 8,
    }
    assert sum(done.parts.values()) == pytest.approx(done.seconds, abs=1e-3)


def test_a_learner_is_counted_over_its_micro_batches() -> None:
    class Learner:
        def step(self, batches: list[str], check: object) -> int:
            return len(batches)

    learner: Any = Learner()
    counted = Counted(learner, tokens=len)
    assert counted.step(["abc", "de"]) == 2
    assert counted.tokens == 5


def test_keel_does_the_work_of_given_rows(models: Models, tmp_path: Path) -> None:
    texts = random_texts(8, 6, 12, TINY.vocab, seed=2)
    common = {"batch": 2, "steps": 2}
    tokens = sum(map(len, texts[4:]))  # the first two steps warm up
    trained = sft.measure(spec_of(models, tmp_path / "sft", rows=texts, **common))
    assert trained.rounds[0].counts == {"tokens trained": tokens, "optimiser steps": 2}

    pairs = {"chosen": texts, "rejected": texts[::-1]}
    judged = reward.measure(spec_of(models, tmp_path / "reward", **pairs, **common))
    both = tokens + sum(map(len, texts[:4]))
    assert judged.rounds[0].counts == {"pairs": 4, "tokens trained": both, "optimiser steps": 2}

    prompts = random_texts(8, 3, 3, TINY.vocab, seed=3)
    preferred = dpo.measure(spec_of(models, tmp_path / "dpo", prompts=prompts, beta=0.1, micro=2, **pairs, **common))
    ends = 4 * 2 * (3 + 1)  # each text's prompt and end token
    assert preferred.rounds[0].counts == {"pairs": 4, "tokens trained": both + ends, "optimiser steps": 2}


def test_memory_is_that_of_the_work_alone() -> None:
    torch.zeros(40 * 2**20)  # 160 MiB, freed, that hide nothing
    made, taken = memory_of(lambda: torch.zeros(10 * 2**20))  # 40 MiB of zeros, written
    assert made.nbytes == 40 * 2**20
    assert 0.9 * made.nbytes < taken < 1.3 * made.nbytes


def test_slopes_by_hand() -> None:
    assert growth.slope([1, 2, 4], [5, 20, 80]) == pytest.approx(2)
    assert growth.slope([10, 1000], [7, 7]) == pytest.approx(0)
    # Logarithms to base 2 of the heights 0, 3, 2 over 0, 1, 2: the least squares' slope is (2 - 0) / 2.
    assert growth.slope([1, 2, 4], [1, 8, 4]) == pytest.approx(1)
    with pytest.raises(ValueError, match="two points, got 1"):
        growth.slope([1], [1])


def test_operations_of_a_point_by_hand() -> None:
    at = growth.Point(Size(hidden=2, layers=1, heads=1, intermediate=3, vocab=10), batch=2, length=1)
    tokens, pairs = 2 * 33, 2 * 33 * 34 / 2
    body, head = 2 * 34 * tokens + 4 * 2 * pairs, 2 * 20 * 2
    assert growth.operations(at) == {
        "sampling": body + head,
        "scoring": 2 * body + head,
        "updating": 3 * (body + head),
        "log-probabilities": 3 * head,
    }


def test_what_grows_faster_than_its_mathematics_is_said() -> None:
    (sweep, *_) = growth.SWEEPS
    seconds = [dict.fromkeys(growth.PARTS, float(at.batch)) for at in sweep.points]
    memory = [one | {"updating": one["updating"] ** 2} for one in seconds]
    found = growth.slopes(sweep, {"seconds": seconds, "bytes": memory})
    assert [one.part for one in found if one.exceeds] == ["updating"]
    said = growth.table(found)
    assert "| batch | updating | 1.00 (1.00) | 2.00 (1.00) |" in said
    assert said.splitlines()[-1].startswith("updating: the bytes against the batch rise by 2.00")
    by_length = growth.slopes(growth.SWEEPS[1], {"seconds": seconds, "bytes": seconds})
    assert by_length[0].allowed == pytest.approx(1)  # sampling's steps
    assert by_length[2].allowed < 1  # scoring: the prompts do not grow
    assert "Nothing grows faster" in growth.table(growth.slopes(sweep, {"seconds": seconds, "bytes": seconds}))


def test_growth_measures_every_part(models: Models, tmp_path: Path) -> None:
    prompts = [as_text(tokens) for tokens in random_texts(8, 6, 6, TINY.vocab, seed=1)]
    layout = {"critic": "head", "on_base": None, "epochs": 1, "minibatches": 1}
    spec = spec_of(models, tmp_path, prompts=prompts, batch=4, max_length=8, **layout)
    first, second = growth.measure(spec).rounds
    assert set(first.parts) == set(second.parts) == set(first.memory) == set(growth.PARTS)
    assert not second.memory  # whose measuring costs time


def test_the_profile_leaves_nothing_out() -> None:
    linear = torch.nn.Linear(64, 64)
    optimiser = torch.optim.AdamW(linear.parameters())

    def work() -> None:
        linear(torch.randn(64, 64)).softmax(dim=-1).square().sum().backward()
        optimiser.step()

    found = profile.shares_of(work)
    assert set(found) == set(profile.GROUPS)
    assert sum(found.values()) == pytest.approx(1)
    for group in ("matrix products", "softmax", "elementwise", "optimiser and the gradient's norm", profile.REST):
        assert found[group] > 0, group
    assert found["attention"] == found["log-probabilities and entropy"] == 0


@pytest.mark.parametrize(
    ("scopes", "group"),
    [
        (["aten::linear", "aten::addmm"], "matrix products"),
        (["aten::add_"], "elementwise"),
        (["aten::__and__"], "elementwise"),
        (["Optimizer.step#AdamW.step", "aten::add_"], "optimiser and the gradient's norm"),
        (["aten::_foreach_norm", "aten::linalg_vector_norm"], "optimiser and the gradient's norm"),
        (["_RowStatistics", "aten::log_softmax", "aten::_log_softmax"], "log-probabilities and entropy"),
        (["aten::log_softmax", "aten::_log_softmax"], "softmax"),
        (["autograd::engine::evaluate_function: MmBackward0"], "autograd's own"),
        (["autograd::engine::evaluate_function: MmBackward0", "MmBackward0", "aten::mm"], "matrix products"),
        (["aten::never_heard_of"], "other operations"),
    ],
)
def test_an_operation_has_one_group(scopes: list[str], group: str) -> None:
    assert profile.group_of(scopes) == group


def test_the_bytes_of_sampling_by_hand() -> None:
    size = Size(hidden=2, layers=3, heads=1, intermediate=3, vocab=10)
    weights, positions = 2 * (3 * 34 + 20), 4 * (5 + 6)  # twice the weights; four rows of 5 and of 6 positions
    assert gpu.sampled_bytes(size, batch=4, prompt_length=5, length=2) == 2 * (weights + 2 * 3 * 2 * positions)


def test_without_a_gpu_the_gpu_table_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.count(".") == 1


def test_every_arm_of_over_optimisation_is_a_recipe(tmp_path: Path) -> None:
    for arm in over_optimisation.ARMS:
        tree = over_optimisation.recipe(3, arm, tmp_path)
        found = parse_recipe(tree, arm)
        assert found.ppo is not None
        assert (found.ppo.kl.coef == 0) == (not arm.startswith("leash"))
        assert (found.ppo.evaluate.judge is None) == (arm == "stop-at-peak")


def test_rewards_and_judge_share_no_prompt(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{number // 3}", "chosen": str(number)} for number in range(3 * 700)]
    file = tmp_path / "comparisons.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    over_optimisation.split(file, tmp_path)
    few, others = (
        [json.loads(line)["prompt"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("few.jsonl", "others.jsonl")
    )
    assert (len(few), len(set(few))) == (3 * over_optimisation.SMALL, over_optimisation.SMALL)
    assert (len(others), len(set(others))) == (3 * 350, 350)
    assert not set(few) & set(others)


def test_labels_for_a_level_are_those_from_which_three_batches_hold_it() -> None:
    curve = {64: 0.6, 128: 0.9, 192: 0.6, 256: 0.8, 320: 0.8, 384: 0.8}
    assert active_selection.labels_for(curve, 0.7) == 128  # mean of 0.6, 0.9, 0.6
    assert active_selection.labels_for(curve, 0.8) == 320
    assert active_selection.labels_for(curve, 0.9) is None


def test_heads_learn_what_a_line_decides_and_doubtful_pairs_come_first() -> None:
    """Of states whose first number is the utility, most pairs of the held-out half are right after 64 labels."""
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(400, 2, active_selection.WIDTH, generator=draw)
    better = states[:, 0, 0] > states[:, 1, 0]
    pairs = active_selection.Pairs(states, better, better)
    heads = active_selection.Heads(0)
    heads.learn(pairs, draw)
    gaps = heads.gaps(states)
    assert gaps.shape == (400, active_selection.MEMBERS)
    assert float(((gaps.mean(dim=1) > 0) == better).double().mean()) > 0.9
    closest = active_selection.ARMS["toss"](gaps, draw).argsort(descending=True)
    assert gaps.mean(dim=1)[closest].abs().tolist() == sorted(gaps.mean(dim=1).abs().tolist())
