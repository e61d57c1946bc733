"""The keys of a deleted owner open nothing more, not even in the process that deleted the owner.

A value without a foreign key to its owner outlives the owner. SQLite gives primary keys out again. A new
owner with the same primary key must not read the value with keys that were kept from before.

The unit of work knows the object that it deletes, and the owner's keys go with the commit. If the same
transaction enrolls another owner of the same name, the old keys are put aside at once and the new keys stay.
Any other DELETE may delete any owner of the table, and through ON DELETE CASCADE owners of further tables: a
server session looks for the keys of all these owners again before it uses them. Other processes keep the
keys for at most `CachePolicy.seconds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Delete, Table
from sqlalchemy.orm import object_session

from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.first_grants import made_first_keys
from sqlalchemy_envelope.orm.sharing.rollbacks import note_commit
from sqlalchemy_envelope.orm.tables.cascades import deleted_with
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


def on_statement(session: Session, statement: object) -> None:
    """Note the owners that a statement may delete."""
    if isinstance(statement, Delete) and isinstance(statement.table, Table):
        classes = deleted_with(statement.table, by_cascade=_is_of_a_flush(session, statement))
        if classes:
            note_commit(session, classes, lambda: _forget(session, classes))


def _is_of_a_flush(session: Session, statement: Delete) -> bool:
    """Whether the unit of work made this statement: `after_delete` tells each owner that it deletes."""
    owner_class = owner_class_of(statement.table)
    if not session._flushing or owner_class is None:
        return False
    made: Any = getattr(owner_class.mapper.base_mapper, "_memoized_values", {})
    return made.get(("delete", statement.table)) is statement


def after_delete(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """Note an owner that the unit of work deleted."""
    session, owner_class = object_session(state.obj()), owner_class_of(mapper.local_table)
    if session is None or owner_class is None or state.key is None:
        return
    owner = Names(session).owner(owner_class, tuple(state.key[1]))
    note_commit(session, owner, lambda: _forget(session, frozenset(), owner))


def _forget(session: Session, classes: frozenset[OwnerClass], owner: OwnerId | None = None) -> None:
    if owner is not None and made_first_keys(session, owner):
        return  # enrolled after the deletion: the keys here are the new owner's, the old ones were put aside
    for unlocked in context.unlocked_sessions(session):
        unlocked.forget_deleted(classes, owner)
