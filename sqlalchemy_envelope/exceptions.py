"""The tree of errors: each class has one sentence, a stable code, and a section of docs/reference/errors.md.

A message shows labels, key ids and types. No message, argument or attribute holds a value, a secret or a key.

Every error mixes in SQLAlchemy's `DontWrapMixin`. Without it, an error that is raised while parameters are
bound would reach the caller as a `StatementError`, with the plaintext parameters printed in it.
"""

from enum import StrEnum
from typing import Any, ClassVar, Self

from sqlalchemy.exc import DontWrapMixin

DOCUMENTATION = "https://sqlalchemy-envelope.readthedocs.io/en/stable"
"""The address of the documentation of the newest release, as in `project.urls` of pyproject.toml."""


_CAUSE: Any = BaseException.__dict__["__cause__"]


class EnvelopeError(DontWrapMixin, Exception):
    """The parent of every error of this library.

    Attributes:
        code: the stable name of this kind of error; a message ends with it and with its address in the docs.
    """

    code: ClassVar[str] = "envelope"

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.code}: {DOCUMENTATION}/reference/errors.html#{self.code}]"

    @property
    def __cause__(self) -> BaseException | None:
        """The error that this is raised from. SQLAlchemy raises an error that it does not wrap from itself if
        it comes while the parameters of a statement are made, and a chain would have no end."""
        cause: BaseException | None = _CAUSE.__get__(self)
        return None if cause is self else cause

    @__cause__.setter
    def __cause__(self, cause: BaseException | None) -> None:
        _CAUSE.__set__(self, cause)


class ConfigurationError(EnvelopeError):
    """A declaration, an engine, a policy or an argument cannot do what it promises."""

    code = "configuration"


class LockReason(StrEnum):
    """The reason why an encrypted value does not open in this session."""

    NOTHING_UNLOCKED = "nothing-unlocked"
    """No owner is unlocked."""
    LEFT = "left"
    """The `with` block of the unlocked session has ended."""
    FORKED = "forked"
    """The unlocked session belongs to the parent process; keys do not cross a fork."""
    OTHER_DATABASE = "other-database"
    """The unlocked owner is in another database or schema."""
    NO_OWNER = "no-owner"
    """The row leads to no owner."""
    NOT_ENROLLED = "not-enrolled"
    """The owner has no keys."""
    NO_RIGHT = "no-right"
    """No granting row leads from the unlocked owner to the owner of the value."""
    VOID = "void"
    """A granting row leads there and grants nothing, since no flush added it or SQL changed whom it names."""
    PENDING = "pending"
    """A granting row gives the right; a holder of the key has not sealed the key yet."""
    OTHER_EPOCH = "other-epoch"
    """The session holds keys of the owner, but the value is under the key of an earlier or a later epoch."""
    UNLOCKED_EARLIER = "unlocked-earlier"
    """The key was granted or made after this unlock; another unlock opens it."""
    SHREDDED = "shredded"
    """The key of the value is destroyed, or is no longer in the database."""
    UNREADABLE = "unreadable"
    """The stored value, or a key that leads to it, is not what the library wrote."""


class LockedError(EnvelopeError):
    """Encrypted data was touched without the key of its owner.

    Attributes:
        reason: the reason, where it is known without a query; None where only the database can tell.
            `Envelope.why_locked` asks the database.
    """

    code = "locked"
    reason: LockReason | None = None

    def because(self, reason: LockReason | None) -> Self:
        """Set the reason, and return the same error."""
        self.reason = reason
        return self


class SessionLeftError(LockedError):
    """An unlocked session was used after its `with` block had ended."""

    code = "session-left"
    reason = LockReason.LEFT


class SessionForkedError(LockedError):
    """An unlocked session was used in a forked child process; keys do not cross a fork."""

    code = "session-forked"
    reason = LockReason.FORKED


class KeyShreddedError(LockedError):
    """The key of a value was destroyed: nobody reads the value again."""

    code = "key-shredded"
    reason = LockReason.SHREDDED


class UnlockError(EnvelopeError):
    """No key slot opened: the secret is wrong or the slot was altered, and nothing can tell which."""

    code = "unlock"


class TicketError(UnlockError):
    """A ticket was refused: it was revoked, altered, or is not for this owner and database. Log in again."""

    code = "ticket"


class TicketExpiredError(TicketError):
    """The lifetime of a ticket is over, or nobody used it for longer than it may lie idle. Log in again."""

    code = "ticket-expired"


class UnlockBusyError(EnvelopeError):
    """Too many key derivations run at once; try again shortly (HTTP 503)."""

    code = "unlock-busy"


class UnlockThrottledError(EnvelopeError):
    """Too many failed attempts at an account or from a source; nothing was tried. Try again later (HTTP 429).

    Attributes:
        retry_after: the seconds until the next attempt, for the header `Retry-After`.
    """

    code = "unlock-throttled"
    retry_after: float = 0.0

    def after(self, seconds: float) -> Self:
        """Set the seconds to wait, and return the same error."""
        self.retry_after = seconds
        return self


class TransactionConflictError(EnvelopeError):
    """Another transaction changed the same keys at that moment: roll back, and run this transaction again.

    Attributes:
        sqlstate, pgcode: always "40001", the SQLSTATE of a serialization failure.
    """

    code = "transaction-conflict"
    sqlstate: ClassVar[str] = "40001"
    pgcode: ClassVar[str] = "40001"

    @property
    def orig(self) -> Self:
        """The error itself, for middleware that reads the SQLSTATE of a failed transaction from `orig`."""
        return self


