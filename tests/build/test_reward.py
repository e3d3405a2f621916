"""What the reward stage says of its data: of a judge who has seen the answers, of judgements of another kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from keel.build import run_recipe
from keel.errors import UserError
from keel.runs.console import SilentConsole
from tests.end_to_end.tiny import tiny_recipe


class Heard(SilentConsole):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def warnings_of(folder: Path, sft_share: float, reward_share: float) -> list[str]:
    data = folder / "pairs.jsonl"
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": "no"} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"sft.data={{path: {data}, fields: {{response: chosen}}, validation: {sft_share}}}",
        f"reward.data={{path: {data}, validation: {reward_share}}}",
        *(f"{stage}=null" for stage in ("collect", "direct", "ppo", "evaluate")),
    ]
    console = Heard()
    run_recipe(tiny_recipe(settings), folder / f"run-{sft_share}-{reward_share}", console=console)
    return [line for line in console.said if "has seen replies" in line]


@pytest.mark.parametrize(
    ("said", "objective"), [({"rating": 3, "scale": [1, 7]}, "ordinal"), ({"accepted": True}, "accept")]
)
def test_data_that_another_objective_trains_on_name_it(tmp_path: Path, said: dict[str, Any], objective: str) -> None:
    data = tmp_path / "judged.jsonl"
    data.write_text("".join(f"{json.dumps({'prompt': f'p{n}', 'response': 'r', **said})}\n" for n in range(9)))
    settings = [f"reward.data={data}", *(f"{stage}=null" for stage in ("collect", "direct", "ppo", "evaluate"))]
    with pytest.raises(UserError, match=rf"no chosen; the row has .* set reward.objective to {objective}, which"):
        run_recipe(tiny_recipe(settings), tmp_path / "run", console=Heard())


def test_a_larger_share_held_out_of_reward_than_of_sft_is_said(tmp_path: Path) -> None:
    [line] = warnings_of(tmp_path, 0.1, 0.4)
    assert "sft held out 0.1 of" in line
    assert "this stage holds out 0.4" in line
    assert warnings_of(tmp_path, 0.4, 0.4) == []
