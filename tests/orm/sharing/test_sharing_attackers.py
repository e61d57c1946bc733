"""Somebody who reads and writes the whole database attacks what is shared: public keys, grants, slots, epochs
and sealed write epochs, with row seals ("with") and without server keys ("without").

Without server keys some attacks succeed at first, or unseen. Those tests say so and prove what the attacker
gets, no more and no less: docs/explanation has its table from here. The attacker's own cryptography is
`outsider`, written from the specification.
"""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Table, create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    Envelope,
    EnvelopeError,
    FormatError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    OwnerMismatchError,
    ProviderError,
    ProviderTimeoutError,
    RowSealError,
    TamperedKeyError,
    UnlockError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.keys.providers import ServerKeyring
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.conftest import EveryNth
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    EVE,
    GRANTS,
    GROUPS_KEY,
    GROUPS_SLOT,
    HERS,
    NESTINGS,
    PLAIN,
    SEALED,
    SECRETS,
    SERVER_KEY,
    SHARES,
    THEIRS,
    USERS_KEY,
    USERS_SLOT,
    Base,
    Event,
    Group,
    Membership,
    Nesting,
    Post,
    Scene,
    User,
    set_scene,
)

MEMBERSHIPS: Any = Membership.__table__
GROUPS: Any = Group.__table__
EVERYTHING = [
    table for table in Base.metadata.sorted_tables if table.name not in ("users", "groups", "posts", "events")
]


@pytest.fixture(scope="module")
def templates() -> dict[Any, bytes]:
    """Databases as they are before an attack, made once."""
    return {}


def scene_from(templates: dict[Any, bytes], engine: Engine, envelope: Envelope) -> Scene:
    path = Path(str(engine.url.database))
    if envelope not in templates:
        set_scene(engine, envelope)
        engine.dispose()
        templates[envelope] = path.read_bytes()
    path.write_bytes(templates[envelope])
    return Scene(engine, envelope, spec.Outsider(engine))


@pytest.fixture(params=[PLAIN, SEALED], ids=["without", "with"])
def scene(request: pytest.FixtureRequest, templates: dict[Any, bytes], sqlite_engine: Engine) -> Scene:
    """Two groups and four users, without server keys and with row seals."""
    return scene_from(templates, sqlite_engine, request.param)


@pytest.fixture
def without(templates: dict[Any, bytes], sqlite_engine: Engine) -> Scene:
    """Without server keys alone."""
    return scene_from(templates, sqlite_engine, PLAIN)


def assert_group_refused(scene: Scene, user: int, error: type[EnvelopeError], group: int = THEIRS) -> None:
    """A member reads their own data as ever, and is told why the group's rows do not open."""
    with scene.unlocked(user) as session:
        assert session.get_one(User, user).diary is not None
        with pytest.raises(error) as refused:
            first_post(session, group)
        assert not isinstance(refused.value, LockedError)
        session.add(Post(group_id=group, text="not to be written"))
        with pytest.raises(error):
            session.flush()
        session.rollback()


def expected(scene: Scene, without: type[EnvelopeError]) -> type[EnvelopeError]:
    """What an alteration is answered with: by the row seal, or else by what hangs on the row."""
    return RowSealError if scene.has_seals else without


def first_post(session: Session, group: int = THEIRS) -> str | None:
    """As the application reads it."""
    return session.scalars(select(Post).filter_by(group_id=group).order_by(Post.id)).all()[0].text


def fresh() -> bytes:
    """A key of the outsider's own."""
    return os.urandom(32)


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


# --- slots ---


class Box:
    """A provider over keys of its own, which can be told to misbehave."""

    reference = "box"
    local = False

    def __init__(self) -> None:
        self.keys = ServerKeyring([b"\x09" * 32])
        self.mood = "well"
        self.released = threading.Event()

    def wrap(self, key: bytes, context: Any) -> bytes:
        return self.keys.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Any) -> bytes:
        if self.mood == "down":
            raise ConnectionError("nobody there")
        if self.mood == "slow":
            self.released.wait(30)
        if self.mood == "another":
            return b"\x01" * 32
        if self.mood == "garbage":
            return b"garbage"
        if self.mood == "text":
            return "x" * 32  # type: ignore[return-value]
        return self.keys.unwrap(wrapped, context)


