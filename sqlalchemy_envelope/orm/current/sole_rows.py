"""The rows of sole owners that a transaction knows: it looks for each in the database once.

A primary key that was kept from before proves nothing: another process may have deleted the row, and made
another. A write of the transaction itself ends its knowledge.
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
    """Look again: the transaction changed something, or was rolled back."""
    take_page(session, _SoleRows)


def on_statement(session: Session, statement: object) -> None:
    """Look again after a statement that may change the row of a sole owner.

    A SELECT changes no such row. Nor do an INSERT and an UPDATE of another table; a DELETE may, by a cascade.
    """
    if known_page(session, _SoleRows) is None or isinstance(statement, Select):
        return
    if isinstance(statement, (Insert, Update)) and isinstance(statement.table, Table):
        owner_class = owner_class_of(statement.table)
        if owner_class is None or not owner_class.is_sole:
            return
    forget(session)
