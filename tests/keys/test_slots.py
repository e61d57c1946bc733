"""A secret slot opens with its own secret to the root key that its row describes; altered, it stays shut."""

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto.argon2id import KdfProfile, KdfSalt, derive_kek
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import wrap
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    FormatError,
    TamperedKeyError,
    TruncatedError,
    UnlockError,
)
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.model import Purpose, SlotKind, StoredKey, StoredSlot
from sqlalchemy_envelope.keys.slots import open_secret_slot, secret_slot

CHEAP = KdfProfile.unsafe_for_tests()
ROOT = describe(KeyBytes(bytes(range(32))), b"owner reference of ada", Purpose.ROOT)
SALT = KdfSalt(CHEAP, bytes(range(16)))
KEK = derive_kek(b"secret", SALT)
SLOT = secret_slot(ROOT, KEK, SALT)


def refusal(slot: StoredSlot, stored: StoredKey = ROOT.stored, kek: KeyBytes = KEK) -> type[EnvelopeError]:
    """Which of our errors opening this slot raises."""
    with pytest.raises(EnvelopeError) as caught:
        open_secret_slot(slot, stored, kek)
    return caught.type


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=32, max_size=32).map(KeyBytes))
def test_a_slot_opens_with_its_secret(secret: bytes, key: KeyBytes) -> None:
    """What a secret locked it opens, through nothing but what is stored."""
    root = describe(key, b"owner", Purpose.ROOT, epoch=3)
    salt = KdfSalt.generate(CHEAP)
    slot = secret_slot(root, derive_kek(secret, salt), salt)
    again = derive_kek(secret, KdfSalt.parse(slot.kdf, policy=CHEAP))

    assert root == open_secret_slot(slot, root.stored, again)
    assert (root.stored.key_id, SlotKind.SECRET) == (slot.key_id, slot.kind)


def test_a_slot_has_its_own_id_or_the_one_it_is_given() -> None:
    """A slot is made with a random id, and made again with the id of the row that it replaces."""
    given_id = uuid.uuid4()

    assert secret_slot(ROOT, KEK, SALT).slot_id != secret_slot(ROOT, KEK, SALT).slot_id
    assert given_id == secret_slot(ROOT, KEK, SALT, given_id).slot_id


@given(st.binary(max_size=40).filter(lambda secret: secret != b"secret"))
def test_another_secret_opens_nothing(secret: bytes) -> None:
    """A wrong secret is an `UnlockError`, which does not tell it from an altered slot."""
    assert UnlockError is refusal(SLOT, kek=derive_kek(secret, SALT))


def test_the_salt_string_is_bound() -> None:
    """A slot whose parameters or salt were changed stays shut, even for who derived the right key."""
    for kdf in [str(replace(SALT, salt=bytes(16))), str(replace(SALT, profile=KdfProfile.OWASP_MINIMUM)), ""]:
        assert UnlockError is refusal(replace(SLOT, kdf=kdf))


def test_a_slot_opens_for_its_own_row_alone() -> None:
    """Moved to another owner, another epoch or another key, a slot stays shut."""
    for change in ({"owner_reference": b"ben"}, {"epoch": 2}, {"purpose": Purpose.DATA}, {"scope": "x"}):
        assert UnlockError is refusal(SLOT, replace(ROOT.stored, **change))  # type: ignore[arg-type]
    other = describe(KeyBytes.generate(), ROOT.stored.owner_reference, Purpose.ROOT)

    assert UnlockError is refusal(SLOT, other.stored)


def test_a_wrap_of_another_kind_is_no_slot() -> None:
    """A key wrapped as under a root is not opened as a slot, even under the very same key."""
    as_root = wrap(ROOT.key, KEK, ROOT.stored.wrap_context("root", str(SALT)))

    assert UnlockError is refusal(replace(SLOT, wrapped=as_root))


def test_a_root_that_its_row_does_not_describe_is_tampering() -> None:
    """A root key planted into the slot by who knows the secret is noticed: the row's commitment differs."""
    planted = wrap(KeyBytes.generate(), KEK, ROOT.stored.wrap_context(SlotKind.SECRET, str(SALT)))

    assert TamperedKeyError is refusal(replace(SLOT, wrapped=planted))
    assert TamperedKeyError is refusal(SLOT, replace(ROOT.stored, commitment=bytes(32)))
    assert TamperedKeyError is refusal(SLOT, replace(ROOT.stored, public_key=bytes(32)))


def test_every_flipped_bit_is_noticed() -> None:
    """Each bit of a slot, flipped, raises: up to the commitment like a wrong secret, then as tampering."""
    for bit in range(8 * len(SLOT.wrapped)):
        blob = bytearray(SLOT.wrapped)
        blob[bit // 8] ^= 1 << bit % 8
        expected = FormatError if bit < 8 else UnlockError if bit < 8 * 57 else TamperedKeyError

        assert expected is refusal(replace(SLOT, wrapped=bytes(blob))), bit


@given(st.integers(1, 104), st.binary(min_size=1, max_size=9))
def test_every_other_length_is_refused(size: int, more: bytes) -> None:
    """A slot that was cut short or prolonged is refused by its length."""
    assert TruncatedError is refusal(replace(SLOT, wrapped=SLOT.wrapped[:size]))
    assert FormatError is refusal(replace(SLOT, wrapped=SLOT.wrapped + more))


def test_a_slot_does_not_show_its_wrap() -> None:
    """The bytes that a guesser would work on are in no repr."""
    assert repr(SLOT.wrapped) not in repr(SLOT)
