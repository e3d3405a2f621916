"""The page: whole, self-contained, harmless, whatever state the run is in and whatever the responses hold."""

from __future__ import annotations

import copy
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from keel.errors import UserError
from keel.report import page
from keel.report.card import model_card
from keel.report.page import render, write_report
from keel.runs.read import RunView, read_run
from tests.report.support import HOSTILE, STAGES, SUMMARIES, evaluation, make_run, utility_at, write_json, write_lines

SECTIONS = {
    "samples": "Before and after",
    "warnings": "Warnings",
    "sft": "Supervised fine-tuning",
    "collect": "Feedback",
    "reward": "Reward model",
    "ppo": "PPO",
    "evaluate": "Evaluation",
    "over-time": "Samples over training",
    "settings": "Settings and provenance",
}
VOID = {"meta", "br", "img", "link"}


class Parsed(HTMLParser):
    """The elements, attributes and visible text of a page; fails on a tag that closes another."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures cost most of the time, and have tests of their own."""
    monkeypatch.setattr(page, "draw", lambda panel, number: "<svg></svg>")


def headings(html: str) -> list[str]:
    """Of the page's sections, in order."""
    return re.findall(r"<section[^>]*>\s*<h2>([^<]+)</h2>", html)


def test_a_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    run = make_run(tmp_path / "run")
    assert write_report([run], out) == out
    html = out.read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert headings(html) == list(SECTIONS.values())
    figures = re.findall(r"<figure>.*?</figure>", html, flags=re.S)
    assert len(figures) > 8
    assert all('role="img"' in figure and "<title>" in figure and "<figcaption>" in figure for figure in figures)
    first_screen = parsed.text[: parsed.text.index("The next 3")]
    for words in (
        "A model from nothing, 4 layers, 192 wide · seed 7 · begun 2030-01-02 · 4 min 30 s",
        "It worked, but Preferred to its reference in 87% of comparisons (95% interval 84–90%) by the true utility,",
        "for a KL of 3.46 nats a response (91% of the score that this KL can buy).",
        "Preferred to the reference 87% by the true utility, 95% interval 84–90%; 91% by the reward",
        "True utility, before → after 1.11 → 2.35 Score 0.00 → 1.68, on_point 0.73 → 0.74",
        "KL to the reference 3.46 ± 0.12 nats a response, 0.163 a token; target 4",
        "Of the best this KL can buy 91% score 1.66 of 1.82, by 128 samples a prompt: reliable",
        "sft 500 demonstrations",
        "collect 990 comparisons by polite",
        "reward 81% right of 85% that noise allows",
        "evaluate 200 prompts held out, 4 responses each",
        "1 warning",
        "The first 3 prompts of the evaluation in the order of its data",
        "question 0 before plain 0 score −0.50 after: polite you are welcome .",
    ):
        assert words in first_screen
    for words in ("answer 0 at 70", "hidden: 192", "1 min 15 s", "torch 2.13.0", "81.1% [72, 88]", "0.00 → 3.50"):
        assert words in parsed.text


def test_the_numbers_are_those_of_the_files(tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path / "run")
    text = Parsed(write_report([run], tmp_path / "report.html").read_text(encoding="utf-8")).text
    found = {stage: json.loads((run / stage / "done.json").read_text(encoding="utf-8")) for stage in STAGES}
    evaluated = found["evaluate"]
    rows = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = [row["eval/scores"] for row in rows if "eval/scores" in row]
    for words in (
        f"{100 * evaluated['utility']['win_rate']:.0f}%",
        f"{evaluated['reference']['utility']:.2f} → {evaluated['policy']['utility']:.2f}",
        f"{evaluated['kl']:.2f} ± {evaluated['kl_standard_error']:.2f}",
        f"held-out score {scores[0]:.2f} → {scores[-1]:.2f}",
        f"held-out true utility {utility_at(0):.2f} → {utility_at(70):.2f}",
        f"comparisons {found['collect']['comparisons']}",
        f"longer wins {100 * found['reward']['longer_wins']:.1f}%",
        f"share of what is allowed {100 * found['reward']['accuracy'] / found['reward']['noise_ceiling']:.0f}%",
        f"best held-out objective {found['ppo']['best_objective']:.2f} at iteration {found['ppo']['best_iteration']}",
    ):
        assert words in text


