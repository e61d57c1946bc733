"""The sweep of the shares in a second database: orphans are deleted, slots without a share counted.

Two databases do not commit at the same moment. So the slot of a share without a slot may be committed in a
moment; and a share that was needed until now is needed again if the first database is set back. A run notes
when it found a share without a slot (`unused_since`), and only a later run deletes it.

Several schemas of the first database, such as those of tenants, may share one table of shares. A sweep reads
the slots of one schema, and so it looks only at the shares that were stored for that schema.

Every read and write is a short transaction of its own, so that each sees what is committed by then.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import delete, func, select, update

from sqlalchemy_envelope.crypto.argon2id import share_named_by
from sqlalchemy_envelope.crypto.peppering import WAITING_SIZE
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import KeyState, SlotKind
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.tables.location import schema_on
from sqlalchemy_envelope.orm.tables.own_transaction import own_transaction
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.tables.slot_rows import in_utc

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    PrimaryKey = tuple[Any, ...]

SHORTEST_KEEP = dt.timedelta(hours=1)
"""The shortest time for which a share without a slot is kept: no transaction may last as long."""
DEFAULT_KEEP = dt.timedelta(days=1)
_WINDOW = 200_000
"""The most shares that are in memory at once. Of each, the id and a time."""
_PAGE = 4_000
"""The slots that one query reads."""
_NAMED = 20
_WAITING = (0, WAITING_SIZE)
"""The sizes of the wrap of a waiting slot, without and with a pepper."""


@dataclass(frozen=True)
class SharesSwept:
    """What a sweep of the shares of a class of owners found and did.

    Attributes:
        shares: the number of shares of these slots' schema in the second database, before anything was
            deleted.
        deleted: the number of shares that were deleted.
        unused: the number of shares that no slot needs, and that are kept for now.
        slots: the number of secret slots in the first database.
        slots_to_move: the number of secret slots without any share, from before the class had shares. Each is
            replaced at the next unlock of its owner that is followed by a write.
        slots_without_share: the number of slots whose share is not in the second database.
        owners_affected: the number of owners with such a slot.
        owners_locked_out: the number of those whom no other slot opens; a grant may still.
        locked_out: the primary keys of the first of those, 20 at most.
        elsewhere: the number of shares of other schemas. A sweep in a session of such a schema looks at them.
    """

    shares: int = 0
    deleted: int = 0
    unused: int = 0
    slots: int = 0
    slots_to_move: int = 0
    slots_without_share: int = 0
    owners_affected: int = 0
    owners_locked_out: int = 0
    locked_out: tuple[PrimaryKey, ...] = ()
    elsewhere: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every slot that needs a share has it."""
        return not self.slots_without_share

    @property
    def is_strange(self) -> bool:
        """Whether no share is needed by any slot. It is hardly the database of these slots, and nothing is
        deleted."""
        return bool(self.shares) and self.shares == self.unused and not self.deleted


def sweep_shares(desk: Desk, mapped: type[Any], keep: dt.timedelta, *, delete: bool) -> SharesSwept:
    """As `Envelope.sweep_shares`."""
    owner_class = owner_class_of(getattr(mapped, "__table__", None))
    if owner_class is None or owner_class.share_class is None:
        raise ConfigurationError(
            "sweep_shares() takes a class of key owners with shares: `class User(KeyOwner, Base, "
            "key_shares=True)`."
        )
    if not isinstance(keep, dt.timedelta) or keep < SHORTEST_KEEP:
        raise ConfigurationError(
            f"keep={keep!r}: a share without a slot is kept for an hour at least. Its slot may be in a "
            "transaction that is not committed yet."
        )
    sweep = _Sweep(desk, owner_class, keep)
    found = sweep.look_at_slots()
    found = sweep.look_at_shares(found, may_write=delete)
    if found.deleted:
        desk.emit(AuditEvent("orphans_swept", owner_class.name, count=found.deleted))
    return found


