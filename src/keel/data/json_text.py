"""JSON as rows come in it, held to what a row may be: objects whose keys stand once, not too deep, not too long."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

from keel.data.files import LONGEST_ROW, in_words
from keel.data.reasons import Reason, Unusable
from keel.errors import UserError

DEEPEST = 200  # brackets in each other: far below what the interpreter's stack bears, wherever the row goes later
_CHUNK = 2**20  # bytes
_LONGEST_TOKEN = 16  # characters, what is no string: a name such as -Infinity, an escape of two halves
_SPACE = " \t\r\n"


def parse_row(line: bytes) -> dict[str, Any]:
    """The object that a line holds. Raises Unusable with what is wrong with it."""
    try:
        text = line.decode("utf-8").rstrip()  # so that a column in a message lies on the line
    except UnicodeDecodeError as error:
        raise Unusable(Reason.NOT_JSON, f"not UTF-8 at byte {error.start}") from None
    if text.lstrip().startswith("["):
        raise Unusable(Reason.NOT_JSON, "a JSON array, where each line should be one object")
    if text == "{":
        raise Unusable(Reason.NOT_JSON, "an object over several lines, where each line should be one")
    try:
        value = json.loads(text, object_pairs_hook=_each_key_once)
    except json.JSONDecodeError as error:
        if "\0" in text:
            raise Unusable(
                Reason.NOT_JSON, "NUL bytes, as UTF-16 and binary files have them; save it as UTF-8"
            ) from None
        raise Unusable(Reason.NOT_JSON, f"{error.msg.removesuffix(' at')} at column {error.colno}") from None
    except RecursionError:
        raise Unusable(Reason.NOT_JSON, _TOO_DEEP) from None
    except ValueError as error:  # a number of thousands of digits
        raise Unusable(Reason.NOT_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise Unusable(Reason.NOT_JSON, f"a {type(value).__name__}, not an object")
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(value):
        raise Unusable(Reason.NOT_JSON, _TOO_DEEP)
    if "\\ud" in text.lower() and _has_lone_surrogate(value):
        raise Unusable(Reason.NOT_JSON, "half a surrogate pair, which is no character")
    return value


_TOO_DEEP = f"brackets more than {DEEPEST} deep"


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise Unusable(Reason.NOT_JSON, f"the key “{twice}” stands twice, and nobody knows which is meant")
    return found


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [each for one in inner for each in one if isinstance(each, dict | list)]
    return bool(level)


def _has_lone_surrogate(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def array_values(file: BinaryIO, name: str) -> Iterator[Any]:
    """The values of a JSON array one by one, or an Unusable in the place of one that is no row.

    Of the file no more is held than a piece and the longest value. Raises UserError where the array breaks off or is
    no JSON: what follows cannot be told apart.
    """
    text = _Window(file, name)
    text.take("[")
    if text.next() == "]":
        text.take("]")
    else:
        yield text.value()
        while text.next() != "]":
            text.take(",")
            text.next()
            yield text.value()
        text.take("]")
    if text.next():
        raise text.broken("something stands behind its end")


class _Window:
    """The part of a text that is being read, and where it lies."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._strict = json.JSONDecoder(object_pairs_hook=_each_key_once)
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column, self._bytes = 1, 1, 0

    def next(self) -> str:
        """The next character that is no white space, where the window then stands; empty at the end."""
        while True:
            rest = len(self._text)
            while self._at < rest and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < rest:
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, mark: str) -> None:
        if self.next() != mark:
            raise self.broken(f"{mark!r} expected")
        self._at += 1

    def value(self) -> Any:
        while True:
            try:
                value, end = self._decoded()
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended or self._is_whole_at(error):
                    raise self.broken(error.msg, error.pos) from None
            except RecursionError:
                raise self.broken(_TOO_DEEP) from None
            except ValueError as error:  # a number of thousands of digits
                raise self.broken(str(error)) from None
            if len(self._text) - self._at > LONGEST_ROW:
                raise self.broken(f"a value longer than {in_words(LONGEST_ROW)}")
            self._more()

    def _is_whole_at(self, error: json.JSONDecodeError) -> bool:
        """Whether more of the file would mend nothing: the fault is not what a window's end makes of a sound value."""
        return len(self._text) - error.pos > _LONGEST_TOKEN and not error.msg.startswith("Unterminated string")

    def _decoded(self) -> tuple[Any, int]:
        try:
            return self._strict.raw_decode(self._text, self._at)
        except Unusable as problem:
            return problem, json.JSONDecoder().raw_decode(self._text, self._at)[1]

    def _more(self) -> None:
        """Read as much again as is there, so that a long value is tried a few times and not once a piece."""
        self._move(self._at)
        raw = self._file.read(max(_CHUNK, len(self._text)))
        self._ended = not raw
        try:
            self._text += self._decoder.decode(raw, final=self._ended)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self._name} is not UTF-8 (at byte {self._bytes + error.start}); save it as UTF-8."
            ) from None
        self._bytes += len(raw)

    def _move(self, end: int) -> None:
        """Leave the text before `end` behind."""
        lines = self._text.count("\n", 0, end)
        self._line += lines
        self._column = end - self._text.rfind("\n", 0, end) if lines else self._column + end
        self._text, self._at = self._text[end:], self._at - end

    def broken(self, what: str, at: int | None = None) -> UserError:
        self._move(self._at if at is None else at)
        where = f"{what}: line {self._line} column {self._column}"
        return UserError(f"{self._name} is no whole JSON array ({where}); mend it there, or fetch it again.")
