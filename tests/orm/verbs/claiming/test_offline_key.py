"""A campaign behind an offline key: the server cannot read, a secret waits for the custodians, and planted
rows open nothing."""

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    ProviderError,
    RowSealError,
    ServerKeyring,
    UnclaimedError,
    UnlockError,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.crypto.argon2id import KdfSalt, derive_kek
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.providers import OfflineKey, OfflinePublicKey
from sqlalchemy_envelope.keys.slots import provider_slot
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.tables.generated import now
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.verbs.owner_keys import locate
from tests.orm.models import SECRET, Base, Note, User, stored
from tests.orm.verbs.claiming.application import Application
from tests.prepared import tables_of

CHEAP = KdfProfile.unsafe_for_tests()
OFFLINE = OfflineKey.generate()


@pytest.fixture
def sealed(sqlite_engine: Engine, tmp_path: Path) -> Application:
    """The application with row seals, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    app = Application(sqlite_engine, tmp_path)
    app.restart(server_keys=ServerKeyring([b"\x51" * 32]))
    return app


# ---------------------------------------------------------------- an offline key


def waiting(app: Application, secret: str = SECRET) -> int:
    """An owner who chose a secret while nobody could open their keys."""
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    owner = app.away()
    app.restart()
    app.claim(owner, secret)
    return owner


def released(app: Application, **how: Any) -> tuple[int, int]:
    """What the custodians did, on their machine."""
    custodians = Envelope(
        kdf_profile=CHEAP,
        server_keys=app.envelope.policy.seals._server_keys,
        providers={"campaign": OfflineKey(OFFLINE)},
        audit=app.events.append,
    )
    campaign = Campaign(app.engine, custodians, Base)
    with Session(app.engine) as session:
        found = campaign.release(session, **how)
        session.commit()
    return tuple(found)  # type: ignore[return-value]  # a pair


@pytest.mark.any_database
def test_the_server_cannot_read_behind_an_offline_key(app: Application) -> None:
    """After a restart the server opens nothing of the owner, and writes to it by sealed write epochs."""
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    owner = app.away()
    app.restart()

    with pytest.raises(ProviderError):
        app.note(owner, provider="campaign", reason="look")
    with (
        Session(app.engine) as session,
        app.envelope.server_mode(session, provider="campaign", reason="look"),
    ):
        user = session.get_one(User, owner)
        with pytest.raises(LockedError):
            user.notes[0].body  # noqa: B018
        session.add(Note(user=user, body="refused"))
        with pytest.raises(LockedError):
            session.commit()
        session.rollback()
        with app.envelope.write_only(session):
            session.add(Note(user_id=owner, body="sealed"))
            session.commit()
    assert (
        app.slots()[0][[c.key for c in Base.metadata.tables["users_keyslot"].c].index("wrapped")][:1]
        == b"\x12"
    )


@pytest.mark.any_database
def test_a_secret_waits_for_the_custodians_and_then_opens(app: Application) -> None:
    """The whole way: chosen, told to wait, released, opened, with everything readable and new keys."""
    owner = waiting(app)

    with pytest.raises(UnclaimedError, match="custodians"):
        app.note(owner, secret=SECRET)
    with pytest.raises(UnlockError):
        app.note(owner, secret="another one")
    assert released(app, unsafe_without_row_seals=True) == (1, 0)

    for _ in range(2):
        assert app.note(owner, secret=SECRET) == "of ada"
    assert set(app.kinds()) == {"secret"}
    assert app.roots() == 2
    assert app.named("claim_waiting") == app.named("claim_released") == app.named("hardened") == 1


def test_with_row_seals_too_what_was_released_is_hardened(sealed: Application) -> None:
    """The custodians' key opened the first root key, so that the owner's first unlock makes another."""
    owner = waiting_sealed(sealed)

    assert released(sealed) == (1, 0)
    for _ in range(2):
        assert sealed.note(owner, secret=SECRET) == "of ada"
    assert sealed.roots() == 2


def waiting_sealed(app: Application) -> int:
    """As `waiting`, with row seals."""
    server_keys = ServerKeyring([b"\x51" * 32])
    app.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key), server_keys=server_keys)
    owner = app.away()
    app.restart(server_keys=server_keys)
    app.claim(owner)
    return owner


def test_a_released_secret_can_be_changed_first(sealed: Application) -> None:
    """A changed secret opens what was released as well: what was sealed is not taken for the owner's own."""
    owner = waiting_sealed(sealed)
    released(sealed)

    with Session(sealed.engine) as session:
        user = session.get_one(User, owner)
        sealed.envelope.change_secret(session, user, old=SECRET, new="the next one")
        session.commit()

    assert sealed.note(owner, secret="the next one") == "of ada"
    assert sealed.roots() == 2


