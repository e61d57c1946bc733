"""Encrypted columns for SQLAlchemy whose keys belong to the people whose data it is."""

from sqlalchemy_envelope.crypto.argon2id import KdfProfile
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    ConfigurationError,
    DecryptionError,
    EnrollmentError,
    EnvelopeError,
    FormatError,
    GrantError,
    KdfParametersError,
    KeyNotFoundError,
    LockedError,
    MigrationError,
    MigrationRefusedError,
    MigrationStoppedError,
    NotEnrolledError,
    OwnerMismatchError,
    PlaintextRefusedError,
    PreviousValueError,
    ProviderError,
    ProviderTimeoutError,
    RowSealError,
    SecretError,
    SessionForkedError,
    SessionLeftError,
    StatementRefusedError,
    TamperedKeyError,
    TruncatedError,
    UnclaimedError,
    UnflushedError,
    UnlockBusyError,
    UnlockError,
    ValueEncodingError,
    ValueTooLargeError,
)
from sqlalchemy_envelope.keys.providers import (
    AwsKms,
    CampaignKey,
    CampaignKeyFile,
    KeyProvider,
    OfflineKey,
    OfflinePublicKey,
    Pkcs11,
    ServerKeyring,
    VaultTransit,
)
from sqlalchemy_envelope.orm import hooks as _hooks
from sqlalchemy_envelope.orm.access import KeySlot, KeySlots
from sqlalchemy_envelope.orm.aio import AsyncEnvelope
from sqlalchemy_envelope.orm.audit import AuditEvent
from sqlalchemy_envelope.orm.engine import enforce_foreign_keys
from sqlalchemy_envelope.orm.envelope import Envelope
from sqlalchemy_envelope.orm.grants import KeyGrant
from sqlalchemy_envelope.orm.models import KeyOwner, KeySlotTable, KeyTable
from sqlalchemy_envelope.orm.previous import PreviousColumn
from sqlalchemy_envelope.orm.provided import CachePolicy
from sqlalchemy_envelope.orm.sealed import Sealed
from sqlalchemy_envelope.orm.server import ServerSession
from sqlalchemy_envelope.orm.types import EncryptedType
from sqlalchemy_envelope.orm.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.write_only import WriteOnlySession

_hooks.register()

__all__ = [
    "AlreadyEnrolledError",
    "AsyncEnvelope",
    "AuditEvent",
    "AwsKms",
    "CachePolicy",
    "CampaignKey",
    "CampaignKeyFile",
    "ConfigurationError",
    "DecryptionError",
    "EncryptedType",
    "EnrollmentError",
    "Envelope",
    "EnvelopeError",
    "FormatError",
    "GrantError",
    "KdfParametersError",
    "KdfProfile",
    "KeyGrant",
    "KeyNotFoundError",
    "KeyOwner",
    "KeyProvider",
    "KeySlot",
    "KeySlotTable",
    "KeySlots",
    "KeyTable",
    "LockedError",
    "MigrationError",
    "MigrationRefusedError",
    "MigrationStoppedError",
    "NotEnrolledError",
    "OfflineKey",
    "OfflinePublicKey",
    "OwnerMismatchError",
    "Pkcs11",
    "PlaintextRefusedError",
    "PreviousColumn",
    "PreviousValueError",
    "ProviderError",
    "ProviderTimeoutError",
    "RowSealError",
    "Sealed",
    "ServerKeyring",
    "ServerSession",
    "SecretError",
    "SessionForkedError",
    "SessionLeftError",
    "StatementRefusedError",
    "TamperedKeyError",
    "TruncatedError",
    "UnclaimedError",
    "UnflushedError",
    "UnlockBusyError",
    "UnlockError",
    "UnlockedSession",
    "ValueEncodingError",
    "ValueTooLargeError",
    "VaultTransit",
    "WriteOnlySession",
    "enforce_foreign_keys",
]
