"""The page: whole, self-contained, harmless, whatever state the run is in and whatever the responses hold."""

from __future__ import annotations

import copy
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
from keel.report.page import render, write_report
from keel.runs.read import read_run
from tests.report.support import HOSTILE, STAGES, SUMMARIES, evaluation, make_run, write_json

SECTIONS = (
    "Numbers",
    "Score against KL",
    "Proxy and truth",
    "PPO",
    "Reward model",
    "Supervised fine-tuning",
    "Before and after",
    "Samples over time",
    "Configuration",
    "Timings and versions",
)
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


def test_a_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    assert write_report([make_run(tmp_path / "run")], out) == out
    html = out.read_text(encoding="utf-8")
    parsed = Parsed(html)
    assert re.findall(r"<h2>([^<]+)</h2>", html) == list(SECTIONS)
    assert parsed.tags["svg"] == parsed.tags["figure"] > 8
    first_screen = parsed.text[: parsed.text.index("Numbers Intervals") if "Numbers Intervals" in parsed.text else 2500]
    for words in (
        "a model from nothing (4 layers, 192 wide), seed 7",
        "It worked: preferred to its reference in 87% of comparisons (84–90%) by the true utility.",
        "Win rate, reward model 91% 95% interval 89–93%",
        "KL to the reference 3.46 ± 0.12 nats a response, 0.163 a token",
        "91% reliable: 128 samples a prompt, bound 1.82, from half of them 1.79",
        "on_point 0.73 → 0.74",
        "Over-optimisation: the true utility peaked at iteration 40",
        "question 0",
        "plain 0",
        "you are welcome .",
    ):
        assert words in first_screen
    for words in ("answer 0 at 70", "hidden: 192", "1 min 15 s", "torch 2.13.0", "990 comparisons", "81.1% (72–88%)"):
        assert words in parsed.text


def test_the_page_needs_nothing_and_runs_nothing(tmp_path: Path) -> None:
    html = render([read_run(make_run(tmp_path / "run"))])
    parsed = Parsed(html)
    assert "://" not in html
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(parsed.tags)
    assert all(value and value.startswith("#") for name, value in parsed.attributes if name in {"href", "src"})
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in parsed.attributes
    ids = [value for name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for name, value in parsed.attributes if name == "href" and value}
    assert targets <= set(ids)


def test_hostile_responses_stay_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HOSTILE, policy_text=HOSTILE)
    out = write_report([run], tmp_path / "report.html")
    html = out.read_text(encoding="utf-8")
    parsed = Parsed(html)
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
    assert re.search(r"question 0 before .* plain 0 after: polite .* after: terse .* sew it \.", text)
    assert text.count("question 0") == 2  # on the first screen and in the table


@pytest.mark.parametrize("count", range(len(STAGES)))
@pytest.mark.parametrize("begun", [True, False])
def test_an_unfinished_run_says_what_is_missing(tmp_path: Path, undrawn: None, count: int, begun: bool) -> None:
    run = make_run(tmp_path / "run", stages=STAGES[: count + begun], finished=STAGES[:count])
    with_torn_line = tmp_path / "run" / STAGES[count] / "metrics.jsonl"
    if begun:
        with with_torn_line.open("a", encoding="utf-8") as file:
            file.write('{"iteration": 81, "sft/lo')
    html = render([read_run(run)])
    text = Parsed(html).text
    assert re.findall(r"<h2>([^<]+)</h2>", html) == list(SECTIONS)
    assert "Not judged yet" in text
    for stage in STAGES[count + begun :]:
        if stage != "collect":  # it has no curves of its own
            assert f"{stage} has not begun" in text


def test_a_run_that_has_only_begun(tmp_path: Path, undrawn: None) -> None:
    run = make_run(tmp_path / "run", stages=())
    (run / "recipe.json").unlink()
    text = Parsed(render([read_run(run)])).text
    assert "No evaluation and no reward model has been finished yet." in text
    assert "No responses have been written down yet." in text


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


def test_no_run_is_the_users_to_mend(tmp_path: Path) -> None:
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