def test_who_waits_may_choose_again(lite: Application) -> None:
    """Whoever is authenticated anew and claims again puts another secret in place of the one that waits."""
    owner = waiting(lite, "mistyped")

    assert lite.named("claim_waiting") == 1
    lite.claim(owner)

    released(lite, unsafe_without_row_seals=True)
    assert lite.note(owner, secret=SECRET) == "of ada"
    with pytest.raises(UnlockError):
        lite.note(owner, secret="mistyped")


def test_a_login_while_waiting_is_locked_and_no_error(lite: Application) -> None:
    """With `authenticated=True` the login goes on, and what is encrypted stays locked."""
    owner = waiting(lite)

    with Session(lite.engine) as session:
        user = session.get_one(User, owner)
        unlocked = lite.envelope.unlock(session, user, secret=SECRET, authenticated=True)
        with unlocked, pytest.raises(LockedError):
            user.notes[0].body  # noqa: B018
        assert {slot.kind for slot in lite.envelope.slots(session, user)} == {"provider", "waiting"}


def test_release_asks_for_row_seals(lite: Application) -> None:
    """Without them nobody tells an owner's secret from a planted one: the custodians have to insist."""
    waiting(lite)

    with pytest.raises(EnvelopeError, match="row seals"):
        released(lite)


def test_release_may_be_of_some_owners(lite: Application) -> None:
    """Custodians who look at each owner release those they name, and no other."""
    ada = waiting(lite)
    lite.restart(OfflinePublicKey(OfflineKey(OFFLINE).public_key))
    ben = lite.away("ben")
    lite.claim(ben)

    with Session(lite.engine) as session:
        user = session.get_one(User, ben)
        assert released(lite, owners=[user], unsafe_without_row_seals=True) == (1, 0)

    assert lite.note(ben, secret=SECRET) == "of ben"
    with pytest.raises(UnclaimedError):
        lite.note(ada, secret=SECRET)


# ---------------------------------------------------------------- who writes to the database


def plant(app: Application, owner: int, wrapped: bytes, secret: str = "planted") -> None:  # noqa: S107
    """Put a secret slot into the database that opens with a secret of one's own, past the application."""
    salt = KdfSalt.generate(CHEAP)
    kek = derive_kek(secret.encode(), salt)
    slots = Base.metadata.tables["users_keyslot"]
    keys = Base.metadata.tables["users_key"]
    with app.engine.begin() as connection:
        query = select(keys.c.key_id).where(keys.c.owner_id == owner, keys.c.purpose == "root")
        key_id = connection.scalars(query.order_by(keys.c.epoch.desc())).first()
        connection.execute(slots.insert().values(**_slot_values(key_id, salt, kek, wrapped)))


def _slot_values(key_id: Any, salt: KdfSalt, kek: KeyBytes, wrapped: bytes) -> dict[str, Any]:
    return {
        "slot_id": uuid.uuid4(),
        "key_id": key_id,
        "kind": "secret",
        "kdf": str(salt),
        "recipient_public_key": x25519_public(kek),
        "wrapped": wrapped,
        "created_at": now(None),
    }


@pytest.mark.parametrize("wrapped", [b"", b"\x11" * 105, b"\x12" * 81])
def test_a_planted_slot_opens_no_unclaimed_owner(lite: Application, wrapped: bytes) -> None:
    """A slot that somebody put there, waiting or with bytes of theirs, never unlocks; nothing is lost."""
    owner = lite.away()
    plant(lite, owner, wrapped)

    for secret in ("planted", SECRET):
        with pytest.raises((UnclaimedError, UnlockError)):
            lite.note(owner, secret=secret)
    assert lite.note(owner, provider="campaign", reason="test") == "of ada"


def test_a_planted_waiting_slot_is_gone_with_the_claim(lite: Application) -> None:
    """The owner's own claim goes through beside it, and the planted one is not given the new keys."""
    owner = lite.away()
    plant(lite, owner, b"")

    lite.claim(owner)

    assert lite.note(owner, secret=SECRET) == "of ada"
    with pytest.raises(UnlockError):
        lite.note(owner, secret="planted")


