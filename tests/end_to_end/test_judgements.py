"""Every kind of feedback from a file to a reward model, and back from a kill in the middle."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from keel.build import load_renderer, run_recipe
from keel.build.smoke import smoke
from keel.config.recipe import Recipe, parse_recipe
from keel.data.split import in_validation
from keel.engines.scorers import RewardModelScorer
from keel.errors import UserError
from keel.models.load import load_classifier
from keel.models.reward import RewardModel
from keel.runs.callbacks import Callback, StageInfo
from keel.runs.console import SilentConsole
from keel.runs.metrics import read_lines
from tests.end_to_end.killing import differences
from tests.pipeline.support import Heard
from tests.worlds import save_tiny_lm

RESPONSES = ("a b a b", "c c d d", "e f e f")
WORTH = dict(zip(RESPONSES, (2, 1, 0), strict=True))


def rows_of(objective: str) -> list[dict[str, Any]]:
    """Sixty prompts with the same three responses, of which the first is the best and the last the worst."""
    rows: list[dict[str, Any]] = []
    for number in range(60):
        prompt = f"say {number}"
        if objective == "plackett_luce":
            ranks = [[1, 2, 3], [1, 1, 2], [1, 3, 3]][number % 3]
            rows.append({"prompt": prompt, "responses": list(RESPONSES), "ranks": ranks})
        for turn, response in enumerate(RESPONSES):
            lenient = (number + turn) % 2
            if objective == "ordinal":
                annotator = ("strict", "lenient")[lenient]
                rows.append(
                    {"prompt": prompt, "response": response, "rating": 1 + WORTH[response] + lenient}
                    | {"scale": [1, 4], "annotator": annotator}
                )
            if objective == "accept":
                rows.append({"prompt": prompt, "response": response, "accepted": WORTH[response] > 0})
    return rows


def recipe_of(folder: Path, kind: str, **changes: Any) -> Recipe:
    if not (folder / "base").exists():
        save_tiny_lm(folder / "base")
    data = folder / f"{kind}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)))
    reward: dict[str, Any] = {
        "data": {"path": str(data), "validation": 0.3},
        "objective": kind,
        "epochs": 4,
        "batch": 16,
        "lr": 1e-2,
        "validate_every": 5,
        "checkpoint_every": 4,
        "normalise_samples": 16,
        "normalise_sampling": {"max_new_tokens": 8},
    }
    tree = {"name": "judged", "device": "cpu", "model": {"base": str(folder / "base")}, "reward": reward | changes}
    return parse_recipe(tree, "judged")


def run(recipe: Recipe, out: Path, *callbacks: Callback) -> dict[str, Any]:
    run_recipe(recipe, out, console=SilentConsole(), callbacks=callbacks)
    found: dict[str, Any] = json.loads((out / "reward" / "done.json").read_text())
    return found


class PulledPlug(Callback):
    """Ends the process, as it were, between two checkpoints."""

    def on_log(self, stage: StageInfo, step: int, metrics: Mapping[str, float]) -> bool:
        if step == 7:
            raise KeyboardInterrupt
        return False


def scores_of(out: Path, rows: list[dict[str, Any]]) -> list[float]:
    """What the published model gives each row's response."""
    source = str(out / "reward" / "model")
    renderer, model = load_renderer(source), RewardModel(load_classifier(source)).eval()
    encoded = [renderer.encode(row["prompt"], row["response"]) for row in rows]
    scores: list[float] = RewardModelScorer("reward", model, token_budget=4096).score_rows(encoded).tolist()
    return scores


def held_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if in_validation(row["prompt"], 0.3)]


def test_rankings_with_ties(tmp_path: Path) -> None:
    summary = run(recipe_of(tmp_path, "plackett_luce"), tmp_path / "run")
    rows = held_out(rows_of("plackett_luce"))
    ties = [len({1, 2, 3}) - len(set(row["ranks"])) for row in rows]  # of three responses: no tie, or one
    assert (summary["rankings"], summary["validation_judgements"]) == (60 - len(rows), len(rows))
    assert (summary["validation_ties"], summary["validation_pairs"]) == (sum(ties), 3 * len(rows) - sum(ties))
    assert summary["accuracy"] > 0.9
    assert summary["thresholds"] is None
    lines = read_lines(tmp_path / "run" / "reward" / "metrics.jsonl")
    # To who knows nothing three in order are choices of log 3 and log 2, two ahead of one are two of log 3, and one
    # ahead of two is log 3 and half of twice log 2.
    start = [math.log(6), 2 * math.log(3), math.log(6)]
    assert lines[0]["reward/loss"] == pytest.approx(sum(start) / 3, abs=0.1)
    assert lines[-1]["reward/validation/loss"] == summary["validation"]["loss"] < 1.6


