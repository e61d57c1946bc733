"""What a transaction knows of the rows of sole owners: it looks for each in the database once.

A key that was kept from before proves nothing: another process may have deleted the row, and made another.
What the transaction itself writes ends what it knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import Insert, Select, Table, Update

from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass

_KNOWN = "sqlalchemy_envelope.sole_rows"


def known_in(session: Session) -> dict[tuple[OwnerClass, Location], tuple[Any, ...]]:
    """The primary keys of sole owners that the session's present transaction found, by class and place."""
    transaction, noted = session.get_transaction(), session.info.get(_KNOWN)
    if noted is None or transaction is None or noted[0]() is not transaction:
        noted = (ref(transaction) if transaction is not None else lambda: None, {})
        session.info[_KNOWN] = noted
    known: dict[tuple[OwnerClass, Location], tuple[Any, ...]] = noted[1]
    return known


def forget(session: Session, *_: object) -> None:
    """The transaction changed something, or was rolled back: look again."""
    session.info.pop(_KNOWN, None)


def on_statement(session: Session, statement: object) -> None:
    """A statement comes. A SELECT changes no row of a sole owner, nor do an INSERT and an UPDATE of another
    table; a DELETE may, by a cascade."""
    if session.info.get(_KNOWN) is None or isinstance(statement, Select):
        return
    if isinstance(statement, (Insert, Update)) and isinstance(statement.table, Table):
        owner_class = owner_class_of(statement.table)
        if owner_class is None or not owner_class.is_sole:
            return
    forget(session)
