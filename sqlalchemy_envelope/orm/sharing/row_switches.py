"""A row that is deleted and added again in one flush: SQLAlchemy makes one UPDATE of the two, and no DELETE.

So it is with a list of members that is assigned anew, and with a member who is taken out of it and put back.
The row stays, and with it what hangs on it. What it said before is read where the new object is about to be
written, for the old one may be in no list of the session's: an orphan is in none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, inspect, select
from sqlalchemy.orm.base import NO_VALUE

from sqlalchemy_envelope.orm.tables.binds import bind_for

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.orm.tables.owners import GrantClass


class Ends(NamedTuple):
    """Whose key a row grants, and to whom: two primary keys."""

    of: tuple[Any, ...]
    to: tuple[Any, ...]


def row_before(session: Session, grant: GrantClass, state: InstanceState[Any]) -> Ends | None:
    """What the row says, in the database, that a new object takes the place of; None if it is a new row."""
    key = state.mapper.identity_key_from_instance(state.obj())
    instance = session.identity_map.get(key)
    return None if instance is None else _stored_ends(session, grant, inspect(instance), key[1])


def is_written_anew(session: Session, key: Any) -> bool:
    """Whether a row of this identity, which is to be deleted, is written by a new object: an owner's, whose
    keys and grants stay."""
    same = (one for one in session.new if isinstance(one, key[0]))
    return any(inspect(one).mapper.identity_key_from_instance(one) == key for one in same)


def _stored_ends(
    session: Session, grant: GrantClass, state: InstanceState[Any], row_key: tuple[Any, ...]
) -> Ends | None:
    columns = (*grant.of.columns, *grant.to.columns)
    values = [_stored_value(state, grant.mapper.get_property_by_column(column).key) for column in columns]
    if NO_VALUE in values:
        query = select(*columns).where(and_(*(a == b for a, b in zip(grant.row_key, row_key, strict=True))))
        bind = bind_for(session, grant.mapper, query)
        row = session.connection(bind_arguments=bind).execute(query).first()
        if row is None:
            return None  # it was deleted by SQL
        values = list(row)
    width = len(grant.of.columns)
    return Ends(tuple(values[:width]), tuple(values[width:]))


def _stored_value(state: InstanceState[Any], key: str) -> Any:
    """What an attribute was when it was loaded."""
    return state.committed_state.get(key, state.dict.get(key, NO_VALUE))
