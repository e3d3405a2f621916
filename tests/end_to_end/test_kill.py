from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def _harness(kills: int, *options: str) -> str:
    """In a fresh interpreter: the harness forks, which wants a process without threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.killing", "--kills", str(kills), *options],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_killed_run_ends_bitwise_as_one_left_alone() -> None:
    said = _harness(4)
    assert "every run ended bitwise as the one left alone" in said
    assert "an extension and a fork, killed again and again, ended bitwise as the run left alone" in said


def test_so_do_two_processes_one_of_which_is_killed() -> None:
    assert "every run ended bitwise as the one left alone" in _harness(3, "--processes", "2")


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_each_layout(processes: str) -> None:
    said = _harness(6, "--processes", processes, "--layouts", "head", "network", "lora", "lora-network", "grpo")
    assert said.count("every run ended bitwise as the one left alone") == 5


@pytest.mark.slow
def test_twenty_kills() -> None:
    assert "every run ended bitwise as the one left alone" in _harness(24)
