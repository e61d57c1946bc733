"""Somebody who reads and writes the whole database plants slots and swaps their public keys."""

import uuid
from typing import Any

import pytest
from sqlalchemy import select

from sqlalchemy_envelope import (
    EnvelopeError,
    LockedError,
    OwnerMismatchError,
    ProviderError,
    RowSealError,
    TamperedKeyError,
)
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.orm import outsider as spec
from tests.orm.outsider import BEN, CID, GROUPS_KEY, GROUPS_SLOT, USERS_KEY, USERS_SLOT, Event, Scene, User
from tests.orm.sharing.attackers.asserted import BoxScene, expected, fresh, has_seals, unlock_box

# --- slots ---


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
