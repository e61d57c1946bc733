"""Somebody who writes to the database, without server keys, makes a recovery code open what the attacker
knows; and somebody who knew the keys once makes them look like the owner's again."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import RecoveryCode, UnlockError
from tests.orm import outsider as spec
from tests.orm.outsider import BEN, CID, PLAIN, SECRETS, USERS_KEY, USERS_SLOT, Scene, User, set_scene

NEW = "other words entirely"
LABELS = {"": "users.diary", "profile": "users.display_name"}


@pytest.fixture
def scene(sqlite_engine: Engine) -> Scene:
    """Without server keys: nothing but the keys themselves says whose they are."""
    return set_scene(sqlite_engine, PLAIN)


def new_code(scene: Scene, user: int = BEN) -> RecoveryCode:
    with scene.unlocked(user) as session:
        code = PLAIN.add_recovery_code(session, session.get_one(User, user))
        session.commit()
    return code


def new_epoch(scene: Scene, user: int = BEN) -> None:
    """As a slot that is removed starts one."""
    with scene.unlocked(user) as session:
        owner = session.get_one(User, user)
        PLAIN.add_recovery_code(session, owner, label="lost")
        (lost,) = [slot for slot in PLAIN.slots(session, owner) if slot.label == "lost"]
        PLAIN.remove_slot(session, owner, slot=lost)
        session.commit()


def roots(scene: Scene, user: int = BEN) -> list[Any]:
    found = scene.outsider.rows(USERS_KEY, owner_id=user, purpose="root")
    return sorted(found, key=lambda row: row.epoch)


def plant_epoch(out: spec.Outsider, root_key: bytes, data_key: bytes, proof: bytes | None = None) -> None:
    """A new epoch of the attacker's keys, sealed into each slot that the owner has."""
    old = out.key_row(USERS_KEY, BEN)
    slots = out.rows(USERS_SLOT, key_id=old.key_id)
    kept = out.rows(USERS_KEY, owner_id=BEN, state="active", purpose="data")
    out.set(USERS_KEY, {"owner_id": BEN, "state": "active"}, state="retired")
    root = out.plant_key(USERS_KEY, old, root_key, epoch=old.epoch + 1, state="active", proof=proof)
    for data in kept:
        key = data_key if data.scope == "" else b"\x01" * 32
        child = out.plant_key(USERS_KEY, data, key, epoch=data.epoch + 1, state="active")
        blob = spec.wrap(key, root_key, spec.wrap_context("root", child))
        out.set(USERS_KEY, {"key_id": child.key_id}, wrapped=blob, wrapping_key_id=root.key_id)
    for slot in slots:
        context = spec.wrap_context(slot.kind, root, slot.kdf, slot.recipient_public_key)
        blob = spec.seal(root_key, slot.recipient_public_key, context)
        out.copy(USERS_SLOT, slot, slot_id=uuid.uuid4(), key_id=root.key_id, wrapped=blob)


def write_diary(scene: Scene, text: str, **way: Any) -> bytes:
    """The stored bytes of what Ben writes now."""
    with Session(scene.engine) as session:
        owner = session.get_one(User, BEN)
        with PLAIN.unlock(session, owner, **way):
            owner.diary = text
            session.commit()
    return scene.outsider.values("users", "diary")[BEN - 1]


@pytest.mark.parametrize("way", ["reset", "unlock", "set_secret"])
def test_nothing_is_written_under_a_planted_epoch(scene: Scene, way: str) -> None:
    """Sealed to the code's public key by somebody without a key: the next write, and a reset, start another
    epoch first, and the new secret and the new code lead to that one."""
    code, root_key, data_key = new_code(scene), b"\x0a" * 32, b"\x0b" * 32
    plant_epoch(scene.outsider, root_key, data_key)
    ways: dict[str, Any] = {"recovery_code": code}
    if way != "unlock":
        with Session(scene.engine) as session:
            owner = session.get_one(User, BEN)
            if way == "reset":
                ways = {"recovery_code": PLAIN.reset_secret(session, owner, recovery_code=code, new=NEW)}
            else:
                with PLAIN.unlock(session, owner, recovery_code=code) as unlocked:
                    unlocked.set_secret(owner, NEW)
            session.commit()
    value = write_diary(scene, "after", **ways)

    assert spec.key_id(root_key) != scene.outsider.key_row(USERS_KEY, BEN).key_id
    assert spec.key_id(data_key).bytes != value[1:17]
    assert [row.epoch for row in roots(scene)] == [1, 2, 3]
    with Session(scene.engine) as session:
        owner = session.get_one(User, BEN)
        secret = SECRETS[BEN] if way == "unlock" else NEW
        with PLAIN.unlock(session, owner, secret=secret):
            assert owner.diary == "after"


