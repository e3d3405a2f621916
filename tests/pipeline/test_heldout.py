"""Evaluation while the policy trains: the same draws each time, and what it says."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from keel.engines.base import DrawKey
from keel.errors import UserError
from keel.pipeline import heldout
from keel.pipeline.heldout import HeldOut
from keel.pipeline.rollouts import collect_rollout
from keel.records import Rollout, Samples, Scores
from keel.runs.metrics import read_lines
from tests.pipeline.support import PROMPT, Heard, TableScorer, begin_stage
from tests.pipeline.toy_ppo import DRAWS, toy, toy_config, toy_scores


def held_out(*, prompts: int = 12, longest: int = 2) -> HeldOut:
    made = toy(toy_config(sampling={"max_new_tokens": longest}))
    utility = TableScorer("truth", {response: 2 * score for response, score in toy_scores(longest).items()})
    judge = TableScorer("judge", {response: -score for response, score in toy_scores(longest).items()})
    with torch.no_grad():  # a policy that has moved away from its reference
        made.policy.backbone.get_parameter("lm_head.weight").mul_(1.5)
    return replace(made.held_out, utility=utility, judge=judge, prompts=[PROMPT] * prompts)


def test_metrics_are_those_of_its_own_rollout(tmp_path: Path) -> None:
    judged, stage = held_out(), begin_stage(tmp_path, "ppo")
    metrics, peaks = judged.evaluate(3, stage, Heard(), {})
    rollout = collect_rollout(judged.actors, judged.prompts, judged.sampling, DrawKey(DRAWS, "held-out", iteration=0))
    scores, rows = rollout.scores.total, len(judged.prompts)
    kl = sum(
        float(rollout.logprobs[row, t] - rollout.ref_logprobs[row, t])
        for row in range(rows)
        for t in range(int(rollout.sequences.response_lengths[row]))
    )
    assert metrics["eval/scores"] == pytest.approx(float(scores.mean()))
    assert metrics["eval/kl"] == pytest.approx(kl / rows, abs=1e-6)
    assert metrics["eval/kl"] > 0.01
    assert metrics["eval/objective"] == pytest.approx(metrics["eval/scores"] - 0.5 * kl / rows, abs=1e-6)
    assert metrics["eval/utility"] == pytest.approx(2 * metrics["eval/scores"])
    assert metrics["eval/length"] == pytest.approx(float(rollout.sequences.response_lengths.float().mean()))
    assert metrics["eval/ended"] == pytest.approx(float(rollout.samples.ended.float().mean()))
    assert metrics["eval/judge"] == pytest.approx(-metrics["eval/scores"])
    error = float(np.std(scores.numpy())) / math.sqrt(rows)
    assert metrics["eval/judge/standard_error"] == pytest.approx(error)
    assert metrics["eval/utility/standard_error"] == pytest.approx(2 * error)
    lengths = rollout.sequences.response_lengths
    assert metrics["eval/score_length_correlation"] == pytest.approx(np.corrcoef(scores, lengths)[0, 1], abs=1e-6)
    drawn = [float(rollout.logprobs[row, t]) for row in range(rows) for t in range(int(lengths[row]))]
    assert metrics["eval/surprise"] == pytest.approx(-sum(drawn) / len(drawn), abs=1e-6)
    told = [tuple(tokens[:n]) for tokens, n in zip(sequences_of(rollout), lengths.tolist(), strict=True) if n == 2]
    assert metrics["eval/distinct_2"] == pytest.approx(len(set(told)) / len(told))  # each is one pair of tokens
    assert metrics["eval/repetition"] == 0.0  # none has four tokens
    assert metrics["eval/judge/peak"] == metrics["eval/utility/peak"] == 3
    assert metrics["eval/judge/fall_error"] == metrics["eval/utility/fall_error"] == 0.0
    assert {key: (peak.iteration, peak.values) for key, peak in peaks.items()} == {
        "eval/utility": (3, tuple((2 * scores).tolist())),
        "eval/judge": (3, tuple((-scores).tolist())),
    }
    judges = {
        f"{name}{more}" for name in ("utility", "judge") for more in ("", "/standard_error", "/peak", "/fall_error")
    }
    texts = {"length", "ended", "surprise", "distinct_2", "repetition", "score_length_correlation"}
    assert set(metrics) == {f"eval/{name}" for name in {"scores", "kl", "objective", *judges, *texts}}


def test_members_that_disagree_are_measured(tmp_path: Path) -> None:
    judged = held_out()

    class Apart(TableScorer):
        def score(self, samples: Samples) -> Scores:
            found = super().score(samples)
            spread = torch.tensor([-1.0, 1.0]) * torch.arange(len(found.total))[:, None]  # of row n: n
            return replace(found, members={"pair": found.total[:, None] + spread})

    scorer = Apart("pair", toy_scores(2))
    judged = replace(judged, actors=replace(judged.actors, scorer=scorer))
    metrics, _ = judged.evaluate(0, begin_stage(tmp_path, "ppo"), Heard(), {})
    assert metrics["eval/reward/pair/disagreement"] == pytest.approx(sum(range(12)) / 12)


class Spoilt(TableScorer):
    """Not finite for every other response."""

    def score(self, samples: Samples) -> Scores:
        found = super().score(samples)
        bad = torch.arange(len(found.total)) % 2 == 1
        return replace(found, total=torch.where(bad, math.nan, found.total))


@pytest.mark.parametrize(
    ("field", "role"), [("judge", "evaluate.judge (theirs)"), ("utility", "evaluate.utility (theirs)")]
)
def test_a_held_out_score_that_is_not_finite_is_refused_before_anything_is_logged(
    field: str, role: str, tmp_path: Path
) -> None:
    changed: Any = {field: Spoilt("theirs", toy_scores(2))}
    judged, stage, console = replace(held_out(), **changed), begin_stage(tmp_path, "ppo"), Heard()
    with pytest.raises(UserError) as raised:
        judged.evaluate(5, stage, console, {})
    said = str(raised.value)
    assert said.startswith(
        f"ppo: {role} gave 6 of 12 held-out responses a score that is not finite: "
        "nan for row 1, prompt 'a b', response "
    )
    assert re.findall(r"nan for row (\d+)", said) == ["1", "3", "5"]
    assert said.endswith("; and 3 more; mend it, or fork the last checkpoint with another")
    assert read_lines(tmp_path / "ppo" / "samples.jsonl") == []
    assert (console.shown, console.said) == ([], [])


def sequences_of(rollout: Rollout) -> list[list[int]]:
    rows: list[list[int]] = rollout.sequences.response_tokens().tolist()
    return rows


def test_every_evaluation_draws_the_same_numbers(tmp_path: Path) -> None:
    judged, stage = held_out(), begin_stage(tmp_path, "ppo")
    first = judged.evaluate(1, stage, Heard(), {})
    assert judged.evaluate(7, stage, Heard(), first[1]) == first  # and nothing has fallen since


def test_samples_are_kept_and_shown(tmp_path: Path) -> None:
    judged, stage, console = held_out(), begin_stage(tmp_path, "ppo"), Heard()
    judged.evaluate(5, stage, console, {})
    lines = read_lines(tmp_path / "ppo" / "samples.jsonl")
    assert [line["iteration"] for line in lines] == [5] * 8
    assert set(lines[0]) == {"iteration", "prompt", "response", "score", "kl", "ended", "length"}
    assert [{"iteration": 5, **row} for row in console.shown] == lines[:3]
    assert console.said == []  # of an iteration that is not the first


def test_samples_say_what_each_token_adds_to_the_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spell(ids: Sequence[int]) -> list[str]:
        return [f"<{token}>" for token in ids]

    judged, stage = replace(held_out(longest=3), spell=spell), begin_stage(tmp_path, "ppo")
    judged.evaluate(1, stage, Heard(), {})
    monkeypatch.setattr(heldout, "_TOKENS", 2)
    judged.evaluate(2, stage, Heard(), {})
    rollout = collect_rollout(judged.actors, judged.prompts, judged.sampling, DrawKey(DRAWS, "held-out", iteration=0))
    lines = read_lines(tmp_path / "ppo" / "samples.jsonl")
    for row, (whole, cut) in enumerate(zip(lines[:8], lines[8:], strict=True)):
        ids = sequences_of(rollout)[row][: whole["length"]]
        assert whole["tokens"] == spell(ids)
        assert len(whole["token_kl"]) == whole["length"]
        assert sum(whole["token_kl"]) == pytest.approx(whole["kl"], abs=1e-4)
        assert (cut["tokens"], cut["token_kl"]) == (whole["tokens"][:2], whole["token_kl"][:2])
        assert cut["length"] == whole["length"]
    assert {line["length"] for line in lines} > {3}
    assert max(abs(kl) for line in lines for kl in line["token_kl"]) > 0.01


def test_a_start_that_hardly_ends_is_named_once(tmp_path: Path) -> None:
    console = Heard()
    metrics, _ = held_out().evaluate(0, begin_stage(tmp_path, "ppo"), console, {})
    assert metrics["eval/ended"] < 0.5
    assert console.said == [
        f"ppo: warning: {1 - metrics['eval/ended']:.0%} of the responses never end within 2 tokens and are scored as "
        "they stand; raise sampling.max_new_tokens or set shaping.eos_penalty if that is not meant."
    ]


def test_a_rollout_holds_what_each_actor_says() -> None:
    judged = held_out()
    key = DrawKey(DRAWS, "rollout", iteration=4, first_sample=40)
    rollout = collect_rollout(judged.actors, [PROMPT] * 6, judged.sampling, key)
    sequences = rollout.sequences
    assert rollout.policy_version == 4
    assert rollout.group.tolist() == list(range(6))
    torch.testing.assert_close(rollout.logprobs, judged.actors.policy.logprobs(sequences), rtol=0, atol=1e-5)
    assert torch.equal(rollout.ref_logprobs, judged.actors.reference.logprobs(sequences))
    assert torch.equal(rollout.values, judged.actors.policy.values(sequences))
    assert rollout.scores.total.tolist() == judged.actors.scorer.score(rollout.samples).total.tolist()
    assert not torch.equal(rollout.logprobs, rollout.ref_logprobs)
