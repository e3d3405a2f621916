"""What a style sheet can spoil: places, widths and sides, as the browser has computed them."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest

from keel.feedback.tasks import NewResponse, NewTask
from tests.browser.judging import desk
from tests.browser.support import Visitors, keep_picture
from tests.feedback.worlds import new_tasks

TABLE = "|name|" + "a long heading|" * 8 + "\n|---|" + "---:|" * 8 + "\n|somebody|" + "1|" * 8
ARABIC = "- مرحبا\n\n  بكم\n- بكم\n\n> مرحبا\n\n|مرحبا|\n|---|\n|بكم|"


def test_texts_have_room_and_their_sides(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", [NewTask("p", [NewResponse(TABLE), NewResponse(ARABIC)])]) as ours:
        page = ours.open(visit(ours.url))
        css = "(all, of) => all.map((one) => `${one.tagName} ${getComputedStyle(one)[of]}`)"
        found = page.locator(".response ul, .response blockquote, .response table").evaluate_all(css, "direction")
        assert sorted(found) == ["BLOCKQUOTE rtl", "TABLE ltr", "TABLE rtl", "UL rtl"]
        assert "TD right" in page.locator(".response td").evaluate_all(css, "textAlign")
        page.set_viewport_size({"width": 320, "height": 400})
        name = page.get_by_role("cell", name="somebody").bounding_box()
        assert name is not None
        assert name["height"] < 50, "a word is broken"
        assert page.locator("#answer .dock").evaluate("one => getComputedStyle(one).position") == "static"
        page.set_viewport_size({"width": 700, "height": 900})
        assert page.locator("main").evaluate("one => one.clientWidth") == 700


@pytest.mark.parametrize("scale", [(0, 10), (-5, 5), (1, 7)])
def test_numbers_and_their_keys_stand_apart(visit: Visitors, scale: tuple[int, int], tmp_path: Path) -> None:
    with desk(tmp_path, "rate", new_tasks(1, 3), scale=scale) as ours:
        page = ours.open(visit(ours.url))
        keep_picture(page, f"scale{scale[0]}")
        boxes = page.locator(".scale button").evaluate_all("all => all.map((one) => one.getBoundingClientRect())")
        assert len({one["y"] for one in boxes}) == 1, "a scale is broken in two lines"
        for scales in page.locator(".scale").all():
            parts = scales.locator("span, kbd").evaluate_all("all => all.map((one) => one.getBoundingClientRect())")
            assert all(one["height"] < 30 for one in parts), "a number is broken in two lines"
            for one, other in combinations(parts, 2):
                beside = one["right"] <= other["left"] or other["right"] <= one["left"]
                assert beside or one["bottom"] <= other["top"] or other["bottom"] <= one["top"]
