"""A savepoint on SQLite before which no transaction was begun: its release commits.

Python's driver sends `BEGIN` before the first write, and not before a `SAVEPOINT`. A rollback of the
transaction around such a savepoint takes nothing back. What cannot be undone is refused there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import ref

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.binds import bind_for

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Mapper, Session

_NOTE = "_sqlalchemy_envelope_savepoint"
"""The attribute of a connection that holds the transaction, as SQLAlchemy knows it, whose savepoint came
first."""


def on_savepoint(connection: Connection, name: str) -> None:
    """A savepoint is about to be made."""
    if connection.dialect.name != "sqlite" or connection.in_nested_transaction():
        return
    has_begun = getattr(connection.connection.driver_connection, "in_transaction", True)
    transaction = connection.get_transaction()
    setattr(connection, _NOTE, None if has_begun or transaction is None else ref(transaction))


def require_rollback(session: Session, mapper: Mapper[object], what: str) -> None:
    """Require that a rollback of the session's transaction takes back what is done now.

    Args:
        what: the call that is refused otherwise.

    Raises:
        ConfigurationError: the release of the savepoint around this would commit.
    """
    connection = session.connection(bind_arguments=bind_for(session, mapper))
    noted = getattr(connection, _NOTE, None)
    if noted is not None and connection.in_nested_transaction() and noted() is connection.get_transaction():
        raise ConfigurationError(
            f"{what} is in a savepoint that is the first of its transaction. SQLite's driver sends no BEGIN "
            "before a savepoint: its release would commit, and no rollback would bring the keys back. "
            "Write something before `begin_nested()`, or have the engine send BEGIN."
        )
