"""What a module pulls in, seen in a fresh interpreter (the import contracts see only Keel's own source)."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = (
    "keel",
    "keel.annotate",
    "keel.assessment.findings",
    "keel.cli",
    "keel.config",
    "keel.data",
    "keel.demo",
    "keel.doctor.estimate",
    "keel.doctor.hub",
    "keel.doctor.machine",
    "keel.engines.reward_functions",
    "keel.errors",
    "keel.feedback.app",
    "keel.feedback.database",
    "keel.feedback.people",
    "keel.feedback.watch.app",
    "keel.remote.completions",
    "keel.remote.pool",
    "keel.remote.weights",
    "keel.rewards",
    "keel.runs.read",
    "keel.schema",
    "keel.serve.app",
    "keel.starters.plan",
    "keel.starters.write",
    "keel.user_functions",
)


def loaded_by(statement: str) -> set[str]:
    """The names of all modules that an interpreter has loaded after `statement`."""
    script = f"import sys\n{statement}\nprint('loaded:', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_module_leaves_torch_alone(module: str) -> None:
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert "torch" not in loaded


def test_the_probe_sees_torch() -> None:
    assert "torch" in loaded_by("import torch")


def test_help_leaves_torch_alone() -> None:
    statement = (
        "from keel.cli import main\n"
        "sys.argv = ['keel', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code"
    )
    assert "torch" not in loaded_by(statement)


def test_module_runs_as_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "keel", "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout
    assert "keel" in result.stdout
