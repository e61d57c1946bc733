"""Somebody who reads and writes the whole database plants epochs, or puts back what was there before."""

import uuid
from typing import Any

import pytest
from sqlalchemy import select

from sqlalchemy_envelope import EnvelopeError, FormatError, RowSealError, TamperedKeyError
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    GRANTS,
    GROUPS_KEY,
    GROUPS_SLOT,
    SHARES,
    THEIRS,
    USERS_KEY,
    USERS_SLOT,
    Base,
    Event,
    Membership,
    Post,
    Scene,
)
from tests.orm.sharing.attackers.asserted import (
    BoxScene,
    assert_group_refused,
    expected,
    first_post,
    fresh,
    has_seals,
)

MEMBERSHIPS: Any = Membership.__table__


EVERYTHING = [
    table for table in Base.metadata.sorted_tables if table.name not in ("users", "groups", "posts", "events")
]


# --- epochs ---


def test_a_planted_root_epoch(scene: Scene) -> None:
    """Sealed to all members. With seals it is refused. Without, who adopted an earlier epoch starts a newer
    one: nothing is written under the attacker's, and it reads nothing."""
    out, root_key, data_key = scene.outsider, fresh(), fresh()
    root = out.plant_epoch(out.key_row(GROUPS_KEY, THEIRS), root_key, data_key)
    if scene.has_seals:
        assert_group_refused(scene, BEN, RowSealError)
        return
    scene.visit(BEN)
    scene.post(BEN, "after")

    assert out.read_posts({root.key_id: root_key}) == [None, None, None]
    assert scene.posts(ADA) == scene.posts(BEN) == ["first", "after"]


def test_a_planted_root_epoch_for_who_knows_no_earlier_one(without: Scene) -> None:
    """Without server keys, not detected: a member who never unlocked since they joined cannot tell, and
    writes under the attacker's key, until another member unlocks."""
    without.join(ADA, CID)
    out, root_key, data_key = without.outsider, fresh(), fresh()
    old = out.key_row(GROUPS_KEY, THEIRS)
    root = out.plant_epoch(old, root_key, data_key)
    out.run(GRANTS.delete().where(GRANTS.c.key_id == old.key_id, GRANTS.c.row_id > 3))
    without.post(CID, "trusting")
    assert out.read_posts({root.key_id: root_key}) == [None, None, "trusting"]
    without.post(ADA, "after")

    assert out.read_posts({root.key_id: root_key}) == [None, None, "trusting", None]


def plant_an_older_root(out: spec.Outsider, root_key: bytes, state: str) -> None:
    """A retired root key of the attacker's, granted to all members as if they had adopted it."""
    old = out.key_row(GROUPS_KEY, THEIRS)
    fake = out.plant_key(GROUPS_KEY, old, root_key, epoch=2, state="retired", wrapped=None, granted=0)
    for grant in out.rows(GRANTS, key_id=old.key_id):
        recipient = out.one(USERS_KEY, key_id=grant.recipient_key_id)
        who, row_id = recipient.owner_id, 20 + grant.row_id
        out.insert(MEMBERSHIPS, id=row_id, group_id=THEIRS, user_id=who)
        planted = {"key_id": fake.key_id, "state": state}
        for row in (grant.row_id, row_id):
            blob = out.seal_grant(root_key, fake, recipient, spec.granting_row("memberships", row))
            # The second says what it is, so that the key does open; it is the first that would vouch.
            looks = {} if row == grant.row_id else {"state": "sealed"}
            wrapped = b"\x11" * 105 if row == grant.row_id and state == "adopted" else blob
            out.copy(
                GRANTS, grant, grant_id=uuid.uuid4(), row_id=row, **{**planted, **looks}, wrapped=wrapped
            )


