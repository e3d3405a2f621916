"""The judging page's manners: it asks before it drops, shows guidelines unasked once, and hangs on nothing."""

from __future__ import annotations

import re
import time
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Route, expect

from keel.feedback.projects import close_project
from keel.feedback.tables import Project
from keel.feedback.tasks import NewResponse, NewTask
from keel.schema import Message
from tests.browser.judging import desk, looked_at, met, press, refuse, saved, say
from tests.browser.support import Visitors, keep_picture
from tests.feedback.worlds import new_tasks

DIFFERENCES = re.compile("/differences$")


def test_accepting_asks_before_it_drops_a_replacement(visit: Visitors, size: str, tmp_path: Path) -> None:
    tasks = [NewTask(f"prompt {n}", [NewResponse("a line\n\n" * 60)]) for n in range(3)]
    with desk(tmp_path, "review", tasks) as ann:
        page = ann.open(visit(ann.url, size=size))
        notice = page.get_by_text("Your replacement would not be sent.")
        better = page.get_by_label("A better response")
        page.keyboard.press("r")
        better.fill("mended")
        press(page, "Accept")
        expect(notice).to_be_in_viewport(ratio=1)
        looked_at(page, f"accept-asks-{size}")
        press(page, "Reject, or mend it")
        expect(notice).to_be_hidden()
        say(page, lambda: press(page, "Reject, and send the replacement"))

        page.keyboard.press("r")
        better.fill("mended too")
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        expect(notice).to_be_visible()
        better.press_sequentially("!")  # going on with it asks anew
        expect(notice).to_be_hidden()
        page.keyboard.press("Escape")
        page.keyboard.press("a")
        expect(notice).to_be_visible()
        say(page, lambda: page.keyboard.press("a"))

        page.keyboard.press("r")
        page.keyboard.press("Escape")
        say(page, lambda: page.keyboard.press("a"))  # as it was: there is nothing to ask
        saved(page)
        assert [(row["answer"]["accepted"], row["answer"]["edited"]) for row in ann.said()] == [
            (False, "mended"),
            (True, None),
            (True, None),
        ]


def test_guidelines_are_open_with_the_first_task_until_they_are_closed(
    visit: Visitors, size: str, tmp_path: Path
) -> None:
    with desk(tmp_path, "compare", guidelines="Prefer what is **true**.\n\n" * 40) as ann:
        page = ann.open(visit(ann.url, size=size))
        panel = page.get_by_role("complementary", name="Guidelines")
        expect(panel).to_be_visible()
        looked_at(page, f"guidelines-{size}")
        panel.get_by_text("Prefer").last.scroll_into_view_if_needed()
        expect(page.get_by_role("button", name="Close")).to_be_in_viewport(ratio=1)
        press(page, "Close")
        expect(panel).to_be_hidden()
        say(page, lambda: page.keyboard.press("1"))
        expect(panel).to_be_hidden()
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        expect(panel).to_be_hidden()
        press(page, "Guidelines")
        expect(panel).to_be_visible()


