"""Enrolment: make owners' keys, and flush the owners' rows with their own columns encrypted under these keys.

For one owner or ten thousand, it takes one flush, and one INSERT each for the root keys, data keys and slots
of some thousands of owners.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.preparation import hide_secret, prepare_hidden
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    ConfigurationError,
    EnrollmentError,
    SecretError,
)
from sqlalchemy_envelope.keys.hierarchy import bound_keys, last_epochs, new_keys
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.slots import provider_slot, secret_slot
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import kek_for_new
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.first_grants import note_first_keys
from sqlalchemy_envelope.orm.sharing.following import grant_existing
from sqlalchemy_envelope.orm.sharing.reachable import note_unreachable
from sqlalchemy_envelope.orm.sharing.rollbacks import note_enrolment
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.key_types import mistyped
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from sqlalchemy_envelope.orm.verbs.log_in.strength import prepare_new
from sqlalchemy_envelope.orm.verbs.owner_keys import are_destroyed, how_opened, locate, named, usable_state
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from sqlalchemy_envelope.orm.writing.newcomers import (
    ENROLLING_OWNER,
    Enrolling,
    enrolling_in,
    note_enrolling,
    require_enrolling,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import GivenSecret, HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
    from sqlalchemy_envelope.keys.hierarchy import Epochs
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.open_keys import OpenKeys
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey
    from sqlalchemy_envelope.orm.verbs.steps import Steps


class Asked(NamedTuple):
    """The owners to enroll, each with its secret or None."""

    owners: list[object]
    secrets: list[HiddenSecret | None]
    are_many: bool
    """Whether a list was given, even a list of one owner."""


@emptying
def asked_for(owner: object, secret: GivenSecret | Mapping[Any, GivenSecret] | Asked | None) -> Asked:
    """Return the arguments of `enroll`, with hidden secrets. An owner that is in a list twice enrolls once.

    Raises:
        SecretError: a single secret for a list, or a mapping that does not name exactly the list's owners.
    """
    if isinstance(secret, Asked):
        return secret
    if not isinstance(owner, (list, tuple, set, frozenset)):
        return Asked([owner], [hide_secret(secret)], False)  # type: ignore[arg-type]  # refused as no secret
    owners = list({id(one): one for one in owner}.values())
    if secret is None:
        return Asked(owners, [None] * len(owners), True)
    if not isinstance(secret, Mapping):
        raise SecretError(
            "One secret would open every owner of the list: give each its own, `secret={owner: its secret}`."
        )
    by_owner = {id(one): hide_secret(each) for one, each in secret.items()}
    if by_owner.keys() != {id(one) for one in owners}:
        raise SecretError("`secret=` has to name each owner of the list, and nobody else.")
    return Asked(owners, [by_owner[id(one)] for one in owners], True)


@dataclass(eq=False)
class _New:
    """An owner that gets its first keys."""

    owner: object
    owner_class: OwnerClass
    state: InstanceState[Any]
    prepared: Hidden[bytes] | None = field(repr=False)
    salt: KdfSalt | None = None
    derived: KeyBytes | None = field(default=None, repr=False)
    keys: list[OpenedKey] = field(default_factory=list, repr=False)
    """The root key, then a data key for each scope. They are bound once the owner's primary key is known."""
    place: Place | None = None
    former: Epochs = field(default_factory=dict)
    """The last epoch of each kind of key that the owner had before its keys were destroyed."""


