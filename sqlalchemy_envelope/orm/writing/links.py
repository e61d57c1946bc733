"""Rows of sole owners: what may not be written to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Table, literal, select
from sqlalchemy.orm import attributes

from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.sole import second_row, sole_key

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper


def check_links(connection: Connection, statement: Any, target: Any, multiparams: Any, params: Any) -> None:
    """Refuse a second sole owner. A flush is looked at object by object.

    Raises:
        EnrollmentError: there is one already.
    """
    if not isinstance(target, Table):
        return
    owner_class = owner_class_of(target) if isinstance(statement, Insert) else None
    if owner_class is None or not owner_class.is_sole:
        return
    session = session_of(connection)
    if session is not None and session._flushing:
        return
    if target != owner_class.primary_key[0].table:
        return
    if len(multiparams) > 1 or _has_row(connection, target):
        raise second_row(owner_class.name)


def insert_sole(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
    """A sole owner is about to be inserted: give it the primary key that all of them have.

    Raises:
        EnrollmentError: there is one already.
    """
    session, instance = state.session, state.obj()
    others = 0 if session is None else sum(isinstance(one, mapper.class_) for one in session.new)
    replaces = session is not None and any(isinstance(one, mapper.class_) for one in session.deleted)
    if others > 1 or (not replaces and _has_row(connection, mapper.local_table)):
        raise second_row(mapper.class_.__name__)
    for column in mapper.primary_key:
        key = mapper.get_property_by_column(column).key
        if state.dict.get(key) is None:
            attributes.set_attribute(instance, key, sole_key(column))


def _has_row(connection: Connection, table: Any) -> bool:
    return connection.execute(select(literal(1)).select_from(table).limit(1)).first() is not None
