from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from keel.batching import cut_by_tokens, pad_rows, take
from keel.errors import UserError
from keel.models.adapters import body_of
from keel.models.export import NORMALISATION_FILE, save_reward_model
from keel.models.load import load_classifier
from keel.models.reward import SHIFT_KEY, RewardModel, position_limit
from keel.records import EncodedRow
from keel.text.tokenizers import TextCodec
from tests.worlds import (
    SENTENCES,
    chatml_codec,
    pad_is_eos_codec,
    padded_further,
    prefix_space_codec,
    random_rows,
    tiny_classifier,
    tiny_codec,
    tiny_encoder,
)

FAMILIES = ("llama", "gpt2", "gemma2")
ROWS = random_rows([(1, 5), (6, 9), (3, 1), (12, 0), (2, 12), (1, 1)])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_the_head_at_the_last_real_token(family: str) -> None:
    model = RewardModel(tiny_classifier(family))
    body: Any = model.classifier.base_model
    with torch.no_grad():
        for row, score in zip(ROWS, model(pad_rows(ROWS)).tolist(), strict=True):
            last = body(input_ids=torch.tensor([row.tokens])).last_hidden_state[0, -1]
            assert score == pytest.approx(float(model.head(last)), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_depend_on_no_batch_mate_and_no_padding(family: str) -> None:
    model = RewardModel(tiny_classifier(family))
    model.normalise(0.3, 0.5)
    with torch.no_grad():
        whole = model(pad_rows(ROWS))
        assert whole.std() > 0.1  # else there were nothing to tell apart
        for fill in (0, 299):
            torch.testing.assert_close(model(padded_further(ROWS, 9, fill=fill)), whole, atol=1e-5, rtol=0)
        for index, row in enumerate(ROWS):
            torch.testing.assert_close(model(pad_rows([row])), whole[index : index + 1], atol=1e-5, rtol=0)
        for group in (*cut_by_tokens([len(row.tokens) for row in ROWS], 20), [5, 4, 4, 0]):
            torch.testing.assert_close(model(take(pad_rows(ROWS), group)), whole[group], atol=1e-5, rtol=0)


def test_normalising_gives_mean_0_and_sd_1() -> None:
    model = RewardModel(tiny_classifier())
    with torch.no_grad():
        raw = model(pad_rows(ROWS))
        model.normalise(float(raw.mean()), float(raw.std(correction=0)))
        scores = model(pad_rows(ROWS))
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(correction=0), atol=1e-5, rtol=1e-5)


def test_normalising_twice_composes() -> None:
    model = RewardModel(tiny_classifier())
    with torch.no_grad():
        raw = model(pad_rows(ROWS))
        model.normalise(0.7, 2.0)
        model.normalise(-0.4, 0.25)
        scores = model(pad_rows(ROWS))
    torch.testing.assert_close(scores, ((raw - 0.7) / 2.0 + 0.4) / 0.25, atol=1e-4, rtol=1e-5)


def test_a_new_head_is_a_function_of_its_seed() -> None:
    first, second = RewardModel(tiny_classifier(seed=0)), RewardModel(tiny_classifier(seed=1))
    torch.manual_seed(3)
    first.reset_head(9)
    torch.manual_seed(4)
    second.reset_head(9)
    weights: Any = first.head.weight
    again: Any = second.head.weight
    assert torch.equal(weights, again)
    assert weights.abs().max() > 0
    second.reset_head(10)
    assert not torch.equal(weights, again)


# Classifiers from elsewhere: transformers alone, one text at a time without padding, is the judge

LABEL = 2
ENCODERS = ("bert", "roberta", "deberta")


def alone(classifier: Any, row: EncodedRow, **inputs: Any) -> float:
    with torch.no_grad():
        return float(classifier(input_ids=torch.tensor([row.tokens]), **inputs).logits[0, LABEL])


