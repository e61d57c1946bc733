"""Lines of the table in docs/explanation/threat-model.md that the other suites of attacks have no place
for: a whole owner planted, a write epoch planted, a grant planted beside its row, an old slot put back, slots
deleted."""

import os
import uuid
from typing import Any

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope import EnvelopeError, KeyNotFoundError, RowSealError, UnlockError
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    EVE,
    PLAIN,
    SEALED,
    SECRETS,
    USERS_KEY,
    USERS_SLOT,
    Event,
    Scene,
    User,
)


@pytest.fixture(params=[PLAIN, SEALED], ids=["no server keys", "row seals"])
def scene(request: pytest.FixtureRequest, sqlite_engine: Engine) -> Scene:
    """Users and groups, without server keys and with row seals."""
    return spec.set_scene(sqlite_engine, request.param)


def plant_owner(out: spec.Outsider, user: int, secret: str) -> None:
    """Keys and a slot of the outsider's own in the place of a user's."""
    old = out.key_row(USERS_KEY, user)
    slot, data = out.one(USERS_SLOT, key_id=old.key_id), out.rows(USERS_KEY, owner_id=user, purpose="data")
    out.delete(USERS_SLOT, key_id=old.key_id)
    out.delete(USERS_KEY, owner_id=user)
    root_key = os.urandom(32)
    root = out.plant_key(USERS_KEY, old, root_key)
    for row in data:
        key = os.urandom(32)
        child = out.plant_key(USERS_KEY, row, key, wrapping_key_id=root.key_id)
        wrapped = spec.wrap(key, root_key, spec.wrap_context("root", child))
        out.set(USERS_KEY, {"key_id": child.key_id}, wrapped=wrapped)
    kek = spec.kek_of(secret, slot.kdf)
    context = spec.wrap_context("secret", root, slot.kdf, spec.public(kek))
    blob = spec.seal(root_key, spec.public(kek), context)
    out.copy(USERS_SLOT, slot, key_id=root.key_id, recipient_public_key=spec.public(kek), wrapped=blob)


def unlock(scene: Scene, user: int, secret: str) -> None:
    with scene.session() as session:
        scene.envelope.unlock(session, session.get_one(User, user), secret=secret)


def test_a_planted_owner(scene: Scene) -> None:
    """With seals it is refused. Without, not detected: the outsider's secret unlocks, and opens nothing of
    what was written before."""
    plant_owner(scene.outsider, CID, "the outsider's")
    if scene.has_seals:
        with pytest.raises(RowSealError):
            unlock(scene, CID, "the outsider's")
        return
    unlock(scene, CID, "the outsider's")
    with scene.session() as session:
        cid = session.get_one(User, CID)
        with scene.envelope.unlock(session, cid, secret="the outsider's"):
            session.refresh(cid)
            with pytest.raises(EnvelopeError):
                getattr(cid, "diary")  # noqa: B009 - the touch is what raises


def test_a_planted_write_epoch(scene: Scene) -> None:
    """With seals it is refused. Without, not detected: what it encrypts reads as what a webhook wrote."""
    out, key = scene.outsider, os.urandom(32)
    root = out.key_row(USERS_KEY, BEN)
    number = int.from_bytes(spec.key_id(key).bytes[:4], "big") & 0x7FFFFFFF
    new = {"purpose": "write", "state": "retired", "epoch": number, "wrapping_key_id": root.key_id}
    planted = out.plant_key(USERS_KEY, root, key, **new, granted=0)
    blob = spec.seal(key, root.public_key, spec.wrap_context("sealed", planted, recipient=root.key_id.bytes))
    out.set(USERS_KEY, {"key_id": planted.key_id}, wrapped=blob)
    columns = (spec.sql_column("user_id"), spec.sql_column("text", spec.LargeBinary))
    raw: Any = spec.sql_table("events", *columns)
    out.insert(raw, user_id=BEN, text=spec.encrypt("from nobody", key, "events.text"))
    if scene.has_seals:
        with pytest.raises(RowSealError):
            unlock(scene, BEN, SECRETS[BEN])
        return

    with scene.unlocked(BEN) as session:
        assert session.query(Event).one().text == "from nobody"


def test_a_grant_that_opens_nothing_beside_a_row_that_names_the_outsider(scene: Scene) -> None:
    """With seals the next epoch is not sealed to the outsider. Without, not detected: the epoch that starts
    over one grant more than was counted is sealed to the outsider too, and opens what was written before."""
    out, row = scene.outsider, 9
    eve, root = out.key_row(USERS_KEY, EVE), out.key_row(spec.GROUPS_KEY, spec.THEIRS)
    out.insert(spec.Membership.__table__, id=row, group_id=spec.THEIRS, user_id=EVE)
    blob = out.seal_grant(os.urandom(32), root, eve, spec.granting_row("memberships", row))
    new = {"grant_id": uuid.uuid4(), "row_id": row, "recipient_key_id": eve.key_id}
    out.copy(spec.GRANTS, out.one(spec.GRANTS, row_id=2), **new, state="sealed", wrapped=blob)
    scene.visit(ADA)
    read = scene.posts(ADA)
    out.delete(spec.GRANTS, grant_id=new["grant_id"])  # it opens nothing
    stolen = out.read_posts(out.open_grants(EVE, out.root_of_user(EVE)))

    assert read == ["first"]
    assert (stolen[0] == "first") is not scene.has_seals


def test_an_old_slot_that_is_put_back(scene: Scene) -> None:
    """Not detected, with seals or without: the secret that it was made for opens it again."""
    before = scene.outsider.rows(USERS_SLOT)
    with scene.session() as session:
        scene.envelope.change_secret(
            session, session.get_one(User, CID), old=SECRETS[CID], new="a new secret"
        )
        session.commit()
    with pytest.raises(UnlockError):
        unlock(scene, CID, SECRETS[CID])
    scene.outsider.delete(USERS_SLOT)
    for row in before:
        scene.outsider.copy(USERS_SLOT, row)

    assert scene.diary(CID) == "cid's diary"


def test_slots_that_were_deleted(scene: Scene) -> None:
    """The data is lost, and the unlock says what is missing."""
    scene.outsider.delete(USERS_SLOT, key_id=scene.outsider.key_row(USERS_KEY, CID).key_id)

    with pytest.raises(KeyNotFoundError):
        unlock(scene, CID, SECRETS[CID])