def test_a_long_run_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", stages=("ppo",))
    draws = random.Random(0)
    keys = ("objective/scores", "objective/kl", "ppo/policy/entropy", "objective/length", "ppo/policy/clipfrac")
    rows = [{"iteration": at, **{key: draws.random() for key in keys}} for at in range(5_000)]
    write_lines(run / "ppo" / "metrics.jsonl", rows)
    assert len(render([read_run(run)]).encode()) < 100_000


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a run whose name and responses try to leave their place."""
    folder = tmp_path_factory.mktemp("hostile")
    run = make_run(folder / "run", HOSTILE, policy_text=HOSTILE)
    rows = [{"prompt": HOSTILE, "chosen": HOSTILE, "rejected": HOSTILE}]
    write_lines(run / "collect" / "samples.jsonl", rows)
    return write_report([run], folder / "report.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_and_runs_nothing(hostile: str) -> None:
    html, parsed = hostile, Parsed(hostile)
    assert "://" not in html
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(parsed.tags)
    assert all(value and value.startswith("#") for name, value in parsed.attributes if name in {"href", "src"})
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in parsed.attributes
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in parsed.attributes if name == "href" and value}
    assert targets <= set(ids)


def test_hostile_responses_stay_text(hostile: str) -> None:
    html, parsed = hostile, Parsed(hostile)
    assert "<script" not in html
    assert "<img" not in html
    assert "<i>" not in html  # of a reward's name
    assert parsed.tags["style"] == 1
    assert "<script>alert(1)</script></style>{{ 7 * 7 }}" in parsed.text
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]


def test_several_runs_stand_side_by_side(tmp_path: Path, undrawn: None) -> None:
    runs = [make_run(tmp_path / "a", "polite"), make_run(tmp_path / "b", "terse", policy_text="sew it .")]
    html = write_report(runs, tmp_path / "both.html").read_text(encoding="utf-8")
    text = Parsed(html).text
    assert html.count('<article class="card') == 2
    assert "reference polite terse" in text
    assert re.search(r"question 0 before plain 0 .* after: polite .* after: terse sew it \.", text)
    assert text.count("question 0") == 1
    assert text.count("A model from nothing") == 1  # both are that


@pytest.mark.parametrize("count", range(len(STAGES)))
@pytest.mark.parametrize("begun", [True, False])
def test_an_unfinished_run_says_what_is_missing(tmp_path: Path, undrawn: None, count: int, begun: bool) -> None:
    run = make_run(tmp_path / "run", stages=STAGES[: count + begun], finished=STAGES[:count])
    if begun:
        with (run / STAGES[count] / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"iteration": 81, "sft/lo')  # torn
    html = render([read_run(run)])
    text = Parsed(html).text
    assert headings(html) == list(SECTIONS.values())
    assert "Not judged yet" in text
    for stage in STAGES[count + begun :]:
        assert f"{stage} not begun" in text
        assert f"The {stage} stage has not begun." in text
    assert ("unfinished" in text) == begun


def test_a_run_that_has_only_begun(tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path / "run", stages=())
    (run / "recipe.json").unlink()
    html = render([read_run(run)])
    assert headings(html) == [SECTIONS[anchor] for anchor in ("samples", "warnings", "over-time", "settings")]
    assert "No responses of two models have been written down" in Parsed(html).text


@pytest.mark.parametrize("kept", [("sft",), ("reward",), ("ppo",), ("ppo", "evaluate"), ("collect", "reward")])
def test_only_the_stages_of_the_recipe_are_shown(tmp_path: Path, undrawn: None, kept: tuple[str, ...]) -> None:
    run = make_run(tmp_path / "run", stages=kept, finished=kept)
    for stage in set(STAGES) - set(kept):
        drop(run / "recipe.json", stage)
    html = render([read_run(run)])
    parsed = Parsed(html)
    assert [title for title in headings(html) if title in {SECTIONS[stage] for stage in STAGES}] == [
        SECTIONS[stage] for stage in kept
    ]
    assert re.findall(r'class="stage">(\w+)', html) == list(kept)
    judged = "Preferred to its reference" if "evaluate" in kept else "Not judged Its recipe has no evaluate stage."
    assert judged in parsed.text
    tiles: dict[tuple[str, ...], str] = {
        ("sft",): "Supervised loss 3.00 → 0.04",
        ("reward",): "Reward model right 81.1%",
        ("ppo",): "Score, before → after 0.00 → 1.75 held-out prompts, iteration 0 → 70",
    }
    assert tiles.get(kept, "") in parsed.text


def test_a_reward_model_of_labels_that_make_no_pairs(tmp_path: Path, undrawn: None) -> None:
    summary = {
        "labels": 210,
        "validation_pairs": 0,
        "validation_ties": 0,
        "validation": {"loss": 0.654, "accept_rate": 0.48, "accepted": 0.52},
        "prior_loss": 0.692,
        "level_accuracy": 0.611,
        "level_accuracy_interval": [0.5, 0.71],
        "commonest_level": 0.52,
        "thresholds": {"levels": [0, 1], "cuts": [0.1], "offsets": {}},
        "seconds": 3.0,
    }
    run = make_run(tmp_path / "run", stages=("reward",), finished=("reward",), summaries={"reward": summary})
    for stage in set(STAGES) - {"reward"}:
        drop(run / "recipe.json", stage)
    text = Parsed(render([read_run(run)])).text
    assert "Reward model’s level right 61.1% 95% interval 50–71%; always the commonest level: 52%" in text
    assert "reward 210 labels" in text
    assert "trained on 210 labels pairs held out 0 held-out loss 0.654 by the levels’ frequencies alone 0.692" in text
    assert "responses accepted 52% accepted by the model 48% level right 61.1% [50, 71]" in text
    assert "Reward model right" not in text
    card = reward_card(read_run(run))
    assert "- held-out responses scored in their level: 61% (95 % interval 50–71%)" in card
    assert "- trained on: 210 labels" in card
    assert "is how likely one response is preferred" in card


def test_the_card_of_ratings_promises_no_probability_of_a_preference(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert "sigmoid(scale × score gap) is how likely one response is preferred." in reward_card(run)
    run.recipe["reward"]["objective"] = "ordinal"
    assert "is taken off; trained on ratings, by ordinal regression." in reward_card(run)


def reward_card(run: RunView) -> str:
    run.starts[-1].setdefault("transformers", "5")
    return model_card(run, "reward", adapter=False)


def test_a_hub_model_with_rewards_as_functions(tmp_path: Path, undrawn: None) -> None:
    changed = evaluation()
    del changed["utility"], changed["frontier"], changed["policy"]["utility"], changed["reference"]["utility"]
    kept = ("ppo", "evaluate")
    run = make_run(tmp_path / "run", stages=kept, finished=kept, summaries={"evaluate": changed})
    about = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    for stage in set(STAGES) - set(kept):
        del about[stage]
    about["model"] = {"base": "owner/model-0.5B", "tune": "lora", "lora": {"rank": 16}}
    about["ppo"]["reward"] = [{"function": "rules:kind"}, {"function": "rules:short", "weight": 0.5}]
    write_json(run / "recipe.json", about)
    text = Parsed(render([read_run(run)])).text
    assert "owner/model-0.5B · LoRA of rank 16 · seed 7" in text
    assert "by the reward function that it was trained on (the true utility is not known)" in text
    assert "Score, before → after 0.00 → 1.68" in text
    assert "rewards rules:kind + 0.5 × rules:short" in text
    assert "The true utility is not known" not in text  # PPO measured it on held-out prompts
    assert "this KL can buy" not in text


def drop(path: Path, key: str) -> None:
    """Take one key out of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    del content[key]
    write_json(path, content)


