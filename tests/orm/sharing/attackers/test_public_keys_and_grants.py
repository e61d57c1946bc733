"""Somebody who reads and writes the whole database swaps public keys, plants grants and moves rows:
nothing is sealed to them and no key of theirs is written under."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope import (
    Envelope,
    KdfProfile,
    LockedError,
    OwnerMismatchError,
    RowSealError,
    TamperedKeyError,
)
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    EVE,
    GRANTS,
    GROUPS_KEY,
    HERS,
    SERVER_KEY,
    SHARES,
    THEIRS,
    USERS_KEY,
    Base,
    Event,
    Group,
    Membership,
    Scene,
    User,
    set_scene,
)
from tests.orm.sharing.attackers.asserted import assert_group_refused, expected, first_post, fresh

MEMBERSHIPS: Any = Membership.__table__
GROUPS: Any = Group.__table__


# --- public keys ---


def test_a_newcomers_public_key_that_was_swapped(scene: Scene) -> None:
    """Before a grant. With seals nothing is granted. Without, not detected when it is granted: the group's
    key goes to the attacker; the newcomer is told at the next unlock."""
    mine, out = fresh(), scene.outsider
    root = out.key_row(USERS_KEY, CID)
    out.set(USERS_KEY, {"key_id": root.key_id}, public_key=spec.public(mine))
    if scene.has_seals:
        with pytest.raises(RowSealError):
            scene.join(ADA, CID)
        assert out.rows(GRANTS, recipient_key_id=root.key_id) == []
        return
    scene.join(ADA, CID)
    grant, key = out.one(GRANTS, recipient_key_id=root.key_id), out.key_row(GROUPS_KEY, THEIRS)
    granter = spec.granting_row("memberships", grant.row_id)
    context = spec.wrap_context("grant", key, recipient=root.key_id.bytes, granter=granter)
    stolen = spec.unseal(grant.wrapped, mine, context)

    assert out.read_posts({key.key_id: stolen}) == ["first", None]
    with pytest.raises(TamperedKeyError):
        scene.visit(CID)


@pytest.mark.parametrize("cleans_up", [False, True], ids=["left", "cleaned up"])
def test_a_members_public_key_that_was_swapped(scene: Scene, cleans_up: bool) -> None:
    """Before a rotation. With seals that member waits for the new epoch and the attacker gets nothing.
    Without, the new epoch goes to the attacker, with all that was before; and one who puts everything back is
    never seen."""
    scene.join(ADA, CID)
    scene.visit(CID)
    mine, out = fresh(), scene.outsider
    ben = out.key_row(USERS_KEY, BEN)
    out.set(USERS_KEY, {"key_id": ben.key_id}, public_key=spec.public(mine))
    scene.leave(ADA, CID)
    key, grant = out.key_row(GROUPS_KEY, THEIRS), None
    (grant,) = [row for row in out.rows(GRANTS, key_id=key.key_id) if row.row_id == 2]
    if scene.has_seals:
        assert (grant.state, grant.wrapped) == ("pending", None)
        out.set(USERS_KEY, {"key_id": ben.key_id}, public_key=ben.public_key)
        scene.visit(ADA)
        assert scene.posts(BEN) == ["first"]
        return
    granter = spec.granting_row("memberships", grant.row_id)
    context = spec.wrap_context("grant", key, recipient=ben.key_id.bytes, granter=granter)
    stolen = spec.unseal(grant.wrapped, mine, context)
    scene.post(ADA, "after")

    assert out.read_posts({key.key_id: stolen}) == ["first", None, "after"]
    if not cleans_up:
        with pytest.raises(TamperedKeyError):
            scene.visit(BEN)
        return
    out.set(USERS_KEY, {"key_id": ben.key_id}, public_key=ben.public_key)
    out.set(GRANTS, {"grant_id": grant.grant_id}, wrapped=spec.seal(stolen, ben.public_key, context))
    assert scene.posts(BEN) == ["first", "after"]


def test_an_owners_public_key_that_was_swapped_before_somebody_writes(scene: Scene) -> None:
    """With seals nothing is written. Without, the attacker reads what is written for who is away, and nothing
    else; the owner is told at the next unlock."""
    mine, out = fresh(), scene.outsider
    ben = out.key_row(USERS_KEY, BEN)
    out.set(USERS_KEY, {"key_id": ben.key_id}, public_key=spec.public(mine))
    with scene.session() as session, scene.envelope.write_only(session, session.get_one(User, BEN)):
        session.add(Event(user_id=BEN, text="for ben"))
        if scene.has_seals:
            with pytest.raises(RowSealError):
                session.flush()
            return
        session.commit()
    epoch = out.one(USERS_KEY, owner_id=BEN, purpose="write")
    context = spec.wrap_context("sealed", epoch, recipient=ben.key_id.bytes)
    stolen = spec.unseal(epoch.wrapped, mine, context)

    assert spec.decrypt(out.values("events", "text")[0], stolen, "events.text") == "for ben"
    with pytest.raises(TamperedKeyError):
        scene.visit(BEN)


def test_the_post_quantum_half_that_was_taken_away(sqlite_url: Any, sqlite_engine: Engine) -> None:
    """A root key with a hybrid pair, its ML-KEM half deleted: refused with seals; without, not detected, and
    keys are sealed to X25519 alone."""
    for keys in (None, ServerKeyring([SERVER_KEY])):
        Base.metadata.drop_all(sqlite_engine)
        envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys, post_quantum=True)
        scene = set_scene(sqlite_engine, envelope)
        out, key = scene.outsider, None
        key = out.key_row(USERS_KEY, CID)
        assert len(key.mlkem_public_key) == 1184
        out.set(USERS_KEY, {"key_id": key.key_id}, mlkem_public_key=None)
        if keys is not None:
            with pytest.raises(RowSealError):
                scene.join(ADA, CID)
            continue
        scene.join(ADA, CID)
        assert out.one(GRANTS, recipient_key_id=key.key_id).wrapped[0] == 0x12
        assert scene.posts(CID) == ["first"]


# --- grants ---


def planted_group(scene: Scene, user: int) -> None:
    """A whole group that nobody made: its keys are the outsider's, granted to a user who never asked."""
    out, root_key, data_key = scene.outsider, fresh(), fresh()
    out.insert(GROUPS, id=9, name=None)
    out.insert(MEMBERSHIPS, id=9, group_id=9, user_id=user)
    like = {
        "owner_id": 9,
        "owner_reference": spec.owner("groups", 9),
        "wrapped": None,
        "wrapping_key_id": None,
    }
    root = out.plant_key(GROUPS_KEY, out.key_row(GROUPS_KEY, HERS), root_key, **like, granted=1)
    data = out.plant_key(GROUPS_KEY, out.key_row(GROUPS_KEY, HERS, "data"), data_key, **like)
    under = spec.wrap(data_key, root_key, spec.wrap_context("root", data))
    out.set(GROUPS_KEY, {"key_id": data.key_id}, wrapped=under, wrapping_key_id=root.key_id)
    recipient = out.key_row(USERS_KEY, user)
    blob = out.seal_grant(root_key, root, recipient, spec.granting_row("memberships", 9))
    grant = out.one(GRANTS, row_id=3)
    ids = {"grant_id": uuid.uuid4(), "key_id": root.key_id, "recipient_key_id": recipient.key_id, "row_id": 9}
    out.copy(GRANTS, grant, **ids, state="sealed", wrapped=blob)
    raw = spec.sql_table("posts", spec.sql_column("group_id"), spec.sql_column("text", spec.LargeBinary))
    out.insert(raw, group_id=9, text=spec.encrypt("planted", data_key, "posts.text"))


