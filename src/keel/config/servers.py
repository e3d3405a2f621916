"""Inference servers: where they are and how they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from keel.config.base import Config, without_effect

ServerKind = Literal["keel", "vllm", "sglang"]


def _root(url: str) -> str:
    root = url.rstrip("/")
    if not root.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no address of a server; give one such as http://127.0.0.1:8000")
    if root.endswith("/v1"):
        raise ValueError(f"{url!r} ends with /v1; give the server's root, {root.removesuffix('/v1')}")
    return root


Url = Annotated[str, AfterValidator(_root)]


def _different(urls: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(urls)) != len(urls):
        raise ValueError(f"a server stands there twice ({', '.join(urls)}); name each once")
    return urls


Urls = Annotated[tuple[Url, ...], Field(min_length=1), AfterValidator(_different)]


class ServersConfig(Config):
    """Servers that sample in the trainer's place, through the OpenAI completions API with token ids."""

    urls: Urls = Field(description="their roots, without /v1")
    kind: ServerKind = Field("vllm", description="what they are, which decides how new weights reach them")
    model: str | None = Field(None, description="its name on the servers; what they serve unless given")
    token_env: str | None = Field(None, description="the environment variable that holds their token")
    timeout: float = Field(600.0, gt=0, description="seconds without a word from a server until it counts as failed")
    max_in_flight: int = Field(64, gt=0, description="requests at a time to each server")
    retries: int = Field(5, ge=0, description="failures in a row after which a server counts as gone")
    overlap: bool = Field(
        False, description="sample the next batch while this one trains: from the second on each is an update old"
    )
    max_logprob_gap: float = Field(
        0.1,
        gt=0,
        description="root mean square difference of a token's log-probability, servers against trainer, beyond which "
        "the run stops",
    )
    max_staleness: float = Field(
        0.2,
        gt=0,
        description="overlap only: mean distance from 1 of a token's ratio, the policy against the one that drew it an "
        "update before, beyond which the run stops",
    )

    def contradictions(self) -> Iterator[str]:
        if not self.overlap:
            yield from without_effect(self, "max_staleness", because="without overlap")