def test_a_planted_waiting_slot_is_not_sealed_to_by_an_epoch(lite: Application) -> None:
    """A new epoch of an owner who is away is sealed to slots that hold a key, and not to one that waits."""
    owner = waiting(lite)
    plant(lite, owner, b"")

    with Session(lite.engine) as session:
        located = locate(Desk(session, lite.envelope.policy), session.get_one(User, owner))
        start_epoch(located.desk, located.place, None)
        session.commit()
        roots = [one.stored.key_id for one in located.load() if one.stored.epoch == 2]
        slots = KeyStore(session, located.place.owner_class, lite.envelope.policy.seals).load_slots(roots)

    assert [len(slot.wrapped) for slot in slots if slot.kind == "secret"] == [0, 0]
    with pytest.raises((UnclaimedError, UnlockError)):
        lite.note(owner, secret="planted")


def test_a_planted_secret_is_not_released(sealed: Application) -> None:
    """With row seals the custodians hand out no key to a secret that the application did not store."""
    sealed.restart(
        OfflinePublicKey(OfflineKey(OFFLINE).public_key), server_keys=ServerKeyring([b"\x51" * 32])
    )
    owner = sealed.away()
    plant(sealed, owner, b"")

    assert released(sealed) == (0, 1)
    assert sealed.named("release_refused") == 1
    with pytest.raises((RowSealError, UnclaimedError)):
        sealed.note(owner, secret="planted")


def test_two_waiting_secrets_are_not_released(lite: Application) -> None:
    """Where a second secret stands beside it, nobody can tell which is meant: neither is released."""
    owner = waiting(lite)
    plant(lite, owner, b"")

    assert released(lite, unsafe_without_row_seals=True) == (0, 1)
    with pytest.raises((UnclaimedError, UnlockError)):
        lite.note(owner, secret="planted")


def test_planted_keys_are_not_written_under_after_a_claim(lite: Application) -> None:
    """Anybody can seal keys of their own to the campaign's KEK in an owner's place: what was sealed and not
    wrapped is replaced at the claim, whatever the policy says of hardening."""
    lite.restart(harden_claims=False)
    with Session(lite.engine) as session:
        session.add(User(email="ada"))
        session.commit()
        lite.envelope.server_mode(provider="campaign", reason="test").prepare()
        ready = lite.envelope.policy.require_providers().ready_for_new("campaign")
        assert ready is not None
        located = locate(Desk(session, lite.envelope.policy), session.get_one(User, 1))
        planted = bound_keys(new_keys(located.place.owner_class.scopes), located.reference)
        located.store.insert_keys([((1,), one.stored) for one in planted])
        located.store.insert_slots([provider_slot(planted[0], replace(ready, key=None))])
        session.commit()

    with Session(lite.engine) as session:
        user = session.get_one(User, 1)
        with lite.envelope.enroll(session, user, secret=SECRET):
            session.add(Note(user=user, body="mine"))
            session.commit()

    assert lite.note(1, secret=SECRET) == "mine"
    value = stored(lite.engine, Note.__table__.c.body, 1)
    assert value is not None
    assert value[1:17] not in {one.stored.key_id.bytes for one in planted}
    assert lite.roots() == 2


def test_a_claimed_owners_old_slot_put_back_opens_nothing_new(lite: Application, tmp_path: Path) -> None:
    """Whoever saved the campaign's slot and puts the row back reads nothing that was written since."""
    owner = lite.away()
    before = lite.slots()
    lite.claim(owner)
    table = Base.metadata.tables["users_keyslot"]
    with lite.engine.begin() as connection:
        connection.execute(table.insert(), [dict(zip(table.c.keys(), row, strict=True)) for row in before])

    lite.restart()

    with pytest.raises(KeyNotFoundError):
        lite.note(owner, provider="campaign", reason="look")
    with Session(lite.engine) as session:
        user = session.get_one(User, owner)
        with lite.envelope.unlock(session, user, secret=SECRET):
            session.add(Note(user=user, body="new"))
            session.commit()
    with Session(lite.engine) as session, lite.envelope.server_mode(session, provider="campaign", reason="x"):
        new = session.scalars(select(Note).order_by(Note.id.desc())).first()
        assert new is not None
        with pytest.raises(LockedError):
            new.body  # noqa: B018