class _Slot(NamedTuple):
    """A slot, with the key that it opens and the owner of that."""

    key_id: uuid.UUID
    kind: str
    kdf: str | None
    is_waiting: bool
    state: str
    owner: PrimaryKey

    @property
    def share_id(self) -> uuid.UUID | None:
        return share_named_by(self.kdf)


@dataclass
class _Missing:
    """Slots whose share is not there, and their owners."""

    slots: int = 0
    owners: int = 0
    locked_out: int = 0
    named: list[PrimaryKey] = field(default_factory=list)


class _Sweep:
    def __init__(self, desk: Desk, owner_class: OwnerClass, keep: dt.timedelta) -> None:
        self._desk = desk
        self._class = owner_class
        self._shares = desk.shares(owner_class)
        self._keys = owner_class.key_class.__table__
        self._slots = owner_class.slot_class.__table__
        self._now = dt.datetime.now(dt.UTC)
        self._cutoff = self._now - keep
        with own_transaction(desk.session, owner_class.mapper) as connection:
            # That of the connection which reads the slots.
            self._mine = self._shares.table.c.slot_schema == schema_on(connection, owner_class.mapper)

    # ------------------------------------------------------------ slots

    def look_at_slots(self) -> SharesSwept:
        """Count the slots, and those whose share is missing."""
        slots = to_move = 0
        missing = _Missing()
        for page in self._pages():
            secrets = [slot for slot in page if slot.kind == SlotKind.SECRET]
            slots += len(secrets)
            to_move += sum(slot.share_id is None for slot in secrets)
            gone = self._gone(page)
            if gone:
                self._count(page, gone, missing)
        return SharesSwept(
            slots=slots,
            slots_to_move=to_move,
            slots_without_share=missing.slots,
            owners_affected=missing.owners,
            owners_locked_out=missing.locked_out,
            locked_out=tuple(missing.named),
        )

    def _pages(self) -> Iterator[list[_Slot]]:
        """The slots of all root keys. Those of one key are on one page."""
        keys, c = self._keys, self._slots.c
        columns = [keys.c[column.key] for column in self._class.owner_columns]
        query = select(c.key_id, c.kind, c.kdf, func.length(c.wrapped).in_(_WAITING), keys.c.state, *columns)
        query = query.join(keys, keys.c.key_id == c.key_id).order_by(c.key_id).limit(_PAGE)
        after: uuid.UUID | None = None
        while True:
            page = self._read(query if after is None else query.where(c.key_id > after))
            if not page:
                return
            last = page[-1].key_id
            if len(page) == _PAGE:  # the slots of its last key may go on
                page = [slot for slot in page if slot.key_id != last] or self._read(
                    query.where(c.key_id == last).limit(None)
                )
            after = page[-1].key_id
            yield page

    def _read(self, query: Any) -> list[_Slot]:
        with own_transaction(self._desk.session, self._class.mapper) as connection:
            return [_Slot._make((*row[:5], tuple(row[5:]))) for row in connection.execute(query)]

    def _gone(self, page: Collection[_Slot]) -> set[uuid.UUID]:
        """The shares that these slots need, and that are missing.

        A share is committed before its slot, so that whoever sees the slot finds the share. It may have been
        deleted since with good reason: so the slots are read again.
        """
        needed = {slot.share_id for slot in page if slot.share_id is not None}
        gone = needed - self._there(needed)
        if not gone:
            return gone
        still: set[uuid.UUID | None] = set()
        key_ids = {slot.key_id for slot in page if slot.share_id in gone}
        for some in chunks(list(key_ids)):
            query = select(self._slots.c.kdf).where(self._slots.c.key_id.in_(some))
            with own_transaction(self._desk.session, self._class.mapper) as connection:
                still |= {share_named_by(kdf) for kdf in connection.scalars(query)}
        return gone & still

    def _there(self, share_ids: Iterable[uuid.UUID]) -> set[uuid.UUID]:
        c = self._shares.table.c
        found: set[uuid.UUID] = set()
        with self._shares.transaction() as connection:
            for some in chunks(list(share_ids)):
                found.update(connection.scalars(select(c.share_id).where(c.share_id.in_(some))))
        return found

    def _count(self, page: Iterable[_Slot], gone: Collection[uuid.UUID], missing: _Missing) -> None:
        for _, group in groupby(page, key=lambda slot: slot.key_id):
            slots = list(group)
            lost = [slot for slot in slots if slot.share_id in gone]
            missing.slots += len(lost)
            if lost and lost[0].state == KeyState.ACTIVE:
                missing.owners += 1
                if all(slot in lost or slot.is_waiting for slot in slots):
                    missing.locked_out += 1
                    if len(missing.named) < _NAMED:
                        missing.named.append(lost[0].owner)

    # ------------------------------------------------------------ shares

    def look_at_shares(self, found: SharesSwept, *, may_write: bool) -> SharesSwept:
        """Count the shares; delete those that were without a slot for long enough."""
        shares = unused = deleted = 0
        # No slot names any share: this is hardly the database of these slots.
        may_write = may_write and found.slots > found.slots_to_move + found.slots_without_share
        for window in self._windows():
            shares += len(window)
            idle = self._idle(window)
            used_again = [one for one, since in window.items() if since is not None and one not in idle]
            due = [one for one, since in idle.items() if since is not None and since <= self._cutoff]
            fresh = [one for one, since in idle.items() if since is None]
            unused += len(idle)
            if may_write:
                self._note(used_again, None)
                self._note(fresh, self._now)
                deleted += self._delete(due)
        with self._shares.transaction() as connection:
            others = select(func.count()).select_from(self._shares.table).where(~self._mine)
            elsewhere = connection.scalar(others) or 0
        counts = {"shares": shares, "unused": unused - deleted, "deleted": deleted, "elsewhere": elsewhere}
        return SharesSwept(**{**vars(found), **counts})

    def _windows(self) -> Iterator[dict[uuid.UUID, dt.datetime | None]]:
        """The shares, each with the time since when it is known to be unused."""
        c = self._shares.table.c
        query = select(c.share_id, c.unused_since).where(self._mine).order_by(c.share_id).limit(_PAGE)
        window: dict[uuid.UUID, dt.datetime | None] = {}
        after: uuid.UUID | None = None
        while True:
            with self._shares.transaction() as connection:
                rows = connection.execute(query if after is None else query.where(c.share_id > after)).all()
            window.update((share_id, in_utc(since)) for share_id, since in rows)
            if window and (not rows or len(window) >= _WINDOW):
                yield window
                window = {}
            if not rows:
                return
            after = rows[-1][0]

    def _idle(self, window: dict[uuid.UUID, dt.datetime | None]) -> dict[uuid.UUID, dt.datetime | None]:
        """Those of these shares that no slot names. The slots are read after the shares."""
        idle = dict(window)
        c = self._slots.c
        query = select(c.slot_id, c.kdf).where(c.kdf.contains(",share=")).order_by(c.slot_id).limit(_PAGE)
        after: uuid.UUID | None = None
        while idle:
            with own_transaction(self._desk.session, self._class.mapper) as connection:
                rows = connection.execute(query if after is None else query.where(c.slot_id > after)).all()
            if not rows:
                break
            after = rows[-1][0]
            for _, kdf in rows:
                share_id = share_named_by(kdf)
                if share_id is not None:
                    idle.pop(share_id, None)
        return idle

    def _note(self, share_ids: Collection[uuid.UUID], since: dt.datetime | None) -> None:
        c = self._shares.table.c
        for some in chunks(list(share_ids)):
            with self._shares.transaction() as connection:
                statement = update(self._shares.table).where(c.share_id.in_(some))
                connection.execute(statement.values(unused_since=since))

    def _delete(self, share_ids: Collection[uuid.UUID]) -> int:
        c, deleted = self._shares.table.c, 0
        for some in chunks(list(share_ids)):
            # The time again: whoever needs a share again takes it away.
            statement = delete(self._shares.table).where(c.share_id.in_(some), c.unused_since <= self._cutoff)
            with self._shares.transaction() as connection:
                deleted += connection.execute(statement).rowcount
        return deleted