@pytest.mark.parametrize("state", ["adopted", "sealed"])
def test_a_planted_older_root_that_proves_a_planted_epoch(scene: Scene, state: str) -> None:
    """A proof counts from a root key that its reader adopted, not from one that says so: nothing is written
    under the attacker's key, and nothing is linked to it."""
    out, older, root_key, data_key = scene.outsider, fresh(), fresh(), fresh()
    old = out.key_row(GROUPS_KEY, THEIRS)
    plant_an_older_root(out, older, state)
    root = out.plant_epoch(old, root_key, data_key, epoch=3, proof=spec.proof(older, root_key))
    if scene.has_seals:
        assert_group_refused(scene, BEN, RowSealError)
        return
    scene.visit(BEN)
    scene.post(BEN, "after")

    assert out.read_posts({root.key_id: root_key}) == [None, None, None]
    assert scene.posts(ADA) == ["first", "after"]


def test_a_planted_epoch_whose_grants_say_adopted(scene: Scene) -> None:
    """What was sealed does not open as what was wrapped: the state of a grant is no proof."""
    out, root_key, data_key = scene.outsider, fresh(), fresh()
    root = out.plant_epoch(out.key_row(GROUPS_KEY, THEIRS), root_key, data_key)
    out.set(GRANTS, {"key_id": root.key_id}, state="adopted")

    assert_group_refused(scene, BEN, expected(scene, FormatError))


def test_a_planted_epoch_that_hangs_on_the_old_one(scene: Scene) -> None:
    """A new root key in the attacker's hand, sealed in its own row to the public key of the old one: not
    opened."""
    out, root_key, data_key = scene.outsider, fresh(), fresh()
    old = out.key_row(GROUPS_KEY, THEIRS)
    root = out.plant_epoch(old, root_key, data_key, granted=0)
    out.delete(GRANTS, key_id=root.key_id)
    context = spec.wrap_context("previous", root, recipient=old.key_id.bytes)
    blob = spec.seal(root_key, old.public_key, context)
    out.set(GROUPS_KEY, {"key_id": root.key_id}, wrapped=blob, wrapping_key_id=old.key_id)

    assert_group_refused(scene, BEN, expected(scene, FormatError))


def test_a_member_who_was_removed_cannot_prove_an_epoch(scene: Scene) -> None:
    """Who left still knows the root key of then; with the database to write to, that proves nothing to those
    who adopted a newer one."""
    out = scene.outsider
    known = out.open_grants(BEN, out.root_of_user(BEN))
    (old,) = known
    scene.leave(ADA, BEN)
    scene.visit(ADA)
    root_key, data_key = fresh(), fresh()
    evidence = spec.proof(known[old], root_key)
    root = out.plant_epoch(out.key_row(GROUPS_KEY, THEIRS), root_key, data_key, proof=evidence)
    if scene.has_seals:
        assert_group_refused(scene, ADA, RowSealError)
        return
    scene.visit(ADA)
    scene.post(ADA, "after")

    assert out.read_posts({root.key_id: root_key, **known}) == ["first", None, None]


def plant_own_epoch(out: spec.Outsider, user: int, data_key: bytes) -> None:
    """A root epoch of a user, sealed to the public key of the user's slot."""
    old, root_key = out.key_row(USERS_KEY, user), fresh()
    slot = out.one(USERS_SLOT, key_id=old.key_id)
    out.set(USERS_KEY, {"owner_id": user, "state": "active"}, state="retired")
    new = {"epoch": 2, "state": "active", "wrapped": None, "wrapping_key_id": None}
    root = out.plant_key(USERS_KEY, old, root_key, **new)
    for scope in ("", "profile"):
        key = fresh() if scope else data_key
        like = out.one(USERS_KEY, owner_id=user, purpose="data", scope=scope)
        child = out.plant_key(USERS_KEY, like, key, **new)
        blob = spec.wrap(key, root_key, spec.wrap_context("root", child))
        out.set(USERS_KEY, {"key_id": child.key_id}, wrapped=blob, wrapping_key_id=root.key_id)
    context = spec.wrap_context("secret", root, slot.kdf, slot.recipient_public_key)
    blob = spec.seal(root_key, slot.recipient_public_key, context)
    out.copy(USERS_SLOT, slot, slot_id=uuid.uuid4(), key_id=root.key_id, wrapped=blob)


