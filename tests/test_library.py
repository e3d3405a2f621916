"""Keel from Python gives what `keel run` gives; functions stand where a recipe names them."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import keel
from keel.annotate.base import Annotator, Judgement, Pair
from keel.build.collect import make_annotator
from keel.config.recipe import parse_recipe
from keel.references import resolve
from keel.runs.layout import STAGES
from tests.end_to_end.killing import differences, two_stages
from tests.end_to_end.tiny import tiny_recipe
from tests.pipeline.support import StopAt
from tests.test_imports import loaded_by


def test_every_name_is_there_and_typed() -> None:
    for name in vars(keel)["__all__"]:
        assert getattr(keel, name) is not None
    stub = ast.parse(Path(inspect.getfile(keel)).with_suffix(".pyi").read_text(encoding="utf-8"))
    typed = {
        f"{node.module}.{alias.asname}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {f"{module}.{name}" for module, names in vars(keel)["_HOMES"].items() for name in names}
    with pytest.raises(AttributeError, match=r"module 'keel' has no attribute 'sftt'"):
        getattr(keel, "sftt")  # noqa: B009  # as a caller's mistake would


def test_the_guide_names_what_exists() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "guides" / "library.md").read_text(encoding="utf-8")
    named = set(re.findall(r"keel\.(\w+)", text)) - {"yaml"}
    assert len(named) > 12
    assert sorted(named - set(vars(keel)["__all__"])) == []
    linked = re.findall(r"\]\((\S+)\)", text)
    assert len(linked) == 3
    assert all((root / "docs" / "guides" / target).exists() for target in linked)
    for snippet in re.findall(r"```python\n(.*?)```", text, re.S):
        ast.parse(snippet)


def test_configs_and_callbacks_need_no_torch() -> None:
    loaded = loaded_by("import keel; keel.PPOConfig; keel.Recipe; keel.Callback; keel.Annotator; keel.UserError")
    assert "torch" not in loaded
    assert "pydantic" not in loaded_by("import keel")


def test_stages_as_functions_are_those_of_a_recipe(tmp_path: Path) -> None:
    recipe = two_stages(2)
    assert recipe.sft is not None
    assert recipe.ppo is not None
    whole = keel.run(recipe, tmp_path / "whole")
    assert list(whole) == ["sft", "ppo"]
    start = keel.sft(recipe.sft, model=recipe.model, out=tmp_path / "apart", device="cpu")
    trained = keel.ppo(recipe.ppo, model=start.model, out=tmp_path / "apart", device="cpu")
    assert differences(whole["sft"].model, start.model) == []
    assert differences(whole["ppo"].model, trained.model) == []
    assert {**trained.summary, "seconds": 0} == {**whole["ppo"].summary, "seconds": 0}
    assert [line["iteration"] for line in trained.metrics()] == [0, 1, 2]
    sample = trained.samples()[0]
    assert sample.keys() == {"iteration", "prompt", "response", "score", "kl", "ended", "length", "tokens", "token_kl"}
    assert "".join(sample["tokens"]).strip() == sample["response"].strip()
    assert sum(sample["token_kl"]) == pytest.approx(sample["kl"], abs=1e-3)
    again = keel.ppo(recipe.ppo, model=start.model, out=tmp_path / "apart", device="cpu", callbacks=[StopAt(0)])
    assert again == trained  # it was finished, so it is not done again
    with pytest.raises(keel.UserError, match=r"Stage ppo in .*seed: 0 → 1"):
        keel.ppo(recipe.ppo, model=start.model, out=tmp_path / "apart", device="cpu", seed=1)


@pytest.mark.parametrize("stage", ["collect", "train_reward", "direct", "evaluate"])
def test_the_other_stages_pass_on_what_they_are_given(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each does is tested with the recipes; here, that the config, the model and the options arrive."""
    given: dict[str, Any] = {}

    def run_recipe(recipe: keel.Recipe, out: Path, **options: Any) -> None:
        given.update(recipe=recipe, out=out, **options)

    monkeypatch.setattr("keel.library.run_recipe", run_recipe)
    name = stage.removeprefix("train_")
    config = getattr(tiny_recipe(), name)
    if stage in ("train_reward", "direct"):
        config = config.model_copy(update={"data": keel.DataConfig(path="pairs.jsonl")})
    if stage == "evaluate":
        config = config.model_copy(update={"policy": "some/policy", "reward": (keel.RewardSource(model="a/judge"),)})
    callback = StopAt(1)
    result = getattr(keel, stage)(config, model="some/model", out=tmp_path, seed=7, device="cpu", callbacks=[callback])
    assert result.path == tmp_path / name
    assert getattr(given["recipe"], name) == config
    assert [other for other in STAGES if getattr(given["recipe"], other) is not None] == [name]
    assert given["recipe"].model.base == "some/model"
    assert (given["recipe"].seed, given["recipe"].device, given["callbacks"]) == (7, "cpu", [callback])


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    prompts = keel.DataConfig(path="prompts.jsonl")
    with pytest.raises(keel.UserError, match=r"^keel\.ppo: ppo\.reward uses the model `reward`, but"):
        keel.ppo(keel.PPOConfig(prompts=prompts), model="some/model", out=tmp_path)
    with pytest.raises(ValueError, match="changes a recipe's file; change the record itself"):
        keel.run(two_stages(2), tmp_path, set=["seed=1"])
    with pytest.raises(keel.UserError, match="there is no recipe"):
        keel.run(tmp_path / "none.yaml", tmp_path)


