"""What scores responses: reward models, Python functions and services, in ppo and in evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from keel.config.base import Config, Function, without_effect
from keel.config.servers import Urls

SERVICE_TIMEOUT = 60.0
OWN_WAYS = ("auto", "pair", "text")  # templates that are no files
_OF_MODELS = ("label", "max_tokens", "template", "combine")
_UNREAD = {  # by what the reward is
    "model": ("workers", "timeout", "on_error", "token_env"),
    "function": (*_OF_MODELS, "token_env"),
    "service": (*_OF_MODELS, "workers", "on_error"),
}
OneOrMore = Annotated[
    Urls,
    BeforeValidator(
        lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]
    ),
]


class RewardSource(Config):
    """One term of the score: a reward model (`reward`, a path or a hub name), a Python function, or a service."""

    model: str | None = None
    function: Function | None = Field(
        None, description="module:function(prompts, responses, rows) -> list of float or None"
    )
    service: OneOrMore | None = Field(
        None, description="the root of a server that answers POST /v1/score, or of several that stand in for each other"
    )
    token_env: str | None = Field(None, description="service: the environment variable that holds its token")
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="in the logs; the model's or function's unless given; a service needs one",
    )
    weight: float = 1.0
    combine: Literal["mean", "min", "uncertainty"] | None = Field(
        None, description="ensemble: its members' mean (unless given), worst case, or mean - coef * variance"
    )
    uncertainty_coef: float | None = Field(None, gt=0, description="combine: uncertainty: what the variance costs")
    label: int | str | None = Field(None, description="model: which label's logit is the score, by index or name")
    max_tokens: int | None = Field(None, gt=0, description="model: what it reads at most; its own limit unless given")
    template: str = Field("auto", description="model: what it reads is written by auto, pair, text, or a template file")
    workers: int | None = Field(None, gt=0, description="function: processes; in Keel's own process unless given")
    timeout: float | None = Field(
        None,
        gt=0,
        description="function in workers: seconds a response may take; service: seconds without a word, "
        f"{SERVICE_TIMEOUT:g} unless given",
    )
    on_error: Literal["stop", "none"] = Field(
        "stop", description="function in workers: end the run, or count a failed response as no opinion"
    )

    def contradictions(self) -> Iterator[str]:
        kinds = [kind for kind in ("model", "function", "service") if getattr(self, kind) is not None]
        if len(kinds) != 1:
            yield "a reward is either `model:` or `function:` or `service:`"
            return
        (kind,) = kinds
        yield from without_effect(self, *_UNREAD[kind], because=f"on a {kind}")
        if kind == "service" and self.name is None:
            yield "a service needs a `name:`, under which it is logged"
        if (self.combine == "uncertainty") != (self.uncertainty_coef is not None):
            yield "uncertainty_coef belongs to `combine: uncertainty`, which needs it; others have none"
        if self.combine is not None and self.label is not None:
            yield "combine takes all members of an ensemble and label one of them: give one of the two"
        if kind == "function" and self.workers is None:
            because = "without workers, since what runs in Keel's own process cannot be ended (`workers: 1` can)"
            yield from without_effect(self, "timeout", "on_error", because=because)

    @property
    def scores_as(self) -> tuple[object, ...]:
        """What its score of a response comes from; two rewards with the same are one."""
        return self.model, self.label, self.combine, self.uncertainty_coef, self.function, self.service

    @property
    def logged_as(self) -> str:
        """What its score is called in the logs."""
        if self.name is not None:
            return self.name
        return self.function.replace(":", ".") if self.function else str(self.model).rstrip("/").rsplit("/", 1)[-1]


def _told_apart(sources: tuple[RewardSource, ...]) -> tuple[RewardSource, ...]:
    if not sources:
        raise ValueError("it is empty: give at least one reward model, function or service")
    names = [source.logged_as for source in sources]
    if len(set(names)) != len(names):
        raise ValueError(
            f"two rewards share a name ({', '.join(names)}); each is logged apart, so give them a `name:` each"
        )
    return sources


Rewards = Annotated[tuple[RewardSource, ...], AfterValidator(_told_apart)]
