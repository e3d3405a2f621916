from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from keel.engines.reward_functions import WorkerFunction
from keel.errors import UserError
from keel.user_functions import checked

SOURCE = """
import glob, os, subprocess, sys, time

def f(prompts, responses, rows):
    (response,), (row,) = responses, rows
    if response == "die": os._exit(7)
    if response == "crash": os.abort()
    if response == "hang":
        with open(row["note"], "w") as file: file.write(str(os.getpid()))
        time.sleep(60)
    if response == "child":
        with open(row["note"], "w") as file: file.write(str(subprocess.Popen(["sleep", "60"]).pid))
        time.sleep(60)
    if response == "raise": raise ValueError("bad")
    if response == "nan": return [float("nan")]
    if response == "many": return [1.0, 2.0]
    if response == "none": return [None]
    if response == "torch": return ["torch" in sys.modules]
    if response == "pid": return [os.getpid()]
    if response == "slow": time.sleep(0.05)
    if response == "meet":  # in another process, or never
        open(f"{row['note']}-{os.getpid()}", "w").close()
        while len(glob.glob(f"{row['note']}-*")) < 2: time.sleep(0.01)
        return [os.getpid()]
    return [len(prompts[0]) + 10 * len(response) + row["n"] / 4]
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "worker_taste.py").write_text(SOURCE)


@pytest.fixture
def made() -> Iterator[Any]:
    """Makes functions, and ends them whatever happens."""
    functions = []

    def make(**options: Any) -> WorkerFunction:
        functions.append(WorkerFunction("worker_taste:f", **options))
        return functions[-1]

    yield make
    for function in functions:
        function.close()


def ask(function: Any, responses: list[str], note: Path | None = None) -> list[float | None]:
    rows = [{"n": n, "note": str(note)} for n in range(len(responses))]
    values: list[float | None] = function(["p" * n for n in range(len(responses))], responses, rows)
    return values


def gone(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")  # one that was killed stays till its parent asks for it; init may take a while
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_results_are_in_order_and_independent_of_the_number_of_workers(made: Any) -> None:
    responses = ["slow", "a", "none", "bb", "slow", "", "c" * 9, "a", "b"]
    by_hand = [40.0, 11.25, None, 23.75, 45.0, 6.25, 97.5, 18.75, 20.0]
    for workers in (1, 2, 4):
        function = made(workers=workers)
        assert ask(function, responses) == by_hand
        assert ask(function, responses[:2]) == by_hand[:2]  # a second batch


def test_more_than_one_process_is_at_work_and_none_holds_torch(made: Any, tmp_path: Path) -> None:
    function = made(workers=2, timeout=120)
    pids = set(ask(function, ["meet", "meet"], tmp_path / "met"))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert set(ask(function, ["pid"] * 9)) <= pids  # the same ones again
    assert ask(function, ["torch"]) == [0.0]


def test_closing_ends_the_processes_and_the_next_call_starts_others(made: Any) -> None:
    function = made(workers=1)
    (first,) = ask(function, ["pid"])
    function.close()
    assert gone(int(first or 0))
    (second,) = ask(function, ["pid"])
    assert second != first


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        ("die", r"ended its worker process with exit code 7 \(row 1, prompt 'p', response 'die'\); mend the function$"),
        ("crash", r"ended its worker process with signal SIGABRT \(row 1, prompt 'p', response 'crash'\)"),
        ("hang", r"took more than 1 s \(row 1, prompt 'p', response 'hang'\); make it faster or raise `timeout`$"),
        ("raise", r"raised ValueError: bad \(row 1, prompt 'p', response 'raise'\); mend the function$"),
    ],
)
def test_a_failure_stops_unless_it_may_be_no_opinion(
    made: Any, response: str, sentence: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    timeout = 1.0 if response == "hang" else None
    stops = made(workers=2, timeout=timeout)
    with pytest.raises(UserError, match=r"^the function worker_taste:f " + sentence):
        ask(stops, ["a", response, "b"], tmp_path / "note")
    assert ask(stops, ["a"]) == [10.0]  # nothing is left over

    said: list[str] = []
    goes_on = made(workers=2, timeout=timeout, on_error="none", say=said.append)
    for _ in range(2):
        assert ask(goes_on, ["a", response, "b"], tmp_path / "note") == [10.0, None, 12.5]
    assert len(said) == 1
    assert said[0].startswith("warning: the function worker_taste:f ")
    with pytest.raises(UserError, match="all 2 responses failed, so none of them can be left out"):
        ask(goes_on, [response, response], tmp_path / "note")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        ("nan", r"returned nan \(row 1, prompt 'p', response 'nan'\); return a finite number$"),
        ("many", r"returned 2 values for 1 responses; return a list, one each$"),
    ],
)
def test_what_breaks_the_contract_always_stops(made: Any, response: str, sentence: str) -> None:
    with pytest.raises(UserError, match=r"^the function worker_taste:f " + sentence):
        ask(made(workers=1, on_error="none"), ["a", response, "b"])


def test_in_workers_the_sentences_are_those_of_the_function_in_process(made: Any, tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path))
    try:
        import worker_taste  # type: ignore[import-not-found]  # written a moment ago
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("worker_taste", None)
    for response in ("raise", "nan"):
        said = []
        for function in (made(workers=1), checked("worker_taste:f", worker_taste.f)):
            with pytest.raises(UserError) as caught:
                function([""], [response], [{}])
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_what_the_function_started_ends_with_its_worker(made: Any, tmp_path: Path) -> None:
    function = made(workers=1, timeout=3.0)
    with pytest.raises(UserError, match="took more than 3 s"):
        ask(function, ["child"], tmp_path / "note")
    child = int((tmp_path / "note").read_text())
    assert_gone_soon(child)


def test_a_worker_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = (
        "from keel.engines.reward_functions import WorkerFunction\n"
        "if __name__ == '__main__':\n"
        f"    WorkerFunction('worker_taste:f', workers=1)(['p'], ['hang'], [{{'note': {str(note)!r}}}])\n"
    )
    (tmp_path / "parent.py").write_text(script)
    with subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path) as parent:
        deadline = time.monotonic() + 120
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        worker = int(note.read_text())
        assert not gone(worker)
        parent.send_signal(signal.SIGKILL)
    assert_gone_soon(worker)


SCRIPT = """
from keel.engines.reward_functions import WorkerFunction

