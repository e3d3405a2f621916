"""Directories of models, tokenizers, adapters and runs that a stranger may hand over: sentences, and no code run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from keel.build.workbench import load_renderer
from keel.errors import UserError
from keel.models.load import load_causal_lm, load_classifier
from tests.hostile.command import Keel
from tests.hostile.command import keel as _keel
from tests.worlds import save_tiny_lm, tiny_classifier, tiny_codec

Spoil = Callable[[Path], object]


@pytest.fixture
def keel(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Keel:
    return _keel(capsys, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_lm(tmp_path_factory.mktemp("whole") / "model")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def holding(name: str, content: str | bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def saying(name: str, **values: Any) -> Spoil:
    def change(folder: Path) -> None:
        known = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(known | values))

    return change


def index_of(file: str) -> Spoil:
    return holding("model.safetensors.index.json", json.dumps({"metadata": {}, "weight_map": {"a.weight": file}}))


def without_weights(then: Spoil) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        then(folder)

    return spoil


DEEP = "[" * 20_000
NOISE = bytes(range(128, 256))
TOKENIZER, MODEL = "no tokenizer could be loaded from ", "no model could be loaded from "

REFUSED: dict[str, tuple[Spoil, str, str]] = {
    "an empty tokenizer": (holding("tokenizer.json", ""), TOKENIZER, "fetch its files again, or save it anew with"),
    "half a tokenizer": (holding("tokenizer.json", '{"version":'), TOKENIZER, "fetch its files again"),
    "a tokenizer of another version": (holding("tokenizer.json", '{"version": "1.0"}'), TOKENIZER, "(KeyError); fetch"),
    "a list for a tokenizer": (holding("tokenizer.json", "[1]"), TOKENIZER, "(TypeError); fetch its files again"),
    "a deep tokenizer": (holding("tokenizer.json", DEEP), TOKENIZER, "maximum recursion depth exceeded"),
    "noise for a tokenizer": (holding("tokenizer.json", NOISE), TOKENIZER, "codec can't decode byte 0x80"),
    "a list for its settings": (holding("tokenizer_config.json", "[]"), TOKENIZER, "(AttributeError); fetch its files"),
    "a number for its class": (saying("tokenizer_config.json", tokenizer_class=3), TOKENIZER, "fetch its files again"),
    "a tokenizer without an end": (saying("tokenizer_config.json", eos_token=None), "the tokenizer has no end", "set"),
    "a template that is no Jinja": (holding("chat_template.jinja", "{% if %}"), "the chat template", "Expected an"),
    "a template that divides by 0": (holding("chat_template.jinja", "{{ 1 / 0 }}"), "the chat template", "division"),
    "a template without end": (
        holding("chat_template.jinja", "{% for i in range(10 ** 9) %}x{% endfor %}"),
        "the chat template fails on a dialogue of user, assistant",
        "Range too big",
    ),
    "a list for an end": (saying("generation_config.json", eos_token_id="x"), "generation_config.json", "neither"),
    "a list for its drawing": (holding("generation_config.json", "[]"), "generation_config.json cannot be", "list"),
    "noise for its drawing": (holding("generation_config.json", NOISE), "generation_config.json cannot", "JSON"),
    "a deep configuration": (holding("config.json", DEEP), "", "maximum recursion depth exceeded"),
    "a list for a configuration": (holding("config.json", "[]"), "", "must be a mapping, not list"),
    "a width in words": (saying("config.json", hidden_size="wide"), "", "Validation error for field 'hidden_size'"),
    "a width below 0": (saying("config.json", hidden_size=-4), MODEL, "negative dimension -4"),
    "no heads": (saying("config.json", num_attention_heads=0), "", "modulo by zero"),
    "another vocabulary": (saying("config.json", vocab_size=10), "is no whole model", "or have another shape"),
    "weights with a vast header": (holding("model.safetensors", b"\xff" * 7 + b"\0{}"), MODEL, "header too large"),
    "weights with no header": (holding("model.safetensors", bytes([99, *bytes(7)]) + b"[" * 99), MODEL, "invalid JSON"),
    "a shard that is a pickle": (without_weights(index_of("x.bin")), "index.json names x.bin, which is no", "convert"),
    "a shard outside": (without_weights(index_of("../a.safetensors")), "names ../a.safetensors, which", "beside it"),
    "an index of another form": (without_weights(holding("model.safetensors.index.json", "[]")), MODEL, "list indices"),
    "a deep adapter": (holding("adapter_config.json", DEEP), "adapter_config.json cannot be read as an adapter's", ""),
    "an adapter on itself": (
        holding("adapter_config.json", '{"base_model_name_or_path": "."}'),
        "belongs on itself (adapter_config.json names",
        "name its model",
    ),
    "an adapter on a number": (holding("adapter_config.json", '{"base_model_name_or_path": 3}'), "does not name", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_model_that_is_refused(what: str, folder: Path, keel: Keel) -> None:
    spoil, sentence, mend = REFUSED[what]
    spoil(folder)
    said = keel("generate", str(folder), "--prompt", "hi", "--max-new-tokens", "2", "--device", "cpu")
    assert (said.code, said.out) == (2, "")
    assert sentence in said.error
    assert mend in said.error


def test_adapters_that_stand_on_each_other(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    holding("adapter_config.json", '{"base_model_name_or_path": "../other"}')(folder)
    holding("adapter_config.json", '{"base_model_name_or_path": "../model"}')(tmp_path / "other")
    for load in (load_causal_lm, load_renderer, load_classifier):
        with pytest.raises(UserError, match="belongs on itself"):
            load(str(folder))


@pytest.mark.parametrize("members", ['["../a", "b"]', '["..", "b"]', '["/a", "b"]', "3", '["a"]', "[1, 2]"])
def test_an_ensemble_of_what_is_elsewhere(members: str, tmp_path: Path) -> None:
    from keel.adapter_config import members_of

    holding("ensemble.json", f'{{"members": {members}}}')(tmp_path)
    with pytest.raises(UserError, match=r"ensemble\.json does not list the members of an ensemble"):
        members_of(str(tmp_path))


# --- runs and checkpoints ---


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not readable JSON"),
        (NOISE, "is not readable JSON"),
        (DEEP.encode(), "is not readable JSON"),
        (b"[]", "holds no JSON object; restore it or remove it"),
        (b"{}", "is not what `keel run` wrote; restore it, or name another run"),
        (b'{"name": 3, "starts": {}}', "is not what `keel run` wrote; restore it, or name another run"),
    ],
)
def test_a_run_whose_own_file_is_damaged(content: bytes, sentence: str, tmp_path: Path, keel: Keel) -> None:
    (tmp_path / "run.json").write_bytes(content)
    said = keel("report", str(tmp_path))
    assert said.code == 2
    assert sentence in said.error
    assert "run.json" in said.error


def test_lines_of_metrics_that_are_none_are_left_out(tmp_path: Path) -> None:
    from keel.runs.metrics import MetricsLog, read_lines

    lines = [b'{"iteration": 1, "a": 2}', DEEP.encode(), b"[1]", b"3", b"{}", NOISE, b'{"iteration": 2}', b'{"iter']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert read_lines(tmp_path / "metrics.jsonl") == [{"iteration": 1, "a": 2}, {}, {"iteration": 2}]
    MetricsLog(tmp_path / "metrics.jsonl").truncate_after(5)
    assert [row["iteration"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


# --- nothing executes ---


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


PICKLES = (
    "pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "model.pt", "consolidated.00.pth", "tf_model.h5", "flax_model.msgpack", ".metadata", "__0_0.distcp",
)  # fmt: skip
CODE = (
    "modeling_x.py", "configuration_x.py", "tokenization_x.py", "custom_generate/generate.py", "setup.py",
    "conftest.py", "__init__.py", "sitecustomize.py", "data.py", "checkpoint.py",
)  # fmt: skip
HOSTILE = "{{ cycler.__init__.__globals__.os.popen('touch SPRUNG').read() }}"


def plant(folder: Path, sprung: Path) -> None:
    """One of each: pickles, modules that the configurations point to, and a generate of its own."""
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    for name in CODE:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"open({str(sprung)!r}, 'w').close()\n")
    maps = {"AutoConfig": "configuration_x.C", "AutoModelForCausalLM": "modeling_x.M", "AutoModel": "modeling_x.M"}
    saying("config.json", auto_map=maps | {"AutoModelForSequenceClassification": "modeling_x.M"})(folder)
    saying("generation_config.json", custom_generate=str(folder))(folder)


def test_the_traps_work(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_text("{}")
    plant(tmp_path, sprung)
    pickle.loads((tmp_path / "optimizer.pt").read_bytes())
    assert sprung.exists()
    sprung.unlink()
    exec((tmp_path / "modeling_x.py").read_text())
    assert sprung.exists()


def save_tiny_reward(folder: Path) -> Path:
    classifier: Any = tiny_classifier()
    classifier.save_pretrained(folder)
    tiny_codec().save(folder)
    return folder


@pytest.fixture
def planted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A policy, a reward model and data side by side, each with a trap of every kind; the working directory."""
    sprung = tmp_path / "SPRUNG"
    (tmp_path / "data").mkdir()
    rows = "".join(json.dumps({"prompt": f"p{n}", "response": "yes"}) + "\n" for n in range(40))
    (tmp_path / "data" / "rows.jsonl").write_text(rows)
    (tmp_path / "data" / "data.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    (tmp_path / "data" / "rows.pkl").write_bytes(pickle.dumps(Trap(sprung)))
    plant(folder, sprung)
    reward = save_tiny_reward(tmp_path / "reward")
    (reward / "generation_config.json").write_text("{}")
    plant(reward, sprung)
    recipe = {
        "name": "r",
        "device": "cpu",
        "model": {"base": str(folder)},
        "ppo": {
            "prompts": str(tmp_path / "data"),
            "iterations": 2,
            "rollout_batch": 4,
            "sampling": {"max_new_tokens": 3},
            "reward": [{"model": str(reward)}],
            "update": {"minibatches": 1, "epochs": 1},
            "checkpoint_every": 1,
            "max_truncated": 1.0,
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_that_lies_in_a_directory_is_run(planted: Path, keel: Keel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(planted / "model")
    generate = ("generate", model, "--prompt", "hi", "--max-new-tokens", "2", "--device", "cpu")
    assert keel(*generate).code == 0
    assert keel("data", "check", str(planted / "data")).code == 0
    assert keel("init", "mine", "--model", model, "--data", str(planted / "data"), "--yes").code == 0
    assert keel("doctor", "r.yaml", "--json").code in (0, 1)
    run = keel("run", "r.yaml", "--out", "run")
    assert run.code == 0, run.error
    for name in ("step-00000001", "step-00000002"):  # to go on and to export from checkpoints that hold pickles
        for pickled in PICKLES:
            (planted / "run" / "ppo" / "checkpoints" / name / pickled).write_bytes(
                pickle.dumps(Trap(planted / "SPRUNG"))
            )
    (planted / "run" / "ppo" / "done.json").unlink()
    assert keel("run", "r.yaml", "--out", "run").code == 0
    assert keel("export", "run", "--out", "exported").code == 0
    monkeypatch.setattr("keel.serve.launch.run_until_told", lambda app, listening: None)
    reward = str(planted / "reward")
    assert keel("serve", model, "--reward", reward, "--port", "0", "--device", "cpu").code == 0
    assert not [*(planted / "exported").rglob("*.bin"), *(planted / "exported").rglob("*.py")]
    assert not (planted / "SPRUNG").exists()


def test_where_only_pickles_or_code_lie_the_sentence_names_the_mend(planted: Path, keel: Keel) -> None:
    model = planted / "model"
    generate = ("generate", str(model), "--prompt", "hi", "--max-new-tokens", "2", "--device", "cpu")
    (model / "model.safetensors").rename(planted / "kept")
    assert "only safetensors weights are read; convert pickled ones with transformers first" in keel(*generate).error
    index_of("pytorch_model.bin")(model)
    assert "convert pickled ones with transformers first" in keel(*generate).error
    (model / "model.safetensors.index.json").unlink()
    (planted / "kept").rename(model / "model.safetensors")
    saying("tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["tokenization_x.X", None]})(model)
    (model / "tokenizer.json").rename(planted / "tokenizer.json")
    assert TOKENIZER in keel(*generate).error
    (planted / "tokenizer.json").rename(model / "tokenizer.json")
    saying("config.json", model_type="x")(model)
    assert "give model.trust_remote_code: true in a recipe if you trust that code" in keel(*generate).error
    assert not (planted / "SPRUNG").exists()


@pytest.mark.parametrize(
    "template",
    [
        HOSTILE,
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% set x = messages.append(1) %}",
        "{{ self._TemplateReference__context.eval_ctx.environment.compile.__globals__ }}",
    ],
)
def test_a_template_gets_no_further_than_its_text(template: str, folder: Path, tmp_path: Path, keel: Keel,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    holding("chat_template.jinja", template)(folder)
    said = keel("generate", str(folder), "--prompt", "hi", "--chat", "--max-new-tokens", "2", "--device", "cpu")
    assert said.code == 2
    assert "the chat template fails on a dialogue of " in said.error
    assert not (tmp_path / "SPRUNG").exists()
