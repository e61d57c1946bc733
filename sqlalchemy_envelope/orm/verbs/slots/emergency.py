"""Emergency access: allowed by an owner, requested by a person, cancelled by the owner, or opened."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EmergencyError,
    LockedError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.emergency import arranged, check_share, dated, opened_kek
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import new_slot
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.locking import hold_slots
from sqlalchemy_envelope.orm.sharing.reachable import note_slots_removed
from sqlalchemy_envelope.orm.sharing.roots import open_with_kek
from sqlalchemy_envelope.orm.tables.emergency_rows import EmergencyRows, time_of
from sqlalchemy_envelope.orm.verbs.log_in.unlock import unlocked_owner
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_root, opened_roots, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.steps import wiping

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.emergency import StoredEmergency
    from sqlalchemy_envelope.keys.model import KeyId, StoredSlot
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.tables.owners import EmergencyClass
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


_SHORTEST, _LONGEST = dt.timedelta(seconds=1), dt.timedelta(days=3653)


def now() -> dt.datetime:
    """The time by this server's clock."""
    return dt.datetime.now(dt.UTC)


class _Pair(NamedTuple):
    """An owner, a person who may help, and the rows that say so."""

    owner: LocatedOwner
    person: LocatedOwner
    rows: EmergencyRows
    server_keys: ServerKeyring

    def load(self) -> StoredEmergency:
        """The row of the two.

        Raises:
            EmergencyError: there is none.
            TamperedKeyError: it is not as the application wrote it.
        """
        found = self.rows.load(self.owner.place.primary_key, self.person.place.primary_key)
        if not found:
            raise EmergencyError(
                f"This {self.owner.name} has not allowed this {self.person.name} to help in an emergency, or "
                "has taken it back."
            )
        row = replace(found[0].stored, owner=self.owner.reference, person=self.person.reference)
        check_share(self.server_keys, row)  # before anything is said of its dates
        return row

    def write_date(self, row: StoredEmergency, requested_at: int | None) -> None:
        """Write the date of a request, or none."""
        keys = self.owner.place.primary_key, self.person.place.primary_key
        if not self.rows.replace(*keys, row, dated(self.server_keys, row, requested_at)):
            raise TransactionConflictError(
                "This emergency access was changed by somebody else at the same moment. Run the transaction "
                "again."
            )

    def tell(self, name: EventName, count: int = 1) -> None:
        """Emit an event, with the person as the reason."""
        place = self.person.place
        reason = f"{self.person.name} {', '.join(map(str, place.primary_key))}"
        owner_id, kind = self.owner.place.primary_key, SlotKind.EMERGENCY.value
        event = AuditEvent(name, self.owner.name, count, reason, owner_id=owner_id, slot_kind=kind)
        self.owner.desk.emit(event)


def _pair(desk: Desk, owner: object, person: object) -> _Pair:
    server_keys = desk.policy.seals.server_keys
    if server_keys is None:
        raise ConfigurationError(
            "Emergency access needs server keys, which keep the waiting time: Envelope(server_keys=...)."
        )
    located, helper = locate_enrolled(desk, owner), locate_enrolled(desk, person)
    note_policy(desk.session, desk.policy)
    if located.place == helper.place:
        raise ConfigurationError(f"A {located.name} cannot be the person to help the same {located.name}.")
    rows = EmergencyRows(desk.session, _class(located, helper), desk.policy.seals)
    return _Pair(located, helper, rows, server_keys)


def _class(owner: LocatedOwner, person: LocatedOwner) -> EmergencyClass:
    to = person.place.owner_class
    found = [one for one in owner.place.owner_class.emergencies if one.to.owner_class is to]
    if len(found) == 1:
        return found[0]
    said = "several classes say" if found else "no class says"
    raise ConfigurationError(
        f"{said.capitalize()} how a {person.name} helps a {owner.name}: declare one `class "
        f"{owner.name}Emergency(EmergencyAccess, Base, of='owner_id', to='person_id')`, with foreign keys to "
        "both."
    )


def allow_emergency(desk: Desk, owner: object, person: object, wait: dt.timedelta) -> None:
    """Let a person open an owner who is open here, once the person has asked and the time is over."""
    if not isinstance(wait, dt.timedelta) or not _SHORTEST <= wait <= _LONGEST:
        raise ConfigurationError("The waiting time is one second to ten years: wait=timedelta(days=7).")
    pair = _pair(desk, owner, person)
    located = pair.owner
    settle_owner(located)
    opened_roots(located)  # refused before anything is locked
    hold_slots(desk, located.place)
    roots = opened_roots(located)
    persons_root = active_root(pair.person, load_keys(pair.person))
    _take_back(pair)
    row, kek = arranged(
        pair.server_keys, located.reference, pair.person.reference, persons_root, int(wait.total_seconds())
    )
    label = f"{pair.person.name} {', '.join(map(str, pair.person.place.primary_key))}"[:255]
    with wiping(kek):
        slots = [new_slot(root, kek, SlotKind.EMERGENCY, label=label, unacknowledged=True) for root in roots]
    located.store.insert_slots(slots)
    pair.rows.insert(located.place.primary_key, pair.person.place.primary_key, row)
    pair.tell("emergency_allowed")


