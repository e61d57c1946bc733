"""Reading and writing the key tables, in the caller's transaction. Nothing here commits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, insert, select, type_coerce, update

from sqlalchemy_envelope.exceptions import KdfParametersError, TamperedKeyError
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind, StoredKey, StoredSlot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.owners import OwnerClass

MAX_SLOTS = 3
"""Most secret slots that are tried: each costs a derivation, and planted ones would cost many."""


class KeyStore:
    """The key and slot rows of one owner."""

    def __init__(self, session: Session, owner_class: OwnerClass, primary_key: tuple[Any, ...]) -> None:
        self._session = session
        self._keys: Table = owner_class.key_class.__table__
        self._slots: Table = owner_class.slot_class.__table__
        self._bind = {"mapper": owner_class.key_class.__mapper__}
        self._owner_values = dict(zip(owner_class.owner_columns, primary_key, strict=True))
        self._owned = [column == value for column, value in self._owner_values.items()]

    def load_keys(self) -> list[StoredKey]:
        """Every key of the owner, oldest first. One query."""
        c = self._keys.c
        columns = (
            c.key_id, _raw(c.owner_reference), c.purpose, c.scope, c.epoch, c.state, _raw(c.commitment),
            _raw(c.public_key), c.wrapping_key_id, _raw(c.wrapped),
        )  # fmt: skip
        query = select(*columns).where(*self._owned).order_by(c.purpose, c.scope, c.epoch)
        return [_stored_key(row) for row in self._rows(query)]

    def load_secret_slots(self, root: StoredKey) -> list[StoredSlot]:
        """The slots through which a secret reaches this root key, one more than are accepted at most:
        planted ones may be many. One query."""
        c = self._slots.c
        query = select(c.slot_id, c.key_id, c.kind, c.kdf, _raw(c.wrapped)).where(
            c.key_id == root.key_id, c.kind == SlotKind.SECRET
        )
        return [_stored_slot(row) for row in self._rows(query.order_by(c.slot_id).limit(MAX_SLOTS + 1))]

    def _execute(self, statement: Any, *rows: Any) -> Any:
        # No autoflush: values may be waiting for the very key that is being unlocked.
        with self._session.no_autoflush:
            return self._session.execute(statement, *rows, bind_arguments=self._bind)

    def _rows(self, query: Any) -> Sequence[Any]:
        result = self._execute(query)
        try:
            rows: Sequence[Any] = result.all()
            return rows
        except (TypeError, ValueError, AttributeError):
            # SQLite stores anything in any column: what SQLAlchemy's own types choke on comes here.
            raise TamperedKeyError("A stored key or slot holds what its columns cannot hold.") from None

    def insert_keys(self, keys: Sequence[StoredKey]) -> None:
        """Write new key rows, a root before what it wraps."""
        owner = {column.key: value for column, value in self._owner_values.items()}
        rows = [
            {**asdict(key), **owner, "purpose": key.purpose.value, "state": key.state.value} for key in keys
        ]
        self._execute(insert(self._keys), rows)

    def insert_slot(self, slot: StoredSlot) -> None:
        """Write a new slot."""
        self._execute(insert(self._slots), [{**asdict(slot), "kind": slot.kind.value}])

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> bool:
        """Replace a slot's wrap, unless somebody else did in the meantime; tells whether it did."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.wrapped)
        result = self._execute(statement.values(kdf=new.kdf, wrapped=new.wrapped))
        return bool(result.rowcount == 1)

    def replace_key(self, key: StoredKey) -> None:
        """Replace what a key row is bound to and wrapped with."""
        statement = update(self._keys).where(self._keys.c.key_id == key.key_id)
        values = {"owner_reference": key.owner_reference, "wrapped": key.wrapped}
        self._execute(statement.values(values))


class _RawBytes(LargeBinary):
    """Bytes as the driver gives them. SQLAlchemy's own type calls `bytes()` on them, and `bytes(n)` of an
    integer that was planted in a binary column of SQLite allocates n bytes."""

    def result_processor(self, dialect: Any, coltype: object) -> None:
        """None: nothing is done to them."""


def _raw(column: Any) -> Any:
    return type_coerce(column, _RawBytes())


def _bytes(value: object, size: int | None = None) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)) or size not in (None, len(value)):
        raise TamperedKeyError(
            "A stored key has something else than bytes of its size where bytes are stored."
        )
    return bytes(value)


def _stored_key(row: Any) -> StoredKey:
    try:
        purpose, state = Purpose(row[2]), KeyState(row[5])
    except ValueError:
        raise TamperedKeyError("A stored key has a purpose or state that no key has.") from None
    scope, epoch = row[3], row[4]
    if not isinstance(scope, str) or not isinstance(epoch, int):
        raise TamperedKeyError("A stored key has a scope or epoch that no key has.")
    wrapped = None if row[9] is None else _bytes(row[9])
    return StoredKey(
        row[0],
        _bytes(row[1]),
        purpose,
        scope,
        epoch,
        state,
        _bytes(row[6], 32),
        _bytes(row[7], 32),
        row[8],
        wrapped,
    )


def _stored_slot(row: Any) -> StoredSlot:
    kdf = row[3] or ""
    if not isinstance(kdf, str):
        raise KdfParametersError("The stored key-derivation string is no text.")
    return StoredSlot(row[0], row[1], SlotKind.SECRET, kdf, _bytes(row[4]))
