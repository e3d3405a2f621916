"""What is measured on responses: by PPO while it trains, and by the evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from keel.functional.ensembles import disagreement
from keel.functional.kl import k1
from keel.functional.masked import Moments, masked_mean, masked_var
from keel.records import PromptItem, Rollout, Samples, Scores, Sequences


def distinct_n(token_rows: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams over all n-grams of the responses together (Li et al., 2016); 1 = nothing is said twice."""
    grams = Counter(tuple(row[i : i + n]) for row in token_rows for i in range(len(row) - n + 1))
    return len(grams) / grams.total() if grams else 1.0


def repetition(token_rows: Sequence[Sequence[int]], n: int = 4) -> float:
    """Share of a response's n-grams that stood in it before, averaged over responses with at least one n-gram."""
    shares = []
    for row in token_rows:
        grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0


def response_rows(sequences: Sequences) -> list[list[int]]:
    """The response token ids of each row."""
    tokens = sequences.response_tokens().tolist()
    return [row[:n] for row, n in zip(tokens, sequences.response_lengths.tolist(), strict=True)]


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, over [B]; 0 where one of them is constant."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    spread = float(a.norm() * b.norm())
    return float(a @ b) / spread if spread > 0 else 0.0


def kl_per_response(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The sum of k1 over each response, nats [B]: unbiased for the KL of the sequence, of any sign."""
    return torch.where(mask, k1(logprobs, ref_logprobs), 0.0).sum(dim=1)


def kind_rows(prompts: Sequence[PromptItem]) -> dict[str, list[int]]:
    """The numbers of the prompts of each kind; those whose source names none are left out."""
    kinds = sorted({prompt.kind for prompt in prompts if prompt.kind is not None})
    return {kind: [number for number, prompt in enumerate(prompts) if prompt.kind == kind] for kind in kinds}


def text_metrics(samples: Samples) -> dict[str, float]:
    """Length, ends and variety of the responses."""
    rows = response_rows(samples.sequences)
    return {
        "objective/length": float(samples.sequences.response_lengths.float().mean()),
        "objective/ended": float(samples.ended.float().mean()),
        "text/distinct_2": distinct_n(rows, 2),
        "text/repetition": repetition(rows),
    }


def rollout_metrics(rollout: Rollout, rewards: Tensor, returns: Tensor | None) -> dict[str, float]:
    """Score, leash and critic of one rollout; `rewards` are [B, T], and so are a critic's targets, if there is one."""
    mask = rollout.response_mask
    gaps = kl_per_response(rollout.drawn_logprobs, rollout.ref_logprobs, mask)
    scores = Moments.of(rollout.scores.total)
    metrics = {
        "objective/scores": scores.mean,
        "objective/scores_std": scores.std,
        "objective/rewards": float(rewards.sum(dim=1).mean()),
        "objective/kl": float(gaps.mean()),
        "objective/kl_per_token": float(gaps.sum()) / rollout.sequences.weight,
        "objective/kl_standard_error": Moments.of(gaps).standard_error,
        "objective/surprise": float(-masked_mean(rollout.drawn_logprobs, mask)),
        "objective/score_length_correlation": correlation(
            rollout.scores.total, rollout.sequences.response_lengths.float()
        ),
        **text_metrics(rollout.samples),
    }
    if returns is not None:
        metrics["ppo/val/explained_variance"] = explained_variance(rollout.values, returns, mask)
    if rollout.sampler_logprobs is not None:
        metrics["ppo/policy/lag"] = rollout.samples.lag
        if rollout.samples.lag:
            metrics["ppo/policy/staleness"] = ratio_off(rollout)
        else:
            metrics |= {
                "ppo/policy/sampler_gap": ratio_off(rollout),
                "ppo/policy/sampler_gap_rms": sampler_gap(rollout),
            }
    if int(rollout.group.bincount().max()) > 1:
        metrics["objective/groups_alike"] = share_alike(rollout.scores.total, rollout.group)
    for kind, rows in kind_rows(rollout.samples.prompts).items():
        metrics[f"objective/scores/{kind}"] = float(rollout.scores.total[rows].mean())
    for name, part in rollout.scores.parts.items():
        known = part[~part.isnan()]
        metrics[f"reward/{name}"] = float(known.mean()) if len(known) else float("nan")
        metrics[f"reward/{name}/std"] = Moments.of(known).std if len(known) else float("nan")
        metrics[f"reward/{name}/missing"] = 1 - len(known) / len(part)
    metrics |= {f"reward/{name}/cut": float(cut.float().mean()) for name, cut in rollout.scores.cut.items()}
    return metrics | {f"reward/{name}/disagreement": apart for name, apart in disagreements(rollout.scores).items()}


def disagreements(scores: Scores) -> dict[str, float]:
    """By ensemble: the standard deviation over its members of a response's score, mean over the responses."""
    return {name: float(disagreement(members).mean()) for name, members in scores.members.items()}


def sampler_gap(rollout: Rollout) -> float:
    """Root mean square difference of a token's log-probability, learner against sampler; 0 where they are one."""
    if rollout.sampler_logprobs is None:
        return 0.0
    gaps = (rollout.logprobs - rollout.sampler_logprobs)[rollout.response_mask]
    return float(gaps.square().mean().sqrt())


def ratio_off(rollout: Rollout) -> float:
    """Mean |ratio - 1| of a token, learner against sampler; 0 where they are one.

    Where the sampler drew under older weights, an estimate of twice the total variation between the two policies.
    """
    if rollout.sampler_logprobs is None:
        return 0.0
    gaps = (rollout.logprobs - rollout.sampler_logprobs)[rollout.response_mask]
    return float((gaps.exp() - 1).abs().mean())


def share_alike(scores: Tensor, group: Tensor) -> float:
    """Share of the groups [B] whose responses all have the same score [B]: they teach nothing but the leash."""
    groups = [scores[group == number] for number in torch.unique(group)]
    return sum(float(one.max() - one.min()) == 0.0 for one in groups) / len(groups)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - var(returns - values) / var(returns) over the response tokens; 0 = the critic knows only the mean."""
    spread = float(masked_var(returns, mask))
    return 1 - float(masked_var(returns - values, mask)) / spread if spread > 0 else 0.0
