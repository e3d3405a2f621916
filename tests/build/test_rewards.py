"""Rewards from a recipe. Of models, transformers alone on a text that is written by hand is the judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from keel.batching import pad_rows
from keel.build import run_recipe
from keel.errors import UserError
from keel.models.export import save_reward_model
from keel.models.reward import RewardModel
from keel.records import Samples, Scores
from keel.runs.metrics import read_lines
from keel.schema import Message, Prompt
from tests.build.test_build import PPO, bench_of, prompts_file, recipe_of, samples_of
from tests.pipeline.support import Heard
from tests.worlds import chatml_codec, encoder_tokenizer, save_tiny_lm, tiny_classifier, tiny_codec, tiny_encoder


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The policy."""
    return str(save_tiny_lm(tmp_path / "model"))


def save_classifier(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def judged(policy: str, tmp_path: Path, prompt: Any, said: list[str] | None = None, **reward: Any) -> Scores:
    """What the recipe's one reward says of a response that was cut off, and of the same one that ended."""
    recipe = recipe_of(policy, ppo={**PPO, "prompts": prompts_file(tmp_path, ["a"]), "reward": [reward]})
    bench, console = bench_of(recipe, tmp_path)
    renderer = bench.renderer(policy)
    item = renderer.item(Prompt(prompt))
    rows = [renderer.encode(prompt, RESPONSE, ended=ended) for ended in (False, True)]
    samples = Samples(pad_rows(rows), None, torch.tensor([False, True]), (item, item), (RESPONSE, RESPONSE))
    scores = bench.scorer(renderer).score(samples)
    if said is not None:
        said += console.said
    return scores


def alone(classifier: Any, tokenizer: Any, *texts: str, label: int = 0, special: bool = True) -> float:
    with torch.no_grad():
        inputs = tokenizer(*texts, return_tensors="pt", add_special_tokens=special)
        return float(classifier(**inputs).logits[0, label])


RESPONSE = " the ladder"
DATA = {"data": "pairs.jsonl"}
CHAT = (Message("user", "Could you"),)


@pytest.mark.parametrize("prompt", ["Could you", CHAT])
@pytest.mark.parametrize("same_tokenizer", [False, True])
def test_a_chat_model_reads_its_own_template(prompt: Any, same_tokenizer: bool, tmp_path: Path) -> None:
    """Whatever the policy's: its prompt's words are the user's message."""
    policy = str(save_tiny_lm(tmp_path / "policy", chatml_codec() if same_tokenizer else None))
    hf = chatml_codec().hf
    classifier: Any = tiny_classifier("gpt2", vocab=len(hf), num_labels=3)
    classifier.config.id2label = {0: "rude", 1: "neutral", 2: "polite"}
    judge = save_classifier(tmp_path / "judge", classifier, hf)
    found = judged(policy, tmp_path, prompt, model=judge, label="polite", weight=-2.0, name="kind")
    cut = "<|turn|>user\nCould you<|end|>\n<|turn|>assistant\nthe ladder"
    expected = [alone(classifier, hf, text, label=2, special=False) for text in (cut, cut + "<|end|>\n")]
    assert found.parts["kind"].tolist() == pytest.approx(expected, abs=1e-5)
    assert found.total.tolist() == pytest.approx([-2 * score for score in expected], abs=1e-5)


def test_a_model_that_keel_trained_reads_as_it_was_trained(tmp_path: Path) -> None:
    """Whatever template its tokenizer has: text as text, and with the policy's tokenizer the ids that were sampled."""
    codec = chatml_codec()
    policy = str(save_tiny_lm(tmp_path / "policy", codec))
    trained: Any = RewardModel(tiny_classifier(vocab=len(codec.hf)))
    trained.normalise(0.5, 1.0)
    save_reward_model(trained, codec.hf, tmp_path / "judge", scale=1.0)
    found = judged(policy, tmp_path, "Could you", model=str(tmp_path / "judge")).total.tolist()
    ids = [*codec.encode("Could you"), *codec.encode(RESPONSE)]
    with torch.no_grad():
        for tokens, score in zip((ids, [*ids, codec.hf.convert_tokens_to_ids("<|eos|>")]), found, strict=True):
            raw = trained.classifier(input_ids=torch.tensor([tokens])).logits[0, 0]
            assert score == pytest.approx(float(raw) - 0.5, abs=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta"])
def test_an_encoder_reads_a_pair(family: str, model: str, tmp_path: Path) -> None:
    hf = encoder_tokenizer(token_types=family == "bert")
    hf.pad_token = hf.convert_ids_to_tokens(1)
    classifier = tiny_encoder(family, vocab=len(hf))
    judge = save_classifier(tmp_path / "judge", classifier, hf)
    expected = alone(classifier, hf, "Could you", "the ladder")
    for prompt in ("Could you ", CHAT):
        found = judged(model, tmp_path, prompt, model=judge)
        assert found.parts["judge"].tolist() == pytest.approx([expected] * 2, abs=1e-5)


def test_a_template_that_is_asked_for(model: str, tmp_path: Path) -> None:
    hf = chatml_codec().hf
    classifier: Any = tiny_classifier("llama", vocab=len(hf))
    judge = save_classifier(tmp_path / "judge", classifier, hf)
    file = tmp_path / "judge.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    by_file = judged(model, tmp_path, "Could you", model=judge, template=str(file)).total.tolist()
    written = "user: Could you\nassistant: the ladder"
    expected = [alone(classifier, hf, text, special=False) for text in (written, written + "\n")]
    assert by_file == pytest.approx(expected, abs=1e-5)
    by_text = judged(model, tmp_path, "Could you", model=judge, template="text").total.tolist()
    assert by_text[0] == pytest.approx(alone(classifier, hf, "Could you the ladder"), abs=1e-5)
    with pytest.raises(UserError, match=r"^template of the reward judge: none\.jinja cannot be read"):
        judged(model, tmp_path, "Could you", model=judge, template="none.jinja")


@pytest.mark.parametrize(("limits", "tokens"), [({}, 9), ({"max_tokens": 8}, 8), ({"max_tokens": 12}, 12)])
def test_an_encoders_length(limits: dict[str, int], tokens: int, model: str, tmp_path: Path) -> None:
    hf = encoder_tokenizer()
    hf.model_max_length, hf.truncation_side = 9, "left"  # transformers' own way to cut is the judge
    classifier: Any = tiny_encoder("bert", vocab=len(hf), context=12)
    judge = save_classifier(tmp_path / "judge", classifier, hf)
    said: list[str] = []
    found = judged(model, tmp_path, "Could you " * 4, said, model=judge, **limits)
    prompt = ("Could you " * 4).strip()
    inputs = hf(prompt, "the ladder", truncation="only_first", max_length=tokens, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == tokens
    with torch.no_grad():
        expected = float(classifier(**inputs).logits[0, 0])
    assert found.total.tolist() == pytest.approx([expected] * 2, abs=1e-5)
    assert found.cut["judge"].tolist() == [True, True]
    (line,) = said
    assert line.startswith(f"ppo: warning: the reward judge reads at most {tokens} tokens; longer texts")
    with pytest.raises(UserError, match=r"^max_tokens of the reward judge is 13, and the model has 12 positions"):
        judged(model, tmp_path, "Could you", model=judge, max_tokens=13)


@pytest.mark.parametrize("stage", ["reward", "critic"])
def test_an_encoder_judges_and_is_not_trained(stage: str, model: str, tmp_path: Path) -> None:
    hf = encoder_tokenizer()
    judge = save_classifier(tmp_path / "judge", tiny_encoder("bert", vocab=len(hf)), hf)
    bench, _ = bench_of(recipe_of(model, ppo={**PPO, "prompts": prompts_file(tmp_path, ["a"])}, reward=DATA), tmp_path)
    train: Any = {
        "reward": lambda: bench.models.new_reward_model(judge),
        "critic": lambda: bench.models.trained_policy(model, critic="network", critic_source=judge),
    }[stage]
    with pytest.raises(UserError, match=r"^BertForSequenceClassification has no `score` head of one label without"):
        train()


def test_several_labels_want_a_choice(model: str, tmp_path: Path) -> None:
    codec = tiny_codec()
    judge = save_classifier(tmp_path / "judge", tiny_classifier(vocab=len(codec.hf), num_labels=2), codec.hf)
    with pytest.raises(UserError, match=r"^label of the reward judge: .*give one of 0 \(LABEL_0\), 1 \(LABEL_1\)$"):
        judged(model, tmp_path, "Could you", model=judge)


def test_a_reward_model_is_frozen_and_may_judge_twice(model: str, tmp_path: Path) -> None:
    codec = tiny_codec()
    judge = save_classifier(tmp_path / "judge", tiny_classifier(vocab=len(codec.hf), num_labels=2), codec.hf)
    rewards = [{"model": judge, "label": label, "name": f"label{label}"} for label in (0, 1)]
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts_file(tmp_path, ["a"]), "reward": rewards})
    bench, _ = bench_of(recipe, tmp_path)
    renderer = bench.renderer(model)
    scorer: Any = bench.scorer(renderer)
    assert not any(weight.requires_grad for one, _ in scorer.scorers for weight in one.model.parameters())
    parts = scorer.score(samples_of(renderer.item(Prompt("Could you")), [5, 6])).parts
    assert parts.keys() == {"label0", "label1"}
    assert float(parts["label0"][0]) != float(parts["label1"][0])


WORKERS = """
import os, time
def f(prompts, responses, rows):
    with open(f"worker-{os.getpid()}", "w"): pass
    if os.path.exists("trap"): os._exit(5)
    return [float(len(response)) for response in responses]
"""


@pytest.mark.parametrize("trap", [False, True])
def test_workers_end_with_the_stage(trap: bool, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build_workers.py").write_text(WORKERS)
    if trap:
        (tmp_path / "trap").touch()
    reward = {"function": "build_workers:f", "workers": 2, "timeout": 20}
    prompts = prompts_file(tmp_path, [f"Could you {n}" for n in range(20)])
    recipe = recipe_of(model, ppo={**PPO, "prompts": prompts, "reward": [reward]})
    if trap:
        with pytest.raises(UserError, match="the function build_workers:f ended its worker process with exit code 5"):
            run_recipe(recipe, tmp_path / "out", console=Heard())
    else:
        run_recipe(recipe, tmp_path / "out", console=Heard())
        _, line = read_lines(tmp_path / "out" / "ppo" / "metrics.jsonl")
        assert line["reward/build_workers.f"] == line["objective/scores"]
        assert line["reward/build_workers.f/std"] == line["objective/scores_std"] > 0
    started = [int(path.name.removeprefix("worker-")) for path in tmp_path.glob("worker-*")]
    assert started
    assert os.getpid() not in started
    for pid in started:
        with pytest.raises(ProcessLookupError):  # not even a zombie is left
            os.kill(pid, 0)
