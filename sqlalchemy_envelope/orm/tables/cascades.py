"""What the database deletes with a row: an owner's keys, which SQLite deletes only when told, and owners
with the rows that they belong to."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.util import concurrency

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.key_grant import has_grants
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Table
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_cascading: WeakSet[Engine] = WeakSet()
_needs_none: ContextVar[bool] = ContextVar("needs_no_cascades", default=False)
_DELETED_WITH = "deleted_with"


def enforce_foreign_keys(engine: Engine | AsyncEngine) -> None:
    """Make SQLite enforce foreign keys on every connection of this engine, and overwrite what it deletes.
    Other databases need no such call, and nothing happens.

    Without the second setting (`PRAGMA secure_delete`) the wrapped keys of a deleted owner stay in the file's
    free pages, and open with the owner's secret.

    Raises:
        ConfigurationError: it is no engine.
    """
    either: Any = engine
    sync_engine: Engine = getattr(either, "sync_engine", either)
    if not isinstance(sync_engine, Engine):
        raise ConfigurationError(
            "enforce_foreign_keys() takes the engine that create_engine() or create_async_engine() gave; "
            f"this is of the type {type(engine).__name__}."
        )
    if sync_engine.dialect.name == "sqlite":
        event.listen(sync_engine, "connect", _switch_on)


def _switch_on(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


@contextmanager
def without_cascades() -> Iterator[None]:
    """Allow foreign keys to be off inside, although keys are made there: nothing there deletes an owner."""
    before = _needs_none.set(True)
    try:
        yield
    finally:
        _needs_none.reset(before)


def require_cascades(session: Session, mapper: Mapper[Any]) -> None:
    """Refuse an engine of this mapper on which a deleted owner would silently leave its keys behind. Each
    engine is asked once.

    Raises:
        ConfigurationError: SQLite with `PRAGMA foreign_keys` off.
    """
    if _needs_none.get():
        return
    connection = session.connection(bind_arguments=bind_for(session, mapper))
    require_foreign_keys(connection, "deleting an owner would leave its keys behind")


def require_foreign_keys(connection: Connection, otherwise: str) -> None:
    """Refuse an engine on which foreign keys are not enforced. Each engine is asked once.

    Args:
        otherwise: what would happen.

    Raises:
        ConfigurationError: SQLite with `PRAGMA foreign_keys` off.
    """
    engine = connection.engine
    if engine in _cascading:
        return
    if engine.dialect.name == "sqlite" and not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        raise ConfigurationError(
            f"SQLite does not enforce foreign keys on this engine: {otherwise}. Call "
            "`sqlalchemy_envelope.enforce_foreign_keys(engine)` right after create_engine(): "
            "connections that were opened before are not covered."
        )
    _cascading.add(engine)


class _DeletedWith(NamedTuple):
    """The owner classes that a DELETE may reach, as long as its MetaData has so many tables."""

    table_count: int
    owner_classes: frozenset[OwnerClass]
    by_cascade: frozenset[OwnerClass]
    grants: bool


def deleted_with(table: Table, *, by_cascade: bool = False) -> frozenset[OwnerClass]:
    """The classes whose owners a DELETE from this table may delete; or those alone that a cascade deletes."""
    known = _deleted_with(table)
    return known.by_cascade if by_cascade else known.owner_classes


def deletes_grants(table: Table) -> bool:
    """Whether a DELETE from this table may delete granting rows, directly or by cascade."""
    return _deleted_with(table).grants


def _deleted_with(table: Table) -> _DeletedWith:
    records, count = records_of_table(table), len(table.metadata.tables)
    known: _DeletedWith | None = records.get(_DELETED_WITH)
    if known is None or known.table_count != count:  # another table was declared since
        reached = _reached_from(table)
        start = reached[0]
        beyond = [
            one for one in reached if one is not start or any(_is_deleted_with(start, two) for two in reached)
        ]
        grants = any(map(has_grants, reached))
        known = _DeletedWith(count, _owner_classes(reached), _owner_classes(beyond), grants)
        records[_DELETED_WITH] = known
    return known


def _owner_classes(tables: list[Table]) -> frozenset[OwnerClass]:
    found = map(owner_class_of, tables)
    return frozenset(one for one in found if one is not None)


def _reached_from(table: Table) -> list[Table]:
    """This table, and the tables whose rows the database deletes with its rows."""
    reached = [table.primary_key.table]  # a statement of the ORM has an annotated copy
    for parent in reached:  # the list grows while it is walked
        others = [other for other in table.metadata.tables.values() if other not in reached]
        reached += [other for other in others if _is_deleted_with(other, parent)]
    return reached


def _is_deleted_with(child: Table, parent: Table) -> bool:
    return any(
        (foreign.ondelete or "").upper() == "CASCADE" and foreign.referred_table is parent
        for foreign in child.foreign_key_constraints
    )


def in_greenlet() -> bool:
    """Whether this runs in one of asyncio's greenlets. Without the package greenlet there are none."""
    try:
        return bool(concurrency.in_greenlet())
    except (ImportError, ValueError):  # of SQLAlchemy 2.1 and 2.0
        return False
