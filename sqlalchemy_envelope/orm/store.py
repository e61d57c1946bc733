"""Reading and writing the key tables, in the caller's transaction. Nothing here commits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind, StoredKey, StoredSlot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.owners import OwnerClass


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
            c.key_id, c.owner_reference, c.purpose, c.scope, c.epoch, c.state, c.commitment, c.public_key,
            c.wrapping_key_id, c.wrapped,
        )  # fmt: skip
        query = select(*columns).where(*self._owned).order_by(c.purpose, c.scope, c.epoch)
        return [
            StoredKey(row[0], row[1], Purpose(row[2]), row[3], row[4], KeyState(row[5]), *row[6:])
            for row in self._session.execute(query, bind_arguments=self._bind)
        ]

    def load_secret_slots(self, root: StoredKey) -> list[StoredSlot]:
        """The slots through which a secret reaches this root key. One query."""
        c = self._slots.c
        query = select(c.slot_id, c.key_id, c.kind, c.kdf, c.wrapped).where(
            c.key_id == root.key_id, c.kind == SlotKind.SECRET
        )
        return [
            StoredSlot(row[0], row[1], SlotKind(row[2]), row[3] or "", row[4])
            for row in self._session.execute(query.order_by(c.slot_id), bind_arguments=self._bind)
        ]

    def insert_keys(self, keys: Sequence[StoredKey]) -> None:
        """Write new key rows, a root before what it wraps."""
        owner = {column.key: value for column, value in self._owner_values.items()}
        rows = [{**asdict(key), **owner, "purpose": key.purpose.value, "state": key.state.value} for key in keys]
        self._session.execute(insert(self._keys), rows, bind_arguments=self._bind)

    def insert_slot(self, slot: StoredSlot) -> None:
        """Write a new slot."""
        self._session.execute(insert(self._slots), [{**asdict(slot), "kind": slot.kind.value}], bind_arguments=self._bind)

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> bool:
        """Replace a slot's wrap, unless somebody else did in the meantime; tells whether it did."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.wrapped)
        result = self._session.execute(statement.values(kdf=new.kdf, wrapped=new.wrapped), bind_arguments=self._bind)
        return bool(result.rowcount == 1)  # type: ignore[attr-defined]  # an UPDATE has a rowcount

    def replace_key(self, key: StoredKey) -> None:
        """Replace what a key row is bound to and wrapped with."""
        statement = update(self._keys).where(self._keys.c.key_id == key.key_id)
        values = {"owner_reference": key.owner_reference, "wrapped": key.wrapped}
        self._session.execute(statement.values(values), bind_arguments=self._bind)
