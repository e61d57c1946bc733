"""Why an encrypted attribute does not open: what is missing on the way to its key, since when, and who can
help.

The search only reads. It locks nothing and needs no key, because the rows of keys and grants tell enough. If
keys are unlocked, it tries them first, in case the value opens after all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.exceptions import (
    DecryptionError,
    EnvelopeError,
    FormatError,
    KeyNotFoundError,
    LockReason,
    OwnerMismatchError,
    TamperedKeyError,
)
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names, reference_in
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.reading.opener import open_bytes
from sqlalchemy_envelope.orm.sharing.rights import GrantStanding, KindStore
from sqlalchemy_envelope.orm.tables.followed import leader_of
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled
from sqlalchemy_envelope.orm.verbs.status.asked_values import asked_for, values_of
from sqlalchemy_envelope.orm.verbs.status.grant_status import OwnerName, statuses_of
from sqlalchemy_envelope.orm.verbs.status.key_reach import active_roots, closure, ways_to
from sqlalchemy_envelope.orm.verbs.status.lock_answer import WhyLocked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.sharing.rights import Right
    from sqlalchemy_envelope.orm.tables.owners import Place
    from sqlalchemy_envelope.orm.verbs.status.asked_values import AskedValue
    from sqlalchemy_envelope.orm.verbs.status.grant_status import GrantStatus
    from sqlalchemy_envelope.orm.verbs.status.key_reach import Way

_MOST_NAMED = 3
"""The highest number of unlocked owners that a message names."""


def why_locked(
    desk: Desk, instance: object, attribute: str | None, reader: object | None
) -> WhyLocked | None:
    """Return why an attribute, or the first locked attribute of several, does not open; None if all open."""
    note_policy(desk.session, desk.policy)
    state, plan = asked_for(instance, attribute)
    with desk.session.no_autoflush:
        search = _Search(desk, reader)
        reasons = (search.why(value) for value in values_of(desk.session, state, plan))
        return next((why for why in reasons if why is not None), None)


class _Search:
    """Finds the reasons for the values of one object. The keys of each owner are loaded once.

    Args:
        reader: the owner who should be able to read; left out, the owners who are unlocked.
    """

    def __init__(self, desk: Desk, reader: object | None) -> None:
        self._desk = desk
        self._session = desk.session
        self._names = Names(desk.session)
        self._reader = None if reader is None else locate_enrolled(desk, reader).place
        self._loaded: dict[Place, tuple[list[StoredKey], EnvelopeError | None]] = {}

    def why(self, value: AskedValue) -> WhyLocked | None:
        """Return the reason why a value does not open, or None if it opens."""
        try:
            if value.stored is not None and self._opens(value):
                return None
        except (
            DecryptionError,
            FormatError,
            TamperedKeyError,
            OwnerMismatchError,
            KeyNotFoundError,
        ) as error:
            return _because(value, LockReason.UNREADABLE, f"cannot be read: {error.args[0]}")
        if value.owner is None:
            said = f"is locked: its row leads to no owner, since {value.why_none}."
            return _because(value, LockReason.NO_OWNER, said)
        return self._why_of_keys(value, value.owner) or self._why_of_reader(value, value.owner)

    def _opens(self, value: AskedValue) -> bool:
        """Tell whether the stored value opens with the unlocked keys.

        Raises:
            EnvelopeError: the bytes are not what was written there.
        """
        field = value.attribute.type.field
        check_value(value.stored, field.label)
        if self._reader is not None:
            return False
        here = context.unlocked_sessions(self._session)
        header = bytes(value.stored[:HEADER_SIZE])
        for unlocked in here:
            if value.owner is None:
                unlocked.find_others(self._session)
            for owner_class in value.attribute.encrypted.path.owner_classes:
                unlocked.prepare_read(self._session, owner_class, {header: 1})
        owner = context.only_owner(here) if value.owner is None else value.owner.owner
        holder = context.owner_of(self._session, header)
        # A copy of a database has the same keys, but an owner unlocked there is no owner in this database.
        if owner is None or (
            holder != owner and holder is not None and reference_in(holder) == reference_in(owner)
        ):
            return False
        return open_bytes(self._session, field, value.stored, owner, value.reference) is not None

    def _keys(self, place: Place) -> tuple[list[StoredKey], EnvelopeError | None]:
        """Return an owner's keys, and the error if they must not be used."""
        if place not in self._loaded:
            rows = self._desk.keys(place.owner_class).load([place.primary_key])
            error = next((row.error for row in rows if row.error is not None), None)
            self._loaded[place] = [row.stored for row in rows], error
        return self._loaded[place]

    def _why_of_keys(self, value: AskedValue, place: Place) -> WhyLocked | None:
        """Return the reason in the owner's keys that keeps everybody from reading the value, if any."""
        (keys, error), owner = self._keys(place), _name(place)
        if error is not None:
            return _because(value, LockReason.UNREADABLE, f"cannot be read: {error.args[0]}")
        if not keys:
            said = f"is locked: {owner} has no keys. Make them: `envelope.enroll(session, owner, ...)`."
            if not self._desk.keys(place.owner_class).is_there(place.primary_key):
                said = f"is locked: its row names {owner}, which is not in the database."
            return _because(value, LockReason.NOT_ENROLLED, said)
        if value.key_id is None:
            return None
        key = next((one for one in keys if one.key_id == value.key_id), None)
        if key is not None and key.state is not KeyState.DESTROYED:
            return None
        if key is None and self._is_stored(value):
            said = f"cannot be read: it is under the key of another owner than {owner}: it was moved here."
            return _because(value, LockReason.UNREADABLE, said)
        gone = "is destroyed" if key is not None else "is in the database no more"
        said = f"cannot be read again: the key of {owner} that it was written under {gone}."
        return _because(value, LockReason.SHREDDED, said)

    def _is_stored(self, value: AskedValue) -> bool:
        """Tell whether any possible owner of the value has its key."""
        assert value.key_id is not None  # noqa: S101 - asked before
        classes = value.attribute.encrypted.path.owner_classes
        stores = (KindStore(self._session, one, self._desk.policy.seals) for one in classes)
        return any(store.is_stored(value.key_id) for store in stores)

    def _why_of_reader(self, value: AskedValue, place: Place) -> WhyLocked | None:
        """Return the reason that keeps the reader, or the unlocked owners, from reading the value, if any."""
        keys, _ = self._keys(place)
        if self._reader is not None:
            mine, _ = self._keys(self._reader)
            held = {self._reader: closure(mine, active_roots(mine))}
        else:
            held, elsewhere = self._held(place)
            if not held:
                return self._why_nobody(value, place, elsewhere)
        wanted, here = _key_of(value, keys), held.get(place, frozenset())
        ways = ways_to(self._desk, self._names, held, place, value.scope)
        if not any(wanted in closure(keys, opens) for opens in (here, *(way.opens for way in ways))):
            return self._why_no_way(value, place, ways, held)
        if self._reader is not None or value.stored is None:
            return None
        said = "is locked: its key was granted or made after the unlock here. Unlock again."
        if context.only_by_ticket(self._session):
            said = (
                "is locked: its key was granted or made after the ticket here was issued. Log in again: "
                "unlock with the secret, and issue a new ticket."
            )
        return _because(value, LockReason.UNLOCKED_EARLIER, said)

    def _why_no_way(
        self, value: AskedValue, place: Place, ways: Sequence[Way], held: Mapping[Place, frozenset[KeyId]]
    ) -> WhyLocked:
        """Return the reason from the way that leads furthest: the place where it ends."""
        keys, _ = self._keys(place)
        who = " and ".join(sorted(map(_name, held))[:_MOST_NAMED])
        grants = statuses_of(self._desk, [way.blocked or way.right for way in ways])
        opens = closure(keys, held.get(place, frozenset()).union(*(way.opens for way in ways)))
        end = _End(value, place, keys, who, ways, grants, opens)
        return end.pending() or end.other_epoch() or end.void() or end.no_right()

    def _held(self, target: Place) -> tuple[dict[Place, frozenset[KeyId]], bool]:
        """Return the unlocked owners in this database with their open keys.

        The second value tells whether an owner is unlocked in another database.
        """
        held: dict[Place, frozenset[KeyId]] = {}
        elsewhere = False
        for unlocked in self._reading():
            unlocked.follow_owners(self._session, target.owner_class, [target.primary_key])
            keyring = unlocked.keyring
            for place in list(unlocked.places.values()):
                roots = [key for key in keyring.keys_of(place.owner) if key.purpose is Purpose.ROOT]
                opened = _open_among(unlocked, roots)
                if self._names.where(place.owner_class) != place.where:
                    elsewhere = True
                elif opened:
                    held[place] = held.get(place, frozenset()) | opened
            opened = _open_among(unlocked, keyring.keys_of(target.owner))
            if opened:
                held[target] = held.get(target, frozenset()) | opened
        return held, elsewhere

    def _reading(self) -> Iterator[UnlockedSession]:
        """Yield the unlocked sessions, and sessions around them, that hold owners' keys to read with."""
        here: Any = context.unlocked_sessions(self._session)
        for innermost in here:
            yield from (unlocked for unlocked in innermost.outward() if not unlocked.on_demand)

    def _why_nobody(self, value: AskedValue, place: Place, elsewhere: bool) -> WhyLocked:
        """Return the reason if no owner in this database is unlocked."""
        if elsewhere:
            said = (
                "is locked: who is unlocked here is in another database or schema than this session's. If "
                "two engines reach one database, give it one name: `Envelope(realm='app')`."
            )
            return _because(value, LockReason.OTHER_DATABASE, said)
        here = context.unlocked_sessions(self._session)
        if any(one.enrolls for one in here):
            keys, _ = self._keys(place)
            slots = self._desk.keys(place.owner_class).load_slots(active_roots(keys), SlotKind.PROVIDER)
            names = sorted({slot.provider_name for slot in slots})
            by = " and ".join(map(repr, names)) or "no provider"
            serving = next(one.provider for one in here if one.enrolls)
            said = (
                f"is locked: server mode is on with the provider {serving!r}. The newest key of "
                f"{_name(place)} has slots of {by}, and no grant leads to it from an owner with a slot of "
                f"{serving!r}. Unlock an owner with the key, and call `envelope.add_provider(session, owner, "
                f"provider={serving!r})`."
            )
            return _because(value, LockReason.NO_RIGHT, said)
        error = context.locked(value.name, self._session, place.owner_class, value.scope)
        said = error.args[0].removeprefix(value.name).lstrip()
        return _because(value, error.reason or LockReason.NOTHING_UNLOCKED, said)


