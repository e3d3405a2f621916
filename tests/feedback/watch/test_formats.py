"""What pages write, by hand."""

from __future__ import annotations

from keel.feedback.watch.formats import format_duration, format_number


def test_numbers_and_times_are_short() -> None:
    numbers = {0.0: "0", 12345.0: "12,345", 0.1234: "0.123", 12.0: "12", -1.5: "−1.50", 1e-7: "1e−07", 2e9: "2e+09"}
    assert {value: format_number(value) for value in numbers} == numbers
    times = {5.4: "5 s", 89.0: "89 s", 600.0: "10 min", 7800.0: "2 h 10 min", 259200.0: "3 days"}
    assert {seconds: format_duration(seconds) for seconds in times} == times
