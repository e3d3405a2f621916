"""PPO that draws ahead, through the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from keel.build import run_recipe
from keel.runs.metrics import read_lines
from keel.text.render import Renderer
from tests.build.test_servers import recipe_of
from tests.end_to_end.killing import differences
from tests.pipeline.support import Heard
from tests.remote.fake import FakeServer
from tests.remote.policy import ServedPolicy
from tests.worlds import save_tiny_lm, tiny_codec, tiny_lm


class Killed(Exception):
    pass


class Dying(Heard):
    """Ends the process, so to say, when an iteration has been told of."""

    def progress(self, stage: str, done: int, total: int, numbers: Mapping[str, float]) -> None:
        if done == 3:
            raise Killed


def test_killed_and_resumed_it_ends_bitwise_as_left_alone(tmp_path: Path) -> None:
    model = str(save_tiny_lm(tmp_path / "base"))
    with FakeServer(ServedPolicy(tiny_lm(seed=9), Renderer(tiny_codec()))) as fake:
        servers = {"urls": [fake.url], "kind": "keel", "overlap": True}
        recipe = recipe_of(model, tmp_path, "lora", servers=servers, iterations=4, checkpoint_every=2)
        run_recipe(recipe, tmp_path / "alone", console=Heard())
        with pytest.raises(Killed):
            run_recipe(recipe, tmp_path / "killed", console=Dying())
        run_recipe(recipe, tmp_path / "killed", console=Heard())
    assert differences(tmp_path / "alone" / "ppo", tmp_path / "killed" / "ppo") == []
    lines = read_lines(tmp_path / "killed" / "ppo" / "metrics.jsonl")
    assert [line["ppo/policy/lag"] for line in lines[1:]] == [0, 1, 1, 1]
    assert not (tmp_path / "killed" / "ppo" / "servers").exists()
