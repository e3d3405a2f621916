"""What is typed on the judging page is not lost: not by loading it again, not by the server that will not have it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from keel.feedback.tables import Kind
from tests.browser.judging import (
    JUDGEMENTS,
    MENDED,
    begin_review,
    desk,
    looked_at,
    met,
    point,
    press,
    prompt,
    refuse,
    saved,
    say,
    take_back,
    until,
)
from tests.browser.support import Visitors
from tests.feedback.support import PASSWORD, add_user
from tests.feedback.worlds import new_tasks


def begin_compare(page: Page) -> None:
    press(page, "B slightly")


def begin_rank(page: Page) -> None:
    for key in "2", "3", "=":
        page.keyboard.press(key)


def begin_rate(page: Page) -> None:
    press(page, "A: 3")


def as_begun(page: Page, kind: Kind) -> None:
    match kind:
        case "compare":
            expect(page.get_by_role("button", name="B slightly")).to_have_attribute("aria-pressed", "true")
        case "rank":
            for name in "A, not in the order yet", "B, 1st", "C, 1st":
                expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()
        case "rate":
            expect(page.get_by_role("button", name="A: 3")).to_have_attribute("aria-pressed", "true")
            expect(page.locator(".response.at")).to_have_accessible_name("Response B")
        case "review":
            expect(page.get_by_label("A better response")).to_have_value(MENDED)


FINISH: dict[Kind, str] = {"compare": "", "rank": "1", "rate": "5", "review": ""}
SAID: dict[Kind, Any] = {"compare": None, "rank": [1, 1, 2], "rate": [3, 5], "review": MENDED}


@pytest.mark.parametrize("kind", FINISH)
def test_what_was_begun_is_there_when_the_page_is_loaded_again(visit: Visitors, kind: Kind, tmp_path: Path) -> None:
    begin = {"compare": begin_compare, "rank": begin_rank, "rate": begin_rate, "review": begin_review}[kind]
    with desk(tmp_path, kind, criteria=({"name": "kind", "options": ("one", "two")},)) as ann:
        page = ann.open(visit(ann.url))
        begun = prompt(page)
        begin(page)
        page.wait_for_timeout(1200)
        page.get_by_label("Comment").fill("half a ")
        options = page.get_by_role("group", name="kind").get_by_role("radio")
        options.last.check()
        crash(page)
        expect(page.locator("#answer")).to_be_visible()
        assert prompt(page) == begun
        as_begun(page, kind)
        expect(options.last).to_be_checked()
        expect(page.get_by_label("Comment")).to_have_value("half a ")

        if FINISH[kind]:
            page.keyboard.press(FINISH[kind])
        say(page, lambda: page.keyboard.press("Control+Enter"))
        expect(page.get_by_label("Comment")).to_have_value("")
        saved(page)
        (row,) = ann.said()
        assert (row["prompt"], row["comment"]) == (begun, "half a")
        assert len(row["criteria"]) == 1
        given = row["answer"].get("ranks") or row["answer"].get("ratings") or {}
        assert sorted(given.values()) == sorted(SAID[kind] if given else [])
        assert row["answer"].get("edited") == (SAID[kind] if kind == "review" else None)
        assert ann.durations()[0] >= 1.2
        assert "half a" not in stored(page)


def test_the_time_of_who_only_read_goes_on(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(1)) as ann:
        page = ann.open(visit(ann.url))
        page.wait_for_timeout(1200)
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: page.keyboard.press("1"))
        saved(page)
        assert ann.durations()[0] >= 1.2


def test_nobody_sees_what_another_began_on_that_tab(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(1, 1)) as ann:
        add_user(ann.database, "ben")
        page = ann.open(visit(ann.url))
        begin_review(page)
        page.goto("/account")  # the task goes back
        until(lambda: ann.states() == ["released"])
        page.request.post("/sign-in", form={"name": "ben", "password": PASSWORD})
        page.goto(f"/projects/{ann.project}/judge")
        expect(page.locator("#answer")).to_be_visible()
        page.keyboard.press("r")
        expect(page.get_by_label("A better response")).to_have_value("response 0.0")
        expect(page.locator("#leftovers")).to_be_hidden()
        say(page, lambda: page.keyboard.press("Control+Enter"))
        saved(page)

        ann.open(page)  # whose task somebody else has judged by now; what comes late is taken
        expect(page.locator("#notice")).to_contain_text(
            "not yours any more: the time for this task is over, and somebody"
        )
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        say(page, lambda: press(page, "Reject, and send the replacement"))
        saved(page)
        assert [row["answer"]["edited"] for row in ann.said()] == [None, MENDED]


def test_an_order_half_made_comes_back_though_somebody_else_has_the_task(
    visit: Visitors, size: str, tmp_path: Path
) -> None:
    with desk(tmp_path, "rank", new_tasks(1, 3)) as ann:
        add_user(ann.database, "ben")
        page = ann.open(visit(ann.url, size=size))
        begin_rank(page)
        page.goto("/account")
        until(lambda: ann.states() == ["released"])
        ben = visit(ann.url)
        ben.request.post("/sign-in", form={"name": "ben", "password": PASSWORD})
        ben.goto(f"/projects/{ann.project}/judge")
        expect(ben.locator("#answer")).to_be_visible()
        page.goto(f"/projects/{ann.project}/judge")
        expect(page.locator("#notice")).to_contain_text("somebody else has it now. What you say is kept all the same.")
        as_begun(page, "rank")
        looked_at(page, f"begun-and-gone-{size}")


def test_a_choice_whose_task_was_judged_meanwhile_is_not_gone_without_a_word(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rank", new_tasks(1, 3)) as ann:
        page = ann.open(visit(ann.url))
        begin_rank(page)
        other = page.context.new_page()
        other.goto(page.url)
        expect(other.locator("#answer")).to_be_visible()
        page.goto("/account")
        for key in "1", "2", "3":
            other.keyboard.press(key)
        say(other, lambda: other.keyboard.press("Enter"))
        saved(other)
        page.goto(other.url)
        expect(page.locator("#leftovers")).to_contain_text("A task that you had begun is not yours any more")


def test_what_was_taken_back_outlives_the_page_and_its_clock_goes_on(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(2, 1)) as ann:
        page = ann.open(visit(ann.url))
        begin_review(page)
        page.get_by_label("Comment").fill("not so")
        page.wait_for_timeout(1200)
        say(page, lambda: page.keyboard.press("Control+Enter"))
        saved(page)
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: take_back(page))
        saved(page)
        crash(page)
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        expect(page.get_by_label("Comment")).to_have_value("not so")
        say(page, lambda: press(page, "Reject, and send the replacement"))
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer", "withdrawn", "answer"]
        first, _, again = ann.durations()
        assert 1.2 <= first < again


def test_what_the_server_refuses_for_good_can_still_be_copied(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url, size=size))
        refuse(page, JUDGEMENTS, 410, "the project is closed")
        begin_review(page)
        if size == "phone":
            press(page, "Comment")
        page.get_by_label("Comment", exact=True).fill("so much work")
        say(page, lambda: press(page, "Reject, and send the replacement"))
        box = page.get_by_role("region", name="What could not be kept")
        for _ in "at once", "after the page was loaded again":
            expect(box.get_by_role("alert")).to_contain_text("was not taken: the project is closed.")
            expect(box.get_by_label("Your replacement")).to_have_value(MENDED)
            expect(box.get_by_label("Your comment")).to_have_value("so much work")
            expect(box.get_by_label("Your comment")).not_to_be_editable()
            looked_at(page, f"leftovers-{size}")
            page.reload()
            expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: press(page, "Accept"))  # nothing typed: the sentence alone
        expect(box.get_by_role("alert")).to_have_count(2)
        point(page.get_by_role("button", name="Dismiss").first)
        expect(box.get_by_role("textbox")).to_have_count(0)
        press(page, "Dismiss")
        expect(box).to_be_hidden()
        assert "so much work" not in stored(page)
        assert ann.said() == []


def test_a_correction_that_is_refused_leaves_the_page_to_the_next_task(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(2, 1)) as ann:
        page = ann.open(visit(ann.url))
        say(page, lambda: press(page, "Accept"))
        saved(page)
        following = prompt(page)
        page.get_by_role("link", name="What you said").click()
        page.get_by_role("link", name="Correct").click()
        expect(page.locator("#answer")).to_be_visible()
        refuse(page, JUDGEMENTS, 404, "there is no such assignment of yours")
        begin_review(page)
        say(page, lambda: press(page, "Reject, and send the replacement"))
        assert prompt(page) == following
        box = page.get_by_role("region", name="What could not be kept")
        expect(box.get_by_label("Your replacement")).to_have_value(MENDED)


def test_what_cannot_be_judged_anew_can_still_be_copied(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(2, 1)) as ann:
        page = ann.open(visit(ann.url))
        refuse(page, JUDGEMENTS, 422, "answer: none of this project's")
        begin_review(page)
        press(page, "Reject, and send the replacement")
        expect(page.locator("#saving")).to_have_text("1 to be judged anew")
        refuse(page, re.compile("/api/v1/assignments/[0-9a-f]+$"), 410, "the task is gone")
        page.reload()
        expect(page.locator("#leftovers")).to_contain_text("cannot be judged anew: the task is gone.")
        expect(page.locator("#leftovers").get_by_label("Your replacement")).to_have_value(MENDED)
        expect(page.locator("#answer")).to_be_visible()


def test_what_was_begun_and_then_judged_in_another_tab_can_still_be_copied(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(1, 1)) as ann:
        one = ann.open(visit(ann.url))
        other = one.context.new_page()
        other.goto(one.url)
        expect(other.locator("#answer")).to_be_visible()
        begin_review(one)
        press(one, "Problem")
        one.get_by_label("What is wrong").fill("it ends in the middle")
        other.keyboard.press("a")
        expect(one.locator("#leftovers")).to_contain_text("in another tab")
        expect(one.get_by_label("Your replacement")).to_have_value(MENDED)
        expect(one.get_by_label("Your report")).to_have_value("it ends in the middle")
        expect(one.get_by_role("dialog")).to_have_count(0)


def test_what_was_unsent_is_sent_before_what_was_begun_is_taken_up(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review") as ann:
        page = ann.open(visit(ann.url))
        page.route(JUDGEMENTS, lambda route: route.abort())
        say(page, lambda: press(page, "Accept"))
        begin_review(page)
        begun = prompt(page)
        hung: list[Route] = []
        page.route(re.compile("/renew"), lambda route: hung.append(route))
        page.reload()
        met(page, lambda: hung)
        take_back(page)  # waits for what was begun
        page.unroute(JUDGEMENTS)
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer"]
        for route in hung:
            route.continue_()
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        assert prompt(page) == begun
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer"]


def test_what_waits_to_be_sent_is_not_asked_again(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(1, 1)) as ann:
        page = ann.open(visit(ann.url))
        refuse(page, JUDGEMENTS, 503, "busy")
        press(page, "Accept")
        expect(page.locator("#answer")).to_be_hidden()
        with page.expect_response("**/leases"):
            page.reload()
        page.wait_for_timeout(300)
        expect(page.locator("#answer")).to_be_hidden()


def test_closing_asks_where_something_is_typed_and_not_for_a_choice(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rate") as ann:
        page = ann.open(visit(ann.url))
        asked: list[str] = []
        page.on("dialog", lambda dialog: asked.append(dialog.type))
        begin_rate(page)
        page.reload()
        expect(page.get_by_role("button", name="A: 3")).to_have_attribute("aria-pressed", "true")
        assert asked == []
        page.keyboard.press("c")
        page.keyboard.type("so")
        page.reload()
        expect(page.get_by_label("Comment")).to_have_value("so")
        assert asked == ["beforeunload"]


@pytest.mark.parametrize("lost_by", ["the page loaded again", "Escape"])
def test_half_a_report_is_kept_until_it_is_sent(visit: Visitors, lost_by: str, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        report = page.get_by_label("What is wrong")
        page.keyboard.press("p")
        page.keyboard.type("it ends")
        if lost_by == "Escape":
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
        else:
            crash(page)
            expect(page.locator("#answer")).to_be_visible()
        page.keyboard.press("p")
        expect(report).to_have_value("it ends")
        say(page, lambda: press(page, "Report, and go on"))
        page.keyboard.press("p")
        expect(report).to_have_value("")
        page.keyboard.press("Escape")
        saved(page)
        assert [(row["verdict"], row["comment"]) for row in ann.said()] == [("problem", "it ends")]
        assert "it ends" not in stored(page)


def test_the_task_asked_for_comes_before_what_is_to_be_judged_anew(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rate", new_tasks(3, 1)) as ann:
        page = ann.open(visit(ann.url))
        first = prompt(page)
        say(page, lambda: press(page, "1, worst"))
        saved(page)
        second = prompt(page)
        ann.change(scale=(1, 3))
        press(page, "7, best")
        expect(page.locator("#saving")).to_have_text("1 to be judged anew")
        page.goto(f"/projects/{ann.project}/history")
        page.get_by_role("link", name="Correct").click()
        expect(page.get_by_text("You are correcting what you said.")).to_be_visible()
        assert prompt(page) == first
        press(page, "2")
        expect(page.get_by_role("heading", name="What you said")).to_be_visible()
        page.get_by_role("link", name="Go on judging").click()
        expect(page.get_by_text("look at what you said")).to_be_visible()
        assert prompt(page) == second
        say(page, lambda: press(page, "3, best"))
        saved(page)
        assert [list(row["answer"]["ratings"].values()) for row in ann.said()] == [[1], [2], [3]]


def test_a_correction_is_left_when_it_is_saved_and_not_before(visit: Visitors, tmp_path: Path) -> None:
    """What waited from before is sent meanwhile, and does not close it."""
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        say(page, lambda: page.keyboard.press("1"))
        saved(page)
        page.route(JUDGEMENTS, lambda route: route.abort())
        say(page, lambda: page.keyboard.press("1"))
        expect(page.locator("#saving")).to_contain_text("Offline")
        page.goto(f"/projects/{ann.project}/history")
        page.unroute(JUDGEMENTS)
        page.get_by_role("link", name="Correct").click()
        saved(page)
        assert len(ann.said()) == 2
        expect(page.get_by_text("You are correcting what you said.")).to_be_visible()
        press(page, "B better")
        expect(page.get_by_role("heading", name="What you said")).to_be_visible()
        assert len(ann.said()) == 3


def crash(page: Page) -> None:
    """And load the page again: it had no time to write anything down."""
    page.evaluate("addEventListener('visibilitychange', (event) => event.stopImmediatePropagation(), true)")
    page.reload()


def stored(page: Page) -> str:
    found: str = page.evaluate("Object.values(sessionStorage).join()")
    return found
