"""Changed granting rows: the owner that a row named before, and whether its ends or primary key change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, select
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import NO_VALUE, PASSIVE_NO_INITIALIZE

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.binds import bind_for

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.orm.tables.owners import GrantClass, Place


def place_before(session: Session, grant: GrantClass, state: InstanceState[Any]) -> Place:
    """The owner of the key that a row grants, as the database has it."""
    instance: Any = state.obj()
    keys = _keys(grant)
    if any(key not in state.dict for key in keys) and instance is not None and state.key is not None:
        for key in keys:
            getattr(instance, key)  # expired: loaded now, because the flush takes it for unchanged later
    values = [state.committed_state.get(key, state.dict.get(key)) for key in keys[: len(grant.of.columns)]]
    if any(value is NO_VALUE or value is None for value in values) and state.key is not None:
        # The attribute was set while it was expired: only the database has the former value.
        query = select(*grant.of.columns).where(
            and_(*(a == b for a, b in zip(grant.row_key, state.key[1], strict=True)))
        )
        with session.no_autoflush:
            row = (
                session.connection(bind_arguments=bind_for(session, grant.mapper, query))
                .execute(query)
                .first()
            )
        values = list(row) if row is not None else values
    return Names(session).place(grant.of.owner_class, tuple(values))


def _keys(grant: GrantClass) -> list[str]:
    columns = (*grant.of.columns, *grant.to.columns, *grant.row_key)
    return [grant.mapper.get_property_by_column(column).key for column in columns]


def is_moved(grant: GrantClass, state: InstanceState[Any]) -> bool:
    """Whether a row will name another owner, another recipient, or have another primary key."""
    instance: Any = state.obj()
    keys = _keys(grant)
    return any(attributes.get_history(instance, key, PASSIVE_NO_INITIALIZE).has_changes() for key in keys)
