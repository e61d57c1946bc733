"""Destroyed keys that are back in a database: it was restored from a backup of before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, String, column, inspect, or_, select, table

from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID
from sqlalchemy_envelope.orm.tables.rows import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnClause, Connection, TableClause

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.receipts import CheckedReceipt


@dataclass(frozen=True)
class ReturnedKey:
    """A key that a receipt says is destroyed, and that a database holds nevertheless.

    Attributes:
        table: the name of the table of keys.
        owner: the columns of the row that name the owner.
    """

    table: str
    key_id: KeyId
    owner: dict[str, Any]

    def __str__(self) -> str:
        owner = ", ".join(f"{name}={value}" for name, value in self.owner.items())
        return f"{self.table}: key {self.key_id} of {owner}"


def returned_keys(connection: Connection, receipt: CheckedReceipt) -> list[ReturnedKey]:
    """Return the keys of a receipt that are in a database and not destroyed: shred their owners again. Sends
    only SELECTs, and needs no models.

    Raises:
        sqlalchemy.exc.NoSuchTableError: the database lacks a table that the receipt names.
    """
    by_table = _by_table(receipt)
    return [one for name, key_ids in by_table.items() for one in _returned(connection, name, key_ids)]


def absent_keys(connection: Connection, receipt: CheckedReceipt) -> dict[str, bool]:
    """The tables in which the database has no row of a receipt's keys; with each, whether it has other keys.

    The owners were deleted after the shredding, or it is another database.
    """
    found = {}
    for name, key_ids in _by_table(receipt).items():
        keys = _keys(name)
        known = (select(keys.c.key_id).where(keys.c.key_id.in_(some)).limit(1) for some in chunks(key_ids))
        if not any(connection.execute(query).first() for query in known):
            found[name] = connection.execute(select(keys.c.key_id).limit(1)).first() is not None
    return found


def _by_table(receipt: CheckedReceipt) -> dict[str, list[KeyId]]:
    found: dict[str, list[KeyId]] = {}
    for key in receipt.keys:
        found.setdefault(key.table, []).append(key.key_id)
    return found


def _keys(name: str, *owners: ColumnClause[Any]) -> TableClause:
    schema, _, bare = name.rpartition(".")
    return table(
        bare,
        column("key_id", KEY_UUID),
        column("state", String),
        column("wrapped", LargeBinary),
        *owners,
        schema=schema or None,
    )


def _returned(connection: Connection, name: str, key_ids: list[KeyId]) -> Iterator[ReturnedKey]:
    schema, _, bare = name.rpartition(".")
    there = inspect(connection).get_columns(bare, schema=schema or None)
    owners = [
        column(one["name"], one["type"])
        for one in there
        if one["name"].startswith("owner_") and one["name"] != "owner_reference"
    ]
    keys = _keys(name, *owners)
    alive = or_(keys.c.state != KeyState.DESTROYED.value, keys.c.wrapped.is_not(None))
    for some in chunks(key_ids):
        rows = connection.execute(select(keys.c.key_id, *owners).where(keys.c.key_id.in_(some), alive))
        for key_id, *owner in rows:
            yield ReturnedKey(
                name, key_id, {one.name: value for one, value in zip(owners, owner, strict=True)}
            )
