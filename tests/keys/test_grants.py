"""A grant opens for its recipient, through the row that grants it, to the key that it is of; sealed until the
recipient adopts it, wrapped from then on."""

import uuid
from collections.abc import Callable
from dataclasses import replace

import pytest

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.sealing import HYBRID_SIZE, SEALED_SIZE
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import WRAPPED_SIZE
from sqlalchemy_envelope.exceptions import EnvelopeError, FormatError, TamperedKeyError, TruncatedError
from sqlalchemy_envelope.keys.grants import adopted_grant, pending_grant, sealed_grant, way_through
from sqlalchemy_envelope.keys.hierarchy import describe, open_wrap
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import GrantState, OpenedKey, Purpose, StoredGrant, StoredKey

GROUP, ADA, BEN = b"owner reference of the group", b"ada", b"ben"
ROOT = describe(KeyBytes(bytes(range(32))), GROUP, Purpose.ROOT, epoch=3)
PROFILE = describe(KeyBytes(bytes(range(32, 64))), GROUP, Purpose.DATA, scope="profile")
MEMBER = describe(KeyBytes(bytes(range(64, 96))), ADA, Purpose.ROOT)
HYBRID = describe(MEMBER.key, ADA, Purpose.ROOT, hybrid=True)
OTHER = describe(KeyBytes.generate(), BEN, Purpose.ROOT)
ROW = b"the granting row"
SEALED = sealed_grant(ROOT, ROW, MEMBER.stored)
ADOPTED = adopted_grant(SEALED, ROOT, MEMBER)


def open_grant(
    grant: StoredGrant, key: StoredKey = ROOT.stored, recipient: OpenedKey = MEMBER
) -> OpenedKey | None:
    way = way_through(grant, key)
    return None if way is None else open_wrap(key, way, recipient)


def refusal(
    grant: StoredGrant, key: StoredKey = ROOT.stored, recipient: OpenedKey = MEMBER
) -> type[EnvelopeError]:
    """Which of our errors this grant raises."""
    with pytest.raises(EnvelopeError) as caught:
        open_grant(grant, key, recipient)
    return caught.type


@pytest.mark.parametrize("key", [ROOT, PROFILE], ids=["root key", "data key of a scope"])
@pytest.mark.parametrize("recipient", [MEMBER, HYBRID], ids=["classical", "hybrid"])
def test_a_grant_is_sealed_to_who_is_away_and_adopted(key: OpenedKey, recipient: OpenedKey) -> None:
    """With the recipient's public keys alone a grant is made that the recipient opens, and wraps anew."""
    sealed = sealed_grant(key, ROW, recipient.stored)
    adopted = adopted_grant(replace(sealed, seal=bytes(48)), key, recipient)

    assert sealed.wrapped is not None
    assert adopted.wrapped is not None
    assert len(sealed.wrapped) == (HYBRID_SIZE if recipient is HYBRID else SEALED_SIZE)
    assert len(adopted.wrapped) == WRAPPED_SIZE
    assert (sealed.state, adopted.state) == (GrantState.SEALED, GrantState.ADOPTED)
    assert sealed == replace(adopted, state=sealed.state, wrapped=sealed.wrapped)
    assert key == open_grant(sealed, key.stored, recipient) == open_grant(adopted, key.stored, recipient)
    assert (sealed.key_id, sealed.recipient_key_id) == (key.stored.key_id, recipient.stored.key_id)


@pytest.mark.parametrize("leave", [lambda ring: ring.drop(ADA), Keyring.wipe], ids=["drop", "wipe"])
def test_what_opens_many_grants_is_wiped_with_the_root_key(leave: Callable[[Keyring], None]) -> None:
    """The subkey that grants are wrapped under and the pair that they are sealed to are kept beside their
    recipient's root key, and nothing of them is left when the keyring forgets that."""
    root, ring = OpenedKey(MEMBER.stored, KeyBytes(MEMBER.key.buffer)), Keyring()
    ring.add(ADA, [root])
    ring.add_stored(GROUP, [ROOT.stored, PROFILE.stored])
    for grant, key in ((ADOPTED, ROOT), (sealed_grant(PROFILE, ROW, MEMBER.stored), PROFILE)):
        way = way_through(grant, key.stored)
        assert way is not None
        ring.add_way(key.stored.key_id, way)
        assert ring.open(key.stored.key_id) == key
    subkey = root.key.derived(kdf.wrapping_key)
    assert {kdf.wrapping_key, kdf.x25519_private} == root.key._derived.keys()
    leave(ring)

    assert not any(subkey.buffer)
    assert root.key._derived == {}