class _End(NamedTuple):
    """The ends of the ways to a value's key: each way ends at a row, and no way leads to the key.

    Attributes:
        keys: the keys of the value's owner.
        who: the names of the owners whose keys are held.
        ways, grants: the ways, and the status of the row at the end of each way.
        opens: the ids of the owner's keys that are open nevertheless.
    """

    value: AskedValue
    place: Place
    keys: Sequence[StoredKey]
    who: str
    ways: Sequence[Way]
    grants: Sequence[GrantStatus]
    opens: frozenset[KeyId]

    def pending(self) -> WhyLocked | None:
        """Return the reason if a row gives a right to the key, and the key still has to be sealed."""
        value, wanted = self.value, _key_of(self.value, self.keys)
        for way, grant in zip(self.ways, self.grants, strict=True):
            is_pending = grant.standing is GrantStanding.PENDING
            if is_pending and _would_open(way, self.keys, wanted, value.scope):
                said = f"is locked: {_what_waits(grant)} {_how_fulfilled(grant)}"
                return _because(value, LockReason.PENDING, said, grant=grant)
        return None

    def other_epoch(self) -> WhyLocked | None:
        """Return the reason if a row gives, or gave, a right to the owner's keys of other epochs."""
        there = next((one for one in self.grants if one.standing is not GrantStanding.VOID), None)
        if not self.opens and there is None:
            return None
        epoch, epochs = _epochs(self.keys, _key_of(self.value, self.keys), self.opens)
        holds = f"those of epoch {', '.join(map(str, epochs))}" if epochs else "none of its kind"
        right = "no row gives a right any more" if there is None else "its row gives no right to this one"
        said = (
            f"is locked: its key is of epoch {epoch} of {_name(self.place)}. {self.who} holds {holds}, and "
            f"{right}."
        )
        return _because(self.value, LockReason.OTHER_EPOCH, said, grant=there, epoch=epoch, epochs=epochs)

    def void(self) -> WhyLocked | None:
        """Return the reason if there is a row, and it grants nothing."""
        if not self.grants:
            return None
        said = (
            f"is locked: {self.grants[0]}. No flush added that row, or it named somebody else when it was "
            f"added. {_how_cured(self.ways[0].blocked or self.ways[0].right)}"
        )
        return _because(self.value, LockReason.VOID, said, grant=self.grants[0])

    def no_right(self) -> WhyLocked:
        """Return the reason if there is no row."""
        owner = _name(self.place)
        classes = [one for one in self.place.owner_class.grants_of if one.scope in (None, self.value.scope)]
        names = " or ".join(sorted({one.mapper.class_.__name__ for one in classes}))
        said = f"is locked: no {names} gives the key of {owner} to {self.who}, directly or through others."
        if not classes:
            said = f"is locked: {owner} shares its key with nobody, and {self.who} is another owner."
        return _because(self.value, LockReason.NO_RIGHT, said)


