"""The columns of key and slot rows, and the rows as records. Each is checked: a row may hold anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import LargeBinary, type_coerce

from sqlalchemy_envelope.exceptions import EnvelopeError, KdfParametersError, TamperedKeyError
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind, StoredKey, StoredSlot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Table

    from sqlalchemy_envelope.keys.keyring import OwnerId

    PrimaryKey = tuple[Any, ...]


class OwnedKey(NamedTuple):
    """A key row with whose it is: by its foreign key, and by what the owner is bound to."""

    owner: OwnerId
    primary_key: PrimaryKey
    stored: StoredKey
    error: EnvelopeError | None
    """Why it must not be used, if it must not: told with the row, so that a bad row stops its owner alone."""


HeldKey = tuple[OwnedKey, OwnedKey, StoredSlot]
"""A data key, the root key that wraps it, and a provider's slot of that root key."""


def usable(keys: Iterable[OwnedKey]) -> list[OwnedKey]:
    """The same keys, if each may be used.

    Raises:
        RowSealError, OwnerMismatchError: one may not.
    """
    found = list(keys)
    for one in found:
        if one.error is not None:
            raise one.error
    return found


def parsed(keys: Iterable[OwnedKey]) -> Iterator[OwnedKey]:
    for one in keys:
        if isinstance(one.error, TamperedKeyError):
            raise one.error
        yield one


class RawBytes(LargeBinary):
    """Bytes as the driver gives them. SQLAlchemy's own type calls `bytes()` on them, and `bytes(n)` of an
    integer that was planted in a binary column of SQLite allocates n bytes."""

    def result_processor(self, dialect: Any, coltype: object) -> None:
        """None: nothing is done to them."""


def raw(column: Any) -> Any:
    return type_coerce(column, RawBytes())


def stored_bytes(value: object, size: int | None = None) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)) or size not in (None, len(value)):
        raise TamperedKeyError("A stored key holds no bytes where bytes belong, or bytes of a wrong size.")
    return bytes(value)


def key_columns(keys: Any) -> tuple[Any, ...]:
    c = keys.c
    return (
        c.key_id, raw(c.owner_reference), c.purpose, c.scope, c.epoch, c.state, raw(c.commitment),
        raw(c.public_key), raw(c.mlkem_public_key), c.wrapping_key_id, raw(c.wrapped), raw(c.proof),
        c.granted, raw(c.seal),
    )  # fmt: skip


def slot_columns(slots: Table) -> tuple[Any, ...]:
    c = slots.c
    return (
        c.slot_id, c.key_id, c.kind, c.kdf, raw(c.wrapped), raw(c.recipient_public_key), c.provider_ref,
        raw(c.provider_wrapped), raw(c.seal),
    )  # fmt: skip


def slot_notes(slots: Table) -> tuple[Any, ...]:
    """The columns of a slot that are for people: a page of values that a server opens needs none of them."""
    c = slots.c
    return c.label, c.created_at, c.used_at, c.unacknowledged_since


KEY_WIDTH = 14


_PURPOSES = {purpose.value: purpose for purpose in Purpose}


_STATES = {state.value: state for state in KeyState}


def stored_key(row: Any) -> StoredKey:
    purpose, state = _PURPOSES.get(row[2]), _STATES.get(row[5])
    if purpose is None or state is None:
        raise TamperedKeyError("A stored key has an unknown purpose or state.")
    scope, epoch, granted = row[3], row[4], row[12]
    if not isinstance(scope, str) or not isinstance(epoch, int) or not isinstance(granted, int):
        raise TamperedKeyError("A stored key has an impossible scope or epoch.")
    if not 0 <= epoch < 2**32:
        raise TamperedKeyError(f"A stored key has the epoch {epoch}, which is out of range.")
    return StoredKey(
        row[0],
        stored_bytes(row[1]),
        purpose,
        scope,
        epoch,
        state,
        stored_bytes(row[6], 32),
        stored_bytes(row[7], 32),
        None if row[8] is None else stored_bytes(row[8], 1184),
        row[9],
        None if row[10] is None else stored_bytes(row[10]),
        _proof(row[11]),
        granted,
        None if row[13] is None else stored_bytes(row[13]),
    )


def _proof(value: object) -> bytes | None:
    if value is None:
        return None
    proof = stored_bytes(value)
    if len(proof) not in (32, 64):
        raise TamperedKeyError("A stored key has a proof of a wrong size.")
    return proof


def stored_slot(row: Any) -> StoredSlot:
    """A row of `slot_columns`, and of `slot_notes` after them where they were selected."""
    kdf, reference = row[3] or "", row[6]
    if not isinstance(kdf, str) or not isinstance(reference, (str, type(None))):
        raise KdfParametersError("The stored key-derivation string is not text.")
    try:
        kind = SlotKind(row[2])
    except ValueError:
        raise TamperedKeyError("A stored slot has an unknown kind.") from None
    return StoredSlot(
        row[0],
        row[1],
        kind,
        kdf,
        stored_bytes(row[4]),
        None if row[5] is None else stored_bytes(row[5], 32),
        reference,
        None if row[7] is None else stored_bytes(row[7]),
        None if row[8] is None else stored_bytes(row[8]),
        *row[9:13],
    )
