"""Ways from key to key: keys are opened when they are needed, through groups and their past, and no planted
way costs more than there are keys."""

import itertools
import uuid
from dataclasses import replace

import pytest

from sqlalchemy_envelope.crypto.aead import Field
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import GrantError, RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys import keyring as module
from sqlalchemy_envelope.keys.grants import sealed_grant, way_through
from sqlalchemy_envelope.keys.hierarchy import describe, link_to_newer_root, open_wrap, seal_to_root, wrap_of
from sqlalchemy_envelope.keys.keyring import MAX_DEPTH, Keyring
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, Wrap
from tests.keys.rings import cipher_of, opened, raw, root_of, under, writer

ADA, BEN = b"ada", b"ben"
BODY, TITLE = Field("notes.body", "str"), Field("notes.title", "str")
ZEROS = bytes(32)


def granted(key: OpenedKey, to: OpenedKey, row: bytes = b"row") -> Wrap:
    way = way_through(sealed_grant(key, row, to.stored), key.stored)
    assert way is not None
    return way


def broken(way: Wrap) -> Wrap:
    return replace(way, blob=way.blob[:-1] + bytes([way.blob[-1] ^ 1]))


def test_keys_are_opened_when_they_are_needed_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was taken in stays shut until it is asked for; then it is opened along its way, one time."""
    steps = []

    def counted(*args: object) -> OpenedKey:
        steps.append(args[0])
        return open_wrap(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "open_wrap", counted)
    root, data = root_of(ADA), opened()
    other = under(root, opened(1, KeyState.RETIRED))
    data = under(root, data)
    ring = Keyring()
    ring.add_stored(ADA, [root.stored, data.stored, other.stored])

    assert ring.open(data.stored.key_id) is ring.root(ADA) is ring.writer(ADA, "", BODY) is None
    assert not ring.is_open(data.stored.key_id)
    ring.add(ADA, [root])
    assert steps == []
    assert data == ring.open(data.stored.key_id)
    assert ring.open(data.stored.key_id) is ring.open(data.stored.key_id)
    assert ring.writer(ADA, "", BODY) is not None
    assert steps == [data.stored]
    assert ring.is_open(data.stored.key_id)
    assert not ring.is_open(other.stored.key_id)


def test_a_way_leads_through_groups_and_their_past() -> None:
    """From a user's root key through a grant to a group's, through another to a larger group's, back to its
    retired epoch, and to a value that was written under that."""
    ada, group, large = root_of(ADA), root_of(b"group"), root_of(b"large", 2)
    past = opened(1, KeyState.RETIRED, Purpose.ROOT, b"large")
    linked = link_to_newer_root(past, large)
    data = under(past, opened(1, KeyState.RETIRED, owner=b"large"))
    blob = cipher_of(data).encrypt(b"value")
    ring = Keyring()
    ring.add_stored(b"large", [data.stored, linked, large.stored])
    ring.add_way(large.stored.key_id, granted(large, group))
    ring.add_stored(b"group", [group.stored])
    ring.add_way(group.stored.key_id, granted(group, ada))

    assert ring.reader(blob, BODY) is None
    ring.add(ADA, [ada])
    reader = ring.reader(blob, BODY)
    assert reader is not None
    assert reader.decrypt(blob) == b"value"
    assert ring.owner_of(blob) == b"large"
    assert ring.copy_of(b"large") != []


def test_what_is_stored_can_be_asked_for_without_opening_it() -> None:
    """Rows, owners, epochs and current keys are known of what is shut; of what is unknown, nothing is."""
    root, data = root_of(ADA, 2), opened(3)
    old = opened(1, KeyState.RETIRED)
    scoped = describe(KeyBytes.generate(), ADA, Purpose.DATA, scope="profile").stored
    ring = Keyring()
    ring.add_stored(ADA, [old.stored, root.stored, data.stored, scoped])
    unknown = uuid.uuid4()

    assert data.stored == ring.current(ADA, Purpose.DATA) == ring.stored(data.stored.key_id)
    assert scoped == ring.current(ADA, Purpose.DATA, "profile")
    assert root.stored == ring.current(ADA, Purpose.ROOT)
    assert (ring.owner_of_key(old.stored.key_id), ring.epoch_of(data.stored.key_id)) == (ADA, 3)
    assert [key.epoch for key in ring.keys_of(ADA)] == [3, 2, 1, 1]
    assert (ring.owner_of_key(unknown), ring.epoch_of(unknown), ring.stored(unknown)) == (b"", 0, None)
    assert ring.open(unknown) is ring.open(None) is ring.root(BEN) is None
    assert ring.keys_of(BEN) == ring.copy_of(ADA) == ring.copy_of(BEN) == []
    assert ring.cipher(data.stored.key_id, BODY) is None


def test_a_scope_has_a_key_of_its_own() -> None:
    """Values of two scopes are encrypted under two keys; a scope without a key is not written."""
    plain, profile = opened(), describe(KeyBytes.generate(), ADA, Purpose.DATA, scope="profile")
    ring = Keyring()
    ring.add(ADA, [plain, profile])
    ciphers = [ring.writer(ADA, scope, BODY) for scope in ("", "profile", "other")]

    assert [cipher and cipher.header[1:] for cipher in ciphers] == [
        plain.stored.key_id.bytes,
        profile.stored.key_id.bytes,
        None,
    ]
    assert ring.cipher(profile.stored.key_id, BODY) is ciphers[1]


def test_a_destroyed_key_is_not_taken_in() -> None:
    """A key whose bytes are gone is in no keyring, whatever leads to it."""
    destroyed = opened(state=KeyState.DESTROYED)
    ring = Keyring()
    ring.add_stored(ADA, [destroyed.stored])

    assert repr(ring) == "<Keyring of 0 keys>"
    assert ADA not in ring


def test_a_key_of_two_owners_is_tampering() -> None:
    """The same key row for a second owner would give one owner's values to the other."""
    data = opened()
    ring = Keyring()
    ring.add_stored(ADA, [data.stored])
    ring.add_stored(ADA, [data.stored])
    with pytest.raises(TamperedKeyError, match="two owners"):
        ring.add_stored(BEN, [data.stored])

    assert ring.owner_of_key(data.stored.key_id) == ADA


