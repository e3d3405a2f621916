"""The rewards of a stage from their configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from keel.adapter_config import members_of
from keel.config.rewards import SERVICE_TIMEOUT, RewardSource
from keel.engines.reward_functions import WorkerFunction
from keel.engines.scorers import FunctionScorer, Limit, RewardModelScorer
from keel.engines.services import ServiceScorer
from keel.errors import UserError
from keel.models.ensemble import RewardEnsemble
from keel.models.load import choose_label
from keel.models.reward import SHIFT_KEY, RewardModel, position_limit
from keel.references import resolve
from keel.remote.pool import ServerPool
from keel.remote.server import Server, token_from
from keel.text.judging import ChatText, Encoder, PairText
from keel.text.render import Renderer
from keel.text.templates import PLAIN, install_template
from keel.text.tokenizers import load_codec, load_tokenizer
from keel.user_functions import checked

_IN_FLIGHT, _RETRIES = 4, 5  # requests at a time to each server of a service; failures in a row
_NO_LIMIT = 10**9  # what a tokenizer says that states no length


def function_scorer(source: RewardSource, say: Callable[[str], None], closing: ExitStack) -> FunctionScorer:
    """A function as a reward, in worker processes if there are to be some; they end with `closing`."""
    assert source.function is not None
    function = resolve(source.function)
    if source.workers is None:
        return FunctionScorer(source.logged_as, checked(source.function, function), say)
    in_workers = WorkerFunction(
        source.function, workers=source.workers, timeout=source.timeout, on_error=source.on_error, say=say
    )
    closing.callback(in_workers.close)
    return FunctionScorer(source.logged_as, in_workers, say)


def service_scorer(source: RewardSource, closing: ExitStack) -> ServiceScorer:
    """A reward on servers; the connections end with `closing`."""
    assert source.service is not None
    token = token_from(source.token_env, f"token_env of the reward {source.logged_as}")
    timeout = source.timeout or SERVICE_TIMEOUT
    servers = [Server(url, token=token, timeout=timeout, connections=_IN_FLIGHT) for url in source.service]
    pool = ServerPool(servers, max_in_flight=_IN_FLIGHT, retries=_RETRIES)
    closing.callback(pool.close)
    return ServiceScorer(source.logged_as, pool)


def model_scorer(
    source: RewardSource,
    parts: Sequence[RewardModel],
    policy: Renderer | None,
    *,
    token_budget: int,
    trust_remote_code: bool,
    say: Callable[[str], None],
) -> RewardModelScorer:
    """A reward model as it is, or an ensemble: with its own tokenizer, way of writing a text, and length.

    Without a `policy`, whose responses it judges, it is for texts alone.
    """
    name, model = source.logged_as, parts[0]  # an ensemble's members read alike
    scored = _members(source, parts)
    tokenizer = load_tokenizer(_first(source), trust_remote_code=trust_remote_code)
    encoder: Encoder | None = _encoder(source, model, tokenizer, trust_remote_code=trust_remote_code)
    model.token_types = isinstance(encoder, PairText) and encoder.token_types
    known = policy is not None and policy.codec.hf.get_vocab().items() <= tokenizer.get_vocab().items()
    if isinstance(encoder, Renderer) and known:
        encoder = None  # Keel's own way of writing with the policy's own ids: it sees the very ones that were sampled
    limit = _limit(source, model, tokenizer)
    return RewardModelScorer(
        name,
        scored,
        token_budget=token_budget,
        combine=source.combine or "mean",
        coef=source.uncertainty_coef or 0.0,
        encoder=encoder,
        limit=limit,
        say=say,
    )


def _members(source: RewardSource, parts: Sequence[RewardModel]) -> RewardModel | RewardEnsemble:
    """The ensemble, or the one model with the label that is its score."""
    name, model = source.logged_as, parts[0]
    if len(parts) > 1 and source.label is not None:
        raise UserError(
            f"label of the reward {name}: {source.model} is an ensemble of whole models; name one of them, such as "
            f"{_first(source)}"
        )
    if len(parts) > 1 or (model.is_ensemble and source.label is None):
        return RewardEnsemble(parts)
    if source.combine is not None:
        raise UserError(
            f"combine of the reward {name}: {source.model} is one model and no ensemble that a reward stage trained; "
            "leave combine out"
        )
    model.label = choose_label(model.classifier, source.label, f"label of the reward {name}")
    return model


def _first(source: RewardSource) -> str:
    """The model, or the first of an ensemble's."""
    return members_of(str(source.model))[0]


def _encoder(source: RewardSource, model: RewardModel, tokenizer: Any, *, trust_remote_code: bool) -> Encoder:
    """Who writes what the model reads.

    `auto` is Keel's own way for a model that Keel trained and for a decoder without a chat template, the template for
    one that has it, and a pair of texts for an encoder.
    """
    config: Any = model.classifier.config
    own = hasattr(config, SHIFT_KEY) or model.is_ensemble
    has_template = tokenizer.chat_template not in (None, PLAIN) and not own
    template = source.template
    if template == "pair" or (template == "auto" and not has_template and not model.reads_last_token):
        return PairText(tokenizer)
    if template == "text" or (template == "auto" and not has_template):
        codec = load_codec(_first(source), trust_remote_code=trust_remote_code)
        install_template(codec, "auto")
        return Renderer(codec)
    encoder = ChatText(tokenizer)
    install_template(encoder, template, f"template of the reward {source.logged_as}")
    return encoder


def _limit(source: RewardSource, model: RewardModel, tokenizer: Any) -> Limit | None:
    """The model's positions, and the tokenizer's length unless `max_tokens` says otherwise."""
    positions = position_limit(model.classifier)
    if source.max_tokens is not None and positions is not None and source.max_tokens > positions:
        raise UserError(
            f"max_tokens of the reward {source.logged_as} is {source.max_tokens}, and the model has {positions} "
            "positions; lower it"
        )
    stated = source.max_tokens or int(min(tokenizer.model_max_length, _NO_LIMIT))
    tokens = min(stated, positions or _NO_LIMIT)
    start = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    return None if tokens == _NO_LIMIT else Limit(tokens, frozenset(start))
