"""A keyring opens keys along the stored ways to them, and hands out ciphers of the right key, old and new,
while it holds the key and no longer."""

import uuid
from collections.abc import Callable

import pytest

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, Field, ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import DecryptionError
from sqlalchemy_envelope.keys import keyring as module
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from tests.keys.rings import cipher_of, opened, raw, writer

ADA, BEN = b"ada", b"ben"
BODY, TITLE = Field("notes.body", "str"), Field("notes.title", "str")
ZEROS = bytes(32)


def test_an_empty_keyring_has_nothing() -> None:
    """Without keys there are no owners, no readers and no writers, and nothing raises."""
    ring = Keyring()
    header = b"\1" + bytes(16)
    ring.drop(ADA)
    ring.wipe()

    assert (len(ring), list(ring), ADA in ring) == (0, [], False)
    assert ring.reader(header, BODY) is ring.writer(ADA, "", BODY) is ring.owner_of(header) is None
    assert repr(ring) == "<Keyring of 0 keys>"


@pytest.mark.parametrize("newest_first", [True, False])
def test_the_active_key_encrypts_and_all_decrypt(newest_first: bool) -> None:
    """Of several epochs new values take the active one; what retired ones wrote opens still."""
    keys = [opened(1, KeyState.RETIRED), opened(2, KeyState.RETIRED), opened(3)]
    old = [cipher_of(key).encrypt(b"epoch %d" % key.stored.epoch) for key in keys]
    ring = Keyring()
    ring.add(ADA, keys[::-1] if newest_first else keys)
    new = writer(ring).encrypt(b"new")

    assert keys[2].stored.key_id.bytes == new[1:HEADER_SIZE]
    assert cipher_of(keys[2]).decrypt(new) == b"new"
    for epoch, blob in enumerate(old, 1):
        reader = ring.reader(blob[:HEADER_SIZE], BODY)
        assert reader is not None

        assert b"epoch %d" % epoch == reader.decrypt(blob)
        assert ring.owner_of(blob) == ADA
    assert (len(ring), list(ring), ADA in ring) == (1, [ADA], True)
    assert repr(ring) == "<Keyring of 3 keys>"


def test_an_owner_with_retired_keys_alone_can_only_read() -> None:
    """Without an active key nothing new is encrypted, though what there is opens."""
    key = opened(state=KeyState.RETIRED)
    ring = Keyring()
    ring.add(ADA, [key])

    assert ring.writer(ADA, "", BODY) is None
    assert ADA in ring
    assert ring.current(ADA, Purpose.DATA) is None
    assert ring.reader(b"\1" + key.stored.key_id.bytes, BODY) is not None


@pytest.mark.parametrize("purpose", [Purpose.ROOT, Purpose.INDEX, Purpose.WRITE])
def test_only_data_keys_encrypt(purpose: Purpose) -> None:
    """A key for something else encrypts no value of its owner's, though it is held."""
    key = opened(purpose=purpose)
    ring = Keyring()
    ring.add(ADA, [key])

    assert ring.writer(ADA, "", BODY) is None
    assert key == ring.open(key.stored.key_id)
    assert repr(ring) == "<Keyring of 1 keys>"


def test_a_root_key_is_not_found_by_a_value_s_header() -> None:
    """A value that names a root key opens with nothing, and is nobody's."""
    root = opened(purpose=Purpose.ROOT)
    ring = Keyring()
    ring.add(ADA, [root])
    header = b"\1" + root.stored.key_id.bytes

    assert ring.reader(header, BODY) is ring.owner_of(header) is None
    assert root == ring.root(ADA)


def test_owners_do_not_see_each_other() -> None:
    """Each owner's values are encrypted under its own key and named as its own."""
    ada, ben = opened(), opened(owner=BEN)
    ring = Keyring()
    ring.add(ADA, [ada])
    ring.add(BEN, [ben])
    blob = writer(ring, BEN).encrypt(b"value")

    assert ring.owner_of(blob) == BEN
    assert cipher_of(ben).decrypt(blob) == b"value"
    with pytest.raises(DecryptionError):
        writer(ring, ADA).decrypt(blob)
    assert list(ring) == [ADA, BEN]
    assert len(ring) == 2


