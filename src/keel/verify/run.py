"""Run checks side by side, and write down what they found."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import keel
from keel.errors import UserError
from keel.runs import files
from keel.verify.page import render
from keel.verify.result import Bound, Check, Finding, Result

PROCESSES = 2


def run_checks(
    checks: Sequence[Check], tell: Callable[[Result], None] = lambda result: None, *, processes: int = PROCESSES
) -> list[Result]:
    """The results in the order of `checks`; `tell` hears each as it comes. A check that crashes is one that missed."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_measured, check): index for index, check in enumerate(checks)}
        results: dict[int, Result] = {}
        for future in as_completed(futures):
            check = checks[futures[future]]
            results[futures[future]] = _result(check, future)
            tell(results[futures[future]])
    return [results[index] for index in range(len(checks))]


def write(results: Sequence[Result], out: Path, *, seconds: float) -> Path:
    """`verify.json` and `report.html` in the directory `out`; returns the page. UserError if it cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / "verify.json", to_dict(results, seconds))
        files.write_bytes(out / "report.html", render(results, seconds).encode())
    except OSError as error:
        raise UserError(f"the results cannot be written to {out} ({error.strerror}); give another --out.") from error
    return out / "report.html"


def to_dict(results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """The content of verify.json. Where a bound is open on one side, its end is null."""
    return {
        "passed": all(result.passed for result in results),
        "seconds": seconds,
        "keel": keel.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "checks": [
            {
                "name": result.name,
                "group": result.group.value,
                "claim": result.claim,
                "level": result.level.name.lower(),
                "passed": result.passed,
                "seconds": result.seconds,
                "error": result.error or None,
                "bounds": [_bound(bound) for bound in result.finding.bounds] if result.finding else [],
                "numbers": dict(result.finding.numbers) if result.finding else {},
                "tables": [asdict(table) for table in result.finding.tables] if result.finding else [],
            }
            for result in results
        ],
    }


def _bound(bound: Bound) -> dict[str, Any]:
    return {"what": bound.what, "value": bound.value, "low": bound.low, "high": bound.high, "holds": bound.holds}


def _one_thread() -> None:
    torch.set_num_threads(1)


def _measured(check: Check) -> tuple[Finding, float]:
    started = time.perf_counter()
    finding = check.measure()
    return finding, time.perf_counter() - started


def _result(check: Check, future: Future[tuple[Finding, float]]) -> Result:
    finding, seconds, error = None, math.nan, ""
    try:
        finding, seconds = future.result()
    except Exception as crash:  # whatever it is: the other checks go on
        error = f"{type(crash).__name__}: {crash}"
    return Result(check.name, check.group, check.claim, check.level, seconds, finding, error)
