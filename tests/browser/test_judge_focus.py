"""Enter submits, whatever was pressed with the mouse before it; and presses the button that was come to by keys."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.judging import chip, desk, press, saved, say, shown
from tests.browser.support import Visitors
from tests.feedback.worlds import new_tasks


def test_enter_submits_what_was_chosen_with_the_mouse(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", criteria=({"name": "honest"},)) as ann:
        page = ann.open(visit(ann.url))
        chosen = [shown(page)[1]]
        press(page, "A better")
        press(page, "B better")
        say(page, lambda: page.keyboard.press("Enter"))
        chosen.append(shown(page)[0])
        press(page, "A slightly")
        press(page, "As written")
        say(page, lambda: page.keyboard.press("Enter"))
        chosen.append(shown(page)[0])
        press(page, "A better")
        for opener, closer in (("Keys", "Close"), ("Problem", "Cancel")):
            press(page, opener)
            press(page, closer)
        say(page, lambda: page.keyboard.press("Enter"))
        saved(page)
        assert [row["answer"]["best"] for row in ann.said()] == chosen


def test_enter_sends_an_order_that_was_pressed_and_leaves_it_whole(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rank", new_tasks(3, 3)) as ann:
        page = ann.open(visit(ann.url))
        wanted = []
        for pressed in ("Put {} next", "{}, not in the order yet"):
            a, b, c = shown(page)
            wanted.append({c: 1, a: 2, b: 2})
            for letter in "CAB":
                press(page, pressed.format(letter))
            press(page, "B ties with A")
            say(page, lambda: page.keyboard.press("Enter"))
        for key in "123":
            page.keyboard.press(key)
        chip(page, "C").focus()
        page.keyboard.press("Enter")  # come to by keys: it is taken out
        expect(page.get_by_role("button", name="C, not in the order yet")).to_be_visible()
        saved(page)
        assert [row["answer"]["ranks"] for row in ann.said()] == wanted


def test_enter_submits_when_the_guidelines_were_closed(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", guidelines="Prefer what is true.", criteria=({"name": "honest"},)) as ann:
        page = ann.open(visit(ann.url))
        panel = page.locator("#guidelines")
        for close in ("g", "Escape", ""):
            expect(panel).to_be_visible()
            if close:
                page.keyboard.press(close)
            else:
                press(page, "Close")
            expect(panel).to_be_hidden()
            page.keyboard.press("1")
            say(page, lambda: page.keyboard.press("Enter"))
            expect(panel).to_be_hidden()
            page.keyboard.press("g")
        page.get_by_role("button", name="Close").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Guidelines")).to_be_focused()
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer"] * 3
