"""Enrolment: an owner's keys are made, and its row is flushed with its own encrypted columns under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import inspect

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import AlreadyEnrolledError, ConfigurationError, EnrollmentError
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import OpenedKey
from sqlalchemy_envelope.keys.slots import provider_slot, secret_slot
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.rollbacks import note_enrolment, note_unreachable
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.key_types import mistyped
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from sqlalchemy_envelope.orm.verbs.owner_keys import how_opened, locate, usable_state
from sqlalchemy_envelope.orm.verbs.steps import Derivation, Outside
from sqlalchemy_envelope.orm.writing.flushes import ENROLLING_OWNER, Enrolling, enrolling, require_enrolling

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner
    from sqlalchemy_envelope.orm.verbs.steps import Steps


def enroll_steps(
    session: Session,
    policy: Policy,
    profile: KdfProfile,
    owner: object,
    secret: HiddenSecret | None,
    provider: str | None,
) -> Steps[UnlockedSession]:
    """The steps of `Envelope.enroll`."""
    prepared = None if secret is None else prepare_hidden(secret, new=True)
    owner_class = require_owner_class(owner)
    state = usable_state(owner, owner_class)
    require_cascades(session, owner_class.mapper)
    note_policy(session, policy)
    around = context.unlocked_sessions(session)
    if secret is None and provider is None and not around:
        raise EnrollmentError(
            f"Nothing would open the keys of this {owner_class.name}: give `secret=` or `provider=`, or "
            "enroll it while one of its members-to-be is unlocked and add their grants in the same "
            "transaction."
        )
    located = None if state.key is None else locate(session, owner, policy)
    rows = [] if located is None else located.load()
    if located is not None and rows:
        told = how_opened(located, [row.stored for row in rows])
        raise AlreadyEnrolledError(f"This {owner_class.name} has keys already: {told}.")
    wrong = mistyped(owner_class.primary_key, current_key(state))
    if wrong is not None:
        raise ConfigurationError(f"This {owner_class.name} cannot get keys: {wrong}.")
    _refuse_unenrolled_others(session, state)
    kek = None if provider is None else (yield from kek_for_new(session, policy, provider))
    salt = KdfSalt.generate(profile)
    derived: KeyBytes | None = None if prepared is None else (yield Derivation(prepared, salt))

    made = new_keys(owner_class.scopes, hybrid=policy.hybrid)
    # Who is there already gets its keys first: others may enroll it at this moment, and nothing of it may be
    # written under keys that are not stored. Of a new one, nobody else knows.
    keys_first = _has_place(state)
    try:
        if not keys_first:
            _flush_owner(session, owner, state, owner_class, made[1:])
        with session.no_autoflush:
            located = locate(session, owner, policy)
            opened = bound_keys(made, located.reference)
        slots: list[StoredSlot] = []
        if derived is not None:
            slots.append(secret_slot(opened[0], derived, salt))
        if kek is not None:
            slots.append(provider_slot(opened[0], kek))
        if not _insert(located, opened, slots):
            if not keys_first:
                session.rollback()  # its own columns were written under these keys
            raise AlreadyEnrolledError(
                f"This {owner_class.name} was enrolled by somebody else at the same moment; roll back and "
                "unlock it."
            )
        if keys_first:
            _flush_owner(session, owner, state, owner_class, made[1:])
    except BaseException:
        for one in made:
            one.key.wipe()
        raise
    finally:
        if derived is not None:
            derived.wipe()
    keyring = Keyring()
    keyring.add(located.place.owner, opened)
    unlocked = UnlockedSession(session, policy, [located.place], keyring)
    note_enrolment(session, located.place.owner, unlocked)
    if not slots:
        around[0].admit(located.place, keyring.copy_of(located.place.owner))
        note_enrolment(session, located.place.owner, around[0])
        note_unreachable(session, policy, located.place)
    return unlocked


def kek_for_new(session: Session, policy: Policy, provider: str) -> Steps[ProviderKek]:
    """The KEK that new slots of a provider are under; wrapped by it now if there is none yet."""
    providers = policy.require_providers()
    ready = providers.ready_for_new(provider)
    if ready is not None and not providers.needs_new(provider):
        return ready
    if not providers.is_local(provider):
        require_no_locks(session, provider)
    made: ProviderKek = yield Outside(lambda: providers.wrap_new(provider))
    return made


def _refuse_unenrolled_others(session: Session, state: InstanceState[object]) -> None:
    """Before the flush, and not in it: a failed flush would roll the caller's transaction back."""
    for instance in session.new:
        other: InstanceState[object] = inspect(instance)
        if other is not state and any(a.encrypted.path.is_self for a in plan_of_mapper(other.mapper)):
            require_enrolling(other)


def _flush_owner(
    session: Session,
    owner: object,
    state: InstanceState[object],
    owner_class: OwnerClass,
    data: list[OpenedKey],
) -> None:
    """Write the owner's row, with its own encrypted columns under keys that are not stored yet."""
    keyring = Keyring()
    keyring.add(ENROLLING_OWNER, data)
    with enrolling(session, Enrolling(state, owner_class, keyring)):
        session.add(owner)
        session.flush()


def _has_place(state: InstanceState[object]) -> bool:
    """Whether an owner is in the database, and stays where it is in the flush that comes."""
    names = (state.mapper.get_property_by_column(column).key for column in state.mapper.primary_key)
    return state.key is not None and not any(name in state.committed_state for name in names)


def _insert(located: LocatedOwner, keys: list[OpenedKey], slots: list[StoredSlot]) -> bool:
    """Store an owner's first keys; false if it has some that another transaction stored."""
    first = (located.place.primary_key, [one.stored for one in keys], slots)
    return bool(located.store.insert_first_of([first]))
