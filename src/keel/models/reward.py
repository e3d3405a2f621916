"""The reward model: a sequence classifier, one of whose labels is the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from keel.errors import UserError
from keel.models.adapters import body_of, using
from keel.models.hidden import last_hidden
from keel.models.packing import states_at
from keel.models.recompute import recomputing
from keel.records import Sequences

SHIFT_KEY = "keel_reward_shift"
SHIFTS_KEY = "keel_reward_shifts"  # a list: of a model whose labels are the members of an ensemble


class RewardModel(nn.Module):
    """score(x, y) = the logit of `label` - shift, as transformers gives it for the text alone, in any batch.

    With no label, the scores of all labels. `classifier` is in evaluation mode.
    A decoder whose `score` head reads the last token is asked for hidden states and its head for those tokens alone.
    Any other classifier (an encoder, a head of its own kind) computes its own forward, with a padding mask.
    `token_types` numbers the prompt's tokens 0 and the response's 1, for encoders that were trained on such pairs.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        label: int | None = 0,
        token_types: bool = False,
        adapter: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        for part in classifier.children():
            if part is not body_of(classifier):
                part.register_forward_pre_hook(_in_own_precision)
        self.label = label
        self.token_types = token_types
        self.adapter = adapter  # of the classifier's body, which may have others; None: the body as it is
        self.recompute = recompute
        self.reads_last_token = adapter is not None or _reads_last_token(classifier)  # adapters stand on decoders

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def head(self) -> nn.Module:
        """The `score` head of a model that reads the last token."""
        model: Any = self.classifier
        head: nn.Module = model.score
        return head

    @property
    def head_weights(self) -> list[nn.Parameter]:
        """What is new where a reward model starts from a language model."""
        return list(self.head.parameters())

    @property
    def is_ensemble(self) -> bool:
        """Whether its labels are the members of an ensemble that Keel trained."""
        return hasattr(self.classifier.config, SHIFTS_KEY)

    @property
    def shifts(self) -> list[float]:
        """What is taken off the head's scores, for each label."""
        config: Any = self.classifier.config
        return stated_shifts(vars(config)) or [0.0] * int(config.num_labels)

    @property
    def shift(self) -> float:
        """That of the label which is the score."""
        assert self.label is not None
        return self.shifts[self.label]

    def set_shifts(self, shifts: Sequence[float]) -> None:
        """What is taken off the head's scores, for each label."""
        for key, value in shift_settings(shifts).items():
            setattr(self.classifier.config, key, value)

    def forward(self, sequences: Sequences) -> Tensor:
        """Scores [B]; of all labels [B, labels]."""
        with using(self.classifier, self.adapter), recomputing(self.classifier) if self.recompute else nullcontext():
            logits = self._logits_at_last_token(sequences) if self.reads_last_token else self._own_logits(sequences)
        if self.label is None:
            return logits.float() - torch.tensor(self.shifts, device=logits.device)
        return logits[:, self.label].float() - self.shift

    def _logits_at_last_token(self, sequences: Sequences) -> Tensor:
        rows = torch.arange(len(sequences), device=sequences.tokens.device)
        places = _last_tokens(self.classifier, sequences)
        logits: Tensor = self.head(states_at(self.classifier, sequences.tokens, sequences.lengths, rows, places))
        return logits

    def _own_logits(self, sequences: Sequences) -> Tensor:
        """The classifier's own forward; one text at a time where it knows no padding token."""
        pad = _pad_id(self.classifier)
        if pad is None and len(sequences) > 1:
            return torch.cat([self._own_logits(_row(sequences, row)) for row in range(len(sequences))])
        steps = torch.arange(sequences.tokens.shape[1], device=sequences.tokens.device)
        real = steps < sequences.lengths[:, None]
        inputs = {"input_ids": sequences.tokens.masked_fill(~real, pad or 0), "attention_mask": real.long()}
        if self.token_types:
            inputs["token_type_ids"] = (real & (steps >= sequences.prompt_lengths[:, None])).long()
        logits: Tensor = self.classifier(**inputs).logits
        return logits

    def require_trainable(self) -> None:
        """Refuse, with UserError, whatever is not one label, of a `score` head without bias at the last token."""
        head: Any = self.head if self.reads_last_token else None
        if head is None or getattr(head, "bias", None) is not None or head.weight.shape[0] != 1:
            raise UserError(
                f"{type(self.classifier).__name__} has no `score` head of one label without bias at its last token, so "
                "Keel can use its scores but not train it; give a decoder"
            )

    def set_head(self, weight: Tensor) -> None:
        """The head's weights [labels, H], copied; where there are several labels they are called member_0, …"""
        head: Any = self.head
        head.weight.data = weight.detach().clone().to(head.weight.device)
        head.out_features = len(weight)
        if len(weight) > 1:
            config: Any = self.classifier.config
            config.id2label = {index: f"member_{index}" for index in range(len(weight))}
            config.label2id = {name: index for index, name in config.id2label.items()}

    def reset_head(self, *seeds: int) -> None:
        """Small random weights for the head: a label for each seed, a function of it alone."""
        weight: Tensor = self.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        width = weight.shape[1]
        rows = [torch.randn(1, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        self.set_head(torch.cat(rows) * 0.01)
        self.set_shifts([0.0] * len(seeds))

    def normalise(self, means: float | Sequence[float], std: float) -> None:
        """Give scores mean 0 and sd 1 where they had these: 1/std into the head, the mean into the shift.

        Of several labels each has its own mean; `std` is one for all.
        """
        weight: Tensor = self.head.weight  # type: ignore[assignment]  # nn.Module's attributes are untyped
        each = [means] if isinstance(means, float) else means
        shifts = [(shift + mean) / std for shift, mean in zip(self.shifts, each, strict=True)]
        with torch.no_grad():
            weight.div_(std)
        self.set_shifts(shifts)


def shift_settings(shifts: Sequence[float]) -> dict[str, Any]:
    """How the shifts of a model's labels stand in its config: a number, or of an ensemble's members a list."""
    return {SHIFT_KEY: shifts[0]} if len(shifts) == 1 else {SHIFTS_KEY: list(shifts)}


def stated_shifts(settings: Mapping[str, Any]) -> list[float] | None:
    """What `shift_settings` wrote; None where there is nothing of it."""
    several: list[float] | None = settings.get(SHIFTS_KEY)
    return several or ([float(settings[SHIFT_KEY])] if SHIFT_KEY in settings else None)


def position_limit(classifier: nn.Module) -> int | None:
    """The longest text in tokens that the model's positions allow; None where its config states no limit."""
    config: Any = classifier.config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is None or limit < 1:  # T5 and its kin have none, and say so with -1
        return None
    positions: Any = getattr(getattr(classifier.base_model, "embeddings", None), "position_embeddings", None)
    offset = getattr(positions, "padding_idx", None)  # RoBERTa and its children count from behind their pad id
    return int(limit) - (0 if offset is None else int(offset) + 1)


def _in_own_precision(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Before a head: the body's states, which may be of a lower precision, in that of the head's weights."""
    weight = next(module.parameters(), None)
    if weight is None:
        return inputs
    return tuple(one.to(weight.dtype) if isinstance(one, Tensor) else one for one in inputs)


def _pad_id(classifier: nn.Module) -> int | None:
    config: Any = classifier.config
    pad: int | None = config.get_text_config().pad_token_id
    return pad


def _last_tokens(classifier: nn.Module, sequences: Sequences) -> Tensor:
    """int64 [B]: the rightmost real token that is not the pad id, which is where transformers reads the score."""
    pad = _pad_id(classifier)
    if pad is None:
        return sequences.lengths - 1
    steps = torch.arange(sequences.tokens.shape[1], device=sequences.tokens.device)
    counts = (steps < sequences.lengths[:, None]) & (sequences.tokens != pad)
    return (steps * counts).argmax(dim=1)


def _row(sequences: Sequences, row: int) -> Sequences:
    """One row, without padding."""
    return Sequences(
        tokens=sequences.tokens[row : row + 1, : int(sequences.lengths[row])],
        prompt_lengths=sequences.prompt_lengths[row : row + 1],
        response_mask=sequences.response_mask[row : row + 1],
    )


@torch.no_grad()
def _reads_last_token(classifier: nn.Module) -> bool:
    """Whether the head is called `score` and its result at the last token is what the model's own forward gives."""
    model: Any = classifier
    if not isinstance(getattr(model, "score", None), nn.Module):
        return False
    tokens = torch.arange(1, 5, device=next(model.parameters()).device)[None]
    one = torch.ones(1, dtype=torch.long, device=tokens.device)
    text = Sequences(tokens, one, torch.ones(1, 3, dtype=torch.bool, device=tokens.device))
    own = model(input_ids=tokens).logits
    ours = model.score(last_hidden(model, tokens)[:, _last_tokens(model, text)[0]])
    return bool(torch.allclose(own, ours, rtol=1e-2, atol=1e-3))