class BoxScene(Scene):
    box: Box


@pytest.fixture(params=[None, SERVER_KEY], ids=["without", "with"])
def boxed(
    request: pytest.FixtureRequest, templates: dict[Any, bytes], sqlite_engine: Engine
) -> Iterator[BoxScene]:
    """The scene with a provider, and the group under a slot of it as well."""
    box = Box()
    path = Path(str(sqlite_engine.url.database))
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=None if request.param is None else ServerKeyring([request.param]),
        providers={"box": box},
        provider_timeout=1.0,
        provider_retries=0,
    )
    if request.param not in templates:
        made = set_scene(sqlite_engine, envelope)
        with made.session() as session:
            for number in (7, 8):
                with envelope.enroll(session, Group(id=number, name="boxed"), provider="box"):
                    session.add(Membership(id=10 * number, group_id=number, user_id=ADA))
                    session.add(Membership(id=10 * number + 1, group_id=number, user_id=CID))
                    session.add(Post(group_id=number, text="boxed"))
                    session.commit()
                envelope.policy.require_providers().forget()
        made.visit(ADA, CID)
        sqlite_engine.dispose()
        templates[request.param] = path.read_bytes()
    path.write_bytes(templates[request.param])
    scene = BoxScene(sqlite_engine, envelope, spec.Outsider(sqlite_engine))
    scene.box = box
    yield scene
    box.released.set()


def has_seals(scene: Scene) -> bool:
    return scene.envelope.policy.seals.is_on


def unlock_box(scene: BoxScene, group: int = 7) -> list[str | None]:
    with scene.session() as session:
        unlocked = scene.envelope.unlock(
            session, session.get_one(Group, group), provider="box", reason="attack"
        )
        session.commit()
        with unlocked:
            return [post.text for post in session.scalars(select(Post).filter_by(group_id=group))]


def test_a_slots_public_key_that_was_swapped(boxed: BoxScene) -> None:
    """Before a rotation. With seals the rotation is refused, and so is the unlock. Without, the unlock is
    refused, and who rotates without one does not see it: the new epoch goes to the attacker."""
    mine, out = fresh(), boxed.outsider
    old = out.key_row(GROUPS_KEY, 7)
    out.set(GROUPS_SLOT, {"key_id": old.key_id}, recipient_public_key=spec.public(mine))
    with pytest.raises((RowSealError, ProviderError, TamperedKeyError)):
        unlock_box(boxed)
    if has_seals(boxed):
        with pytest.raises(RowSealError):
            boxed.leave(None, CID, group=7)
        return
    boxed.leave(None, CID, group=7)
    root = out.key_row(GROUPS_KEY, 7)
    slot = out.one(GROUPS_SLOT, key_id=root.key_id)
    context = spec.wrap_context("provider", root, "", slot.recipient_public_key)
    stolen = spec.unseal(slot.wrapped, mine, context)

    assert spec.key_id(stolen) == root.key_id


def test_a_secret_slots_public_key_that_was_swapped_is_told_at_the_unlock(scene: Scene) -> None:
    """The owner's next unlock refuses it, before a rotation could seal a new epoch to it."""
    scene.outsider.set(USERS_SLOT, {"kind": "secret"}, recipient_public_key=spec.public(fresh()))

    with pytest.raises(expected(scene, TamperedKeyError)):
        scene.visit(BEN)