def test_a_grant_has_its_own_id_or_the_one_it_is_given() -> None:
    """A new row has a random id; a pending one that is fulfilled keeps its own."""
    pending = pending_grant(ROOT.stored.key_id, ROW)
    fulfilled = sealed_grant(ROOT, ROW, MEMBER.stored, pending.grant_id)

    assert sealed_grant(ROOT, ROW, MEMBER.stored).grant_id != SEALED.grant_id
    assert pending.grant_id == fulfilled.grant_id
    assert open_grant(fulfilled) == ROOT


def test_a_pending_grant_leads_nowhere() -> None:
    """It notes that somebody is to have the key, names no root key of theirs, and opens nothing."""
    pending = pending_grant(ROOT.stored.key_id, ROW)

    assert (pending.state, pending.recipient_key_id, pending.wrapped) == (GrantState.PENDING, None, None)
    assert way_through(pending, ROOT.stored) is None


@pytest.mark.parametrize("grant", [SEALED, ADOPTED], ids=["sealed", "adopted"])
def test_a_grant_opens_nowhere_else(grant: StoredGrant) -> None:
    """Moved to another granting row, recipient, key, owner, scope, purpose or epoch, it is tampering."""
    assert TamperedKeyError is refusal(replace(grant, granting_row=b"another row"))
    assert TamperedKeyError is refusal(grant, recipient=OTHER)
    assert TamperedKeyError is refusal(replace(grant, recipient_key_id=OTHER.stored.key_id), recipient=OTHER)
    assert TamperedKeyError is refusal(replace(grant, recipient_key_id=OTHER.stored.key_id))
    for change in (
        {"owner_reference": ADA},
        {"epoch": 4},
        {"epoch": 2},
        {"scope": "profile"},
        {"purpose": Purpose.DATA},
        {"commitment": bytes(32)},
        {"public_key": bytes(32)},
    ):
        assert TamperedKeyError is refusal(grant, replace(ROOT.stored, **change))  # type: ignore[arg-type]
    assert TamperedKeyError is refusal(grant, PROFILE.stored)
    assert TamperedKeyError is refusal(replace(grant, key_id=PROFILE.stored.key_id), PROFILE.stored)


@pytest.mark.parametrize("grant", [SEALED, ADOPTED], ids=["sealed", "adopted"])
def test_no_bit_of_a_grant_is_without_meaning(grant: StoredGrant) -> None:
    """Each bit of the wrap, flipped, and each length cut, is one of our errors."""
    assert grant.wrapped is not None
    for bit in range(8 * len(grant.wrapped)):
        blob = bytearray(grant.wrapped)
        blob[bit // 8] ^= 1 << bit % 8
        found = refusal(replace(grant, wrapped=bytes(blob)))

        assert issubclass(found, FormatError) if bit < 8 else found is TamperedKeyError, bit
    for size in range(len(grant.wrapped)):
        expected = FormatError if size == 0 else TruncatedError
        assert expected is refusal(replace(grant, wrapped=grant.wrapped[:size]))


def test_a_row_that_can_be_no_grant_is_tampering() -> None:
    """Pending with a wrap, sealed or adopted without one: no writer makes such a row."""
    for grant in (
        replace(SEALED, state=GrantState.PENDING),
        replace(ADOPTED, state=GrantState.PENDING),
        replace(SEALED, wrapped=None),
        replace(ADOPTED, wrapped=None),
    ):
        with pytest.raises(TamperedKeyError, match="does not fit"):
            way_through(grant, ROOT.stored)
    assert way_through(replace(SEALED, recipient_key_id=None), ROOT.stored) is None


def test_a_sealed_grant_does_not_pass_for_an_adopted_one() -> None:
    """Who adopted a key is trusted with more than who was sent one, and anybody can send: a row that only
    says it is adopted does not open. Nor the other way about."""
    planted = describe(KeyBytes.generate(), GROUP, Purpose.ROOT, epoch=4)
    sealed = sealed_grant(planted, ROW, MEMBER.stored)

    assert open_grant(sealed, planted.stored) == planted
    assert FormatError is refusal(replace(sealed, state=GrantState.ADOPTED), planted.stored)
    assert FormatError is refusal(replace(ADOPTED, state=GrantState.SEALED))


def test_who_seals_cannot_open() -> None:
    """What went into making a grant, without the key, does not open it."""
    assert TamperedKeyError is refusal(SEALED, recipient=describe(KeyBytes.generate(), ADA, Purpose.ROOT))


def test_a_grant_does_not_show_its_wrap() -> None:
    """The sealed bytes are in no repr."""
    assert repr(SEALED.wrapped) not in repr(SEALED)
    assert uuid.UUID(int=0) != SEALED.grant_id
