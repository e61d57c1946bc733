"""Index keys of the server: found in `<table>_indexkey`, unwrapped by a provider, and kept for some seconds.

The first write of an index makes its key, in the transaction of the write. Until that transaction ends, the
key is read anew for each statement, and kept by nobody: the transaction may be rolled back.

A transaction that sees the database as it was at its begin may see rows of an earlier step of a rotation. It
looks for values by the keys that it sees, as its rows have their tags. It writes by the newest keys.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import ConfigurationError, KeyNotFoundError, TamperedKeyError
from sqlalchemy_envelope.keys.index_keys import (
    NO_HASHERS,
    IndexHashers,
    IndexKeyState,
    StoredIndexKey,
    check_row,
    check_states,
    make_index_key,
    open_index_key,
    progress_of,
)
from sqlalchemy_envelope.orm.current.context import policy_of
from sqlalchemy_envelope.orm.current.policy import policy_for
from sqlalchemy_envelope.orm.indexes.executing import transaction_of
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.index_key_table import index_key_table_of
from sqlalchemy_envelope.orm.tables.location import location_of_table
from sqlalchemy_envelope.orm.tables.missing_tables import missing_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

_changing: WeakSet[Any] = WeakSet()
"""Transactions that changed index keys."""
_A_MOMENT = 1.0
"""The seconds for which a transaction is too young to see what is out of date."""


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
        ConfigurationError: nothing here wraps an index key, or unwraps this one; or the database has no table
            of index keys.
        KeyNotFoundError: the index has tags and no key, or its provider has to be asked over a network.
        ProviderError: the provider does not unwrap the key.
        TamperedKeyError: the row of a key was altered, or put back.
    """
    session = session_of(connection)
    policy = policy_for(None) if session is None else policy_of(session)
    table: Any = index.column.table
    where = location_of_table(connection, table, policy.seals.realm, options)
    cache = policy.index_keys
    found = cache.get(where, index.label)
    if found is not None and (found.writes is not None or not makes):
        began = transaction_of(connection)
        if (
            began.begun_at >= found.seen_at
            or began.checked.get((where, index.label)) == found.progress
            or not began.reads_snapshot(connection)
        ):
            return found
    return _read(_Reading(connection, policy, index, where), makes=makes)


class _Reading(NamedTuple):
    """Where the keys of an index are read."""

    connection: Connection
    policy: Policy
    of: IndexedColumn
    where: bytes


def _read(reading: _Reading, *, makes: bool) -> IndexHashers:
    connection, policy, index, where = reading
    keys, cache, label = index_key_table_of(index.column.table), policy.index_keys, index.label
    assert keys is not None  # noqa: S101 - the index's column has made it
    read_at, transaction = monotonic(), transaction_of(connection)
    is_old = read_at - transaction.begun_at > _A_MOMENT and transaction.reads_snapshot(connection)
    # SQLite refuses a write after a read that is out of date. Others give locks on the newest rows alone.
    locks = is_old and makes and connection.dialect.name != "sqlite"
    is_current = locks or not is_old
    rows = load_keys_of(connection, keys, index, locks=locks)
    if not rows:
        if not makes:
            return NO_HASHERS
        _make(connection, keys, _calls(policy, policy.index_provider, index), label)
        locks = transaction.reads_snapshot(connection) and connection.dialect.name != "sqlite"
        rows = load_keys(connection, keys, label, locks=locks)
    progress = progress_of(rows)
    if is_current:
        cache.check_progress(where, label, progress)
    hashers = _hashers(reading, rows)
    if hashers.progress == progress and connection.get_transaction() not in _changing:
        cache.put(where, label, hashers, read_at if is_current else transaction.begun_at)
        transaction.checked[where, label] = progress
    return hashers


def load_keys(
    connection: Connection, keys: Table, label: str, *, locks: bool = False
) -> list[StoredIndexKey]:
    """The rows of an index's keys, the newest first; destroyed keys among them.

    Args:
        locks: keep others from changing them until the transaction ends. A transaction that sees an earlier
            state of the database is refused by the database, or is given the present rows.
    """
    wanted = _stored(keys).where(keys.c.label == label).order_by(keys.c.epoch.desc())
    if locks:
        wanted = wanted.with_for_update(read=True)
    return [_key_of(row) for row in _found(connection, wanted)]


def load_all_keys(connection: Connection, keys: Table) -> list[StoredIndexKey]:
    """The rows of a table of index keys that have a key."""
    wanted = _stored(keys).where(keys.c.state != IndexKeyState.DESTROYED.value)
    return [_key_of(row) for row in _found(connection, wanted)]


def _found(connection: Connection, query: Any) -> Any:
    try:
        return connection.execute(query).all()
    except DBAPIError as error:
        missing = missing_tables(error, query)
        if missing is None:
            raise
        raise missing from error.orig


def _stored(keys: Table) -> Any:
    c = keys.c
    return select(
        c.key_id, c.label, c.epoch, c.state, c.commitment, c.provider_ref, c.wrapped, c.seal, c.changed_at
    )


def _key_of(row: Any) -> StoredIndexKey:
    key_id, label, epoch, state, *others = row
    return StoredIndexKey(key_id, label, epoch, _state(label, state), *others)