def test_a_planted_provider_slot(boxed: BoxScene) -> None:
    """A slot whose KEK the attacker has, beside the genuine one. With seals nothing goes on. Without, the
    next epoch is sealed to it as to every slot: not detected."""
    mine, out = fresh(), boxed.outsider
    old = out.key_row(GROUPS_KEY, 7)
    slot = out.one(GROUPS_SLOT, key_id=old.key_id)
    planted = {"recipient_public_key": spec.public(mine), "provider_ref": "elsewhere"}
    out.copy(GROUPS_SLOT, slot, slot_id=uuid.uuid4(), **planted)
    if has_seals(boxed):
        with pytest.raises(RowSealError):
            boxed.leave(None, CID, group=7)
        with pytest.raises(RowSealError):
            unlock_box(boxed)
        return
    assert unlock_box(boxed) == ["boxed"]
    boxed.leave(None, CID, group=7)
    root = out.key_row(GROUPS_KEY, 7)
    slot = out.one(GROUPS_SLOT, key_id=root.key_id, provider_ref="elsewhere")
    stolen = spec.unseal(slot.wrapped, mine, spec.wrap_context("provider", root, "", spec.public(mine)))

    assert spec.key_id(stolen) == root.key_id


def test_a_planted_secret_slot_opens_nothing(scene: Scene) -> None:
    """A slot for the attacker's own secret leads to no key of the owner's; the owner's own still does."""
    out = scene.outsider
    root, slot = out.key_row(USERS_KEY, BEN), None
    slot = out.one(USERS_SLOT, key_id=root.key_id)
    kek = spec.kek_of("the attacker's", slot.kdf)
    context = spec.wrap_context("secret", root, slot.kdf, spec.public(kek))
    blob = spec.seal(fresh(), spec.public(kek), context)
    first = uuid.UUID(int=0)
    out.copy(USERS_SLOT, slot, slot_id=first, wrapped=blob, recipient_public_key=spec.public(kek))
    with scene.session() as session, pytest.raises(expected(scene, TamperedKeyError)):
        scene.envelope.unlock(session, session.get_one(User, BEN), secret="the attacker's")

    if scene.has_seals:
        with pytest.raises(RowSealError):
            scene.visit(BEN)
    else:
        assert scene.diary(BEN) == "ben's diary"


