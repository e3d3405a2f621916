"""The command line as a user meets it: commands, their help, and mistakes in one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from keel.build import generate_responses, load_renderer
from keel.cli import app, main
from keel.config.sampling import SamplingConfig
from keel.runs.layout import STAGES
from keel.schema import Prompt
from tests.end_to_end.tiny import tiny_recipe

COMMANDS = ("demo", "init", "doctor", "run", *STAGES, "report", "generate", "chat", "serve", "schema", "data check")


def keel(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200", "TERM": "dumb"}, catch_exceptions=False)


def fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line on stderr with which a user's mistake ends."""
    monkeypatch.setattr(sys, "argv", ["keel", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("keel: ")
    assert "Traceback" not in error
    return error.removeprefix("keel: ").rstrip("\n")


def save(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """The recipe's file, the run's directory, and what `python -m keel run` wrote, in a process of its own."""
    folder = tmp_path_factory.mktemp("cli")
    recipe = save(folder / "tiny.yaml", tiny_recipe().model_dump(mode="json"))
    command = [sys.executable, "-m", "keel", "run", recipe, "--out", str(folder / "out"), "--set", "ppo.kl.coef=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return recipe, folder / "out", done.stdout


def test_help_names_every_command() -> None:
    text = keel("--help").output
    for command in COMMANDS:
        assert re.search(rf"^\W*{command.split()[0]}\s", text, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_has_an_example(command: str) -> None:
    result = keel(*command.split(), "--help")
    assert result.exit_code == 0
    (example,) = re.findall(r"Example:\s+(keel .*)", result.output)
    assert example.startswith(f"keel {command} ")


def test_a_run_from_beginning_to_report(finished: tuple[str, Path, str]) -> None:
    _, out, text = finished
    for stage in STAGES:
        assert (out / stage / "done.json").exists()
        assert re.search(rf"^{stage} +\d+/\d+", text, re.MULTILINE), stage
    assert "Results" in text
    assert f"Report: {out / 'report.html'}" in text.replace("\n", "")
    assert "<svg" in (out / "report.html").read_text()
    assert json.loads((out / "recipe.json").read_text())["ppo"]["kl"]["coef"] == 0.2
    assert "\x1b" not in text


def test_the_same_command_again_skips_everything(finished: tuple[str, Path, str]) -> None:
    recipe, out, _ = finished
    result = keel("run", recipe, "--out", str(out), "--set", "ppo.kl.coef=0.2")
    assert result.exit_code == 0
    for stage in STAGES:
        assert f"{stage}: finished before, skipped." in result.output


def test_a_refusal_is_one_line(
    finished: tuple[str, Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out, _ = finished
    sentence = fails(capsys, monkeypatch, "run", recipe, "--out", str(out))
    assert "ppo.kl.coef: 0.2 → 0.1" in sentence
    assert "--fresh-from ppo" in sentence
    assert f"--out NEW --reuse {out}" in sentence


def test_generating_greedily(finished: tuple[str, Path, str]) -> None:
    model = str(finished[1] / "ppo" / "model")
    command = ["generate", model, "--prompt", "what is tea ?", "--prompt", "where", "--max-new-tokens", "6"]
    greedy = SamplingConfig(max_new_tokens=6, temperature=0.0)
    prompts = [Prompt("what is tea ?"), Prompt("where")]
    expected = generate_responses(model, prompts, greedy, samples=2, seed=0, device="cpu")
    lines = keel(*command, "--temperature", "0", "--samples", "2", "--json", "--device", "cpu").output.splitlines()
    assert [json.loads(line) for line in lines] == expected
    assert [row["prompt"] for row in expected] == ["what is tea ?"] * 2 + ["where"] * 2
    text = keel(*command, "--temperature", "0", "--seed", "5").output
    assert text.startswith("what is tea ?\n  → ")
    assert text == keel(*command, "--temperature", "0").output  # greedy: no seed plays a part


def test_generating_past_the_context_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, finished: tuple[str, Path, str]
) -> None:
    """The tiny model has a context of 128 tokens."""
    model = str(finished[1] / "sft" / "model")
    length = load_renderer(model).length(Prompt("what is tea ?"))
    sentence = fails(capsys, monkeypatch, "generate", model, "--prompt", "what is tea ?", "--max-new-tokens", "128")
    assert sentence.endswith(f"pass the model's context of 128; lower --max-new-tokens to {128 - length}")


def test_generating_by_seed_from_a_file(finished: tuple[str, Path, str], tmp_path: Path) -> None:
    model = str(finished[1] / "sft" / "model")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "what is tea ?"}\n{"prompt": [{"role": "user", "content": "hello"}]}\n')
    command = ["generate", model, "--prompts", str(file), "--samples", "3", "--max-new-tokens", "8", "--json"]
    one, same, other = (keel(*command, "--seed", seed).output for seed in ("1", "1", "2"))
    assert one == same != other
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["prompt"] for row in rows] == ["what is tea ?"] * 3 + ["hello"] * 3
    assert len({row["response"] for row in rows[:3]}) > 1


def test_chat_sends_a_prompt_through_the_template(finished: tuple[str, Path, str]) -> None:
    model = str(finished[1] / "sft" / "model")
    command = ["generate", model, "--prompt", "hello", "--temperature", "0", "--max-new-tokens", "8", "--json"]
    plain, chat = (json.loads(keel(*command, *more).output) for more in ((), ("--chat",)))
    assert plain["prompt"] == chat["prompt"] == "hello"
    expected = generate_responses(
        model,
        [Prompt("User: hello\n\nAssistant:")],  # the template's text, whose last space belongs to the response
        SamplingConfig(max_new_tokens=8, temperature=0.0),
        samples=1,
        seed=0,
        device="cpu",
    )
    assert chat["response"] == expected[0]["response"]


@pytest.mark.parametrize(
    "option", [("--temperature", "-1"), ("--max-new-tokens", "0"), ("--samples", "0"), ("--top-p", "0")]
)
def test_impossible_options_are_refused_by_name(option: tuple[str, str]) -> None:
    result = keel("generate", "anything", "--prompt", "a", *option)
    assert result.exit_code == 2
    assert option[0] in result.output


def test_a_report_of_several_runs(finished: tuple[str, Path, str], tmp_path: Path) -> None:
    out = str(finished[1])
    result = keel("report", out, out, "--out", str(tmp_path / "both.html"))
    assert result.output == f"Report: {tmp_path / 'both.html'}\n"
    assert (tmp_path / "both.html").exists()


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "nowhere.yaml"), "there is no recipe nowhere.yaml"),
        (("generate", "anything"), "give at least one --prompt TEXT, or a file of them with --prompts FILE"),
        (("report", "nowhere"), "nowhere holds no run (run.json is missing); name the directory that `keel run` made."),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert fails(capsys, monkeypatch, *arguments) == sentence


def test_a_mistyped_key_is_suggested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = tiny_recipe().model_dump(mode="json")
    tree["ppo"]["iteratons"] = 3
    recipe = save(tmp_path / "typo.yaml", tree)
    sentence = fails(capsys, monkeypatch, "run", recipe)
    assert sentence == f"{recipe}: unknown key `ppo.iteratons`; did you mean `iterations`?"
    good = save(tmp_path / "good.yaml", tiny_recipe().model_dump(mode="json"))
    assert "did you mean `coef`?" in fails(capsys, monkeypatch, "ppo", good, "--set", "ppo.kl.coeff=1")


def test_a_stage_that_the_recipe_has_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = tiny_recipe().model_dump(mode="json")
    tree["evaluate"] = None
    recipe = save(tmp_path / "short.yaml", tree)
    assert fails(capsys, monkeypatch, "evaluate", recipe, "--out", str(tmp_path / "out")) == (
        f"{recipe} has no `evaluate:` section, so there is nothing for `keel evaluate` to do"
    )
    assert not (tmp_path / "out").exists()


def test_a_stage_alone_names_what_it_lacks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = save(tmp_path / "tiny.yaml", tiny_recipe().model_dump(mode="json"))
    out = tmp_path / "out"
    sentence = fails(capsys, monkeypatch, "ppo", recipe, "--out", str(out))
    assert sentence == f"ppo needs the sft stage, which has not finished in {out}; run it first"


def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "keel", "run", "nowhere.yaml"], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "keel: there is no recipe nowhere.yaml\n"
