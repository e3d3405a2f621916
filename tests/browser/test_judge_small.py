"""The judging page where there is little room: on a phone, and in a narrow window."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from keel.feedback.tables import Kind
from keel.feedback.tasks import NewResponse, NewTask
from tests.browser.judging import desk, looked_at, point, press, shown
from tests.browser.support import Visitors, assert_accessible

WIDTH, HEIGHT = 375, 667
LINES = "\n\n".join(f"Line {n} of a text that is longer than a small screen." for n in range(20))
MOST: dict[Kind, int] = {"compare": 2, "rank": 9, "rate": 9, "review": 1}


def long_tasks(responses: int, count: int = 1) -> list[NewTask]:
    return [
        NewTask(f"prompt {n}\n\n{LINES}", [NewResponse(f"{k}\n\n{LINES}") for k in range(responses)])
        for n in range(count)
    ]


def stuck(page: Page, selector: str = "#work *") -> float:
    """The pixels from the bottom of the screen that stay where they are however far the page is scrolled."""
    found = page.evaluate(
        """(selector) => {
          const stays = [...document.querySelectorAll(selector)].filter((one) => {
            const { position } = getComputedStyle(one);
            return ["sticky", "fixed"].includes(position) && one.getClientRects().length > 0;
          });
          return Math.max(0, ...stays.map((one) => innerHeight - one.getBoundingClientRect().top));
        }""",
        selector,
    )
    assert isinstance(found, int | float)
    return found


@pytest.mark.parametrize("kind", MOST)
def test_further_questions_leave_half_of_a_small_screen_to_the_task(
    visit: Visitors, size: str, kind: Kind, tmp_path: Path
) -> None:
    criteria: Any = (
        {"name": "honest", "question": "Which is more honest?"},
        {"name": "helpful"},
        {"name": "harmless", "question": "Which is less harmful, all things considered, for everybody involved?"},
    )
    with desk(tmp_path, kind, long_tasks(MOST[kind]), criteria=criteria) as ann:
        page = visit(ann.url, size=size)
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        ann.open(page)
        looked_at(page, f"criteria-{kind}-{size}")
        if kind == "rank":
            for number in range(1, 10):
                page.keyboard.press(f"{number}")
        assert 0 < stuck(page) < HEIGHT / 2
        for question in page.get_by_role("group").get_by_role("radio").all():
            point(question)
            expect(question).to_be_checked()
        page.evaluate("scrollTo(0, 0)")
        page.keyboard.press("q")
        for name in ("honest", "helpful", "harmless"):
            focused = page.locator("#answer :focus")
            at = focused.bounding_box()
            assert at is not None
            assert at["y"] + at["height"] < HEIGHT - stuck(page), f"{name} is covered"
            page.keyboard.press("Tab")
        for button in page.locator("#answer button:visible").all():
            expect(button).to_be_in_viewport(ratio=1)


@pytest.mark.parametrize("best", [0, 1])
def test_what_was_expected_is_told_where_it_is_seen(visit: Visitors, best: int, tmp_path: Path) -> None:
    why = "\n\n".join(f"Reason {n} of many." for n in range(30))
    more: Any = {"purpose": "practice", "row": {"why": why}}
    tasks = [replace(one, expected={"best": best, "strength": "clear"}, **more) for one in long_tasks(2)]
    with desk(tmp_path, "compare", tasks) as ann:
        page = visit(ann.url, size="phone")
        page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        ann.open(page)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        press(page, f"{'AB'[shown(page)[0].startswith('1')]} better")
        expect(page.get_by_text("was expected: ")).to_be_in_viewport()
        assert_accessible(page)
        top = page.locator("#notice").evaluate("one => one.getBoundingClientRect().bottom")
        assert HEIGHT - stuck(page, "#answer *") - top > HEIGHT / 5, "the task is covered"


def test_keys_are_shown_to_who_has_a_mouse_and_in_the_legend_to_all(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", criteria=({"name": "honest"},)) as ann:
        page = visit(ann.url, size=size)
        page.set_viewport_size({"width": 600, "height": 800})
        ann.open(page)
        expect(page.locator("#work kbd:visible")).to_have_count(0 if size == "phone" else 14)
        send = page.get_by_role("button", name="Submit").bounding_box()
        assert send is not None
        assert send["height"] < 50, "its words are broken"
        press(page, "Keys")
        for keys in page.locator("#legend dt").all():
            expect(keys.locator("kbd").first).to_be_visible()
        looked_at(page, f"legend-{size}")
        press(page, "Close")
        looked_at(page, f"keys-{size}")
        assert 0 < stuck(page) < HEIGHT / 2