@pytest.mark.parametrize("deletes", [False, True], ids=["old kept", "old deleted"])
def test_a_planted_root_epoch_of_ones_own(scene: Scene, deletes: bool) -> None:
    """With seals the unlock is refused. Without, its owner starts a newer one, even where the attacker
    deleted all that was before: what is written is not the attacker's to read."""
    out, data_key = scene.outsider, fresh()
    slot = out.one(USERS_SLOT, key_id=out.key_row(USERS_KEY, BEN).key_id)
    plant_own_epoch(out, BEN, data_key)
    if deletes:
        out.delete(USERS_SLOT, slot_id=slot.slot_id)
        out.delete(USERS_KEY, owner_id=BEN, epoch=1)
        out.delete(GRANTS, row_id=2)
    if scene.has_seals:
        with pytest.raises(RowSealError):
            scene.visit(BEN)
        return
    with scene.unlocked(BEN) as session:
        session.add(Event(user_id=BEN, text="mine"))
        session.commit()
    scene.visit(BEN)
    epochs = len(out.rows(USERS_KEY, owner_id=BEN, purpose="root"))
    scene.visit(BEN)

    (value,) = out.values("events", "text")
    assert value[1:17] != spec.key_id(data_key).bytes
    assert epochs == len(out.rows(USERS_KEY, owner_id=BEN, purpose="root"))


@pytest.mark.parametrize("shared", [True, False], ids=["a group's", "a user's"])
def test_a_planted_data_epoch(scene: Scene, shared: bool) -> None:
    """A data key of the attacker's, sealed to the owner and active. With seals it is refused. Without, its
    owner makes a newer one before anything is written."""
    out, data_key = scene.outsider, fresh()
    table, who, reader = (GROUPS_KEY, THEIRS, ADA) if shared else (USERS_KEY, BEN, BEN)
    root, old = out.key_row(table, who), out.key_row(table, who, "data")
    out.set(table, {"key_id": old.key_id}, state="retired")
    new = out.plant_key(table, old, data_key, epoch=2, wrapped=None)
    context = spec.wrap_context("sealed", new, recipient=root.key_id.bytes)
    out.set(table, {"key_id": new.key_id}, wrapped=spec.seal(data_key, root.public_key, context))
    if scene.has_seals:
        with pytest.raises(RowSealError):
            scene.visit(BEN) if not shared else scene.posts(ADA)
        return
    with scene.unlocked(reader) as session:
        session.add(Post(group_id=THEIRS, text="x") if shared else Event(user_id=BEN, text="x"))
        session.commit()

    value = out.values("posts" if shared else "events", "text")[-1]
    assert value[1:17] != new.key_id.bytes
    assert out.key_row(table, who, "data").epoch == 3


