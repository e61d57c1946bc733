"""Encrypted columns for SQLAlchemy, whose keys belong to the people that the data is about."""

from sqlalchemy_envelope.crypto.argon2id import KdfProfile
from sqlalchemy_envelope.crypto.recovery_code import RecoveryCode
from sqlalchemy_envelope.exceptions import (
    AlreadyEnrolledError,
    ConfigurationError,
    DecryptionError,
    EmergencyError,
    EnrollmentError,
    EnvelopeError,
    ErasureError,
    FormatError,
    GrantError,
    KdfParametersError,
    KeyInUseError,
    KeyNotFoundError,
    KeyShareError,
    KeyShreddedError,
    LockedError,
    LockReason,
    MigrationError,
    MigrationRefusedError,
    MigrationStoppedError,
    NormalizationError,
    NoSecretError,
    NotEnrolledError,
    OwnerMismatchError,
    PepperError,
    PlaintextRefusedError,
    PreviousValueError,
    ProviderError,
    ProviderTimeoutError,
    ReceiptError,
    RecoveryCodeError,
    RowSealError,
    SecretError,
    SessionForkedError,
    SessionLeftError,
    SharesError,
    StatementRefusedError,
    TamperedKeyError,
    TicketError,
    TicketExpiredError,
    TransactionConflictError,
    TruncatedError,
    UnclaimedError,
    UnflushedError,
    UnlockBusyError,
    UnlockError,
    UnlockThrottledError,
    ValueEncodingError,
    ValueTooLargeError,
    WeakSecretError,
)
from sqlalchemy_envelope.keys.escrow import EscrowKey, OpenedEscrowKey
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
from sqlalchemy_envelope.keys.receipts import CheckedReceipt, ErasureReceipt, ReceiptKey, check_receipt
from sqlalchemy_envelope.keys.ticket import Ticket
from sqlalchemy_envelope.orm import hooks as _hooks
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.owner_spec import OneOf, OwnerColumn
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current.audit import AuditEvent, EventName
from sqlalchemy_envelope.orm.current.providers import CachePolicy
from sqlalchemy_envelope.orm.indexes.bits_plan import BitsPlan, plan_bits
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.indexes.buckets import Buckets
from sqlalchemy_envelope.orm.indexes.leakage.measuring import measure_leakage
from sqlalchemy_envelope.orm.indexes.leakage.public_values import PublicValues
from sqlalchemy_envelope.orm.indexes.leakage.report import Leakage
from sqlalchemy_envelope.orm.indexes.matching import matches
from sqlalchemy_envelope.orm.indexes.normalizers import register_normalizer
from sqlalchemy_envelope.orm.indexes.tokens.grams import Grams
from sqlalchemy_envelope.orm.indexes.tokens.starts import Starts
from sqlalchemy_envelope.orm.indexes.tokens.token_index import token_index
from sqlalchemy_envelope.orm.indexes.tokens.words import Words, register_splitter
from sqlalchemy_envelope.orm.reading.binary_results import binary_results
from sqlalchemy_envelope.orm.sessions.emergency_request import EmergencyRequest
from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot, KeySlots
from sqlalchemy_envelope.orm.sessions.server import ServerSession
from sqlalchemy_envelope.orm.sessions.ticket import TicketSession
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sessions.write_only import WriteOnlySession
from sqlalchemy_envelope.orm.sharing.rights import GrantStanding
from sqlalchemy_envelope.orm.tables.cascades import enforce_foreign_keys
from sqlalchemy_envelope.orm.tables.conflict_errors import should_retry
from sqlalchemy_envelope.orm.tables.emergency_access import EmergencyAccess
from sqlalchemy_envelope.orm.tables.generated import GrantNames, KeyNames
from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant
from sqlalchemy_envelope.orm.tables.key_owner import KeyOwner, KeyShareTable, KeySlotTable, KeyTable
from sqlalchemy_envelope.orm.tables.key_ticket import KeyTicketTable
from sqlalchemy_envelope.orm.throttling.backoff import Backoff, Bucket
from sqlalchemy_envelope.orm.throttling.stores import MemoryThrottle, ThrottleStore
from sqlalchemy_envelope.orm.throttling.table import TableThrottle, throttle_table
from sqlalchemy_envelope.orm.throttling.throttle import Throttle
from sqlalchemy_envelope.orm.verbs.envelope.async_envelope import AsyncEnvelope
from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope
from sqlalchemy_envelope.orm.verbs.erasure.erasure_report import ErasureReport
from sqlalchemy_envelope.orm.verbs.rotation.index_rotation import IndexRotation
from sqlalchemy_envelope.orm.verbs.rotation.kdf_standing import KdfStanding
from sqlalchemy_envelope.orm.verbs.rotation.key_references import KeyReference, KeyReferences
from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import RotatedKeys
from sqlalchemy_envelope.orm.verbs.rotation.pepper_rotation import PepperProgress, PepperUse
from sqlalchemy_envelope.orm.verbs.rotation.provider_rotation import ProviderRotation
from sqlalchemy_envelope.orm.verbs.rotation.rotate_all import OwnersRotation
from sqlalchemy_envelope.orm.verbs.settling.settle_all import Settled
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import RefusedOwner
from sqlalchemy_envelope.orm.verbs.slots.recoverable import Loss, Recoverability
from sqlalchemy_envelope.orm.verbs.slots.share_sweep import SharesSwept
from sqlalchemy_envelope.orm.verbs.status.grant_status import GrantStatus, OwnerName
from sqlalchemy_envelope.orm.verbs.status.lock_answer import WhyLocked
from sqlalchemy_envelope.orm.verbs.status.pending_rows import PendingIndexRows
from sqlalchemy_envelope.orm.verbs.tickets import IssuedTicket
from sqlalchemy_envelope.orm.writing.tokens.filling import fill_tokens, stale_tokens

