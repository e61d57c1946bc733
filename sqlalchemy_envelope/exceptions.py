"""The error tree: one sentence of cause and cure each, a stable code, an anchor in the reference.

No message, argument or attribute ever holds a value, a secret or a key: labels, key ids and types are all
that is shown. Every error mixes in SQLAlchemy's `DontWrapMixin`; without it one raised while parameters are
bound would reach the caller as a `StatementError` with the plaintext parameters printed in it.
"""

from enum import StrEnum
from typing import ClassVar, Self

from sqlalchemy.exc import DontWrapMixin

DOCUMENTATION = "https://sqlalchemy-envelope.readthedocs.io/en/stable"
"""Where the documentation of the newest release is: `project.urls` in pyproject.toml."""


class EnvelopeError(DontWrapMixin, Exception):
    """What every error of this library is."""

    code: ClassVar[str] = "envelope"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}: {DOCUMENTATION}/reference/errors.html#{self.code}]"


class ConfigurationError(EnvelopeError):
    """A declaration, an engine or a policy that cannot do what it promises."""

    code = "configuration"


class LockReason(StrEnum):
    """Why an encrypted value does not open here."""

    NOTHING_UNLOCKED = "nothing-unlocked"
    """Nobody is unlocked here."""
    LEFT = "left"
    """The unlocked session was left."""
    FORKED = "forked"
    """The unlocked session belongs to the parent process."""
    OTHER_DATABASE = "other-database"
    """Who is unlocked is an owner in another database or schema."""
    NO_OWNER = "no-owner"
    """The row leads to no owner."""
    NOT_ENROLLED = "not-enrolled"
    """The owner has no keys."""
    NO_RIGHT = "no-right"
    """No granting row leads from who is unlocked here to the owner."""
    VOID = "void"
    """A granting row leads there and grants nothing; no flush added it, or it named somebody else then."""
    PENDING = "pending"
    """A granting row gives the right; the key waits to be sealed by somebody who holds it."""
    OTHER_EPOCH = "other-epoch"
    """Keys of the owner are held, and the value is under an earlier or a later one."""
    UNLOCKED_EARLIER = "unlocked-earlier"
    """The key was granted or made after the unlock; another unlock opens it."""
    SHREDDED = "shredded"
    """The key of the value is destroyed, or not in the database any more."""
    UNREADABLE = "unreadable"
    """The stored value, or a key that leads to it, is not what was written there."""


class LockedError(EnvelopeError):
    """Encrypted data was touched without the key of its owner.

    Attributes:
        reason: why, as far as it is known without asking the database; None where only that can tell.
            `Envelope.why_locked` asks it.
    """

    code = "locked"
    reason: LockReason | None = None

    def because(self, reason: LockReason | None) -> Self:
        """The same error, with its reason."""
        self.reason = reason
        return self


class SessionLeftError(LockedError):
    """An unlocked session was used after it was left."""

    code = "session-left"
    reason = LockReason.LEFT


class SessionForkedError(LockedError):
    """An unlocked session was used in a forked child; keys do not cross a fork."""

    code = "session-forked"
    reason = LockReason.FORKED


class UnlockError(EnvelopeError):
    """No key slot opened: a wrong secret, or a slot that was altered. Which of the two cannot be told."""

    code = "unlock"


class UnlockBusyError(EnvelopeError):
    """Too many key derivations at once; try again shortly (HTTP 503)."""

    code = "unlock-busy"


class TransactionConflictError(EnvelopeError):
    """Others changed the same keys at the same moment: roll back, and run the whole transaction again.

    Attributes:
        sqlstate, pgcode: "40001", that of a serialization failure.
    """

    code = "transaction-conflict"
    sqlstate: ClassVar[str] = "40001"
    pgcode: ClassVar[str] = "40001"

    @property
    def orig(self) -> Self:
        """The error itself. What retries transactions looks for a SQLSTATE in the `orig` of an error."""
        return self


class SecretError(EnvelopeError):
    """A secret that cannot be used: empty, too long, or with characters that cannot be typed again."""

    code = "secret"


class KdfParametersError(EnvelopeError):
    """Stored key-derivation parameters are malformed or out of bounds; nothing was derived."""

    code = "kdf-parameters"


class EnrollmentError(EnvelopeError):
    """An owner that cannot be enrolled or unlocked as it is."""

    code = "enrollment"


class AlreadyEnrolledError(EnrollmentError):
    """The owner has keys already."""

    code = "already-enrolled"


class NotEnrolledError(EnrollmentError):
    """The owner has no keys yet."""

    code = "not-enrolled"


class KeyNotFoundError(EnvelopeError):
    """A key that a stored value or another key refers to does not exist."""

    code = "key-not-found"


class OwnerMismatchError(EnvelopeError):
    """Key rows say they belong to another owner: transplanted, or the owner's primary key was changed."""

    code = "owner-mismatch"


class TamperedKeyError(EnvelopeError):
    """A stored key was altered: it opened, but is not the key it says it is."""

    code = "tampered-key"


class RowSealError(TamperedKeyError):
    """A key, slot or grant row has no valid seal under a server key."""

    code = "row-seal"


class ProviderError(EnvelopeError):
    """An outside key holder refused, failed, or answered with something else; the original is the cause."""

    code = "provider"


class ProviderTimeoutError(ProviderError):
    """An outside key holder did not answer in time."""

    code = "provider-timeout"


class GrantError(EnvelopeError):
    """A grant that cannot be made, or that is too many steps from any key that is open."""

    code = "grant"


class FormatError(EnvelopeError):
    """Not bytes of ours, or of a format that is not accepted here. Never taken for plaintext."""

    code = "format"


class DecryptionError(EnvelopeError):
    """A value does not authenticate: altered, moved here from elsewhere, or written under another label."""

    code = "decryption"


class TruncatedError(DecryptionError, FormatError):
    """Bytes of ours that were cut short."""

    code = "truncated"


class ValueEncodingError(EnvelopeError):
    """A value that the column's type cannot hold."""

    code = "value-encoding"


class ValueTooLargeError(ValueEncodingError):
    """A value of more than 16 MiB."""

    code = "value-too-large"


class StatementRefusedError(EnvelopeError):
    """A statement that cannot be right on encrypted columns, refused before it is sent."""

    code = "statement-refused"


class UnflushedError(EnvelopeError):
    """An unlocked session was left while values waited to be encrypted."""

    code = "unflushed"


class UnclaimedError(EnrollmentError):
    """The owner's keys wait to be claimed: they were made by a campaign, and no secret opens them yet."""

    code = "unclaimed"


class PlaintextRefusedError(EnvelopeError):
    """A value stands in the previous column alone, and the column's policy refuses it there."""

    code = "plaintext-refused"


class MigrationError(EnvelopeError):
    """A migration of values that cannot go on; what is done stays done, and `run` goes on from there."""

    code = "migration"


class MigrationRefusedError(MigrationError):
    """A step of a migration that is not due: something is left that it would lose."""

    code = "migration-refused"


class MigrationStoppedError(MigrationError):
    """A migration was stopped by the database or the machine; the message says what to do about it."""

    code = "migration-stopped"


class PreviousValueError(MigrationError):
    """A value of the previous column cannot be read: another key than it was written with, or altered."""

    code = "previous-value"
