"""The keys of a deleted owner open nothing more, in the process that deleted it too.

A value without a foreign key to its owner outlives it. A new owner with the same primary key, which SQLite
gives out again, must not read that value with keys that were kept from before.

An object that the unit of work deleted is known, and its keys go with the commit. Any other DELETE may delete
any owner of the table, and through ON DELETE CASCADE of further tables: a server session looks again for the
keys of all of these before it uses them. What other processes keep ends with `CachePolicy.seconds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Delete, Table
from sqlalchemy.orm import object_session

from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.rollbacks import note_commit
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_DELETED_WITH = "deleted_with"


def on_statement(session: Session, statement: object) -> None:
    """A statement comes: note the owners that it may delete."""
    if isinstance(statement, Delete) and isinstance(statement.table, Table):
        classes = deleted_with(statement.table)
        if classes:
            note_commit(session, classes, lambda: _forget(session, classes))


def after_delete(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """The unit of work deleted an owner."""
    session, owner_class = object_session(state.obj()), owner_class_of(mapper.local_table)
    if session is None or owner_class is None or state.key is None:
        return
    owner = Names(session).owner(owner_class, tuple(state.key[1]))
    note_commit(session, owner, lambda: _forget(session, frozenset(), owner))


def deleted_with(table: Table) -> frozenset[OwnerClass]:
    """The classes whose owners a DELETE from this table may delete."""
    records, size = records_of_table(table), len(table.metadata.tables)
    known: tuple[int, frozenset[OwnerClass]] = records.get(_DELETED_WITH, (0, frozenset()))
    if known[0] != size:  # another table was declared since
        owner_classes = [owner_class_of(one) for one in _cascading(table)]
        known = size, frozenset(one for one in owner_classes if one is not None)
        records[_DELETED_WITH] = known
    return known[1]


def _cascading(table: Table) -> list[Table]:
    """This table, and those whose rows the database deletes with its rows."""
    reached = [table.primary_key.table]  # a statement of the ORM has an annotated copy
    for one in reached:  # grows while it is walked
        reached += [
            other
            for other in table.metadata.tables.values()
            if other not in reached
            and any(
                (foreign.ondelete or "").upper() == "CASCADE" and foreign.referred_table is one
                for foreign in other.foreign_key_constraints
            )
        ]
    return reached


def _forget(session: Session, classes: frozenset[OwnerClass], owner: OwnerId | None = None) -> None:
    for unlocked in context.unlocked_sessions(session):
        unlocked.forget_deleted(classes, owner)
