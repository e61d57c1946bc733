"""The rows of one class of emergency access."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import delete, insert, select, update

from sqlalchemy_envelope.keys.emergency import StoredEmergency
from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, matches, pairs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import EmergencyClass

    PrimaryKey = tuple[Any, ...]


class PersonRow(NamedTuple):
    """A row with the primary key of its person; its references are not filled in."""

    person_key: tuple[Any, ...]
    stored: StoredEmergency


class EmergencyRows(Rows):
    """Statements on the rows of one class of emergency access."""

    def __init__(self, session: Session, emergency: EmergencyClass, seals: RowSeals) -> None:
        super().__init__(session, emergency.of.owner_class.mapper, seals)
        self._emergency = emergency

    def load(
        self, owner_key: PrimaryKey, person_key: PrimaryKey | None = None, *, requested: bool = False
    ) -> list[PersonRow]:
        """The rows of an owner: for one person, or only those with a request."""
        c, of, to = self._emergency.table.c, self._emergency.of.columns, self._emergency.to.columns
        columns = (c.kek_public_key, c.person_key_id, c.sealed_share, c.server_share, c.wait_seconds)
        query = select(*to, *columns, c.requested_at).where(*pairs(of, owner_key))
        if person_key is not None:
            query = query.where(*pairs(to, person_key))
        if requested:
            query = query.where(c.requested_at.is_not(None))
        return [_row(row, len(to)) for row in self._rows(query)]

    def load_all(self, of: Sequence[PrimaryKey] | None = None) -> list[tuple[PrimaryKey, PersonRow]]:
        """Every row, or those of these owners, each with the primary key of its owner."""
        owners, to, query = self._emergency.of.columns, self._emergency.to.columns, self._select()
        if of is None:
            found = self._rows(query.with_for_update(of=self._emergency.table), locks=True)
        else:  # a batch waits for nobody: `replace` finds out who came in between
            found = [row for some in chunks(of) for row in self._rows(query.where(matches(owners, some)))]
        width = len(owners)
        return [(tuple(row[:width]), _row(row[width:], len(to))) for row in found]

    def load_to(self, person_key: PrimaryKey) -> list[tuple[PrimaryKey, PersonRow]]:
        """The rows of a person, each with the primary key of its owner."""
        owners, to = self._emergency.of.columns, self._emergency.to.columns
        query, width = self._select().where(*pairs(to, person_key)), len(owners)
        return [(tuple(row[:width]), _row(row[width:], len(to))) for row in self._rows(query)]

    def _select(self) -> Any:
        c, owners, to = self._emergency.table.c, self._emergency.of.columns, self._emergency.to.columns
        columns = (c.kek_public_key, c.person_key_id, c.sealed_share, c.server_share, c.wait_seconds)
        return select(*owners, *to, *columns, c.requested_at)

    def insert(self, owner_key: PrimaryKey, person_key: PrimaryKey, row: StoredEmergency) -> None:
        """Write a new row."""
        named = (*self._emergency.of.columns, *self._emergency.to.columns)
        keys = zip(named, (*owner_key, *person_key), strict=True)
        values: dict[str, Any] = {
            "kek_public_key": row.public_key,
            "person_key_id": row.person_key_id,
            "sealed_share": row.sealed_share,
            "server_share": row.server_share,
            "wait_seconds": row.wait,
        }
        values |= {column.key: key for column, key in keys}
        self._execute(insert(self._emergency.table).values(values))

    def replace(
        self, owner_key: PrimaryKey, person_key: PrimaryKey, old: StoredEmergency, new: StoredEmergency
    ) -> bool:
        """Write another date, unless somebody else changed the row in the meantime; tells whether it did."""
        c = self._emergency.table.c
        statement = update(self._emergency.table).where(
            *pairs(self._emergency.of.columns, owner_key),
            *pairs(self._emergency.to.columns, person_key),
            c.server_share == old.server_share,
        )
        values = {
            "server_share": new.server_share,
            "requested_at": None if new.requested_at is None else time_of(new.requested_at),
        }
        return bool(self._execute(statement.values(values)).rowcount == 1)

    def move(
        self, owner_key: PrimaryKey, person_key: PrimaryKey, old: StoredEmergency, new: StoredEmergency
    ) -> bool:
        """Write the person's share under another root key, unless somebody else changed it in the meantime;
        tells whether it did."""
        c = self._emergency.table.c
        statement = update(self._emergency.table).where(
            *pairs(self._emergency.of.columns, owner_key),
            *pairs(self._emergency.to.columns, person_key),
            c.sealed_share == old.sealed_share,
        )
        values = {"person_key_id": new.person_key_id, "sealed_share": new.sealed_share}
        return bool(self._execute(statement.values(values)).rowcount == 1)

    def delete(self, owner_key: PrimaryKey, person_key: PrimaryKey) -> int:
        """Delete the row of an owner and a person; how many were there."""
        statement = delete(self._emergency.table).where(
            *pairs(self._emergency.of.columns, owner_key), *pairs(self._emergency.to.columns, person_key)
        )
        return int(self._execute(statement).rowcount)


def _row(row: Any, width: int) -> PersonRow:
    public_key, key_id, sealed, server, wait, requested = row[width:]
    stored = StoredEmergency(
        b"", b"", bytes(public_key), key_id, bytes(sealed), bytes(server), wait, _seconds(requested)
    )
    return PersonRow(tuple(row[:width]), stored)


def _seconds(date: dt.datetime | None) -> int | None:
    """SQLite and MySQL store no zone: the library writes UTC."""
    if date is None:
        return None
    return int((date if date.tzinfo is not None else date.replace(tzinfo=dt.UTC)).timestamp())


def time_of(seconds: int) -> dt.datetime:
    """A time in UTC; the last one there is, if an edited row says more."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC)
    except (OverflowError, ValueError, OSError):
        return dt.datetime.max.replace(tzinfo=dt.UTC)
