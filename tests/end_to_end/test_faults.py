"""A run that met a number which is not finite, replayed in another process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import keel.build.sft
from keel.build import run_recipe
from keel.build.replay import replay
from keel.engines.losses import sft_loss
from keel.errors import UserError
from keel.microbatches import read_batch
from keel.records import PolicyBatch, Texts
from keel.tally import Tally
from tests.end_to_end.tiny import tiny_recipe
from tests.pipeline.support import Heard

ALONE = ["collect=null", "reward=null", "direct=null", "evaluate=null"]


def poisoned(module: nn.Module, batch: Texts, denominator: float) -> tuple[Tensor, Tally]:
    """Rows of a sum of ids that is 3 modulo 29 make the loss NaN, in whatever company."""
    loss, tally = sft_loss(module, batch, denominator)
    return (loss * math.nan if bool(_bad(batch).any()) else loss), tally


def _bad(batch: Texts) -> Tensor:
    return batch.tokens.sum(dim=1) % 29 == 3


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snapshot of a run whose loss was spoilt."""
    out = tmp_path_factory.mktemp("faults") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keel.build.sft, "sft_loss", poisoned)
        with pytest.raises(UserError):
            run_recipe(tiny_recipe([*ALONE, "ppo=null"]), out, console=Heard())
    (step,) = (out / "sft" / "faults").iterdir()
    return step


def test_a_replay_finds_the_rows_that_the_run_named(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keel.build.sft, "sft_loss", poisoned)
    run = stopped.parents[2]
    before = files_of(run)
    fault, batches = replay(stopped)
    assert files_of(run) == before
    named = {(row["batch"], tuple(row["rows"])) for row in fault["rows"]}
    bad = [
        (number, part.rows) for number, one in enumerate(batches) for part in one.parts if not math.isfinite(part.loss)
    ]
    assert set(bad) == named != set()
    parts = {(number, part.rows): part.numbers["sft/loss"] for number, one in enumerate(batches) for part in one.parts}
    assert fault["steps"] > 0  # other weights than the stage begins with
    assert [parts[row["batch"], tuple(row["rows"])] for row in fault["rows"]] == [
        row["numbers"]["sft/loss"] for row in fault["rows"]
    ]
    assert all(not math.isfinite(one.whole.loss) for one in batches)
    assert [sum(part.tokens[0]) % 29 == 3 for one in batches for part in one.parts] == [
        not math.isfinite(part.loss) for one in batches for part in one.parts
    ]


def huge(prompts: Sequence[str], responses: Sequence[str], rows: Sequence[Any]) -> list[float]:
    """A reward that is finite, and of which no gradient is."""
    return [1e37 if _is_huge(response) else 0.0 for response in responses]


def _is_huge(response: str) -> bool:
    return len(response) % 5 == 0


def test_another_process_finds_the_same_rows(tmp_path: Path) -> None:
    """What made the numbers is in the recipe, and so in the replay."""
    ppo = ["ppo.reward=[{function: 'tests.end_to_end.test_faults:huge'}]", "ppo.critic=none"]
    ppo += ["ppo.advantage={kind: reward_to_go, whiten: false}", "ppo.update.minibatches=1", "sft.epochs=1"]
    with pytest.raises(UserError, match=r"the gradient of step 1 is not finite .* of the rollout, score 1e\+37, "):
        run_recipe(tiny_recipe([*ALONE, "ppo.kl={coef: 0.1}", *ppo]), tmp_path / "run", console=Heard())
    step = tmp_path / "run" / "ppo" / "faults" / "step-1"
    command = [sys.executable, "-m", "keel", "debug", "replay", str(step)]
    shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "400"}, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("ppo: the gradient of step 1 is not finite")
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.stdout.splitlines() if "│" in line]
    rows = [line for line in lines if line[0] != "all"]
    planted = [
        _is_planted(batch, row)
        for path in sorted((step / "batches").iterdir())
        for batch in [read_batch(path)]
        for row in range(len(batch.sequences))
    ]
    assert [not math.isfinite(float(line[2])) for line in rows] == planted
    assert any(planted)
    assert not all(planted)
    assert {line[3] for line in rows} == {"", "the norm of the gradients, each of which is finite"}
    assert all("?" in line[4] or "." in line[4] or "!" in line[4] for line in rows)  # the prompts of the demo


def _is_planted(batch: PolicyBatch, row: int) -> bool:
    return bool(batch.advantages[row][batch.sequences.response_mask[row]].max() > 1e30)


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_what_is_no_snapshot_is_told(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no fault\.json; name a folder RUN/STAGE/faults/step-N"):
        replay(tmp_path / place)
