"""The rows of tickets, in the caller's transaction. Nothing here commits."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    and_,
    bindparam,
    case,
    delete,
    exists,
    insert,
    inspect,
    literal_column,
    select,
    type_coerce,
    update,
)

from sqlalchemy_envelope.exceptions import TamperedKeyError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.tables.rows import Rows, given, made_once, matches, pairs, values_of
from sqlalchemy_envelope.orm.tables.stored_rows import KEY_WIDTH, RawBytes, key_columns, raw, stored_bytes

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]

_NAMES = (
    "ticket_id", "key_id", "server_key_id", "server_half", "wrapped", "label", "issued_at", "used_at",
    "expires_at", "idle_seconds",
)  # fmt: skip
_WIDTH = len(_NAMES)


class StoredTicket(NamedTuple):
    """One row of a ticket table.

    Attributes:
        key_id: the owner's root key when the ticket was issued.
        server_key_id: which server key or pepper holds the third part of the ticket's key, 16 bytes.
        server_half: the row's part of the ticket's key, 32 bytes.
        wrapped: the carried keys, in format 0x31.
        issued_at, used_at, expires_at: in UTC, in whole seconds.
        idle_seconds: None for a ticket without this limit.
        owner: the primary key of the owner.
        has_news: whether a slot was added that the owner has not acknowledged, as far as it was asked for.
    """

    ticket_id: uuid.UUID
    key_id: KeyId
    server_key_id: bytes
    server_half: bytes
    wrapped: bytes
    label: str | None
    issued_at: dt.datetime
    used_at: dt.datetime
    expires_at: dt.datetime
    idle_seconds: int | None
    owner: PrimaryKey
    has_news: bool = False

    def is_over(self, now: dt.datetime) -> bool:
        """Whether the ticket ended, by its lifetime or because nobody used it.

        A clock that went back revives no ticket: it cannot be earlier than the last use.
        """
        moment = max(now, self.issued_at, self.used_at)
        if self.expires_at <= moment:
            return True
        return self.idle_seconds is not None and (moment - self.used_at).total_seconds() >= self.idle_seconds


class TicketRows(Rows):
    """The tickets of one class of owners."""

    def __init__(self, session: Session, owner_class: OwnerClass, seals: RowSeals) -> None:
        super().__init__(session, owner_class.mapper, seals)
        self._class = owner_class
        self._tickets: Table = owner_class.ticket_class.__table__
        self._owners = [self._tickets.c[column.key] for column in owner_class.owner_columns]

    @property
    def realm(self) -> str:
        """The name of the database; empty if it has none."""
        return self._realm

    def load(
        self, store: KeyStore, ticket_id: uuid.UUID, owner: PrimaryKey
    ) -> tuple[StoredTicket | None, list[OwnedKey]]:
        """A ticket of this owner, if it is there, and every key of the owner. One query.

        Args:
            store: the store of the keys of the same class.
        """
        query = self._made_once("with keys", lambda: self._query_with_keys(store))
        values = {"owners": values_of(self._owners, [owner]), "ticket_id": ticket_id}
        return self._parted(store, self._rows(query, values))

    def load_with_owner(
        self, store: KeyStore, ticket_id: uuid.UUID, cls: type[Any]
    ) -> tuple[Any, StoredTicket | None, list[OwnedKey]]:
        """A ticket, if it is there, with its owner and every key of the owner. One query; three if the class
        is mapped so that other rows are loaded with an owner.

        Args:
            cls: the class of the owner.
            store: the store of the keys of the same class.
        """
        mapper: Mapper[Any] = inspect(cls)
        if any(one.lazy in ("joined", False) for one in mapper.relationships):
            primary_key = self.owner_of(ticket_id)
            owner = None if primary_key is None else self._session.get(cls, primary_key)
            if primary_key is None or owner is None:
                return None, None, []
            return owner, *self.load(store, ticket_id, primary_key)
        query = self._made_once(("with owner", cls), lambda: self._query_with_owner(cls))
        rows = self._rows(query, {"ticket_id": ticket_id})
        owner = rows[0][0] if rows else None
        return owner, *self._parted(store, [row[1:] for row in rows])

    def _parted(self, store: KeyStore, rows: Sequence[Any]) -> tuple[StoredTicket | None, list[OwnedKey]]:
        """Rows of keys, each with the columns of a ticket behind it: the ticket is in the row of its key."""
        start = KEY_WIDTH + len(self._owners) + (self._class.reference_attribute is not None)
        found = next((row for row in rows if row[start] is not None and row[start + 1] == row[0]), None)
        ticket = None if found is None else _stored(found[start:-1])._replace(has_news=bool(found[-1]))
        return ticket, [store.owned(row) for row in rows]

    def _query_with_keys(self, store: KeyStore) -> Any:
        c, keys = self._tickets.c, self._class.key_class.__table__.c
        # A ticket stands beside its root key alone, so that its bytes come once.
        is_its = and_(c.key_id == store.key_id, self._is_wanted)
        columns = (*self._columns(), *self._owners, self._has_news)
        query = store.select_keys(*columns).outerjoin(self._tickets, is_its)
        of_owner = given(self._class.owner_columns, "owners")
        return query.where(of_owner).order_by(keys.purpose, keys.scope, keys.epoch)

    def _query_with_owner(self, cls: type[Any]) -> Any:
        keys, owner_class = self._class.key_class.__table__, self._class
        attribute = owner_class.reference_attribute
        reference = [] if attribute is None else [owner_class.mapper.columns[attribute]]
        wrapped = case((self._tickets.c.key_id == keys.c.key_id, self._tickets.c.wrapped))
        ticket = self._columns(type_coerce(wrapped, RawBytes()))
        mine = (*key_columns(keys), *owner_class.owner_columns, *reference)
        columns = (*mine, *ticket, *self._owners, self._has_news)
        query = select(cls, *columns).select_from(self._tickets)
        query = query.join(cls, and_(*pairs(owner_class.primary_key, self._owners)))
        query = query.join(keys, and_(*pairs(owner_class.owner_columns, self._owners)))
        return query.where(self._is_wanted).order_by(keys.c.purpose, keys.c.scope, keys.c.epoch)

    def owner_of(self, ticket_id: uuid.UUID) -> PrimaryKey | None:
        query = self._made_once("owner", lambda: select(*self._owners).where(self._is_wanted))
        found = self._rows(query, {"ticket_id": ticket_id})
        return tuple(found[0]) if found else None

    @property
    def _has_news(self) -> Any:
        """Whether a slot of the ticket's root key is not acknowledged: asked in the query of each request."""
        slots = self._class.slot_class.__table__.c
        is_new = and_(slots.key_id == self._tickets.c.key_id, slots.unacknowledged_since.is_not(None))
        return exists().where(is_new).label("has_news")

    @property
    def _is_wanted(self) -> Any:
        column = self._tickets.c.ticket_id
        return column == bindparam("ticket_id", type_=column.type)

    def load_of(self, owner: PrimaryKey) -> list[StoredTicket]:
        """The tickets of an owner, without the carried keys; the oldest first."""
        query = self._made_once("of", self._query_of)
        found = [_stored(row) for row in self._rows(query, {"owners": values_of(self._owners, [owner])})]
        return sorted(found, key=lambda one: (one.issued_at, one.ticket_id))

    def _query_of(self) -> Any:
        columns = self._columns(literal_column("NULL"))
        return select(*columns, *self._owners).where(given(self._owners, "owners"))

    def insert(self, ticket: StoredTicket) -> None:
        """Write a new ticket."""
        names = [*_NAMES, *(column.key for column in self._owners)]
        self._execute(insert(self._tickets), dict(zip(names, [*ticket[:_WIDTH], *ticket.owner], strict=True)))

    def delete(self, ticket_ids: Collection[uuid.UUID], owner: PrimaryKey | None = None) -> int:
        """Delete these tickets, if they are of this owner; the number of those that were there."""
        wanted: Any = self._tickets.c.ticket_id.in_(list(ticket_ids))
        if owner is not None:
            wanted = and_(wanted, matches(self._owners, [owner]))
        return self._delete(wanted)

    def delete_of(self, *owners: PrimaryKey) -> int:
        """Delete every ticket of these owners; the number of those that were there."""
        return self._delete(matches(self._owners, owners))

    def delete_over(self, now: dt.datetime) -> int:
        """Delete every ticket that opens nothing any more: it ended, or its root key was replaced."""
        c, keys = self._tickets.c, self._class.key_class.__table__
        active = select(keys.c.key_id).where(
            keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.ACTIVE, keys.c.key_id == c.key_id
        )
        count = self._delete(c.expires_at <= now) + self._delete(~active.exists())
        # No database subtracts seconds as another does. An application has few limits.
        limits = select(c.idle_seconds).where(c.idle_seconds.is_not(None)).distinct()
        for (seconds,) in self._rows(limits):
            before = now - dt.timedelta(seconds=seconds)
            count += self._delete(and_(c.idle_seconds == seconds, c.used_at <= before))
        return count

    def note_use(self, connection: Connection, ticket: StoredTicket, now: dt.datetime) -> None:
        """Write when a ticket was used, on a connection of its own, unless another request just did."""
        c = self._tickets.c
        used = update(self._tickets).where(c.ticket_id == ticket.ticket_id, c.used_at < now)
        connection.execute(used.values(used_at=now))

    def remove(self, connection: Connection, ticket: StoredTicket) -> None:
        """Delete a ticket, on a connection of its own."""
        connection.execute(delete(self._tickets).where(self._tickets.c.ticket_id == ticket.ticket_id))

    def _delete(self, wanted: Any) -> int:
        return int(self._execute(delete(self._tickets).where(wanted)).rowcount)

    def _columns(self, wrapped: Any = None) -> tuple[Any, ...]:
        c = self._tickets.c
        return (
            c.ticket_id, c.key_id, raw(c.server_key_id), raw(c.server_half),
            raw(c.wrapped) if wrapped is None else wrapped,
            c.label, c.issued_at, c.used_at, c.expires_at, c.idle_seconds,
        )  # fmt: skip

    def _made_once(self, name: object, make: Any) -> Any:
        return made_once(self._class.selects, ("tickets", name), make)


def _stored(row: Any) -> StoredTicket:
    idle = row[9]
    if not isinstance(idle, (int, type(None))):
        raise TamperedKeyError("A stored ticket has an impossible limit of idle time.")
    return StoredTicket(
        row[0],
        row[1],
        stored_bytes(row[2], 16),
        stored_bytes(row[3], 32),
        b"" if row[4] is None else stored_bytes(row[4]),
        row[5],
        _moment(row[6]),
        _moment(row[7]),
        _moment(row[8]),
        idle,
        tuple(row[_WIDTH:]),
    )


def _moment(value: object) -> dt.datetime:
    """A stored time, in whole seconds. SQLite and MariaDB keep no time zone, and MariaDB no fraction."""
    if not isinstance(value, dt.datetime):
        raise TamperedKeyError("A stored ticket has no time where a time belongs.")
    return (value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value).replace(microsecond=0)
