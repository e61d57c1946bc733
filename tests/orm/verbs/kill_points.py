"""Flows that change how an owner is opened, in a process that is killed after any statement or commit.

To add a flow: write its functions at the top of a module, and list the flow in `test_kill_points.FLOWS`.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from sqlalchemy_envelope import enforce_foreign_keys

Material = dict[str, str]
"""What the people of a flow know: secrets, codes, tickets."""

processes: Any = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["sqlalchemy_envelope", "psycopg", "tests.orm.models"])


@dataclass(frozen=True)
class Flow:
    """A change of how an owner is opened.

    Attributes:
        name: what is changed.
        start: enrolls an owner with values, commits, and returns the owner's primary key and what is known.
        run: the change; it ends with its commit.
        before: opens every value of the owner as before the change; raises if any does not open.
        after: the same, as after the change.
        connect: makes the session, where one engine is not enough.
    """

    name: str
    start: Callable[[Session], tuple[Any, Material]]
    run: Callable[[Session, Any, Mapping[str, str]], None]
    before: Callable[[Session, Any, Mapping[str, str]], None]
    after: Callable[[Session, Any, Mapping[str, str]], None]
    connect: Callable[[str], Session] | None = None

    def session(self, url: str) -> Session:
        """A session on a fresh engine."""
        return connected(url) if self.connect is None else self.connect(url)


def connected(url: str) -> Session:
    """A session on one fresh engine."""
    return Session(fresh_engine(url))


def fresh_engine(url: str) -> Engine:
    """A fresh engine whose foreign keys are enforced."""
    engine = create_engine(url, poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        enforce_foreign_keys(engine)
    return engine


class _Killer:
    """Kills its own process after so many statements and commits of every engine."""

    def __init__(self, after: int) -> None:
        self._left = after
        event.listen(Engine, "after_cursor_execute", self._passed)
        event.listen(Engine, "engine_connect", self._watch_commits)

    def _watch_commits(self, connection: Any) -> None:
        dialect = connection.dialect
        if "do_commit" not in vars(dialect):
            commit = dialect.do_commit

            def do_commit(driver: Any) -> None:
                commit(driver)
                self._passed()

            dialect.do_commit = do_commit

    def _passed(self, *_: Any) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _run_and_die(flow: Flow, url: str, key: Any, material: Material, after: int) -> None:
    with flow.session(url) as session:
        _Killer(after)
        flow.run(session, key, material)


def kill_everywhere(flow: Flow, url: str) -> int:
    """Run a flow anew for each point, kill it there, and require that its owner opens as before or as after.

    Returns:
        The number of points.
    """
    points = 0
    while True:
        with flow.session(url) as session:
            key, material = flow.start(session)
        process = processes.Process(target=_run_and_die, args=(flow, url, key, material, points + 1))
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), f"{flow.name} failed by itself"
        _require_open(flow, url, key, material, points, is_done=process.exitcode == 0)
        if process.exitcode == 0:
            return points
        points += 1


def _require_open(flow: Flow, url: str, key: Any, material: Material, point: int, *, is_done: bool) -> None:
    failed = []
    for opens in (flow.after,) if is_done else (flow.before, flow.after):
        try:
            with flow.session(url) as session:
                opens(session, key, material)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the owner does not open in this way
            failed.append(repr(error))
    raise AssertionError(f"{flow.name}, killed at point {point}, opens neither way: {failed}")
