"""Figures: well-formed, of the page's colours, apart from each other."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from keel.report.figures import Curve, Level, Panel, draw, running_mean

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
    assert "<b>" not in svg
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"run0", "run1", "muted", "line"}
    assert not re.search(r"#(?!000000|f3-)[0-9a-f]{6}", svg)  # black is the default that every style overrides
    assert "rollouts" in svg
    assert "target 0.2" in svg


def test_figures_share_no_ids_and_refer_to_their_own() -> None:
    first, second = (set(re.findall(r'\sid="([^"]+)"', draw(PANEL, number))) for number in (1, 2))
    assert first
    assert not first & second
    referred = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', draw(PANEL, 1)))
    assert referred <= first


def test_the_same_numbers_give_the_same_figure() -> None:
    assert draw(PANEL, 1) == draw(PANEL, 1)


@pytest.mark.parametrize("ys", [[1.0], [2.0, 2.0], [1e-9, 1e9]])
def test_few_equal_or_extreme_points_can_be_drawn(ys: list[float]) -> None:
    curves = [Curve(range(len(ys)), ys)]
    for panel in (
        Panel("", "", curves, sqrt_x=True),
        Panel("", "", curves, diagonal=True, percent=True),
        Panel("", "", curves, size="large"),
    ):
        assert draw(panel, 0).startswith("<svg")


def test_the_square_root_scale_is_labelled_in_nats() -> None:
    svg = draw(Panel("", "", [Curve([0.0, 1.0, 9.0], [0, 1, 2])], sqrt_x=True), 0)
    labels = re.findall(r"<text[^>]*>([^<]+)</text>", svg)
    assert {"0", "1", "5"} <= set(labels)