def test_rankings_of_two_are_comparisons(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "plackett_luce")
    best, middle, _ = RESPONSES
    rows = [{"prompt": f"say {number}", "responses": [middle, best], "ranks": [2, 1]} for number in range(60)]
    (tmp_path / "plackett_luce.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = recipe.model_dump(mode="json")["reward"] | {"objective": "bradley_terry"}
    run(recipe, tmp_path / "ranked")
    for records in ("comparisons", "rankings"):
        other = parse_recipe(recipe.model_dump(mode="json") | {"reward": data | {"records": records}}, "compared")
        run(other, tmp_path / records)
        for ranked, compared in zip(
            *(read_lines(tmp_path / name / "reward" / "metrics.jsonl") for name in ("ranked", records)), strict=True
        ):
            keys = [key for key in ranked if not key.startswith("time/")]
            assert [ranked[key] for key in keys] == pytest.approx([compared[key] for key in keys], rel=1e-3, abs=1e-4)


def test_ratings(tmp_path: Path) -> None:
    """What the summary says of the thresholds holds for the scores of the model that was published."""
    summary = run(recipe_of(tmp_path, "ordinal"), tmp_path / "run")
    assert summary["accuracy"] > 0.9
    assert summary["reliability"] == []  # a difference of such scores foretells no share
    rows, thresholds = held_out(rows_of("ordinal")), summary["thresholds"]
    assert thresholds["levels"] == [1, 2, 3, 4]
    assert thresholds["cuts"] == sorted(thresholds["cuts"])
    assert thresholds["offsets"]["lenient"] == pytest.approx(-thresholds["offsets"]["strict"])
    assert thresholds["offsets"]["lenient"] > 0
    loss, right = 0.0, 0
    for row, score in zip(rows, scores_of(tmp_path / "run", rows), strict=True):
        judged = score + thresholds["offsets"][row["annotator"]]
        below = [1 / (1 + math.exp(-summary["score_scale"] * (cut - judged))) for cut in thresholds["cuts"]]
        shares = [high - low for low, high in zip([0.0, *below], [*below, 1.0], strict=True)]
        loss -= math.log(shares[row["rating"] - 1]) / len(rows)
        right += sum(cut < judged for cut in thresholds["cuts"]) == row["rating"] - 1
    assert summary["validation"]["loss"] == pytest.approx(loss, abs=1e-4)
    assert summary["validation"]["level_accuracy"] == summary["level_accuracy"] == pytest.approx(right / len(rows))
    assert summary["validation"]["loss"] < summary["prior_loss"]


def test_labels(tmp_path: Path) -> None:
    summary = run(recipe_of(tmp_path, "accept"), tmp_path / "run")
    rows, (threshold,) = held_out(rows_of("accept")), summary["thresholds"]["cuts"]
    scores = scores_of(tmp_path / "run", rows)
    chances = [1 / (1 + math.exp(-summary["score_scale"] * (score - threshold))) for score in scores]
    assert summary["validation"]["accept_rate"] == pytest.approx(sum(chances) / len(rows), abs=1e-4)
    assert summary["validation"]["accepted"] == pytest.approx(2 / 3)
    right = [(chance > 0.5) == row["accepted"] for chance, row in zip(chances, rows, strict=True)]
    assert summary["level_accuracy"] == pytest.approx(sum(right) / len(rows)) == pytest.approx(1.0)
    assert summary["commonest_level"] == pytest.approx(2 / 3)
    # of each prompt two pairs of an accepted and a rejected response, and one of two accepted ones
    assert (summary["validation_pairs"], summary["validation_ties"]) == (2 * len(rows) / 3, len(rows) / 3)


@pytest.mark.parametrize("objective", ["ordinal", "accept"])
def test_a_stage_with_thresholds_goes_on_bitwise(objective: str, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, objective)
    run(recipe, tmp_path / "alone")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "interrupted", PulledPlug())
    checkpoint = tmp_path / "interrupted" / "reward" / "checkpoints" / "step-00000004"
    assert checkpoint.is_dir()
    run(recipe, tmp_path / "interrupted")
    assert differences(tmp_path / "alone", tmp_path / "interrupted") == []


@pytest.mark.parametrize(
    ("kind", "changes", "groups"),
    [
        ("ordinal", {"max_pairs": 2}, 2),  # three ratings of a prompt in two groups
        ("ordinal", {"objective": "bradley_terry", "records": "ratings"}, 1),
        ("plackett_luce", {}, 1),
    ],
)
def test_a_smoke_foretells_the_steps(
    kind: str, changes: dict[str, Any], groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, kind, epochs=3, **changes)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (forecast,) = smoke(recipe, Heard())
    prompts = 60 - len({row["prompt"] for row in held_out(rows_of(kind))})
    assert forecast.steps == math.ceil(prompts * groups * 3 / 16)
    assert run(recipe, tmp_path / "run")["steps"] == forecast.steps


def test_labels_of_single_responses_are_no_pairs(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "accept", objective="bradley_terry", records="labels")
    assert run(recipe, tmp_path / "pairs")["accuracy"] > 0.9  # of an accepted and a rejected response to one prompt
    file = tmp_path / "accept.jsonl"
    alone = [row for number, row in enumerate(rows_of("accept")) if number % 3 == number // 3 % 3]
    file.write_text("".join(json.dumps(row) + "\n" for row in alone))
    sentence = r"accept\.jsonl: its labels make no pair of which one is better; take objective: accept$"
    with pytest.raises(UserError, match=sentence):
        run(recipe, tmp_path / "none")
