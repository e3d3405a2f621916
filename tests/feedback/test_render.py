"""What leaves the renderer, read by an HTML parser that is not the cleaner's."""

from __future__ import annotations

from difflib import SequenceMatcher
from html.parser import HTMLParser

import pytest

from keel.feedback import differences
from keel.feedback.differences import marked
from keel.feedback.render import LONGEST_MARKDOWN, markdown, plain, turns

TAGS = {
    *("a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span"),
    *("strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"align", "class", "dir", "href", "rel", "start", "tabindex", "target"}

HOSTILE = [
    "<script>window.caught = 1</script>",
    "<img src=x onerror='window.caught = 1'>",
    "<svg onload=window.caught=1><script>window.caught=1</script></svg>",
    "<iframe srcdoc='<script>parent.caught = 1</script>'></iframe>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=window.caught=1&gt;'>",
    "<noscript><p title='</noscript><img src=x onerror=window.caught=1>'>",
    "<style>body { display: none }</style><link rel=stylesheet href=//evil.example/x.css>",
    "<form action=//evil.example><input name=csrf><button>Go on</button></form>",
    "<base href=//evil.example/><meta http-equiv=refresh content='0;url=//evil.example'>",
    "<object data=//evil.example></object><embed src=//evil.example>",
    "<details open ontoggle=window.caught=1>",
    "<a href='javascript:window.caught=1' autofocus onfocus=window.caught=1>here</a>",
    "[here](javascript:window.caught=1)",
    "[here](JaVaScRiPt:window.caught=1)",
    "[here](java&#x0A;script:window.caught=1)",
    "[here](javascript&colon;window.caught=1)",
    "[here](<javascript:window.caught=1>)",
    "[here](&#106;avascript:window.caught=1)",
    "[here](\x01javascript:window.caught=1)",
    "[here](vbscript:msgbox)",
    "[here](data:text/html,<script>window.caught=1</script>)",
    "[here][1]\n\n[1]: javascript:window.caught=1",
    "<javascript:window.caught=1>",
    "![here](javascript:window.caught=1)",
    '![" onerror="window.caught=1](x)',
    '![x](https://evil.example/seen.png "\' onerror=window.caught=1")',
    '[x](https://a.example/"onmouseover="window.caught=1)',
    "[here](//evil.example) [here](/sign-out) [here](#main)",
    "```html\n<script>window.caught = 1</script>\n```",
    '```" onmouseover="window.caught=1\ntext\n```',
    "`<script>window.caught = 1</script>`",
    "| <script>window.caught=1</script> |\n|---|\n| <img src=x onerror=window.caught=1> |",
    "# <script>window.caught = 1</script>",
    "</div></section><script>window.caught = 1</script>",
    "</script><script>window.caught = 1</script>",
    "&lt;script&gt;window.caught = 1&lt;/script&gt;",
    "\u202e<script>window.caught = 1</script>",
    "<scr<script>ipt>window.caught = 1</scr</script>ipt>",
]


class Reader(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("render", [markdown, plain])
def test_nothing_but_harmless_tags_and_attributes_is_left(render: object, text: str) -> None:
    assert callable(render)
    for tag, attributes in Reader(render(text)).found:
        assert tag in TAGS
        assert set(attributes) <= ATTRIBUTES
        assert (attributes.get("href") or "https://").startswith(("https://", "http://", "mailto:"))


def test_what_cannot_be_shown_is_there_to_be_read() -> None:
    assert Reader(markdown("<script>alert(1)</script> **so**")).words.strip() == "<script>alert(1)</script> so"
    assert Reader(markdown("![a cat](https://x.example/cat.png)")).words.strip() == "a cat (https://x.example/cat.png)"


def test_a_link_opens_beside_and_tells_nothing() -> None:
    ((_, attributes),) = [one for one in Reader(markdown("[a](https://x.example/?q=1&r=2)")).found if one[0] == "a"]
    assert attributes == {
        "href": "https://x.example/?q=1&r=2",
        "target": "_blank",
        "rel": "noopener noreferrer nofollow",
    }


def test_markdown_is_read() -> None:
    text = "# Head\n\none\ntwo **bold** ~~gone~~\n\n3. a\n4. b\n\n> quote\n\n```python\nx = 1\n```\n\n|a|\n|-|\n|b|"
    read = Reader(markdown(text))
    tags = [tag for tag, _ in read.found]
    assert tags[:5] == ["h3", "p", "br", "strong", "s"]  # a head of the text stands below those of the page
    assert {"blockquote", "pre", "table", "td"} <= set(tags)
    assert ("ol", {"dir": "auto", "start": "3"}) in read.found
    assert ("span", {"class": "mi"}) in read.found  # a number of Python
    assert "x = 1" in read.words


def test_each_block_has_its_own_direction_and_code_is_left_to_right() -> None:
    read = Reader(markdown("שלום\n\nhello\n\n- مرحبا\n\n```\nx\n```"))
    found = {tag: attributes.get("dir") for tag, attributes in read.found}
    assert found == {"p": "auto", "ul": "auto", "li": None, "pre": "ltr", "code": None}
    assert [one["dir"] for _, one in Reader(plain("שלום\nhello")).found] == ["auto", "auto"]


@pytest.mark.parametrize("text", ["- a\n\n  b\n\n- c", "1. a\n   - b", "> a\n>\n> - b", "|a|\n|-|\n|b|", "# a"])
def test_what_stands_in_a_block_has_no_direction_of_its_own(text: str) -> None:
    """HTML passes over what has, when it looks for the direction of what it stands in."""
    (first, directed), *rest = Reader(markdown(text)).found
    assert directed["dir"] == "auto", first
    assert [tag for tag, attributes in rest if "dir" in attributes] == []


def test_columns_are_aligned_as_the_text_asks() -> None:
    found = [(tag, one.get("align")) for tag, one in Reader(markdown("|a|b|c|\n|---:|:-:|-|\n|1|2|3|")).found]
    assert [one for one in found if one[0] == "td"] == [("td", "right"), ("td", "center"), ("td", None)]


def test_a_prompt_is_a_text_or_turns() -> None:
    assert [(one.role, one.text) for one in turns("Hi")] == [(None, "Hi")]
    chat = [{"role": "user", "content": "*Hi*"}, {"role": "assistant", "content": "Ho"}]
    assert [one.role for one in turns(chat)] == ["user", "assistant"]
    assert "<em>Hi</em>" in turns(chat)[0].html


@pytest.mark.parametrize(
    "text",
    [
        "[" * LONGEST_MARKDOWN,
        "![" * (LONGEST_MARKDOWN // 2),
        "> " * (LONGEST_MARKDOWN // 2),
        "*a _b " * (LONGEST_MARKDOWN // 6),
        "|a" * 10_000 + "\n" + "|-" * 10_000,
        "|a|b|\n|-|-|\n" + "|\n" * (LONGEST_MARKDOWN // 2 - 10),
        "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "a\n" * 65,
        "|" + "a|" * 1000 + "\r|" + "-|" * 1000 + "\r" + "a\r" * 65,
        "```java\n" + "\n" * (LONGEST_MARKDOWN - 10),
        "```csharp\n" + "a\n" * 3000,
        "```jav&#97;\n" + "\n" * 3900,
        "```py\nx\n```\n" * (LONGEST_MARKDOWN // 12),
        "".join("```java\n" + "\n" * 1900 + "\n```\n" for _ in range(10)),
        "a. b " * 1_000_000,
    ],
    ids=lambda text: text[:8],
)
def test_a_text_made_to_take_long_does_not(text: str) -> None:
    """What costs is bounded: elements, blocks in colours, and a text of a million words is shown as it is written."""
    made = markdown(text)
    assert made.count("<") < 10_000
    assert made.count("<span") <= 50


def test_a_table_of_a_usual_size_is_one_and_a_program_is_in_colours() -> None:
    table = "|a|b|c|\n|-|-|-|\n" + "|x|y|z|\n" * 300
    assert [tag for tag, _ in Reader(markdown(table)).found].count("td") == 900
    too_many = table + "|x|y|z|\n" * 1000
    assert "table" not in [tag for tag, _ in Reader(markdown(too_many)).found]
    assert "span" in [tag for tag, _ in Reader(markdown("```java\n" + "int a;\n" * 200 + "```")).found]
    assert "span" not in [tag for tag, _ in Reader(markdown("```java\n" + "int a;\n" * 400 + "```")).found]


def test_differences_are_marked_by_words_and_each_side_is_whole() -> None:
    one, other = marked("The cat sat. It ate <b>fish</b>.", "The cat sat. It ate some meat.")
    assert one == "The cat sat. It ate <mark>&lt;b&gt;fish&lt;/b&gt;</mark>."
    assert other == "The cat sat. It ate <mark>some meat</mark>."
    assert marked("same\ntext", "same\ntext") == ("same\ntext", "same\ntext")
    assert marked("", "all new") == ("", "<mark>all new</mark>")
    assert marked("a b", "a c b") == ("a b", "a <mark>c</mark> b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x" * 300_000, "y"),
        ("a b " * 50_000, "b a " * 50_000),
        (" ".join(map(str, range(9000))), " ".join(map(str, range(9000, 0, -1)))),
        ("a. " * 50_000, "b. " * 50_000),
        (" ".join(f"z{n}" for n in range(25_000)), " ".join(f"z{n}" if n % 2 else f"q{n}" for n in range(25_000))),
    ],
)
def test_differences_of_anything_are_bounded_and_lose_no_word(
    one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = 0

    def counted(junk: None, first: list[str], second: list[str]) -> SequenceMatcher[str]:
        nonlocal compared
        compared += len(first) * len(second)
        assert compared <= 3_000_000
        return SequenceMatcher(junk, first, second)

    monkeypatch.setattr(differences, "SequenceMatcher", counted)
    html = marked(one, other)
    assert [Reader(side).words for side in html] == [one, other]