def test_a_cipher_is_built_once_for_each_key_and_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reader and writer of one key and field are one object, built once; of another field or key another."""
    built = []

    def build(*args: object) -> ValueCipher:
        built.append(args[2])
        return ValueCipher(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ValueCipher", build)
    key = opened()
    header = b"\1" + key.stored.key_id.bytes
    ring = Keyring()
    ring.add(ADA, [key])
    ring.add(BEN, [opened(owner=BEN)])
    body, title = writer(ring), writer(ring, field=TITLE)

    assert body is writer(ring) is ring.reader(header, BODY) is ring.reader(bytearray(header), BODY)
    assert title is ring.reader(header, TITLE)
    assert body is not title
    assert body is not writer(ring, BEN)
    assert built == [BODY, TITLE, BODY]


@pytest.mark.parametrize("leave", [lambda ring: ring.drop(ADA), Keyring.wipe], ids=["drop", "wipe"])
def test_what_is_dropped_is_gone(leave: Callable[[Keyring], None]) -> None:
    """Dropping an owner, and wiping, zero every key of it and forget its ciphers, retired ones too."""
    keys = [opened(1, KeyState.RETIRED), opened(2)]
    blob = cipher_of(keys[0]).encrypt(b"value")
    ring = Keyring()
    ring.add(ADA, keys)
    before = writer(ring), ring.reader(blob, BODY)
    leave(ring)

    assert [raw(key) for key in keys] == [ZEROS, ZEROS]
    assert None not in before
    assert ring.writer(ADA, "", BODY) is ring.reader(blob, BODY) is ring.owner_of(blob) is None
    assert ADA not in ring
    assert (len(ring), list(ring)) == (0, [])
    # Nothing else holds a cipher: were one left, the same key taken in again would get the old one.
    again = [OpenedKey(key.stored, KeyBytes.generate()) for key in keys]
    ring.add(ADA, again)
    assert writer(ring) not in before
    assert ring.reader(blob, BODY) not in before


def test_dropping_one_owner_leaves_the_others() -> None:
    """What another owner's key opened opens still, with the cipher it had."""
    ada, ben = opened(), opened(owner=BEN)
    ring = Keyring()
    ring.add(ADA, [ada])
    ring.add(BEN, [ben])
    bens = writer(ring, BEN)
    writer(ring)
    ring.drop(ADA)

    assert raw(ada) == ZEROS
    assert raw(ben) != ZEROS
    assert bens is writer(ring, BEN)
    assert list(ring) == [BEN]


@pytest.mark.parametrize("leave", [lambda ring: ring.drop(ADA), Keyring.wipe], ids=["drop", "wipe"])
@pytest.mark.parametrize("reading", [True, False])
def test_a_cipher_built_while_its_key_is_wiped_is_not_handed_out(
    leave: Callable[[Keyring], None], reading: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another thread locks just when a cipher is built, none comes out: it could be under zeros."""
    key = opened()
    ring = Keyring()
    ring.add(ADA, [key])

    def build(*args: object) -> ValueCipher:
        leave(ring)  # what the other thread does, at the worst moment
        return ValueCipher(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ValueCipher", build)
    header = b"\1" + key.stored.key_id.bytes
    found = ring.reader(header, BODY) if reading else ring.writer(ADA, "", BODY)
    assert found is None
    monkeypatch.undo()
    # It was not kept either.
    fresh = OpenedKey(key.stored, KeyBytes.generate())
    ring.add(ADA, [fresh])

    assert cipher_of(fresh).decrypt(writer(ring).encrypt(b"value")) == b"value"


@pytest.mark.parametrize("leave", [lambda ring: ring.drop(ADA), Keyring.wipe], ids=["drop", "wipe"])
def test_a_cipher_wiped_as_it_is_kept_is_not_handed_out(leave: Callable[[Keyring], None]) -> None:
    """If another thread locks right after a cipher was put aside, none comes out, and nothing raises."""
    ring = Keyring()
    ring.add(ADA, [opened()])

    class Interrupted(dict[uuid.UUID, dict[Field, ValueCipher]]):
        def setdefault(self, *entry: object) -> dict[Field, ValueCipher]:
            found = super().setdefault(*entry)  # type: ignore[call-overload]
            leave(ring)
            return found  # type: ignore[no-any-return]

    ring._ciphers = Interrupted()

    assert ring.writer(ADA, "", BODY) is None
    assert ring._ciphers == {}


def test_wiping_forgets_before_it_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    """While keys are zeroed the ring has none already: no cipher under zeros can be built in between."""
    keys = [opened(1, KeyState.RETIRED), opened(2)]
    ring = Keyring()
    ring.add(ADA, keys)
    seen = []
    plain = KeyBytes.wipe

    def wipe(self: KeyBytes) -> None:
        seen.append(
            (ring.writer(ADA, "", BODY), *(ring.reader(b"\1" + k.stored.key_id.bytes, BODY) for k in keys))
        )
        plain(self)

    monkeypatch.setattr(KeyBytes, "wipe", wipe)
    ring.wipe()

    assert seen == [(None, None, None)] * 2


def test_wiping_twice_is_harmless() -> None:
    """A ring that was wiped can be wiped again, and used anew."""
    ring = Keyring()
    for _ in range(2):
        key = opened()
        ring.add(ADA, [key])
        ring.wipe()
        ring.wipe()

        assert raw(key) == ZEROS
