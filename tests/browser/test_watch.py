"""Watching a run that grows, as an engineer does in a browser."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect

from keel.feedback.watch.app import make_watch_app
from keel.runs.files import write_json
from keel.serve.launch import is_loopback
from tests.browser.support import Visitors, assert_accessible, keep_picture, serving
from tests.feedback.watch.support import begin_run, begin_stage, log, say

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@contextmanager
def watched(named: Path) -> Iterator[str]:
    """A server of the runs there, whose streams end with it; gives its URL."""
    ending = asyncio.Event()
    with serving(make_watch_app([named], is_local=is_loopback, ending=ending)) as url:
        try:
            yield url
        finally:
            ending.set()


def growing_run(path: Path) -> Path:
    """A run amid ppo, and its ppo's directory."""
    recipe = {"name": path.name, "sft": {}, "ppo": {"iterations": 60, "kl": {"target": 3.0}}, "evaluate": {}}
    run = begin_run(path, recipe, path.name)
    log(begin_stage(run, "sft"), range(1, 40), **{"sft/loss": 2.0, "time/step_seconds": 1.0})
    ppo = begin_stage(run)
    log(ppo, [0], **{"eval/scores": -0.2, "eval/utility": 1.0, "eval/kl": 0.0})
    for iteration in range(1, 31):
        step(ppo, iteration)
    sample(ppo, 30)
    return ppo


def step(ppo: Path, iteration: int) -> None:
    score = math.log(iteration + 1) / 3
    values = {"objective/scores": score, "objective/kl": iteration / 20, "objective/kl_coef": 0.1}
    log(ppo, [iteration], **values, **{"ppo/policy/entropy": 0.4, "time/rollout_seconds": 2.0})


def sample(ppo: Path, iteration: int) -> None:
    row = {"prompt": "how do i store a coat ?", "response": HOSTILE, "score": 1.25, "kl": 2.0, "ended": True}
    say(ppo, iteration, row | {"tokens": ["of", " course", HOSTILE], "token_kl": [0.01, 1.5, -0.3], "length": 3})


def test_a_run_grows_before_ones_eyes(visit: Visitors, size: str, tmp_path: Path) -> None:
    ppo = growing_run(tmp_path / "runs" / "mine")
    growing_run(tmp_path / "runs" / "other")
    with watched(tmp_path / "runs") as url:
        page = visit(url, size=size, dark=size == "phone")
        page.goto("/")
        expect(page.locator("#connection")).to_have_text("live")
        assert_accessible(page)
        keep_picture(page, f"watch-runs-{size}")
        page.get_by_role("checkbox", name="Compare runs/other").check()
        log(ppo, [31], **{"objective/scores": 7.125})
        expect(page.get_by_role("row", name="runs/mine")).to_contain_text("31 of 60")
        expect(page.get_by_role("checkbox", name="Compare runs/other")).to_be_checked()

        page.get_by_role("link", name="runs/mine").click()
        chart = page.locator("figure", has=page.get_by_role("heading", name=re.compile("^Score")))
        expect(chart.locator("canvas")).to_be_visible()
        expect(chart.locator("[data-last]").first).to_have_text("7.125")
        log(ppo, [32], **{"objective/scores": -3.5, "odd/new": 1.0})
        expect(chart.locator("[data-last]").first).to_have_text("−3.5")
        expect(page.get_by_text("32 of 60 iterations")).to_be_visible()
        chart.locator("summary").click()
        expect(chart.locator("tr").nth(1)).to_have_text(re.compile(r"32\s*−3.5"))
        assert_accessible(page)
        keep_picture(page, f"watch-run-{size}")

        expect(page.get_by_title("1.50 nats")).to_have_text(" course", use_inner_text=False)
        assert page.get_by_title("1.50 nats").evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"
        sample(ppo, 32)
        expect(page.get_by_role("heading", name="Samples, iteration 32")).to_be_visible()
        assert page.title().startswith("runs/mine")