def test_a_planted_slot_of_a_retired_root_is_not_derived(
    without: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slots of root keys that are no longer active cost nothing, whatever costs they ask for: one
    derivation."""
    out, derived = without.outsider, []
    root = out.key_row(USERS_KEY, BEN)
    slot = out.one(USERS_SLOT, key_id=root.key_id)
    old = out.plant_key(USERS_KEY, root, fresh(), epoch=0, state="retired")
    dear = "$argon2id$v=19$m=1048576,t=8,p=1$" + slot.kdf.rpartition("$")[2]
    for _ in range(3):
        out.copy(USERS_SLOT, slot, slot_id=uuid.uuid4(), key_id=old.key_id, kdf=dear)
    perform = without.envelope.perform

    def counted(work: Any) -> Any:
        derived.append(type(work))
        return perform(work)

    monkeypatch.setattr(without.envelope, "perform", counted)

    assert without.diary(BEN) == "ben's diary"
    assert derived == [Derivation]


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


# --- sealed write epochs ---


def write_for(scene: Scene, user: int, text: str = "for you") -> Any:
    with scene.session() as session, scene.envelope.write_only(session, session.get_one(User, user)):
        session.add(Event(user_id=user, text=text))
        session.commit()
    return scene.outsider.one(USERS_KEY, owner_id=user, purpose="write")


def read_events(scene: Scene, user: int) -> list[str | None]:
    with scene.unlocked(user) as session:
        return [event.text for event in session.scalars(select(Event))]


@pytest.mark.parametrize(
    ("changes", "plain", "sealed"),
    [
        ({"owner_id": CID}, OwnerMismatchError, OwnerMismatchError),
        ({"owner_id": CID, "owner_reference": spec.owner("users", CID)}, LockedError, RowSealError),
        ({"epoch": 7}, TamperedKeyError, RowSealError),
        ({"purpose": "data", "scope": "other"}, TamperedKeyError, RowSealError),
        ({"purpose": "data", "scope": "other", "state": "active"}, TamperedKeyError, RowSealError),
        ({"state": "active"}, TamperedKeyError, RowSealError),
        ({"scope": "profile"}, TamperedKeyError, RowSealError),
    ],
    ids=["owner", "owner and reference", "epoch", "purpose", "purpose and state", "state", "scope"],
)
def test_a_sealed_write_epoch_that_was_moved(
    scene: Scene, changes: dict[str, Any], plain: type[EnvelopeError], sealed: type[EnvelopeError]
) -> None:
    """To another owner, number, purpose, state or scope: nobody reads by it, and whoever would adopt it is
    told. Only one that claims to be another owner's altogether just stays closed there."""
    epoch = write_for(scene, BEN)
    scene.outsider.set(USERS_KEY, {"key_id": epoch.key_id}, **changes)
    with pytest.raises(sealed if scene.has_seals else plain):
        read_events(scene, changes.get("owner_id", BEN))


# --- providers ---


MOODS = {
    "down": ProviderError,
    "slow": ProviderTimeoutError,
    "another": ProviderError,
    "garbage": ProviderError,
    "text": ProviderError,
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_provider_that_misbehaves(boxed: BoxScene, mood: str) -> None:
    """Down, slow, answering with another key or with no key: the unlock says so, and works when it is well
    again."""
    boxed.box.mood = mood
    with pytest.raises(ProviderError) as refused:
        unlock_box(boxed)

    assert type(refused.value) is MOODS[mood]
    boxed.box.mood = "well"
    assert unlock_box(boxed) == ["boxed"]


@pytest.mark.parametrize("mood", MOODS)
def test_a_provider_that_misbehaves_in_server_mode(boxed: BoxScene, mood: str) -> None:
    """In server mode the read fails with the provider's error and is not taken for a locked row."""
    boxed.box.mood = mood
    with boxed.session() as session, boxed.envelope.server_mode(session, provider="box", reason="attack"):
        with pytest.raises(MOODS[mood]):
            first_post(session, 7)
        boxed.box.mood = "well"
        session.expire_all()
        assert first_post(session, 7) == "boxed"


@pytest.mark.parametrize("moved", ["provider_wrapped", "both", "all"])
def test_what_a_provider_wrapped_for_another_slot(boxed: BoxScene, moved: str) -> None:
    """A KEK from another slot, alone, with its public key, or with the wrap under it: never another owner's
    root."""
    out = boxed.outsider
    mine, other = (out.one(GROUPS_SLOT, key_id=out.key_row(GROUPS_KEY, one).key_id) for one in (7, 8))
    assert mine.provider_wrapped != other.provider_wrapped
    names = ["provider_wrapped", "recipient_public_key", "wrapped"]
    names = names[: {"provider_wrapped": 1, "both": 2, "all": 3}[moved]]
    out.set(GROUPS_SLOT, {"slot_id": mine.slot_id}, **{name: other._mapping[name] for name in names})

    error: Any = (TamperedKeyError, ProviderError) if moved == "provider_wrapped" else UnlockError
    with pytest.raises(RowSealError if has_seals(boxed) else error):
        unlock_box(boxed)


# --- altered rows ---


ALTERED: list[tuple[Table, dict[str, Any], str, Any]] = [
    (table, where, column, value)
    for table, where, columns in [
        (
            GROUPS_KEY,
            {"owner_id": THEIRS, "purpose": "root"},
            {"owner_reference": b"x", "purpose": "zzz", "scope": "x", "epoch": 5, "state": "foo"},
        ),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"public_key": b"abc", "granted": "many"}),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"commitment": b"\1" * 32, "public_key": 7}),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"proof": b"short", "state": "retired"}),
        (
            GROUPS_KEY,
            {"owner_id": THEIRS, "purpose": "data"},
            {"purpose": "index", "scope": "x", "epoch": -1, "state": "retired", "commitment": b"\1" * 32},
        ),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "data"}, {"wrapped": None, "wrapping_key_id": None}),
        (GRANTS, {"row_id": 2}, {"state": "foo", "wrapped": None, "recipient_key_id": None}),
        (GRANTS, {"row_id": 2}, {"wrapped": b"\x11" * 105, "key_id": uuid.UUID(int=5)}),
    ]
    for column, value in columns.items()
]