@pytest.mark.parametrize("what", ["data", "root"])
def test_a_planted_epoch_in_server_mode(boxed: BoxScene, what: str) -> None:
    """As for users: with seals it is refused. Without, a server that opens the owner makes a newer one before
    it writes: nothing is encrypted under the attacker's key, and the epochs come to rest."""
    out, root_key, data_key = boxed.outsider, fresh(), fresh()
    root, data = out.key_row(GROUPS_KEY, 7), out.key_row(GROUPS_KEY, 7, "data")
    if what == "data":
        out.set(GROUPS_KEY, {"key_id": data.key_id}, state="retired")
        new = out.plant_key(GROUPS_KEY, data, data_key, epoch=2, wrapped=None)
        context = spec.wrap_context("sealed", new, recipient=root.key_id.bytes)
        blob = spec.seal(data_key, root.public_key, context)
        out.set(GROUPS_KEY, {"key_id": new.key_id}, wrapped=blob)
    else:
        slot = out.one(GROUPS_SLOT, key_id=root.key_id)
        new = out.plant_epoch(root, root_key, data_key)
        to = slot.recipient_public_key
        blob = spec.seal(root_key, to, spec.wrap_context("provider", new, "", to))
        out.copy(GROUPS_SLOT, slot, slot_id=uuid.uuid4(), key_id=new.key_id, wrapped=blob)
    refused: list[EnvelopeError] = []
    epochs = []
    for _ in range(3):
        serving = boxed.envelope.server_mode(provider="box", reason="attack")
        with boxed.session() as session, serving:
            try:
                assert first_post(session, 7) == "boxed"  # a flush would not wait for the provider
                session.rollback()
                session.add(Post(group_id=7, text="private"))
                session.commit()
            except EnvelopeError as error:
                refused.append(error)
                session.rollback()
        epochs.append(len(out.rows(GROUPS_KEY, owner_id=7)))

    assert {type(error) for error in refused} == ({RowSealError} if has_seals(boxed) else set())
    assert all(value[1:17] != spec.key_id(data_key).bytes for value in out.values("posts", "text"))
    assert epochs[1] == epochs[2]


def test_a_planted_epoch_while_a_member_is_unlocked(scene: Scene) -> None:
    """What changes under an unlocked session is judged as at an unlock: with seals it is refused, and
    without, a newer epoch is started before the next value is written."""
    out, root_key, data_key = scene.outsider, fresh(), fresh()
    with scene.unlocked(BEN) as session:
        session.add(Post(group_id=THEIRS, text="before"))
        session.commit()
        root = out.plant_epoch(out.key_row(GROUPS_KEY, THEIRS), root_key, data_key)
        session.add(Post(group_id=THEIRS, text="after"))
        if scene.has_seals:
            with pytest.raises(RowSealError):
                session.flush()
            session.rollback()
        else:
            session.commit()

    assert not any(out.read_posts({root.key_id: root_key}))


def test_an_epoch_that_starts_elsewhere_while_a_member_is_unlocked(scene: Scene) -> None:
    """Not an attack, and what one looks like: somebody is removed by whoever holds no key. The member who is
    unlocked goes on, under a key that the removed one does not have."""
    out = scene.outsider
    scene.join(ADA, CID)
    scene.visit(CID)
    known = out.open_grants(CID, out.root_of_user(CID))
    with scene.unlocked(BEN) as session:
        session.add(Post(group_id=THEIRS, text="before"))
        session.commit()
        scene.leave(None, CID)
        session.add(Post(group_id=THEIRS, text="after"))
        session.commit()

    assert out.read_posts(known)[-2:] == ["before", None]
    assert scene.posts(ADA) == scene.posts(BEN) == ["first", "before", "after"]


# --- what was, come again ---


@pytest.mark.parametrize("with_row", [False, True], ids=["without the membership", "with the membership"])
def test_an_old_grant_that_is_put_back_after_a_removal(scene: Scene, with_row: bool) -> None:
    """Not detected: whoever left reads again what they could read before, and nothing that was written after;
    no new epoch is sealed to them. Without server keys the grant and its membership together are as good as a
    pending grant: whoever settles next takes them for a member who was left out."""
    out = scene.outsider
    grant, member = out.one(GRANTS, row_id=2), out.one(MEMBERSHIPS, id=2)
    scene.leave(ADA, BEN)
    scene.post(ADA, "after")
    out.copy(GRANTS, grant)
    if with_row:
        out.copy(MEMBERSHIPS, member)
    scene.visit(ADA)
    scene.post(ADA, "later")
    scene.join(ADA, CID)
    scene.leave(ADA, CID)
    scene.post(ADA, "last")

    stolen = out.open_grants(BEN, out.root_of_user(BEN))
    if with_row and not scene.has_seals:
        assert out.read_posts(stolen) == ["first", None, "after", "later", "last"]
        return
    assert out.read_posts(stolen) == ["first", None, None, None, None]
    with scene.unlocked(BEN) as session:
        texts = session.scalars(select(Post).filter_by(group_id=THEIRS).order_by(Post.id)).all()
        for post in texts[1:]:
            with pytest.raises(EnvelopeError):
                _ = post.text