def test_runs_side_by_side_and_a_window_of_their_curves(visit: Visitors, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        growing_run(tmp_path / "runs" / name)
    with watched(tmp_path / "runs") as url:
        page = visit(url)
        page.goto("/")
        for name in ("mine", "other"):
            page.get_by_role("checkbox", name=f"Compare runs/{name}").check()
        page.get_by_role("button", name="Compare the ticked").click()
        expect(page).to_have_url(re.compile(r"/compare\?run=runs-\w+&run=runs-\w+$"))
        chart = page.locator("figure").first
        expect(chart.locator("canvas")).to_be_visible()
        expect(chart.locator(".legend li")).to_have_text([re.compile("runs/other"), re.compile("runs/mine")])
        assert_accessible(page)
        keep_picture(page, "watch-compare")
        over = chart.locator(".u-over")
        box = over.bounding_box()
        assert box is not None
        windows: list[str] = []
        page.on("request", lambda asked: windows.append(asked.url) if "low=" in asked.url else None)
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 40)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + 40, steps=4)
        page.mouse.up()
        chart.locator("summary").click()
        expect(chart.locator("tr")).to_have_count(1 + 7)  # iterations 16 to 22 of 1 to 30
        assert 2 <= len(windows) == len(set(windows))  # each chart asked once
        whole = page.get_by_role("button", name="Whole range")
        whole.focus()
        page.keyboard.press("Enter")
        expect(chart.locator("tr")).to_have_count(1 + 30)
        expect(whole).to_be_hidden()


def test_the_stage_at_work_stays_in_sight(visit: Visitors, tmp_path: Path) -> None:
    """On a phone the row of stages is wider than the screen."""
    run = begin_run(tmp_path / "a", {key: {} for key in ("sft", "collect", "reward", "ppo", "evaluate")})
    sft = begin_stage(run, "sft")
    log(sft, range(1, 40), **{"sft/loss": 2.0})
    with watched(tmp_path / "a") as url:
        page = visit(url, size="phone")
        page.goto("/runs/a")
        stages = page.get_by_role("navigation", name="Stages")
        expect(stages.get_by_role("link", name="sft")).to_be_in_viewport(ratio=0.99)
        expect(stages.get_by_role("link", name="ppo")).not_to_be_in_viewport()
        write_json(sft / "done.json", {})
        log(begin_stage(run), range(1, 9))
        expect(stages.get_by_role("link", name="ppo")).to_have_attribute("aria-current", "true")
        expect(stages.get_by_role("link", name="ppo")).to_be_in_viewport(ratio=0.99)
        page.reload()
        expect(stages.get_by_role("link", name="ppo")).to_be_in_viewport(ratio=0.99)
        keep_picture(page, "watch-stages-phone")


def test_no_label_of_an_axis_is_cut_off(visit: Visitors, tmp_path: Path) -> None:
    """No ink touches the left edge of a chart, though numbers that differ little need many digits."""
    ppo = growing_run(tmp_path / "a")
    log(ppo, range(31, 40), **{"objective/kl_coef": 0.1})
    log(ppo, range(1, 10), **{"objective/kl_coef": 0.05})  # the run went back
    for iteration, coefficient in enumerate((0.05, 0.04998, 0.04997, 0.04998, 0.05, 0.05002, 0.05005), 10):
        log(ppo, [iteration], **{"objective/kl_coef": coefficient, "objective/kl": -123456.0 * iteration})
    with watched(tmp_path / "a") as url:
        page = visit(url)
        page.goto("/runs/a")
        for name in ("KL coefficient", "KL to the reference"):
            canvas = page.locator("figure", has=page.get_by_role("heading", name=name)).locator("canvas")
            expect(canvas).to_be_visible()
            inked = "c => [...c.getContext('2d').getImageData(0, 0, 2, c.height).data].some(value => value)"
            assert not canvas.evaluate(inked), name


def test_a_run_that_ends_early_says_why_at_once(visit: Visitors, size: str, tmp_path: Path) -> None:
    run = growing_run(tmp_path / "runs" / "mine").parent
    growing_run(tmp_path / "runs" / "other")
    failed = "the disk under runs/mine is full (No space left on device); free some of it and start again"
    with watched(tmp_path / "runs") as url:
        page = visit(url, size=size)
        page.goto("/")
        write_json(run / "ended.json", {"stage": "ppo", "how": "failed", "sentence": failed})
        row = page.get_by_role("row", name="runs/mine")
        expect(row).to_contain_text(f"failed: {failed}")
        assert_accessible(page)
        keep_picture(page, f"watch-failed-runs-{size}")
        page.goto("/runs/runs-mine")
        expect(page.get_by_text(f"ppo failed: {failed}")).to_be_visible()
        expect(page.locator(".heading .pill").first).to_have_text("failed")
        assert_accessible(page)
        keep_picture(page, f"watch-failed-{size}")
        (run / "ended.json").unlink()
        expect(page.get_by_text(f"failed: {failed}")).to_have_count(0)
        expect(page.locator(".heading .pill").first).to_have_text("running")


def test_the_page_says_when_the_server_is_gone(visit: Visitors, tmp_path: Path) -> None:
    growing_run(tmp_path / "a")
    with watched(tmp_path / "a") as url:
        page = visit(url)
        page.goto("/runs/a")
        expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator("#connection")).to_have_text("the server does not answer")
