"""A row that the application wrote is accepted as it stands, and no other; without server keys none is asked
for its seal."""

import hmac
import uuid
from collections.abc import Mapping
from dataclasses import fields, replace

import pytest

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.row_seal import SEAL_SIZE, row_bytes, row_key, row_mac, server_key_id
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys import row_seals as module
from sqlalchemy_envelope.keys.grants import sealed_grant
from sqlalchemy_envelope.keys.hierarchy import describe, wrap_under_root
from sqlalchemy_envelope.keys.model import (
    GrantState,
    KeyState,
    Purpose,
    SlotKind,
    StoredGrant,
    StoredKey,
    StoredSlot,
)
from sqlalchemy_envelope.keys.row_seals import RowSeals

ONE, TWO, THREE = (KeyBytes(bytes([n]) * 32) for n in (1, 2, 3))
ROW = [b"key", b"id", b"", b"owner"]


class Ordered:
    """Server keys in order, the first active."""

    def __init__(self, *keys: KeyBytes) -> None:
        self.keys_by_id: Mapping[bytes, KeyBytes] = {server_key_id(key): key for key in keys}
        self.active = next(iter(self.keys_by_id.items()))


SEALS = RowSeals(Ordered(ONE, TWO))


def seal(row: list[bytes] = ROW, label: str = "users", seals: RowSeals = SEALS) -> bytes:
    made = seals.seal(label, row)
    assert made is not None
    return made


def test_a_row_is_accepted_with_its_own_seal() -> None:
    """48 bytes, made under the first server key, and alike each time."""
    SEALS.check(seal(), "users", ROW)

    assert len(seal()) == SEAL_SIZE
    assert seal() == seal()
    assert seal()[:16] == server_key_id(ONE) == kdf.key_id_of(kdf.commitment(ONE)).bytes
    assert SEALS.is_on
    assert repr(SEALS) == "<RowSeals on>"


def test_a_seal_is_an_hmac_of_the_row() -> None:
    """HMAC-SHA-256 under a subkey of the server key for that table."""
    key = kdf.subkey(ONE, "row-seal", b"users", b"")

    assert row_key(ONE, "users") == key
    assert seal()[16:] == row_mac(key, row_bytes(ROW))
    assert seal()[16:] == hmac.digest(bytes(key.buffer), encode_context("row", *ROW), "sha256")


def test_server_keys_rotate() -> None:
    """What an older server key sealed is accepted while that is configured, and refused when it is not."""
    old = seal(seals=RowSeals(Ordered(TWO)))
    SEALS.check(old, "users", ROW)

    assert old != seal()
    with pytest.raises(RowSealError, match="not configured") as caught:
        RowSeals(Ordered(THREE)).check(old, "users", ROW)
    assert server_key_id(TWO).hex()[:8] in str(caught.value)


def test_an_altered_row_is_refused() -> None:
    """A column changed, emptied, moved to its neighbour, added or left out; another table; another kind."""
    for row in (
        [b"key", b"id", b"", b"other"],
        [b"key", b"", b"", b"owner"],
        [b"key", b"i", b"d", b"owner"],
        [b"key", b"id", b"owner", b""],
        [*ROW, b""],
        ROW[:-1],
        [b"slot", *ROW[1:]],
        [],
    ):
        with pytest.raises(RowSealError, match="altered"):
            SEALS.check(seal(), "users", row)
    with pytest.raises(RowSealError, match="'groups'"):
        SEALS.check(seal(), "groups", ROW)


def test_an_altered_seal_is_refused() -> None:
    """Every bit counts: of the server key's id it is another server key, of the MAC another row."""
    for bit in range(8 * SEAL_SIZE):
        altered = bytearray(seal())
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RowSealError, match="not configured" if bit < 128 else "altered"):
            SEALS.check(bytes(altered), "users", ROW)


@pytest.mark.parametrize("missing", [None, b"", *(bytes(size) for size in (16, 32, 47, 49, 96))])
def test_a_row_without_a_seal_is_refused(missing: bytes | None) -> None:
    """With server keys at hand there is no row that need not be sealed; the message says how to seal old
    ones."""
    with pytest.raises(RowSealError, match="seal_rows") as caught:
        SEALS.check(missing, "users", ROW)

    assert isinstance(caught.value, TamperedKeyError)


def test_a_seal_by_a_key_that_somebody_made_is_refused() -> None:
    """Whoever can write rows can make keys and seals under them, and none that is configured."""
    own = RowSeals(Ordered(THREE))
    with pytest.raises(RowSealError):
        SEALS.check(seal(seals=own), "users", ROW)
    with pytest.raises(RowSealError):
        SEALS.check(server_key_id(ONE) + seal(seals=own)[16:], "users", ROW)


