"""What a style sheet can spoil: places, widths and sides, as the browser has computed them."""

from __future__ import annotations

from pathlib import Path

from keel.feedback.tasks import NewResponse, NewTask
from tests.browser.judging import desk
from tests.browser.support import Visitors

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
