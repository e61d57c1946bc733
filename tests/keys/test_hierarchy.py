"""A stored key opens through a stored way, under the right root, and is the one its row describes; all else
is refused."""

import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.sealing import HYBRID_SIZE, SEALED_SIZE, public_keys, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import wrap
from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    FormatError,
    TamperedKeyError,
    TransactionConflictError,
    TruncatedError,
)
from sqlalchemy_envelope.keys.hierarchy import (
    check_generations,
    describe,
    is_proven,
    link_to_newer_root,
    open_wrap,
    proof_of_epoch,
    seal_to_root,
    short,
    verify,
    wrap_of,
    wrap_under_root,
)
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, StoredKey

ADA, BEN = b"owner reference of ada", b"owner reference of ben"
ROOT = describe(KeyBytes(bytes(range(32))), ADA, Purpose.ROOT)
DATA = describe(KeyBytes(bytes(range(32, 64))), ADA, Purpose.DATA)
STORED = wrap_under_root(DATA, ROOT)
KEYS = st.binary(min_size=32, max_size=32).filter(any).map(KeyBytes)  # zeros are a key that was wiped


def wrapped(stored: StoredKey) -> bytes:
    assert stored.wrapped is not None
    return stored.wrapped


def open_row(stored: StoredKey, root: OpenedKey = ROOT) -> OpenedKey:
    """Open a key through the way that its own row stores."""
    way = wrap_of(stored)
    assert way is not None
    return open_wrap(stored, way, root)


def refusal(stored: StoredKey, root: OpenedKey = ROOT) -> type[EnvelopeError]:
    """Which of our errors this row raises under this root."""
    with pytest.raises(EnvelopeError) as caught:
        open_row(stored, root)
    return caught.type


def other_key(stored: StoredKey = STORED) -> OpenedKey:
    return describe(KeyBytes.generate(), stored.owner_reference, stored.purpose)


# ---------------------------------------------------------------- made and opened again


@given(KEYS, st.binary(max_size=30), st.sampled_from(Purpose), st.text(max_size=9), st.integers(0, 2**32 - 1))
def test_a_key_is_described_by_itself(
    key: KeyBytes, owner: bytes, purpose: Purpose, scope: str, epoch: int
) -> None:
    """Id, commitment and public key come from the key, the rest is what was said; active, not wrapped."""
    opened = describe(key, owner, purpose, scope=scope, epoch=epoch)
    commitment = kdf.commitment(key)

    assert opened.key is key
    assert opened.stored == StoredKey(
        kdf.key_id_of(commitment),
        owner,
        purpose,
        scope,
        epoch,
        KeyState.ACTIVE,
        commitment,
        kdf.x25519_public(key),
    )
    assert opened == verify(key, opened.stored)


def test_what_is_not_said_is_the_first_epoch_of_no_scope() -> None:
    """A key has the empty scope and epoch 1 unless another is named."""
    stored = describe(KeyBytes.generate(), ADA, Purpose.DATA).stored

    assert (stored.scope, stored.epoch) == ("", 1)


@given(KEYS, KEYS, st.sampled_from([Purpose.DATA, Purpose.INDEX]), st.integers(0, 2**32 - 1))
def test_a_key_opens_under_its_root(key: KeyBytes, root: KeyBytes, purpose: Purpose, epoch: int) -> None:
    """What is wrapped under a root opens under it to the same key, with the row it was stored as."""
    above = describe(root, ADA, Purpose.ROOT)
    child = describe(key, ADA, purpose, scope="café", epoch=epoch)
    stored = wrap_under_root(child, above)
    opened = open_row(stored, above)

    assert key == opened.key
    assert stored == opened.stored
    assert above.stored.key_id == stored.wrapping_key_id
    assert child.stored == replace(stored, wrapping_key_id=None, wrapped=None)


def test_a_root_wraps_with_a_subkey() -> None:
    """Neither the root key itself nor another of its subkeys opens what it wraps."""
    for key in (ROOT.key, kdf.subkey(ROOT.key, "x25519")):
        planted = replace(STORED, wrapped=wrap(DATA.key, key, STORED.wrap_context("root")))

        assert TamperedKeyError is refusal(planted)
    fine = replace(STORED, wrapped=wrap(DATA.key, kdf.subkey(ROOT.key, "wrap"), STORED.wrap_context("root")))

    assert DATA.key == open_row(fine).key


