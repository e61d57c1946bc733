"""New epochs: a fresh key in place of one that somebody was shut out from.

Whoever starts one locks the group first, and seals the new key to all who are there then: to those who were
left out of the old one too. It takes nobody's secret. The new key is sealed to the public keys of those who
stay, and to each key slot's; a retired key stays, for what was written under it. Who holds the old key adds
what only a holder can: the proof that they did, and the link through which newcomers read what was before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.grants import pending_grant, sealed_grant
from sqlalchemy_envelope.keys.hierarchy import (
    describe,
    link_to_newer_root,
    proof_of_epoch,
    seal_to_root,
    short,
    wrap_under_root,
)
from sqlalchemy_envelope.keys.model import GrantState, KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.keys.slots import sealed_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.rights import is_due, vouches
from sqlalchemy_envelope.orm.sharing.rollbacks import note_new_keys
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, usable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

    PrimaryKey = tuple[Any, ...]


class Recipient(NamedTuple):
    """A row that grants, and to whom.

    Attributes:
        waits: whether it is a group to which the key before this one is still pending. An epoch leaves that
            as it is: somebody may have been removed from the group, and whoever fulfils it looks.
    """

    grant_class: GrantClass
    row_key: tuple[Any, ...]
    primary_key: tuple[Any, ...]
    waits: bool = False


def start_epoch(
    session: Session,
    policy: Policy,
    place: Place,
    keyring: Keyring | None,
    joining: Iterable[Recipient] = (),
    vouching: OpenedKey | None = None,
    *,
    instead_of: KeyId | None = None,
    for_nobody: bool = False,
) -> bool:
    """A new root key, and a new data key for each scope, for those who hold grants and slots of the old one.

    Where the active root key is not proven, `vouching`, an earlier one that is, speaks for the new one beside
    it: some members may have adopted the one and some the other.

    Four statements read, four write, whatever the number of members. Does nothing for an owner without keys,
    or whose keys nobody could open afterwards, unless it is `for_nobody`, or where another epoch was started
    already than the one `instead_of` which this one is to be. Tells whether it was started.
    """
    lock_groups(session, policy, [place])
    store = KeyStore(session, place.owner_class, policy.seals)
    keys = load_locked(store, place)
    old = next((key for key in keys if _is_active(key, Purpose.ROOT)), None)
    if old is None or instead_of not in (None, old.key_id):
        return False
    full = [one for one in place.owner_class.grants_of if one.scope is None]
    roots = [key for key in keys if key.purpose is Purpose.ROOT]
    members = [*_recipients(session, policy, full, old, roots), *joining]
    slots = [slot for slot in store.load_slots([old.key_id]) if slot.recipient_public_key is not None]
    if not members and not slots and not for_nobody:
        return False
    held = keyring.open(old.key_id) if keyring is not None else None
    root = describe(
        KeyBytes.generate(),
        old.owner_reference,
        Purpose.ROOT,
        epoch=max(key.epoch for key in keys if key.purpose is Purpose.ROOT) + 1,
        hybrid=policy.hybrid,
    )
    provers = [one for one in (vouching, held) if one is not None]
    if provers:
        proof = b"".join(proof_of_epoch(one, root.stored.key_id.bytes) for one in provers)
        root = OpenedKey(replace(root.stored, proof=proof), root.key)
    before = [key for key in keys if _is_active(key, Purpose.DATA)]
    data = [_next(key, keys, KeyBytes.generate()) for key in before]
    wrapped = [OpenedKey(wrap_under_root(one, root), one.key) for one in data]
    retired = [replace(key, state=KeyState.RETIRED) for key in (*before, old)]
    new = [root, *wrapped]
    try:
        # Retired first, for two may not be active at once.
        store.replace_keys(retired)
        grants = _seal_to_all(session, policy, root, members)
        for child, of in zip(wrapped, before, strict=True):
            scoped = [one for one in place.owner_class.grants_of if one.scope == of.scope]
            to = _recipients(session, policy, scoped, of, _of_scope(keys, of.scope)) if scoped else []
            grants += _seal_to_all(session, policy, child, to)
        new = _write(session, policy, store, place, new, grants)
        store.insert_slots([sealed_slot(root, slot) for slot in slots])
        if held is not None and all(one.history == "shared" for one in full):
            linked = link_to_newer_root(OpenedKey(retired[-1], held.key), root)
            store.replace_keys([linked])
            retired[-1] = linked
    except BaseException:
        _wipe(*new)
        raise
    policy.emit(
        AuditEvent("epoch_started", place.owner_class.name, count=len(members), key_id=short(root.stored))
    )
    keeps = keyring is not None and held is not None and _reaches(keyring, old, root, grants, slots)
    if not keeps:
        _wipe(*new)
    if keyring is not None:
        made = [one.stored for one in new]
        keyring.add_stored(place.owner, [*retired, *made])
        if keeps:
            keyring.add(place.owner, new)
        note_new_keys(session, keyring, place.owner, made, [*before, old])
    return True


def _reaches(
    keyring: Keyring, old: StoredKey, root: OpenedKey, grants: GrantsToWrite, slots: Sequence[StoredSlot]
) -> bool:
    """Whether a keyring that holds the old root key may hold the new one: its owner may be the very one who
    was removed. Through a grant of the new one it may, and where a slot led to the old one."""
    if slots and not keyring.has_way(old.key_id):
        return True
    sealed_to = (one.recipient_key_id for _, _, one in grants if one.key_id == root.stored.key_id)
    return any(one is not None and keyring.open(one) is not None for one in sealed_to)


def start_scope_epoch(
    session: Session,
    policy: Policy,
    place: Place,
    scope: str,
    keyring: Keyring | None,
    joining: Iterable[Recipient] = (),
    *,
    instead_of: KeyId | None = None,
) -> bool:
    """A new data key for one scope, wrapped under the owner's root key if that is open here, else sealed; as
    `start_epoch`."""
    lock_groups(session, policy, [place])
    store = KeyStore(session, place.owner_class, policy.seals)
    keys = load_locked(store, place)
    old = next((key for key in keys if _is_active(key, Purpose.DATA) and key.scope == scope), None)
    root = next((key for key in keys if _is_active(key, Purpose.ROOT)), None)
    if old is None or root is None or instead_of not in (None, old.key_id):
        return False
    held = keyring.open(root.key_id) if keyring is not None else None
    child = _next(old, keys, KeyBytes.generate())
    stored = wrap_under_root(child, held) if held is not None else seal_to_root(child, root)
    child = OpenedKey(stored, child.key)
    scoped = [one for one in place.owner_class.grants_of if one.scope == scope]
    to = [*_recipients(session, policy, scoped, old, _of_scope(keys, scope)), *joining]
    retired = replace(old, state=KeyState.RETIRED)
    try:
        store.replace_keys([retired])
        (child,) = _write(session, policy, store, place, [child], _seal_to_all(session, policy, child, to))
    except BaseException:
        _wipe(child)
        raise
    policy.emit(
        AuditEvent("epoch_started", place.owner_class.name, count=len(to), key_id=short(child.stored))
    )
    if keyring is None or held is None:
        _wipe(child)
    if keyring is not None:
        keyring.add_stored(place.owner, [retired, child.stored])
        if held is not None:
            keyring.add(place.owner, [child])
        note_new_keys(session, keyring, place.owner, [child.stored], [old])
    return True


def load_locked(store: KeyStore, place: Place) -> list[StoredKey]:
    """The keys of an owner who is locked, as they are now.

    Raises:
        RowSealError, OwnerMismatchError: one was altered.
    """
    return [
        one.stored
        for one in usable(store.load([place.primary_key], for_update=store.shows_others_when_locked))
    ]


def put_in(
    session: Session,
    policy: Policy,
    place: Place,
    keyring: Keyring,
    keys: Iterable[KeyId],
    before: Callable[[list[Recipient]], None],
) -> None:
    """Grant these keys of an owner to the members whom they were not granted to: who was granted another
    generation of the same key, and has a row that says so still. `before` is told of them first."""
    wanted, store = set(keys), KeyStore(session, place.owner_class, policy.seals)
    if not _missing(session, policy, place, keyring.keys_of(place.owner), wanted):
        return  # rows that no flush added: nobody waits for a lock because of them
    lock_groups(session, policy, [place])
    there = load_locked(store, place)
    keyring.add_stored(place.owner, there)
    for key, missing in _missing(session, policy, place, there, wanted):
        opened = keyring.open(key.key_id)
        if opened is not None:
            before(missing)
            stored = grant_to(session, policy, store, OpenedKey(key, opened.key), missing, strict=False)
            keyring.add_stored(place.owner, [stored])


def _missing(
    session: Session, policy: Policy, place: Place, there: Sequence[StoredKey], wanted: Collection[KeyId]
) -> list[tuple[StoredKey, list[Recipient]]]:
    """The wanted keys of an owner who has these, each with the members whom it was not granted to."""
    found = []
    for key in there:
        if key.key_id not in wanted:
            continue
        alike = [
            one
            for one in there
            if (one.purpose, one.scope) == (key.purpose, key.scope)
            and vouches(policy.seals, one.epoch, key.epoch)
        ]
        missing: list[Recipient] = []
        for grant_class in place.owner_class.grants_of:
            if is_due(grant_class, key.purpose, key.scope, key.state):
                missing += _rows_of(session, policy, grant_class, alike, without=key)
        if missing:
            found.append((key, missing))
    return found


GrantsToWrite = list[tuple["GrantClass", "PrimaryKey", "StoredGrant"]]


def grant_to(
    session: Session,
    policy: Policy,
    store: KeyStore,
    key: OpenedKey,
    to: Sequence[Recipient],
    *,
    strict: bool = True,
) -> StoredKey:
    """Grant one key to these recipients, pending for those without keys, and, unless `strict`, for those
    whose keys were altered; the key's row as it is now."""
    grants = _seal_to_all(session, policy, key, [one._replace(waits=False) for one in to], strict=strict)
    _insert_rows(session, policy, grants)
    store.add_granted([(key.stored.key_id, len(grants))])
    return replace(key.stored, granted=key.stored.granted + len(grants))


