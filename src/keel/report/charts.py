"""Which metrics each stage's figures draw, and what a healthy one looks like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """One to three metrics in one figure; `names` are those of the lines, where there is more than one."""

    title: str
    note: str
    solid: str
    dashed: str = ""
    dotted: str = ""
    names: tuple[str, str] = ("rollouts", "held-out")
    percent: bool = False
    smooth: bool = True
    healthy: tuple[float, float] | None = None
    from_start: bool = False  # whether the value at the start is drawn to compare with
    minor: bool = False


TRAINING = ("training", "validation")

SFT = (
    Chart(
        "Loss",
        "Nats a response token. Healthy: both fall and flatten; validation turning up is overfitting.",
        "sft/loss",
        dashed="sft/validation/loss",
        names=TRAINING,
    ),
    Chart("Gradient norm", "Before clipping. Healthy: settles within the first tenth.", "sft/grad_norm", minor=True),
    Chart("Learning rate", "Warm-up, then the schedule.", "sft/lr", smooth=False, minor=True),
)

ACCURACY = Chart(
    "Accuracy",
    "Share of pairs in which the chosen response scores higher. Healthy: near what the annotator’s noise allows, well "
    "above always picking the longer response.",
    "reward/accuracy",
    dashed="reward/validation/accuracy",
    names=TRAINING,
    percent=True,
)
REWARD_LOSS = Chart(
    "Loss",
    "Nats a pair, ranking or rating. Healthy: falls, validation close behind.",
    "reward/loss",
    dashed="reward/validation/loss",
    names=TRAINING,
)
REWARD = (
    Chart(
        "Margin",
        "Score of the chosen minus that of the rejected response, before scaling. Healthy: grows, then flattens.",
        "reward/margin",
        dashed="reward/validation/margin",
        names=TRAINING,
        minor=True,
    ),
    Chart("Gradient norm", "Before clipping. Healthy: no growth towards the end.", "reward/grad_norm", minor=True),
)

PREFERENCES = (
    Chart(
        "Loss",
        "Of the chosen method, a preference. Healthy: falls, validation close behind.",
        "direct/loss",
        dashed="direct/validation/loss",
        names=TRAINING,
    ),
    Chart(
        "Accuracy",
        "Share of the preferences on the right side of the policy’s implicit reward. Healthy: rises, validation with "
        "it; it says nothing of what the policy itself writes.",
        "direct/accuracy",
        dashed="direct/validation/accuracy",
        names=TRAINING,
        percent=True,
    ),
    Chart(
        "Implicit margin",
        "Implicit reward of the chosen minus that of the rejected response. Healthy: grows, then flattens; without end "
        "the policy leaves its reference behind.",
        "direct/margin",
        dashed="direct/validation/margin",
        names=TRAINING,
    ),
    Chart(
        "Implicit rewards",
        "Of held-out preferences. Healthy: the chosen one above the rejected one; both falling together means that "
        "likelihood goes to responses nobody compared.",
        "direct/validation/reward/chosen",
        dotted="direct/validation/reward/rejected",
        names=("chosen", "rejected"),
        smooth=False,
    ),
    Chart(
        "Log-probability of the responses",
        "Of held-out preferences, nats a response. Healthy: the chosen one does not fall far.",
        "direct/validation/logprobs/chosen",
        dotted="direct/validation/logprobs/rejected",
        names=("chosen", "rejected"),
        smooth=False,
    ),
    Chart(
        "Reference point",
        "KTO’s z₀: how far the policy is from its reference on responses to other prompts, nats. Healthy: small.",
        "direct/reference_point",
        minor=True,
    ),
    Chart("Gradient norm", "Before clipping. Healthy: no growth towards the end.", "direct/grad_norm", minor=True),
    Chart("Learning rate", "Warm-up, then the schedule.", "direct/lr", smooth=False, minor=True),
)

SCORE = Chart(
    "Score",
    "The rewards’ weighted sum. Healthy: rises and flattens, held-out close to the rollouts.",
    "objective/scores",
    dashed="eval/scores",
)
UTILITY = Chart(
    "True utility",
    "On held-out prompts, by the known rule. Healthy: rises with the score; falling while it rises is "
    "over-optimisation.",
    "eval/utility",
    smooth=False,
)
JUDGE = Chart(
    "Judge’s score",
    "On held-out prompts, by a reward that is not trained on. Healthy: rises with the score.",
    "eval/judge",
    smooth=False,
)
KL = Chart(
    "KL to the reference",
    "Nats a response. Healthy: rises to its target, or flattens where β holds it; never below 0.",
    "objective/kl",
    dashed="eval/kl",
)
PPO = (
    Chart(
        "Length",
        "Tokens a response. Healthy: stays near its start, unless length is what is preferred.",
        "objective/length",
        dashed="eval/length",
        from_start=True,
    ),
    Chart(
        "Entropy",
        "Nats a token, over the whole vocabulary. Healthy: falls slowly; near 0 exploration is over, above its start "
        "the policy writes what it finds unlikely itself.",
        "ppo/policy/entropy",
        dotted="objective/surprise",
        names=("entropy", "−log π as drawn"),
    ),
    Chart(
        "Explained variance",
        "Share of the returns’ variance that the critic foresees. Healthy: above 0 soon, towards 1.",
        "ppo/val/explained_variance",
        healthy=(0.0, 1.0),
    ),
    Chart(
        "Objective",
        "Score minus β·KL on held-out prompts: what picks the best checkpoint. Healthy: rises, then flattens.",
        "eval/objective",
        smooth=False,
        minor=True,
    ),
    Chart(
        "KL coefficient β",
        "Fixed, or steered so that the KL meets its target. Healthy: constant or settling.",
        "objective/kl_coef",
        smooth=False,
        minor=True,
    ),
    Chart(
        "Shaped return",
        "Sum of the token rewards: score minus the leash’s price. Healthy: rises.",
        "objective/rewards",
        minor=True,
    ),
    Chart(
        "Spread of the scores",
        "Standard deviation in a rollout. Healthy: above 0; at 0 only the leash teaches.",
        "objective/scores_std",
        minor=True,
    ),
    Chart(
        "Ended by itself",
        "Share of responses with an end token within the limit. Healthy: near 100%.",
        "objective/ended",
        dashed="eval/ended",
        percent=True,
        healthy=(0.9, 1.0),
        minor=True,
    ),
    Chart(
        "Variety",
        "Distinct pairs of tokens, and four-grams that were said before. Healthy: neither jumps.",
        "text/distinct_2",
        dotted="text/repetition",
        names=("distinct-2", "repetition"),
        percent=True,
        minor=True,
    ),
    Chart(
        "Score–length correlation",
        "Healthy: moderate; near 1 the score has become a ruler.",
        "objective/score_length_correlation",
        dashed="eval/score_length_correlation",
        healthy=(-0.8, 0.8),
        minor=True,
    ),
    Chart(
        "Clip fraction",
        "Share of tokens whose ratio was clipped. Healthy: below about 20%.",
        "ppo/policy/clipfrac",
        percent=True,
        healthy=(0.0, 0.2),
        minor=True,
    ),
    Chart(
        "Groups alike",
        "Share of the prompts whose responses all score alike: only the leash teaches there. Healthy: below a half.",
        "objective/groups_alike",
        percent=True,
        healthy=(0.0, 0.5),
        minor=True,
    ),
    Chart(
        "Pairs on the right side",
        "Online DPO: share whose preferred response has the higher implicit reward. Healthy: above a half.",
        "ppo/pairs/accuracy",
        percent=True,
        minor=True,
    ),
    Chart(
        "KL to the old policy",
        "Approximate, nats a token, within one update. Healthy: small and steady.",
        "ppo/policy/approxkl",
        minor=True,
    ),
    Chart(
        "Ratio’s largest gap from 1",
        "Over all minibatches. Healthy: bounded; jumps mean too large a step.",
        "ppo/policy/ratio_gap",
        minor=True,
    ),
    Chart(
        "Gap to the sampler",
        "Mean |π_old/π_sampler − 1| a token, where they compute in other precisions. Healthy: below 0.02.",
        "ppo/policy/sampler_gap",
        healthy=(0.0, 0.02),
        minor=True,
    ),
    Chart(
        "Staleness",
        "Mean |π_old/π_sampler − 1| a token, where a batch is drawn an update early. Healthy: below 0.1, steady.",
        "ppo/policy/staleness",
        minor=True,
    ),
    Chart("Policy loss", "Clipped. Its level means little, its drift does.", "ppo/loss/policy", minor=True),
    Chart("Value loss", "Healthy: falls, then follows the spread of the returns.", "ppo/loss/value", minor=True),
    Chart("Gradient norm", "Before clipping. Healthy: steady.", "ppo/grad_norm", minor=True),
    Chart("Speed", "Tokens of responses a second, rollout and update together.", "time/tokens_per_second", minor=True),
)
