"""What the judging page sends: whole, once, and kept until the server has taken it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import APIResponse, Route, expect

from keel.feedback.tasks import NewResponse, NewTask
from tests.browser.judging import (
    JUDGEMENTS,
    MENDED,
    begin_review,
    desk,
    looked_at,
    met,
    press,
    prompt,
    refuse,
    saved,
    say,
)
from tests.browser.support import Visitors
from tests.feedback.worlds import new_tasks

COUNTS = re.compile(r"/judging\?since=")


def test_a_bare_reject_sends_no_replacement_whatever_ends_its_lines(visit: Visitors, tmp_path: Path) -> None:
    tasks = [NewTask("p", [NewResponse("one\r\ntwo\rthree")])]
    with desk(tmp_path, "review", tasks) as ann:
        page = ann.open(visit(ann.url))
        page.keyboard.press("r")
        with page.expect_request("**/judgements/*") as sent:
            press(page, "Reject without a replacement")
        body = json.loads(sent.value.post_data or "")
        assert body["answer"] == {"accepted": False, "edited": None}


def test_what_was_said_off_the_network_is_one_row_when_it_is_back(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        judgements = re.compile("/api/v1/judgements/")
        page.route(judgements, lambda route: route.abort())
        say(page, lambda: page.keyboard.press("1"))
        expect(page.locator("#saving")).to_have_text("Offline: 1 kept, will retry")
        assert ann.said() == []
        page.reload()  # this tab keeps it

        def lose_the_answer(route: Route) -> None:
            route.fetch()
            route.abort()

        page.unroute(judgements)
        page.route(judgements, lose_the_answer, times=2)
        expect(page.locator("#answer")).to_be_visible()
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer"]
        page.route(judgements, lambda route: route.fulfill(status=401, json={"error": {"message": "sign in first"}}))
        page.keyboard.press("2")
        expect(page.locator("#saving")).to_contain_text("Signed out: what you said is kept")
        page.unroute(judgements)
        saved(page)
        assert len(ann.said()) == 2


def test_a_count_that_is_late_forgets_nothing_that_was_said_meanwhile(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(2)) as ann:
        page = visit(ann.url)
        late: list[tuple[Route, APIResponse]] = []
        page.route(COUNTS, lambda route: route.continue_() if late else late.append((route, route.fetch())))
        ann.open(page)
        met(page, lambda: late)
        say(page, lambda: page.keyboard.press("1"))
        saved(page)
        for route, answer in late:
            assert answer.json()["answered"] == 0
            with page.expect_response(COUNTS):
                route.fulfill(response=answer)
        expect(page.locator("#progress")).to_have_text("1 judged today · 1 left for you")


def test_what_the_server_counts_before_it_says_so_counts_once(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(2)) as ann:
        page = visit(ann.url)
        asked: list[Route] = []
        sent: list[tuple[Route, APIResponse]] = []
        page.route(COUNTS, lambda route: route.continue_() if asked else asked.append(route))
        page.route(JUDGEMENTS, lambda route: sent.append((route, route.fetch())))
        ann.open(page)
        page.keyboard.press("1")
        met(page, lambda: asked and sent)
        with page.expect_response(COUNTS):
            asked[0].continue_()
        expect(page.locator("#progress")).to_contain_text("judged today")
        for route, answer in sent:
            route.fulfill(response=answer)
        saved(page)
        expect(page.locator("#progress")).to_have_text("1 judged today · 1 left for you")


def test_a_practice_answer_on_its_way_is_none_that_counts(visit: Visitors, tmp_path: Path) -> None:
    practice = new_tasks(1, purpose="practice", expected={"best": 0, "strength": "clear"})
    with desk(tmp_path, "compare", [*practice, NewTask("next", [NewResponse("x"), NewResponse("y")])]) as ann:
        page = visit(ann.url)
        asked: list[Route] = []
        sent: list[Route] = []
        page.route(COUNTS, lambda route: route.continue_() if asked else asked.append(route))
        page.route(JUDGEMENTS, lambda route: sent.append(route))
        ann.open(page)
        page.keyboard.press("1")
        met(page, lambda: asked and sent)
        asked[0].continue_()
        expect(page.locator("#progress")).to_have_text("0 judged today · 1 left for you")
        sent[0].continue_()
        saved(page)
        expect(page.locator("#progress")).to_have_text("0 judged today · 1 left for you")


def test_what_no_longer_fits_the_project_is_kept_and_judged_anew(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rate", new_tasks(3, 1), criteria=({"name": "true"}, {"name": "kind"})) as ann:
        page = ann.open(visit(ann.url))
        held = prompt(page)
        ann.change(scale=(1, 3), criteria=({"name": "kind"},))
        for name in "true", "kind":
            page.get_by_role("group", name=name).get_by_label("yes").check()
        page.get_by_label("Comment").fill("well said")
        press(page, "7, best")
        press(page, "Submit")
        expect(page.locator("#notice")).to_contain_text("The project has changed: load this page again.")
        expect(page.locator("#saving")).to_have_text("1 to be judged anew")
        assert ann.said() == []
        page.get_by_role("link", name="load this page again").click()
        expect(page.get_by_text("look at what you said")).to_be_visible()
        assert prompt(page) == held
        expect(page.get_by_label("Comment")).to_have_value("well said")
        press(page, "2")
        say(page, lambda: press(page, "Submit"))
        saved(page)
        (row,) = ann.said()
        assert (row["prompt"], row["criteria"], row["comment"]) == (held, {"kind": "yes"}, "well said")
        assert list(row["answer"]["ratings"].values()) == [2]
        assert prompt(page) != held


def test_a_long_replacement_in_any_script_is_sent(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(1, 1)) as ann:
        page = ann.open(visit(ann.url))
        page.keyboard.press("r")
        page.get_by_label("A better response").fill("語" * 25_000)  # 75 000 bytes
        page.keyboard.press("Control+Enter")
        saved(page)
        assert [len(row["answer"]["edited"]) for row in ann.said()] == [25_000]


def test_a_long_response_is_mended(visit: Visitors, tmp_path: Path) -> None:
    text = "abcdefghi\n" * 20_000
    with desk(tmp_path, "review", [NewTask("p", [NewResponse(text)])]) as ann:
        page = ann.open(visit(ann.url))
        page.keyboard.press("r")
        page.keyboard.press("Delete")  # the first letter
        page.keyboard.press("Control+Enter")
        saved(page)
        assert [row["answer"] for row in ann.said()] == [{"accepted": False, "edited": text[1:]}]


def test_a_replacement_that_is_too_long_is_told_before_it_is_sent(visit: Visitors, size: str, tmp_path: Path) -> None:
    """The server takes 100 000 characters more than the response has, whatever it takes to write one down."""
    response, long = "x🙂" * 5, "🙂" * 100_010
    with desk(tmp_path, "review", [NewTask("p", [NewResponse(response)])]) as ann:
        page = ann.open(visit(ann.url, size=size))
        press(page, "Reject, or mend it")
        better = page.get_by_label("A better response")
        better.fill(long + "ab")
        expect(page.get_by_text("Your replacement is 2 characters too long")).to_be_in_viewport()
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("button", name="Reject, and send the replacement")).to_be_disabled()
        better.press("Control+End")
        better.press("Backspace")
        expect(page.get_by_text("Your replacement is 1 character too long")).to_be_in_viewport()
        looked_at(page, f"too-long-{size}")
        better.press("Backspace")
        expect(page.locator("#notice")).to_be_hidden()
        with page.expect_response(JUDGEMENTS):
            page.keyboard.press("Control+Enter")
        saved(page)
        assert [row["answer"]["edited"] == long for row in ann.said()] == [True]


@pytest.mark.parametrize("count", [1, 2])
def test_what_is_refused_as_it_is_comes_again_and_the_project_is_not_blamed(
    visit: Visitors, count: int, tmp_path: Path
) -> None:
    with desk(tmp_path, "review", new_tasks(count, 1)) as ann:
        page = ann.open(visit(ann.url))
        first = prompt(page)
        refuse(page, JUDGEMENTS, 422, "answer.edited: that is no text")
        begin_review(page)
        press(page, "Reject, and send the replacement")
        expect(page.locator("#saving")).to_have_text("1 to be judged anew")
        page.unroute(JUDGEMENTS)
        if count > 1:  # the one at work is not torn from anybody's hands
            expect(page.locator("#task .prompt")).not_to_have_text(first)
            say(page, lambda: press(page, "Accept"))
        expect(page.locator("#notice")).to_have_text(
            "That was not taken (answer.edited: that is no text): look at what you said, and send it anew."
        )
        assert prompt(page) == first
        expect(page.get_by_label("A better response")).to_have_value(MENDED)
        say(page, lambda: press(page, "Reject, and send the replacement"))
        saved(page)
        assert [row["answer"]["edited"] for row in ann.said()][-1] == MENDED


def test_what_is_taken_back_and_said_anew_took_the_time_of_both(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        page.wait_for_timeout(1500)
        say(page, lambda: page.keyboard.press("1"))
        say(page, lambda: page.keyboard.press("u"))
        say(page, lambda: page.keyboard.press("5"))
        saved(page)
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        say(page, lambda: page.keyboard.press("u"))
        say(page, lambda: page.keyboard.press("5"))
        saved(page)
        answers = ann.durations()[::2]
        assert len(answers) == 3
        assert 1.5 <= answers[0] < answers[1] < answers[2]
