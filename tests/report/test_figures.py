"""Figures: well-formed, of the page's colours, apart from each other."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from keel.report.figures import Curve, Level, Panel, describe, draw, running_mean, thinned

PANEL = Panel(
    "title <b>",
    "note <b>",
    [
        Curve(range(100), np.sin(np.arange(100)).tolist(), "run0", label="rollouts", smooth=True),
        Curve([5], [0.5], "run1"),
    ],
    [Level(0.2, "target 0.2")],
)


def test_running_mean_is_the_mean_of_a_window() -> None:
    values = np.arange(100.0) ** 2
    naive = [values[max(0, i - 2) : i + 3].mean() for i in range(100)]
    assert np.allclose(running_mean(values), naive)


def test_a_figure_is_one_element_in_the_colours_of_the_page() -> None:
    svg = draw(PANEL, 3)
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert "://" not in svg
    assert "<b>" not in svg  # escaped in the title
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"run0", "run1", "muted", "line"}
    assert not re.search(r"#(?!000000|f3-)[0-9a-f]{6}", svg)  # black is the default that every style overrides
    assert "rollouts" in svg
    assert "target 0.2" in svg


def test_figures_share_no_ids_and_refer_to_their_own() -> None:
    first, second = (set(re.findall(r'\sid="([^"]+)"', draw(PANEL, number))) for number in (1, 2))
    assert first
    assert not first & second
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', draw(PANEL, 1)))
    assert referred == first  # and no id that nothing refers to


def test_the_same_numbers_give_the_same_figure() -> None:
    assert draw(PANEL, 1) == draw(PANEL, 1)


@pytest.mark.parametrize("ys", [[1.0], [2.0, 2.0], [1e-9, 1e9]])
def test_few_equal_or_extreme_points_can_be_drawn(ys: list[float]) -> None:
    curves = [Curve(range(len(ys)), ys)]
    for panel in (
        Panel("", "", curves, sqrt_x=True),
        Panel("", "", curves, diagonal=True, percent=True),
        Panel("", "", curves, healthy=(0.0, 1.0)),
    ):
        assert draw(panel, 0).startswith("<svg")


def test_the_square_root_scale_is_labelled_in_nats() -> None:
    svg = draw(Panel("", "", [Curve([0.0, 1.0, 9.0], [0, 1, 2])], sqrt_x=True), 0)
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"0", "1", "5"} <= set(labels)


def test_a_long_curve_keeps_its_ends_and_its_extremes() -> None:
    xs, ys = np.arange(5000.0), np.random.default_rng(0).standard_normal(5000)
    short_xs, short_ys = thinned(xs, ys)
    assert len(short_xs) <= 242
    assert (short_xs[0], short_xs[-1]) == (0, 4999)
    assert np.all(np.diff(short_xs) > 0)
    assert np.array_equal(ys[short_xs.astype(int)], short_ys)
    naive = [(ys[start : start + 500].min(), ys[start : start + 500].max()) for start in range(0, 5000, 500)]
    for start, (low, high) in zip(range(0, 5000, 500), naive, strict=True):
        kept = short_ys[(short_xs >= start) & (short_xs < start + 500)]
        assert (kept.min(), kept.max()) == (low, high)
    assert len(thinned(xs[:240], ys[:240])[0]) == 240


def test_a_figure_says_in_words_what_it_shows() -> None:
    assert describe(PANEL) == "title <b>. rollouts: 0.00 at 0 to −1.00 at 99; 0.50; target 0.2."
    title = ElementTree.fromstring(draw(PANEL, 0)).find("title")
    assert title is not None
    assert title.text == describe(PANEL)


def test_the_healthy_range_is_shaded_as_far_as_the_axis_shows_it() -> None:
    inside, outside = (Panel("", "", [Curve([0, 1], ys)], healthy=(0.0, 0.2)) for ys in ([0.05, 0.1], [0.5, 0.9]))
    assert "var(--good)" in draw(inside, 0)
    assert "healthy" in draw(inside, 0)
    assert "var(--good)" not in draw(outside, 0)
