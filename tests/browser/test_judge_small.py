"""The judging page where there is little room: on a phone, and in a narrow window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from keel.feedback.tables import Kind
from keel.feedback.tasks import NewResponse, NewTask
from tests.browser.judging import desk, looked_at, point
from tests.browser.support import Visitors

WIDTH, HEIGHT = 375, 667
LINES = "\n\n".join(f"Line {n} of a text that is longer than a small screen." for n in range(20))
MOST: dict[Kind, int] = {"compare": 2, "rank": 9, "rate": 9, "review": 1}


def long_tasks(responses: int, count: int = 1) -> list[NewTask]:
    return [
        NewTask(f"prompt {n}\n\n{LINES}", [NewResponse(f"{k}\n\n{LINES}") for k in range(responses)])
        for n in range(count)
    ]


def stuck(page: Page) -> float:
    """The pixels from the bottom of the screen that stay where they are however far the page is scrolled."""
    found = page.evaluate("""() => {
      const stays = [...document.querySelectorAll("#work *")].filter((one) => {
        const { position } = getComputedStyle(one);
        return ["sticky", "fixed"].includes(position) && one.getClientRects().length > 0;
      });
      return Math.max(0, ...stays.map((one) => innerHeight - one.getBoundingClientRect().top));
    }""")
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
