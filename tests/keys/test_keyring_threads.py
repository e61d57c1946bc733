"""A keyring that another thread wipes hands out no wiped key and makes no other error."""

import threading
from collections.abc import Callable

import pytest

from sqlalchemy_envelope.crypto.aead import Field
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys import keyring as module
from sqlalchemy_envelope.keys.hierarchy import link_to_newer_root, open_wrap, wrap_under_root
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from tests.keys.rings import opened, raw, root_of, under

ADA, BEN = b"ada", b"ben"
BODY, TITLE = Field("notes.body", "str"), Field("notes.title", "str")
ZEROS = bytes(32)


def test_a_key_that_is_opened_while_the_ring_is_wiped_is_not_handed_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler or another thread wipes without waiting, while a key is just being opened: it is wiped
    too, and nobody gets it."""
    root = root_of(ADA)
    data = under(root, opened())
    ring = Keyring()
    ring.add(ADA, [root])
    ring.add_stored(ADA, [data.stored])
    out: list[OpenedKey] = []

    def interrupted(*args: object) -> OpenedKey:
        out.append(open_wrap(*args))  # type: ignore[arg-type]
        wiping = threading.Thread(target=ring.wipe)
        wiping.start()
        wiping.join(30)
        assert not wiping.is_alive()  # it did not wait for the thread that opens
        return out[0]

    monkeypatch.setattr(module, "open_wrap", interrupted)

    assert ring.open(data.stored.key_id) is None
    assert raw(out[0]) == raw(root) == ZEROS
    assert not ring.is_open(data.stored.key_id)
    assert list(ring) == []


def test_a_wiped_key_is_not_taken_for_an_altered_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A way that does not open because its wrapping key was just zeroed is no tampering."""
    root = root_of(ADA)
    data = under(root, opened())
    ring = Keyring()
    ring.add(ADA, [root])
    ring.add_stored(ADA, [data.stored])

    def interrupted(*args: object) -> OpenedKey:
        ring.wipe()
        return open_wrap(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_wrap", interrupted)

    assert ring.open(data.stored.key_id) is None


def test_no_copy_is_made_of_a_key_that_is_just_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that were made while another thread wiped could be zeros, under which values would be
    encrypted: none comes out, and those that are not are wiped."""
    ring, made = Keyring(), []
    ring.add(ADA, [opened(), root_of(ADA)])

    def interrupted(data: bytes) -> KeyBytes:
        made.append(KeyBytes(data))
        ring.wipe()
        return made[-1]

    monkeypatch.setattr(module, "KeyBytes", interrupted)

    assert ring.copy_of(ADA) == []
    assert [bytes(key.buffer) for key in made] == [ZEROS, ZEROS]


def test_threads_that_open_the_same_keys_get_the_same_ones() -> None:
    """A keyring for a whole process: many threads ask for keys along one way, and each is opened once."""
    root = root_of(ADA)
    data = [under(root, opened(n, KeyState.RETIRED)) for n in range(1, 21)]
    ring = Keyring()
    ring.add(ADA, [root])
    ring.add_stored(ADA, [key.stored for key in data])
    begin = threading.Barrier(8)
    found: list[list[OpenedKey | None]] = []

    def ask() -> None:
        begin.wait(30)
        found.append([ring.open(key.stored.key_id) for key in data])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert len(found) == 8
    assert all(one is first for other in found for one, first in zip(other, found[0], strict=True))
    assert None not in found[0]


INSIDE = ["_stored", "_ways", "_opened", "_by_header", "_current", "_owners", "_ciphers", "_refused"]
ASKED: dict[str, Callable[[Keyring, OpenedKey], object]] = {
    "open": lambda ring, key: ring.open(key.stored.key_id),
    "root": lambda ring, _: ring.root(ADA),
    "writer": lambda ring, _: ring.writer(ADA, "", BODY),
    "reader": lambda ring, key: ring.reader(b"\1" + key.stored.key_id.bytes, BODY),
    "owner_of": lambda ring, key: ring.owner_of(b"\1" + key.stored.key_id.bytes),
    "current": lambda ring, _: ring.current(ADA, Purpose.DATA),
    "stored": lambda ring, key: ring.stored(key.stored.key_id),
    "keys_of": lambda ring, _: ring.keys_of(ADA),
    "copy_of": lambda ring, _: ring.copy_of(ADA),
    "epoch_of": lambda ring, key: ring.epoch_of(key.stored.key_id),
    "drop": lambda ring, _: ring.drop(ADA),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("asked", ASKED)
def test_wiping_at_any_moment_makes_no_other_error(asked: str, inside: str) -> None:
    """Whatever was just looked up when another thread wipes, nothing raises, and no key is left unwiped."""
    root = root_of(ADA, 2)
    past = opened(1, KeyState.RETIRED, Purpose.ROOT)
    data = under(past, opened())
    ring = Keyring()
    ring.add(ADA, [root])
    ring.add_stored(ADA, [data.stored, link_to_newer_root(past, root)])

    class Interrupted(dict[object, object]):
        def get(self, *entry: object) -> object:
            found = super().get(*entry)  # type: ignore[call-overload]
            ring.wipe()
            return found

    setattr(ring, inside, Interrupted(getattr(ring, inside)))
    ASKED[asked](ring, data)
    ring.wipe()

    assert raw(root) == ZEROS
    assert list(ring) == []


def test_keys_that_are_put_aside() -> None:
    """An owner's keys go into a keyring of their own, and come back, opened and with the ways to them, in
    place of what came since."""
    ring = Keyring()
    root, other = opened(purpose=Purpose.ROOT), opened()
    child = opened()
    wrapped = wrap_under_root(child, root)
    ring.add(ADA, [root])
    ring.add_stored(ADA, [wrapped])
    ring.add(BEN, [other])
    aside = ring.put_aside(ADA)
    came = opened()
    ring.add(ADA, [came])
    between = ring.current(ADA, Purpose.DATA)
    ring.put_back(ADA, aside)
    found = ring.open(wrapped.key_id)

    assert between == came.stored
    assert found is not None
    assert raw(found) == raw(child)
    assert ring.current(ADA, Purpose.ROOT) == root.stored
    assert ring.stored(came.stored.key_id) is None
    assert raw(came) == ZEROS
    assert ring.current(BEN, Purpose.DATA) == other.stored