def f(prompts, responses, rows):
    return [len(responses[0])]

if {guard}:
    print(WorkerFunction("__main__:f", workers=2)(["p"] * 3, ["a", "bb", "ccc"], [{{}}] * 3))
"""


@pytest.mark.parametrize("guard", ["__name__ == '__main__'", "True"])
def test_a_function_of_the_running_script(guard: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=guard))
    ended = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if guard == "True":
        assert 'must guard what it does with `if __name__ == "__main__":`' in ended.stderr
    else:
        assert ended.stdout == "[1.0, 2.0, 3.0]\n", ended.stderr


def assert_gone_soon(pid: int) -> None:
    deadline = time.monotonic() + 60
    while not gone(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gone(pid)


def test_a_module_that_cannot_be_imported_in_a_worker_is_named(tmp_path: Path) -> None:
    function = WorkerFunction("worker_tasteless:f", workers=2)
    with pytest.raises(UserError, match=r'there is no module "worker_tasteless".*Did you mean "worker_taste"'):
        ask(function, ["a"])
    (tmp_path / "worker_gone.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(UserError, match="a worker of the function worker_gone:f ended with exit code 3 before its fir"):
        ask(WorkerFunction("worker_gone:f", workers=1), ["a"])


def test_a_row_that_cannot_be_sent_is_named(made: Any) -> None:
    with pytest.raises(UserError, match=r"^row 0, prompt 'p', response 'r': its columns cannot be sent to a worker"):
        made(workers=1)(["p"], ["r"], [{"n": 0, "f": lambda: 0}])


def test_nothing_to_judge(made: Any) -> None:
    assert made(workers=2)([], [], []) == []