def _because(value: AskedValue, reason: LockReason, said: str, **more: Any) -> WhyLocked:
    owner = None if value.owner is None else _owner_name(value.owner)
    return WhyLocked(value.name, reason, f"{value.name} {said}", owner, value.scope, **more)


def _owner_name(place: Place) -> OwnerName:
    return OwnerName(place.owner_class.name, tuple(place.primary_key))


def _name(place: Place) -> str:
    return str(_owner_name(place))


def _open_among(unlocked: UnlockedSession, keys: Sequence[StoredKey]) -> frozenset[KeyId]:
    """Return the ids of the keys that an unlocked session can open."""
    found = set()
    for key in keys:
        try:
            if unlocked.keyring.leads_to(key.key_id):
                found.add(key.key_id)
        except EnvelopeError:
            continue  # refused: it opens nothing
    return frozenset(found)


def _key_of(value: AskedValue, keys: Sequence[StoredKey]) -> KeyId | None:
    """Return the key that encrypts a value, or would encrypt it."""
    return value.key_id or _active(keys, value.scope) or next(iter(active_roots(keys)), None)


def _active(keys: Sequence[StoredKey], scope: str) -> KeyId | None:
    """The active data key of a scope."""
    mine = (one for one in keys if one.purpose is Purpose.DATA and one.scope == scope)
    return next((one.key_id for one in mine if one.state is KeyState.ACTIVE), None)


