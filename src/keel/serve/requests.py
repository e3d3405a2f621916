"""From JSON to records: what is asked, or which key is refused and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from keel.config.sampling import SamplingConfig
from keel.schema import Message
from keel.serve.records import Asked, Generation, Ids, ScoreItem, Scoring, Update
from keel.serve.refusal import Refusal

_COMPLETION_TOKENS = 16  # what OpenAI's completions draw unless they are told

# Keys of OpenAI's and vLLM's that would change the answer, and the value at which they do not.
_NEUTRAL: Mapping[str, object] = {
    "add_special_tokens": True,
    "best_of": 1,
    "echo": False,
    "frequency_penalty": 0,
    "ignore_eos": False,
    "include_stop_str_in_output": False,
    "length_penalty": 1,
    "logit_bias": {},
    "min_p": 0,
    "min_tokens": 0,
    "presence_penalty": 0,
    "repetition_penalty": 1,
    "response_format": {"type": "text"},
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "suffix": "",
    "tools": [],
    "top_logprobs": 0,
    "use_beam_search": False,
}
_WITHOUT_EFFECT = {"metadata", "priority", "safety_identifier", "service_tier", "store", "user"}


class _Body:
    """A JSON object whose keys are taken one by one; what is left in the end is refused."""

    def __init__(self, tree: object, what: str = "the body") -> None:
        if not isinstance(tree, dict):
            raise Refusal(f"{what} is no JSON object")
        self._left: dict[str, Any] = dict(tree)

    def take(self, key: str) -> Any:
        """Its value; None where it is absent, or null."""
        return self._left.pop(key, None)

    def required(self, key: str) -> Any:
        value = self.take(key)
        if value is None:
            raise Refusal(f"{key} is missing", param=key)
        return value

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if not isinstance(value, str | None):
            raise Refusal(f"{key} is {value!r:.80}, no text", param=key)
        return value

    def required_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise Refusal(f"{key} is missing", param=key)
        return value

    def whole(self, key: str, *, least: int | None = None) -> int | None:
        value = self.take(key)
        if value is not None and not (_is_whole(value) and (least is None or value >= least)):
            bound = "" if least is None else f" from {least} on"
            raise Refusal(f"{key} is {value!r:.80}, no whole number{bound}", param=key)
        return value  # type: ignore[no-any-return]  # int or None by now

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.take(key)
        if not isinstance(value, bool | None):
            raise Refusal(f"{key} is {value!r:.80}, neither true nor false", param=key)
        return default if value is None else value

    def finish(self) -> None:
        """Refuse every key that was not taken, but for those without effect."""
        for key, value in self._left.items():
            if key in _WITHOUT_EFFECT or value is None or (key in _NEUTRAL and value == _NEUTRAL[key]):
                continue
            served = f"{value!r:.80} is not served; leave it out" if key in _NEUTRAL else "no such key is served"
            raise Refusal(f"{key}: {served}", param=key)


def read_completion(tree: object) -> Generation:
    """`POST /v1/completions`."""
    body = _Body(tree)
    logprobs = body.whole("logprobs", least=0)
    if logprobs:
        raise Refusal(f"logprobs is {logprobs}: only that of the drawn token is served; give 0", param="logprobs")
    asked = _generation(
        body,
        _prompts(body.required("prompt")),
        max_tokens=body.whole("max_tokens", least=1) or _COMPLETION_TOKENS,
        logprobs=logprobs is not None,
        chat=False,
    )
    body.finish()
    return asked


def read_chat(tree: object) -> Generation:
    """`POST /v1/chat/completions`."""
    body = _Body(tree)
    limits = [body.whole(key, least=1) for key in ("max_completion_tokens", "max_tokens")]
    asked = _generation(
        body,
        (_messages(body.required("messages"), "messages"),),
        max_tokens=next(filter(None, limits), None),
        logprobs=body.flag("logprobs"),
        chat=True,
    )
    body.finish()
    return asked


def read_scoring(tree: object) -> Scoring:
    """`POST /v1/score`."""
    body = _Body(tree)
    items = body.required("items")
    if not isinstance(items, list) or not items:
        raise Refusal("items is no list of responses to score", param="items")
    asked = Scoring(body.text("model"), tuple(_score_item(item, f"items[{n}]") for n, item in enumerate(items)))
    body.finish()
    return asked


def read_update(tree: object) -> Update:
    """`POST /update_weights`."""
    body = _Body(tree)
    asked = Update(body.required_text("path"), body.required_text("version"))
    body.finish()
    return asked


def _generation(
    body: _Body, prompts: tuple[Asked, ...], *, max_tokens: int | None, logprobs: bool, chat: bool
) -> Generation:
    """What completions and chats have in common."""
    sampling = _sampling(body)
    if logprobs and sampling.temperature > 0 and sampling.truncated:
        raise Refusal("logprobs are not served of a distribution that top_k or top_p cuts", param="logprobs")
    stream = body.flag("stream")
    options = body.take("stream_options")
    if options is not None and not stream:
        raise Refusal("stream_options has no effect without stream; leave it out", param="stream_options")
    usage = _Body(options if options is not None else {}, "stream_options")
    asked = Generation(
        model=body.text("model"),
        prompts=prompts,
        n=body.whole("n", least=1) or 1,
        sampling=sampling,
        max_tokens=max_tokens,
        stop_token_ids=_ids_or_none(body.take("stop_token_ids")),
        seed=body.whole("seed"),
        logprobs=logprobs,
        return_token_ids=body.flag("return_token_ids"),
        stream=stream,
        stream_usage=usage.flag("include_usage"),
        chat=chat,
    )
    usage.finish()
    return asked


def _sampling(body: _Body) -> SamplingConfig:
    """The keys that the sampler has too, within its bounds."""
    given = {key: value for key in ("temperature", "top_k", "top_p") if (value := body.take(key)) is not None}
    if given.get("top_k") == -1:  # vLLM's word for all
        given["top_k"] = 0
    stop = body.take("stop")
    if stop is not None:
        given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else stop
    try:
        return SamplingConfig.model_validate(given, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise Refusal(f"{key} is {first['input']!r:.80}: {first['msg']}", param=key) from None


def _prompts(value: Any) -> tuple[Asked, ...]:
    """One prompt or several, each text or token ids."""
    if isinstance(value, str) or _is_ids(value):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(one, str) or _is_ids(one) for one in value):
        return tuple(one if isinstance(one, str) else Ids(tuple(one)) for one in value)
    raise Refusal("prompt is neither text nor token ids, nor a list of one of them", param="prompt")


def _messages(value: Any, key: str) -> tuple[Message, ...]:
    """A dialogue; content that comes in parts of text is joined."""
    if not isinstance(value, list) or not value:
        raise Refusal(f"{key} is no list of messages", param=key)
    return tuple(_message(one, f"{key}[{n}]") for n, one in enumerate(value))


def _message(value: Any, key: str) -> Message:
    match value:
        case {"role": str(role), "content": str(content)}:
            return Message(role, content)
        case {"role": str(role), "content": [*parts]}:
            texts = [text for part in parts if (text := _text_part(part)) is not None]
            if len(texts) == len(parts):
                return Message(role, "".join(texts))
    raise Refusal(f"{key} is no message with a role and a content of text", param=key)


def _text_part(value: Any) -> str | None:
    match value:
        case {"type": "text", "text": str(text)}:
            return text
    return None


def _score_item(value: Any, key: str) -> ScoreItem:
    try:
        body = _Body(value, key)
        prompt = body.required("prompt")
        if not isinstance(prompt, str):
            prompt = _messages(prompt, "prompt")
        item = ScoreItem(prompt, body.required_text("response"), body.flag("ended", default=True))
        body.finish()
    except Refusal as refusal:
        message = str(refusal).removeprefix(f"{key} ")
        raise Refusal(f"{key}: {message}", param=".".join(filter(None, (key, refusal.param)))) from None
    return item


def _ids_or_none(value: Any) -> frozenset[int]:
    if value is None or value == []:
        return frozenset()
    if not _is_ids(value):
        raise Refusal("stop_token_ids is no list of token ids", param="stop_token_ids")
    return frozenset(value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_whole(one) and one >= 0 for one in value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
