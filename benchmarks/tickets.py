"""Staying logged in: a request opened by ticket, beside a plain request and one that is opened by the secret;
and the web example of the documentation, beside the same application on plaintext columns."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from benchmarks.databases import SECRET
from benchmarks.measure import Timing, timed
from benchmarks.sharing_models import Person, create_tables
from benchmarks.sheets import DATABASE_NAMES, Finding, Sheet
from benchmarks.unlock import statements
from sqlalchemy_envelope import Envelope, ServerKeyring

T = TypeVar("T")
NAME = "tickets"
KEYS = [b"the server's key of 32 bytes ...", b"k" * 32]
NOTES, CLIENTS = 20, 4
REQUESTS = ("GET /notes", "POST /notes")
"""To read the notes of a user, and to write a note: for another user, so that no page grows meanwhile."""
LIFETIME = timedelta(days=1)


def measure_tickets(engine: Engine, round_count: int, web_seconds: float) -> Finding:
    """Measure both; the web example on SQLite alone."""
    create_tables(engine)
    envelope = Envelope(server_keys=ServerKeyring(KEYS))
    with Session(engine) as session:
        person = Person()
        with envelope.enroll(session, person, secret=SECRET) as unlocked:
            ticket = str(unlocked.issue_ticket(person, lifetime=LIFETIME, idle=LIFETIME))
            session.commit()
        person_id = person.id

    def request(**ways: Any) -> None:
        with Session(engine) as session:
            person = session.get_one(Person, person_id)
            if ways:
                with envelope.unlock(session, person, **ways):
                    pass

    requests: dict[str, Callable[[], None]] = {
        "plain request": request,
        "by ticket": lambda: request(ticket=ticket),
        "by secret": lambda: request(secret=SECRET),
    }
    runs: dict[str, list[Timing]] = {name: [] for name in requests}
    queries: dict[str, int] = {}
    for name, work in requests.items():
        work()
        with statements(engine) as sent:
            work()
        queries[name] = len(sent)
    for number in range(round_count * 20):
        for name, work in requests.items():
            if name != "by secret" or number % 20 == 0:  # half a second of processor time each
                runs[name].append(timed(work))
    cpu = {name: median(run.cpu for run in timings) * 1e3 for name, timings in runs.items()}
    lines = [
        [
            name,
            str(queries[name]),
            f"{cpu[name]:.2f}",
            f"{cpu[name] - cpu['plain request']:.2f}",
            f"{median(run.wall for run in runs[name]) * 1e3:.2f}",
        ]
        for name in requests
    ]
    head = ["", "queries", "ms, processor", "ms more than a plain request", "ms, wall"]
    database = DATABASE_NAMES[engine.dialect.name]
    sheets = [Sheet(f"{database}: a request that loads its user, and opens it", head, lines)]
    figures = {
        "queries by ticket": float(queries["by ticket"] - queries["plain request"]),
        "ms by ticket": cpu["by ticket"] - cpu["plain request"],
    }
    if engine.dialect.name == "sqlite":
        rates = measure_web(max(3, round_count), web_seconds)
        about = (
            f"examples/tickets_app.py on uvicorn, {CLIENTS} clients, beside the same application on "
            f"plaintext columns; a user has {NOTES} notes"
        )
        lines = []
        for line, (plain, encrypted) in rates.items():
            ratio = median(ours / theirs for ours, theirs in zip(encrypted, plain, strict=True))
            lines.append([line, f"{median(plain):,.0f}", f"{median(encrypted):,.0f}", f"{ratio:.2f}"])
            figures[f"web ratio, {line}"] = ratio
        head = ["", "requests per second, plaintext", "encrypted, by ticket", "ratio"]
        sheets.append(Sheet(about, head, lines))
    return Finding(NAME, engine.dialect.name, sheets, figures)


def measure_web(round_count: int, seconds: float) -> dict[str, tuple[list[float], list[float]]]:
    """Requests per second of both applications by turns, for each kind of request: plaintext, and ours."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = [_start(stack, name, folder) for name in ("plain", "encrypted")]
        clients = [(port, _run(_log_in(port))) for port in ports]
        found: dict[str, tuple[list[float], list[float]]] = {line: ([], []) for line in REQUESTS}
        for number in range(round_count + 1):
            for line, rates in found.items():
                for (port, cookies), of in zip(clients, rates, strict=True):
                    rate = _run(_rate(port, cookies[line], seconds, line))
                    if number:  # the first round is for warming up
                        of.append(rate)
        return found


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run something in an event loop of its own: the benchmarks run in one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def _start(stack: ExitStack, name: str, folder: Path) -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(name, f"sqlite+aiosqlite:///{folder / name}.db", port), daemon=True
    )
    process.start()
    stack.callback(process.join)
    stack.callback(process.terminate)
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return port
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(name)


def _serve(name: str, url: str, port: int) -> None:
    import uvicorn

    from benchmarks import plain_app
    from examples import tickets_app

    if name == "plain":
        app = plain_app.create_app(url, "s" * 32)
    else:
        app = tickets_app.create_app(url, Envelope(server_keys=ServerKeyring(KEYS)), "s" * 32)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", access_log=False)


async def _send(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str, cookie: str = "", body: bytes = b""
) -> tuple[int, str]:
    """Send a request on a connection that stays open; its status, and the cookie that it sets."""
    head = f"{line} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Cookie: {cookie}\r\n\r\n".encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = [one.partition(": ") for one in answer[1:] if one]
    found = {name.lower(): value for name, _, value in headers}
    await reader.readexactly(int(found.get("content-length", 0)))
    return int(answer[0].split()[1]), found.get("set-cookie", "").partition(";")[0]


async def _log_in(port: int) -> dict[str, str]:
    """Log a user in for each kind of request; the cookies."""
    connection, cookies = await asyncio.open_connection("127.0.0.1", port), {}
    for line in REQUESTS:
        user = json.dumps({"email": f"{line}@example.org", "secret": SECRET}).encode()
        await _send(*connection, "POST /sign-up", body=user)
        _, cookies[line] = await _send(*connection, "POST /log-in", body=user)
        for number in range(NOTES):
            note = json.dumps({"body": f"note {number:015d}"}).encode()
            assert (await _send(*connection, "POST /notes", cookies[line], note))[0] == 201
    connection[1].close()
    return cookies


async def _rate(port: int, cookie: str, seconds: float, line: str) -> float:
    body = b"" if line.startswith("GET") else json.dumps({"body": f"note {0:015d}"}).encode()

    async def client() -> int:
        connection, count = await asyncio.open_connection("127.0.0.1", port), 0
        while time.perf_counter() < until:
            status, _ = await _send(*connection, line, cookie, body)
            assert status in (200, 201)
            count += 1
        connection[1].close()
        return count

    started = time.perf_counter()
    until = started + seconds
    counts = await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return sum(counts) / (time.perf_counter() - started)