def test_a_planted_grant_of_a_planted_key(scene: Scene) -> None:
    """With seals it is refused. Without, not detected: a group that the attacker made is a group like any
    other."""
    planted_group(scene, BEN)
    if scene.has_seals:
        assert_group_refused(scene, BEN, RowSealError, group=9)
    else:
        assert scene.posts(BEN, group=9) == ["planted"]
    assert scene.posts(BEN) == ["first"]


def test_a_grant_of_another_groups_key(scene: Scene) -> None:
    """A grant that is made to lead to a key of the attacker's own group does not make that the key of this
    one."""
    out = scene.outsider
    root = out.root_of_user(EVE)
    stolen = out.open_grants(EVE, root)
    hers, ben = out.key_row(GROUPS_KEY, HERS), out.key_row(USERS_KEY, BEN)
    blob = out.seal_grant(stolen[hers.key_id], hers, ben, spec.granting_row("memberships", 2))
    out.set(GRANTS, {"row_id": 2}, key_id=hers.key_id, wrapped=blob, state="sealed")
    _, second = out.values("posts", "text")
    raw = spec.sql_table("posts", spec.sql_column("id"), spec.sql_column("text", spec.LargeBinary))
    out.run(raw.update().where(raw.c.id == 1).values(text=second))

    with scene.unlocked(BEN) as session, pytest.raises(LockedError):
        first_post(session, THEIRS)


