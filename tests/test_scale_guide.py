"""docs/guides/scale.md says what the arithmetic gives; its settings and launch files are what they are taken for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import plan
from keel.config.recipe import parse_recipe

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guides" / "scale.md").read_text(encoding="utf-8")
CLUSTER = ROOT / "examples" / "cluster"


@pytest.mark.parametrize("table", plan.TABLES, ids=lambda table: table.__name__)
def test_its_tables_are_those_of_the_arithmetic(table: Callable[[], Iterator[list[str]]]) -> None:
    assert plan.markdown(table()) in GUIDE


def test_traffic_by_hand() -> None:
    """8,030,261,248 weights: 7/8 of 2 + 2 + 4 bytes each; of eight copies also 2 x 4 x 7/8 of an eighth of them."""
    weights = 8_030_261_248
    within, copied = plan.Plan("8B (Llama 3.1)", 8, 8), plan.Plan("8B (Llama 3.1)", 64, 8)
    assert plan.micro_batch_bytes(within) == 7 * weights
    assert plan.micro_batch_bytes(copied) == pytest.approx(7 * weights + 7 / 8 * weights)
    assert plan.looking_bytes(within) == 4 * 2 * weights * 7 / 8


def test_sampling_by_hand() -> None:
    """512 steps, each of which reads 2 bytes a weight, and of 64 rows the 4 x 32 x 1,024 bytes of 768 positions."""
    read = 2 * 8_030_261_248 + 64 * 768 * 4 * 32 * 1024
    assert plan.decode_seconds(plan.Plan("8B (Llama 3.1)", 8, 8)) == pytest.approx(512 * read / 3.35e12)


def test_its_settings_are_a_recipes() -> None:
    fragments = re.findall(r"```yaml\n(.*?)```", GUIDE, re.S)
    assert len(fragments) == 2
    for fragment in fragments:
        tree = yaml.safe_load(fragment)
        tree["ppo"]["prompts"] = "prompts.jsonl"
        recipe = parse_recipe({"name": "a", "reward": {"data": "pairs.jsonl"}, **tree}, "scale.md")
        assert recipe.ppo is not None
        assert recipe.ppo.update.token_budget == plan.TOKENS


def test_the_slurm_script() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert '-m keel run "$@"' in script.read_text(encoding="utf-8")
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(script)], check=True)


def test_the_kubernetes_job() -> None:
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text(encoding="utf-8"))
    spec: dict[str, Any] = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    script = container["command"][-1]
    assert (service["kind"], job["kind"], spec["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completions"] == spec["parallelism"] == int(_option(script, "nnodes"))
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(_option(script, "nproc-per-node"))
    assert _option(script, "rdzv-endpoint").startswith(f"{job['metadata']['name']}-0.{pod['subdomain']}:")
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    assert script.rstrip().endswith("-m keel run recipe.yaml --out runs/mine")
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def _option(script: str, name: str) -> str:
    (value,) = re.findall(rf"--{name} (\S+)", script)
    return str(value)
