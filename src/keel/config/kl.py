"""The leash: what the KL to the reference costs, and where it is paid."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from keel.config.base import Config, refuse_without_effect


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

    @model_validator(mode="after")
    def _target_fits(self) -> KLConfig:
        if (self.kind == "fixed") != (self.target is None):
            raise ValueError(
                "kl.target belongs to `kind: adaptive` and `kind: constraint`, which need it; `kind: fixed` has none"
            )
        if self.kind != "fixed" and self.coef == 0:
            raise ValueError(f"kl.coef 0 cannot adapt with kind: {self.kind} (it is multiplied); start above 0")
        if self.kind != "adaptive":
            refuse_without_effect(self, "horizon", because=f"with kind: {self.kind}")
        if self.kind != "constraint":
            refuse_without_effect(self, "dual_lr", "min_coef", because=f"with kind: {self.kind}")
        if self.kind != "fixed":
            refuse_without_effect(self, "anneal_from", because=f"with kind: {self.kind}")
        if self.kind == "constraint" and self.coef < self.min_coef:
            raise ValueError(f"kl.coef {self.coef:g} is below kl.min_coef {self.min_coef:g}; start above it")
        if (self.anneal_from is None) != (self.anneal_over is None):
            raise ValueError(
                "kl.anneal_from and kl.anneal_over go together: where it starts, and the iterations it takes"
            )
        if self.anneal_from is not None and self.coef == 0:
            raise ValueError("kl.coef 0 cannot be reached in equal steps of the logarithm; anneal to a coef above 0")
        return self

    @model_validator(mode="after")
    def _estimator_fits(self) -> KLConfig:
        if self.place == "reward" and self.estimator not in (None, "k1"):
            raise ValueError(f"estimator: {self.estimator} is a term of the loss; in the reward the estimate is k1")
        if self.place == "loss" and self.estimator == "k1":
            raise ValueError(
                "the gradient of k1 in the loss is zero in expectation, so it would hold nothing: take sequence_k2, "
                "or place: reward, where k1 is right"
            )
        return self
