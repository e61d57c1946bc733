"""Upserts and the guards of blind indexes: a row that is changed gets the guard of its new value, and a row
is found by its guard while its index may have the tag of another key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.writing.forms import assigned_by_upsert, column_key, with_upserted

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn


def upsert_guards(connection: Connection, table: Table, statement: Any, options: Any) -> Any:
    """The upsert, with the guards of its indexes."""
    clause = statement._post_values_clause
    indexes = [] if clause is None else [one for one in indexes_of_table(table) if one.guard is not None]
    for index in indexes:
        statement = _with_guard(index, statement)
        statement = _found_by_guard(connection, index, statement, options)
    return statement


def _with_guard(index: IndexedColumn, statement: Any) -> Any:
    """The upsert, which sets the guard from the proposed row wherever it sets what is indexed."""
    sets = set(map(column_key, assigned_by_upsert(statement)))
    guard: Any = index.guard
    if guard.key in sets or sets.isdisjoint(source.key for source in index.sources):
        return statement
    proposed = getattr(statement, "excluded", None)
    proposed = statement.inserted if proposed is None else proposed
    return with_upserted(statement, {guard.key: proposed[guard.key]})


def _found_by_guard(connection: Connection, index: IndexedColumn, statement: Any, options: Any) -> Any:
    """The upsert, which finds the row by the guard if it would find it by the index, and rows are being
    moved: the row that is there may have the tag of the key before."""
    target = getattr(statement._post_values_clause, "inferred_target_elements", None)
    if not target or not any(_names(index, one) for one in target):
        return statement
    if not server_hashers(connection, index, makes=True, options=options).by_guard:
        return statement
    statement, clause = statement._clone(), statement._post_values_clause._clone()
    clause.inferred_target_elements = [index.guard if _names(index, one) else one for one in target]
    statement._post_values_clause = clause
    return statement


def _names(index: IndexedColumn, named: Any) -> bool:
    if isinstance(named, str):
        return named in (index.column.key, index.column.name)
    return getattr(named, "key", None) == index.column.key
