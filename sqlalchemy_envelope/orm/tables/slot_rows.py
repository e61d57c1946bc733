"""The slots of root keys: `KeyStore` reads and writes them beside the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, insert, select, update

from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, given, insert_unless_there, made_once
from sqlalchemy_envelope.orm.tables.stored_rows import slot_columns, stored_slot

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId, SlotKind, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


MAX_SLOTS = 3
"""Most secret slots that are tried: each costs a derivation, and planted ones would cost many."""


class SlotRows(Rows):
    """The slot rows of one class of owners."""

    def __init__(self, session: Session, owner_class: OwnerClass, seals: RowSeals) -> None:
        super().__init__(session, owner_class.mapper, seals)
        self._class = owner_class
        self._slots: Table = owner_class.slot_class.__table__

    def load_slots(
        self,
        key_ids: Iterable[KeyId],
        kind: SlotKind | None = None,
        limit: int | None = None,
        *,
        for_update: bool = False,
    ) -> list[StoredSlot]:
        """The slots of these root keys. One query for some thousands."""
        found: list[StoredSlot] = []
        query = self._made_once(("slots", kind, limit), lambda: self._query_slots(kind, limit))
        query = query.with_for_update(of=self._slots) if for_update else query
        for some in chunks(list(key_ids)):
            found += [stored_slot(row) for row in self._rows(query, {"key_ids": some})]
        for slot in found:
            self._seals.check(slot.seal, self._class.label, slot.sealed_fields(), self._realm)
        return found

    def _query_slots(self, kind: SlotKind | None, limit: int | None) -> Any:
        c = self._slots.c
        query = select(*slot_columns(self._slots)).where(given([c.key_id], "key_ids")).order_by(c.slot_id)
        return (query if kind is None else query.where(c.kind == kind)).limit(limit)

    def free_slots(self, slot_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """As `free`, of slots."""
        return self._free(self._slots.c.slot_id, slot_ids)

    def insert_slots(self, slots: Sequence[StoredSlot]) -> None:
        """Write new slots."""
        rows = self._slot_rows(slots)
        if rows:
            self._execute(insert(self._slots), rows)

    def delete_slots(self, slots: Sequence[StoredSlot]) -> int:
        """Delete slots: what they opened no longer opens this way. How many were there still."""
        ids = [one.slot_id for one in slots]
        return int(self._execute(self._slots.delete().where(self._slots.c.slot_id.in_(ids))).rowcount)

    def label_slots(self, slots: Sequence[StoredSlot], label: str) -> None:
        """Note something about slots, for people and reports: the label is under no seal."""
        ids = [one.slot_id for one in slots]
        self._execute(update(self._slots).where(self._slots.c.slot_id.in_(ids)).values(label=label))

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> bool:
        """Replace a slot's wrap, unless somebody else did in the meantime; tells whether it did."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.wrapped)
        result = self._execute(
            statement.values(
                kdf=new.kdf,
                wrapped=new.wrapped,
                recipient_public_key=new.recipient_public_key,
                provider_ref=new.provider_ref,
                provider_wrapped=new.provider_wrapped,
                seal=self._seal(new),
            )
        )
        return bool(result.rowcount == 1)

    def replace_slots(self, slots: Sequence[tuple[StoredSlot, StoredSlot]]) -> None:
        """Replace the wraps of slots, each unless somebody else did in the meantime."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == bindparam("this"), c.wrapped == bindparam("old"))
        rows = [
            {"this": old.slot_id, "old": old.wrapped, "new": new.wrapped, "new_seal": self._seal(new)}
            for old, new in slots
        ]
        if rows:
            self._execute(statement.values(wrapped=bindparam("new"), seal=bindparam("new_seal")), rows)

    def _slot_rows(self, slots: Iterable[StoredSlot]) -> list[dict[str, Any]]:
        return [{**vars(slot), "kind": slot.kind.value, "seal": self._seal(slot)} for slot in slots]

    def _insert_whole(
        self, table: Table, rows: Sequence[dict[str, Any]], *, unless_there: bool = False
    ) -> set[uuid.UUID]:
        """Insert rows, or of those that no constraint stands against: which were inserted."""
        if not rows:
            return set()
        (id_column,) = table.primary_key.columns
        dialect = self.dialect
        statement = insert_unless_there(dialect.name, table, id_column) if unless_there else insert(table)
        ids = [row[id_column.key] for row in rows]
        # psycopg sends many statements in a pipeline, and logs it twice when one fails: here it gets a single
        # one with many rows.
        if dialect.driver.startswith("psycopg") or (unless_there and dialect.name == "postgresql"):
            return set(self._execute(statement.returning(id_column), rows).scalars())
        result = self._execute(statement.execution_options(preserve_rowcount=True), rows)
        if not unless_there or (dialect.name == "sqlite" and result.rowcount == len(rows)):
            return set(ids)
        found: set[uuid.UUID] = set()
        for some in chunks(ids):
            found.update(row[0] for row in self._rows(select(id_column).where(id_column.in_(some))))
        return found

    def _seal(self, record: StoredKey | StoredSlot) -> bytes | None:
        if not self._seals.is_on:
            return None
        return self._seals.seal(self._class.label, record.sealed_fields(), self._realm)

    def _made_once(self, name: object, make: Callable[[], Any]) -> Any:
        return made_once(self._class.selects, name, make)
