"""What a transaction knows of the rows of sole owners: it looks for each in the database once.

A key that was kept from before proves nothing: another process may have deleted the row, and made another.
What the transaction itself writes ends what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Select, Table, Update

from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.session_notes import (
    WithinTransaction,
    known_page,
    page_within,
    take_page,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass


@dataclass
class _SoleRows(WithinTransaction):
    """A page of `SessionNotes`: the primary keys of sole owners, by class and place."""

    known: dict[tuple[OwnerClass, Location], tuple[Any, ...]] = field(default_factory=dict)


def known_in(session: Session) -> dict[tuple[OwnerClass, Location], tuple[Any, ...]]:
    """The primary keys of sole owners that the session's present transaction found, by class and place."""
    return page_within(session, _SoleRows, session.get_transaction()).known


def forget(session: Session, *_: object) -> None:
    """The transaction changed something, or was rolled back: look again."""
    take_page(session, _SoleRows)


def on_statement(session: Session, statement: object) -> None:
    """A statement comes. A SELECT changes no row of a sole owner, nor do an INSERT and an UPDATE of another
    table; a DELETE may, by a cascade."""
    if known_page(session, _SoleRows) is None or isinstance(statement, Select):
        return
    if isinstance(statement, (Insert, Update)) and isinstance(statement.table, Table):
        owner_class = owner_class_of(statement.table)
        if owner_class is None or not owner_class.is_sole:
            return
    forget(session)
