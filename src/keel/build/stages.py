"""Which function runs each stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keel.build.collect import run_collect
from keel.build.direct import run_direct
from keel.build.evaluate import run_evaluate
from keel.build.ppo import run_ppo
from keel.build.reward import run_reward
from keel.build.sft import run_sft
from keel.build.workbench import Workbench

RUNNERS: Mapping[str, Callable[[Workbench], dict[str, Any]]] = {
    "sft": run_sft,
    "collect": run_collect,
    "reward": run_reward,
    "direct": run_direct,
    "ppo": run_ppo,
    "evaluate": run_evaluate,
}
