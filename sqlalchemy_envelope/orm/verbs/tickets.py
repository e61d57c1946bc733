"""Tickets: an owner stays logged in without the secret. Issued, used, listed and revoked.

A ticket carries the keys that open values, and no root key. Its own key has three parts: one is with the
client, one in the row, and one on the server. So a stolen cookie needs the server, and a stolen database
needs the cookies and the server's keys.
"""

from __future__ import annotations

import datetime as dt
import logging
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.ticket import (
    TicketContext,
    open_ticket,
    pepper_of,
    seal_ticket,
    ticket_key,
)
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    FormatError,
    TicketError,
    TicketExpiredError,
    UnlockError,
)
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import OpenedKey, Purpose
from sqlalchemy_envelope.keys.ticket import (
    CarriedKeys,
    Ticket,
    entries_of,
    new_row_half,
    new_ticket,
    parse_ticket,
    ticket_id_of,
    ticket_text,
)
from sqlalchemy_envelope.keys.ticket_keyring import TicketKeyring
from sqlalchemy_envelope.orm.columns.state import closed_values
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.key_slots import shown_slot
from sqlalchemy_envelope.orm.sessions.ticket import TicketSession
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.rollbacks import note_unlock
from sqlalchemy_envelope.orm.sharing.roots import active_root_among
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.generated import now as now_in_row
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.own_transaction import own_transaction
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.tables.ticket_rows import StoredTicket, TicketRows
from sqlalchemy_envelope.orm.verbs.emergency_requests import requests_of
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import (
    checked_keys,
    load_keys,
    locate_enrolled,
    usable_state,
)
from sqlalchemy_envelope.orm.verbs.steps import locking_if_untold, wiping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps

logger = logging.getLogger("sqlalchemy_envelope")

Time = dt.timedelta | float
"""A time; a number is so many seconds."""
LONGEST = dt.timedelta(days=400)
"""The longest lifetime: browsers keep no cookie for longer."""
MOST_AHEAD = dt.timedelta(minutes=5)
"""By how much the clocks of an application's machines may differ."""

_REFUSED = (
    "The ticket does not open: it was revoked, has ended, was altered, or is of another owner or another "
    "database. Log in again."
)


@dataclass(frozen=True)
class IssuedTicket:
    """A client that stays logged in, for a page of "your devices".

    Attributes:
        ticket_id: names the ticket in `revoke_ticket`; it opens nothing.
        label: the text that the application gave: the name of a browser, for example.
        issued_at, used_at, expires_at: in UTC. `used_at` is written now and then, and not for each use.
        idle: how long the ticket may lie unused; None without this limit.
    """

    ticket_id: uuid.UUID
    label: str | None
    issued_at: dt.datetime
    used_at: dt.datetime
    expires_at: dt.datetime
    idle: dt.timedelta | None


def now() -> dt.datetime:
    """The time in UTC, in whole seconds."""
    return now_in_row(None).replace(microsecond=0)


def issue_ticket(desk: Desk, owner: object, lifetime: Time, idle: Time | None, label: str | None) -> Ticket:
    """Issue a ticket for an owner that is unlocked here."""
    lifetime = _time("lifetime", lifetime)
    idle = None if idle is None else _time("idle", idle)
    _check_label(label)
    keyrings = _require_ticket_keys(desk.policy)
    located = locate_enrolled(desk, owner)
    rows = _rows(desk, located.place.owner_class)
    note_policy(desk.session, desk.policy)
    # What waits is settled at the log-in: a ticket settles nothing.
    settle_owner(located)
    keys = load_keys(located)
    roots = opened_roots(located, keys)
    root = roots[0]
    # A change of the secret waits for this transaction, so that it finds the new ticket.
    located.store.load_slots([root.stored.key_id], for_update=True)
    entries = _carried(located, keys, roots)
    issued = now()
    made = new_ticket()
    server_key_id, server_key = keyrings[0].active
    row = StoredTicket(
        made.ticket_id,
        root.stored.key_id,
        server_key_id,
        new_row_half(),
        b"",
        label,
        issued,
        issued,
        issued + lifetime,
        None if idle is None else int(idle.total_seconds()),
        located.place.primary_key,
    )
    pepper = server_key.derived(pepper_of)
    with wiping(made.client_half):
        key = ticket_key(
            made.client_half, row.server_half, pepper, _context(row, root.stored.owner_reference, rows.realm)
        )
        try:
            row = row._replace(wrapped=seal_ticket(entries, key))
        finally:
            entries[:] = bytes(len(entries))
            key.wipe()
        text = ticket_text(made)
    _sweep_own(rows, located.place, root.stored, issued)
    rows.insert(row)
    desk.emit(_event("ticket_issued", located.place.owner_class, located.place))
    return text


