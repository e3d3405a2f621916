"""Charts that are zoomed faster than the server answers."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import FloatRect, Page, Route, expect

from tests.browser.support import Visitors
from tests.browser.test_watch import growing_run, watched


def drag(page: Page, box: FloatRect, start: float, end: float) -> None:
    """Over these shares of a chart's width."""
    page.mouse.move(box["x"] + box["width"] * start, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end, box["y"] + 40, steps=4)
    page.mouse.up()


def test_a_window_that_is_answered_late_leaves_the_next_one_alone(visit: Visitors, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        growing_run(tmp_path / "runs" / name)
    with watched(tmp_path / "runs") as url:
        page = visit(url)
        held: list[Route] = []
        page.goto("/compare?run=runs-mine&run=runs-other&metric=objective/scores")
        chart = page.locator("figure").first
        expect(chart.locator("canvas")).to_be_visible()
        box = chart.locator(".u-over").bounding_box()
        assert box is not None
        page.route(re.compile("low="), lambda route: route.continue_() if held else held.append(route))
        with page.expect_request(re.compile("low=")):
            drag(page, box, 0.1, 0.3)
        drag(page, box, 0.5, 0.75)
        chart.locator("summary").click()
        rows = chart.locator("tr")
        expect(rows).to_have_count(1 + 7)
        (late,) = held
        with page.expect_response(late.request.url):
            late.continue_()
        page.wait_for_timeout(500)  # what follows from the answer has followed
        expect(rows).to_have_count(1 + 7)
        for row in rows.all()[1:]:
            assert all(row.locator("td").all_inner_texts())
