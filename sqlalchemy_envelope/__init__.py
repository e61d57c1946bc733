"""Encrypted columns for SQLAlchemy whose keys belong to the people whose data it is."""

from sqlalchemy_envelope.crypto.argon2id import KdfProfile
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    ConfigurationError,
    DecryptionError,
    EnrollmentError,
    EnvelopeError,
    FormatError,
    KdfParametersError,
    KeyNotFoundError,
    LockedError,
    NotEnrolledError,
    OwnerMismatchError,
    SecretError,
    SessionForkedError,
    SessionLeftError,
    StatementRefusedError,
    TamperedKeyError,
    TruncatedError,
    UnflushedError,
    UnlockBusyError,
    UnlockError,
    ValueEncodingError,
    ValueTooLargeError,
)
from sqlalchemy_envelope.orm import hooks as _hooks
from sqlalchemy_envelope.orm.aio import AsyncEnvelope
from sqlalchemy_envelope.orm.engine import enforce_foreign_keys
from sqlalchemy_envelope.orm.envelope import Envelope
from sqlalchemy_envelope.orm.models import KeyOwner, KeySlotTable, KeyTable
from sqlalchemy_envelope.orm.sealed import Sealed
from sqlalchemy_envelope.orm.types import EncryptedType
from sqlalchemy_envelope.orm.unlocked import UnlockedSession

_hooks.register()

__all__ = [
    "AlreadyEnrolledError",
    "AsyncEnvelope",
    "ConfigurationError",
    "DecryptionError",
    "EncryptedType",
    "EnrollmentError",
    "Envelope",
    "EnvelopeError",
    "FormatError",
    "KdfParametersError",
    "KdfProfile",
    "KeyNotFoundError",
    "KeyOwner",
    "KeySlotTable",
    "KeyTable",
    "LockedError",
    "NotEnrolledError",
    "OwnerMismatchError",
    "Sealed",
    "SecretError",
    "SessionForkedError",
    "SessionLeftError",
    "StatementRefusedError",
    "TamperedKeyError",
    "TruncatedError",
    "UnflushedError",
    "UnlockBusyError",
    "UnlockError",
    "UnlockedSession",
    "ValueEncodingError",
    "ValueTooLargeError",
    "enforce_foreign_keys",
]
