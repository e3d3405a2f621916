"""What `keel watch` costs on a long run: 100,000 iterations of 20 metrics (`python -m benchmarks.watch [--browser]`).

Milliseconds and bytes of the first answers and of an update, through the app without a network, one thread; with
`--browser` also how long Chromium takes from opening a run's page to having painted all of its first charts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from keel.feedback.watch.app import make_watch_app
from keel.serve.launch import is_loopback, listen, url_of

ITERATIONS = 100_000
_OBJECTIVE = ("scores", "scores_std", "rewards", "kl", "kl_per_token", "kl_coef", "surprise", "length", "ended")
_POLICY = ("entropy", "clipfrac", "approxkl", "ratio_gap", "first_ratio_gap")
METRICS = (
    *(f"objective/{name}" for name in _OBJECTIVE),
    *(f"ppo/policy/{name}" for name in _POLICY),
    *("ppo/loss/policy", "ppo/loss/value", "eval/scores", "eval/kl"),
    *("time/rollout_seconds", "time/tokens_per_second"),
)
_PAINTED = """() => {
  const figures = [...document.querySelectorAll("figure.chart")].filter((figure) => figure.checkVisibility());
  return figures.length && figures.every((figure) => figure.querySelector("canvas"));
}"""
SERIES = "/api/watch/runs/long/stages/ppo/series"


def write_line(iteration: int) -> str:
    noise = [(iteration * (number + 7919) % 97) / 970 for number in range(len(METRICS))]
    values = {name: math.sin(iteration / 3000 + number) + noise[number] for number, name in enumerate(METRICS)}
    return json.dumps({"iteration": iteration, **values}) + "\n"


def write_run(path: Path, iterations: int) -> Path:
    """The run, amid its ppo; returns the file of its metrics."""
    (path / "ppo").mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"name": "long", "starts": []}), encoding="utf-8")
    (path / "recipe.json").write_text(json.dumps({"ppo": {"iterations": 2 * iterations}}), encoding="utf-8")
    metrics = path / "ppo" / "metrics.jsonl"
    with metrics.open("w", encoding="utf-8") as file:
        file.writelines(write_line(iteration) for iteration in range(iterations))
    return metrics


def measure(app: FastAPI, metrics: Path, iterations: int) -> None:
    """Print a line for each kind of answer."""
    client = TestClient(app, base_url="http://localhost")

    def timed(what: str, ask: Callable[[], bytes]) -> bytes:
        started, busy = time.perf_counter(), time.process_time()
        answer = ask()
        worked, passed = 1000 * (time.process_time() - busy), 1000 * (time.perf_counter() - started)
        print(f"{what:<52} {worked:8.1f} ms of the processor, {passed:8.1f} by the clock {len(answer):9,} bytes")
        return answer

    def get(path: str) -> bytes:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.content

    timed("the run's page, its file not yet read", lambda: get("/runs/long"))
    timed("the rest of the file, in answers of half a second", lambda: _until_read(get))
    timed("the run's page", lambda: get("/runs/long"))
    keys = "&".join(f"key={name}" for name in METRICS)
    found = json.loads(timed("all curves, 600 points each", lambda: get(f"{SERIES}?{keys}")))
    with metrics.open("a", encoding="utf-8") as file:
        file.write(write_line(iterations))
    time.sleep(1.1)
    new = f"{SERIES}?{keys}&after={found['until']}&generation={found['generation']}"
    timed("an update: a line more, all curves", lambda: get(new))
    timed("an update: the part of the page", lambda: get("/runs/long/parts/state"))
    timed("a window of 2,000 iterations, one curve", lambda: get(f"{SERIES}?key=objective/kl&low=50000&high=52000"))


def _until_read(get: Callable[[str], bytes]) -> bytes:
    while b"Still reading" in (answer := get("/runs/long/parts/state")):
        pass
    return answer


def paint(app: FastAPI, ending: asyncio.Event) -> None:
    """Print how long a browser takes, the server being warm."""
    from playwright.sync_api import sync_playwright

    with listen("127.0.0.1", 0) as listening, sync_playwright() as playwright:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1600, "height": 1200}, bypass_csp=True)
            for _ in range(3):
                page.goto(f"{url_of(listening)}/runs/long")
                page.wait_for_function(_PAINTED)
                print(f"painted after {page.evaluate('performance.now()'):.0f} ms")
        finally:
            browser.close()
            ending.set()
            server.should_exit = True
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--browser", action="store_true")
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        metrics = write_run(Path(folder) / "long", asked.iterations)
        print(f"{asked.iterations:,} lines of {len(METRICS)} metrics: {metrics.stat().st_size:,} bytes")
        ending = asyncio.Event()
        app = make_watch_app([Path(folder) / "long"], is_local=is_loopback, ending=ending)
        measure(app, metrics, asked.iterations)
        if asked.browser:
            paint(app, ending)


if __name__ == "__main__":
    main()