@pytest.mark.parametrize(
    ("table", "where", "column", "value"),
    ALTERED,
    ids=[
        f"{table.name}.{where.get('purpose', '')}.{name}={value!r:.12}"
        for table, where, name, value in ALTERED
    ],
)
def test_a_group_whose_rows_were_altered(
    scene: Scene, table: Table, where: dict[str, Any], column: str, value: Any
) -> None:
    """Its members unlock and read their own data as ever; the group's is refused, or unlocks unharmed."""
    raw = spec.sql_table(table.name, *(spec.sql_column(name) for name in (*where, column)))
    scene.outsider.run(
        raw.update()
        .filter_by(**where)
        .values(**{column: value.hex if isinstance(value, uuid.UUID) else value})
    )
    with scene.unlocked(BEN) as session:
        assert session.get_one(User, BEN).diary == "ben's diary"
        refused: list[EnvelopeError] = []
        try:
            assert first_post(session) == "first"
        except EnvelopeError as error:
            refused.append(error)
    is_gone = column in ("recipient_key_id", "key_id")  # no grant of Ben's is there any more
    assert is_gone or not any(isinstance(one, LockedError) for one in refused)


def test_a_users_key_id_in_another_table(scene: Scene) -> None:
    """A group's row that claims a user's own key does not keep that user out."""
    out = scene.outsider
    ben, hers, grant = out.key_row(USERS_KEY, BEN), out.key_row(GROUPS_KEY, HERS), out.one(GRANTS, row_id=3)
    out.insert(MEMBERSHIPS, id=9, group_id=HERS, user_id=BEN)
    out.copy(GROUPS_KEY, hers, key_id=ben.key_id, epoch=7, state="retired")
    ids = {"grant_id": uuid.uuid4(), "key_id": ben.key_id, "recipient_key_id": ben.key_id, "row_id": 9}
    out.copy(GRANTS, grant, **ids)

    assert scene.diary(BEN) == "ben's diary"
    assert scene.posts(BEN) == ["first"]


def test_planted_grants_in_every_direction_cost_no_time(scene: Scene) -> None:
    """Sixteen groups that all seem to grant their keys to one another have more paths than could ever be
    walked."""
    out, nestings, keys = scene.outsider, Nesting.__table__, []
    like, grant = out.key_row(GROUPS_KEY, HERS), out.one(GRANTS, row_id=2)
    for number in range(100, 116):
        out.insert(GROUPS, id=number, name=None)
        reference = spec.owner("groups", number)
        keys.append(out.plant_key(GROUPS_KEY, like, fresh(), owner_id=number, owner_reference=reference))
    out.insert(MEMBERSHIPS, id=9, group_id=100, user_id=BEN)
    out.copy(GRANTS, grant, grant_id=uuid.uuid4(), key_id=keys[0].key_id, row_id=9)
    pairs = [(inner, outer) for inner in keys for outer in keys if inner is not outer]
    rows = [{"inner_id": inner.owner_id, "outer_id": outer.owner_id} for inner, outer in pairs]
    out.run(nestings.insert(), rows)  # type: ignore[attr-defined]
    planted = {"state": "adopted", "wrapped": b"\x11" * 105, "seal": None, "created_at": grant.created_at}
    out.run(
        NESTINGS.insert(),
        [
            {
                "grant_id": uuid.uuid4(),
                "key_id": inner.key_id,
                "recipient_key_id": outer.key_id,
                "row_inner_id": inner.owner_id,
                "row_outer_id": outer.owner_id,
                **planted,
            }
            for inner, outer in pairs
        ],
    )
    began = time.monotonic()

    assert scene.diary(BEN) == "ben's diary"
    assert scene.posts(BEN) == ["first"]
    assert time.monotonic() - began < 20