@pytest.mark.parametrize("length", [1, 2, 5])
def test_keys_that_grant_each_other_in_a_circle_do_not_open(length: int) -> None:
    """Group in group in the first group: nothing opens and nothing hangs; with one of them open all do."""
    roots = [root_of(b"%d" % n) for n in range(length)]
    ring = Keyring()
    for n, root in enumerate(roots):
        ring.add_stored(root.stored.owner_reference, [root.stored])
        ring.add_way(root.stored.key_id, granted(root, roots[(n + 1) % length]))

    assert all(ring.open(root.stored.key_id) is None for root in roots)
    ada = root_of(ADA)
    ring.add_way(roots[0].stored.key_id, granted(roots[0], ada))
    ring.add(ADA, [ada])
    assert all(root == ring.open(root.stored.key_id) for root in roots)


@pytest.mark.parametrize("steps", [MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1])
def test_a_chain_that_is_too_long_is_refused(steps: int) -> None:
    """Through so many groups a key is opened and through no more, unless some on the way are open by then."""
    roots = [root_of(b"%d" % n) for n in range(steps + 1)]
    ring = Keyring()
    for key, above in itertools.pairwise(roots):
        ring.add_stored(key.stored.owner_reference, [key.stored])
        ring.add_way(key.stored.key_id, granted(key, above))
    ring.add(ADA, [roots[-1]])

    if steps > MAX_DEPTH:
        with pytest.raises(GrantError, match=str(MAX_DEPTH)):
            ring.open(roots[0].stored.key_id)
        assert ring.open(roots[1].stored.key_id) is not None
    assert ring.open(roots[0].stored.key_id) is not None


def test_a_chain_that_is_too_long_does_not_bar_a_good_way() -> None:
    """A planted way through more groups than are followed, in front of the genuine one, is passed over."""
    ada, roots = root_of(ADA), [root_of(b"%d" % n) for n in range(MAX_DEPTH + 2)]
    ring = Keyring()
    for key, above in itertools.pairwise(roots):
        ring.add_stored(key.stored.owner_reference, [key.stored])
        ring.add_way(key.stored.key_id, granted(key, above))
    ring.add_stored(roots[-1].stored.owner_reference, [roots[-1].stored])
    ring.add_way(roots[0].stored.key_id, granted(roots[0], ada))
    ring.add(ADA, [ada])

    assert roots[0] == ring.open(roots[0].stored.key_id)


@pytest.mark.parametrize("newest", ["open", "granted", "granted twice"])
def test_any_number_of_epochs_opens(newest: str) -> None:
    """The epochs of one owner are no depth: from the newest root key back to the first of two hundred."""
    ada = root_of(ADA)
    roots = [opened(n, KeyState.RETIRED, Purpose.ROOT, b"group") for n in range(1, 200)]
    roots.append(root_of(b"group", 200))
    data = under(roots[0], opened(1, KeyState.RETIRED, owner=b"group"))
    linked = [link_to_newer_root(older, newer) for older, newer in itertools.pairwise(roots)]
    ring = Keyring()
    ring.add_stored(b"group", [*linked, roots[-1].stored, data.stored])
    assert ring.open(data.stored.key_id) is None
    if newest == "open":
        ring.add(b"group", [roots[-1]])
    else:
        ring.add_way(roots[-1].stored.key_id, granted(roots[-1], ada))
        ring.add(ADA, [ada])
    if newest == "granted twice":
        ring.add_way(roots[99].stored.key_id, granted(roots[99], ada))

    assert data == ring.open(data.stored.key_id)
    assert all(ring.open(root.stored.key_id) is not None for root in roots)


