"""What docs/guides/audit.md says holds."""

from __future__ import annotations

import re
from pathlib import Path

from keel.data.audit.faults import Fault

GUIDE = (Path(__file__).parents[3] / "docs" / "guides" / "audit.md").read_text(encoding="utf-8")


def test_every_finding_stands_there_and_is_marked_if_it_is_left_out() -> None:
    table = GUIDE[GUIDE.index("| finding |") : GUIDE.index("`--clean` never")]
    cells = re.findall(r"^\| ([^|]*) \|", table, re.M)[1:]
    names = [name for cell in cells for name in cell.split("<br>")]
    assert {name.removeprefix("✕ ") for name in names} == {fault.value for fault in Fault}
    unfit = {fault.value for fault in Fault if fault.unfit(by_file=False)}
    assert {name.removeprefix("✕ ") for name in names if name.startswith("✕")} == unfit