def test_without_server_keys_nothing_is_sealed_or_asked_for() -> None:
    """No seal is made, and rows with any seal or none are let through."""
    off = RowSeals()
    for found in (None, b"", bytes(48), seal()):
        off.check(found, "users", ROW)

    assert off.seal("users", ROW) is None
    assert not off.is_on
    assert repr(off) == "<RowSeals off>"


def test_the_key_of_a_table_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of rows cost one derivation for each table and server key."""
    derived = []

    def counted(server_key: KeyBytes, label: str, realm: str) -> KeyBytes:
        derived.append(label)
        return row_key(server_key, label, realm)

    monkeypatch.setattr(module, "row_key", counted)
    seals = RowSeals(Ordered(ONE, TWO))
    old = [(label, seal(label=label, seals=RowSeals(Ordered(TWO)))) for label in ("users", "groups")]
    derived.clear()
    for _ in range(100):
        for label, sealed in old:
            seals.check(seal(label=label, seals=seals), label, ROW)
            seals.check(sealed, label, ROW)

    assert sorted(derived) == ["groups", "groups", "users", "users"]


# ---------------------------------------------------------------- what of a row is sealed

ROOT = describe(KeyBytes(bytes(range(32))), b"owner", Purpose.ROOT, epoch=2, hybrid=True)
DATA = describe(KeyBytes(bytes(range(32, 64))), b"owner", Purpose.DATA, scope="profile")
KEY = replace(wrap_under_root(DATA, ROOT), mlkem_public_key=ROOT.stored.mlkem_public_key)
SLOT = StoredSlot(
    uuid.uuid4(),
    ROOT.stored.key_id,
    SlotKind.PROVIDER,
    "kdf",
    b"wrapped",
    bytes(32),
    "server:one",
    b"\x14blob",
)
GRANT = replace(sealed_grant(DATA, b"row", ROOT.stored), recipient=b"owner reference of the recipient")
ANOTHER = {
    "key_id": uuid.uuid4(),
    "slot_id": uuid.uuid4(),
    "grant_id": uuid.uuid4(),
    "wrapping_key_id": uuid.uuid4(),
    "recipient_key_id": uuid.uuid4(),
    "purpose": Purpose.INDEX,
    "kind": SlotKind.SECRET,
    "epoch": 9,
    "scope": "x",
    "kdf": "x",
    "provider_ref": "x",
}
NOT_SEALED = {
    "proof",
    "granted",
    "seal",
    "label",
    "created_at",
    "used_at",
    "unacknowledged_since",
    "under_pepper",
    "share",
}


@pytest.mark.parametrize("row", [KEY, ROOT.stored, SLOT, GRANT], ids=["key", "root key", "slot", "grant"])
def test_every_column_is_under_the_seal(row: StoredKey | StoredSlot | StoredGrant) -> None:
    """Each column of each table, changed alone, changes what is sealed; but the seal itself, the proof, which
    is not asked for where rows are sealed, the counter of grants, which SQL counts up, a slot's label and
    times, which are for people, a new slot's share, and what a slot keeps of its row: the seal is made of the
    row itself."""
    state = GrantState.ADOPTED if row is GRANT else KeyState.RETIRED
    for name in [field.name for field in fields(row)]:
        changed = ANOTHER.get(name, state if name == "state" else 1 if name == "granted" else b"x")
        altered = replace(row, **{name: changed})  # type: ignore[arg-type]

        assert (altered.sealed_fields() == row.sealed_fields()) == (name in NOT_SEALED), name


def test_an_absent_column_is_sealed_as_empty() -> None:
    """A key without a wrap, a slot without a provider and a pending grant are sealed as the format says."""
    bare = replace(KEY, mlkem_public_key=None, wrapping_key_id=None, wrapped=None)
    slot = replace(SLOT, recipient_public_key=None, provider_ref=None, provider_wrapped=None)
    grant = replace(GRANT, recipient_key_id=None, wrapped=None)

    assert bare.sealed_fields()[-3:] == [b"", b"", b""]
    assert slot.sealed_fields()[5:8] == [b"", b"", b""]
    assert (grant.sealed_fields()[5], grant.sealed_fields()[7]) == (b"", b"")
    assert len({tuple(one.sealed_fields()) for one in (bare, slot, grant, KEY, SLOT, GRANT)}) == 6
