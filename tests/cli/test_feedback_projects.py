"""`keel feedback import` to `restore` by the command line, and what is told of mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keel.cli import app
from keel.errors import UserError
from keel.feedback.database import Database
from keel.feedback.projects import Settings, change_settings, find_project, settings_of
from tests.feedback.worlds import answered, people, tasks_of

runner = CliRunner()


def keel(*arguments: object, columns: int = 200) -> str:
    """What a command prints. A user's mistake is raised as it reaches `main`."""
    result = runner.invoke(app, ["feedback", *map(str, arguments)], env={"COLUMNS": str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def rows(file: Path, *values: object) -> Path:
    file.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return file


def test_from_files_to_files_and_by_a_backup_to_another_database(tmp_path: Path) -> None:
    database = tmp_path / "feedback.db"
    tasks = rows(
        tmp_path / "tasks.jsonl",
        *({"prompt": f"p{k}", "responses": ["a", "b"]} for k in range(3)),
        {"prompt": "p", "responses": ["a", "a"]},
    )
    settings = tmp_path / "settings.yaml"
    settings.write_text("votes: 2\nquestion: Which is kinder?\n")
    told = keel("import", "kind", tasks, "--kind", "compare", "--settings", settings, "--database", database)
    assert "The project kind is new" in told
    assert "3 new tasks in kind" in told
    assert "1 was left out; rows count from 0.\nRow 3 of " in told
    assert "tasks.jsonl: The chosen and the rejected response are the same.\n" in told
    assert "0 new tasks in kind, 3 were there already" in keel("import", "kind", tasks, "--database", database)
    gold = rows(tmp_path / "gold.jsonl", {"prompt": "g", "chosen": "a", "rejected": "b"})
    told = keel("import", "kind", gold, "--gold", "--database", database)
    assert "1 new task in kind" in told
    assert "But nobody is given gold in kind while its gold_share is 0; set it to 0.05, say" in told

    opened = Database(database)
    with opened.writing() as session:
        made = find_project(session, "kind")
        assert (settings_of(made).votes, settings_of(made).question) == (2, "Which is kinder?")
        users = people(session, "ann", "bob")
        for number, task in enumerate(tasks_of(session, made)):
            for user in users:
                best = None if number == 1 else 0
                answer = {"best": best, "strength": "tie" if best is None else "clear"}
                answered(session, made, user, task, answer, duration=2.0)
    opened.close()

    out, ties = tmp_path / "out.jsonl", tmp_path / "ties.jsonl"
    told = keel("export", "kind", out, "--database", database)
    assert "4 judgements written" in told
    assert "2 ties left out; --ties FILE.jsonl writes them" in told
    assert [json.loads(line)["chosen"] for line in out.read_text().splitlines()] == ["a"] * 4
    told = keel("export", "kind", out, "--force", "--ties", ties, "--all", "--anonymous", "--database", database)
    assert "6 judgements written" in told
    assert len(ties.read_text().splitlines()) == 2

    shown = keel("quality", "kind", "--database", database)
    assert "Krippendorff's α (nominal) 1.00" in shown
    assert "100% of 1" in shown
    assert "(21% to 100%)" in shown  # Wilson's of one of one

    file, other = tmp_path / "backup.gz", tmp_path / "other.db"
    assert "of them 8 judgements, written to" in keel("backup", file, "--database", database)
    assert "of them 8 judgements, are in" in keel("restore", file, "--database", other)
    again = tmp_path / "again.jsonl"
    keel("export", "kind", again, "--ties", tmp_path / "t.jsonl", "--all", "--anonymous", "--database", other)
    assert again.read_text() == out.read_text()  # pseudonyms too


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "new", "tasks.jsonl"], "say how it is judged to make it"),
        (["import", "old", "tasks.jsonl", "--kind", "rank"], "old is a compare project, and --kind says rank"),
        (["import", "old", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["import", "OLD", "nowhere.jsonl", "--kind", "compare"], "there is a project old already"),
        (["import", "old", "tasks.jsonl", "--settings", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["import", "old", "tasks.jsonl", "--settings", "bad.yaml"], "bad.yaml: vote: "),
        (["import", "old", "tasks.jsonl", "--settings", "broken.yaml"], "broken.yaml cannot be read"),
        (["export", "older", "out.jsonl"], "no project is called older; there are old"),
        (["export", "old", "out.csv"], "end the name in .jsonl"),
        (["export", "old", "tasks.jsonl"], "give --force"),
        (
            ["export", "old", "o.jsonl", "--ties", "./o.jsonl"],
            "--ties o.jsonl is the file of OUT too",
        ),
        (["export", "old", "o.jsonl", "--round", "7"], "the project old has no round 7; those it has: 1"),
        (
            ["export", "old", "o.jsonl", "--demonstrations", "d.jsonl"],
            "demonstrations come only of a project that is there to review, and old is there to compare",
        ),
        (["quality", "older"], "no project is called older"),
        (["withdraw", "older"], "no project is called older"),
        (["withdraw", "old", "7"], "has no import 7"),
        (["backup", "tasks.jsonl"], "give --force"),
        (["restore", "tasks.jsonl"], "is not empty"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rows(Path("tasks.jsonl"), {"prompt": "p", "responses": ["a", "b"]})
    Path("bad.yaml").write_text("vote: 2\n")
    Path("broken.yaml").write_text("[\n")
    keel("import", "old", "tasks.jsonl", "--kind", "compare", "--database", "feedback.db")
    with pytest.raises(UserError) as error:
        keel(*arguments, "--database", "feedback.db")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(Path().glob("[od].jsonl"))


@pytest.mark.parametrize(
    "command", [["export", "p", "out.jsonl"], ["quality", "p"], ["withdraw", "p"], ["backup", "out.gz"]]
)
def test_a_database_that_is_not_there_is_not_made(tmp_path: Path, command: list[str]) -> None:
    with pytest.raises(UserError, match="there is no database"):
        keel(*command, "--database", tmp_path / "typo.db")
    assert list(tmp_path.iterdir()) == []


def test_an_import_is_withdrawn_by_its_number(tmp_path: Path) -> None:
    database = tmp_path / "feedback.db"
    right = rows(tmp_path / "right.jsonl", {"prompt": "p", "responses": ["a", "b"]})
    wrong = rows(tmp_path / "wrong.jsonl", *({"prompt": f"w{k}", "responses": ["a", "b"]} for k in range(1200)))
    keel("import", "old", right, "--kind", "compare", "--database", database)
    keel("import", "old", wrong, "--round", "2", "--policy-version", "ppo-\x1b[7m3", "--database", database)
    listed = keel("withdraw", "old", "--database", database, columns=80)
    assert re.search(r"^ +2 .* label +2 +ppo-\ufffd\[7m3 +1,200 +0 *$", listed, re.MULTILINE)
    assert re.search(r"^ +1 .* label +1 +1 +0 *$", listed, re.MULTILINE)
    told = keel("withdraw", "old", "2", "--database", database)
    assert told == "1,200 tasks of old, with 0 votes, are withdrawn; --put-back gives them to people again\n"
    listed = keel("withdraw", "old", "--database", database, columns=80)
    assert re.search(r" 1,200 +0 *\n +withdrawn *$", listed, re.MULTILINE)
    assert max(map(len, listed.splitlines())) <= 80
    again = keel("import", "old", wrong, "--round", "2", "--database", database)
    assert again == "1,200 new tasks in old.\n"
    with pytest.raises(UserError, match="1,200 of its tasks were put in again since; withdraw those before"):
        keel("withdraw", "old", "2", "--put-back", "--database", database)
    keel("withdraw", "old", "1202", "--database", database)
    told = keel("withdraw", "old", "2", "--put-back", "--database", database)
    assert told == "1,200 tasks of old, with 0 votes, are put back\n"


def test_one_is_no_more_than_one(tmp_path: Path) -> None:
    database = tmp_path / "feedback.db"
    one = rows(tmp_path / "one.jsonl", {"prompt": "p", "responses": ["a", "b", "a"]})
    told = keel("import", "kind", one, "--kind", "compare", "--database", database)
    assert told == (
        "The project kind is new.\n1 new task in kind.\n"
        "1 response said the same as another to the same prompt, and was left out.\n"
    )
    assert "0 new tasks in kind, 1 was there already.\n" in keel("import", "kind", one, "--database", database)
    told = keel("withdraw", "kind", "1", "--database", database)
    assert told == "1 task of kind, with 0 votes, is withdrawn; --put-back gives it to people again\n"
    told = keel("withdraw", "kind", "1", "--put-back", "--database", database)
    assert told == "1 task of kind, with 0 votes, is put back\n"


def test_quality_reads_well_on_a_narrow_terminal(tmp_path: Path) -> None:
    """No figure is broken in two, nor a line longer than the terminal, however long a name is."""
    database = tmp_path / "feedback.db"
    pairs = rows(tmp_path / "pairs.jsonl", *({"prompt": f"p{k}", "responses": ["a", "b"]} for k in range(30)))
    known = rows(tmp_path / "gold.jsonl", *({"prompt": f"g{k}", "chosen": "a", "rejected": "b"} for k in range(9)))
    keel("import", "kind", pairs, "--kind", "compare", "--database", database)
    keel("import", "kind", known, "--gold", "--database", database)
    opened = Database(database)
    with opened.writing() as session:
        made = find_project(session, "kind")
        change_settings(session, made, Settings(votes=2, least_seconds=2.0, gold_share=0.1))
        users = people(session, "Maximiliane Annegret von und zu Hohenlohe-Langenburg", "bob")
        for number, task in enumerate(tasks_of(session, made)):
            for user in users:
                answered(session, made, user, task, {"best": number % 2, "strength": "clear"}, duration=number / 7)
                if number < 12:
                    answered(session, made, user, task, {"best": 1, "strength": "clear"}, occasion=1)
    opened.close()
    shown = keel("quality", "kind", "--database", database, columns=80)
    assert max(map(len, shown.splitlines()[1:])) <= 80
    for cell in ("agrees with others", "100% of 30", "too fast", "47% of 30", "(30% to 64%)", "takes the first"):
        assert cell in shown


def test_a_restore_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    """A new file is not left behind, an empty one that was there is."""
    database, file, new = tmp_path / "feedback.db", tmp_path / "backup.gz", tmp_path / "new.db"
    tasks = rows(tmp_path / "tasks.jsonl", {"prompt": "p", "responses": ["a", "b"]})
    keel("import", "kind", tasks, "--kind", "compare", "--database", database)
    keel("backup", file, "--database", database)
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="damaged"):
        keel("restore", file, "--database", new)
    assert list(tmp_path.glob("new.db*")) == []
    Database(new).close()
    with pytest.raises(UserError, match="damaged"):
        keel("restore", file, "--database", new)
    assert new.exists()


@pytest.mark.parametrize(
    "command",
    [
        ["import", "h", "nowhere.jsonl", "--kind", "compare"],
        ["import", "h", "same.jsonl", "--kind", "compare"],
        ["sample", "MODEL", "prompts.jsonl", "--project", "h", "--per-prompt", "1"],
        ["restore", "same.jsonl"],
    ],
)
def test_what_is_refused_leaves_no_new_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("keel.inputs.hash_model", lambda model: "f" * 40)
    rows(Path("prompts.jsonl"), {"prompt": "p"})
    rows(Path("same.jsonl"), {"prompt": "p", "responses": ["a", "a"]})
    with pytest.raises(UserError):
        keel(*command, "--database", "new.db")
    assert list(tmp_path.glob("new.db*")) == []