# ---------------------------------------------------------------- rows that were altered


def test_every_flipped_bit_is_tampering() -> None:
    """A bit flipped in a wrap under an open root is certain tampering: no wrong secret can explain it."""
    for bit in range(8 * 105):
        blob = bytearray(wrapped(STORED))
        blob[bit // 8] ^= 1 << bit % 8
        expected = FormatError if bit < 8 else TamperedKeyError
        if bit == 1:  # 0x13, a seal, which is longer
            expected = TruncatedError

        assert expected is refusal(replace(STORED, wrapped=bytes(blob))), bit


@given(st.integers(0, 104), st.binary(min_size=1, max_size=9))
def test_every_other_length_is_refused(size: int, more: bytes) -> None:
    """A wrap that was cut short or prolonged is refused by its length."""
    assert (FormatError if size == 0 else TruncatedError) is refusal(
        replace(STORED, wrapped=wrapped(STORED)[:size])
    )
    assert FormatError is refusal(replace(STORED, wrapped=wrapped(STORED) + more))


@pytest.mark.parametrize(
    "change",
    [
        {"owner_reference": BEN},
        {"purpose": Purpose.INDEX},
        {"purpose": Purpose.ROOT},
        {"scope": "another"},
        {"epoch": 2},
        {"epoch": 2**32},
        {"epoch": -1},
        {"key_id": uuid.UUID(int=0)},
        {"commitment": bytes(32)},
        {"commitment": b""},
    ],
    ids=lambda change: str(*change),
)
def test_an_altered_row_is_tampering(change: dict[str, object]) -> None:
    """Owner, purpose, scope, epoch, id and commitment of a row cannot be changed unnoticed."""
    assert TamperedKeyError is refusal(replace(STORED, **change))  # type: ignore[arg-type]


def test_a_state_is_bound_by_no_wrap() -> None:
    """A retired key opens with the wrap it was stored with: its state is checked by `check_generations`."""
    assert DATA.key == open_row(replace(STORED, state=KeyState.RETIRED)).key


def test_exchanged_wraps_are_tampering() -> None:
    """The wraps of two keys of one owner, exchanged, do not open as each other."""
    other = wrap_under_root(other_key(), ROOT)

    assert TamperedKeyError is refusal(replace(STORED, wrapped=other.wrapped))
    assert TamperedKeyError is refusal(replace(other, wrapped=STORED.wrapped))


def test_a_key_that_its_row_does_not_describe_is_tampering() -> None:
    """Another key, wrapped correctly into this row by who knows the root, is not taken for it."""
    planted = wrap(KeyBytes.generate(), kdf.subkey(ROOT.key, "wrap"), STORED.wrap_context("root"))

    assert TamperedKeyError is refusal(replace(STORED, wrapped=planted))


def test_a_row_tells_under_which_root_it_lies() -> None:
    """The way names the root key it starts from, so that none is tried in vain; a row without a wrap has
    none."""
    other = describe(KeyBytes.generate(), ADA, Purpose.ROOT)
    ways = [wrap_of(STORED), wrap_of(wrap_under_root(DATA, other))]

    assert [ROOT.stored.key_id, other.stored.key_id] == [way and way.under for way in ways]
    assert wrap_of(replace(STORED, wrapping_key_id=None)) is None
    assert wrap_of(replace(STORED, wrapped=None)) is None
    assert wrap_of(ROOT.stored) is None
    assert TamperedKeyError is refusal(STORED, other)


def test_a_row_that_claims_the_root_is_tampering() -> None:
    """A key wrapped under another root, whose row was changed to name this one, does not open."""
    other = describe(KeyBytes.generate(), ADA, Purpose.ROOT)
    moved = replace(wrap_under_root(DATA, other), wrapping_key_id=ROOT.stored.key_id)

    assert TamperedKeyError is refusal(moved)


# ---------------------------------------------------------------- sealed, linked, proven

NEXT = describe(KeyBytes(bytes(range(64, 96))), ADA, Purpose.ROOT, epoch=2)
HYBRID_ROOT = describe(ROOT.key, ADA, Purpose.ROOT, hybrid=True)


@pytest.mark.parametrize("purpose", [Purpose.DATA, Purpose.WRITE])
@pytest.mark.parametrize("hybrid", [False, True])
def test_a_key_sealed_to_a_root_opens_with_it(purpose: Purpose, hybrid: bool) -> None:
    """Whoever has the public keys alone makes a key that the root key opens; hybrid where the root is."""
    root = HYBRID_ROOT if hybrid else ROOT
    child = describe(KeyBytes.generate(), ADA, purpose, scope="profile", epoch=4)
    stored = seal_to_root(child, root.stored)

    assert (HYBRID_SIZE if hybrid else SEALED_SIZE) == len(wrapped(stored))
    assert child.stored == replace(stored, wrapping_key_id=None, wrapped=None)
    assert OpenedKey(stored, child.key) == open_row(stored, root)
    for change in ({"epoch": 5}, {"scope": ""}, {"owner_reference": BEN}, {"purpose": Purpose.INDEX}):
        assert TamperedKeyError is refusal(replace(stored, **change), root)  # type: ignore[arg-type]
    assert TamperedKeyError is refusal(stored, NEXT)


def test_a_retired_root_opens_with_the_newer_one() -> None:
    """The link from a root key to the one before it opens with the newer, and the other way it does not."""
    linked = link_to_newer_root(ROOT, NEXT)

    assert NEXT.stored.key_id == linked.wrapping_key_id
    assert OpenedKey(linked, ROOT.key) == open_row(linked, NEXT)
    assert TamperedKeyError is refusal(linked, ROOT)
    assert TamperedKeyError is refusal(replace(linked, epoch=3), NEXT)


def test_nothing_is_wrapped_under_a_key_that_was_wiped() -> None:
    """Another thread wipes without waiting: what was wrapped under zeros is handed to nobody."""
    root = OpenedKey(ROOT.stored, KeyBytes(ROOT.key.buffer))
    root.key.wipe()
    with pytest.raises(TransactionConflictError, match="wiped"):
        wrap_under_root(DATA, root)


def test_what_is_sealed_is_not_taken_for_wrapped() -> None:
    """A root key that was sealed to the newest one is no link to it: anybody seals, a holder alone wraps."""
    planted = describe(KeyBytes.generate(), ADA, Purpose.ROOT, epoch=3)
    context = planted.stored.wrap_context("previous", recipient=NEXT.stored.key_id.bytes)
    blob = seal_key(planted.key, NEXT.stored.public_keys, context)
    row = replace(planted.stored, wrapping_key_id=NEXT.stored.key_id, wrapped=blob)

    assert FormatError is refusal(row, NEXT)


def test_what_is_wrapped_is_not_taken_for_sealed() -> None:
    """A way that must be sealed does not open what was wrapped under the same key in the same context."""
    way = wrap_of(STORED)
    assert way is not None
    with pytest.raises(FormatError):
        open_wrap(STORED, replace(way, sealed=True), ROOT)


def test_a_wrap_moved_between_kinds_does_not_open() -> None:
    """A data key that was sealed is not opened as wrapped, nor a link as a data key's wrap."""
    linked = link_to_newer_root(ROOT, NEXT)
    as_data = replace(linked, purpose=Purpose.DATA)
    sealed = replace(STORED, wrapped=seal_key(DATA.key, ROOT.stored.public_keys, STORED.wrap_context("root")))

    assert TamperedKeyError is refusal(as_data, NEXT)
    assert TamperedKeyError is refusal(sealed)


def test_a_proof_shows_who_held_the_root_before() -> None:
    """A holder of any earlier root key is proven, another is not; no proof proves nothing."""
    held, strange = ROOT, other_key(ROOT.stored)
    proven = replace(NEXT.stored, proof=proof_of_epoch(held, NEXT.stored.key_id.bytes))

    assert is_proven(proven, [held])
    assert is_proven(proven, [strange, held])
    assert not is_proven(proven, [strange])
    assert not is_proven(proven, [])
    assert not is_proven(NEXT.stored, [held])
    assert not is_proven(replace(proven, proof=b""), [held])
    assert not is_proven(replace(proven, key_id=strange.stored.key_id), [held])
    for bit in range(256):
        altered = bytearray(proven.proof or b"")
        altered[bit // 8] ^= 1 << bit % 8
        assert not is_proven(replace(proven, proof=bytes(altered)), [held]), bit


def test_a_proof_has_an_entry_for_each_side() -> None:
    """Some members may know one earlier root key and some another: two entries convince both, each in either
    place, and an entry that does not stand where one stands convinces nobody."""
    one, other, strange = ROOT, other_key(ROOT.stored), other_key(ROOT.stored)
    first, second = (proof_of_epoch(key, NEXT.stored.key_id.bytes) for key in (one, other))
    both = replace(NEXT.stored, proof=first + second)

    assert is_proven(both, [one])
    assert is_proven(both, [other])
    assert is_proven(replace(both, proof=bytes(32) + first), [one])
    assert not is_proven(both, [strange])
    for shifted in (bytes(1) + first, first[1:] + second, bytes(64) + first, first[:31], first[:16] * 2):
        assert not is_proven(replace(both, proof=shifted), [one])


@pytest.mark.parametrize("change", [{"mlkem_public_key": None}, {"mlkem_public_key": bytes(1184)}])
def test_a_hybrid_root_s_public_key_is_compared(change: dict[str, object]) -> None:
    """An ML-KEM public key that was exchanged is noticed; taken away, the row is one of a classical key."""
    altered = replace(HYBRID_ROOT.stored, **change)  # type: ignore[arg-type]
    if altered.mlkem_public_key is None:
        assert public_keys(ROOT.key, hybrid=False) == altered.public_keys
        return
    with pytest.raises(TamperedKeyError):
        verify(ROOT.key, altered)


# ---------------------------------------------------------------- commitment, id, public key


@pytest.mark.parametrize("name", ["commitment", "key_id", "public_key"])
def test_each_of_the_three_is_compared(name: str) -> None:
    """The row of an active root key with another key's commitment, id or public key, one at a time, is
    noticed."""
    planted = replace(ROOT.stored, **{name: getattr(other_key().stored, name)})
    with pytest.raises(TamperedKeyError):
        verify(ROOT.key, planted)


@pytest.mark.parametrize("name", ["commitment", "public_key"])
def test_every_bit_of_the_three_is_compared(name: str) -> None:
    """No single bit of an active root key's stored commitment or public key is ignored."""
    for bit in range(256):
        data = bytearray(getattr(ROOT.stored, name))
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TamperedKeyError):
            verify(ROOT.key, replace(ROOT.stored, **{name: bytes(data)}))


@pytest.mark.parametrize("public_key", [bytes(32), b""], ids=["exchanged", "taken away"])
@pytest.mark.parametrize(
    "stored",
    [DATA.stored, replace(DATA.stored, purpose=Purpose.WRITE), replace(ROOT.stored, state=KeyState.RETIRED)],
    ids=["data", "write", "retired root"],
)
def test_a_public_key_that_nothing_is_sealed_to_is_not_compared(stored: StoredKey, public_key: bytes) -> None:
    """An altered public key in the row of a data key, a write epoch or a retired root key is not told: it
    opens, and its id and commitment are compared as ever."""
    key = ROOT.key if stored.purpose is Purpose.ROOT else DATA.key
    altered = replace(stored, public_key=public_key, mlkem_public_key=bytes(1184))

    assert OpenedKey(altered, key) == verify(key, altered)
    with pytest.raises(TamperedKeyError):
        verify(key, replace(altered, commitment=bytes(32)))


@pytest.mark.parametrize("by", [1, 2, 16, 32, -1, -16])
def test_bytes_do_not_move_from_column_to_column(by: int) -> None:
    """Commitment, id and public key are compared one by one: joined, shifted rows would compare equal."""
    stored = ROOT.stored
    joined = stored.commitment + stored.key_id.bytes + stored.public_key
    shifted = replace(
        stored,
        commitment=joined[: 32 + by],
        key_id=uuid.UUID(bytes=joined[32 + by : 48 + by]),
        public_key=joined[48 + by :],
    )
    with pytest.raises(TamperedKeyError):
        verify(ROOT.key, shifted)


def test_another_key_is_not_its_row_s() -> None:
    """A key is not taken for the one that another row describes."""
    with pytest.raises(TamperedKeyError):
        verify(KeyBytes.generate(), DATA.stored)


def test_errors_name_the_row_and_hold_no_key() -> None:
    """A message shows eight digits of the id, to find the row by, and nothing of the key or the wrap."""
    assert str(STORED.key_id)[:8] == short(STORED)
    for stored, root in [
        (replace(STORED, commitment=bytes(32)), ROOT),
        (replace(STORED, epoch=2), ROOT),
        (STORED, describe(KeyBytes.generate(), ADA, Purpose.ROOT)),
    ]:
        with pytest.raises(EnvelopeError, match=short(STORED)) as caught:
            open_row(stored, root)

        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    shown = repr(STORED) + repr(DATA)

    assert repr(STORED.wrapped) not in shown
    assert repr(bytes(DATA.key.buffer)) not in shown


# ---------------------------------------------------------------- generations


def generation(epoch: int, state: KeyState, purpose: Purpose = Purpose.DATA, scope: str = "") -> StoredKey:
    described = describe(KeyBytes.generate(), ADA, purpose, scope=scope, epoch=epoch).stored
    return replace(described, state=state)


ACTIVE, RETIRED, DESTROYED = KeyState.ACTIVE, KeyState.RETIRED, KeyState.DESTROYED


@pytest.mark.parametrize(
    "states",
    [
        [],
        [ACTIVE],
        [RETIRED, ACTIVE],
        [DESTROYED, RETIRED, ACTIVE],
        [RETIRED, DESTROYED, ACTIVE],
        [DESTROYED],
        [DESTROYED, DESTROYED],
    ],
    ids=lambda states: "-".join(states) or "none",
)
def test_the_newest_alone_is_active(states: list[KeyState]) -> None:
    """One active key, the newest of its kind, is what a database holds; or none, where all are destroyed."""
    keys = [generation(epoch, state) for epoch, state in enumerate(states, 1)]
    check_generations(keys)
    check_generations(keys[::-1])


@pytest.mark.parametrize(
    "states",
    [
        [ACTIVE, ACTIVE],
        [ACTIVE, RETIRED],
        [RETIRED],
        [RETIRED, RETIRED],
        [RETIRED, ACTIVE, RETIRED],
        [DESTROYED, RETIRED],
    ],
    ids=lambda states: "-".join(states),
)
@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose is not Purpose.WRITE])
def test_an_older_or_second_active_key_is_tampering(states: list[KeyState], purpose: Purpose) -> None:
    """A key that was made active again, beside the newest or in its place, is noticed whatever it is for."""
    keys = [generation(epoch, state, purpose) for epoch, state in enumerate(states, 1)]
    for order in (keys, keys[::-1]):
        with pytest.raises(TamperedKeyError, match=purpose):
            check_generations(order)