def test_planted_ways_cost_no_more_than_there_are_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty keys that each claim to lie under all the others make more paths than can be walked: each key is
    tried once."""
    roots = [root_of(b"%d" % n) for n in range(40)]
    ring = Keyring()
    for key in roots:
        ring.add_stored(key.stored.owner_reference, [key.stored])
        for other in roots:
            ring.add_way(key.stored.key_id, Wrap(other.stored.key_id, bytes(105), "root"))
    looked: list[uuid.UUID] = []
    plain = Keyring._open

    def counted(self: Keyring, key_id: uuid.UUID, *rest: object) -> OpenedKey | None:
        looked.append(key_id)
        return plain(self, key_id, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Keyring, "_open", counted)
    try:
        assert ring.open(roots[0].stored.key_id) is None
    except GrantError:
        pass  # deeper than is followed

    assert len(looked) <= 40 * 41


def test_what_opens_on_the_way_may_lead_on_from_a_key_that_was_tried() -> None:
    """A key that could not be opened yet is tried again when what leads to it was opened meanwhile."""
    ada, one, two, three = root_of(ADA), root_of(b"one"), root_of(b"two"), root_of(b"three")
    ring = Keyring()
    for root in (one, two, three):
        ring.add_stored(root.stored.owner_reference, [root.stored])
    # The first way is altered. In trying it the third group is tried, before the second is open.
    ring.add_way(one.stored.key_id, broken(granted(one, two)))
    ring.add_way(one.stored.key_id, granted(one, three))
    ring.add_way(two.stored.key_id, granted(two, three))
    ring.add_way(two.stored.key_id, granted(two, ada))
    ring.add_way(three.stored.key_id, granted(three, two))
    ring.add(ADA, [ada])

    assert one == ring.open(one.stored.key_id)


def test_an_epoch_that_was_rolled_back_is_taken_back() -> None:
    """Keys that were made and never stored for good are wiped, and what they replaced is current again."""
    root, old, made = root_of(ADA), opened(1), opened(2)
    retired = replace(old.stored, state=KeyState.RETIRED)
    ring = Keyring()
    ring.add(ADA, [root, old])
    ring.add_stored(ADA, [retired])
    ring.add(ADA, [made])
    assert writer(ring).header[1:] == made.stored.key_id.bytes
    ring.take_back(BEN, [made.stored.key_id], [])
    ring.take_back(ADA, [made.stored.key_id], [old.stored])

    assert raw(made) == ZEROS
    assert ring.stored(made.stored.key_id) is ring.open(made.stored.key_id) is None
    assert {key.key_id for key in ring.keys_of(ADA)} == {root.stored.key_id, old.stored.key_id}
    assert writer(ring).header[1:] == old.stored.key_id.bytes
    assert ring.root(ADA) == root
    assert BEN not in ring


def test_a_way_to_a_root_that_is_not_known_leads_nowhere() -> None:
    """A key under a root key of which there is no row is locked, and that is all."""
    data = under(root_of(ADA), opened())
    ring = Keyring()
    ring.add_stored(ADA, [data.stored])

    assert ring.open(data.stored.key_id) is None


@pytest.mark.parametrize("broken_first", [True, False])
def test_a_broken_way_does_not_bar_a_good_one(broken_first: bool) -> None:
    """Of two grants one was altered: the key opens by the other. With the altered one alone, it is told."""
    ada, group = root_of(ADA), root_of(b"group")
    good, bad = granted(group, ada), broken(granted(group, ada, b"another row"))
    for ways in ([bad, good] if broken_first else [good, bad], [bad]):
        ring = Keyring()
        ring.add(ADA, [ada])
        ring.add_stored(b"group", [group.stored])
        for way in ways:
            ring.add_way(group.stored.key_id, way)
        if len(ways) == 2:
            assert group == ring.open(group.stored.key_id)
        else:
            with pytest.raises(TamperedKeyError):
                ring.open(group.stored.key_id)
            # It says so again, and goes on with what is genuine.
            ring.add_way(group.stored.key_id, good)
            assert group == ring.open(group.stored.key_id)


def test_a_broken_way_from_a_key_that_is_shut_is_not_told() -> None:
    """Nothing is known of a wrap whose wrapping key is not here: the key is locked, and that is all."""
    ada, group = root_of(ADA), root_of(b"group")
    ring = Keyring()
    ring.add_stored(b"group", [group.stored])
    ring.add_way(group.stored.key_id, broken(granted(group, ada)))

    assert ring.open(group.stored.key_id) is None


def test_an_owner_that_is_refused_altogether_does_not_open() -> None:
    """Whoever asks for a key of an owner whose rows were altered is told why, whatever leads to it; keys that
    are open already stay so, and other owners are none the worse."""
    ada, group, ben = root_of(ADA), root_of(b"group"), opened(owner=BEN)
    data = under(group, opened(owner=b"group"))
    ring = Keyring()
    ring.add(ADA, [ada])
    ring.add(BEN, [ben])
    ring.add_stored(b"group", [group.stored, data.stored])
    ring.add_way(group.stored.key_id, granted(group, ada))
    ring.refuse(b"group", RowSealError("of the group"), altogether=True)
    # A smaller complaint afterwards does not let it in again.
    ring.refuse(b"group", GrantError("of a grant"), altogether=False)

    for ask in (
        lambda: ring.open(group.stored.key_id),
        lambda: ring.root(b"group"),
        lambda: ring.writer(b"group", "", BODY),
        lambda: ring.reader(b"\1" + data.stored.key_id.bytes, BODY),
    ):
        with pytest.raises(GrantError, match="of a grant"):
            ask()
    assert ring.root(ADA) == ada
    assert ring.writer(BEN, "", BODY) is not None
    ring.refuse(b"nobody", RowSealError("of nobody"), altogether=True)
    with pytest.raises(RowSealError, match="of nobody"):  # though none of its keys was taken in
        ring.writer(b"nobody", "", BODY)
    ring.wipe()
    ring.add(b"group", [root_of(b"group")])
    assert ring.root(b"group") is not None


def test_a_grant_that_is_refused_leaves_other_ways_open() -> None:
    """What one grant says is told only where no other way leads to the key."""
    ada, group = root_of(ADA), root_of(b"group")
    ring = Keyring()
    ring.add(ADA, [ada])
    ring.add_stored(b"group", [group.stored])
    ring.refuse(b"group", RowSealError("a planted grant"), altogether=False)
    with pytest.raises(RowSealError, match="a planted grant"):
        ring.open(group.stored.key_id)
    assert ring.writer(b"group", "", BODY) is None
    ring.add_way(group.stored.key_id, granted(group, ada))

    assert group == ring.open(group.stored.key_id)


def test_a_way_is_kept_once() -> None:
    """The same rows loaded again, as they are before a write, make no longer list to try."""
    ada, group = root_of(ADA), root_of(b"group")
    data = under(group, opened(owner=b"group"))
    way = granted(group, ada)
    ring = Keyring()
    for _ in range(3):
        ring.add_stored(b"group", [group.stored, data.stored])
        ring.add_way(group.stored.key_id, way)

    assert [way] == ring._ways[group.stored.key_id]
    assert [wrap_of(data.stored)] == ring._ways[data.stored.key_id]


def test_a_key_that_is_held_already_is_not_exchanged() -> None:
    """Adding a key again wipes the second copy of it, and adding the very same one wipes nothing."""
    first = opened()
    again = OpenedKey(replace(first.stored, granted=1), KeyBytes(first.key.buffer))
    ring = Keyring()
    ring.add(ADA, [first])
    ring.add(ADA, [first])
    ring.add(ADA, [OpenedKey(again.stored, first.key)])
    ring.add(ADA, [again])

    assert raw(first) != ZEROS
    assert raw(again) == ZEROS
    assert ring.open(first.stored.key_id).key is first.key
    assert ring.stored(first.stored.key_id) == again.stored


def test_a_copy_of_an_owner_s_keys_outlives_the_wiping() -> None:
    """A second keyring has bytes of its own: what is open is copied, what is shut is not opened for it."""
    root, ben = root_of(ADA), opened(owner=BEN)
    data = under(root, opened())
    ring, other = Keyring(), Keyring()
    ring.add(ADA, [root])
    ring.add(BEN, [ben])
    ring.add_stored(ADA, [data.stored])
    other.add(ADA, ring.copy_of(ADA))
    before = raw(root)
    ring.wipe()
    held = other.root(ADA)

    assert held is not None
    assert raw(held) == before
    assert raw(root) == ZEROS
    assert other.open(data.stored.key_id) is other.writer(BEN, "", BODY) is None


def test_a_sealed_key_is_opened_along_its_way_too() -> None:
    """A write epoch that was sealed to the root key reads with it, and never encrypts."""
    root, epoch = root_of(ADA), opened(9, KeyState.RETIRED, Purpose.WRITE)
    sealed = seal_to_root(epoch, root.stored)
    blob = cipher_of(epoch).encrypt(b"while away")
    ring = Keyring()
    ring.add(ADA, [root])
    ring.add_stored(ADA, [sealed])
    reader = ring.reader(blob, BODY)

    assert reader is not None
    assert reader.decrypt(blob) == b"while away"
    assert ring.writer(ADA, "", BODY) is None