def test_no_guidelines_stand_before_that_nothing_is_left(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", [], guidelines="Prefer what is true.") as ann:
        page = ann.open(visit(ann.url, size="phone"), task=False)
        expect(page.get_by_text("Nothing is left")).to_be_visible()
        expect(page.locator("#guidelines")).to_be_hidden()


def test_the_task_in_focus_has_a_name(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        task = page.get_by_role("region", name="The task")
        for _ in range(2):
            expect(task).to_be_focused()
            say(page, partial(page.keyboard.press, "1"))


def test_a_problem_is_sent_from_its_text(visit: Visitors, tmp_path: Path) -> None:
    """And the answer that stands below it is not."""
    with desk(tmp_path, "compare", criteria=({"name": "honest"},)) as ann:
        page = ann.open(visit(ann.url))
        page.keyboard.press("1")
        page.keyboard.press("p")
        page.keyboard.type("no prompt")
        say(page, lambda: page.keyboard.press("Control+Enter"))
        page.keyboard.press("?")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("dialog")).to_have_count(0)
        saved(page)
        assert [(row["verdict"], row["comment"]) for row in ann.said()] == [("problem", "no prompt")]


def test_a_request_that_hangs_is_sent_again_under_the_same_key(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = visit(ann.url)
        page.add_init_script("""
            const timeout = AbortSignal.timeout.bind(AbortSignal);
            AbortSignal.timeout = (ms) => timeout(ms / 30);
            window.told = [];
            addEventListener("DOMContentLoaded", () => {
              const place = document.getElementById("saving");
              new MutationObserver(() => told.push(place.textContent)).observe(place, { childList: true });
            });
        """)
        hung: list[str] = []

        def hang(route: Route) -> None:
            hung.append(route.request.url)
            route.fetch()  # the server has it, and the answer never comes

        ann.open(page)
        page.route(re.compile("/api/v1/judgements/"), hang, times=1)
        with page.expect_response("**/judgements/*") as answered:
            page.keyboard.press("1")
        saved(page)
        assert "Offline: 1 kept, will retry" in page.evaluate("told")
        assert [answered.value.url] == hung
        assert len(ann.said()) == 1


def test_a_practice_answer_that_was_sent_is_not_given_again(visit: Visitors, tmp_path: Path) -> None:
    practice = new_tasks(1, 1, purpose="practice", expected={"ratings": [7]})
    with desk(tmp_path, "rate", [*practice, NewTask("next", [NewResponse("x")])]) as ann:
        page = ann.open(visit(ann.url))
        press(page, "7, best")
        expect(page.get_by_text("That agrees")).to_be_visible()
        expect(page.get_by_role("button", name="1, worst")).to_be_disabled()
        expect(page.get_by_role("button", name="7, best")).to_have_attribute("aria-pressed", "true")
        say(page, lambda: press(page, "Next"))
        expect(page.get_by_role("button", name="1, worst")).to_be_enabled()


def test_a_dialogue_shows_the_message_that_is_answered(visit: Visitors, size: str, tmp_path: Path) -> None:
    long = "\n\n".join(f"Line {n} of what was said before." for n in range(30))
    last = (Message("user", "and so?"), Message("user", f"**The last question.**\n\n{long}"))
    tasks = [NewTask((Message("user", long), Message("assistant", long), one), [NewResponse("x")]) for one in last]
    tasks.append(NewTask(f"The only question.\n\n{long}", [NewResponse("y")]))
    with desk(tmp_path, "review", tasks, guidelines=long) as ann:
        page = ann.open(visit(ann.url, size=size))
        for _ in tasks:
            words = page.locator("#task .prompt .text > p:first-child").last
            assert words.inner_text() in ("and so?", "The last question.", "The only question.")
            expect(words).to_be_in_viewport(ratio=1)
            pane, line = page.locator("#task .prompt").bounding_box(), words.bounding_box()
            assert pane is not None
            assert line is not None
            assert pane["y"] <= line["y"]
            assert line["y"] + line["height"] <= pane["y"] + pane["height"]
            keep_picture(page, f"dialogue-{size}-{words.inner_text()[:8]}")
            say(page, partial(page.keyboard.press, "s"))


def test_what_is_asked_otherwise_meanwhile_is_said_until_the_page_is_loaded_again(
    visit: Visitors, size: str, tmp_path: Path
) -> None:
    with desk(tmp_path, "compare", new_tasks(6), guidelines="Prefer what is true.") as ann:
        page = ann.open(visit(ann.url, size=size))
        press(page, "Close")
        said = page.get_by_text("load this page again")
        ann.change(guidelines="Prefer what is true.", votes=2)
        with page.expect_response("**/leases"):
            say(page, partial(page.keyboard.press, "1"))
        ann.change(guidelines="Prefer what is kind.", criteria=({"name": "kind"},))
        for _ in range(2):
            say(page, partial(page.keyboard.press, "1"))
            expect(page.locator("#changed")).to_have_text(
                "The guidelines and the further questions changed: load this page again."
            )
        looked_at(page, f"changed-{size}")
        said.click()
        expect(page.get_by_role("group", name="kind")).to_be_visible()
        expect(said).to_be_hidden()
        press(page, "Guidelines")
        expect(page.get_by_role("complementary", name="Guidelines")).to_contain_text("Prefer what is kind.")


def test_what_is_asked_as_before_again_is_not_said(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(4), question="Which is kind?") as ann:
        page = ann.open(visit(ann.url))
        for question, said in ("Which is true?", "The question changed: load this page again."), ("Which is kind?", ""):
            ann.change(question=question)
            say(page, partial(page.keyboard.press, "1"))
            if said:
                expect(page.locator("#changed")).to_have_text(said)
            else:
                expect(page.locator("#changed")).to_be_hidden()


def test_differences_that_cannot_be_had_are_said(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        pressed = page.get_by_role("button", name="Differences")
        page.route(DIFFERENCES, lambda route: route.abort())
        page.keyboard.press("d")
        expect(page.locator("#notice")).to_have_text(
            "Offline: the differences can be shown when the network is there again."
        )
        expect(pressed).to_have_attribute("aria-pressed", "false")
        page.unroute(DIFFERENCES)
        refuse(page, DIFFERENCES, 503, "the database is busy")
        page.keyboard.press("d")
        expect(page.locator("#notice")).to_have_text("The database is busy.")
        page.unroute(DIFFERENCES)
        page.keyboard.press("d")
        expect(pressed).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("come", [True, False])
def test_differences_that_come_when_nothing_is_left_are_let_go(visit: Visitors, come: bool, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(1)) as ann:
        page = ann.open(visit(ann.url))
        late: list[Route] = []
        page.route(DIFFERENCES, lambda route: late.append(route))
        page.keyboard.press("d")
        met(page, lambda: late)
        page.keyboard.press("1")
        expect(page.get_by_text("Nothing is left")).to_be_visible()
        if come:
            with page.expect_response(DIFFERENCES):
                late[0].continue_()
        else:
            late[0].abort()
        saved(page)
        page.wait_for_timeout(200)  # `visit` hears of what its scripts throw
        expect(page.locator("#notice")).to_be_hidden()


def test_no_notice_of_a_task_stands_over_that_there_is_none(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(2)) as ann:
        page = ann.open(visit(ann.url))
        say(page, lambda: page.keyboard.press("1"))
        say(page, lambda: page.keyboard.press("u"))
        expect(page.locator("#notice")).to_have_text("Taken back: say it anew.")
        saved(page)
        with ann.database.writing() as session:
            close_project(session.get_one(Project, ann.project), now=time.time())
        for _ in range(2):  # what is under way is still taken
            page.keyboard.press("1")
        expect(page.locator(".none")).to_contain_text("The project to compare is closed.")
        expect(page.locator("#notice")).to_be_hidden()
