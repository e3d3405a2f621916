"""The page of an audit: what `keel data audit --html` writes."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from keel.data.audit.audit import Audit
from keel.errors import UserError
from keel.report import audit_words
from keel.report.page import environment
from keel.runs.files import write_bytes

_ROWS = 20


def render(audit: Audit) -> str:
    """The page as text; it needs nothing else, and what comes from the data is escaped."""
    pages = environment()
    page: str = pages.get_template("audit.html.j2").render(
        css=Markup(pages.get_template("report.css").render()),
        names=[source.name for source in audit.gathered.sources],
        summary=audit_words.summary(audit),
        findings=audit_words.findings(audit, _ROWS),
        unfit=audit_words.unfit(audit),
        figures=audit_words.figures(audit),
        header=audit_words.PEOPLE,
        people=audit_words.people(audit),
        outlying=len(audit.annotators.outlying),
    )
    return page


def write_audit(audit: Audit, out: Path) -> Path:
    """Write the page in one step. Raises UserError if it cannot be written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, render(audit).encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"the page cannot be written to {out} ({error.strerror}); give another --html.") from error
    return out
