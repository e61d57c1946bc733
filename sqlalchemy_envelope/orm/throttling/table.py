"""A throttle's memory in a table: for several processes, and past the caller's rollback.

Every change is a short transaction of its own. It inserts the rows that are missing, locks the rows in the
order of their names, and changes them. The first statement is a write, because SQLite locks with a write
alone; and rows are inserted before they are locked, because MariaDB locks the gap in place of a missing row.
"""

from __future__ import annotations

import random
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Column, Engine, Table, Uuid, bindparam, delete, select, update
from sqlalchemy.exc import UnboundExecutionError

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.conflict_errors import should_retry
from sqlalchemy_envelope.orm.tables.own_transaction import transaction_beside
from sqlalchemy_envelope.orm.tables.rows import insert_unless_there, skips_locked
from sqlalchemy_envelope.orm.throttling.backoff import Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from uuid import UUID

    from sqlalchemy import Connection, MetaData
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.throttling.backoff import Change

_TURNS = 20
"""How often a change is tried, at most, while others come first."""
_SWEPT_ONCE_IN = 100
"""Rows that say nothing any more are deleted by one change in so many."""
_MOST_SWEPT = 1_000
"""The most rows that are deleted at once."""


def throttle_table(
    metadata: MetaData, name: str = "envelope_throttle", *, schema: str | None = None
) -> Table:
    """The table of a `TableThrottle`, in the application's metadata: Alembic makes it with the others.

    A row has a name, which is a MAC of an account or a source, and times.
    """
    return Table(
        name,
        metadata,
        Column("name", Uuid, primary_key=True),
        Column("forgotten_at", BigInteger, nullable=False),
        Column("free_at", BigInteger, nullable=False),
        Column("known_until", BigInteger, nullable=False),
        Column("expires_at", BigInteger, nullable=False, index=True),
        schema=schema,
        comment="Failed attempts to unlock; times in milliseconds since 1970",
    )


class TableThrottle:
    """Remembers in a table, for all processes that use the database.

    Each attempt takes two short transactions on a second connection, beside the session's. If all connections
    of a pool are taken by requests that wait for a second one, they wait in vain: give the throttle an engine
    of its own, `create_engine(url, pool_size=2)`, or a pool with room for twice as many.

    In a database in memory, in a `Session` that is bound to a connection, and on SQLite in a session that has
    written already, there is no second connection. There the throttle counts in the session's transaction,
    and a rollback forgets the attempt.

    Args:
        table: from `throttle_table`.
        engine: the engine to count with; left out, the session's own.
    """

    def __init__(self, table: Table, engine: Engine | AsyncEngine | None = None) -> None:
        either: Any = engine
        self._engine: Engine | None = getattr(either, "sync_engine", either)
        if not isinstance(table, Table) or not (self._engine is None or isinstance(self._engine, Engine)):
            raise ConfigurationError(
                "TableThrottle takes the table of throttle_table(Base.metadata), and an engine or none."
            )
        self._table = table
        self.blocks = self._engine is not None and not self._engine.dialect.is_async

    def update(self, names: Sequence[UUID], change: Change, now: int) -> None:
        """See `ThrottleStore.update`.

        Raises:
            ConfigurationError: there is neither an engine nor a session.
        """
        if self._engine is None:
            raise ConfigurationError(
                "A TableThrottle without an engine counts with the session's: give `session=`, or write "
                "TableThrottle(table, engine)."
            )
        _update(self._engine.begin, self._table, names, change, now)

    def within(self, session: Session | None) -> TableThrottle | _SessionThrottle:
        """The store for a session: the throttle itself, if it has an engine of its own."""
        return self if session is None or self._engine is not None else _SessionThrottle(self._table, session)


class _SessionThrottle:
    """A table that is reached through the engine of a session."""

    blocks = False

    def __init__(self, table: Table, session: Session) -> None:
        self._table = table
        self._session = session

    def update(self, names: Sequence[UUID], change: Change, now: int) -> None:
        """See `ThrottleStore.update`."""
        _update(self._begin, self._table, names, change, now)

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        # A write, by which a session that reads from replicas recognises the leader.
        clause: Any = update(self._table)
        try:
            bind = self._session.get_bind(clause=clause)
        except UnboundExecutionError:
            raise ConfigurationError(
                f"This session has no engine for the table {self._table.name}: name the table in its "
                "`binds=`, or write TableThrottle(table, engine)."
            ) from None
        with transaction_beside(self._session, bind, {"clause": clause}) as connection:
            yield connection


def _update(
    begin: Callable[[], AbstractContextManager[Connection]],
    table: Table,
    names: Sequence[UUID],
    change: Change,
    now: int,
) -> None:
    _again(begin, partial(_update_rows, table, names, change, now))
    if random.random() * _SWEPT_ONCE_IN < 1:  # noqa: S311 - nothing is secret about it
        _again(begin, partial(_sweep, table, now))


def _again(
    begin: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection], None]
) -> None:
    """Do work in a transaction, and once more each time that another one came first."""
    for turn in range(_TURNS):
        try:
            with begin() as connection:
                work(connection)
                return
        except Exception as error:
            if turn == _TURNS - 1 or not should_retry(error):
                raise


def _update_rows(
    table: Table, names: Sequence[UUID], change: Change, now: int, connection: Connection
) -> None:
    c = table.c
    new = [{"name": name, **Bucket()._asdict(), "expires_at": now} for name in names]
    connection.execute(insert_unless_there(connection.dialect.name, table, c.name), new)
    query = select(c.name, c.forgotten_at, c.free_at, c.known_until).where(c.name.in_(names)).order_by(c.name)
    found = {row[0]: Bucket(*row[1:]) for row in connection.execute(query.with_for_update())}
    rows = [
        {"this": name, **bucket._asdict(), "expires_at": bucket.expires_at}
        for name, bucket in sorted(change(found).items())
    ]
    if rows:
        connection.execute(update(table).where(c.name == bindparam("this")), rows)


def _sweep(table: Table, now: int, connection: Connection) -> None:
    """Delete rows that say nothing any more, except those that somebody holds."""
    c = table.c
    query = select(c.name).where(c.expires_at < now).limit(_MOST_SWEPT)
    query = query.with_for_update(skip_locked=skips_locked(connection.dialect))
    past = connection.execute(query).scalars().all()
    if past:
        connection.execute(delete(table).where(c.name.in_(past), c.expires_at < now))