def assert_the_same_in_any_batch(model: RewardModel, expected: list[float]) -> None:
    assert torch.tensor(expected).std() > 0.01  # else there were nothing to tell apart
    with torch.no_grad():
        for fill in (0, 1, 299):
            assert model(padded_further(ROWS, 9, fill=fill)).tolist() == pytest.approx(expected, abs=1e-5)
        for group in ([0], [5, 4, 4, 0], [3, 1]):
            found = model(take(pad_rows(ROWS), group)).tolist()
            assert found == pytest.approx([expected[row] for row in group], abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pad", [None, 0, 7])
def test_a_decoders_label_with_a_bias(family: str, pad: int | None) -> None:
    """Also where a text holds the pad id: transformers reads the score before it, wherever the text ends."""
    classifier: Any = tiny_classifier(family, num_labels=3)
    classifier.score = nn.Linear(16, 3, bias=True)
    nn.init.constant_(classifier.score.bias, 5.0)
    classifier.config.pad_token_id = pad
    model = RewardModel(classifier, label=LABEL)
    assert model.reads_last_token
    assert_the_same_in_any_batch(model, [alone(classifier, row) for row in ROWS])
    ends = [EncodedRow((*row.tokens, 7), row.prompt_length) for row in ROWS]
    with torch.no_grad():
        expected = [alone(classifier, row) for row in ends]
        assert model(pad_rows(ends)).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_is_asked_as_it_wants_to_be(family: str) -> None:
    classifier = tiny_encoder(family, num_labels=3)
    model = RewardModel(classifier, label=LABEL)
    assert not model.reads_last_token
    assert_the_same_in_any_batch(model, [alone(classifier, row) for row in ROWS])


def test_token_types_tell_prompt_from_response() -> None:
    classifier = tiny_encoder("bert", num_labels=3)
    model = RewardModel(classifier, label=LABEL, token_types=True)
    types = [torch.tensor([[0] * row.prompt_length + [1] * row.response_length]) for row in ROWS]
    expected = [alone(classifier, row, token_type_ids=one) for row, one in zip(ROWS, types, strict=True)]
    assert expected != pytest.approx([alone(classifier, row) for row in ROWS], abs=1e-3)
    assert_the_same_in_any_batch(model, expected)


def reads_the_mean(classifier: Any, input_ids: Any, attention_mask: Any = None) -> Any:
    """A forward whose `score` head reads the mean of all tokens."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    hidden = classifier.model(input_ids=input_ids, attention_mask=mask).last_hidden_state * mask[..., None]
    return SequenceClassifierOutput(logits=classifier.score(hidden.sum(dim=1) / mask.sum(dim=1, keepdim=True)))


def finds_padding_by_its_id(classifier: Any, input_ids: Any, attention_mask: Any = None) -> Any:
    """As heads do that read at an end token: by the ids alone."""
    return reads_the_mean(classifier, input_ids, (input_ids != 7).long())


@pytest.mark.parametrize(
    ("forward", "pad"), [(reads_the_mean, None), (reads_the_mean, 7), (finds_padding_by_its_id, 7)]
)
def test_a_head_that_reads_otherwise_than_its_name_says(forward: Any, pad: int | None) -> None:
    classifier: Any = tiny_classifier(num_labels=3)
    classifier.forward = partial(forward, classifier)
    classifier.config.pad_token_id = pad
    model = RewardModel(classifier, label=LABEL)
    assert not model.reads_last_token
    assert_the_same_in_any_batch(model, [alone(classifier, row) for row in ROWS])


def test_without_a_pad_token_a_classifiers_own_forward_takes_one_text_at_a_time() -> None:
    classifier: Any = tiny_encoder("bert", num_labels=3)
    classifier.config.pad_token_id = None
    model = RewardModel(classifier, label=LABEL, token_types=True)
    types = [torch.tensor([[0] * row.prompt_length + [1] * row.response_length]) for row in ROWS]
    assert_the_same_in_any_batch(
        model, [alone(classifier, row, token_type_ids=one) for row, one in zip(ROWS, types, strict=True)]
    )


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS])
def test_a_body_in_bfloat16_has_its_heads_in_float32(family: str, tmp_path: Path) -> None:
    """Scores would come in steps of half a per cent otherwise."""
    make = tiny_encoder if family in ENCODERS else tiny_classifier
    whole: Any = make(family, num_labels=3)
    for weight in whole.parameters():  # what bfloat16 holds exactly, so that only the computation differs
        weight.data = weight.data.bfloat16().float()
    whole.save_pretrained(tmp_path)
    half = RewardModel(load_classifier(str(tmp_path), dtype=torch.bfloat16), label=LABEL)
    assert half.reads_last_token == (family in FAMILIES)
    assert {weight.dtype for weight in body_of(half.classifier).parameters()} == {torch.bfloat16}
    with torch.no_grad():
        scores, exact = half(pad_rows(ROWS)), RewardModel(whole, label=LABEL)(pad_rows(ROWS))
    torch.testing.assert_close(scores, exact, rtol=0.05, atol=0.1)
    assert not torch.equal(scores, scores.bfloat16().float())


def test_only_one_score_without_bias_at_the_last_token_is_trained() -> None:
    with_bias: Any = tiny_classifier()
    with_bias.score = nn.Linear(16, 1, bias=True)
    for classifier in (tiny_encoder("bert"), tiny_classifier(num_labels=2), with_bias):
        with pytest.raises(UserError, match=r"so Keel can use its scores but not train it; give a decoder$"):
            RewardModel(classifier).require_trainable()


def test_how_much_a_classifier_reads() -> None:
    assert position_limit(tiny_classifier("gpt2")) == 64
    for family in ("bert", "roberta"):
        model: Any = tiny_encoder(family, context=20)
        limit = position_limit(model)
        assert limit is not None
        model(input_ids=torch.full((1, limit), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, limit + 1), 5))
    endless: Any = tiny_classifier()
    endless.config.max_position_embeddings = -1
    assert position_limit(endless) is None


# The saved directory, read by transformers alone

TEXTS = [*SENTENCES, "No.", "thank you " * 6]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "codec",
    [tiny_codec(), pad_is_eos_codec(), chatml_codec(), prefix_space_codec()],
    ids=["own", "pad_is_eos", "chatml", "prefix"],
)
def test_transformers_alone_gives_the_score_and_the_shift(tmp_path: Path, codec: TextCodec, family: str) -> None:
    model = RewardModel(tiny_classifier(family, vocab=len(codec.hf)))
    model.normalise(0.3, 0.5)
    end = codec.hf.eos_token
    texts = [*TEXTS, *(text + end for text in TEXTS)]  # with the end token, which may be the old pad token, and without
    ids = [codec.hf(text).input_ids for text in texts]
    assert len({len(row) for row in ids}) > 5
    assert any(row[-1] == codec.hf.eos_token_id for row in ids)
    save_reward_model(model, codec.hf, tmp_path, scale=0.5)
    with torch.no_grad():
        ours = model(pad_rows([EncodedRow(tuple(row), 1) for row in ids]))

    alone = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token_id not in {token for row in ids for token in row} | set(codec.eos_ids)
    for batch_size in (1, 3, len(texts)):
        for start in range(0, len(texts), batch_size):
            part = slice(start, start + batch_size)
            encoded = tokenizer(texts[part], padding=True, return_tensors="pt")
            assert [row[keep.bool()].tolist() for row, keep in zip(*encoded.values(), strict=True)] == ids[part]
            with torch.no_grad():
                theirs = alone(**encoded).logits[:, 0]
            shift = getattr(alone.config, SHIFT_KEY)
            assert shift == pytest.approx(0.6)
            torch.testing.assert_close(theirs - shift, ours[part], atol=1e-5, rtol=1e-5)


def test_saving_leaves_the_tokenizer_in_hand_as_it_was(tmp_path: Path) -> None:
    codec = prefix_space_codec()
    save_reward_model(RewardModel(tiny_classifier(vocab=len(codec.hf))), codec.hf, tmp_path, scale=1.0)
    assert codec.hf.pad_token is None
    assert len(codec.hf) == len(prefix_space_codec().hf)


def test_a_tokenizer_that_pads_on_the_left_is_saved_to_pad_on_the_right(tmp_path: Path) -> None:
    """Padded on the left, a model that counts positions from the first column would score otherwise."""
    codec = tiny_codec()
    codec.save(tmp_path / "left")
    left: Any = AutoTokenizer.from_pretrained(tmp_path / "left", padding_side="left")
    save_reward_model(RewardModel(tiny_classifier(vocab=len(codec.hf))), left, tmp_path / "reward", scale=1.0)
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").padding_side == "right"
    assert left.padding_side == "left"


def test_keel_loads_what_it_saved(tmp_path: Path) -> None:
    codec = tiny_codec()
    model = RewardModel(tiny_classifier(vocab=len(codec.hf)))
    model.normalise(0.3, 0.5)
    save_reward_model(model, codec.hf, tmp_path / "once", scale=0.5)
    loaded = RewardModel(load_classifier(str(tmp_path / "once")))
    save_reward_model(loaded, AutoTokenizer.from_pretrained(tmp_path / "once"), tmp_path / "twice", scale=0.5)
    again = RewardModel(load_classifier(str(tmp_path / "twice")))
    with torch.no_grad():
        expected = model(pad_rows(ROWS))
        for other in (loaded, again):
            torch.testing.assert_close(other(pad_rows(ROWS)), expected, atol=1e-6, rtol=1e-6)
    assert again.shift == model.shift == pytest.approx(0.6)
    assert (tmp_path / "twice" / NORMALISATION_FILE).read_text() == '{"scale": 0.5, "shift": 0.6}\n'
