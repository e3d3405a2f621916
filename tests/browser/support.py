"""A server for a browser, pages that tell their mistakes, and what a page must be for everybody."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import uvicorn
from playwright.sync_api import Browser, BrowserContext, Page, expect

SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
PATIENCE = 60.0  # seconds until a test that hangs fails
expect.set_options(timeout=PATIENCE * 1000)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The app on a free port, in a thread; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            until = time.monotonic() + PATIENCE
            while not server.started:
                assert thread.is_alive(), "the server did not start"
                assert time.monotonic() < until
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            server.force_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Visitors:
    """Browser contexts of one test, each with its own cookies; `mistakes` gathers what went wrong in their scripts."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[BrowserContext] = []
        self.mistakes: list[str] = []

    def __call__(self, url: str, *, size: str = "desktop", dark: bool = False, **options: Any) -> Page:
        """A new visitor's page; paths that it goes to are the server's at `url`."""
        width, height = SIZES[size]
        context = self._browser.new_context(
            base_url=url,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=size == "phone",
            is_mobile=size == "phone",
            **options,
        )
        context.set_default_timeout(PATIENCE * 1000)
        context.on("dialog", lambda dialog: dialog.accept())  # whether to leave a page with something unsent
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.mistakes.append(f"{page.url}: {error}"))
        page.on("console", lambda said: self._heard(page, said.type, said.text))
        return page

    def close(self) -> None:
        for context in self._contexts:
            context.close()

    def _heard(self, page: Page, kind: str, text: str) -> None:
        """Errors and refusals of the content policy; not the status of an answer that the test asked for."""
        if kind == "error" and not text.startswith("Failed to load resource"):
            self.mistakes.append(f"{page.url}: {text}")


def assert_accessible(page: Page) -> None:
    """Axe finds nothing serious or critical on the page as it stands, and nothing stands out of its width."""
    page.evaluate(_axe())
    found = page.evaluate("axe.run()")["violations"]
    serious = [
        f"{one['impact']} {one['id']}: {one['help']}: " + "; ".join(node["html"] for node in one["nodes"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == [], "\n".join([page.url, *serious])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{page.url} is wider than the screen"


def keep_picture(page: Page, name: str) -> None:
    """A screenshot, where KEEL_SCREENSHOTS names a folder for them."""
    folder = os.environ.get("KEEL_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def _axe() -> str:
    return resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
