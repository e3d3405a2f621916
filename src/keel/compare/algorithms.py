"""What each algorithm changes in a recipe. The settings are those a recipe can give: read one as an example."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from keel.errors import UserError

_CRITIC = ("critic", "critic_init", "advantage", "update.value_clip", "update.value_coef", "update.critic_lr_scale")
_CLIP = ("update.clip_low", "update.clip_high", "update.ratio", "update.stop_at_kl")
_BEST_OF = re.compile(r"best_of_([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """The stage that trains, what is laid over its settings, and what of the recipe's own settings is dropped."""

    stage: Literal["ppo", "direct", "evaluate"]
    keys: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    lr_scale: float = 1.0  # of ppo's rate, for what takes one step where ppo takes epochs x minibatches
    beta: float | None = None  # direct: of how many times kl.coef in the units of the comparisons; None: its own


_PLAIN: Mapping[str, Any] = {"loss": "policy_gradient", "epochs": 1, "minibatches": 1}  # one step a rollout
ALGORITHMS: Mapping[str, Algorithm] = {
    "ppo": Algorithm("ppo"),
    "a2c": Algorithm("ppo", {"update": _PLAIN}, _CLIP, lr_scale=5.0),
    "reinforce": Algorithm("ppo", {"advantage": {"kind": "reinforce"}, "update": _PLAIN}, _CRITIC + _CLIP, 5.0),
    "rloo": Algorithm("ppo", {"advantage": {"kind": "rloo"}, "per_prompt": 4}, _CRITIC),
    "grpo": Algorithm("ppo", {"advantage": {"kind": "grpo"}, "per_prompt": 8}, _CRITIC),
    "dr_grpo": Algorithm("ppo", {"advantage": {"kind": "dr_grpo"}, "per_prompt": 8}, _CRITIC),
    "reinforce_pp": Algorithm("ppo", {"advantage": {"kind": "reinforce_pp"}}, _CRITIC),
    "gspo": Algorithm(
        "ppo",
        {
            "advantage": {"kind": "rloo"},
            "per_prompt": 4,
            "update": {"ratio": "gspo", "clip_low": 3e-2, "clip_high": 4e-2},
        },
        (*_CRITIC, *_CLIP, "update.reduction"),
    ),
    "raft": Algorithm(
        "ppo", {"advantage": {"kind": "best_of_n"}, "per_prompt": 8, "update": _PLAIN}, _CRITIC + _CLIP, 5.0
    ),
    "online_dpo": Algorithm(
        "ppo",
        {"update": {"loss": "dpo"}, "per_prompt": 2},
        (
            *_CRITIC,
            *_CLIP,
            "update.reduction",
            "update.entropy_coef",
            "update.importance_cap",
            "kl.place",
            "kl.estimator",
        ),
    ),
    "dpo": Algorithm("direct", {"kind": "dpo"}, beta=1.0),
    "ipo": Algorithm(
        "direct", {"kind": "ipo"}, beta=0.25
    ),  # a probability moves a quarter as fast as its logit, at 1/2
    "hinge": Algorithm("direct", {"kind": "hinge"}, beta=1.0),
    "kto": Algorithm("direct", {"kind": "kto"}, beta=1.0),
    "orpo": Algorithm("direct", {"kind": "orpo"}),
    "simpo": Algorithm("direct", {"kind": "simpo"}),
}


def algorithm(name: str) -> Algorithm:
    """The algorithm of that name; `best_of_N` for any N is one that trains nothing. UserError for no such name."""
    best = _BEST_OF.fullmatch(name)
    if best:
        return Algorithm("evaluate", {"best_of": int(best.group(1))})
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    close = difflib.get_close_matches(name, ALGORITHMS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(ALGORITHMS)} and best_of_N."
    raise UserError(f"--algorithms: {name} is no algorithm; {hint}")
