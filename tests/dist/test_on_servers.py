"""Several processes train while servers sample: the leader asks, and all gather the weights that it publishes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from keel.text.render import Renderer
from tests.build.test_servers import keels_uniforms, recipe_of
from tests.dist.crowd import in_processes
from tests.dist.test_same_answer import differences, run
from tests.remote.fake import FakeServer
from tests.remote.policy import ServedPolicy
from tests.worlds import save_tiny_lm, tiny_codec, tiny_lm

LORA: dict[str, Any] = {"critic": "none", "advantage": {"kind": "reward_to_go"}}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_two_processes_on_a_server_end_as_one_does(tmp_path: Path, tune: str, overlap: bool) -> None:
    model = str(save_tiny_lm(tmp_path / "base"))
    with FakeServer(ServedPolicy(tiny_lm(seed=9), Renderer(tiny_codec()), uniforms=keels_uniforms())) as fake:
        servers = {"urls": [fake.url], "kind": "keel", "overlap": overlap}
        recipe = recipe_of(model, tmp_path, tune, servers=servers, **(LORA if tune == "lora" else {}))
        in_processes(2, lambda: run(recipe, tmp_path / "two"))
        run(recipe, tmp_path / "one")
        updates = fake.paths().count("/update_weights")
    assert differences(tmp_path / "one", tmp_path / "two", ["ppo"]) == []
    assert updates % 2 == 0  # as many for each of the two runs
    assert updates >= 2 * 2
