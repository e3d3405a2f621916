"""What is drawn and scored, against transformers, an independent forward, and all answers enumerated."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from keel.config.sampling import SamplingConfig
from keel.errors import UserError
from keel.records import EncodedRow
from keel.schema import Message
from keel.serve.models import ServedPolicy, ServedReward
from keel.serve.records import Drawing, Ids, Response, Row, ScoreItem, Settings, Update
from keel.text.render import Renderer
from tests.engines.helpers import exact_logits, exact_logprobs
from tests.worlds import (
    chatml_codec,
    encoder_tokenizer,
    save_tiny_lm,
    tiny_classifier,
    tiny_codec,
    tiny_encoder,
    tiny_lm,
)

PROMPTS: tuple[tuple[int, ...], ...] = ((5, 9, 17), (40, 41), (5, 9, 17, 60, 61, 62, 63), (100,))
CAUSAL_LM: Any = AutoModelForCausalLM  # untyped
CLASSIFIER: Any = AutoModelForSequenceClassification


def heard(sentence: str) -> None:
    raise AssertionError(sentence)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_lm(tmp_path_factory.mktemp("policy") / "model", chatml_codec()))


@pytest.fixture(scope="module")
def policy(folder: str) -> ServedPolicy:
    return ServedPolicy(folder, device="cpu", batch=64, say=heard)


def settings(max_tokens: int = 12, *, logprobs: bool = False, stop_ids: Sequence[int] = (), **more: Any) -> Settings:
    return Settings(SamplingConfig(max_new_tokens=max_tokens, **more), frozenset(stop_ids), logprobs)


def rows(*prompts: tuple[int, ...], seed: int = 0, n: int = 1) -> tuple[Row, ...]:
    return tuple(Row(prompt, "", seed, index) for prompt in prompts for index in range(n))


def drawn(policy: ServedPolicy, how: Settings, *wanted: tuple[Row, ...]) -> list[Response]:
    """The responses of one round, one request a tuple of rows."""
    answers = policy.draw(how, [Drawing(one) for one in wanted])
    return [response for answer in answers for response in answer.responses]


def generated(folder: str, prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
    model = CAUSAL_LM.from_pretrained(folder)
    model.generation_config.eos_token_id = sorted(Renderer(chatml_codec()).eos_ids)
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length, pad_token_id=0
    )
    return tuple(out[0, len(prompt) :].tolist())


# --- drawing ---


def test_greedy_is_what_transformers_generates(policy: ServedPolicy, folder: str) -> None:
    found = drawn(policy, settings(temperature=0.0), rows(*PROMPTS))
    assert [response.token_ids for response in found] == [generated(folder, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize(("temperature", "at"), [(0.7, 0.7), (1.0, 1.0), (0.0, 1.0)])
def test_logprobs_are_those_of_an_independent_forward(
    policy: ServedPolicy, folder: str, temperature: float, at: float
) -> None:
    """At the request's temperature; of a greedy response, which has none, at 1."""
    model = CAUSAL_LM.from_pretrained(folder)
    found = drawn(policy, settings(logprobs=True, temperature=temperature), rows(*PROMPTS, seed=4))
    for prompt, response in zip(PROMPTS, found, strict=True):
        assert response.drawn_tokens is not None
        assert len(response.drawn_tokens) == len(response.token_ids)
        expected = exact_logprobs(model, EncodedRow((*prompt, *response.token_ids), len(prompt)), at)
        values = torch.tensor([logprob for _, logprob in response.drawn_tokens]).double()
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_each_token_is_named_by_what_it_says(policy: ServedPolicy) -> None:
    (response,) = drawn(policy, settings(logprobs=True), rows(PROMPTS[0]))
    codec = chatml_codec()
    assert response.drawn_tokens is not None
    assert [token for token, _ in response.drawn_tokens] == [codec.hf.decode([one]) for one in response.token_ids]
    assert drawn(policy, settings(), rows(PROMPTS[0]))[0].drawn_tokens is None


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.5, "temperature": 0.15}])
def test_responses_come_as_often_as_they_are_likely(policy: ServedPolicy, folder: str, cut: dict[str, Any]) -> None:
    """All responses of two tokens, with the probability that an independent forward gives each, by chi-squared."""
    model = CAUSAL_LM.from_pretrained(folder)
    prompt, number = PROMPTS[1], 4000

    def kept(*before: int) -> dict[int, float]:
        """The tokens that are left after some, and their probabilities."""
        logits = exact_logits(model, EncodedRow((*prompt, *before, 0), len(prompt) + len(before)))[0]
        probs = (logits / cut.get("temperature", 1.0)).softmax(dim=0).tolist()
        ranked = sorted(enumerate(probs), key=lambda pair: -pair[1])
        if "top_k" in cut:
            ranked = ranked[: cut["top_k"]]
        else:
            sums = [sum(p for _, p in ranked[:n]) for n in range(len(ranked))]
            ranked = [pair for pair, before in zip(ranked, sums, strict=True) if before < cut["top_p"]]
        total = sum(p for _, p in ranked)
        return {token: p / total for token, p in ranked}

    ends = Renderer(chatml_codec()).eos_ids
    expected: dict[tuple[int, ...], float] = {}
    for first, p in kept().items():
        expected |= {(first,): p} if first in ends else {(first, second): p * q for second, q in kept(first).items()}
    found = Counter(
        response.token_ids for response in drawn(policy, settings(2, **cut), rows(prompt, seed=1, n=number))
    )
    assert found.keys() <= expected.keys()
    often = {ids: p for ids, p in expected.items() if p * number >= 5}
    rest = 1 - sum(often.values())
    terms = [(found[ids] - number * p) ** 2 / (number * p) for ids, p in often.items()]
    if rest * number >= 5:
        others = sum(count for ids, count in found.items() if ids not in often)
        terms.append((others - number * rest) ** 2 / (number * rest))
    freedom = len(terms) - 1
    assert freedom >= 3
    assert abs(sum(terms) - freedom) < 4 * math.sqrt(2 * freedom)  # mean and variance of chi-squared


