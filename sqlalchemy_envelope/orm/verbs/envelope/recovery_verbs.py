"""The verbs for the day when a secret is forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required
from sqlalchemy_envelope.crypto.recovery_code import hide_code
from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.slots import recovery
from sqlalchemy_envelope.orm.verbs.slots.recoverable import recoverable

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.preparation import GivenSecret
    from sqlalchemy_envelope.crypto.recovery_code import GivenCode, RecoveryCode
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession
    from sqlalchemy_envelope.orm.verbs.slots.recoverable import Recoverability
    from sqlalchemy_envelope.orm.verbs.steps import Steps


@emptying_class
class RecoveryVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on recovery codes."""

    def add_recovery_code(
        self, session: AnySession, owner: object, *, label: str | None = None
    ) -> RecoveryCode:
        """Make a recovery code for an owner who is unlocked here, and return it. It is not stored: commit,
        and then show it to the user once, `str(code)`, to be printed or written down. Never commits.

        The code opens the owner's keys with `unlock(recovery_code=...)` and `reset_secret`. An owner may have
        several codes.

        Args:
            session: the session in which the owner is unlocked.
            owner: the owner.
            label: a name for people, such as "in the safe".

        Raises:
            LockedError: the owner is not unlocked here.
            EnrollmentError: the owner has 32 codes.
        """
        return recovery.add_recovery_code(self._desk(plain_session(session)), owner, label)

    def reset_secret(
        self,
        session: AnySession,
        owner: object,
        *,
        recovery_code: str,
        new: str | bytes,
        source: str | None = None,
    ) -> RecoveryCode:
        """Put a new secret in the place of a forgotten one, with a recovery code. The used code opens nothing
        any more. The result is the code that replaces it: commit, and then show it to the user once. No data
        is touched. One key derivation. Never commits.

        The new secret replaces every secret of the owner, as with `set_secret`. An owner without a secret,
        opened by a provider until now, gets its first secret.

        Args:
            session: a session; nobody has to be unlocked in it.
            owner: the owner.
            recovery_code: the code as it was typed: in any case, with any dashes or spaces.
            new: the new secret.
            source: where the request comes from, for the throttle.

        Raises:
            RecoveryCodeError: the text is no recovery code: it is mistyped. Nothing was tried with it.
            UnlockError: the code is none of this owner's: another's, used before, or removed.
            SecretError: the code is right, and the new secret cannot be used, or is too weak. The code stays.
            UnlockThrottledError: too many attempts from this source failed before.
            NotEnrolledError: the owner has no keys.
            TransactionConflictError: somebody else changed a slot of the owner at the same moment.
            TamperedKeyError, RowSealError, OwnerMismatchError: stored keys were altered. Certain.
            UnlockBusyError: too many derivations at once.
        """
        code, hidden = hide_code(recovery_code), hide_required(new)
        del recovery_code, new
        return self.run(self.reset_secret_steps(plain_session(session), owner, code, hidden, source))

    def recoverable(
        self, session: AnySession, owner: object, *, without: Collection[str] = ("secret",)
    ) -> Recoverability:
        """Return what would be lost if an owner's secret were forgotten, and who could help. Sends only
        SELECTs, some for each class of owners and grants on the way, and needs no key.

        Args:
            session: a session; nobody has to be unlocked in it.
            owner: the owner.
            without: the kinds of slots that are taken for lost: "secret", "recovery", "provider", "escrow".

        Raises:
            NotEnrolledError: the owner has no keys.
        """
        return recoverable(self._desk(plain_session(session)), owner, without)

    def reset_secret_steps(
        self,
        session: Session,
        owner: object,
        code: GivenCode,
        new: GivenSecret,
        source: str | None = None,
    ) -> Steps[RecoveryCode]:
        """The steps of `reset_secret`."""
        attempt = self.attempt(session, owner, SlotKind.RECOVERY, source)
        return recovery.reset_secret_steps(
            self._desk(session), self.kdf_profile, owner, hide_code(code), hide_required(new), attempt
        )