def _would_open(way: Way, keys: Sequence[StoredKey], wanted: KeyId | None, scope: str) -> bool:
    """Tell whether the pending grant on a way opens the key, once it is fulfilled."""
    if way.blocked not in (None, way.right) or way.right.grant.history == "shared":
        return True
    due = {one.key_id for one in way.right.wraps if one.is_pending}
    whole = way.right.grant.scope is None
    due.update(active_roots(keys) if whole else filter(None, [_active(keys, scope)]))
    return wanted in closure(keys, due)


def _how_cured(right: Right) -> str:
    leader = leader_of(right.grant)
    if leader is None:
        return "Delete it, and add it as an object."
    name = leader.mapper.class_.__name__
    return f"Delete the {name} that it follows, and add that as an object."


def _what_waits(grant: GrantStatus) -> str:
    row = f"{grant.grant} {', '.join(map(str, grant.row))}"
    what = f"the scope {grant.scope!r} of {grant.of}" if grant.scope else f"{grant.of}"
    since = "" if grant.since is None else f" since {grant.since:%Y-%m-%d %H:%M}"
    return f"{row} gives {grant.to} the key of {what}, and has been pending{since}."


def _how_fulfilled(grant: GrantStatus) -> str:
    if not grant.is_enrolled:
        return (
            f"Give {grant.to} keys first: `envelope.enroll(session, owner, ...)`. The next write of an owner "
            "with the key then seals it."
        )
    ways = []
    if grant.holders:
        ways.append(f"unlock {' or '.join(map(str, grant.holders[:_MOST_NAMED]))}")
    if grant.providers:
        ways.append(f"open {grant.of} by provider {' or '.join(map(repr, grant.providers))}")
    if not ways:
        return (
            "Nobody holds that key any more, and nothing can seal it. Restore the rows of keys and grants "
            "from a backup, or give up the values under that key."
        )
    way = " or ".join(ways)
    return f"To seal the key, {way}, and call `envelope.settle(session)`; the next write does it too."


def _epochs(
    keys: Sequence[StoredKey], wanted: KeyId | None, opens: frozenset[KeyId]
) -> tuple[int | None, tuple[int, ...]]:
    """Return the epoch of a key, and the epochs of open keys of the same kind.

    The epoch numbers of write keys cannot be compared. For a write key, use the epoch of its root key.
    """
    there = {key.key_id: key for key in keys}
    key = there.get(wanted) if wanted is not None else None
    if key is not None and key.purpose is Purpose.WRITE and key.wrapping_key_id is not None:
        key = there.get(key.wrapping_key_id)
    if key is None:
        return None, ()
    same = {
        one.epoch
        for one in keys
        if one.key_id in opens and (one.purpose, one.scope) == (key.purpose, key.scope)
    }
    return key.epoch, tuple(sorted(same))