def changes(summary: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The summary with one key, at any depth, null or gone."""

    def paths(tree: dict[str, Any]) -> Iterator[tuple[str, ...]]:
        for key, value in tree.items():
            yield (key,)
            if isinstance(value, dict):
                yield from ((key, *rest) for rest in paths(value))

    for *parents, last in paths(summary):
        for gone in (True, False):
            changed = copy.deepcopy(summary)
            node = changed
            for parent in parents:
                node = node[parent]
            node[last] = None
            if gone:
                del node[last]
            yield changed


@pytest.mark.parametrize("stage", ["collect", "reward", "ppo", "evaluate"])
def test_no_missing_number_stops_the_report(tmp_path: Path, undrawn: None, stage: str) -> None:
    run = make_run(tmp_path / "run")
    for changed in changes(({"evaluate": evaluation()} | SUMMARIES)[stage]):
        write_json(run / stage / "done.json", changed)
        assert render([read_run(run)])


def test_no_run_is_the_users_to_mend(tmp_path: Path, undrawn: None) -> None:
    with pytest.raises(UserError, match=r"holds no run"):
        write_report([tmp_path / "none"], tmp_path / "report.html")
    with pytest.raises(UserError, match="name at least one"):
        write_report([], tmp_path / "report.html")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        write_report([make_run(tmp_path / "run")], tmp_path / "file" / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_the_same_run_gives_the_same_page(tmp_path: Path, undrawn: None) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert render([run]) == render([run])


def test_the_report_leaves_torch_alone() -> None:
    code = "import sys, keel.report.page, keel.cli.summary; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
