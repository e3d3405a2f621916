"""Fifty people judging at once over HTTP: how long they wait, and is anything lost, doubled or lent twice?

    python -m benchmarks.feedback                                  # SQLite; a person takes 2 s for a judgement
    python -m benchmarks.feedback --think 0                        # none at all: how many a second can be served?
    python -m benchmarks.feedback --database postgresql://postgres@127.0.0.1/load
    python -m benchmarks.feedback --kills 5                        # the server is killed five times in between

Each annotator asks for tasks two ahead, as the page does, and takes `--think` seconds for each on average; what the
server acknowledged is kept in this process and held against the database in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import select

from benchmarks.measure import machine, machine_line
from keel.feedback.database import Database
from keel.feedback.people import make_token
from keel.feedback.projects import Settings, add_project
from keel.feedback.tables import Assignment, Judgement, Project, Task, User
from keel.feedback.tasks import NewResponse, NewTask, add_tasks

VOTES = 2  # a task
_RETRY_SECONDS = 0.1
_PATIENCE = 60.0  # seconds that a server may take to come back


@dataclass
class Seen:
    """What the clients saw: seconds by kind of request, and the judgements that were acknowledged."""

    waits: dict[str, list[float]] = field(default_factory=lambda: {"next": [], "judge": []})
    acknowledged: dict[str, str] = field(default_factory=dict)  # key to assignment
    retries: int = 0


def fill(database: Database, annotators: int, judgements: int) -> tuple[int, list[str]]:
    """A project with as many tasks as the judgements need, and a token for each annotator."""
    rng = random.Random(0)
    words = [a + b for a in ("ba", "ko", "li", "mu") for b in ("na", "ti", "vo", "se")]

    def text() -> str:
        return " ".join(rng.choices(words, k=120))

    now = time.time()
    with database.writing() as session:
        project = add_project(session, "load", "compare", Settings(votes=VOTES), now=now)
        tasks = [NewTask(text(), [NewResponse(text()), NewResponse(text())]) for _ in range(judgements // VOTES)]
        add_tasks(session, project, tasks, now=now)
        tokens = []
        for number in range(annotators):
            user = User(name=f"annotator {number}", role="annotator", password_hash="-", created_at=now)
            session.add(user)
            session.flush()
            tokens.append(make_token(session, user, "load", now=now)[1])
        return project.id, tokens


def start(database: str, port: int) -> tuple[subprocess.Popen[str], int]:
    """The server and its port, once it answers."""
    line = [sys.executable, "-m", "keel", "feedback", "serve", "--database", database, "--port", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    for said in process.stdout:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", said):
            return process, int(found.group(1))
    raise SystemExit("the server did not start")


def end(server: subprocess.Popen[str], how: signal.Signals) -> None:
    """Until it is gone."""
    server.send_signal(how)
    server.communicate()


async def annotate(client: httpx2.AsyncClient, project: int, token: str, think: float, seen: Seen) -> None:
    """One person, until nothing is left. The time to think is exponential, so that people do not fall into step."""
    rng = random.Random(token)
    headers = {"Authorization": f"Bearer {token}"}
    while True:
        lent = await ask(client, "next", "POST", f"/api/v1/projects/{project}/leases", {"count": 2}, headers, seen)
        if not lent["tasks"]:
            return
        await asyncio.sleep(think * rng.expovariate(1.0))
        key, assignment = str(uuid.uuid4()), lent["tasks"][0]["assignment"]
        said = {
            "assignment": assignment,
            "verdict": "answer",
            "answer": {"best": 0, "strength": "clear"},
            "duration": 1.0,
        }
        await ask(client, "judge", "PUT", f"/api/v1/judgements/{key}", said, headers, seen)
        seen.acknowledged[key] = assignment


async def ask(
    client: httpx2.AsyncClient, kind: str, method: str, path: str, body: Any, headers: dict[str, str], seen: Seen
) -> Any:
    """The answer, asked for again where the server was gone; its last, successful, try is what counts as waiting."""
    until = time.monotonic() + _PATIENCE
    while True:
        began = time.perf_counter()
        try:
            answer = await client.request(method, path, json=body, headers=headers)
            if answer.status_code < 500:
                answer.raise_for_status()
                seen.waits[kind].append(time.perf_counter() - began)
                return answer.json()
        except httpx2.TransportError:
            pass
        assert time.monotonic() < until, f"{method} {path} got no answer"
        seen.retries += 1
        await asyncio.sleep(_RETRY_SECONDS)


async def load(
    database: str, project: int, tokens: list[str], judgements: int, kills: int, think: float
) -> tuple[Seen, float]:
    """All annotators at once; the server is killed at `kills` moments, evenly spread over the judgements."""
    seen = Seen()
    server, port = start(database, 0)
    limits = httpx2.Limits(max_connections=len(tokens), max_keepalive_connections=len(tokens))
    began = time.perf_counter()
    try:
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, timeout=_PATIENCE, limits=limits) as client:
            people = [asyncio.create_task(annotate(client, project, token, think, seen)) for token in tokens]
            for number in range(1, kills + 1):
                while len(seen.acknowledged) < number * judgements / (kills + 1):
                    await asyncio.sleep(0.01)
                end(server, signal.SIGKILL)
                server, _ = await asyncio.to_thread(start, database, port)
            await asyncio.gather(*people)
    finally:
        end(server, signal.SIGTERM)
    return seen, time.perf_counter() - began


def check(database: Database, project: int, seen: Seen, judgements: int) -> list[str]:
    """What is wrong in the database, given what was acknowledged."""
    with database.reading() as session:
        rows = session.execute(select(Judgement.key, Judgement.assignment_id).where(Judgement.project_id == project))
        kept: dict[str, str] = dict(iter(rows))
        seats = Counter(
            session.scalars(
                select(Assignment.task_id).where(Assignment.project_id == project, Assignment.state != "released")
            )
        )
        votes = Counter(session.scalars(select(Task.votes).where(Task.project_id == project)))
        answered = Counter(kept.values())
        assert session.get_one(Project, project).closed_at is None
    wrong = []
    if lost := [key for key, assignment in seen.acknowledged.items() if kept.get(key) != assignment]:
        wrong.append(f"{len(lost)} acknowledged judgements are not there")
    if doubled := [one for one, times in answered.items() if times > 1]:
        wrong.append(f"{len(doubled)} assignments were judged twice")
    if crowded := [task for task, lent in seats.items() if lent > VOTES]:
        wrong.append(f"{len(crowded)} tasks were lent to more people than they have seats")
    if set(votes) != {VOTES} or len(kept) != judgements:
        wrong.append(f"{len(kept)} judgements for {judgements}, votes a task: {dict(votes)}")
    return wrong


def main() -> None:
    """Print the figures; exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="a PostgreSQL URL of an empty database; an SQLite file unless given")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--judgements", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--think", type=float, default=2.0, help="seconds that a judgement takes, on average")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = options.database or str(Path(folder) / "feedback.db")
        database = Database(where)
        project, tokens = fill(database, options.annotators, options.judgements)
        work = load(where, project, tokens, options.judgements, options.kills, options.think)
        seen, seconds = asyncio.run(work)
        wrong = check(database, project, seen, options.judgements)
        database.close()
    kind = "SQLite" if options.database is None else "PostgreSQL"
    print(machine_line(machine(threads=1)))
    print(
        f"{kind}: {options.annotators} annotators, {len(seen.acknowledged):,} judgements acknowledged in "
        f"{seconds:.0f} s ({len(seen.acknowledged) / seconds:.0f} a second), "
        f"{options.kills} kills, {seen.retries} retries"
    )
    figures: dict[str, Any] = {"database": kind, "seconds": seconds, "kills": options.kills, "retries": seen.retries}
    for name, waits in seen.waits.items():
        cuts = statistics.quantiles(waits, n=100)
        figures[name] = {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": max(waits)}
        print(f"{name}: " + ", ".join(f"{label} {1000 * value:.0f} ms" for label, value in figures[name].items()))
    print("; ".join(wrong) or "none lost, none doubled, no seat lent twice, every task has its votes")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
