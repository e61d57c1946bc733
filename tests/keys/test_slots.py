"""A slot opens with its own KEK to the root key that its row describes; altered, it stays shut."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto.argon2id import KdfProfile, KdfSalt, derive_kek
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.sealing import HYBRID_SIZE, SEALED_SIZE, public_keys, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import WRAPPED_SIZE, wrap
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    FormatError,
    ProviderError,
    TamperedKeyError,
    TruncatedError,
    UnlockError,
)
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.model import Purpose, SlotKind, StoredKey, StoredSlot
from sqlalchemy_envelope.keys.slots import (
    ProviderKek,
    adopted_slot,
    check_kek,
    kek_context,
    open_slot,
    provider_slot,
    sealed_slot,
    secret_slot,
)

CHEAP = KdfProfile.unsafe_for_tests()
ROOT = describe(KeyBytes(bytes(range(32))), b"owner reference of ada", Purpose.ROOT)
SALT = KdfSalt(CHEAP, bytes(range(16)))
KEK = derive_kek(b"secret", SALT)
SLOT = secret_slot(ROOT, KEK, SALT)


def refusal(slot: StoredSlot, stored: StoredKey = ROOT.stored, kek: KeyBytes = KEK) -> type[EnvelopeError]:
    """Which of our errors opening this slot raises."""
    with pytest.raises(EnvelopeError) as caught:
        open_slot(slot, stored, kek)
    return caught.type


@given(st.binary(min_size=1, max_size=40), st.binary(min_size=32, max_size=32).map(KeyBytes))
def test_a_slot_opens_with_its_secret(secret: bytes, key: KeyBytes) -> None:
    """What a secret locked it opens, through nothing but what is stored."""
    root = describe(key, b"owner", Purpose.ROOT, epoch=3)
    salt = KdfSalt.generate(CHEAP)
    slot = secret_slot(root, derive_kek(secret, salt), salt)
    again = derive_kek(secret, KdfSalt.parse(slot.kdf, policy=CHEAP))

    assert root == open_slot(slot, root.stored, again)
    assert (root.stored.key_id, SlotKind.SECRET) == (slot.key_id, slot.kind)
    assert x25519_public(again) == slot.recipient_public_key


def test_a_slot_has_its_own_id_or_the_one_it_is_given() -> None:
    """A slot is made with a random id, and made again with the id of the row that it replaces."""
    first, again = secret_slot(ROOT, KEK, SALT), secret_slot(ROOT, KEK, SALT)

    assert first.slot_id != again.slot_id
    assert first.slot_id == secret_slot(ROOT, KEK, SALT, first).slot_id


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


def test_an_exchanged_public_key_is_noticed() -> None:
    """Somebody else's public key in a wrapped slot would have the next root key sealed to them: tampering. A
    slot without one is from before there were any."""
    for slot in (SLOT, PROVIDER_SLOT):
        strange = x25519_public(KeyBytes.generate())

        assert TamperedKeyError is refusal(replace(slot, recipient_public_key=strange))
        assert TamperedKeyError is refusal(replace(slot, recipient_public_key=b""))
        assert open_slot(replace(slot, recipient_public_key=None), ROOT.stored, KEK) == ROOT


def test_every_flipped_bit_is_noticed() -> None:
    """Each bit of a slot, flipped, raises: up to the commitment like a wrong secret, then as tampering."""
    for bit in range(8 * len(SLOT.wrapped)):
        blob = bytearray(SLOT.wrapped)
        blob[bit // 8] ^= 1 << bit % 8
        expected = FormatError if bit < 8 else UnlockError if bit < 8 * 57 else TamperedKeyError
        # 0x13 is no format of a slot; 0x12 is two bits from 0x11; a slot in format 0x15 is longer.
        expected = TruncatedError if blob[0] == 0x15 else expected

        assert expected is refusal(replace(SLOT, wrapped=bytes(blob))), bit


@given(st.integers(1, 104), st.binary(min_size=1, max_size=9))
def test_every_other_length_is_refused(size: int, more: bytes) -> None:
    """A slot that was cut short or prolonged is refused by its length."""
    assert TruncatedError is refusal(replace(SLOT, wrapped=SLOT.wrapped[:size]))
    assert FormatError is refusal(replace(SLOT, wrapped=SLOT.wrapped + more))


def test_a_slot_does_not_show_its_wrap() -> None:
    """The bytes that a guesser would work on are in no repr."""
    assert repr(SLOT.wrapped) not in repr(SLOT)


# ---------------------------------------------------------------- slots of a provider

PROVIDED = ProviderKek("server:one", b"what the provider made", x25519_public(KEK))
HELD = replace(PROVIDED, key=KEK)
PROVIDER_SLOT = provider_slot(ROOT, HELD)


@pytest.mark.parametrize("held", [True, False], ids=["wrapped", "sealed"])
def test_a_provider_s_slot_opens_with_its_kek(held: bool) -> None:
    """Made with the KEK or with its public half alone, the slot opens with the KEK, and with no other."""
    slot = provider_slot(ROOT, HELD if held else PROVIDED)

    assert (WRAPPED_SIZE if held else SEALED_SIZE) == len(slot.wrapped)
    assert (slot.kind, slot.kdf, slot.provider_ref) == (SlotKind.PROVIDER, "", "server:one")
    assert (PROVIDED.wrapped, PROVIDED.public_key) == (slot.provider_wrapped, slot.recipient_public_key)
    assert open_slot(slot, ROOT.stored, KEK) == ROOT
    assert UnlockError is refusal(slot, kek=KeyBytes.generate())


def test_a_provider_s_slot_is_no_secret_slot() -> None:
    """A slot whose kind was changed stays shut, wrapped or sealed, even with the KEK."""
    for slot in (PROVIDER_SLOT, provider_slot(ROOT, PROVIDED)):
        assert UnlockError is refusal(replace(slot, kind=SlotKind.SECRET))
    assert UnlockError is refusal(replace(SLOT, kind=SlotKind.PROVIDER))


def test_a_provider_is_asked_in_the_name_of_one_kek() -> None:
    """What a provider is to bind to names the library and the KEK's public key, in hexadecimal."""
    assert {"library": "sqlalchemy-envelope/v1", "kek": x25519_public(KEK).hex()} == kek_context(
        PROVIDED.public_key
    )


