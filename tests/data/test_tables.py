from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keel.data.reasons import Reason, Unusable
from keel.data.tables import table_rows, text_rows
from keel.errors import UserError


def read(text: str, reader: Any = None) -> list[Any]:
    def lines() -> Iterator[str]:
        return iter(io.StringIO(text, newline="\n"))

    values = table_rows(lines, "t.csv") if reader is None else reader(lines, "t.txt")
    return [(v.reason, v.detail) if isinstance(v, Unusable) else v for v in values]


def cells(text: str) -> list[list[str]]:
    return [list(row.values()) for row in read(text)]


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_the_delimiter_is_the_headers(delimiter: str) -> None:
    text = "a?b?c\n1?2?3\n".replace("?", delimiter)
    assert read(text) == [{"a": "1", "b": "2", "c": "3"}]


def test_the_header() -> None:
    assert read('"a, b";c\n1;2\n') == [{"a, b": "1", "c": "2"}]
    assert read("a, b\tc\n1\t2\n") == [{"a, b": "1", "c": "2"}]
    assert read("#id\t label \r\n7\tx\r\n") == [{"id": "7", "label": "x"}]
    assert read(",text\n0,x\n") == [{"": "0", "text": "x"}]
    assert read("text\nHello, you\n") == [{"text": "Hello, you"}]
    assert read("a,b\n") == []
    assert read("") == []
    with pytest.raises(UserError, match="names “a” twice"):
        read("a,b,a\n1,2,3\n")
    with pytest.raises(UserError, match="header is not UTF-8"):
        read("a,\udce9\n1,2\n")


def test_bare_quotes_of_an_unquoted_table_are_characters() -> None:
    """As in argument pairs from debates: cells that begin, end or are wholly in quotes, none of them doubled."""
    lines = [
        'a1\t"So what?" he said\tx "quoted" y',
        'a2\t"Yes."\t5" pipes',
        'a1\t"\tend"',
        'a2\t"one\ttwo "',
    ]
    assert cells("label\ta\tb\n" + "\n".join(lines) + "\n") == [line.split("\t") for line in lines]


def test_quotes_that_the_whole_table_keeps_to_are_its_own() -> None:
    text = 'a\tb\n"He said ""hi"""\tplain\n"two\nlines"\t"a\ttab"\n'
    assert cells(text) == [['He said "hi"', "plain"], ["two\nlines", "a\ttab"]]
    assert cells('a,b\n"x, y","""z"""\n') == [["x, y", '"z"']]


def test_bare_quotes_between_commas() -> None:
    assert cells('a,b\n"So what?" he said,x\n') == [['"So what?" he said', "x"]]


def test_a_row_that_is_broken_does_not_take_others_with_it() -> None:
    text = 'a,b\n"x, y",1\n1,2,3\n"open" quote,2\n\n"z, z",2\n\udce9,1\nlast,1\n'
    assert read(text) == [
        {"a": "x, y", "b": "1"},
        (Reason.BROKEN_ROW, "3 cells under 2 columns"),
        (Reason.BROKEN_ROW, "',' expected after '\"'"),
        {"a": "z, z", "b": "2"},
        (Reason.BROKEN_ROW, "not UTF-8"),
        {"a": "last", "b": "1"},
    ]
    assert read("a\tb\n1\t2\n1\n1\t2\t3\n") == [
        {"a": "1", "b": "2"},
        (Reason.BROKEN_ROW, "1 cells under 2 columns"),
        (Reason.BROKEN_ROW, "3 cells under 2 columns"),
    ]
    assert read('a,b\n"1, 1",2\n"open,2\n3,4\n')[1:] == [(Reason.BROKEN_ROW, "unexpected end of data")]


def test_a_cell_may_be_long() -> None:
    """The csv module's own limit is 128 KiB."""
    assert cells(f'a,b\n"{"x," * 100_000}",1\n') == [["x," * 100_000, "1"]]


CELL = st.text(st.sampled_from('ab ,;\t"\n\r'), max_size=6)


@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(",;|\t"))
def test_what_the_csv_module_writes_reads_back(rows: list[list[str]], delimiter: str) -> None:
    written = io.StringIO()
    csv.writer(written, delimiter=delimiter).writerows([["one", "two", "three"], *rows])
    assert cells(written.getvalue()) == rows


@given(st.lists(st.lists(st.text(st.sampled_from('ab ,;"'), max_size=6), min_size=2, max_size=2), min_size=1))
def test_a_table_with_an_ill_quoted_cell_is_split_at_its_tabs(rows: list[list[str]]) -> None:
    rows = [['"a" b', ""], *rows]
    assert cells("one\ttwo\n" + "".join("\t".join(row) + "\n" for row in rows)) == rows


def test_text_is_cut_into_paragraphs_or_at_end_tokens() -> None:
    assert read("\none\nmore\n\n \n\ntwo\n", text_rows) == [{"text": "one\nmore"}, {"text": "two"}]
    text = "one\n\nmore\n<|endoftext|>\n\ntwo <|endoftext|>three<|endoftext|>\n"
    assert read(text, text_rows) == [{"text": "one\n\nmore"}, {"text": "two"}, {"text": "three"}]
    assert read("ok\n\n\udce9\n", text_rows) == [{"text": "ok"}, (Reason.BROKEN_ROW, "not UTF-8")]
    assert read("", text_rows) == []
