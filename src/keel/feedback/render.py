"""Prompts and responses as HTML. They are hostile: what leaves here holds the tags and attributes named below, no more.

Markdown is read without HTML in it, then cleaned once more as if it had been HTML all along. Nothing is fetched: an
image is its description and address. Every block finds its own direction, with all that stands in it; code runs from
left to right; what may be too wide can be scrolled by keys.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

LONGEST_MARKDOWN = 20_000
"""Characters; what is longer is shown as it was written."""
_MOST_CELLS = 5_000
"""Of a text's tables, with those that rows leave out, which cost as much. A text with more is shown without tables."""
_MOST_CODE = 4_000
_MOST_OF_A_PROGRAM = 2_000
"""Characters of a text that are coloured: the lexers of the programs' languages take the square of the length."""
_MOST_BLOCKS = 50
"""Of code in colours."""
_QUICK = {
    "bash",
    "css",
    "diff",
    "html",
    "js",
    "json",
    "lua",
    "php",
    "py",
    "python",
    "r",
    "ruby",
    "sh",
    "shell",
    "sql",
    "toml",
    "xml",
    "yaml",
    "yml",
}
_PROGRAMS = {"c", "cpp", "go", "java", "javascript", "kotlin", "rust", "swift", "ts", "typescript"}
_LANGUAGES = _QUICK | _PROGRAMS
_BLOCKS = ("p", "h3", "h4", "h5", "h6", "ul", "ol", "blockquote", "table")
_CLEANER = nh3.Cleaner(
    tags={
        *_BLOCKS,
        "a",
        "br",
        "code",
        "em",
        "hr",
        "li",
        "pre",
        "s",
        "span",
        "strong",
        "tbody",
        "td",
        "th",
        "thead",
        "tr",
    },
    attributes={"a": {"href"}, "ol": {"start"}},
    tag_attribute_values={
        **{tag: {"dir": {"auto"}} for tag in _BLOCKS},
        **{tag: {"align": {"center", "left", "right"}} for tag in ("td", "th")},
    },
    allowed_classes={"span": {"image", *STANDARD_TYPES.values()} - {""}},
    set_tag_attribute_values={
        "a": {"target": "_blank"},
        "pre": {"dir": "ltr", "tabindex": "0"},
        "table": {"tabindex": "0"},
    },
    link_rel="noopener noreferrer nofollow",
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
)


@dataclass(frozen=True)
class Turn:
    """A message of a prompt; one that is a text, and no chat, has no role."""

    role: str | None
    text: str
    html: str


@lru_cache(maxsize=256)
def markdown(text: str) -> str:
    """HTML that is safe to put into a page."""
    if len(text) > LONGEST_MARKDOWN:
        return plain(text)
    reader = _MARKDOWN if _cells(text) <= _MOST_CELLS else _WITHOUT_TABLES
    return _CLEANER.clean(reader.render(text))


def plain(text: str) -> str:
    """The text as it was written, as HTML: a block a line, each in its own direction."""
    return "".join(f'<p dir="auto">{html.escape(line) or "<br>"}</p>' for line in text.split("\n"))


def turns(prompt: str | Sequence[Mapping[str, str]]) -> list[Turn]:
    """A task's prompt as it is kept."""
    if isinstance(prompt, str):
        return [Turn(None, prompt, markdown(prompt))]
    return [Turn(one["role"], one["content"], markdown(one["content"])) for one in prompt]


def _cells(text: str) -> int:
    """At least as many as a text's tables have: as if every line of a block with a | in it were a row."""
    blocks = text.replace("\r\n", "\n").replace("\r", "\n").split("\n\n")
    return sum(
        (max(line.count("|") for line in block.split("\n")) + 1) * (block.count("\n") + 1)
        for block in blocks
        if "|" in block
    )


def _code(code: str, language: str, attributes: str) -> str:
    """The inside of a code block, with the lexer that it asks for if that is a known one."""
    if language.lower() not in _LANGUAGES:
        return html.escape(code)
    coloured: str = highlight(code, get_lexer_by_name(language.lower(), stripnl=False), HtmlFormatter(nowrap=True))
    return coloured


def _image(renderer: RendererHTML, tokens: Sequence[Token], at: int, options: OptionsDict, env: EnvType) -> str:
    image = tokens[at]
    address = image.attrGet("src")
    words = renderer.renderInlineAsText(image.children or [], options, env)
    said = html.escape(f"{words} ({address})".strip())
    return f'<span class="image">{said}</span>'


def _fit_in(state: StateCore) -> None:
    """Headings below those of the page, whose panes are of the second level; and no more than some code in colours.

    Only the outermost blocks are asked for a direction: one that has its own is passed over where theirs is looked for.
    """
    left = 1.0
    for token in state.tokens:
        if token.nesting == 1 and token.level == 0:
            token.attrSet("dir", "auto")
        if token.type in ("th_open", "td_open") and (style := token.attrs.pop("style", None)):
            token.attrSet("align", str(style).removeprefix("text-align:"))
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type == "fence":
            quick = token.info.strip().lower() in _QUICK  # as it is written: what is written in a roundabout way is not
            left -= len(token.content) / (_MOST_CODE if quick else _MOST_OF_A_PROGRAM) + 1 / _MOST_BLOCKS
            token.info = token.info if left >= 0 else ""


def _reader(*more: str) -> MarkdownIt:
    options: dict[str, Any] = {"html": False, "breaks": True, "highlight": _code}
    reader = MarkdownIt("commonmark", options).enable(["strikethrough", *more])
    reader.core.ruler.push("fit_in", _fit_in)
    reader.add_render_rule("image", _image)
    return reader


_MARKDOWN = _reader("table")
_WITHOUT_TABLES = _reader()
