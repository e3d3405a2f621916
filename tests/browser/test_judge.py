"""Judging in a browser, in every way, by pointer and by keys; held against the rows in the database, by their texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from keel.feedback.tasks import NewResponse, NewTask
from keel.schema import Message
from tests.browser.judging import chip, desk, drag, looked_at, point, press, prompt, saved, say, shown, until
from tests.browser.support import Visitors, assert_accessible
from tests.feedback.test_render import HOSTILE
from tests.feedback.worlds import new_tasks

NOTHING_LEFT = "Nothing is left for you to judge"


def test_comparing(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url, size=size))
        looked_at(page, f"compare-{size}")
        wanted = []
        for button, key, best, strength in [
            ("B better", "", 1, "clear"),
            ("", "2", 0, "slight"),
            ("Tie", "", None, "tie"),
            ("", "0", None, "both_bad"),
        ]:
            wanted.append((prompt(page), {"best": None if best is None else shown(page)[best], "strength": strength}))
            say(page, partial(press, page, button) if button else partial(page.keyboard.press, key))
        expect(page.get_by_text(NOTHING_LEFT)).to_be_visible()
        saved(page)
        assert [(row["prompt"], row["answer"]) for row in ann.said()] == wanted
        expect(page.locator("#progress")).to_have_text("4 judged today · 0 left for you")


def test_no_more_are_said_to_be_left_than_there_are(visit: Visitors, tmp_path: Path) -> None:
    """Where gold may be among the tasks their number is not told, nor is it untrue."""
    with desk(tmp_path, "compare", new_tasks(13), gold_share=0.1) as ann:
        page = ann.open(visit(ann.url))
        told = page.locator("#progress")
        expect(told).to_have_text("0 judged today · more than 10 left for you")
        for judged in range(1, 13):
            say(page, lambda: page.keyboard.press("1"))
            expect(told).to_have_text(
                re.compile(f"^{judged} judged today · (more than [1-9] left|a few left) for you$")
            )
            said = told.text_content() or ""
            assert int((re.findall("more than ([0-9])", said) or ["0"])[0]) < 13 - judged
        say(page, lambda: page.keyboard.press("1"))
        expect(page.get_by_text(NOTHING_LEFT)).to_be_visible()
        expect(told).to_have_text("13 judged today · 0 left for you")


def test_the_keys_of_other_layouts(visit: Visitors, tmp_path: Path) -> None:
    """By their place: Caps Lock, Cyrillic, and French digits, which are shifted."""
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        for key, code in (("&", "Digit1"), ("Ы", "KeyS"), ("S", "KeyS")):
            sent = {"key": key, "code": code, "bubbles": True}
            say(
                page,
                partial(page.evaluate, "sent => document.body.dispatchEvent(new KeyboardEvent('keydown', sent))", sent),
            )
        saved(page)
        assert [row["verdict"] for row in ann.said()] == ["answer", "skip", "skip"]


def test_ranking(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "rank") as ann:
        page = ann.open(visit(ann.url, size=size))
        a, b, c = shown(page)
        wanted: list[Any] = [{c: 1, b: 2, a: 2}]
        drag(page, chip(page, "B"), page.get_by_role("group", name="Your order"))
        drag(page, chip(page, "C"), chip(page, "B"))
        point(chip(page, "A"))
        point(page.get_by_role("button", name="A ties with B"))
        looked_at(page, f"rank-{size}")
        expect(page.get_by_role("button", name="A is 2nd")).to_be_visible()
        say(page, lambda: press(page, "Submit"))

        a, b, c = shown(page)
        wanted.append({b: 1, c: 1, a: 2})
        for key in "1", "Backspace", "2", "3", "=", "Enter", "1":  # Enter sends nothing before the order is whole
            page.keyboard.press(key)
        say(page, lambda: page.keyboard.press("Enter"))

        a, b, c = shown(page)
        wanted.append({c: 1, a: 2, b: 3})
        for key in "1", "2", "3":
            page.keyboard.press(key)
        chip(page, "C").focus()
        for _ in range(2):
            page.keyboard.press("ArrowLeft")
        say(page, lambda: page.keyboard.press("Control+Enter"))
        saved(page)
        assert [row["answer"]["ranks"] for row in ann.said()] == wanted


def test_rating(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "rate", criteria=({"name": "true"}, {"name": "kind"})) as ann:
        page = ann.open(visit(ann.url, size=size))
        a, b = shown(page)
        wanted: list[Any] = [({a: 7, b: 2}, {"true": "no"}, "")]
        press(page, "B: 2")
        press(page, "A: 7, best")
        page.get_by_role("group", name="true").get_by_label("no", exact=True).check()
        looked_at(page, f"rate-{size}")
        say(page, lambda: press(page, "Submit"))

        a, b = shown(page)
        wanted.append(({a: 5, b: 3}, {"true": "yes"}, "by keys 1 2 3"))
        for key in "4", "3", "k", "5", "q", "Space", "c":
            page.keyboard.press(key)
        page.keyboard.type("by keys 1 2 3")
        say(page, lambda: page.keyboard.press("Control+Enter"))
        saved(page)
        assert [(row["answer"]["ratings"], row["criteria"], row["comment"]) for row in ann.said()] == wanted


def test_one_response_is_rated_by_one_key(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "rate", new_tasks(2, 1), scale=(0, 10)) as ann:
        page = ann.open(visit(ann.url))
        say(page, lambda: page.keyboard.press("-"))
        say(page, lambda: press(page, "4"))
        saved(page)
        assert [list(row["answer"]["ratings"].values()) for row in ann.said()] == [[10], [4]]


@pytest.mark.parametrize(
    ("scale", "rated"),
    [
        ((0, 10), {"0": 0, "1": 1, "5": 5, "9": 9, "-": 10}),
        ((1, 10), {"1": 1, "9": 9, "0": 10}),
        ((-2, 2), {"2": 2, "0": 0, "z": -2, "x": -1}),
        ((10, 20), {"0": 10, "3": 13, "-": 20}),
    ],
)
def test_a_digit_is_that_rating_and_only_what_is_left_has_another_key(
    visit: Visitors, scale: tuple[int, int], rated: dict[str, int], tmp_path: Path
) -> None:
    with desk(tmp_path, "rate", new_tasks(len(rated), 1), scale=scale) as ann:
        page = ann.open(visit(ann.url))
        for key, number in rated.items():
            name = re.compile(rf"^{number}(, |$)")
            expect(page.get_by_role("button", name=name)).to_have_attribute("aria-keyshortcuts", key)
            say(page, partial(page.keyboard.press, key))
        saved(page)
        assert [list(row["answer"]["ratings"].values()) for row in ann.said()] == [[one] for one in rated.values()]
        page.get_by_role("link", name="What you said").first.click()
        expect(page.get_by_text(f"{list(rated.values())[-1]}", exact=True)).to_be_visible()


def test_reviewing(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "review", new_tasks(5, 1)) as ann:
        page = ann.open(visit(ann.url, size=size))
        say(page, lambda: press(page, "Accept"))
        press(page, "Reject, or mend it")
        better = page.get_by_label("A better response")
        expect(better).to_have_value(shown(page)[0])
        better.fill("what it should have been")
        looked_at(page, f"review-{size}")
        say(page, lambda: press(page, "Reject, and send the replacement"))
        say(page, lambda: page.keyboard.press("a"))
        page.keyboard.press("r")
        page.keyboard.type("A: ")  # before what is there
        mended = "A: " + shown(page)[0]
        say(page, lambda: page.keyboard.press("Control+Enter"))
        page.keyboard.press("r")
        say(page, lambda: page.keyboard.press("Control+Enter"))
        saved(page)
        assert [row["answer"] for row in ann.said()] == [
            {"accepted": True, "edited": None},
            {"accepted": False, "edited": "what it should have been"},
            {"accepted": True, "edited": None},
            {"accepted": False, "edited": mended},
            {"accepted": False, "edited": None},
        ]


def test_criteria_comments_skips_and_problems(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", criteria=({"name": "honest", "question": "More honest?"},)) as ann:
        page = ann.open(visit(ann.url))
        a, b = shown(page)
        press(page, "A better")
        page.get_by_role("group", name="More honest?").get_by_label("B").check()
        page.get_by_label("Comment").fill("1 s u ? <b>")
        say(page, lambda: press(page, "Submit"))
        page.get_by_label("Comment").fill("too long")
        say(page, lambda: press(page, "Skip"))
        page.keyboard.press("p")
        page.get_by_label("What is wrong").fill("no prompt")
        assert_accessible(page)
        say(page, lambda: press(page, "Report, and go on"))
        page.keyboard.press("p")
        press(page, "Cancel")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keys")).to_contain_text("report a problem")
        assert_accessible(page)
        page.get_by_label("Single keys work").uncheck()
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        expect(page.locator("#answer")).to_be_visible()
        saved(page)
        first, second, third = ann.said()
        assert (first["answer"]["best"], first["criteria"], first["comment"]) == (a, {"honest": b}, "1 s u ? <b>")
        assert (second["verdict"], second["comment"]) == ("skip", "too long")
        assert (third["verdict"], third["comment"]) == ("problem", "no prompt")


def test_undo_gives_the_form_as_it_was_also_after_a_reload(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", criteria=({"name": "honest"},)) as ann:
        page = ann.open(visit(ann.url, size=size))
        a, b = shown(page)
        page.keyboard.press("c")
        page.get_by_label("Comment").fill("so")
        page.keyboard.press("Escape")
        page.keyboard.press("1")
        page.get_by_label("none").check()
        say(page, lambda: press(page, "Submit"))

        def undone(back: Callable[[], None]) -> None:
            say(page, back)
            assert shown(page) == [a, b]
            expect(page.get_by_role("button", name="A better")).to_have_attribute("aria-pressed", "true")
            expect(page.get_by_label("none")).to_be_checked()
            expect(page.get_by_label("Comment")).to_have_value("so")

        undone(lambda: press(page, "Undo"))
        say(page, lambda: press(page, "Submit"))
        saved(page)
        page.reload()
        expect(page.locator("#answer")).to_be_visible()
        undone(lambda: page.keyboard.press("u"))
        page.keyboard.press("5")
        say(page, lambda: page.keyboard.press("Enter"))
        saved(page)
        rows = ann.said()
        assert [row["verdict"] for row in rows] == ["answer", "withdrawn", "answer", "withdrawn", "answer"]
        assert [row["answer"].get("best") for row in rows] == [a, None, a, None, b]


def test_two_tabs_of_one_person_count_once(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(1)) as ann:
        one = ann.open(visit(ann.url))
        other = one.context.new_page()
        other.goto(one.url)
        expect(other.locator("#answer")).to_be_visible()
        one.keyboard.press("1")
        for page in one, other:
            expect(page.get_by_text(NOTHING_LEFT)).to_be_visible()
        assert len(ann.said()) == 1

        ann.add(new_tasks(1, round=2))
        for page in one, other:
            press(page, "Look again")
            expect(page.locator("#answer")).to_be_visible()
        one.goto("/")  # what it gives back, the other tab takes up again
        until(lambda: ann.states() == ["done", "leased"])
        say(other, lambda: other.keyboard.press("1"))
        saved(other)
        assert [row["verdict"] for row in ann.said()] == ["answer", "answer"]


def test_a_page_that_closes_gives_its_tasks_back(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare") as ann:
        page = ann.open(visit(ann.url))
        assert "leased" in ann.states()
        page.goto("/")
        until(lambda: set(ann.states()) == {"released"})


def test_a_lease_about_to_end_is_said_and_held_on_to(visit: Visitors, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(1)) as ann:
        page = visit(ann.url)
        page.clock.install()
        ann.open(page)
        before = ann.ends()
        page.clock.run_for("28:30")
        expect(page.get_by_text("This task goes back to the others soon")).to_be_visible()
        page.keyboard.press("g")
        page.clock.run_for("00:03")
        expect(page.locator("#notice")).to_be_hidden()
        assert ann.ends() > before


def test_practice_tells_what_was_expected(visit: Visitors, tmp_path: Path) -> None:
    practice = new_tasks(1, purpose="practice", expected={"best": 0, "strength": "clear"}, row={"why": "It *fits*."})
    with desk(tmp_path, "compare", [*practice, NewTask("next", [NewResponse("x"), NewResponse("y")])]) as ann:
        page = ann.open(visit(ann.url))
        expect(page.get_by_text("Practice:")).to_be_visible()
        letter = "AB"[shown(page).index("response 0.0")]
        press(page, f"{letter} better")
        expect(page.get_by_text(f"That agrees with what was expected: {letter} better. ")).to_be_visible()
        expect(page.locator("#notice em")).to_have_text("fits")
        assert_accessible(page)
        say(page, lambda: press(page, "Next"))
        assert prompt(page) == "next"
        expect(page.locator("#progress")).to_have_text("0 judged today · 1 left for you")


def test_what_was_said_is_listed_and_corrected(visit: Visitors, size: str, tmp_path: Path) -> None:
    with desk(tmp_path, "compare", new_tasks(2)) as ann:
        page = ann.open(visit(ann.url, size=size))
        a, b = shown(page)
        say(page, lambda: page.keyboard.press("1"))
        saved(page)
        page.get_by_role("link", name="What you said").click()
        expect(page.get_by_text("A better")).to_be_visible()
        looked_at(page, f"history-{size}")
        page.get_by_role("link", name="Correct").click()
        expect(page.get_by_role("button", name="A better")).to_have_attribute("aria-pressed", "true")
        press(page, "B slightly")
        expect(page.get_by_text("B slightly better")).to_be_visible()
        assert [row["answer"]["best"] for row in ann.said()] == [a, b]


def test_nothing_that_a_text_brings_runs(visit: Visitors, tmp_path: Path) -> None:
    """Without the content policy, so that what the renderer lets through would run; and with it, unbroken."""
    tasks = [
        NewTask((Message("user", hostile), Message(hostile, "x")), [NewResponse(hostile)]) for hostile in HOSTILE[::6]
    ]
    tasks.append(NewTask("all", [NewResponse("\n\n".join(HOSTILE))]))
    with desk(
        tmp_path, "review", tasks, guidelines="\n\n".join(HOSTILE), question="<img src=x onerror=caught=1>"
    ) as ann:
        page = ann.open(visit(ann.url, bypass_csp=True))
        for number in range(len(tasks)):
            page.keyboard.press("m")
            page.keyboard.press("m")
            page.keyboard.press("r")
            page.keyboard.press("Escape")
            page.get_by_label("Comment").fill(HOSTILE[number])
            page.keyboard.press("Escape")
            for link in page.locator("#task a, #guidelines a").all():
                assert (link.get_attribute("href") or "https:").startswith(("https:", "http:", "mailto:"))
            say(page, lambda: page.keyboard.press("a"))
        saved(page)
        expect(page.get_by_text(NOTHING_LEFT)).to_be_visible()
        assert page.evaluate("window.caught") is None
        page.get_by_role("link", name="What you said").first.click()
        expect(page.get_by_role("heading", name="What you said")).to_be_visible()
        assert page.evaluate("window.caught") is None
        page.goto(f"/projects/{ann.project}/judge")
        page.keyboard.press("u")
        expect(page.locator("#answer")).to_be_visible()
        assert page.evaluate("window.caught") is None
        assert len(ann.said()) >= len(tasks)


def test_right_to_left_long_texts_and_differences(visit: Visitors, size: str, tmp_path: Path) -> None:
    lines = [f"Line {n} of a text that is long enough to be scrolled in its pane." for n in range(80)]
    arabic = ["שלום לכולם, זה טקסט בעברית.", "- مرحبا بالعالم", *lines]
    other = ["שלום לכולם, זה סיפור בעברית.", "- مرحبا بالعالم", *lines]
    tasks = [NewTask("مرحبا\n\nhello", [NewResponse("\n\n".join(text)) for text in (arabic, other)])]
    with desk(tmp_path, "compare", tasks) as ann:
        page = ann.open(visit(ann.url, size=size))
        direction = "one => getComputedStyle(one).direction"
        pane = page.locator(".response > .text").first
        for _ in ("as Markdown", "as written"):
            blocks = page.locator("#task .prompt p")
            assert blocks.first.evaluate(direction) == "rtl"
            assert blocks.last.evaluate(direction) == "ltr"
            assert pane.locator("p, li").first.evaluate(direction) == "rtl"
            assert pane.locator("p").last.evaluate(direction) == "ltr"
            press(page, "As written")
        looked_at(page, f"rtl-{size}")
        press(page, "Scroll together")
        pane.evaluate("one => one.scrollTo(0, one.scrollHeight)")
        until(lambda: page.locator(".response > .text").last.evaluate("one => one.scrollTop") > 300)
        press(page, "Differences")
        expect(page.locator("mark")).to_have_count(2)
        assert sorted(page.locator("mark").all_inner_texts()) == sorted(["טקסט", "סיפור"])
        looked_at(page, f"differences-{size}")


def test_the_next_task_is_there_at_once(visit: Visitors, tmp_path: Path) -> None:
    """Measured and told, not held to a time: machines differ."""
    words = "\n\n".join(f"**{n}** is a number, and `{n}` is code; so it goes on." for n in range(60))
    tasks = [NewTask(f"prompt {n}", [NewResponse(f"{words} {n} {k}") for k in range(2)]) for n in range(8)]
    with desk(tmp_path, "compare", tasks) as ann:
        page = ann.open(visit(ann.url))
        took = []
        for _ in range(6):
            page.wait_for_timeout(300)  # a quick reader
            took.append(page.evaluate(_TIMED))
        saved(page)
        print(f"ms from an answer to the next task painted: {', '.join(f'{one:.0f}' for one in took)}")
        assert len(ann.said()) == 6


_TIMED = """() => new Promise(done => {
  const prompt = () => document.querySelector('#task .prompt')?.innerText;
  const before = prompt(), from = performance.now();
  document.querySelector('.choice.a').click();
  const look = () => [undefined, before].includes(prompt())  // undefined while it is fetched
    ? requestAnimationFrame(look) : requestAnimationFrame(() => done(performance.now() - from));
  look();
})"""