@pytest.mark.parametrize("way", ["secret", "recovery_code"])
def test_who_was_shut_out_cannot_prove_an_epoch(scene: Scene, way: str) -> None:
    """Whoever held the first root key, as a provider that was removed did, proves nothing to an owner who
    knows a newer one: nothing is written under the epoch that is planted."""
    code = new_code(scene)
    known = scene.outsider.root_of_user(BEN)
    new_epoch(scene)
    scene.visit(BEN)
    root_key, data_key = b"\x0a" * 32, b"\x0b" * 32
    plant_epoch(scene.outsider, root_key, data_key, spec.proof(known, root_key))
    ways = {"secret": SECRETS[BEN], "recovery_code": code}
    value = write_diary(scene, "after", **{way: ways[way]})

    assert spec.key_id(data_key).bytes != value[1:17]


def test_epochs_that_came_while_a_code_lay_in_the_safe(scene: Scene) -> None:
    """Each of them proves the next one: a code starts no fifth, and every value opens."""
    code = new_code(scene)
    for number in (2, 3, 4):
        new_epoch(scene)
        write_diary(scene, f"in epoch {number}", secret=SECRETS[BEN])
    value = write_diary(scene, "with the code", recovery_code=code)

    assert [row.epoch for row in roots(scene)] == [1, 2, 3, 4]
    assert value[1:17] == scene.outsider.key_row(USERS_KEY, BEN, "data").key_id.bytes
    with Session(scene.engine) as session:
        owner = session.get_one(User, BEN)
        made = PLAIN.reset_secret(session, owner, recovery_code=code, new=NEW)
        session.commit()
        for way in ({"secret": NEW}, {"recovery_code": made}):
            with PLAIN.unlock(session, owner, **way):
                assert (owner.diary, owner.display_name) == ("with the code", "ben's name")


def test_old_values_open_after_a_reset(scene: Scene) -> None:
    """What stands under the keys of an earlier epoch opens with the new secret and with the new code: their
    slots are made for the retired root keys too."""
    code = new_code(scene)
    new_epoch(scene)  # the values of before stay under the first data key
    with Session(scene.engine) as session:
        owner = session.get_one(User, BEN)
        made = PLAIN.reset_secret(session, owner, recovery_code=code, new=NEW)
        session.commit()
    for way in ({"secret": NEW}, {"recovery_code": made}):
        with Session(scene.engine) as session:
            owner = session.get_one(User, BEN)
            with PLAIN.unlock(session, owner, **way):
                assert (owner.diary, owner.display_name) == ("ben's diary", "ben's name")


def test_the_slot_of_another_owner_does_not_open_here(scene: Scene) -> None:
    """The slot of a code, copied to the root key of another owner, opens nothing there."""
    code, out = new_code(scene, CID), scene.outsider
    slot = out.one(USERS_SLOT, kind="recovery")
    out.copy(USERS_SLOT, slot, slot_id=uuid.uuid4(), key_id=out.key_row(USERS_KEY, BEN).key_id)
    for call in (PLAIN.unlock, PLAIN.reset_secret):
        more = {} if call == PLAIN.unlock else {"new": NEW}
        with Session(scene.engine) as session, pytest.raises(UnlockError):
            call(session, session.get_one(User, BEN), recovery_code=code, **more)  # type: ignore[operator]
    scene.visit(BEN, CID)


def test_a_slot_that_was_planted_beside_the_codes(scene: Scene) -> None:
    """Rows with the public key of the code that open nothing do not keep the code from opening its owner."""
    code, out = new_code(scene), scene.outsider
    slot = out.one(USERS_SLOT, kind="recovery")
    for number in (0, 2**128 - 1):
        out.copy(USERS_SLOT, slot, slot_id=uuid.UUID(int=number), wrapped=b"\x11" * 105)

    write_diary(scene, "after", recovery_code=code)
    assert scene.diary(BEN) == "after"