def roots_of(
    session: Session, policy: Policy, to: Sequence[Recipient], *, strict: bool
) -> dict[tuple[OwnerClass, PrimaryKey], StoredKey]:
    """The active root keys of these recipients, by class and primary key.

    Raises:
        RowSealError, OwnerMismatchError: one was altered, and it is `strict`. Else it is left out.
    """
    roots: dict[tuple[OwnerClass, PrimaryKey], StoredKey] = {}
    for grant_class in {one.grant_class for one in to}:
        primary_keys = list({one.primary_key for one in to if one.grant_class is grant_class})
        store = KeyStore(session, grant_class.to.owner_class, policy.seals)
        found = store.load_active_roots(primary_keys)
        for one in found.values():
            if one.error is None:
                roots[grant_class.to.owner_class, one.primary_key] = one.stored
            elif strict:
                raise one.error
            else:
                policy.emit(AuditEvent("grant_refused", grant_class.to.owner_class.name))
    return roots


def _is_active(key: StoredKey, purpose: Purpose) -> bool:
    return key.purpose is purpose and key.state is KeyState.ACTIVE


def _next(old: StoredKey, keys: Sequence[StoredKey], key: KeyBytes) -> OpenedKey:
    epochs = [one.epoch for one in keys if one.purpose is old.purpose and one.scope == old.scope]
    return describe(key, old.owner_reference, old.purpose, scope=old.scope, epoch=max(epochs) + 1)