def _carried(located: LocatedOwner, keys: Sequence[StoredKey], roots: Sequence[OpenedKey]) -> bytearray:
    """Return the entries for the keys that the owner's root key leads to, now and by itself.

    The unlocked session may hold the keys of other owners too.
    """
    keyring, place = Keyring(), located.place
    try:
        keyring.add_stored(place.owner, keys)
        keyring.add(place.owner, [OpenedKey(one.stored, KeyBytes(one.key.buffer)) for one in roots])
        follow_grants(located.desk, keyring, [place])
        found = []
        for owner in keyring:
            for stored in keyring.keys_of(owner):
                if stored.purpose is Purpose.ROOT:
                    continue
                try:
                    opened = keyring.open(stored.key_id)
                except EnvelopeError:
                    if owner == place.owner:
                        raise
                    continue  # the error is told where these keys are used: it stops no other owner
                if opened is not None:
                    found.append(opened)
        return entries_of(found)
    finally:
        keyring.wipe()


def unlock_with_ticket_steps(desk: Desk, owner: object, ticket: HiddenSecret) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` with a ticket: no derivation and no call."""
    yield from ()
    return unlock_with_ticket(desk, owner, ticket)


def unlock_with_ticket(desk: Desk, owner: object, ticket: HiddenSecret) -> TicketSession:
    """Open the keys that a ticket carries. One query, and no key derivation from a secret.

    Args:
        owner: the owner; or a class, for the owner that the ticket is of.
    """
    owner_class = (
        _class_of(owner) if isinstance(owner, type) else locate_enrolled(desk, owner).place.owner_class
    )
    rows, place = _rows(desk, owner_class), None
    note_policy(desk.session, desk.policy)
    try:
        given = parse_ticket(ticket.reveal())
        with wiping(given.client_half):
            found = _found(desk, rows, owner_class, owner, given.ticket_id)
            place, row = found.place, found.row
            keys = checked_keys(found.keys)
            root = _require_root(keys, row)
            entries = _opened(desk.policy, row, root, given.client_half, rows.realm)
        _require_in_time(desk, rows, place, row)
    except TicketError:
        desk.emit(_event("ticket_refused", owner_class, place))
        raise
    unlocked = _unlocked(desk, found, keys, root, CarriedKeys(entries))
    _show_news(desk, unlocked, place, row)
    _note_use(desk, rows, place, row)
    with locking_if_untold(unlocked):
        desk.emit(_event("ticket_used", owner_class, place))
    return unlocked


def _show_news(desk: Desk, unlocked: TicketSession, place: Place, row: StoredTicket) -> None:
    """Show the owner what an unlock with the secret shows. It takes a query where there is something new."""
    if row.has_news:
        slots = desk.keys(place.owner_class).load_slots([row.key_id], closed_too=True)
        unlocked.unacknowledged_slots = tuple(
            shown_slot(slot) for slot in slots if slot.unacknowledged_since is not None
        )
    unlocked.emergency_requests = requests_of(desk, place)


class _Found(NamedTuple):
    """A ticket's row, with its owner and the rows of the owner's keys."""

    owner: object
    place: Place
    row: StoredTicket
    keys: list[OwnedKey]


def _class_of(cls: type[Any]) -> OwnerClass:
    owner_class = owner_class_of(getattr(cls, "__table__", None))
    if owner_class is None or owner_class.key_class is None:
        raise ConfigurationError(f"{cls.__name__} is no class of key owners.")
    return owner_class


def _found(
    desk: Desk, rows: TicketRows, owner_class: OwnerClass, owner: object, ticket_id: uuid.UUID
) -> _Found:
    """Load a ticket and the keys of its owner.

    Raises:
        TicketError: there is no such ticket of this owner, or of any owner of this class.
    """
    store = desk.keys(owner_class)
    if isinstance(owner, type):
        require_cascades(desk.session, owner_class.mapper)
        owner, row, keys = rows.load_with_owner(store, ticket_id, owner)
        if owner is not None:
            usable_state(owner, owner_class)
    else:
        row, keys = rows.load(store, ticket_id, _identity(owner))
    if row is None or row.owner != _identity(owner):
        raise TicketError(_REFUSED)
    return _Found(owner, Place(owner_class, row.owner, store.where), row, keys)


def _identity(owner: object) -> tuple[Any, ...]:
    identity: Any = inspect(owner).key
    return tuple(identity[1])


def _unlocked(
    desk: Desk, found: _Found, keys: Sequence[StoredKey], root: StoredKey, carried: CarriedKeys
) -> TicketSession:
    keyring, place = TicketKeyring(carried, root.key_id), found.place
    try:
        keyring.add_stored(place.owner, keys)
        unlocked = TicketSession(desk.session, desk.policy, place, keyring, found.owner)
        note_unlock(desk.session, place.owner, unlocked)
        if place.owner_class.grants_to and (closed := closed_values(desk.session)):
            for owner_class, headers in closed.items():
                unlocked.prepare_read(desk.session, owner_class, headers)
    except BaseException:
        keyring.wipe()
        raise
    return unlocked


def _require_root(keys: Sequence[StoredKey], row: StoredTicket) -> StoredKey:
    root = active_root_among(keys)
    if root is None or root.key_id != row.key_id:
        raise TicketError("The keys of the ticket's owner were replaced since it was issued. Log in again.")
    return root


def _opened(
    policy: Policy, row: StoredTicket, root: StoredKey, client_half: KeyBytes, realm: str
) -> bytearray:
    server_key = next(
        (found for one in policy.ticket_keys if (found := one.keys_by_id.get(row.server_key_id))), None
    )
    if server_key is None:
        raise TicketError(
            f"The ticket was issued under server key {row.server_key_id.hex()[:8]}, which is not configured: "
            "log in again."
        )
    try:
        context = _context(row, root.owner_reference, realm)
        key = ticket_key(client_half, row.server_half, server_key.derived(pepper_of), context)
    except OverflowError:
        raise TicketError(_REFUSED) from None
    with wiping(key):
        try:
            return open_ticket(row.wrapped, key)
        except (UnlockError, FormatError):
            raise TicketError(_REFUSED) from None


def _require_in_time(desk: Desk, rows: TicketRows, place: Place, row: StoredTicket) -> None:
    """Refuse a ticket that ended, or that comes from the future. Asked last: only its holder is told."""
    moment = now()
    ahead = max(row.issued_at, row.used_at) - moment
    if ahead > MOST_AHEAD:
        raise TicketError(
            f"The ticket was issued or used {int(ahead.total_seconds())} seconds from now: the clock of this "
            "machine went back, or that of another machine is ahead. Put the clocks right, or log in again."
        )
    if row.is_over(moment):
        # Deleted, so that it stays over if the clock goes back.
        _on_the_side(desk, place, lambda connection: rows.remove(connection, row))
        raise TicketExpiredError("The ticket has ended. Log in again.")


def _note_use(desk: Desk, rows: TicketRows, place: Place, row: StoredTicket) -> None:
    """Write now and then that the ticket is used: ten times in its idle time, and never for each request."""
    moment = now()
    limit = row.idle_seconds or int((row.expires_at - row.issued_at).total_seconds())
    passed = (moment - row.used_at).total_seconds()
    if passed < max(1, limit // 10):
        return
    # A request that waits for a second connection may wait for other requests that do the same.
    if passed >= limit // 2 or _has_room(desk, place):
        _on_the_side(desk, place, lambda connection: rows.note_use(connection, row, moment))


def _has_room(desk: Desk, place: Place) -> bool:
    pool = bind_of(desk.session, place.owner_class.mapper).engine.pool
    return not isinstance(pool, QueuePool) or pool.checkedin() > 0 or pool.checkedout() < pool.size()


def _on_the_side(desk: Desk, place: Place, work: Callable[[Connection], None]) -> None:
    """Do something in a short transaction of its own. If it fails, the request goes on without it."""
    try:
        with own_transaction(desk.session, place.owner_class.mapper) as connection:
            if connection.dialect.name == "sqlite":
                with _not_waiting(connection):
                    work(connection)
            else:
                # It may be the session's own connection, whose transaction must go on.
                with connection.begin_nested():
                    work(connection)
    except SQLAlchemyError as error:
        logger.warning("The row of a ticket could not be written: %s", type(error).__name__)


@contextmanager
def _not_waiting(connection: Connection) -> Iterator[None]:
    """Inside, do not wait for whoever writes to a database of SQLite: it may be this very request."""
    before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
    connection.exec_driver_sql("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(before or 0)}")


def revoke_ticket(desk: Desk, owner: object, ticket: object) -> bool:
    """Revoke one ticket of an owner; tell whether it was there."""
    place = None if isinstance(owner, type) else locate_enrolled(desk, owner).place
    owner_class = _class_of(owner) if place is None else place.owner_class  # type: ignore[arg-type]
    wanted = ticket_id_of(ticket)
    rows = _rows(desk, owner_class)
    owner_id = rows.owner_of(wanted) if place is None else place.primary_key
    count = 0 if owner_id is None else rows.delete([wanted], owner_id)
    if count:
        desk.emit(AuditEvent("ticket_revoked", owner_class.name, owner_id=owner_id))
    return bool(count)


def revoke_tickets(desk: Desk, owner: object) -> int:
    """Revoke every ticket of an owner, and return their number."""
    located = locate_enrolled(desk, owner)
    _rows(desk, located.place.owner_class)
    return revoke_tickets_of(desk, located.place)


def revoke_tickets_of(desk: Desk, place: Place) -> int:
    """Revoke every ticket of an owner whose secret changes, and return their number.

    Call it after the slot was written: then no ticket that is issued at this moment is left.
    """
    if place.owner_class.ticket_class is None:
        return 0
    count = _rows(desk, place.owner_class).delete_of(place.primary_key)
    if count:
        desk.emit(_event("ticket_revoked", place.owner_class, place, count))
    return count


def revoke_tickets_of_many(desk: Desk, owner_class: OwnerClass, owners: Sequence[tuple[Any, ...]]) -> int:
    """Revoke every ticket of these owners of a class, and return their number."""
    if owner_class.ticket_class is None:
        return 0
    rows = _rows(desk, owner_class)
    count = sum(rows.delete_of(*some) for some in chunks(owners))
    if count:
        desk.emit(_event("ticket_revoked", owner_class, None, count))
    return count


def tickets_of(desk: Desk, owner: object) -> list[IssuedTicket]:
    """Return the tickets of an owner that still open something, the oldest first."""
    located = locate_enrolled(desk, owner)
    root = active_root_among(load_keys(located))
    moment = now()
    return [
        IssuedTicket(
            one.ticket_id,
            one.label,
            one.issued_at,
            one.used_at,
            one.expires_at,
            None if one.idle_seconds is None else dt.timedelta(seconds=one.idle_seconds),
        )
        for one in _rows(desk, located.place.owner_class).load_of(located.place.primary_key)
        if root is not None and one.key_id == root.key_id and not one.is_over(moment)
    ]


def sweep_tickets(desk: Desk, owner_classes: Sequence[OwnerClass]) -> int:
    """Delete the tickets of these classes that open nothing any more, and return their number."""
    return sum(_rows(desk, one).delete_over(now()) for one in owner_classes)


def _sweep_own(rows: TicketRows, place: Place, root: StoredKey, moment: dt.datetime) -> None:
    mine = rows.load_of(place.primary_key)
    over = [one.ticket_id for one in mine if one.key_id != root.key_id or one.is_over(moment)]
    if over:
        rows.delete(over)


def _context(row: StoredTicket, owner_reference: bytes, realm: str) -> TicketContext:
    return TicketContext(
        row.ticket_id.bytes,
        owner_reference,
        row.key_id.bytes,
        int(row.issued_at.timestamp()),
        int(row.expires_at.timestamp()),
        row.idle_seconds or 0,
        realm,
    )


def _rows(desk: Desk, owner_class: OwnerClass) -> TicketRows:
    """Return the store of a class's tickets.

    Raises:
        ConfigurationError: the class has no table of tickets.
    """
    if owner_class.ticket_class is None:
        name = owner_class.name
        raise ConfigurationError(
            f"{name} has no table of tickets: it declares key_tables=False, or its table's name is too long. "
            f"Add `class {name}KeyTicket(KeyTicketTable[{name}], Base)`, or "
            f"`class {name}(..., key_names=KeyNames(ticket_table=...))`."
        )
    return TicketRows(desk.session, owner_class, desk.policy.seals)


def _require_ticket_keys(policy: Policy) -> tuple[ServerKeyring, ...]:
    """Return the keyrings with the server's part of a ticket.

    Raises:
        ConfigurationError: there are none.
    """
    if not policy.ticket_keys:
        raise ConfigurationError(
            "A ticket needs a key that is not in the database: `Envelope(server_keys="
            "ServerKeyring.from_environment())`, or `pepper=`. ServerKeyring.generate_key() makes the text "
            "of a key."
        )
    return policy.ticket_keys


def _time(name: str, given: Time) -> dt.timedelta:
    """A time that a ticket may last, given as a timedelta or in seconds.

    Raises:
        ConfigurationError: it is no time, or too short or too long.
    """
    seconds: Any = given.total_seconds() if isinstance(given, dt.timedelta) else given
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 1 <= seconds <= LONGEST.total_seconds():  # a NaN is not, either
        raise ConfigurationError(
            f"{name}= is a timedelta or a number of seconds, from one second to {LONGEST.days} days: "
            f"{name}=timedelta(days=14)."
        )
    return dt.timedelta(seconds=seconds)


def _check_label(label: object) -> None:
    if label is not None and (not isinstance(label, str) or len(label) > 255):
        raise ConfigurationError("label= is text of up to 255 characters, or None.")


def _event(name: EventName, owner_class: OwnerClass, place: Place | None, count: int = 1) -> AuditEvent:
    owner_id = None if place is None else place.primary_key
    return AuditEvent(name, owner_class.name, count=count, owner_id=owner_id)
