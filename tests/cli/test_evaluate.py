"""`keel evaluate` on a reward: a run's own ensemble, a model by path, a function, a service; and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.build import run_recipe
from keel.runs.console import SilentConsole
from tests.cli.test_main import fails, keel
from tests.end_to_end.tiny import tiny_recipe
from tests.remote.fake import Asked, FakeServer, Reply


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its reward stage, an ensemble of two heads."""
    folder = tmp_path_factory.mktemp("assessed") / "run"
    changes = ["direct=null", "ppo=null", "evaluate=null", "reward.ensemble.members=2", "reward.validate_every=100"]
    run_recipe(tiny_recipe(changes), folder, console=SilentConsole())
    return folder


def longest(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [float(len(response)) for response in responses]


def shortest(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    return [-float(len(response)) for response in responses]


def found_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "assessment.json").read_text())
    return found


def test_a_runs_reward_model_on_what_it_held_out(run: Path) -> None:
    result = keel("evaluate", str(run), "--samples", "6", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = found_in(run / "reward")
    trained = json.loads((run / "reward" / "done.json").read_text())
    assert found["accuracy"]["accuracy"] == pytest.approx(trained["accuracy"])
    assert found["accuracy"]["interval"] == pytest.approx(trained["accuracy_interval"])
    assert found["stated_ceiling"] == pytest.approx(trained["noise_ceiling"])
    assert found["held_out"]
    for one, other in zip(found["calibration"]["reliability"], trained["reliability"], strict=True):
        assert one["predicted"] == pytest.approx(other["predicted"], abs=1e-5)
    assert all(group["disagreement"] > 0 for group in found["replies"])
    assert found["invariance"]["holds"]
    page = (run / "report.html").read_text()
    assert "Reward model, assessed" in page
    assert "Scores of real replies and of probes" in page
    assert "members disagree" in result.output


def test_a_model_by_path_on_data_of_ones_own(run: Path, tmp_path: Path) -> None:
    """Rankings with a tie; the ensemble reads them, beside the reference's replies to other prompts."""
    data, prompts = tmp_path / "rankings.jsonl", tmp_path / "prompts.jsonl"
    row = {"prompt": "what is tea ?", "responses": ["a drink .", "no idea .", "who knows ?"], "ranks": [1, 2, 2]}
    data.write_text("".join(json.dumps(row | {"prompt": f"what is {word} ?"}) + "\n" for word in ("tea", "oil")))
    prompts.write_text('{"prompt": "how is tea made ?"}\n{"prompt": "where is it ?"}\n')
    more = ["--reference", str(run / "sft" / "model"), "--prompts", str(prompts), "--max-new-tokens", "6"]
    out = tmp_path / "out"
    result = keel("evaluate", str(run / "reward" / "model"), "--data", str(data), "--out", str(out), *more)
    assert result.exit_code == 0, result.output
    found = found_in(out)
    assert (found["accuracy"]["pairs"], found["ties_left_out"], found["responses"]) == (4, 2, 6)
    assert found["replies"][0]["name"] == "replies of the reference"
    assert [group["replies"] for group in found["replies"]] == [2] * 11
    assert not found["held_out"]
    assert "<svg" in (out / "assessment.html").read_text()


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    file = tmp_path / "votes.jsonl"
    one = {"prompt": "p", "chosen": "a long reply", "rejected": "short"}
    turned = {"prompt": "p", "chosen": "short", "rejected": "a long reply"}
    hostile = {"prompt": "<script>alert(1)</script>", "chosen": "<b>yes</b>", "rejected": "no"}
    named = [row | {"annotator": who} for row, who in ((one, "ann"), (one, "bob"), (turned, "cat"), (hostile, "ann"))]
    file.write_text("".join(json.dumps(row) + "\n" for row in named))
    return file


def test_a_function_that_loves_length(votes: Path, tmp_path: Path) -> None:
    result = keel("evaluate", "tests.cli.test_evaluate:longest", "--data", str(votes), "--out", str(tmp_path / "o"))
    assert result.exit_code == 0, result.output
    found = found_in(tmp_path / "o")
    assert found["accuracy"]["accuracy"] == 0.75
    assert found["ceiling"]["votes"] == 3
    assert found["calibration"] is None
    assert "calibration error" not in result.output
    assert "“reply said over and over” scores above the median real reply" in " ".join(result.output.split())
    assert "<script>" not in (tmp_path / "o" / "assessment.html").read_text()


def test_where_nothing_can_be_written(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below a file there is no folder."""
    asked = ("evaluate", "tests.cli.test_evaluate:longest", "--data", str(votes))
    said = fails(capsys, monkeypatch, *asked, "--out", str(votes / "o"))
    assert f"{votes / 'o'} cannot be written (Not a directory)" in said
    assert "it is a folder" in fails(capsys, monkeypatch, *asked, "--out", "page.html")


def test_another_rewards_assessment_is_not_replaced_unasked(
    votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = "tests.cli.test_evaluate:longest", "tests.cli.test_evaluate:shortest"
    more = tmp_path / "more.jsonl"
    more.write_text(votes.read_text())
    asked = ("--data", str(votes), "--out", str(tmp_path / "o"))
    for _ in range(2):  # its own it replaces
        assert keel("evaluate", mine, *asked).exit_code == 0
    kept = found_in(tmp_path / "o")
    said = fails(capsys, monkeypatch, "evaluate", other, *asked)
    file = tmp_path / "o" / "assessment.json"
    assert said == (f"{file} is there already, of {mine} on {votes}; give another --out, or --force to replace it")
    assert "is there already" in fails(capsys, monkeypatch, "evaluate", mine, "--data", str(more), *asked[2:])
    assert found_in(tmp_path / "o") == kept
    assert keel("evaluate", other, *asked, "--force").exit_code == 0
    assert found_in(tmp_path / "o")["source"] == other


def test_without_out_each_reward_has_a_folder_of_its_own(
    votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("longest", "shortest"):
        result = keel("evaluate", f"tests.cli.test_evaluate:{name}", "--data", str(votes))
        assert result.exit_code == 0, result.output
    folders = sorted((tmp_path / "runs").iterdir())
    assert [folder.name for folder in folders] == [
        "assessment-tests.cli.test_evaluate-longest",
        "assessment-tests.cli.test_evaluate-shortest",
    ]
    assert [found_in(folder)["accuracy"]["accuracy"] for folder in folders] == [0.75, 0.25]


def test_a_runs_own_assessment_is_not_replaced_by_one_on_other_data(
    run: Path, votes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_held_out = {"source": str(run / "reward" / "model"), "data": ["collect"], "held_out": True}
    (run / "reward" / "assessment.json").write_text(json.dumps(of_held_out))
    said = fails(capsys, monkeypatch, "evaluate", str(run), "--data", str(votes), "--device", "cpu")
    assert "is there already" in said


def test_a_service(votes: Path, tmp_path: Path) -> None:
    """A server that scores by length too."""

    def answer(asked: Asked) -> Reply:
        return Reply({"scores": [float(len(item["response"])) for item in asked.body["items"]]})

    with FakeServer(answer) as server:
        result = keel("evaluate", server.url, "--data", str(votes), "--out", str(tmp_path / "o"))
    assert result.exit_code == 0, result.output
    assert found_in(tmp_path / "o")["accuracy"]["accuracy"] == 0.75


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model",), "there is nothing to judge model on: give comparisons with --data FILE"),
        (("r.yaml", "--data", "x"), "--data has no effect on a recipe, which says everything itself"),
        (("model", "--set", "a=1", "--data", "x"), "--set has no effect on a reward, which is no recipe"),
        (("model", "--data", "x", "--prompts", "y"), "--prompts and --max-new-tokens are of the --reference's replies"),
        (("model", "--data", ""), "the path or function is empty"),
        (("m:f", "--data", "x", "--label", "1"), "label has no effect on a function"),
    ],
)
def test_what_has_no_effect_is_refused(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words in fails(capsys, monkeypatch, "evaluate", *arguments)


def test_a_run_without_a_reward_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text('{"name": "empty", "starts": []}')
    assert "has no finished reward stage" in fails(capsys, monkeypatch, "evaluate", str(tmp_path))
