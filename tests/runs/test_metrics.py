"""Logs are valid JSON and go back to a checkpoint exactly."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from keel.runs.metrics import MetricsLog, SamplesLog, read_lines


def test_lines_are_json_and_floats_survive_exactly(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append(0, {"objective/kl": 0.1 + 0.2, "time/total": 1})
    log.append(1, {"objective/kl": 5e-324, "nan": math.nan, "inf": math.inf, "minus": -math.inf})
    assert path.read_text() == (
        '{"iteration": 0, "objective/kl": 0.30000000000000004, "time/total": 1.0}\n'
        '{"iteration": 1, "objective/kl": 5e-324, "nan": null, "inf": null, "minus": null}\n'
    )
    assert read_lines(path)[0]["objective/kl"] == 0.1 + 0.2


def test_samples_share_an_iteration_and_keep_their_text(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "a\nb\u2028c\r", "scores": [1.0, math.nan], "more": {"x": math.inf}},
        {"prompt": "é"},
    ]
    SamplesLog(path).append(3, rows)
    SamplesLog(path).append(4, [])
    assert read_lines(path) == [
        {"iteration": 3, "prompt": "a\nb\u2028c\r", "scores": [1.0, None], "more": {"x": None}},
        {"iteration": 3, "prompt": "é"},
    ]


def test_an_iteration_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    write = os.write

    def counted(descriptor: int, content: memoryview) -> int:
        writes.append(len(content))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", counted)
    SamplesLog(tmp_path / "samples.jsonl").append(0, [{"n": n} for n in range(1000)])
    assert writes == [(tmp_path / "samples.jsonl").stat().st_size]


def test_going_back_drops_later_lines_and_the_torn_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for iteration in range(5):
        log.append(iteration, {"loss": iteration / 3})
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + b'{"iteration": 2, "lo')
    assert [row["iteration"] for row in read_lines(path)] == [0, 1, 2, 3, 4]
    log.truncate_after(2)
    assert path.read_bytes() == b"".join(whole[:3])
    log.append(3, {"loss": 1.0})
    assert path.read_bytes() == b"".join(whole[:3]) + whole[3]
    log.truncate_after(-1)
    assert path.read_bytes() == b""
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_line_torn_just_before_its_end_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 0}\n{"iteration": 1}')
    assert read_lines(path) == [{"iteration": 0}]
    log = MetricsLog(path)
    log.truncate_after(1)
    log.append(1, {})
    assert path.read_bytes() == b'{"iteration": 0}\n{"iteration": 1}\n'


def test_a_torn_line_that_ends_like_a_whole_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 0}\n\x00\x00\x00\n')
    assert read_lines(path) == [{"iteration": 0}]
    MetricsLog(path).truncate_after(5)
    assert path.read_bytes() == b'{"iteration": 0}\n'


def test_no_file_no_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).truncate_after(3)
    MetricsLog(path).sync()
    assert read_lines(path) == []
    assert not path.exists()


def test_unfit_rows_are_refused(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="iteration -1 is negative"):
        log.append(-1, {})
    with pytest.raises(ValueError, match="named 'iteration'"):
        log.append(1, {"iteration": 2.0})
    assert not log.path.exists()


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append(0, {"a": math.nan})

    def refuse(constant: str) -> float:
        raise AssertionError(constant)

    assert json.loads(path.read_text(), parse_constant=refuse) == {"iteration": 0, "a": None}