def test_the_whole_database_put_back_as_it_was(scene: Scene) -> None:
    """Not detected, with seals or without: who puts back every row from before a removal has undone the
    removal, and what is written then is read by whoever had left."""
    out = scene.outsider
    before = out.snapshot(*EVERYTHING)
    known = out.open_grants(BEN, out.root_of_user(BEN))
    scene.leave(ADA, BEN)
    scene.post(ADA, "between")
    out.restore(before)
    scene.post(ADA, "after")

    assert out.read_posts(known) == ["first", None, None, "after"]


def test_an_old_epoch_that_is_made_current_again(scene: Scene) -> None:
    """By its state, beside the newer one: refused."""
    out = scene.outsider
    scene.leave(ADA, BEN)
    scene.visit(ADA)
    out.set(GROUPS_KEY, {"owner_id": THEIRS, "epoch": 2}, state="retired")
    out.set(GROUPS_KEY, {"owner_id": THEIRS, "epoch": 1}, state="active")

    assert_group_refused(scene, ADA, expected(scene, TamperedKeyError))


@pytest.mark.parametrize("knows_seals", [False, True], ids=["state", "row from before"])
def test_an_old_epoch_whose_successor_was_deleted(scene: Scene, knows_seals: bool) -> None:
    """With seals refused, unless the attacker kept the old rows as they were. Without, not detected: the
    group writes again under a key that whoever left has; what was written between is lost."""
    out = scene.outsider
    before = out.rows(GROUPS_KEY, owner_id=THEIRS)
    known = out.open_grants(BEN, out.root_of_user(BEN))
    scene.leave(ADA, BEN)
    scene.post(ADA, "between")
    newer = [row.key_id for row in out.rows(GROUPS_KEY, owner_id=THEIRS, epoch=2)]
    out.run(GRANTS.delete().where(GRANTS.c.key_id.in_(newer)))
    out.run(SHARES.delete().where(SHARES.c.recipient_key_id.in_(newer)))
    out.delete(GROUPS_KEY, owner_id=THEIRS, epoch=2)
    for row in before:
        old = {"state": "active", "granted": 1 if row.purpose == "root" else 0}
        seal = {"seal": row.seal, "wrapped": row.wrapped, "wrapping_key_id": row.wrapping_key_id}
        out.set(GROUPS_KEY, {"key_id": row.key_id}, **old, **(seal if knows_seals else {}))
    if not knows_seals:
        out.set(GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, wrapped=None, wrapping_key_id=None)
    if scene.has_seals and not knows_seals:
        assert_group_refused(scene, ADA, RowSealError)
        return
    scene.post(ADA, "after")

    assert out.read_posts(known)[-1] == "after"


@pytest.mark.parametrize("lowered", [False, True])
def test_the_counter_that_tells_of_removals(scene: Scene, lowered: bool) -> None:
    """A membership deleted by SQL is noticed by the counter of grants. Not detected, with seals or without:
    whoever lowers the counter as well keeps the epoch as it is, and whoever left goes on reading."""
    out = scene.outsider
    known = out.open_grants(BEN, out.root_of_user(BEN))
    root = out.key_row(GROUPS_KEY, THEIRS)
    out.delete(GRANTS, row_id=2)
    out.delete(MEMBERSHIPS, id=2)
    if lowered:
        out.set(GROUPS_KEY, {"key_id": root.key_id}, granted=1)
    scene.post(ADA, "after")

    assert (out.read_posts(known)[-1] == "after") is lowered
