"""Learning from preferences directly, without a reward model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from keel.config.base import given_keys, without_effect
from keel.config.data import Sources
from keel.config.training import TrainingConfig


@dataclass(frozen=True)
class Method:
    """What a method's loss, `keel.functional.direct.KIND_loss`, is given."""

    reads: tuple[str, ...]  # keys of `direct:` that it takes under their names
    reference: bool = True  # log-ratios to a reference, or without one log-probabilities
    lengths: Literal["sum", "mean", "either"] = "sum"  # of a response's tokens; either: `length_normalised` decides
    pairs: bool = True  # False: single responses, each accepted or not
    defaults: Mapping[str, float] = field(default_factory=dict)  # of its own, where its authors' differ from ours


METHODS: Mapping[str, Method] = {
    "dpo": Method(reads=("beta", "label_smoothing"), lengths="either"),
    "ipo": Method(reads=("beta",), lengths="either"),
    "hinge": Method(reads=("beta",)),
    "kto": Method(reads=("beta", "desirable_weight", "undesirable_weight"), pairs=False),
    "orpo": Method(reads=("lam",), reference=False, lengths="mean"),
    "simpo": Method(reads=("beta", "gamma"), reference=False, lengths="mean", defaults={"beta": 2.0}),
}


def _known(kind: str) -> str:
    if kind not in METHODS:
        raise ValueError(f"no method is called {kind!r}; there are {', '.join(METHODS)}")
    return kind


MethodName = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(METHODS)})]


class DirectConfig(TrainingConfig):
    """A loss on the policy's own log-probabilities of what was preferred (docs/guides/direct.md says which)."""

    data: Sources | Literal["collect"] = Field(
        "collect", description="comparisons; of kto also responses that were accepted or not"
    )
    kind: MethodName = "dpo"
    lr: float = Field(1e-5, gt=0)
    beta: float = Field(
        0.1, gt=0, description="price of a nat away from the reference; of simpo, the margin's scale: 2.0 unless given"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo only")
    length_normalised: bool = Field(
        False, description="dpo, ipo: log-ratios as means over the tokens; orpo and simpo always are"
    )
    gamma: float = Field(1.0, ge=0, description="simpo only: the margin that is asked for")
    lam: float = Field(0.1, ge=0, description="orpo only: weight of the odds ratio beside the likelihood")
    desirable_weight: float = Field(1.0, gt=0, description="kto only")
    undesirable_weight: float = Field(1.0, gt=0, description="kto only")
    sft_coef: float = Field(
        0.0, ge=0, description="weight of the chosen response's negative log-likelihood a token, added to the loss"
    )
    max_pairs: int = Field(
        64, gt=0, description="comparisons of one prompt that are trained on in one step; more of them make more groups"
    )
    policy: str | None = Field(None, description="where the policy starts; the supervised stage's model unless given")
    reference: str | None = Field(
        None, description="what log-ratios are taken to; the policy's start unless given. Not read by orpo and simpo"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, value: Any) -> Any:
        given = given_keys(value)
        method = METHODS.get(str(given.get("kind"))) if given else None
        return {**method.defaults, **given} if given and method else value

    def contradictions(self) -> Iterator[str]:
        because = f"with kind: {self.kind}"
        every = {key for method in METHODS.values() for key in method.reads}
        yield from without_effect(self, *sorted(every - set(self.method.reads)), because=because)
        if not self.method.reference:
            yield from without_effect(self, "reference", because=f"{because}, which has none")
        if self.method.lengths != "either":
            yield from without_effect(self, "length_normalised", because=f"{because}, which has one form")
        if self.kind == "orpo":
            yield from without_effect(self, "sft_coef", because=f"{because}, whose loss has the likelihood already")
        if not self.method.pairs:
            yield from without_effect(self, "sft_coef", because=f"{because}, which has no chosen response")

    @property
    def method(self) -> Method:
        return METHODS[self.kind]

    @property
    def by_token(self) -> bool:
        """Whether log-probabilities are means over a response's tokens, not sums."""
        return self.length_normalised or self.method.lengths == "mean"
