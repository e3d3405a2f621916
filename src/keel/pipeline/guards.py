"""Refuse or warn, never go on silently: the checks of a PPO iteration."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from keel.config.servers import ServersConfig
from keel.errors import UserError
from keel.instruments.alarms import alarms
from keel.pipeline.measures import ratio_off, sampler_gap
from keel.records import Rollout
from keel.runs.fork import measured_since
from keel.runs.layout import METRICS
from keel.runs.metrics import read_lines
from keel.runs.run import StageRun
from keel.tally import Tally

RATIO_TOLERANCE = 1e-3  # of the largest |ratio - 1|: float32, same kernels; 1e-5 is usual
ROUGH_RATIO_TOLERANCE = 0.1  # of the root mean square of log ratios: bfloat16, where single tokens are off by as much
_KL_STREAK = 3


def require_unit_ratio(
    seen: Tally, rollout: Rollout, explain: Callable[[Rollout], str], tolerance: float = RATIO_TOLERANCE
) -> None:
    """Before any weight moved, pi / pi_old must be 1 on the first minibatch; else sampler and learner disagree.

    Where the sampler computes otherwise than the learner, its own ratio to the learner is held to 1 as well, unless it
    drew under older weights, and what must be small is the root mean square of log ratios, for a token that is
    improbable may be off by much.
    Raises UserError with the cause that fits.
    """
    if rollout.sampler_logprobs is None:
        gaps = [seen.extremes["ppo/policy/ratio_gap"]]
    else:
        learner = seen.means()["ppo/policy/approxkl"]  # r - 1 - log r, about log(r)^2 / 2
        gaps = [math.sqrt(abs(2 * learner)), 0.0 if rollout.samples.lag else sampler_gap(rollout)]
    beyond = [gap for gap in gaps if not gap <= tolerance]  # NaN too
    if not beyond:
        return
    raise UserError(
        f"ppo: before any update the ratio pi/pi_old is off by {beyond[0]:.3g} (at most {tolerance:g} is rounding): "
        f"the sampler and the learner do not compute the same probabilities. {explain(rollout)}"
    )


def require_near_servers(rollout: Rollout, servers: ServersConfig | None, explain: Callable[[Rollout], str]) -> None:
    """What inference servers drew must be nearly the trainer's own: the importance weights mend no more than that.

    Of a batch that was drawn ahead the gap holds an update of the policy, which has a limit of its own.
    Raises UserError with the cause that fits.
    """
    if servers is None:
        return
    if rollout.samples.lag:
        _require_fresh(ratio_off(rollout), servers)
        return
    gap = sampler_gap(rollout)
    if not gap <= servers.max_logprob_gap:  # NaN too
        raise UserError(
            f"ppo: the servers' log-probabilities differ from the trainer's by {gap:.3g} (root mean square a token; "
            f"ppo.servers.max_logprob_gap is {servers.max_logprob_gap:g}). {explain(rollout)}"
        )


def _require_fresh(staleness: float, servers: ServersConfig) -> None:
    if not staleness <= servers.max_staleness:  # NaN too
        raise UserError(
            f"ppo: between a batch that was drawn ahead and its update a token's ratio went {staleness:.3g} from 1 on "
            f"average (ppo.servers.max_staleness is {servers.max_staleness:g}): lower ppo.update.lr or "
            "ppo.update.epochs, or leave ppo.servers.overlap out; where neither is large, a server kept old weights"
        )


def watch_kl_sign(metrics: dict[str, float], streak: int, warn: Callable[[str], None]) -> int:
    """How many iterations in a row the mean KL estimate was impossibly negative; warns, and stops at the third.

    A single response's k1 may have any sign; a batch mean below -5 standard errors and -1e-3 means that the
    sampler and the scorer of the reference disagree (math.md §3).
    """
    kl, error = metrics["objective/kl"], metrics["objective/kl_standard_error"]
    if not (kl < -5 * error and kl < -1e-3):
        return 0
    sentence = (
        f"the KL to the reference is {kl:.3g} nats a response, {-kl / max(error, 1e-12):.0f} standard errors below 0, "
        "which no true KL can be: the sampler and the reference disagree (temperature, padding, other weights)"
    )
    if streak + 1 >= _KL_STREAK:
        raise UserError(f"ppo: {_KL_STREAK} iterations in a row, {sentence}")
    warn(f"ppo: warning: {sentence}.")
    return streak + 1


def watch_instruments(stage: StageRun, after: int, say: Callable[[str], None]) -> None:
    """Say, once, which instruments of over-optimisation the evaluation just logged finds out of their range.

    What was logged is all that they go by, so a resumed run says what an uninterrupted one does.
    """
    rows = read_lines(stage.path / METRICS)
    for alarm in alarms(rows, after, measured_since(stage.path)):
        if alarm.iteration == rows[-1]["iteration"]:
            say(f"ppo: alarm: {alarm.raised}.")


def require_ends(ended: Tensor, max_truncated: float, max_new_tokens: int) -> None:
    """Responses that never end are scored as they stand; where nearly all do, the reward is not what it seems.

    `ended` is bool [B]. Raises UserError where a larger share than `max_truncated` was cut at the length limit.
    """
    truncated = 1 - float(ended.double().mean())
    if truncated > max_truncated:
        raise UserError(
            f"ppo: {truncated:.0%} of a rollout's responses never end within {max_new_tokens} tokens "
            f"(ppo.max_truncated is {max_truncated:g}); raise ppo.sampling.max_new_tokens, or ppo.max_truncated if "
            "responses are meant to be cut"
        )


def watch_variation(scores: Tensor, iteration: int, warn: Callable[[str], None]) -> None:
    """A rollout whose scores are all alike teaches nothing but the leash: say so."""
    if len(scores) > 1 and float(scores.max() - scores.min()) == 0.0:
        warn(
            f"ppo: warning: all {len(scores)} responses of iteration {iteration} have the score "
            f"{float(scores[0]):.4g}, so only the KL teaches; look at the reward"
        )
