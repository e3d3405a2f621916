from __future__ import annotations

import pytest

from keel.data.reasons import Check, Finding, Reason
from keel.errors import UserError


def check(total: int, file: str = "f", **counts: int) -> Check:
    """A check with so many findings of each reason, in rows 0, 1, 2, …; the rest of the rows are usable."""
    reasons = [Reason[name] for name, count in counts.items() for _ in range(count)]
    findings = tuple(Finding(reason, file, row, "a detail") for row, reason in enumerate(reasons))
    return Check(total, total - sum(not reason.is_warning for reason in reasons), findings)


def test_every_reason_has_a_sentence_of_its_own() -> None:
    sentences = [reason.sentence for reason in Reason]
    assert len(set(sentences)) == len(Reason) == 15
    assert all(sentence.endswith(".") for sentence in sentences)


def test_counts_and_table_follow_the_order_of_the_reasons() -> None:
    result = check(10, ROLE_MARKER=2, EMPTY_RESPONSE=1, NOT_JSON=1)
    assert list(result.counts.items()) == [(Reason.NOT_JSON, 1), (Reason.EMPTY_RESPONSE, 1), (Reason.ROLE_MARKER, 2)]
    assert [finding.row for finding in result.table()[Reason.ROLE_MARKER]] == [0, 1]
    assert (result.usable, result.unusable, result.unusable_share) == (8, 2, 0.2)


def test_exactly_the_allowed_share_passes() -> None:
    check(100, NOT_JSON=5).enforce(0.05, "f")
    check(100, ROLE_MARKER=50, REPEATED_ROLE=50).enforce(0.0, "f")
    with pytest.raises(UserError):
        check(100, NOT_JSON=6).enforce(0.05, "f")


def test_the_refusal_names_the_commonest_reason_its_rows_and_the_mend() -> None:
    with pytest.raises(UserError) as caught:
        check(100, "demos.jsonl", NOT_JSON=2, EMPTY_RESPONSE=6).enforce(0.05, "demos.jsonl")
    assert str(caught.value) == (
        "demos.jsonl: 8 of 100 rows (8.0%) cannot be used, most often “empty response” "
        "(6: rows 2, 3, 4, 5, 6, …, such as a detail); that is more than max_unusable = 0.05. "
        "Mend the rows (`keel data check` lists them), or set max_unusable to 0.08 to leave them out."
    )


@pytest.mark.parametrize(("bad", "total"), [(1, 7), (29, 100), (7, 100), (1, 999)])
def test_the_share_that_is_proposed_suffices(bad: int, total: int) -> None:
    result = check(total, NOT_JSON=bad)
    with pytest.raises(UserError) as caught:
        result.enforce(0.0, "f")
    proposed = float(str(caught.value).split("set max_unusable to ")[1].split()[0])
    result.enforce(proposed, "f")
    assert proposed < bad / total + 0.0101


def test_nothing_usable_is_refused_whatever_is_allowed() -> None:
    with pytest.raises(UserError, match="f holds no rows"):
        check(0).enforce(1.0, "f")
    with pytest.raises(UserError, match=r"none of its 3 rows can be used, most often “not JSON” \(3: rows 0, 1, 2"):
        check(3, NOT_JSON=3).enforce(1.0, "f")


def test_what_is_left_out_on_purpose_is_no_fault() -> None:
    result = check(100, NOT_JSON=1, TIE=60, SKIPPED=20, NOT_ACCEPTED=10, ROLE_MARKER=5)
    assert (result.usable, result.left_out, result.on_purpose, result.unusable) == (9, 91, 90, 1)
    assert result.unusable_share == 0.01
    result.enforce(0.01, "f")
    with pytest.raises(UserError, match=r"1 of 100 rows \(1.0%\) cannot be used, most often “not JSON” \(1: rows 0"):
        result.enforce(0.0, "f")
    with pytest.raises(UserError, match="none of its 2 rows can be used, most often “tie”"):
        check(2, TIE=2).enforce(1.0, "f")


def test_the_place_of_a_finding_names_its_file_within_a_folder() -> None:
    finding = Finding(Reason.BROKEN_ROW, "folder/a.csv", 3)
    assert finding.place("folder/a.csv") == "3"
    assert finding.place("folder") == "a.csv:3"
    with pytest.raises(UserError, match=r"rows a.csv:3\)"):
        Check(1, 0, (finding,)).enforce(1.0, "folder")