def test_a_root_key_through_a_grant_that_gives_a_scope(scene: Scene) -> None:
    """A class that grants a scope never leads to a root key, not even to one whose owner planted it."""
    out = scene.outsider
    mine = out.root_of_user(EVE)
    eve, group = out.key_row(USERS_KEY, EVE), out.key_row(GROUPS_KEY, THEIRS)
    shares: Any = spec.ProfileShare.__table__
    out.insert(shares, user_id=EVE, group_id=THEIRS)
    blob = out.seal_grant(mine, eve, group, spec.granting_row("profile_shares", EVE, THEIRS))
    ids = {"grant_id": uuid.uuid4(), "key_id": eve.key_id, "row_user_id": EVE, "row_group_id": THEIRS}
    out.copy(SHARES, out.one(SHARES), **ids, state="sealed", wrapped=blob)

    with scene.unlocked(BEN) as session:
        assert session.get_one(User, ADA).display_name == "ada's name"
        with pytest.raises((TamperedKeyError, LockedError)):
            _ = session.get_one(User, EVE).diary
        with pytest.raises((TamperedKeyError, LockedError)):
            _ = session.get_one(User, EVE).display_name


@pytest.mark.parametrize("renames", [False, True], ids=["as it is", "with its reference"])
def test_a_key_row_that_was_moved_to_another_owner(scene: Scene, renames: bool) -> None:
    """The attacker's own group's root key, put in place of the other group's: what it says of itself, and
    what its wraps are bound to, still name the group it came from."""
    out = scene.outsider
    hers, theirs = out.key_row(GROUPS_KEY, HERS), out.key_row(GROUPS_KEY, THEIRS)
    out.set(GROUPS_KEY, {"owner_id": THEIRS}, state="retired")
    changes = {"owner_reference": theirs.owner_reference} if renames else {}
    out.set(GROUPS_KEY, {"key_id": hers.key_id}, owner_id=THEIRS, epoch=2, **changes)
    out.set(MEMBERSHIPS, {"id": 3}, user_id=BEN)
    ben = out.key_row(USERS_KEY, BEN)
    out.set(GRANTS, {"row_id": 3}, recipient_key_id=ben.key_id)

    assert_group_refused(scene, BEN, expected(scene, TamperedKeyError if renames else OwnerMismatchError))


def test_a_planted_pending_grant(scene: Scene) -> None:
    """With seals it is never fulfilled. Without, not detected: the next member who unlocks seals the group's
    key to whoever the planted row names."""
    out = scene.outsider
    root = out.key_row(GROUPS_KEY, THEIRS)
    out.insert(MEMBERSHIPS, id=9, group_id=THEIRS, user_id=EVE)
    pending = {"state": "pending", "wrapped": None, "recipient_key_id": None, "seal": None}
    grant = out.one(GRANTS, row_id=2)
    out.copy(GRANTS, grant, grant_id=uuid.uuid4(), row_id=9, **pending)
    out.set(GROUPS_KEY, {"key_id": root.key_id}, granted=3)
    scene.visit(ADA)
    scene.post(ADA, "after")

    stolen = out.open_grants(EVE, out.root_of_user(EVE))
    assert (out.read_posts(stolen)[0] == "first") is not scene.has_seals
    assert (out.read_posts(stolen)[2] == "after") is not scene.has_seals


def test_a_planted_membership_alone_grants_nothing(scene: Scene) -> None:
    """The row of the application is no grant: nothing is sealed to whom it names, by an unlock or a
    rotation."""
    out = scene.outsider
    out.insert(MEMBERSHIPS, id=9, group_id=THEIRS, user_id=EVE)
    scene.visit(ADA, BEN)
    scene.join(ADA, CID)
    scene.leave(ADA, CID)
    scene.post(BEN, "after")

    assert out.rows(GRANTS, row_id=9) == []
    assert out.read_posts(out.open_grants(EVE, out.root_of_user(EVE))) == [None, None, None]
    with scene.unlocked(EVE) as session, pytest.raises(LockedError):
        first_post(session, THEIRS)


@pytest.mark.parametrize("also", ["nothing", "the grant", "pending"])
def test_a_granting_row_that_was_made_to_name_somebody_else(scene: Scene, also: str) -> None:
    """The row alone changes nothing: a grant is for whom it was made. Without server keys, not detected where
    the attacker alters the grant too, or where it is pending and says nothing yet: the next epoch goes to
    whom it names."""
    out = scene.outsider
    eve = out.key_row(USERS_KEY, EVE)
    if also == "pending":
        scene.join(None, CID)
        out.set(MEMBERSHIPS, {"user_id": CID}, user_id=EVE)
        scene.visit(ADA)
    else:
        out.set(MEMBERSHIPS, {"id": 2}, user_id=EVE)
        if also == "the grant":
            out.set(GRANTS, {"row_id": 2}, recipient_key_id=eve.key_id)
        scene.join(ADA, CID)
        scene.leave(ADA, CID)
    scene.post(ADA, "after")

    stolen = out.open_grants(EVE, out.root_of_user(EVE))
    assert (out.read_posts(stolen)[-1] == "after") is (not scene.has_seals and also != "nothing")
