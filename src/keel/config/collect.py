"""Collecting comparisons from a policy's own responses."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from pydantic import Field

from keel.config.base import Config, Function, without_effect
from keel.config.data import LongPrompts, Sources
from keel.config.sampling import SamplingConfig


class PeopleConfig(Config):
    """People who compare in the feedback app: the stage publishes its pairs there and goes on when they are judged."""

    project: str = Field(min_length=1, max_length=80, description="of the app; made where there is none of that name")
    database: str | None = Field(
        None, description="a file or a URL; $KEEL_FEEDBACK_DATABASE unless given, else keel-feedback.db"
    )
    votes: int | None = Field(None, ge=1, le=50, description="people a pair; the project's own number unless given")
    round: int = Field(1, ge=1, description="kept with each judgement: one a policy, say")
    enough: float = Field(1.0, gt=0, le=1, description="share of the pairs that must have all their votes")
    wait: bool = Field(True, description="false: publish, and leave the run; the same command looks again")

    def contradictions(self) -> Iterator[str]:
        if self.database is not None and _holds_password(self.database):
            yield "database holds a password, which the run would keep; give that URL in $KEEL_FEEDBACK_DATABASE"


class AnnotatorConfig(Config):
    """Who compares: a utility with Bradley-Terry noise (`script`), an annotator of your own (`factory`), or people."""

    script: Function | None = Field(None, description="module:function giving each response's utility")
    factory: Function | None = Field(None, description="module:function returning a keel.Annotator")
    people: PeopleConfig | None = Field(None, description="people who judge in the feedback app, and are waited for")
    temperature: float = Field(0.0, ge=0, description="noise: P(first wins) = sigmoid(utility gap / temperature)")
    name: str = "scripted"

    def contradictions(self) -> Iterator[str]:
        if [self.script, self.factory, self.people].count(None) != 2:
            yield "an annotator is either `script:` (a utility), `factory:` (one of your own) or `people:`"
        if self.people is not None:
            yield from without_effect(self, "temperature", "name", because="with people, who bring their own")
        if self.factory is not None:
            yield from without_effect(self, "temperature", because="with a factory, whose annotator has its own noise")
            if self.name == "scripted":
                yield "an annotator of your own needs a `name:`, which each comparison carries"


class CollectConfig(Config):
    """Sample, show in pairs, write down which one is preferred."""

    prompts: Sources
    annotator: AnnotatorConfig
    per_prompt: int = Field(2, ge=2, description="responses a prompt; every pair of them is compared")
    policy: str | None = Field(None, description="model that responds; the supervised stage's unless given")
    max_prompt_tokens: int = Field(512, gt=0)
    long_prompts: LongPrompts = Field("drop", description="a longer prompt is left out, or its oldest tokens are")
    sampling: SamplingConfig = SamplingConfig()


def _holds_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # no URL: what opens it will say so
        return False
    return parts.password is not None or "password=" in parts.query
