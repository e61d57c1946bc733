"""Index keys of the server: found in `<table>_indexkey`, unwrapped by a provider, and kept for some seconds.

The first write of an index makes its key, in the transaction of the write. Until that transaction ends, the
key is read anew for each statement, and kept by nobody: the transaction may be rolled back.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from sqlalchemy_envelope.exceptions import ConfigurationError, KeyNotFoundError
from sqlalchemy_envelope.keys.index_keys import (
    NO_HASHERS,
    IndexHashers,
    IndexKeyState,
    StoredIndexKey,
    make_index_key,
)
from sqlalchemy_envelope.orm.current.context import policy_of
from sqlalchemy_envelope.orm.current.policy import policy_for
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.index_key_table import index_key_table_of
from sqlalchemy_envelope.orm.tables.location import location_of_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

_made_here: WeakSet[Any] = WeakSet()
"""Transactions that made an index key."""


def server_hashers(
    connection: Connection,
    index: IndexedColumn,
    *,
    makes: bool = False,
    options: Mapping[str, Any] | None = None,
) -> IndexHashers:
    """What makes the tags of an index of the server's scope, in the database of this connection.

    Args:
        makes: whether to make a key if the index has none.
        options: the execution options of the statement.

    Raises:
        ConfigurationError: nothing here wraps an index key, or unwraps this one.
        KeyNotFoundError, ProviderError: the provider does not unwrap the key.
        TamperedKeyError: the row of a key was altered.
    """
    session = session_of(connection)
    policy = policy_for(None) if session is None else policy_of(session)
    table: Any = index.column.table
    where = location_of_table(connection, table, policy.seals.realm, options)
    found = policy.index_keys.get(where, index.label)
    if found is not None and (found.writes is not None or not makes):
        return found
    began, keys = monotonic(), index_key_table_of(table)
    assert keys is not None  # noqa: S101 - the index's column has made it
    rows = _load(connection, keys, index.label)
    if not rows and makes:
        _make(connection, keys, _calls(policy, policy.index_provider, index), index.label)
        rows = _load(connection, keys, index.label)
    hashers = _hashers(policy, index, rows)
    if rows and connection.get_transaction() not in _made_here:
        policy.index_keys.put(where, index.label, hashers, began)
    return hashers


def _load(connection: Connection, keys: Table, label: str) -> list[StoredIndexKey]:
    c = keys.c
    wanted = select(
        c.key_id, c.label, c.epoch, c.state, c.commitment, c.provider_ref, c.wrapped, c.created_at
    ).where(c.label == label, c.state != IndexKeyState.RETIRED.value)
    rows = connection.execute(wanted.order_by(c.epoch.desc()))
    return [StoredIndexKey(*row[:3], IndexKeyState(row[3]), *row[4:]) for row in rows]


def _make(connection: Connection, keys: Table, calls: ProviderCalls, label: str) -> None:
    """Store the first key of an index, unless another transaction stores one at the same moment."""
    made = make_index_key(calls, label, 1, IndexKeyState.ACTIVE)
    values = {
        "key_id": made.key_id,
        "label": label,
        "epoch": made.epoch,
        "state": made.state.value,
        "commitment": made.commitment,
        "provider_ref": made.provider_ref,
        "wrapped": made.wrapped,
    }
    name = connection.dialect.name
    statement: Any = insert(keys).values(values)
    if name == "postgresql":
        statement = postgresql_insert(keys).values(values).on_conflict_do_nothing()
    elif name == "sqlite":
        statement = sqlite_insert(keys).values(values).on_conflict_do_nothing()
    elif name in ("mysql", "mariadb"):
        statement = statement.prefix_with("IGNORE")
    connection.execute(statement)
    transaction = connection.get_transaction()
    if transaction is not None:
        _made_here.add(transaction)


def _hashers(policy: Policy, index: IndexedColumn, rows: list[StoredIndexKey]) -> IndexHashers:
    if not rows:
        return NO_HASHERS
    by_state = {row.state: row for row in rows}
    written = by_state.get(IndexKeyState.MOVING) or by_state.get(IndexKeyState.ACTIVE)
    guarded = by_state.get(IndexKeyState.NEXT) or by_state.get(IndexKeyState.MOVING)
    hashers = {row.key_id: index.hasher(_key(policy, index, row)) for row in rows}
    return IndexHashers(
        None if written is None else hashers[written.key_id],
        None if guarded is None else hashers[guarded.key_id],
        tuple(hashers.values()),
    )


def _key(policy: Policy, index: IndexedColumn, row: StoredIndexKey) -> Any:
    calls = _calls(policy, row.provider_name, index)
    if not calls.local and not policy.index_keys.is_open(row):
        raise KeyNotFoundError(
            f"The index key of {index.label!r} is held by provider {calls.name!r}, which is reached over a "
            "network, and a statement does not wait for that. Open the index keys when the process starts: "
            "`envelope.open_index_keys(session)`."
        )
    return policy.index_keys.key(row, calls)


def _calls(policy: Policy, name: str, index: IndexedColumn) -> ProviderCalls:
    providers = policy.providers
    if providers is None or name not in providers.calls:
        raise ConfigurationError(
            f"The blind index {index.label!r} has the scope 'server', and this process has no provider "
            f"{name!r} that holds its key: Envelope(server_keys=ServerKeyring.from_environment())."
        )
    return providers.named(name)