# --- functions instead of names ---


def reward(prompts: Any, responses: Any, rows: Any) -> list[float]:
    return [0.0] * len(responses)


def rows() -> list[dict[str, Any]]:
    return [{"prompt": "a", "response": "b"}]


class Judge:
    def compare(self, pairs: Sequence[Pair], uniforms: Sequence[float]) -> list[Judgement]:
        return [Judgement(first_wins=True) for _ in pairs]


def test_a_function_is_kept_by_its_name() -> None:
    tree: dict[str, Any] = {
        "name": "x",
        "model": {"base": "some/model"},
        "sft": {"data": rows},
        "collect": {"prompts": {"function": rows}, "annotator": {"factory": Judge, "name": "judge"}},
        "ppo": {"prompts": rows, "reward": [{"function": reward}], "evaluate": {"utility": reward}},
        "evaluate": {"prompts": rows, "utility": reward, "measures": {"zero": reward}},
        "callbacks": [keel.Callback],
    }
    found = parse_recipe(tree, "test").model_dump(mode="json")
    name = f"{__name__}:"
    assert found["sft"]["data"]["function"] == f"{name}rows"
    assert found["collect"]["annotator"]["factory"] == f"{name}Judge"
    assert found["ppo"]["reward"][0]["function"] == f"{name}reward"
    assert found["ppo"]["evaluate"]["utility"] == found["evaluate"]["measures"]["zero"] == f"{name}reward"
    assert found["callbacks"] == ["keel.runs.callbacks:Callback"]
    assert parse_recipe(found, "test").model_dump(mode="json") == found
    assert resolve(found["ppo"]["reward"][0]["function"]) is reward


def test_what_has_no_name_is_refused() -> None:
    def local(prompts: Any, responses: Any, rows: Any) -> list[float]:
        return []

    for nameless in (local, lambda prompts, responses, rows: [], functools.partial(reward)):
        with pytest.raises(ValueError, match="has no name at the top of a module; define it there with `def`"):
            keel.reference_to(nameless)
    with pytest.raises(keel.UserError, match=r"`ppo\.reward\.0\.function`: .*has no name at the top of a module"):
        parse_recipe(
            {"name": "x", "model": {"base": "m"}, "ppo": {"prompts": "p", "reward": [{"function": local}]}}, "test"
        )


def nothing() -> int:
    return 3


def test_annotators_of_ones_own() -> None:
    config = keel.AnnotatorConfig(factory=f"{__name__}:Judge", name="judge")
    annotator: Annotator = make_annotator(config)
    assert annotator.compare([Pair("a", "b", "c", {})], [0.9]) == [Judgement(True)]
    with pytest.raises(keel.UserError, match=r"returned a int, which has no method compare\(pairs, uniforms\)"):
        make_annotator(keel.AnnotatorConfig(factory=f"{__name__}:nothing", name="x"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "an annotator is either `script:`"),
        ({"script": "a:b", "factory": "a:c", "name": "x"}, "an annotator is either `script:`"),
        ({"factory": "a:c"}, "an annotator of your own needs a `name:`"),
        ({"factory": "a:c", "name": "x", "temperature": 1.0}, "temperature has no effect with a factory"),
    ],
)
def test_an_annotator_is_one_thing(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        keel.AnnotatorConfig(**settings)