def test_a_response_is_a_function_of_seed_prompt_and_number_whatever_the_crowd(policy: ServedPolicy) -> None:
    how = settings(temperature=1.5)
    alone = {
        (prompt, seed): drawn(policy, how, rows(prompt, seed=seed, n=2)) for prompt, seed in product(PROMPTS, (1, 2))
    }
    others = rows(*PROMPTS, seed=9, n=5)
    for first, number in (((), 64), (others, 64), ((*others, *others), 3)):
        policy._batch = number
        crowd = policy.draw(how, [Drawing(first), *(Drawing(rows(p, seed=s, n=2)) for p, s in alone)])
        policy._batch = 64
        assert [list(one.responses) for one in crowd[1:]] == list(alone.values())
    texts = {response.token_ids for pair in alone.values() for response in pair}
    assert len(texts) == 2 * len(alone)


def test_two_prompts_of_one_seed_share_no_random_numbers(policy: ServedPolicy) -> None:
    """At such a temperature all tokens are as likely, so the same numbers draw the same tokens after any prompt."""
    one, other = (drawn(policy, settings(temperature=1e4), rows(prompt, n=20)) for prompt in PROMPTS[:2])
    pairs = [pair for a, b in zip(one, other, strict=True) for pair in zip(a.token_ids, b.token_ids, strict=False)]
    assert len(pairs) > 150
    assert sum(a == b for a, b in pairs) < 0.1 * len(pairs)


def test_each_request_hears_its_own_tokens(policy: ServedPolicy) -> None:
    told: dict[str, list[list[int]]] = {"a": [[], []], "c": [[]]}

    def ears(name: str) -> Any:
        def hear(tokens: Sequence[tuple[int, int]]) -> None:
            for index, token in tokens:
                told[name][index].append(token)

        return hear

    a, b, c = rows(*PROMPTS[:2]), rows(PROMPTS[2]), rows(PROMPTS[3])
    answers = policy.draw(settings(), [Drawing(a, ears("a")), Drawing(b), Drawing(c, ears("c"))])
    assert told["a"] == [list(response.token_ids) for response in answers[0].responses]
    assert told["c"] == [list(answers[2].responses[0].token_ids)]