_hooks.register()

__all__ = [
    "AlreadyEnrolledError",
    "AsyncEnvelope",
    "AuditEvent",
    "AwsKms",
    "Backoff",
    "BitsPlan",
    "BlindIndex",
    "Bucket",
    "Buckets",
    "CachePolicy",
    "CampaignKey",
    "CampaignKeyFile",
    "CheckedReceipt",
    "ConfigurationError",
    "DecryptionError",
    "EmergencyAccess",
    "EmergencyError",
    "EmergencyRequest",
    "EncryptedType",
    "EnrollmentError",
    "Envelope",
    "EnvelopeError",
    "EscrowKey",
    "EventName",
    "ErasureError",
    "ErasureReceipt",
    "ErasureReport",
    "FormatError",
    "GrantError",
    "GrantNames",
    "GrantStanding",
    "GrantStatus",
    "Grams",
    "IndexRotation",
    "IssuedTicket",
    "KdfParametersError",
    "KdfProfile",
    "KdfStanding",
    "KeyGrant",
    "KeyNames",
    "KeyInUseError",
    "KeyNotFoundError",
    "KeyReference",
    "KeyReferences",
    "KeyOwner",
    "KeyProvider",
    "KeyShareError",
    "KeyShareTable",
    "KeyShreddedError",
    "KeySlot",
    "KeySlotTable",
    "KeySlots",
    "KeyTable",
    "KeyTicketTable",
    "Leakage",
    "LockedError",
    "LockReason",
    "measure_leakage",
    "MemoryThrottle",
    "MigrationError",
    "MigrationRefusedError",
    "MigrationStoppedError",
    "NoSecretError",
    "NormalizationError",
    "NotEnrolledError",
    "OfflineKey",
    "OfflinePublicKey",
    "OneOf",
    "OpenedEscrowKey",
    "OwnerColumn",
    "OwnerMismatchError",
    "OwnerName",
    "OwnersRotation",
    "Pkcs11",
    "PendingIndexRows",
    "PepperError",
    "PepperProgress",
    "PepperUse",
    "PlaintextRefusedError",
    "PreviousColumn",
    "PreviousValueError",
    "ProviderError",
    "ProviderRotation",
    "ProviderTimeoutError",
    "PublicValues",
    "ReceiptError",
    "ReceiptKey",
    "RefusedOwner",
    "RotatedKeys",
    "RowSealError",
    "Sealed",
    "ServerKeyring",
    "ServerSession",
    "Loss",
    "Recoverability",
    "RecoveryCode",
    "RecoveryCodeError",
    "SecretError",
    "SessionForkedError",
    "SessionLeftError",
    "Settled",
    "SharesError",
    "SharesSwept",
    "Starts",
    "StatementRefusedError",
    "TableThrottle",
    "TamperedKeyError",
    "Throttle",
    "ThrottleStore",
    "Ticket",
    "TicketError",
    "TicketExpiredError",
    "TicketSession",
    "TransactionConflictError",
    "TruncatedError",
    "UnclaimedError",
    "UnflushedError",
    "UnlockBusyError",
    "UnlockError",
    "UnlockThrottledError",
    "UnlockedSession",
    "ValueEncodingError",
    "ValueTooLargeError",
    "VaultTransit",
    "WeakSecretError",
    "WhyLocked",
    "Words",
    "WriteOnlySession",
    "binary_results",
    "check_receipt",
    "enforce_foreign_keys",
    "plan_bits",
    "matches",
    "register_normalizer",
    "fill_tokens",
    "register_splitter",
    "should_retry",
    "stale_tokens",
    "throttle_table",
    "token_index",
]
