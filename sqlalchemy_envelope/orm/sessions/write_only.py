"""Writing for locked owners: by a sealed write epoch.

A fresh data key is sealed once to the owner's public key, and then encrypts any number of ordinary values.
The owner adopts it at the next unlock. A write-only session can read nothing back, and the server forgets the
key when the epoch ends.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import EnrollmentError, NotEnrolledError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import describe, seal_to_root, short
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.keys.write_epoch import WriteEpoch
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.beyond import find_left, renew_beyond
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.rollbacks import note_enrolment
from sqlalchemy_envelope.orm.tables.grant_counts import count_grants
from sqlalchemy_envelope.orm.tables.owners import Place

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

MOST_EPOCHS = 10_000
"""The highest number of write epochs that a process keeps for its next transaction."""


class WriteOnlySession(UnlockedSession):
    """Encrypts for owners that are not unlocked, and reads nothing. Made by `Envelope.write_only`."""

    on_demand = True

    def __init__(self, session: Session, policy: Policy, owners: Collection[Place]) -> None:
        super().__init__(session, policy, (), Keyring())
        self._allowed = {place.owner for place in owners}
        self._epochs: dict[OwnerId, WriteEpoch] = {}

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Prepare a write epoch for each of these owners that is not unlocked here."""
        self._parent.prepare_write(session, owner_class, keys, values)
        if session is None or not self.is_open:
            return
        desk, names = Desk(session, self.policy), Names(session)
        for key in keys:
            place = names.place(owner_class, key)
            if self._is_written_around(place.owner) or (self._allowed and place.owner not in self._allowed):
                continue
            epoch = self._epochs.get(place.owner)
            if epoch is None or not epoch.lasts(values) or not self._is_there(desk, place, epoch):
                epoch = self._kept(desk, place, values) or self._seal_new(desk, place)
                self._epochs[place.owner] = epoch
                self._keyring.add(place.owner, [epoch.opened])
            epoch.values_left[0] -= values

    def _is_written_around(self, owner: OwnerId) -> bool:
        """Tell whether a session around this writes for an owner. A server only reads through a grant."""
        return owner in self._parent and not self._parent.only_reads(owner)

    def _is_there(self, desk: Desk, place: Place, epoch: WriteEpoch) -> bool:
        """Tell whether an epoch may still be used. Checked once in each transaction.

        The epoch's row is deleted with its owner. And a member who has the root key that the epoch was sealed
        to may have been removed since.
        """
        stored = epoch.opened.stored
        if stored.key_id in looked_at(desk.session):
            return True
        if not desk.keys(place.owner_class).exists(place.primary_key, stored.key_id):
            return False
        is_shared = bool(place.owner_class.grants_of)
        if is_shared and _root_of(desk, place).key_id != stored.wrapping_key_id:
            return False
        looked_at(desk.session).add(stored.key_id)
        return True

    def _kept(self, desk: Desk, place: Place, values: int) -> WriteEpoch | None:
        """Return an epoch of an earlier transaction, if its row still exists.

        The row is deleted with its owner. Nobody could then open the epoch's key.
        """
        epoch = self.policy.write_epochs.pop(place.owner, None)
        if epoch is None or not epoch.lasts(values) or not self._is_there(desk, place, epoch):
            return None
        copy = OpenedKey(epoch.opened.stored, KeyBytes(epoch.opened.key.buffer))
        kept = WriteEpoch(copy, epoch.until, epoch.values_left)
        self.policy.write_epochs[place.owner] = epoch
        return kept

    def _seal_new(self, desk: Desk, place: Place) -> WriteEpoch:
        root = _root_of(desk, place)
        store = desk.keys(place.owner_class)
        while True:
            key = KeyBytes.generate()
            child = describe(key, root.owner_reference, Purpose.WRITE)
            number = int.from_bytes(child.stored.key_id.bytes[:4], "big") & 0x7FFFFFFF
            stored = replace(child.stored, state=KeyState.RETIRED, epoch=number)
            stored = seal_to_root(OpenedKey(stored, key), root)
            if store.insert_first([(place.primary_key, stored)]):
                break
            key.wipe()  # by chance, another epoch of this owner has the same number: try a new key
        name, owner_id = place.owner_class.name, place.primary_key
        self.policy.emit(AuditEvent("write_epoch_sealed", name, key_id=short(stored), owner_id=owner_id))
        epoch = WriteEpoch(
            OpenedKey(stored, key),
            time.monotonic() + self.policy.write_epoch_seconds,
            [self.policy.write_epoch_values],
        )
        kept = WriteEpoch(OpenedKey(stored, KeyBytes(key.buffer)), epoch.until, epoch.values_left)
        note_enrolment(desk.session, place.owner, self, lambda: self._keep(place.owner, kept))
        return epoch

    def _keep(self, owner: OwnerId, kept: WriteEpoch) -> None:
        """Keep an epoch for the next transaction, after its row was committed.

        Expired epochs of all owners are dropped. The oldest epochs stand first.
        """
        epochs = self.policy.write_epochs
        epochs[owner] = kept
        while len(epochs) > MOST_EPOCHS or not next(iter(epochs.values())).lasts(0):
            epochs.pop(next(iter(epochs))).opened.key.wipe()
            if not epochs:
                return

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """Return the cipher of the owner's write epoch, or of a session around this with the owner's keys."""
        found: ValueCipher | None = self._parent.writer(owner, scope, field, session)
        if found is not None:
            return found
        epoch = self._epochs.get(owner) if self.is_open else None
        return None if epoch is None else self._keyring.cipher(epoch.opened.stored.key_id, field)

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """Ask the sessions around this: a write epoch reads nothing."""
        return self._parent.reader(header, field)  # type: ignore[no-any-return]

    def owner_of(self, header: bytes) -> OwnerId | None:
        """As `reader`."""
        return self._parent.owner_of(header)  # type: ignore[no-any-return]

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """As `reader`."""
        return self._parent.keyring_for(owner, session)  # type: ignore[no-any-return]

    def drop(self, owner: OwnerId) -> None:
        """Drop an epoch, after the transaction that sealed it was rolled back."""
        self._epochs.pop(owner, None)
        super().drop(owner)

    def _is_lost(self, state: Any, attribute: Any) -> bool:
        return True

    def _cipher(self, owner: OwnerId, attribute: EncryptedAttribute) -> None:
        """Return None: an epoch ends with this session, and cannot close values that are read again."""