def test_stop_token_ids_and_strings_end_a_response(policy: ServedPolicy) -> None:
    free = drawn(policy, settings(), rows(*PROMPTS, n=4))
    stops = {response.token_ids[3] for response in free}
    held = drawn(policy, settings(stop_ids=sorted(stops)), rows(*PROMPTS, n=4))
    codec = chatml_codec()
    for one, other in zip(free, held, strict=True):
        length = next(n for n, token in enumerate(one.token_ids, start=1) if token in stops or n == 12)
        assert other.token_ids == one.token_ids[:length]
        assert other.text == codec.decode(one.token_ids[: length - 1])
        assert other.finish_reason == "stop"
    (one,) = drawn(policy, settings(), rows(PROMPTS[0], seed=3))
    stop = one.text[2:4]
    (other,) = drawn(policy, settings(stop=(stop,)), rows(PROMPTS[0], seed=3))
    assert (other.text, other.finish_reason) == (one.text[: one.text.index(stop)], "stop")
    assert one.token_ids[: len(other.token_ids)] == other.token_ids
    assert len(other.token_ids) < len(one.token_ids)


def test_a_prompt_is_read_as_everywhere_in_keel(policy: ServedPolicy) -> None:
    renderer = Renderer(chatml_codec())
    for prompt in ("Buy a ", (Message("user", "Hi <|end|>"), Message("assistant", "No"), Message("user", "Oh"))):
        assert policy.reader.read(prompt) == (tuple(renderer.prompt(prompt)[0]), renderer.prompt(prompt)[1])
    assert policy.reader.read(Ids((3, 301))) == ((3, 301), "")
    with pytest.raises(UserError, match="prompt has the token id 302; the model has 302 ids"):
        policy.reader.read(Ids((3, 302)))


# --- other weights ---


def trained(source: str, folder: Path) -> Path:
    """The same model with other weights."""
    model = CAUSAL_LM.from_pretrained(source)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-0.9)
    model.save_pretrained(folder)
    chatml_codec().save(folder)
    return folder


def test_other_weights_draw_as_a_server_that_began_with_them(folder: str, tmp_path: Path) -> None:
    served = ServedPolicy(folder, device="cpu", batch=64, say=heard)
    new = trained(folder, tmp_path / "new")
    before = drawn(served, settings(), rows(*PROMPTS))
    assert served.update([Update(str(new), "7")]) == ["7"]
    (answer,) = served.draw(settings(), [Drawing(rows(*PROMPTS))])
    fresh = ServedPolicy(str(new), device="cpu", batch=64, say=heard)
    assert list(answer.responses) == drawn(fresh, settings(), rows(*PROMPTS)) != before
    assert answer.version == served.version == "7"


def test_other_weights_come_with_their_template_and_end_tokens(folder: str, tmp_path: Path) -> None:
    served = ServedPolicy(folder, device="cpu", batch=64, say=heard)
    free = drawn(served, settings(), rows(*PROMPTS, n=4))
    ends = sorted({response.token_ids[4] for response in free})
    shutil.copytree(folder, tmp_path / "new")
    codec = chatml_codec()
    codec.hf.chat_template = codec.hf.chat_template.replace("<|turn|>", "<|turn|>the ")
    codec.save(tmp_path / "new")
    GenerationConfig(eos_token_id=ends).save_pretrained(tmp_path / "new")  # type: ignore[no-untyped-call]  # no types
    served.update([Update(str(tmp_path / "new"), "7")])
    assert {response.token_ids[-1] for response in drawn(served, settings(), rows(*PROMPTS, n=4))} <= set(ends)
    said = codec.hf.decode(served.reader.read((Message("user", "Hi"),))[0])
    assert said == "<|turn|>the user\nHi<|end|>\n<|turn|>the assistant\n"


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def with_another_tokenizer(folder: Path) -> None:
    codec = chatml_codec()
    codec.hf.add_tokens(["zzz"])
    codec.save(folder)


def of_another_family(folder: Path) -> None:
    model: Any = tiny_lm("qwen3", vocab=302)
    model.save_pretrained(folder)


def with_another_context(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))