def test_a_provider_s_answer_is_compared() -> None:
    """Another key than the one that was wrapped is an error, and is wiped; so is one for a slot without a
    public key."""
    assert check_kek(KeyBytes(KEK.buffer), PROVIDER_SLOT) == KEK
    for slot, answer in [
        (PROVIDER_SLOT, KeyBytes.generate()),
        (replace(PROVIDER_SLOT, recipient_public_key=None), KeyBytes(KEK.buffer)),
    ]:
        with pytest.raises(ProviderError, match="another key") as caught:
            check_kek(answer, slot)

        assert "server:one" in str(caught.value)
        assert bytes(32) == bytes(answer.buffer)


# ---------------------------------------------------------------- sealed and adopted

NEXT = describe(KeyBytes(bytes(range(32, 64))), b"owner reference of ada", Purpose.ROOT, epoch=2, hybrid=True)


@pytest.mark.parametrize("slot", [SLOT, PROVIDER_SLOT], ids=lambda slot: str(slot.kind))
def test_a_new_root_key_goes_into_a_slot_without_what_opens_it(slot: StoredSlot) -> None:
    """A sealed slot is another row of the same kind, opens with the same KEK to the new root key, and has no
    row seal yet."""
    sealed = sealed_slot(NEXT, replace(slot, seal=bytes(48)))
    same = replace(sealed, slot_id=slot.slot_id, key_id=slot.key_id, wrapped=slot.wrapped)

    assert slot == same
    assert slot.slot_id != sealed.slot_id
    assert NEXT.stored.key_id == sealed.key_id
    assert open_slot(sealed, NEXT.stored, KEK) == NEXT
    assert UnlockError is refusal(sealed, NEXT.stored, KeyBytes.generate())
    assert UnlockError is refusal(sealed, ROOT.stored)


def test_a_slot_is_sealed_to_the_x25519_pair_of_its_kek() -> None:
    """A KEK has no ML-KEM pair: a slot is sealed as 0x12 whatever its root key is, and 0x13 is not read
    there."""
    sealed = sealed_slot(NEXT, SLOT)
    context = NEXT.stored.wrap_context(SlotKind.SECRET, SLOT.kdf, recipient=x25519_public(KEK))
    planted = replace(sealed, wrapped=seal_key(NEXT.key, public_keys(KEK, hybrid=True), context))

    assert (len(sealed.wrapped), sealed.wrapped[:1]) == (SEALED_SIZE, b"\x12")
    assert len(planted.wrapped) == HYBRID_SIZE
    assert FormatError is refusal(planted, NEXT.stored)


def test_everything_a_sealed_slot_says_is_bound() -> None:
    """Salt string, public key and the root key's row cannot be changed under a seal either."""
    sealed = sealed_slot(NEXT, SLOT)
    for change in (
        {"kdf": str(replace(SALT, salt=bytes(16)))},
        {"recipient_public_key": bytes(32)},
        {"recipient_public_key": None},
        {"kind": SlotKind.PROVIDER},
    ):
        assert UnlockError is refusal(replace(sealed, **change), NEXT.stored)  # type: ignore[arg-type]
    for change in ({"epoch": 1}, {"owner_reference": b"ben"}, {"scope": "x"}):
        assert UnlockError is refusal(sealed, replace(NEXT.stored, **change))  # type: ignore[arg-type]
    assert TamperedKeyError is refusal(sealed, replace(NEXT.stored, commitment=bytes(32)))


@pytest.mark.parametrize("slot", [SLOT, PROVIDER_SLOT], ids=lambda slot: str(slot.kind))
def test_an_adopted_slot_is_wrapped(slot: StoredSlot) -> None:
    """What was sealed by somebody else is wrapped under the KEK from then on, in the same row."""
    sealed = sealed_slot(NEXT, slot)
    adopted = adopted_slot(sealed, NEXT, KEK)

    assert sealed == replace(adopted, wrapped=sealed.wrapped, used_at=sealed.used_at)
    assert len(adopted.wrapped) == WRAPPED_SIZE
    assert open_slot(adopted, NEXT.stored, KEK) == NEXT