def enroll_steps(
    desk: Desk, profile: KdfProfile, asked: Asked, provider: str | None, *, chosen: bool = True
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.enroll`.

    Args:
        chosen: whether the secret was chosen a moment ago, so that the application judges its strength.
    """
    prepared = [
        None if secret is None else _prepared(desk, secret, owner, chosen=chosen)
        for owner, secret in zip(asked.owners, asked.secrets, strict=True)
    ]
    new = [_newcomer(owner, secret) for owner, secret in zip(asked.owners, prepared, strict=True)]
    for mapper in {one.owner_class.mapper for one in new}:
        require_cascades(desk.session, mapper)
    note_policy(desk.session, desk.policy)
    around = context.unlocked_sessions(desk.session)
    _require_enrollable(desk, new, are_many=asked.are_many, is_opened=_is_opened(desk, provider, around))
    kek = None if provider is None or not new else (yield from kek_for_new(desk, provider))
    try:
        for one in new:
            if one.prepared is not None:
                one.salt = KdfSalt.generate(profile, desk.shares(one.owner_class).new())
                one.derived = yield Derivation(one.prepared, one.salt)
            one.keys = new_keys(one.owner_class.scopes, one.owner_class.indexed, hybrid=desk.policy.hybrid)
        _write(desk, new, kek, are_many=asked.are_many)
        _tell(desk, new, provider)
    except BaseException:
        for key in (key for one in new for key in one.keys):
            key.key.wipe()
        raise
    finally:
        for one in new:
            if one.derived is not None:
                one.derived.wipe()
    return _unlocked(desk, new, around, is_held=kek is not None)


def _prepared(desk: Desk, secret: HiddenSecret, owner: object, *, chosen: bool) -> Hidden[bytes]:
    return prepare_new(desk.policy, secret, owner) if chosen else prepare_hidden(secret, new=True)


def _is_opened(desk: Desk, provider: str | None, around: Sequence[OpenKeys]) -> bool:
    """Tell whether keys without a secret are opened: by a provider, or by an unlocked session with a root
    key."""
    return provider is not None or (bool(around) and not context.only_by_ticket(desk.session))


def _require_enrollable(desk: Desk, new: Sequence[_New], *, are_many: bool, is_opened: bool) -> None:
    """Refuse to make keys that cannot be stored, or that nothing would open.

    Args:
        is_opened: whether a provider opens keys without a secret, or an unlocked session holds them.
    """
    for one in new:
        if one.prepared is None and not is_opened:
            raise _unopened(one.owner_class, by_ticket=context.only_by_ticket(desk.session))
    _refuse_enrolled(desk, new, are_many=are_many)
    for one in new:
        wrong = mistyped(one.owner_class.primary_key, current_key(one.state))
        if wrong is not None:
            raise ConfigurationError(f"This {one.owner_class.name} cannot get keys: {wrong}.")
    _refuse_unenrolled_others(desk.session, {one.state for one in new})


def _unopened(owner_class: OwnerClass, *, by_ticket: bool) -> EnrollmentError:
    """Return the error for an owner whose keys nothing would open."""
    said = f"Nothing would open the keys of this {owner_class.name}: give `secret=` or `provider=`"
    ticket = " A ticket makes no keys: unlock the member with the secret for this." if by_ticket else ""
    if not owner_class.grants_with(None):
        return EnrollmentError(f"{said}.{ticket}")
    return EnrollmentError(
        f"{said}, or enroll it while one of its members-to-be is unlocked and add their grants in the same "
        f"transaction.{ticket}"
    )


def _newcomer(owner: object, prepared: Hidden[bytes] | None) -> _New:
    owner_class = require_owner_class(owner)
    return _New(owner, owner_class, usable_state(owner, owner_class), prepared)


def _refuse_enrolled(desk: Desk, new: Sequence[_New], *, are_many: bool) -> None:
    """Raise AlreadyEnrolledError for the first owner in the database with keys."""
    for store, some in _by_class(desk, [one for one in new if one.state.key is not None]):
        located = {}
        for one in some:
            found = locate(desk, one.owner, store)
            located[found.place.owner] = found
        there: dict[OwnerId, list[OwnedKey]] = {}
        for row in store.load([one.place.primary_key for one in located.values()]):
            there.setdefault(row.owner, []).append(row)
        for owner, rows in there.items():
            if not are_destroyed(rows):
                told = how_opened(located[owner], [row.stored for row in rows])
                raise AlreadyEnrolledError(f"{named(located[owner], are_many)} has keys already: {told}.")
        for one in some:
            former = there.get(locate(desk, one.owner, store).place.owner, ())
            one.former = last_epochs(row.stored for row in former)


def _by_class(desk: Desk, new: Collection[_New]) -> list[tuple[KeyStore, list[_New]]]:
    """Group owners by class. The classes have a fixed order, so that transactions do not deadlock."""
    classes = sorted({one.owner_class for one in new}, key=lambda one: one.label)
    return [(desk.keys(of), [one for one in new if one.owner_class is of]) for of in classes]


def _refuse_unenrolled_others(session: Session, states: Collection[InstanceState[Any]]) -> None:
    """Refuse other new owners before the flush: a failed flush would roll back the caller's transaction."""
    for instance in session.new:
        other: InstanceState[object] = inspect(instance)
        if other not in states and any(a.encrypted.path.is_self for a in plan_of_mapper(other.mapper)):
            require_enrolling(other)


def _write(desk: Desk, new: Sequence[_New], kek: ProviderKek | None, *, are_many: bool) -> None:
    # Before any row of the owners: if the second database is away, nothing is written at all.
    for owner_class in {one.owner_class for one in new}:
        salts = [one.salt for one in new if one.owner_class is owner_class]
        desk.shares(owner_class).store(
            [salt.share for salt in salts if salt is not None and salt.share is not None]
        )
    # Owners in the database get their keys first: another transaction may enroll such an owner at this
    # moment, and no value may be written under keys that are not stored. No other transaction knows a new
    # owner.
    there = {one: None for one in new if _has_place(one.state)}
    others = [one for one in new if one not in there]
    alone = len(new) == len(there) == 1  # if this owner is lost, nothing was written
    _store(desk, there, kek, are_many=are_many, alone=alone)
    if new:
        _flush_owners(desk.session, new)
    _store(desk, others, kek, are_many=are_many, alone=False, are_new=True)
    with desk.session.no_autoflush:
        grant_existing(desk, {one.place: one.keys for one in there if one.place is not None})


def _flush_owners(session: Session, new: Sequence[_New]) -> None:
    """Write the owners' rows, with their own encrypted columns under keys that may not be stored yet."""
    try:
        for one in new:
            keyring = Keyring()
            keyring.add(ENROLLING_OWNER, one.keys[1:])
            note_enrolling(session, Enrolling(one.state, one.owner_class, keyring))
            session.add(one.owner)
        session.flush()
    finally:
        for one in new:
            enrolling_in(session).pop(one.state, None)


def _has_place(state: InstanceState[object]) -> bool:
    """Tell whether an owner is in the database and keeps its primary key in the coming flush."""
    names = (state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key)
    return state.key is not None and not any(name in state.committed_state for name in names)


def _store(
    desk: Desk,
    new: Collection[_New],
    kek: ProviderKek | None,
    *,
    are_many: bool,
    alone: bool,
    are_new: bool = False,
) -> None:
    """Store owners' first keys, with the slots that open them.

    Raises:
        AlreadyEnrolledError: another transaction stored keys for an owner, or an owner has the primary key of
            a former owner whose keys are still there.
    """
    for store, some in _by_class(desk, new):
        rows, owners = [], []
        with desk.session.no_autoflush:
            for one in some:
                located = locate(desk, one.owner, store)
                one.place = located.place
                one.keys = bound_keys(one.keys, located.reference, one.former)
                owners.append(located)
                stored = [key.stored for key in one.keys]
                rows.append((one.place.primary_key, stored, _slots(desk.policy, one, kek)))
        made = store.insert_first_of(rows)
        written = [one.keys[0].stored.key_id in made for one in some]
        lost = [located for located, is_there in zip(owners, written, strict=True) if not is_there]
        if lost:
            if not alone:
                desk.session.rollback()  # the others have keys, or its own columns were written under these
            if are_new:
                raise AlreadyEnrolledError(
                    f"{named(lost[0], are_many)} has the primary key of an owner whose keys are still there: "
                    "delete that one in a flush of its own."
                )
            raise AlreadyEnrolledError(
                f"{named(lost[0], are_many)} was enrolled by somebody else at the same moment; roll back and "
                "unlock it."
            )


def _tell(desk: Desk, new: Collection[_New], provider: str | None) -> None:
    """Emit an event for each class of these owners."""
    places: dict[OwnerClass, list[Place]] = {}
    for one in new:
        if one.place is not None:
            places.setdefault(one.owner_class, []).append(one.place)
    for owner_class, some in places.items():
        owner_id = some[0].primary_key if len(some) == 1 else None
        desk.emit(AuditEvent("enrolled", owner_class.name, len(some), provider=provider, owner_id=owner_id))


def _slots(policy: Policy, new: _New, kek: ProviderKek | None) -> list[StoredSlot]:
    slots = []
    if new.derived is not None and new.salt is not None:
        slots.append(secret_slot(new.keys[0], new.derived, new.salt))
    if kek is not None:
        slots.append(provider_slot(new.keys[0], kek))
    return [*slots, *policy.first_slots(new.keys[0])]


def _unlocked(
    desk: Desk,
    new: Sequence[_New],
    around: Sequence[OpenKeys],
    *,
    is_held: bool,
) -> UnlockedSession:
    """Return the unlocked session of these owners.

    An unlocked session that enrolls an owner without a secret holds the new keys too, until it ends: somebody
    creates a group, and then grants its key.
    """
    keyring, places, unreachable = Keyring(), [], []
    for one in new:
        assert one.place is not None  # noqa: S101 - each was stored
        places.append(one.place)
        keyring.add(one.place.owner, one.keys)
        for other in around:
            other.make_way(desk.session, one.place)
    unlocked = UnlockedSession(desk.session, desk.policy, places, keyring)
    # A server opens owners with a slot of its provider on demand, as it opens any other owner.
    holders = around if not is_held else [one for one in around if not one.on_demand]
    for one, place in zip(new, places, strict=True):
        note_enrolment(desk.session, place.owner, unlocked)
        if one.prepared is None and holders:
            holders[0].admit(place, keyring.copy_of(place.owner))
            note_enrolment(desk.session, place.owner, holders[0])
        if one.prepared is None and not is_held:
            unreachable.append(place)
    note_first_keys(desk.session, places)
    note_unreachable(desk, unreachable)
    return unlocked
