"""Asking an OpenAI-compatible server for one response as token ids, and holding the answer to what was asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from keel.config.sampling import SamplingConfig
from keel.config.servers import ServerKind
from keel.errors import UserError
from keel.remote.server import Call, Server, Stale

_ROUNDING = 1e-4  # by which a log-probability may pass 0
# What turns off all that a server would take from the model's generation config, beside the temperature.
_UNCUT: dict[ServerKind, dict[str, Any]] = {
    "keel": {"top_p": 1.0, "top_k": 0},
    "vllm": {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
    "sglang": {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
}


@dataclass(frozen=True)
class Wanted:
    """What a response is held to."""

    prompt: Sequence[int]
    max_new_tokens: int
    vocabulary: int
    eos_ids: Collection[int]
    stopped: Callable[[Sequence[int]], bool]  # whether a stop string stands in the text of these ids


@dataclass(frozen=True)
class Drawn:
    """One response, its end token included, and the log-probability of each of its tokens."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str  # as the server reads it


def completion_call(
    prompt: Sequence[int],
    config: SamplingConfig,
    *,
    seed: int,
    eos_ids: Collection[int],
    kind: ServerKind,
    model: str | None,
) -> Call:
    """The request for one response to a prompt of token ids, with the log-probabilities of the drawn tokens."""
    body: dict[str, Any] = {
        "prompt": list(prompt),
        "n": 1,
        "max_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "seed": seed,
        "stop_token_ids": sorted(eos_ids),
        "logprobs": 0,
        "return_token_ids": True,
    }
    body |= _UNCUT[kind]
    if config.stop:
        body["stop"] = list(config.stop)
    if model is not None:
        body["model"] = model
    return Call("/v1/completions", body)


def read_completion(server: Server, answer: Any, wanted: Wanted, version: str | None = None) -> Drawn:
    """The response in an answer. Raises UserError, naming the server, for one that is not what was asked for.

    A server that says under which weights it drew must say `version`; Stale is raised where it was under others.
    """
    try:
        drawn = _drawn(answer, wanted)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _not_asked(server, f"it is no completion: {str(answer)[:200]}") from None
    except ValueError as error:
        raise _not_asked(server, str(error)) from None
    drawn_under = answer.get("weight_version")
    if version is not None and drawn_under is not None and drawn_under != version:
        raise Stale(f"it drew under the weights {drawn_under} and not {version}")
    return drawn


def _not_asked(server: Server, what: str) -> UserError:
    return UserError(f"the server {server.url} does not answer what was asked: {what}")


def _drawn(answer: Any, wanted: Wanted) -> Drawn:
    choice = answer["choices"][0]
    tokens, said = choice.get("token_ids"), choice.get("logprobs")
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("the answer has no token_ids (it does not know return_token_ids, or drew nothing)")
    logprobs = (said or {}).get("token_logprobs")
    if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
        found = "no log-probabilities" if logprobs is None else f"{len(logprobs)} log-probabilities"
        raise ValueError(f"there are {found} for {len(tokens)} tokens")
    beyond = [token for token in tokens if not isinstance(token, int) or not 0 <= token < wanted.vocabulary]
    if beyond:
        raise ValueError(f"the token id {beyond[0]!r} is beyond the policy's vocabulary of {wanted.vocabulary}")
    wrong = [one for one in logprobs if not isinstance(one, int | float) or not -math.inf < one <= _ROUNDING]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no log-probability")
    seen = choice.get("prompt_token_ids")
    if seen is not None and list(seen) != list(wanted.prompt):
        raise ValueError(f"it read another prompt, of {len(seen)} tokens and not {len(wanted.prompt)}")
    _require_end(tokens, choice.get("finish_reason"), wanted)
    return Drawn(tuple(tokens), tuple(min(float(one), 0.0) for one in logprobs), str(choice.get("text", "")))


def _require_end(tokens: Sequence[int], reason: Any, wanted: Wanted) -> None:
    """A response is over at the first end token or stop string, or at the limit, and nowhere else."""
    if len(tokens) > wanted.max_new_tokens:
        raise ValueError(f"it drew {len(tokens)} tokens where at most {wanted.max_new_tokens} were asked for")
    if any(token in wanted.eos_ids for token in tokens[:-1]):
        raise ValueError("a response goes on behind its end token")
    if tokens[-1] not in wanted.eos_ids and len(tokens) < wanted.max_new_tokens and not wanted.stopped(tokens):
        raise ValueError(
            f"a response of {len(tokens)} tokens neither ends nor is at the limit of {wanted.max_new_tokens} "
            f"(finish_reason {reason!r}, last token {tokens[-1]})"
        )
