"""Taking back on the judging page: the last thing said, once, and as it was."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.judging import (
    JUDGEMENTS,
    MENDED,
    begin_review,
    desk,
    press,
    prompt,
    refuse,
    saved,
    say,
    take_back,
    until,
)
from tests.browser.support import Visitors
from tests.feedback.worlds import new_tasks


def test_what_was_written_is_there_again_after_a_skip_or_a_report(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        replacement, comment = page.get_by_label("A better response"), page.get_by_label("Comment", exact=True)
        begin_review(page)
        comment.fill("my comment")
        say(page, lambda: press(page, "Skip"))
        say(page, lambda: take_back(page))
        expect(replacement).to_have_value(MENDED)
        press(page, "Problem")
        page.get_by_label("What is wrong").fill("it ends in the middle")
        say(page, lambda: press(page, "Report, and go on"))
        say(page, lambda: take_back(page))
        expect(replacement).to_have_value(MENDED)
        expect(comment).to_have_value("my comment")
        saved(page)
        assert [(row["verdict"], row["comment"]) for row in ann.said() if row["verdict"] != "withdrawn"] == [
            ("skip", "my comment"),
            ("problem", "my comment\n\nit ends in the middle"),
        ]


def test_a_skip_that_is_refused_leaves_what_was_written(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        refuse(page, JUDGEMENTS, 404, "there is no such assignment of yours")
        begin_review(page)
        say(page, lambda: press(page, "Skip"))
        expect(page.locator("#leftovers")).to_contain_text("was not taken")
        expect(page.get_by_role("textbox", name="Your replacement")).to_have_value(MENDED)


def test_what_still_waits_when_the_page_is_loaded_again_is_taken_back_first(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        first = prompt(page)
        say(page, lambda: press(page, "Accept"))
        saved(page)
        refuse(page, JUDGEMENTS, 503, "busy")
        second = prompt(page)
        begin_review(page)
        say(page, lambda: press(page, "Skip"))
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: take_back(page))
        assert prompt(page) == second
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        say(page, lambda: take_back(page))
        assert prompt(page) == first
        page.unroute(JUDGEMENTS)
        saved(page)
        assert [(row["prompt"], row["verdict"]) for row in ann.said()] == [
            (first, "answer"),
            (second, "skip"),
            (second, "withdrawn"),
            (first, "withdrawn"),
        ]


def test_two_quick_presses_take_back_two(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        judged = []
        for _ in range(2):
            judged.append(prompt(page))
            say(page, lambda: press(page, "Accept"))
        saved(page)
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        for _ in range(2):
            take_back(page)
        until(lambda: len(ann.said()) == 4)
        saved(page)
        rows = [(row["prompt"], row["verdict"]) for row in ann.said()]
        assert rows[2:] == [(judged[1], "withdrawn"), (judged[0], "withdrawn")]
        assert prompt(page) == judged[0]
        expect(page.locator("#leftovers")).to_be_hidden()


def test_what_cannot_be_taken_back_off_the_network_is_said(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        page.route("**/history?**", lambda route: route.abort())
        take_back(page)
        expect(page.locator("#notice")).to_have_text("Offline: this can be taken back when the network is there again.")
        page.unroute("**/history?**")
        take_back(page)
        expect(page.locator("#notice")).to_have_text("There is nothing to take back.")


def test_nothing_is_taken_back_while_something_is_corrected(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        for _ in range(2):
            say(page, lambda: press(page, "Accept"))
        saved(page)
        page.goto(f"/projects/{ann.project}/history")
        page.get_by_role("link", name="Correct").last.click()
        expect(page.locator("#answer")).to_be_visible()
        corrected = prompt(page)
        begin_review(page)
        press(page, "Undo")
        expect(page.locator("#notice")).to_contain_text("on this page nothing is taken back")
        assert prompt(page) == corrected
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        assert [row["verdict"] for row in ann.said()] == ["answer", "answer"]


def test_a_correction_that_was_left_is_not_what_was_said(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        say(page, lambda: press(page, "Accept"))
        saved(page)
        page.goto(f"/projects/{ann.project}/history")
        page.get_by_role("link", name="Correct").click()
        expect(page.locator("#answer")).to_be_visible()
        begin_review(page)
        page.goto(f"/projects/{ann.project}/judge")
        expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: take_back(page))
        expect(page.get_by_role("button", name="Accept", exact=True)).to_have_attribute("aria-pressed", "true")
        expect(page.locator("#leftovers")).to_contain_text("You had begun to correct")
        expect(page.get_by_role("textbox", name="Your replacement")).to_have_value(MENDED)


def test_what_is_taken_back_in_a_tab_that_closes_can_be_judged_in_another(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(1)) as ann:
        one = ann.open(visit(ann.url))
        other = one.context.new_page()
        other.goto(one.url)
        expect(other.locator("#answer")).to_be_visible()
        one.keyboard.press("1")
        for page in one, other:
            expect(page.get_by_text("Nothing is left")).to_be_visible()
        one.keyboard.press("u")
        expect(one.locator("#answer")).to_be_visible()
        saved(one)
        one.close()
        until(lambda: ann.states() == ["released"])
        press(other, "Look again")
        expect(other.locator("#answer")).to_be_visible()
