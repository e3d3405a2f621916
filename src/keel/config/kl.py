"""The leash: what the KL to the reference costs, and where it is paid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from keel.config.base import Config, without_effect


class KLConfig(Config):
    """A coefficient that is fixed, steered so that the KL meets a target, or the price of a hard limit."""

    kind: Literal["fixed", "adaptive", "constraint"] = Field(
        "fixed", description="constraint: the mean KL is held to the target by dual ascent on the coefficient"
    )
    coef: float = Field(0.05, ge=0, description="adaptive, constraint: where it starts")
    target: float | None = Field(None, gt=0, description="nats a response; adaptive and constraint only")
    horizon: int = Field(10_000, gt=0, description="adaptive only: responses over which the coefficient adapts")
    dual_lr: float = Field(0.1, gt=0, description="constraint only: step of log coef by KL / target - 1")
    min_coef: float = Field(1e-4, gt=0, description="constraint only: the coefficient falls no further")
    anneal_from: float | None = Field(
        None, gt=0, description="fixed only: start here and fall to coef, for rewards that are hard to explore"
    )
    anneal_over: int | None = Field(None, gt=0, description="iterations the fall takes")
    place: Literal["reward", "loss"] = Field(
        "reward", description="a price on every token's reward, or a term of the loss"
    )
    estimator: Literal["k1", "sequence_k2", "token_k2", "token_k3"] | None = Field(
        None,
        description="k1 in the reward; in the loss sequence_k2 unless given: the token forms have another optimum "
        "(docs/guides/algorithms.md)",
    )
    budget: float | None = Field(
        None, gt=0, description="end the run when the held-out KL (nats a response) reaches it"
    )

    def contradictions(self) -> Iterator[str]:
        if (self.kind == "fixed") != (self.target is None):
            yield (
                "kl.target belongs to `kind: adaptive` and `kind: constraint`, which need it; `kind: fixed` has none"
            )
        if self.kind != "fixed" and self.coef == 0:
            yield f"kl.coef 0 cannot adapt with kind: {self.kind} (it is multiplied); start above 0"
        if self.kind != "adaptive":
            yield from without_effect(self, "horizon", because=f"with kind: {self.kind}")
        if self.kind != "constraint":
            yield from without_effect(self, "dual_lr", "min_coef", because=f"with kind: {self.kind}")
        if self.kind != "fixed":
            yield from without_effect(self, "anneal_from", because=f"with kind: {self.kind}")
        if self.kind == "constraint" and 0 < self.coef < self.min_coef:
            yield f"kl.coef {self.coef:g} is below kl.min_coef {self.min_coef:g}; start above it"
        if (self.anneal_from is None) != (self.anneal_over is None):
            yield "kl.anneal_from and kl.anneal_over go together: where it starts, and the iterations it takes"
        if self.anneal_from is not None and self.coef == 0:
            yield "kl.coef 0 cannot be reached in equal steps of the logarithm; anneal to a coef above 0"
        if self.place == "reward" and self.estimator not in (None, "k1"):
            yield f"estimator: {self.estimator} is a term of the loss; in the reward the estimate is k1"
        if self.place == "loss" and self.estimator == "k1":
            yield (
                "the gradient of k1 in the loss is zero in expectation, so it would hold nothing: take sequence_k2, "
                "or place: reward, where k1 is right"
            )
