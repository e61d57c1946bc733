"""Rows of sole owners: a class that is declared `sole=True` gets no second row, and its row keeps its primary
key.

Every INSERT is looked at before it is sent: a flush's, a bulk INSERT's, Core's. But two transactions that
make rows at one moment do not see each other's row, and a program without this library is not seen at all. So
every write that needs the owner also looks whether there are several rows, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, select
from sqlalchemy.orm import attributes
from sqlalchemy.sql.elements import BindParameter

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.sole import (
    may_be_several,
    second_row,
    several_rows,
    sole_key,
    two_at_once,
)
from sqlalchemy_envelope.orm.writing.forms import assigned_by, column_key, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


def sole_row(
    connection: Connection, owner_class: OwnerClass, *, for_update: bool = False
) -> tuple[Any, ...] | None:
    """The primary key of the one row of a class; None if it has no row.

    Raises:
        ConfigurationError: it has several.
    """
    keys = _some_keys(connection, owner_class, for_update=for_update)
    if len(keys) > 1:
        raise several_rows(owner_class.name)
    return keys[0] if keys else None


def before_insert(mapper: Mapper[Any], _: Connection, state: InstanceState[Any]) -> None:
    """Give a sole owner that a flush inserts the primary key that every sole owner has.

    Raises:
        EnrollmentError: the flush inserts several.
    """
    session = state.session
    if session is not None and sum(isinstance(new, mapper.class_) for new in session.new) > 1:
        raise two_at_once(mapper.class_.__name__)
    give_sole_key(state)


def give_sole_key(state: InstanceState[Any]) -> None:
    """Give a new sole owner the primary key that every sole owner has, unless it has a key already."""
    mapper, instance = state.mapper, state.obj()
    for column in mapper.primary_key:
        key = mapper.get_property_by_column(column).key
        if state.dict.get(key) is None:
            attributes.set_attribute(instance, key, sole_key(column))


def check_sole(
    connection: Connection, statement: Any, target: Any, multiparams: Sequence[Any], params: Any
) -> None:
    """Refuse an INSERT that makes a second row of a sole owner's class, and an UPDATE of the row's primary
    key, to which its keys are bound.

    Raises:
        EnrollmentError: the INSERT makes a second row, or may make one.
        StatementRefusedError: the UPDATE sets the primary key.
    """
    owner_class = owner_class_of(target)
    if owner_class is None or not owner_class.is_sole or target != owner_class.primary_key[0].table:
        return
    rows = multiparams or (params,)
    if isinstance(statement, Insert):
        if statement.select is not None:
            raise may_be_several(owner_class.name)
        rows = rows_of(statement) if statement._multi_values else rows
        _check_insert(connection, statement, rows, owner_class)
        return
    written = set(map(column_key, assigned_by(statement))).union(*rows)
    for column in owner_class.primary_key:
        if column.key in written:
            raise StatementRefusedError(
                f"{target.name}.{column.key} is the primary key of the sole {owner_class.name}, and its keys "
                "are bound to that: leave it as it is."
            )


def _check_insert(
    connection: Connection, statement: Any, rows: Sequence[Any], owner_class: OwnerClass
) -> None:
    if len(rows) > 1:
        raise two_at_once(owner_class.name)
    there, session = _some_keys(connection, owner_class), session_of(connection)
    if session is not None and session._flushing:
        # A flush inserts before it deletes.
        deleted = {attributes.instance_state(instance).key for instance in session.deleted}
        identity = owner_class.mapper.identity_key_from_primary_key
        there = [key for key in there if identity(key) not in deleted]
    if there and not (len(there) == 1 and _is_upsert_of(there[0], statement, rows[0], owner_class)):
        raise second_row(owner_class.name)


def _some_keys(
    connection: Connection, owner_class: OwnerClass, *, for_update: bool = False
) -> list[tuple[Any, ...]]:
    query = select(*owner_class.primary_key).limit(2)
    query = query.with_for_update() if for_update else query
    return [tuple(row) for row in connection.execute(query)]


def _is_upsert_of(there: tuple[Any, ...], statement: Any, row: Any, owner_class: OwnerClass) -> bool:
    """Whether an INSERT is an upsert of this very row."""
    if getattr(statement, "_post_values_clause", None) is None:
        return False
    named = {getattr(key, "key", key): value for key, value in {**(statement._values or {}), **row}.items()}
    keys = [named.get(column.key) for column in owner_class.primary_key]
    values = (key.effective_value if isinstance(key, BindParameter) else key for key in keys)
    return tuple(values) == there
