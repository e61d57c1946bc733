"""The index keys of the server that the models of a declarative base use: opened, made and counted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from sqlalchemy_envelope.exceptions import TransactionConflictError
from sqlalchemy_envelope.keys.index_keys import (
    IndexKeyState,
    check_row,
    check_states,
    index_key_context,
    make_index_key,
    reference_of,
)
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.server_keys import (
    insert_key,
    keys_change,
    load_all_keys,
    load_keys,
    load_keys_of,
)
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import as_indexed, tokenized_of_table
from sqlalchemy_envelope.orm.tables.bases import metadata_of
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.index_key_table import index_key_table_of
from sqlalchemy_envelope.orm.tables.raw_tables import is_there

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.keys.index_keys import StoredIndexKey
    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def server_indexes(base: Any) -> Iterator[tuple[IndexedColumn, Table]]:
    """The blind indexes of a declarative base whose keys the server holds, with the tables of these keys."""
    for metadata in metadata_of(base):
        for table in metadata.sorted_tables:
            keys = index_key_table_of(table)
            if keys is None or mapper_of_table(table) is None:
                continue
            yield from ((one, keys) for one in indexes_of_table(table) if one.guard is not None)
            yield from ((as_indexed(one), keys) for one in tokenized_of_table(table) if one.scope == "server")


def key_tables(metadatas: Iterable[MetaData]) -> Iterator[tuple[Table, Mapper[Any]]]:
    """The tables of index keys, each with a mapper of the table beside it."""
    for metadata in dict.fromkeys(metadatas):
        for table in metadata.sorted_tables:
            keys, mapper = index_key_table_of(table), mapper_of_table(table)
            if keys is not None and mapper is not None:
                yield keys, mapper


def rewrap_steps(desk: Desk, metadatas: Iterable[MetaData], provider: str) -> Steps[int]:
    """Have a provider wrap its index keys under the outside key that wraps now; how many were. No tag
    changes. Other processes go on with the keys that they have open."""
    calls = desk.policy.require_providers().named(provider)
    reference, made = reference_of(calls), list[Any]()
    for keys, mapper in key_tables(metadatas):
        connection = desk.session.connection(bind_arguments=bind_for(desk.session, mapper))
        for row in load_all_keys(connection, keys) if is_there(connection, keys) else ():
            if row.provider_name != provider or row.provider_ref == reference:
                continue
            rewrap = partial(calls.rewrap, row.wrapped, index_key_context(row))
            wrapped = rewrap() if calls.local else (yield _outside(desk, calls, rewrap))
            made.append((connection, keys, row, wrapped))
    count = 0
    for connection, keys, row, wrapped in made:
        c = keys.c
        change = update(keys).where(c.key_id == row.key_id, c.wrapped == row.wrapped)
        keys_change(connection)
        count += connection.execute(change.values(wrapped=wrapped, provider_ref=reference)).rowcount
    return count


def connection_for(session: Session, index: IndexedColumn) -> Connection:
    """The connection on which a session has the rows of an index."""
    mapper: Any = mapper_of_table(index.column.table)
    return session.connection(bind_arguments=bind_for(session, mapper))


def open_steps(desk: Desk, base: Any) -> Steps[int]:
    """The steps of `open_index_keys`. No provider is called after the first row was written."""
    note_policy(desk.session, desk.policy)
    missing, count = [], 0
    for index, keys in server_indexes(base):
        connection = connection_for(desk.session, index)
        if not is_there(connection, keys):
            continue  # no migration has made it yet
        there = _live(load_keys_of(connection, keys, index))
        if not there:
            calls = desk.policy.require_providers().named(desk.policy.index_provider)
            make = partial(make_index_key, calls, index.label, 1, IndexKeyState.ACTIVE)
            made: StoredIndexKey = make() if calls.local else (yield _outside(desk, calls, make))
            missing.append((index, keys, made))
            there = [made]
        count += yield from _open(desk, index, there)
    for index, keys, made in missing:
        connection = connection_for(desk.session, index)
        insert_key(connection, keys, made)
        there = _live(load_keys(connection, keys, index.label))
        if all(row.key_id != made.key_id for row in there):
            raise TransactionConflictError(
                f"Another process made the index key of {index.label!r} at the same moment. Run the "
                "transaction again."
            )
    return count


def _live(stored: list[StoredIndexKey]) -> list[StoredIndexKey]:
    return [row for row in stored if row.state is not IndexKeyState.DESTROYED]


def _open(desk: Desk, index: IndexedColumn, rows: list[StoredIndexKey]) -> Steps[int]:
    cache = desk.policy.index_keys
    check_states(index.label, rows)
    for row in rows:
        calls = desk.policy.require_providers().named(row.provider_name)
        open_ = partial(cache.key, row, calls)
        key = open_() if calls.local or cache.is_open(row) else (yield _outside(desk, calls, open_))
        check_row(key, row)
    return len(rows)


def _outside(desk: Desk, calls: ProviderCalls, call: Any) -> Outside:
    require_no_locks(desk.session, calls.name)
    return Outside(call)
