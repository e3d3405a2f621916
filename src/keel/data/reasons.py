"""Why a row is not used, what is odd about one that is, and the tally of a whole source."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from keel.errors import UserError


class Reason(Enum):
    """A reason's value is its short name; `sentence` says it in full."""

    NOT_JSON = "not JSON"
    MISSING_FIELD = "missing field"
    WRONG_TYPE = "wrong type"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_RESPONSE = "empty response"
    SAME_RESPONSES = "chosen = rejected"
    PROMPTS_DIFFER = "prompts differ"
    TOO_LONG = "too long"
    REPEATED_ROLE = "repeated role"
    ROLE_MARKER = "role marker"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]

    @property
    def is_warning(self) -> bool:
        """A warning leaves the row in use."""
        return self in (Reason.REPEATED_ROLE, Reason.ROLE_MARKER)


_SENTENCES = {
    Reason.NOT_JSON: "The line is not a JSON object in UTF-8.",
    Reason.MISSING_FIELD: "A field that this kind of record needs is missing or null.",
    Reason.WRONG_TYPE: "A field holds a value of the wrong type or form.",
    Reason.EMPTY_PROMPT: "The prompt is empty or ends in an empty turn.",
    Reason.EMPTY_RESPONSE: "A response is empty.",
    Reason.SAME_RESPONSES: "The chosen and the rejected response are the same.",
    Reason.PROMPTS_DIFFER: "The responses of the row do not answer one and the same prompt.",
    Reason.TOO_LONG: "The record has more tokens than the configured limit.",
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
    """One thing found in one row. `row` counts the lines of the file from 0, blank ones included."""

    reason: Reason
    file: str
    row: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """The tally of a source. A row that cannot be used has exactly one finding that is no warning."""

    total: int
    usable: int
    findings: tuple[Finding, ...]

    @property
    def unusable(self) -> int:
        return self.total - self.usable

    @property
    def unusable_share(self) -> float:
        return self.unusable / self.total if self.total else 0.0

    @property
    def counts(self) -> dict[Reason, int]:
        """Rows by reason, in the order of `Reason`; reasons that did not occur are left out."""
        return {reason: len(findings) for reason, findings in self.table().items()}

    def table(self) -> dict[Reason, tuple[Finding, ...]]:
        """The findings by reason, in the order of `Reason`; reasons that did not occur are left out."""
        found = {finding.reason for finding in self.findings}
        return {r: tuple(f for f in self.findings if f.reason is r) for r in Reason if r in found}

    def enforce(self, max_unusable: float, name: str) -> None:
        """Raises UserError when no row of the source `name`, or too few of them, can be used."""
        if not self.total:
            raise UserError(f"{name} holds no rows.")
        if self.usable and self.unusable_share <= max_unusable:
            return
        problems = Counter(finding.reason for finding in self.findings if not finding.reason.is_warning)
        reason, count = problems.most_common(1)[0]
        findings = self.table()[reason]
        rows = ", ".join(str(finding.row) for finding in findings[:5]) + (", …" if count > 5 else "")
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
