"""Retry a step of a migration while that may help. Every step is safe to repeat."""

from __future__ import annotations

import random
import time
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.migration.database.faults import is_lost
from sqlalchemy_envelope.migration.running.runner import stopped
from sqlalchemy_envelope.orm.tables.collisions import collided, may_pass

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_envelope.migration.running.setting import Setting

P = ParamSpec("P")
R = TypeVar("R")


class HasSetting(Protocol):
    """An object with steps and a setting: a migrator."""

    setting: Setting


S = TypeVar("S", bound=HasSetting)

_MOST_COLLISIONS = 8
_LONGEST_WAIT = 60.0
"""The most seconds for which a database waits for a lock by itself: SQLite's driver 5, InnoDB 50."""


def steady(step: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Wait out locks, conflicts and a lost connection as long as `Pace.patience` says, then stop.

    A chunk has a patience of its own (`runner`). This decorator is for the work before and after all chunks.
    """

    def done(migrator: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        last, until, tries = 0.0, 0.0, 0
        while True:
            began = time.monotonic()
            try:
                return step(migrator, *arguments, **options)
            except (DBAPIError, MemoryError, OSError) as error:
                failed: Any = stopped(step.__name__, error)
                waited = may_pass(error)
                again = waited or is_lost(error) or (collided(error) and tries < _MOST_COLLISIONS)
            # Outside of `except`: the database's message may show the values of a row.
            now, patience = time.monotonic(), migrator.setting.pace.patience
            # The driver may have waited for the lock since the step began, longer than the patience.
            waiting = now - began if waited and now - began <= _LONGEST_WAIT else 0.0
            if now - waiting - last > patience:
                until, tries = now - waiting + patience, 0
            if not again or now >= until:
                raise failed
            last, tries = now, tries + 1
            migrator.setting.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - a delay

    return update_wrapper(done, step)