FLIPPED: list[tuple[Table, str, dict[str, Any]]] = [
    *((GROUPS_KEY, name, {"owner_id": THEIRS, "purpose": "root"}) for name in ("commitment", "public_key")),
    *(
        (GROUPS_KEY, name, {"owner_id": THEIRS, "purpose": "data"})
        for name in ("commitment", "public_key", "wrapped", "seal")
    ),
    *((GROUPS_KEY, name, {"owner_id": THEIRS, "epoch": 2, "purpose": "root"}) for name in ("proof", "seal")),
    (GROUPS_KEY, "wrapped", {"owner_id": THEIRS, "epoch": 1, "purpose": "root"}),
    *((USERS_SLOT, name, {}) for name in ("wrapped", "recipient_public_key", "seal")),
    *((GRANTS, name, {"row_id": 2, "state": "adopted"}) for name in ("wrapped", "seal")),
    *((GRANTS, name, {"row_id": 2, "state": "sealed"}) for name in ("wrapped", "seal")),
]


@pytest.fixture(scope="module", params=[PLAIN, SEALED], ids=["without", "with"])
def two_epochs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene with a second epoch of the group, which waits for Ben."""
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('flips') / 'test.db'}")
    enforce_foreign_keys(engine)
    scene = set_scene(engine, request.param)
    scene.join(ADA, CID)
    scene.leave(ADA, CID)
    yield scene
    engine.dispose()


@pytest.mark.parametrize(
    ("table", "column", "where"),
    FLIPPED,
    ids=[f"{table.name}.{name}.{'.'.join(map(str, where.values()))}" for table, name, where in FLIPPED],
)
def test_every_byte_flipped(
    two_epochs: Scene, table: Table, column: str, where: dict[str, Any], every_nth: EveryNth
) -> None:
    """One of our errors or no effect; never another value, and nothing is written that its owner cannot
    read."""
    scene, out = two_epochs, two_epochs.outsider
    if table is USERS_SLOT:
        where = {"key_id": out.key_row(USERS_KEY, BEN).key_id}
    row = out.rows(table, **where)[0]
    (primary,) = table.primary_key.columns
    value = row._mapping[column]
    if value is None:
        assert not scene.has_seals
        assert column == "seal"
        return
    key = {primary.name: row._mapping[primary.name]}
    # A seal or a public key is compared as a whole, and a seal covers a wrap as a whole.
    apart = 1 if column == "wrapped" and not scene.has_seals else 7
    for at in every_nth(9 // apart + 1, range(0, len(value), apart)):
        altered = value[:at] + bytes([value[at] ^ 0x41]) + value[at + 1 :]
        out.set(table, key, **{column: altered})
        with scene.session() as session, suppress(EnvelopeError):
            unlocked = scene.envelope.unlock(session, session.get_one(User, BEN), secret=SECRETS[BEN])
            with unlocked:
                post = Post(group_id=THEIRS, text="new")
                texts = [one.text for one in session.scalars(select(Post).filter_by(group_id=THEIRS))]
                assert texts == ["first"]
                session.add(post)
                session.flush()
                session.refresh(post)
                assert post.text == "new"
                session.rollback()
        out.set(table, key, **{column: value})


# --- a copy of the database ---


def read_dump(out: spec.Outsider, server_keys: list[bytes]) -> dict[tuple[str, int], dict[bytes, bytes]]:
    """Every data key that a copy of the database gives to somebody with these server keys, by owner: from the
    specification alone."""
    opened: dict[uuid.UUID, bytes] = {}
    known = {spec.key_id(key).bytes: key for key in server_keys}
    tables = [("users", USERS_KEY, USERS_SLOT), ("groups", GROUPS_KEY, GROUPS_SLOT)]
    keys = {row.key_id: (name, row) for name, table, _ in tables for row in out.rows(table)}
    for _, table, slots in tables:
        for slot in out.rows(slots, kind="provider"):
            server_key = known.get(slot.provider_wrapped[1:17])
            if server_key is None:
                continue
            row = out.one(table, key_id=slot.key_id)
            kek = spec.provider_kek(server_key, slot.provider_wrapped, slot.recipient_public_key)
            assert spec.public(kek) == slot.recipient_public_key
            if slot.wrapped[0] == 0x12:
                context = spec.wrap_context("provider", row, "", slot.recipient_public_key)
                opened[row.key_id] = spec.unseal(slot.wrapped, kek, context)
            else:
                context = spec.wrap_context("provider", row)
                opened[row.key_id] = spec.unwrap(slot.wrapped, kek, context, is_kek=True)
    grants = [
        (GRANTS, "memberships", "row_id"),
        (SHARES, "profile_shares", None),
        (NESTINGS, "nestings", None),
    ]
    while True:
        count = len(opened)
        for key_id, (_, row) in keys.items():
            if key_id in opened or row.wrapping_key_id not in opened:
                continue
            parent = opened[row.wrapping_key_id]
            under = row.wrapping_key_id.bytes
            if row.purpose == "root":
                opened[key_id] = spec.unwrap(
                    row.wrapped, parent, spec.wrap_context("previous", row, "", under)
                )
            elif row.wrapped[0] == 0x12:
                opened[key_id] = spec.unseal(row.wrapped, parent, spec.wrap_context("sealed", row, "", under))
            else:
                opened[key_id] = spec.unwrap(row.wrapped, parent, spec.wrap_context("root", row))
        for table, label, single in grants:
            for grant in out.rows(table):
                if grant.recipient_key_id not in opened or grant.key_id in opened or grant.wrapped is None:
                    continue
                row_names = [column.name for column in table.columns]
                names = [single] if single else [name for name in row_names if name.startswith("row_")]
                granter = spec.granting_row(label, *(grant._mapping[name] for name in names))
                row, recipient = keys[grant.key_id][1], grant.recipient_key_id
                context = spec.wrap_context("grant", row, "", recipient.bytes, granter)
                opens = spec.unseal if grant.wrapped[0] == 0x12 else spec.unwrap
                opened[grant.key_id] = opens(grant.wrapped, opened[recipient], context)
        if len(opened) == count:
            break
    found: dict[tuple[str, int], dict[bytes, bytes]] = {}
    for key_id, key in opened.items():
        name, row = keys[key_id]
        assert (spec.commitment(key), spec.key_id(key)) == (row.commitment, key_id)
        if row.purpose != "root":
            found.setdefault((name, row.owner_id), {})[key_id.bytes] = key
    return found


def test_a_copy_of_the_database(sqlite_engine: Engine) -> None:
    """Alone it opens nothing. With the server keys it opens exactly the owners that have a provider's slot,
    and what was granted to them: not one that only a secret opens."""
    scene = set_scene(sqlite_engine, SEALED)
    with scene.session() as session:
        dot = User(id=5, name="dot", display_name="dot's name", diary="dot's diary")
        scene.envelope.enroll(session, dot, secret="the secret of dot", provider="server")
        session.commit()
        with scene.envelope.unlock(session, session.get_one(User, ADA), secret=SECRETS[ADA]):
            group = Group(id=6, name="of ada and dot")
            scene.envelope.enroll(session, group)
            session.add_all(
                [Membership(id=60, group_id=6, user_id=ADA), Membership(id=61, group_id=6, user_id=5)]
            )
            session.commit()
            session.add(Post(group_id=6, text="to dot"))
            session.commit()
    out = scene.outsider

    assert read_dump(out, []) == read_dump(out, [b"\x08" * 32]) == {}
    found = read_dump(out, [SERVER_KEY])
    assert set(found) == {("users", 5), ("groups", 6)}
    diary, post = out.values("users", "diary")[-1], out.values("posts", "text")[-1]
    assert spec.decrypt(diary, found["users", 5][diary[1:17]], "users.diary") == "dot's diary"
    assert spec.decrypt(post, found["groups", 6][post[1:17]], "posts.text") == "to dot"
    for value in out.values("users", "diary")[:4]:
        assert not any(value[1:17] in keys for keys in found.values())


def test_an_owner_of_secrets_alone_is_not_the_operators(sqlite_engine: Engine) -> None:
    """The library keeps to it too: server mode opens no owner without a provider's slot."""
    scene = set_scene(sqlite_engine, SEALED)
    with scene.session() as session, scene.envelope.server_mode(session, reason="attack"):
        with pytest.raises(LockedError):
            _ = session.get_one(User, BEN).diary
        with pytest.raises(KeyNotFoundError):
            scene.envelope.unlock(session, session.get_one(User, BEN), provider="server", reason="attack")
