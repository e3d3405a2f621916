"""Numbers and spans of time, as pages write them."""

from __future__ import annotations


def format_number(value: float) -> str:
    """A number in few characters, with a true minus sign: 0.123, −1.50, 12,345, 2e+09."""
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        text = f"{value:.2g}"
    elif abs(value) >= 100 or (value == int(value) and abs(value) >= 10):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return text.replace("-", "−")


def format_duration(seconds: float) -> str:
    """A span of time: 40 s, 5 min, 2 h 10 min, 3 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{round(minutes / 1440)} days"