def with_more_ids(folder: Path) -> None:
    model: Any = tiny_lm("llama", vocab=310)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without_a_weight, "is no whole model: its weights lack model.norm.weight"),
        (cut_short, "no model could be loaded from"),
        (with_another_tokenizer, "has another tokenizer than the model that is served"),
        (of_another_family, "is a Qwen3ForCausalLM, and the model that is served a LlamaForCausalLM"),
        (with_another_context, "has another context than the model that is served"),
        (with_more_ids, "has weights of other shapes than the model that is served"),
        (lambda folder: folder.rename(folder.with_name("gone")), "path: there is no directory"),
    ],
)
def test_weights_that_do_not_fit_leave_the_old_ones(
    policy: ServedPolicy, folder: str, tmp_path: Path, spoil: Any, sentence: str
) -> None:
    before = drawn(policy, settings(), rows(*PROMPTS))
    spoil(trained(folder, tmp_path / "new"))
    with pytest.raises(UserError) as caught:
        policy.update([Update(str(tmp_path / "new"), "8")])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert policy.version == "0"
    assert drawn(policy, settings(), rows(*PROMPTS)) == before


# --- scores ---

ITEMS = (
    ScoreItem("Buy a ladder", "No.", True),
    ScoreItem("Could you lend me the ladder on Sunday? ", "Of course, the", False),
    ScoreItem((Message("user", "Hi"),), "Please tell me", True),
)


def test_scores_are_the_reward_models_own(tmp_path: Path) -> None:
    """transformers alone, on each text by itself as Keel writes it; requests that share a round keep their own."""
    codec = tiny_codec()
    model: Any = tiny_classifier(vocab=len(codec.hf))
    model.save_pretrained(tmp_path)
    codec.save(tmp_path)
    reward = ServedReward(str(tmp_path), device="cpu", say=heard)
    found = reward.score([ITEMS, ITEMS[1:]])
    expected = []
    for item in ITEMS:
        row = Renderer(codec).encode(item.prompt, item.response, ended=item.ended)
        expected.append(model(input_ids=torch.tensor([row.tokens])).logits.item())
    assert found[0].scores == pytest.approx(expected, abs=1e-5)
    assert found[1].scores == pytest.approx(expected[1:], abs=1e-5)
    assert len(set(expected)) == 3
    assert (found[0].cut, found[1].cut) == ((False,) * 3, (False,) * 2)


def test_an_encoder_reads_the_pair(tmp_path: Path) -> None:
    tokenizer = encoder_tokenizer()
    model: Any = tiny_encoder("bert", vocab=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (found,) = ServedReward(str(tmp_path), device="cpu", say=heard).score([ITEMS[:1]])
    expected = model(**tokenizer("Buy a ladder", "No.", return_tensors="pt")).logits
    assert found.scores == pytest.approx(expected.flatten().tolist(), abs=1e-5)


def test_an_ensemble_scores_with_its_mean(tmp_path: Path) -> None:
    singles = []
    for seed in range(2):
        member = tmp_path / f"member-{seed}"
        model: Any = tiny_classifier(vocab=len(tiny_codec().hf), seed=seed)
        model.save_pretrained(member)
        tiny_codec().save(member)
        singles.append(ServedReward(str(member), device="cpu", say=heard).score([ITEMS])[0].scores)
    (tmp_path / "ensemble.json").write_text('{"members": ["member-0", "member-1"]}')
    (found,) = ServedReward(str(tmp_path), device="cpu", say=heard).score([ITEMS])
    assert found.scores == pytest.approx([sum(pair) / 2 for pair in zip(*singles, strict=True)], abs=1e-5)


def test_a_prompt_that_is_cut_is_said_to_be_and_a_response_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save = tiny_codec()
    model: Any = tiny_classifier(vocab=len(save.hf))
    model.save_pretrained(tmp_path)
    save.save(tmp_path)
    said: list[str] = []
    reward = ServedReward(str(tmp_path), device="cpu", say=said.append)
    (found,) = reward.score([(ITEMS[0], ScoreItem("ladder " * 60, "No.", True))])
    assert found.cut == (False, True)
    assert len(said) == 1
    with pytest.raises(UserError, match="reads at most 64 tokens, and a response has"):
        reward.score([(ScoreItem("a", "ladder " * 70, True),)])
