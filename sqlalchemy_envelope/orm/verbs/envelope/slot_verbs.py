"""The verbs on an owner's key slots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.slots import slots

if TYPE_CHECKING:
    import uuid

    from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot, KeySlots
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession


@emptying_class
class SlotVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on key slots."""

    def slots(self, session: AnySession, owner: object) -> KeySlots:
        """Return the slots that open an owner's keys, with label, kind and times. "Can the operator read
        this?" is one line: `bool(envelope.slots(session, owner).providers)`. Providers that reach the owner
        through grants count.

        Raises:
            NotEnrolledError: the owner is not in the database.
        """
        return slots.slots_of(self._desk(plain_session(session)), owner)

    def add_secret(
        self, session: AnySession, owner: object, *, secret: str | bytes, label: str | None = None
    ) -> None:
        """Give a secret to an owner who is unlocked here: with another secret, a recovery code, a provider, a
        grant, or in server mode. The other slots stay. One key derivation. Never commits.

        Args:
            secret: the new secret.
            label: a name for people, such as "phone". Each secret of an owner has a label of its own; the
                first may be without.

        Raises:
            LockedError: the owner is not unlocked here.
            AlreadyEnrolledError: the owner has a secret with this label: `change_secret` or `set_secret` puts
                another in its place.
            UnclaimedError: a campaign holds the owner's keys: `enroll` claims them.
            SecretError: the secret cannot be used, or is one of the owner's other secrets.
            EnrollmentError: the owner has 32 secrets.
            UnlockBusyError: too many derivations at once.
        """
        hidden = hide_required(secret)
        del secret
        self.run(self.add_secret_steps(plain_session(session), owner, hidden, label))

    def set_secret(
        self, session: AnySession, owner: object, *, new: str | bytes, label: str | None = None
    ) -> None:
        """Give an owner who is unlocked here a new secret in place of a forgotten one. Whatever opened the
        owner will do: a recovery code, a provider, a grant, server mode. One key derivation. Never commits.

        The secrets that are replaced open nothing any more. They may still open values of an epoch whose root
        key is not open here. Whoever knows a replaced secret and has an old copy of the database still opens
        that copy, and what was written since under the same keys.

        Args:
            new: the new secret.
            label: replace only the secret with this label; left out, the new secret replaces every secret.

        Raises:
            LockedError: the owner is not unlocked here.
            KeyNotFoundError: the owner has no secret with this label.
            UnclaimedError: a campaign holds the owner's keys: `enroll` claims them.
            SecretError: the secret cannot be used, or is one of the secrets that stay.
            TransactionConflictError: somebody else changed a slot of the owner at the same moment.
            UnlockBusyError: too many derivations at once.
        """
        hidden = hide_required(new)
        del new
        self.run(self.set_secret_steps(plain_session(session), owner, hidden, label))

    def change_secret(
        self,
        session: AnySession,
        owner: object,
        *,
        old: str | bytes,
        new: str | bytes,
        source: str | None = None,
    ) -> None:
        """Put a new secret in place of the old one. No data is touched. Two key derivations. Never commits.

        Args:
            source: where the request comes from, for the throttle.

        Raises: as `unlock`, and
            UnlockError: the old secret is wrong.
            SecretError: the new secret cannot be used, is too weak, or is another secret of the owner.
            TransactionConflictError: somebody else changed a slot of the owner at the same moment.
        """
        hidden, hidden_new = hide_required(old), hide_required(new)
        del old, new
        self.run(self.change_secret_steps(plain_session(session), owner, hidden, hidden_new, source))

    def add_provider(self, session: AnySession, owner: object, *, provider: str) -> None:
        """Let a provider open an owner who is unlocked here. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
            ProviderError: the provider failed.
        """
        self.run(self.add_provider_steps(plain_session(session), owner, provider))

    def remove_provider(self, session: AnySession, owner: object, *, provider: str) -> None:
        """Delete a provider's slots of an owner, and start a new epoch: the provider cannot open values that
        are written from now on. Old keys that it kept still open older values. Never commits.

        Raises:
            KeyNotFoundError: the owner has no slot of the provider.
        """
        slots.remove_provider(self._desk(plain_session(session)), owner, provider)

    def remove_slot(self, session: AnySession, owner: object, slot: KeySlot | uuid.UUID) -> None:
        """Delete a key slot of an owner who is unlocked here, and start a new epoch: whoever holds the secret
        or the code of the slot cannot open values that are written from now on. Never commits.

        Args:
            session: the session in which the owner is unlocked.
            owner: the owner.
            slot: from `slots`, or its `slot_id`.

        Raises:
            LockedError: the owner is not unlocked here.
            KeyNotFoundError: the owner has no such slot.
            EnrollmentError: the slot is the last way to some of the owner's keys.
        """
        slots.remove_slot(self._desk(plain_session(session)), owner, slot)

    def acknowledge_slots(self, session: AnySession, owner: object, *named: KeySlot | uuid.UUID) -> None:
        """Note that an owner who is unlocked here knows of these slots, so that the next unlock does not show
        them again. Never commits.

        Args:
            session: the session in which the owner is unlocked.
            owner: the owner.
            named: the slots, or their ids; left out, every slot of the owner.

        Raises:
            LockedError: the owner is not unlocked here.
            KeyNotFoundError: the owner has no such slot.
        """
        slots.acknowledge_slots(self._desk(plain_session(session)), owner, named)
