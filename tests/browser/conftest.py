"""Chromium, driven by playwright; these tests are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser.support import SIZES, Visitors

_ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One for this folder's tests, and ended with them: playwright keeps an event loop in this thread."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Visitors]:
    """`visit(url, size="phone")` is a page of a new visitor. Fails where a script of any of them did."""
    visitors = Visitors(chromium)
    yield visitors
    visitors.close()
    assert visitors.mistakes == []


@pytest.fixture(params=SIZES)
def size(request: pytest.FixtureRequest) -> str:
    """Of the screen: a desktop's and a phone's."""
    found: str = request.param
    return found
