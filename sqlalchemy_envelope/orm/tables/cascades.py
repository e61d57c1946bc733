"""SQLite enforces foreign keys only when told, and deleting an owner must delete its keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import Engine, event
from sqlalchemy.util import concurrency

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.binds import bind_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine
    from sqlalchemy.orm import Mapper, Session

_cascading: WeakSet[Engine] = WeakSet()


def enforce_foreign_keys(engine: Engine | AsyncEngine) -> None:
    """Make SQLite enforce foreign keys on every connection of this engine, and overwrite what it deletes;
    does nothing for other databases.

    Without the second (`PRAGMA secure_delete`) the wrapped keys of a deleted owner stay in the file's free
    pages, and open with the owner's secret.
    """
    either: Any = engine
    sync_engine: Engine = getattr(either, "sync_engine", either)
    if sync_engine.dialect.name == "sqlite":
        event.listen(sync_engine, "connect", _switch_on)


def _switch_on(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def require_cascades(session: Session, mapper: Mapper[Any]) -> None:
    """Refuse an engine of this mapper on which deleting an owner would silently leave its keys. Asked once
    for each engine.

    Raises:
        ConfigurationError: SQLite with `PRAGMA foreign_keys` off.
    """
    connection = session.connection(bind_arguments=bind_for(session, mapper))
    engine = connection.engine
    if engine in _cascading:
        return
    if engine.dialect.name == "sqlite" and not connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        raise ConfigurationError(
            "SQLite does not enforce foreign keys on this engine: deleting an owner would leave its keys "
            "behind. Call `sqlalchemy_envelope.enforce_foreign_keys(engine)` right after create_engine(): "
            "connections that were opened before are not covered."
        )
    _cascading.add(engine)


def in_greenlet() -> bool:
    """Whether this runs in a greenlet of asyncio's; without greenlet installed nothing does."""
    try:
        return bool(concurrency.in_greenlet())
    except (ImportError, ValueError):  # of SQLAlchemy 2.1 and 2.0
        return False