def _state(label: str, stored: str) -> IndexKeyState:
    try:
        return IndexKeyState(stored)
    except ValueError:
        raise TamperedKeyError(
            f"An index key of {label!r} is in a state that this version does not know: {stored!r}."
        ) from None


def load_keys_of(
    connection: Connection, keys: Table, index: IndexedColumn, *, locks: bool = False
) -> list[StoredIndexKey]:
    """The rows of an index's keys, as `load_keys`; none of an index that has no tags either.

    Raises:
        KeyNotFoundError: rows have tags, and there is no key.
    """
    rows = load_keys(connection, keys, index.label, locks=locks)
    if rows or not _has_tags(connection, index):
        return rows
    rows = load_keys(connection, keys, index.label, locks=locks)  # another may have made it in between
    if rows:
        return rows
    table = index.column.table.name
    raise KeyNotFoundError(
        f"Rows have tags of the blind index {index.label!r}, and {table}_indexkey has no key of it. Restore "
        "that table from a backup. If the key is lost, empty the index, and fill it anew: "
        "`sqlalchemy-envelope index fill`."
    )


def _has_tags(connection: Connection, index: IndexedColumn) -> bool:
    tags: Any = getattr(index, "table", None)  # a token index has a table of tags
    query = select(1).where(index.column.is_not(None)) if tags is None else select(1).select_from(tags)
    return connection.execute(query.limit(1)).first() is not None


def insert_key(connection: Connection, keys: Table, made: StoredIndexKey) -> None:
    """Store a new key of an index, unless another transaction stores one of its generation."""
    values = {
        "key_id": made.key_id,
        "label": made.label,
        "epoch": made.epoch,
        "state": made.state.value,
        "commitment": made.commitment,
        "provider_ref": made.provider_ref,
        "wrapped": made.wrapped,
        "seal": made.seal,
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
    keys_change(connection)


def keys_change(connection: Connection) -> None:
    """Note that the present transaction changes index keys: what it reads of them is kept by nobody."""
    transaction = connection.get_transaction()
    if transaction is not None:
        _changing.add(transaction)


def _make(connection: Connection, keys: Table, calls: ProviderCalls, label: str) -> None:
    """Store the first key of an index, unless another transaction stores one at the same moment."""
    if not calls.local:
        raise KeyNotFoundError(
            f"The blind index {label!r} has no key yet, and provider {calls.name!r} is reached over a "
            "network, for which a statement does not wait. Make the index keys when the process starts: "
            "`envelope.open_index_keys(session, Base)`, and commit."
        )
    insert_key(connection, keys, make_index_key(calls, label, 1, IndexKeyState.ACTIVE))


def _hashers(reading: _Reading, rows: list[StoredIndexKey]) -> IndexHashers:
    index, cache = reading.of, reading.policy.index_keys
    there = [row for row in rows if row.state is not IndexKeyState.DESTROYED]
    if not there:
        raise KeyNotFoundError(f"Every index key of {index.label!r} is destroyed. Restore a backup.")
    check_states(index.label, there)
    newest = there[0]
    if newest.state is IndexKeyState.NEXT and not cache.is_open(newest):
        calls = _calls(reading.policy, newest.provider_name, index)
        if not calls.local:
            known = cache.before(reading.where, index.label, newest, lambda: open_index_key(calls, newest))
            if known is not None:
                return known
    hashers = {}
    for row in there:
        key = _key(reading.policy, index, row)
        check_row(key, row)
        hashers[row.state] = index.hasher(key)
    moving, active = hashers.get(IndexKeyState.MOVING), hashers.get(IndexKeyState.ACTIVE)
    ready = moving or hashers.get(IndexKeyState.READY)
    guards = ready or hashers.get(IndexKeyState.NEXT)
    if IndexKeyState.RETIRED in hashers:
        guards = active
    return IndexHashers(
        moving or active, guards, tuple(hashers.values()), ready is not None, progress_of(rows)
    )


class Moves(NamedTuple):
    """How far a rotation is, as `IndexHashers` has it."""

    is_rotating: bool
    by_guard: bool


def moves_of(connection: Connection, index: IndexedColumn) -> Moves:
    """How far a rotation of an index is. It takes no key to tell."""
    policy = policy_for(session_of(connection))
    table: Any = index.column.table
    where = location_of_table(connection, table, policy.seals.realm)
    found, keys = policy.index_keys.get(where, index.label), index_key_table_of(table)
    if found is not None or keys is None:
        return Moves(found is not None and found.is_rotating, found is not None and found.by_guard)
    there = {row.state for row in load_keys(connection, keys, index.label)} - {IndexKeyState.DESTROYED}
    return Moves(len(there) > 1, bool(there & {IndexKeyState.READY, IndexKeyState.MOVING}))


def _key(policy: Policy, index: IndexedColumn, row: StoredIndexKey) -> KeyBytes:
    calls = _calls(policy, row.provider_name, index)
    if not calls.local and not policy.index_keys.is_open(row):
        raise KeyNotFoundError(
            f"The index key of {index.label!r} is held by provider {calls.name!r}, which is reached over a "
            "network, and a statement does not wait for that. Open the index keys when the process starts: "
            "`envelope.open_index_keys(session, Base)`."
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