class EmergencyError(EnvelopeError):
    """Emergency access is not open: it was not allowed, not requested, or its waiting time is not over."""

    code = "emergency"


class SharesError(EnvelopeError):
    """Custodians' shares make no escrow key: too few, twice the same, mistyped, or of several ceremonies."""

    code = "shares"


class SecretError(EnvelopeError):
    """The secret cannot be used: it is empty, too long, or holds characters that cannot be typed again."""

    code = "secret"


class RecoveryCodeError(SecretError):
    """The text is no recovery code: it is mistyped, cut or something else; nothing was tried with it."""

    code = "recovery-code"


class WeakSecretError(SecretError):
    """The application's `secret_strength` refused a new secret; the message has its reason."""

    code = "weak-secret"


class KdfParametersError(EnvelopeError):
    """Stored key-derivation parameters are malformed or out of bounds; nothing was derived."""

    code = "kdf-parameters"


class KeyShareError(EnvelopeError):
    """The share of a key slot is missing in the second database, or altered: no secret can be judged."""

    code = "key-share"


class EnrollmentError(EnvelopeError):
    """The owner cannot be enrolled or unlocked as it is."""

    code = "enrollment"


class AlreadyEnrolledError(EnrollmentError):
    """The owner has keys already."""

    code = "already-enrolled"


class NotEnrolledError(EnrollmentError, UnlockError):
    """The owner has no keys yet."""

    code = "not-enrolled"


class KeyNotFoundError(EnvelopeError):
    """A stored value, or another key, refers to a key that does not exist."""

    code = "key-not-found"


class NoSecretError(KeyNotFoundError, UnlockError):
    """The owner has keys, and no secret that opens them."""

    code = "no-secret"


class KeyInUseError(EnvelopeError):
    """A key cannot be destroyed yet: something refers to it, or a backup may need it."""

    code = "key-in-use"


class OwnerMismatchError(EnvelopeError):
    """Key rows name another owner: they were moved here, or the owner's primary key or table was renamed."""

    code = "owner-mismatch"


class TamperedKeyError(EnvelopeError):
    """A stored key was altered: it opened, but it is not the key that its row describes."""

    code = "tampered-key"


class RowSealError(TamperedKeyError):
    """A key, slot or grant row has no valid seal under a server key."""

    code = "row-seal"


class PepperError(EnvelopeError):
    """A key slot is under a pepper that is not configured: no secret can be tried on it here."""

    code = "pepper"


class ProviderError(EnvelopeError):
    """An outside key holder refused, failed, or answered with no key; `__cause__` is its own error."""

    code = "provider"


class ProviderTimeoutError(ProviderError):
    """An outside key holder did not answer in time."""

    code = "provider-timeout"


class GrantError(EnvelopeError):
    """A grant cannot be made, or its key is too many steps away from any open key."""

    code = "grant"


class ErasureError(EnvelopeError):
    """An owner's keys cannot be destroyed as asked; nothing was done."""

    code = "erasure"


class ReceiptError(EnvelopeError):
    """An erasure receipt does not prove anything: not committed, altered, or signed by another key."""

    code = "receipt"


class FormatError(EnvelopeError):
    """Bytes that this library did not write, or a format that is not accepted; never read as plaintext."""

    code = "format"


class DecryptionError(EnvelopeError):
    """A value does not authenticate: it was altered, moved here, or written under another label or type."""

    code = "decryption"


class TruncatedError(DecryptionError, FormatError):
    """Bytes that this library wrote were cut short."""

    code = "truncated"


class ValueEncodingError(EnvelopeError):
    """The type of the column cannot hold the value."""

    code = "value-encoding"


class ValueTooLargeError(ValueEncodingError):
    """The plaintext of a value is larger than 16 MiB."""

    code = "value-too-large"


class NormalizationError(ValueEncodingError):
    """The normaliser of a blind index makes nothing of a value, which was therefore not stored."""

    code = "normalization"


class StatementRefusedError(EnvelopeError):
    """A statement cannot be right on encrypted columns; it was refused before it was sent."""

    code = "statement-refused"


class UnflushedError(EnvelopeError):
    """An unlocked session was left while values still waited to be encrypted."""

    code = "unflushed"


class UnclaimedError(EnrollmentError, UnlockError):
    """The owner's keys wait to be claimed: a campaign made them, and no secret opens them yet."""

    code = "unclaimed"


class PlaintextRefusedError(EnvelopeError):
    """A value stands in the previous column alone, and the column's policy refuses to read it there."""

    code = "plaintext-refused"


class MigrationError(EnvelopeError):
    """A migration of values cannot go on; what is done stays done, and `run` goes on from there."""

    code = "migration"


class MigrationRefusedError(MigrationError):
    """A step of a migration is not due: rows are left that it would lose."""

    code = "migration-refused"


class MigrationStoppedError(MigrationError):
    """The database or the machine stopped a migration; the message says how to go on."""

    code = "migration-stopped"


class PreviousValueError(MigrationError):
    """A value of the previous column cannot be read: it is under another key, of another type, or altered."""

    code = "previous-value"
