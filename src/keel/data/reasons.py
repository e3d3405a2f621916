"""Why a row is not used, what is odd about one that is, and the tally of a whole source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from keel.errors import UserError


class Reason(Enum):
    """A reason's value is its short name; `sentence` says it in full."""

    NOT_JSON = "not JSON"
    BROKEN_ROW = "broken row"
    MISSING_FIELD = "missing field"
    WRONG_TYPE = "wrong type"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_RESPONSE = "empty response"
    SAME_RESPONSES = "chosen = rejected"
    PROMPTS_DIFFER = "prompts differ"
    NO_ORDER = "no order"
    TOO_LONG = "too long"
    TIE = "tie"
    NOT_ACCEPTED = "not accepted"
    SKIPPED = "skipped"
    REPEATED_ROLE = "repeated role"
    ROLE_MARKER = "role marker"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    @property
    def is_warning(self) -> bool:
        """A warning leaves the row in use."""
        return self in (Reason.REPEATED_ROLE, Reason.ROLE_MARKER)

    @property
    def is_on_purpose(self) -> bool:
        """The record is left out and nothing is wrong with it."""
        return self in (Reason.TIE, Reason.NOT_ACCEPTED, Reason.SKIPPED)


_SENTENCES = {
    Reason.NOT_JSON: "The line is not a JSON object in UTF-8.",
    Reason.BROKEN_ROW: "The row of a table has not the header's cells, quotes that do not close, or is not UTF-8.",
    Reason.MISSING_FIELD: "A field that this kind of record needs is missing or null.",
    Reason.WRONG_TYPE: "A field holds a value of the wrong type or form.",
    Reason.EMPTY_PROMPT: "The prompt is empty or ends in an empty turn.",
    Reason.EMPTY_RESPONSE: "A response is empty.",
    Reason.SAME_RESPONSES: "The chosen and the rejected response are the same.",
    Reason.PROMPTS_DIFFER: "The responses of the row do not answer one and the same prompt.",
    Reason.NO_ORDER: "The preferences between the responses agree with no ranking of them.",
    Reason.TOO_LONG: "The record has more tokens than the configured limit.",
    Reason.TIE: "Neither of two responses was preferred.",
    Reason.NOT_ACCEPTED: "The response was judged not to be acceptable, so it is not imitated.",
    Reason.SKIPPED: "The function given as map returned None for the row.",
    Reason.REPEATED_ROLE: "Two turns of one role follow each other.",
    Reason.ROLE_MARKER: 'A marker such as "Human:" stands inside a turn, as if another turn began there.',
}


class Unusable(Exception):
    """Raised while a row is read or converted; ends as a `Finding`, never reaches the user."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason.value, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in one row. `row` counts as `keel.data.read.Row.number` does."""

    reason: Reason
    file: str
    row: int
    detail: str = ""

    def place(self, source: str) -> str:
        """The row's number, and its file's name where the source is a folder or glob."""
        return str(self.row) if self.file == source else f"{Path(self.file).name}:{self.row}"


@dataclass(frozen=True, slots=True)
class Check:
    """The tally of a source, counted in records: most rows stand for one, some for several.

    A record that cannot be used, or is left out on purpose, has exactly one finding that is no warning.
    """

    total: int
    usable: int
    findings: tuple[Finding, ...]
    rows: int | None = None  # as many as records unless given
    layouts: Mapping[str, int] = field(default_factory=dict)  # records by the layout that they were read in

    @property
    def left_out(self) -> int:
        """Records left out, for a fault or on purpose."""
        return self.total - self.usable

    @property
    def on_purpose(self) -> int:
        return sum(finding.reason.is_on_purpose for finding in self.findings)

    @property
    def unusable(self) -> int:
        return self.left_out - self.on_purpose

    @property
    def unusable_share(self) -> float:
        return self.unusable / self.total if self.total else 0.0

    @property
    def counts(self) -> dict[Reason, int]:
        """Records by reason, in the order of `Reason`; reasons that did not occur are left out."""
        return {reason: len(findings) for reason, findings in self.table().items()}

    def table(self) -> dict[Reason, tuple[Finding, ...]]:
        """The findings by reason, in the order of `Reason`; reasons that did not occur are left out."""
        found = {finding.reason for finding in self.findings}
        return {r: tuple(f for f in self.findings if f.reason is r) for r in Reason if r in found}

    def enforce(self, max_unusable: float, name: str) -> None:
        """Raises UserError when no record of the source `name`, or too few of them, can be used."""
        if not self.total:
            raise UserError(f"{name} holds no rows.")
        if self.usable and self.unusable_share <= max_unusable:
            return
        problems = Counter(
            finding.reason
            for finding in self.findings
            if not finding.reason.is_warning and not (self.unusable and finding.reason.is_on_purpose)
        )
        reason, count = problems.most_common(1)[0]
        findings = self.table()[reason]
        rows = ", ".join(finding.place(name) for finding in findings[:5]) + (", …" if count > 5 else "")
        detail = f", such as {findings[0].detail}" if findings[0].detail else ""
        worst = f"most often “{reason.value}” ({count}: rows {rows}{detail})"
        if not self.usable:
            raise UserError(f"{name}: none of its {self.total} rows can be used, {worst}.")
        raise UserError(
            f"{name}: {self.unusable} of {self.total} rows ({self.unusable_share:.1%}) cannot be used, {worst}; "
            f"that is more than max_unusable = {max_unusable:g}. Mend the rows (`keel data check` lists them), "
            f"or set max_unusable to {_round_up(self.unusable_share):g} to leave them out."
        )


def _round_up(share: float) -> float:
    """The next full per cent that allows `share`."""
    percent = -(-share * 100 // 1)
    return min(percent / 100, 1.0)
