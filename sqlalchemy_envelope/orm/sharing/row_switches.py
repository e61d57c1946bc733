"""A row that is deleted and added again in one flush: SQLAlchemy sends a single UPDATE and no DELETE.

This happens when a list of members is assigned anew, and when a member is removed from the list and added
again. The row stays, and the rows that depend on it stay too. Its former values are read when the new object
is about to be written, because the old object may be in no list of the session: an orphan is in none.
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
    """The ends of a granting row, as primary keys: the owner of the key, and the recipient."""

    of: tuple[Any, ...]
    to: tuple[Any, ...]


def row_before(session: Session, grant: GrantClass, state: InstanceState[Any]) -> Ends | None:
    """The stored ends of a row that a new object takes over; None if the row is new."""
    key = state.mapper.identity_key_from_instance(state.obj())
    instance = session.identity_map.get(key)
    return None if instance is None else _stored_ends(session, grant, inspect(instance), key[1])


def is_written_anew(session: Session, key: Any) -> bool:
    """Whether a new object takes over an owner's row that is to be deleted: its keys and grants stay."""
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
            return None  # SQL deleted the row
        values = list(row)
    width = len(grant.of.columns)
    return Ends(tuple(values[:width]), tuple(values[width:]))


def _stored_value(state: InstanceState[Any], key: str) -> Any:
    """The value of an attribute when it was loaded."""
    return state.committed_state.get(key, state.dict.get(key, NO_VALUE))
