"""Statements that may fail without harm, inside the caller's transaction."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.orm.tables.binds import bind_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Mapper, Session


@contextmanager
def attempt(session: Session, mapper: Mapper[Any]) -> Iterator[None]:
    """Run the block in a savepoint. If the database refuses a statement in it, the transaction goes on as if
    the block had not run: at REPEATABLE READ, for example, where another transaction changed the same row."""
    connection = session.connection(bind_arguments=bind_for(session, mapper))
    if connection.dialect.name == "sqlite":
        # A writer has the whole database, so that no statement in the block meets another writer. Its driver
        # would end the transaction with the savepoint.
        yield
        return
    try:
        with connection.begin_nested():
            yield
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
