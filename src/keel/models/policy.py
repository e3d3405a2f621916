"""The policy's root module: one forward gives log-probabilities, entropy and values of the response tokens."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils._pytree import register_dataclass
from torch.utils.checkpoint import checkpoint

from keel.batching import round_up
from keel.errors import UserError
from keel.functional.logprobs import logprobs_and_entropy, token_logprobs
from keel.models.adapters import using
from keel.models.critic import ValueHead, ValueNetwork
from keel.models.hidden import last_hidden
from keel.models.packing import states_at
from keel.models.recompute import recomputing
from keel.records import Targets

_HEAD_LOGITS = 1 << 25  # how many logits exist at one time: 128 MiB of float32


@dataclass(frozen=True)
class TokenOutputs:
    """Per predicted token, [B, T], zero outside the mask; None where it was not asked for."""

    logprobs: Tensor | None
    entropy: Tensor | None
    values: Tensor | None


register_dataclass(TokenOutputs)  # so that FSDP finds the tensors through which a gradient comes back


class Policy(nn.Module):
    """A causal language model and its critic, if it has one.

    Rows are padded on the right, so causal attention alone keeps padding out: no mask, and the same result
    at any batch size. Only real tokens are computed where the model lets rows be packed, and of their hidden states
    only those from which a token is predicted (math.md §0: the one that precedes it) meet the head, whose logits
    exist one chunk at a time, forward and backward.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        critic: ValueHead | ValueNetwork | None = None,
        adapter: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.critic = critic
        self.adapter = adapter  # of the backbone's body, which may have others; None: the body as it is
        self.recompute = recompute
        with using(backbone, adapter):
            _require_known_head(backbone)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(
        self,
        sequences: Targets,
        *,
        temperature: float = 1.0,
        logprobs: bool = True,
        entropy: bool = False,
        values: bool = False,
    ) -> TokenOutputs:
        """What is asked for, [B, T] each. Everything that trains passes through this one call."""
        mask = sequences.target_mask
        log_p = ent = value = states = None
        if logprobs or (values and isinstance(self.critic, ValueHead)):
            states = self._states(self.backbone, self.adapter, sequences)
        if logprobs:
            assert states is not None
            targets = sequences.tokens.gather(1, sequences.target_positions())[mask]
            log_p, ent = self._logprobs(states, targets, temperature, entropy)
        if values:
            assert self.critic is not None, "this policy has no critic"
            if isinstance(self.critic, ValueNetwork):
                states = self._states(self.critic.body, self.critic.adapter, sequences)
            value = _scatter(self.critic(states), mask)
        return TokenOutputs(
            logprobs=None if log_p is None else _scatter(log_p, mask),
            entropy=None if ent is None else _scatter(ent, mask),
            values=value,
        )

    def _states(self, model: nn.Module, adapter: str | None, sequences: Targets) -> Tensor:
        """Hidden states [tokens, H], each the one from which a token is predicted."""
        rows, steps = sequences.target_mask.nonzero(as_tuple=True)
        before = (sequences.target_positions()[rows, steps] - 1).clamp(min=0)
        with using(model, adapter), recomputing(model) if self.recompute else nullcontext():
            return states_at(model, sequences.tokens, sequences.lengths, rows, before)

    def _logprobs(
        self, states: Tensor, targets: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        def head(part: Tensor, target: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = logits_of(self.backbone, part)
            if entropy:
                return logprobs_and_entropy(logits, target, temperature=temperature)
            return token_logprobs(logits, target, temperature=temperature), None

        parts: list[tuple[Tensor, Tensor | None]] = []
        rows = len(states)
        states = pad(states, (0, 0, 0, round_up(rows) - rows))  # a kernel is made anew for every number of rows
        targets = pad(targets, (0, len(states) - rows))
        size = max(1, _HEAD_LOGITS // vocabulary_size(self.backbone))
        chunks = list(zip(torch.split(states, size), torch.split(targets, size), strict=True))
        for part, target in chunks:
            if torch.is_grad_enabled() and len(chunks) > 1:
                parts.append(checkpoint(head, part, target, use_reentrant=False))  # logits again in backward
            else:
                parts.append(head(part, target))
        logprobs = torch.cat([part[0] for part in parts])[:rows]
        return logprobs, torch.cat([part[1] for part in parts if part[1] is not None])[:rows] if entropy else None

    def next_states(
        self,
        tokens: Tensor,
        cache: Any,
        *,
        mask: Tensor | dict[str, Tensor] | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, S, H] after each of `tokens` [B, S], whose keys and values join the cache, if there is one.

        `positions` [B, S] count from 0 where they are not given; `mask`, as transformers takes it, is causal attention.
        """
        body: Any = self.backbone.base_model
        with using(self.backbone, self.adapter):
            output = body(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        states: Tensor = output.last_hidden_state
        return states

    def next_logits(self, states: Tensor) -> Tensor:
        """Logits [B, V] of what follows states [B, H]."""
        return logits_of(self.backbone, states)


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[tokens] back to [B, T], zero outside the mask."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def vocabulary_size(backbone: nn.Module) -> int:
    """How many logits a token has."""
    model: Any = backbone
    return len(model.get_output_embeddings().weight)


def logits_of(backbone: nn.Module, states: Tensor) -> Tensor:
    """The head on hidden states [N, H]: logits [N, V], with the soft cap or scale that some families apply."""
    model: Any = backbone
    logits: Tensor = model.get_output_embeddings()(states)
    config = model.config.get_text_config()
    if (scale := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / scale
    if (scale := getattr(config, "logit_scale", None)) is not None:
        logits = logits * scale
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


@torch.no_grad()
def _require_known_head(backbone: nn.Module) -> None:
    """Hold `logits_of` to the model's own forward once, so that an unknown kind of head cannot pass unseen."""
    model: Any = backbone
    tokens = torch.arange(1, 5, device=next(backbone.parameters()).device)[None]
    own = model(input_ids=tokens, use_cache=False).logits[0]
    ours = logits_of(backbone, last_hidden(backbone, tokens)[0])
    tolerance = 1e-3 if own.dtype == torch.float32 else 3e-2
    if not torch.allclose(own, ours, rtol=tolerance, atol=tolerance):
        raise UserError(
            f"{type(backbone).__name__} computes its logits in a way Keel does not know (they differ by "
            f"{(own - ours).abs().max():.3g} from its head on the last hidden states); this model cannot be trained yet"
        )