def test_write_epochs_have_no_generations() -> None:
    """Any number of write epochs lie beside one another, retired; one that is active is tampering."""
    epochs = [generation(epoch, RETIRED, Purpose.WRITE) for epoch in (7, 7, 9)]
    check_generations([generation(1, ACTIVE), *epochs])
    for state in (ACTIVE, DESTROYED):
        planted = [*epochs, generation(11, state, Purpose.WRITE)]
        if state is DESTROYED:
            check_generations(planted)
            continue
        with pytest.raises(TamperedKeyError, match="write"):
            check_generations(planted)


def test_kinds_are_counted_apart() -> None:
    """A root, data keys of two scopes and an index key may all be active, each of its own epoch."""
    fine = [
        generation(3, ACTIVE, Purpose.ROOT),
        generation(1, RETIRED, Purpose.DATA),
        generation(2, ACTIVE, Purpose.DATA),
        generation(7, ACTIVE, Purpose.DATA, "medical"),
        generation(1, ACTIVE, Purpose.INDEX),
    ]
    check_generations(fine)
    for index in (2, 3, 4, 0):
        with pytest.raises(TamperedKeyError):
            check_generations([*fine, replace(fine[index], epoch=fine[index].epoch + 1)])


def test_two_of_one_epoch_are_tampering() -> None:
    """Two active keys of the same epoch are two active keys, whichever is held for the newest."""
    with pytest.raises(TamperedKeyError):
        check_generations([generation(2, ACTIVE), generation(2, ACTIVE)])


def test_every_kind_is_looked_at() -> None:
    """Kinds whose keys are all destroyed, however many, do not keep another kind from being checked."""
    destroyed = [generation(1, DESTROYED, scope=f"scope {number}") for number in range(50)]
    check_generations([*destroyed, generation(1, ACTIVE)])
    with pytest.raises(TamperedKeyError):
        check_generations([*destroyed, generation(1, RETIRED)])


def test_a_root_has_no_scope_to_hide_in() -> None:
    """A second active root under a scope of its own is a second root all the same."""
    with pytest.raises(TamperedKeyError):
        check_generations([generation(1, ACTIVE, Purpose.ROOT), generation(2, ACTIVE, Purpose.ROOT, "other")])