def _of_scope(keys: Iterable[StoredKey], scope: str) -> list[StoredKey]:
    return [key for key in keys if key.purpose is Purpose.DATA and key.scope == scope]


def _recipients(
    session: Session,
    policy: Policy,
    grants: Sequence[GrantClass],
    key: StoredKey,
    generations: Sequence[StoredKey],
) -> list[Recipient]:
    """Who has a key now, and who has another generation of it and was left out of this one."""
    others = [
        one for one in generations if one.key_id != key.key_id and vouches(policy.seals, one.epoch, key.epoch)
    ]
    found: list[Recipient] = []
    for grant_class in grants:
        found += _rows_of(session, policy, grant_class, [key])
        if others:
            found += _rows_of(session, policy, grant_class, others, without=key)
    return found


def _rows_of(
    session: Session,
    policy: Policy,
    grant_class: GrantClass,
    keys: Sequence[StoredKey],
    without: StoredKey | None = None,
) -> list[Recipient]:
    """The granting rows through which any of these keys is granted, each once; they are held."""
    rows = GrantStore(session, grant_class, policy.seals).load_of(
        [key.key_id for key in keys], without=None if without is None else without.key_id, held=True
    )
    leads_on = any(one.scope is None for one in grant_class.to.owner_class.grants_of)
    found = {
        row_key: Recipient(grant_class, row_key, to, leads_on and grant.state is GrantState.PENDING)
        for grant, row_key, to in rows
    }
    return list(found.values())


def _seal_to_all(
    session: Session, policy: Policy, key: OpenedKey, to: Sequence[Recipient], *, strict: bool = False
) -> GrantsToWrite:
    roots = roots_of(session, policy, to, strict=strict)
    made: GrantsToWrite = []
    for one in to:
        row = one.grant_class.granting_row(one.row_key)
        root = None if one.waits else roots.get((one.grant_class.to.owner_class, one.primary_key))
        grant = pending_grant(key.stored.key_id, row) if root is None else sealed_grant(key, row, root)
        recipient = one.grant_class.to.owner_class.reference_of(one.primary_key)
        made.append((one.grant_class, one.row_key, replace(grant, recipient=recipient)))
    return made


def _write(
    session: Session,
    policy: Policy,
    store: KeyStore,
    place: Place,
    keys: Sequence[OpenedKey],
    grants: GrantsToWrite,
) -> list[OpenedKey]:
    """Insert new keys with their grants, counted; the keys as they are stored now."""
    counts = {key.stored.key_id: 0 for key in keys}
    for _, _, grant in grants:
        counts[grant.key_id] += 1
    counted = [OpenedKey(replace(key.stored, granted=counts[key.stored.key_id]), key.key) for key in keys]
    store.insert_keys([(place.primary_key, key.stored) for key in counted])
    _insert_rows(session, policy, grants)
    return counted


def _insert_rows(session: Session, policy: Policy, grants: GrantsToWrite) -> None:
    for grant_class in {grant_class for grant_class, _, _ in grants}:
        mine = [(row_key, grant) for of, row_key, grant in grants if of is grant_class]
        GrantStore(session, grant_class, policy.seals).insert(mine)
        sealed = sum(grant.state is GrantState.SEALED for _, grant in mine)
        name = grant_class.of.owner_class.name
        if sealed:
            policy.emit(AuditEvent("grant_sealed", name, count=sealed))
        if sealed < len(mine):
            policy.emit(AuditEvent("grant_pending", name, count=len(mine) - sealed))


def _wipe(*keys: OpenedKey) -> None:
    for one in keys:
        one.key.wipe()