def request_emergency(desk: Desk, owner: object, person: object) -> dt.datetime:
    """Ask, as a person who is open here; returns when the waiting time is over."""
    pair = _pair(desk, owner, person)
    opened_root(pair.person, active_root(pair.person, load_keys(pair.person)))
    row = pair.load()
    if row.requested_at is None:
        requested_at = int(now().timestamp())
        pair.write_date(row, requested_at)
        pair.tell("emergency_requested")
    else:
        requested_at = row.requested_at  # asking again does not begin the time anew
    return time_of(requested_at + row.wait)


def cancel_emergency(desk: Desk, owner: object, person: object) -> None:
    """Cancel a person's request: the person may ask again, and then waits again."""
    pair = _pair(desk, owner, person)
    opened_root(pair.owner, active_root(pair.owner, load_keys(pair.owner)))
    row = pair.load()
    if row.requested_at is not None:
        pair.write_date(row, None)
        pair.tell("emergency_cancelled")


def refuse_emergency(desk: Desk, owner: object, person: object) -> None:
    """Take back what `allow_emergency` gave: the person cannot ask any more."""
    pair = _pair(desk, owner, person)
    located = pair.owner
    settle_owner(located)
    opened_root(located, active_root(located, load_keys(located)))
    hold_slots(desk, located.place)
    if _take_back(pair):
        start_epoch(desk, located.place, desk.keyring_for(located.place.owner))
        note_slots_removed(desk, located.place)
        pair.tell("emergency_cancelled")


def _take_back(pair: _Pair) -> bool:
    """Delete the row of the two, and the slots that it opens."""
    owner_key, person_key = pair.owner.place.primary_key, pair.person.place.primary_key
    rows = pair.rows.load(owner_key, person_key)
    if not rows:
        return False
    public_keys = {one.stored.public_key for one in rows}
    slots = [slot for slot in _slots(pair.owner) if slot.recipient_public_key in public_keys]
    pair.rows.delete(owner_key, person_key)
    if slots:
        pair.owner.store.delete_slots(slots)
    return True


def unlock_for_person_steps(desk: Desk, owner: object, person: object) -> Steps[UnlockedSession]:
    """The steps of `Envelope.unlock` in an emergency."""
    yield from ()  # nothing slow: a generator as the steps of every unlock
    pair = _pair(desk, owner, person)
    located, row = pair.owner, pair.load()
    _require_time(row)
    keys = load_keys(located)
    root = active_root(located, keys)
    loaded = located.store.load_slots(_roots(located), SlotKind.EMERGENCY, or_new=True, closed_too=True)
    mine = [
        slot
        for slot in loaded
        if slot.kind is SlotKind.EMERGENCY and slot.recipient_public_key == row.public_key
    ]
    slot = next((slot for slot in mine if slot.key_id == root.key_id), None)
    if slot is None:
        raise EmergencyError(f"This {located.name} has taken this person's key slot back.")
    kek = opened_kek(pair.server_keys, row, _persons_key(pair, row.person_key_id))
    with wiping(kek):
        found = open_with_kek(desk.policy, keys, root, slot, mine, kek)
        pair.tell("emergency_opened")
        return unlocked_owner(desk, located, keys, found, new=loaded)


def _persons_key(pair: _Pair, key_id: KeyId) -> KeyBytes:
    """The person's root key that the share is sealed to, which is open here."""
    session, place = pair.person.desk.session, pair.person.place
    for unlocked in context.unlocked_sessions(session):
        keyring = unlocked.keyring_for(place.owner, session)
        opened = None if keyring is None else keyring.open(key_id)
        if opened is not None:
            return opened.key
    # Says why, if the person is not open at all.
    opened_root(pair.person, active_root(pair.person, load_keys(pair.person)))
    raise LockedError(
        f"The share of this {pair.person.name} is sealed to a former root key, which is not open here. Ask "
        f"the {pair.owner.name} to allow it again."
    )


def _require_time(row: StoredEmergency) -> None:
    """Require that the waiting time is over, by this server's clock.

    Raises:
        EmergencyError: nobody has asked, the time is not over, or the clock went back.
    """
    if row.requested_at is None:
        raise EmergencyError("Nobody has asked for this emergency access yet: call request_emergency().")
    time, ends = int(now().timestamp()), row.requested_at + row.wait
    if time < row.requested_at:
        raise EmergencyError(
            f"The clock of this server says {_said(time)}, which is before the request of "
            f"{_said(row.requested_at)}. Set the clock right: while it is wrong, no waiting time is over."
        )
    if time < ends:
        raise EmergencyError(
            f"The waiting time is over at {_said(ends)}, unless the owner cancels the request before."
        )


def _said(seconds: int) -> str:
    return f"{time_of(seconds):%Y-%m-%d %H:%M:%S} UTC"


def _slots(located: LocatedOwner) -> list[StoredSlot]:
    return located.store.load_slots(_roots(located), SlotKind.EMERGENCY)


def _roots(located: LocatedOwner) -> list[KeyId]:
    return [key.key_id for key in load_keys(located) if key.purpose is Purpose.ROOT]
