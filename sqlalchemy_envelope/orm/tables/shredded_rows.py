"""The key rows of one class of owners, as a shredding needs them: what leads to keys goes, the rows stay."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, select, update

from sqlalchemy_envelope.exceptions import RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.tables.key_owner import tables_beside
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import chunks, given

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


class ShreddedRows(KeyStore):
    """Destroys keys, and finds destroyed keys."""

    def load_destroyed(self, key_ids: Iterable[KeyId]) -> list[OwnedKey]:
        """Those of these keys that are destroyed. One query for some thousands."""
        query = self._made_once("destroyed", self._query_destroyed)
        return [
            one
            for some in chunks(list(key_ids))
            for one in self._owned(query, {"key_ids": some})
            if one.error is None
        ]

    def _query_destroyed(self) -> Any:
        return self._select().where(given([self.key_id], "key_ids"), self._keys.c.state == KeyState.DESTROYED)

    def count_beside(self, key_ids: Collection[KeyId]) -> dict[str, int]:
        """How many rows of slots, tickets and the like belong to these keys, by the name of the table."""
        found: dict[str, int] = {}
        for table, column in tables_beside(self._class):
            for some in chunks(list(key_ids)):
                counted = self._rows(select(func.count()).select_from(table).where(column.in_(some)))
                found[table.name] = found.get(table.name, 0) + int(counted[0][0])
        return found

    def count_slots(self, key_ids: Collection[KeyId]) -> dict[str, int]:
        """How many slots of each kind open these keys, altered slots among them. A slot has a row for each
        epoch, and counts once: the epoch with the most rows counts."""
        c, found = self._slots.c, dict[str, int]()
        for some in chunks(list(key_ids)):
            query = select(c.kind, func.count()).where(c.key_id.in_(some)).group_by(c.kind, c.key_id)
            for kind, count in self._rows(query):
                found[str(kind)] = max(found.get(str(kind), 0), int(count))
        return found

    def delete_beside(self, key_ids: Collection[KeyId]) -> None:
        """Delete the slots, tickets and the like of these keys."""
        for table, column in tables_beside(self._class):
            for some in chunks(list(key_ids)):
                self._execute(delete(table).where(column.in_(some)))

    def destroy(self, keys: Sequence[OwnedKey]) -> list[StoredKey]:
        """Take the wrapped bytes out of key rows, and mark the keys as destroyed.

        A row that does not even parse is deleted: nothing can seal it anew.

        Returns:
            The destroyed keys.
        """
        altered = [one.stored.key_id for one in keys if _is_unparsed(one)]
        gone = [_destroyed(one.stored) for one in keys if not _is_unparsed(one)]
        c, now = self._keys.c, dt.datetime.now(dt.UTC)
        statement = (
            update(self._keys)
            .where(c.key_id == bindparam("this_key"))
            .values(
                state=KeyState.DESTROYED.value,
                wrapping_key_id=None,
                wrapped=None,
                proof=None,
                retired_at=func.coalesce(c.retired_at, bindparam("now")),
                seal=bindparam("new_seal"),
            )
        )
        if gone:
            rows = [{"this_key": key.key_id, "now": now, "new_seal": self._seal(key)} for key in gone]
            self._execute(statement, rows)
        if altered:
            self._execute(delete(self._keys).where(c.key_id.in_(altered)))
        return gone


def _is_unparsed(one: OwnedKey) -> bool:
    return isinstance(one.error, TamperedKeyError) and not isinstance(one.error, RowSealError)


def _destroyed(key: StoredKey) -> StoredKey:
    return replace(key, state=KeyState.DESTROYED, wrapping_key_id=None, wrapped=None, proof=None, seal=None)
