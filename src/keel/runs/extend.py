"""More of the same: a stage that differs from what was made by nothing but a greater length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from keel.runs.identity import Identity, differences

_LENGTH = {"sft": "sft.epochs", "reward": "reward.epochs", "direct": "direct.epochs", "ppo": "ppo.iterations"}
_OPTIMISER = {"ppo": "ppo.update"}  # where the schedule is set; elsewhere in the stage itself


@dataclass(frozen=True)
class Longer:
    """A stage that is to be longer than it was made: `key` from `before` to `after`."""

    stage: str
    key: str
    before: int
    after: int

    def sentence(self, config: Mapping[str, Any]) -> str:
        """What happens, and what it means for the learning rate."""
        ahead = ", but for one batch that is drawn anew, and not ahead" if config.get("ppo.servers.overlap") else ""
        return f"{self.stage}: extended, {self.key} {self.before} → {self.after}; {self._schedule(config)}{ahead}."

    def _schedule(self, config: Mapping[str, Any]) -> str:
        optimiser = _OPTIMISER.get(self.stage, self.stage)
        if config.get(f"{optimiser}.schedule") == "cosine":
            return "the cosine is now that of the whole length, so the learning rate jumps to where that one stands"
        if config.get(f"{optimiser}.warmup"):
            return "the learning rate stays; only the warm-up was shorter than that of a run as long from the start"
        return "the learning rate stays, so the weights will be those of a run as long from the start"


def longer(stage: str, old: Identity, new: Identity) -> Longer | None:
    """How much longer `new` is, if nothing else separates it from `old`."""
    key = _LENGTH.get(stage)
    if key is None or key not in old.config or key not in new.config:
        return None
    before, after = int(old.config[key]), int(new.config[key])
    alike = replace(old, config={**old.config, key: new.config[key]})
    return Longer(stage, key, before, after) if before < after and not differences(alike, new) else None
