"""`keel chat` as a script uses it, and as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from keel.build.conversation import Conversation, Reply, Responder
from keel.cli import app
from keel.cli.chat import _Stream, _Table
from keel.config.sampling import SamplingConfig
from keel.errors import UserError
from tests.starters.support import save_world
from tests.worlds import chatml_codec, save_tiny_lm

SAMPLING = SamplingConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models with tokenizers and templates of their own."""
    folder = tmp_path_factory.mktemp("world")
    save_world(folder)
    return str(folder / "model"), str(save_tiny_lm(folder / "other", chatml_codec()))


def answers(model: str, *questions: str, seed: int = 0, temperature: float = 1.0) -> list[str]:
    conversation = Conversation(Responder(model, "cpu"))
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    return [conversation.ask(question, sampling, seed=seed, turn=turn).text for turn, question in enumerate(questions)]


def plain(texts: list[str]) -> str:
    """As they are printed, what steers a terminal replaced."""
    return "".join("".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in t.strip()) + "\n" for t in texts)


def chat(*arguments: str, said: str) -> Result:
    return CliRunner().invoke(app, ["chat", *arguments, "--max-new-tokens", "8", "--device", "cpu"], input=said)


def test_a_script_gets_an_answer_a_line_and_nothing_else(models: tuple[str, str]) -> None:
    result = chat(models[0], "--seed", "2", said="hi there\n\nand now ?\n")
    assert result.exit_code == 0
    assert result.stdout == plain(answers(models[0], "hi there", "and now ?", seed=2))
    assert result.stderr == ""


def test_commands_change_what_follows(models: tuple[str, str]) -> None:
    result = chat(models[0], said="/temperature 0\nhi there\n/reset\nhi there\n/quit\nnot heard\n")
    (greedy,) = answers(models[0], "hi there", temperature=0.0)
    assert result.stdout == plain([greedy, greedy])
    assert result.stderr == "(temperature 0)\n(the conversation begins anew)\n"
    system = chat(models[0], "--temperature", "0", said="/system be brief\nhi there\n").stdout
    assert system == chat(models[0], "--temperature", "0", "--system", "be brief", said="hi there\n").stdout
    assert system != plain([greedy])


@pytest.mark.parametrize("line", ["/foo", "/temperature", "/temperature -1", "/temperature inf", "/temperature x"])
def test_what_is_no_command_is_refused(models: tuple[str, str], line: str) -> None:
    error = chat(models[0], said=f"{line}\n").exception
    assert isinstance(error, UserError)
    sentence = f"{line} is no command; there are /reset, /system TEXT, /temperature NUMBER, /quit"
    assert str(error) == sentence


def test_two_models_answer_with_the_same_draws_each_in_its_own_history(models: tuple[str, str]) -> None:
    one, other = (answers(model, "hi", "and now ?", seed=1) for model in models)
    expected = "".join(f"A: {plain([a])}B: {plain([b])}" for a, b in zip(one, other, strict=True))
    assert chat(models[0], "--against", models[1], "--seed", "1", said="hi\nand now ?\n").stdout == expected
    twice = chat(models[0], "--against", models[0], said="hi\n").stdout
    first, second = twice.removeprefix("A: ").split("\nB: ")
    assert first + "\n" == second


def test_forgetting_is_said_beside_the_answers(models: tuple[str, str]) -> None:
    result = chat(models[0], said="tell me of the kettle at home please\n" * 6)
    assert "(the context is full; oldest exchanges left out: " in result.stderr
    assert "context" not in result.stdout


# --- a terminal ---


def table(models: list[str]) -> _Table:
    talkers = [Conversation(Responder(model, "cpu")) for model in models]
    return _Table(talkers, new_tokens=8, temperature=1.0, seed=0, live=True)


@pytest.mark.parametrize(("width", "side_by_side"), [(120, True), (60, False)])
def test_two_answers_stand_side_by_side_where_there_is_room(
    models: tuple[str, str],
    width: int,
    side_by_side: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table(list(models)).hear("hi")
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("A") and "B" in line[width // 2 - 3 :] for line in lines[:1]) == side_by_side
    assert any(line.startswith("B: ") for line in lines) != side_by_side


def test_one_answer_is_written_as_it_grows(models: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    table([models[0]]).hear("hi there")
    (answer,) = answers(models[0], "hi there")
    assert capsys.readouterr().out.startswith(plain([answer.rstrip("\ufffd")]).rstrip("\n"))


def test_half_a_character_waits_for_its_rest(capsys: pytest.CaptureFixture[str]) -> None:
    stream = _Stream()
    written = []
    for text in (" ", " a", " a\ufffd", " aé", " aé\x1b[2J"):
        stream(text)
        written.append(capsys.readouterr().out)
    assert written == ["", "a", "", "é", "\ufffd[2J"]
    stream.end(" aé\x1b[2J!")
    assert capsys.readouterr().out == "!\n"


def test_a_mistake_does_not_end_a_terminals_conversation(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    here = table([models[0]])
    here.hear("/foo")
    here.hear("no " * 200)
    text = capsys.readouterr().out
    assert "/foo is no command" in text
    assert "passes the context of 128" in text


def test_the_end_of_input_and_ctrl_c_at_the_prompt_end_it(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for end in (EOFError, KeyboardInterrupt):
        said = iter(["hi ", end()])
        monkeypatch.setattr("builtins.input", lambda prompt, said=said: _next(said))
        assert list(table([models[0]]).lines()) == ["hi"]


def _next(said: Iterator[str | BaseException]) -> str:
    one = next(said)
    if isinstance(one, BaseException):
        raise one
    return one


def test_an_answer_can_be_stopped(
    models: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = table([models[0]])
    with monkeypatch.context() as patch:
        patch.setattr(_Stream, "__call__", _interrupted)
        here.hear("hi there")
    assert "stopped" in capsys.readouterr().out
    here.hear("hi there")  # as if it had not been said before
    (answer,) = answers(models[0], "hi there")
    assert capsys.readouterr().out.startswith(plain([answer.rstrip("\ufffd")]).rstrip("\n"))


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_an_answer_takes_at_most_half_of_a_small_context(
    models: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 128 tokens and of 64: neither may pass its own."""
    asked: list[int] = []
    ask = Conversation.ask

    def hear(self: Conversation, question: str, sampling: SamplingConfig, **more: Any) -> Reply:
        asked.append(sampling.max_new_tokens)
        return ask(self, question, sampling, **more)

    monkeypatch.setattr(Conversation, "ask", hear)
    for others in ((), ("--against", models[1])):
        done = CliRunner().invoke(app, ["chat", models[0], *others, "--device", "cpu"], input="hi\n")
        assert done.exit_code == 0, done.output
    assert asked == [64, 32, 32]
