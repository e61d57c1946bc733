"""The end of an owner's key: its bytes go, if nothing needs it any more.

No value may appear under the key between the count and the destruction. Two rules see to it:

- Nobody writes under a key that was retired more than a minute ago (`sharing.active_keys`). A destruction is
  refused until ten minutes after the retirement.
- A transaction that wrote before may not have committed yet. So the tables are locked against writers, which
  waits for each transaction that has written to one, and then the values are counted once more.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import DateTime, func, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import ConfigurationError, KeyInUseError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.epochs import load_locked
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.first_savepoints import require_rollback
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.tables.raw_tables import quoted_name
from sqlalchemy_envelope.orm.tables.slot_rows import in_utc
from sqlalchemy_envelope.orm.verbs.readers_tickets import revoke_readers_tickets
from sqlalchemy_envelope.orm.verbs.rotation.key_references import (
    LAST_WRITES,
    find_key,
    key_references,
    tables_with_values,
)
from sqlalchemy_envelope.orm.verbs.tickets import revoke_tickets_of
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.rotation.key_references import KeyReferences

_PATIENCE = 5
"""The seconds to wait for transactions that have written to the tables."""
_LOCK_TIMEOUT = "55P03"


def destroy_key(
    desk: Desk,
    base: Any,
    key: str | uuid.UUID,
    *,
    horizon: dt.timedelta | None,
    backups_until: dt.datetime | None,
) -> KeyReferences:
    """The work of `Envelope.destroy_key`."""
    if horizon is None and backups_until is None:
        raise ConfigurationError(
            "Say how long backups are kept, horizon=timedelta(days=30), or until when, backups_until=..."
        )
    note_policy(desk.session, desk.policy)
    found = key_references(desk, base, key, horizon=horizon, backups_until=backups_until)
    if found.kind == "server":
        raise ConfigurationError(
            "A server key is in no table: once nothing refers to it, take it out of the list of server keys, "
            "and destroy every copy of it."
        )
    if found.state == KeyState.DESTROYED:
        return found
    owner_class, row = find_key(desk, base, found.key)
    require_rollback(desk.session, owner_class.mapper, "destroy_key")
    now = _earliest_now(desk, owner_class)
    found.require_unused(now)
    place = Place(owner_class, _primary_key(owner_class, row), desk.keys(owner_class).where)
    lock_groups(desk, [place])
    _lock_out_writers(desk, owner_class, _tables(base, owner_class), found)
    again = key_references(desk, base, found.key, backups_until=found.free_from, locking=True)
    again.require_unused(now)
    _require_no_old_snapshot(desk, owner_class, again)
    _destroy(desk, place, row.key_id)
    event = AuditEvent("key_retired", owner_class.name, owner_id=place.primary_key, key_id=row.key_id.hex[:8])
    desk.emit(event)
    return replace(found, state=KeyState.DESTROYED.value)


def _tables(base: Any, owner_class: OwnerClass) -> list[Table]:
    """The tables in which a row may come to need a key of these owners."""
    with_values = [table for table, _ in tables_with_values(base, owner_class)]
    granted = [grants.companion for grants in owner_class.grants_to]
    helping = [emergency.table for emergency in owner_class.emergencies_to]
    return [*with_values, owner_class.key_class.__table__, *granted, *helping]


def _connection(desk: Desk, owner_class: OwnerClass) -> Connection:
    return desk.session.connection(bind_arguments=bind_for(desk.session, owner_class.mapper))


def _earliest_now(desk: Desk, owner_class: OwnerClass) -> dt.datetime:
    """The time, by this machine's clock or the database's: the horizon has passed if it has by both."""
    connection, here = _connection(desk, owner_class), dt.datetime.now(dt.UTC)
    in_mysql = connection.dialect.name in ("mysql", "mariadb")
    clock = func.utc_timestamp(type_=DateTime()) if in_mysql else func.current_timestamp(type_=DateTime())
    there = in_utc(connection.execute(select(clock)).scalar_one())
    return here if there is None else min(here, there)


def _primary_key(owner_class: OwnerClass, row: Any) -> tuple[Any, ...]:
    return tuple(row._mapping[column] for column in owner_class.owner_columns)


def _lock_out_writers(
    desk: Desk, owner_class: OwnerClass, tables: Sequence[Table], found: KeyReferences
) -> None:
    """Wait for every transaction that has written to these tables, and let nobody write to them.

    Raises:
        KeyInUseError: a transaction goes on for longer than that.
        ConfigurationError: this transaction would not see what the others have written.
    """
    connection = _connection(desk, owner_class)
    if connection.dialect.name != "postgresql":
        # SQLite lets a single transaction write, and that is this one since `lock_groups`. MySQL reads rows
        # with a lock when it counts them.
        return
    if connection.get_isolation_level() in ("REPEATABLE READ", "SERIALIZABLE"):
        raise ConfigurationError(
            "destroy_key has to see what others have just committed: use a session with the isolation level "
            "READ COMMITTED."
        )
    names = [name for name in map(partial(quoted_name, connection), tables) if _is_there(connection, name)]
    before = connection.execute(text("SELECT current_setting('lock_timeout')")).scalar_one()
    wait = text("SELECT set_config('lock_timeout', :wait, true)")
    try:
        with connection.begin_nested():
            connection.execute(wait, {"wait": f"{_PATIENCE}s"})
            connection.execute(text(f"LOCK TABLE {', '.join(names)} IN SHARE ROW EXCLUSIVE MODE"))
            connection.execute(wait, {"wait": before})
        return
    except DBAPIError as error:
        if (getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)) != _LOCK_TIMEOUT:
            raise
    raise KeyInUseError(
        f"Key {found.key} was not destroyed: a transaction that writes to {' or '.join(names)} goes on for "
        f"more than {_PATIENCE} seconds, and may have values under the key. Try again after it."
    )


def _is_there(connection: Connection, name: str) -> bool:
    """Whether the database has a table: models may declare one that is not made yet."""
    return connection.execute(text("SELECT to_regclass(:name)"), {"name": name}).scalar() is not None


def _require_no_old_snapshot(desk: Desk, owner_class: OwnerClass, found: KeyReferences) -> None:
    """Require that no transaction runs which may see the key as active, under REPEATABLE READ.

    Raises:
        KeyInUseError: one runs, as far as this database user may see.
    """
    connection = _connection(desk, owner_class)
    if connection.dialect.name != "postgresql" or found.retired_at is None:
        return
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND xact_start < :since"
    )
    since = found.retired_at + LAST_WRITES / 2
    old = connection.execute(text(query), {"since": since}).scalar_one()
    if old:
        raise KeyInUseError(
            f"Key {found.key} was not destroyed: {counted(old, 'transaction')} began before it was retired, "
            "and may write under it. Try again after that."
        )


def _destroy(desk: Desk, place: Place, key_id: KeyId) -> None:
    """Overwrite the wraps of a key, and delete what leads to it or carries it."""
    store = desk.keys(place.owner_class)
    (key,) = (one for one in load_locked(store, place) if one.key_id == key_id)
    slots = store.load_slots([key_id], closed_too=True) if key.purpose is Purpose.ROOT else []
    if slots:
        store.delete_slots(slots)
    # Each carries a copy of the keys.
    revoke_tickets_of(desk, place)
    revoke_readers_tickets(desk, [place])
    for grants in place.owner_class.grants_of:
        desk.grants(grants).delete_with(of_keys=[key_id])
    store.replace_keys([replace(key, state=KeyState.DESTROYED, wrapped=None, wrapping_key_id=None)])
    store.forget_grants([key_id])
