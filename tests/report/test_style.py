"""The page's colours can be read: WCAG 2.2's contrast (1.4.3), in both schemes."""

from __future__ import annotations

import re
from importlib import resources

import pytest

CSS = resources.files("keel.report").joinpath("templates/report.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{[^}]+\}", CSS)[:2]
)
TEXT = ("ink", "muted", "good", "bad", "even", "warn", *(f"run{index}" for index in range(6)))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_by_known_pairs() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the well-known grey that just fails


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read(scheme: dict[str, str]) -> None:
    low = {
        (text, ground): contrast(scheme[text], scheme[ground])
        for text in TEXT
        for ground in ("page", "surface")
        if contrast(scheme[text], scheme[ground]) < 4.5
    }
    assert low == {}


def test_both_schemes_define_the_same_colours() -> None:
    assert set(LIGHT) == set(DARK)
    assert set(re.findall(r"var\(--(\w+)", CSS)) - {"accent"} <= set(LIGHT)


def test_the_style_loads_nothing() -> None:
    assert "url(" not in CSS
    assert "@import" not in CSS
    assert "://" not in CSS