def _root_of(desk: Desk, place: Place) -> StoredKey:
    """Return the root key to seal to, which no removed member has.

    Raises:
        NotEnrolledError: the owner has no root key.
        EnrollmentError: no member is left to open the root key.
        TransactionConflictError: another member was removed meanwhile.
    """
    store = desk.keys(place.owner_class)
    before: KeyId | None = None
    for _ in range(2):
        found = store.load_active_roots([place.primary_key]).get(place.owner)
        if found is None:
            if not store.is_there(place.primary_key):
                raise NotEnrolledError(
                    f"A row names a {place.owner_class.name} that is not in the database. Add the "
                    f"{place.owner_class.name} first, or correct the row."
                )
            raise _without_keys(place.owner_class, desk.policy)
        if found.error is not None:
            raise found.error
        root = found.stored
        if not place.owner_class.grants_of:
            return root
        count = count_grants(desk.session, place.owner_class.grants_of, [root.key_id]).get(root.key_id)
        keys = {place.owner_class: [root.key_id]}
        beyond = find_left(desk.session, keys)
        if count is not None and not count.is_left and not beyond:
            return root
        if root.key_id == before:
            raise EnrollmentError(
                f"Nobody is left who could read what is written for this {place.owner_class.name}: its last "
                "member is gone. Add one, who reads what is written from then on."
            )
        before = root.key_id
        lock_groups(desk, [place, *(one.place for one in beyond)])
        if beyond:
            renew_beyond(desk, None, keys)
        start_epoch(desk, place, None, instead_of=root.key_id)
    raise TransactionConflictError(
        f"The members of this {place.owner_class.name} change at this moment. Run the transaction again."
    )


def _without_keys(owner_class: OwnerClass, policy: Policy) -> NotEnrolledError:
    """Return the error for a write to an owner without keys.

    Server mode makes the keys, if it knows the reference to bind them to.
    """
    name, grants = owner_class.name, owner_class.grants_with(None)
    secret = "" if grants else ", secret=..."
    cure = f"Make them, `envelope.enroll(session, owner{secret})`"
    if grants:  # a group has no secret of its own, as a rule
        rows = " or ".join(sorted({one.mapper.class_.__name__ for one in grants}))
        cure += f", while a member-to-be is unlocked, and add the {rows} that gives them its key"
    if policy.seals.is_on and owner_class.reference_attribute is None:
        cure += (
            ". Or, if the server is to hold them, let server mode make them with the first value: write "
            "inside `with envelope.server_mode(reason=...):`, or call "
            "`envelope.server_mode(reason=...).everywhere()` when the process starts"
        )
    return NotEnrolledError(f"This {name} has no keys to write under, and write_only makes none. {cure}.")
