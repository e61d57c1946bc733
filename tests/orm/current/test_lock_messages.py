"""A `LockedError` tells its four causes apart: nobody is unlocked, somebody else is, the `with` has ended,
the owner has no keys. Its reason says the same."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Text, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyOwner,
    LockedError,
    LockReason,
    ServerKeyring,
    enforce_foreign_keys,
)
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, User, envelope, unlock


@pytest.fixture
def scene(lite: Started) -> Started:
    """Two owners with a value of their own."""
    for owner in (lite.ada, lite.ben):
        with unlock(lite.session, owner):
            owner.phone = "1"
            lite.session.commit()
    return lite


def told(call: Callable[[], Any]) -> LockedError:
    """The error that a call raises."""
    with pytest.raises(LockedError) as caught:
        call()
    return caught.value


def touch(session: Session, user: User) -> dict[str, Callable[[], Any]]:
    """Ways to need the key of a user: a value is read, an object and a statement are written."""

    def add() -> None:
        with session.begin_nested():
            session.add(Note(user_id=user.id, body="x", title="t"))

    return {
        "read": lambda: user.phone,
        "add": add,
        "insert": lambda: session.execute(insert(Note).values(user_id=user.id, body="x", title="t")),
    }


@pytest.mark.parametrize("way", ["read", "add", "insert"])
def test_nobody_is_unlocked(scene: Started, way: str) -> None:
    """Where nobody is unlocked, the error says what to write."""
    ada = scene.ada
    with scene.fresh() as session:
        error = told(touch(session, session.get_one(User, ada.id))[way])

    assert error.reason is LockReason.NOTHING_UNLOCKED
    assert (
        "locked: unlock its owner around this, `with envelope.unlock(session, owner, secret=...):`."
        in str(error)
    )


@pytest.mark.parametrize("way", ["read", "add", "insert"])
def test_somebody_else_is_unlocked(scene: Started, way: str) -> None:
    """Where somebody else is unlocked, the error says so without a name, and what tells more."""
    ada, eve = scene.ada, scene.ben
    with scene.fresh() as session, unlock(session, session.get_one(User, eve.id)):
        error = told(touch(session, session.get_one(User, ada.id))[way])

    assert error.reason is None
    assert "1 owner of class User is unlocked here, which does not open it: unlock its owner" in str(error)
    assert "`envelope.why_locked(session, instance)` tells what is missing." in str(error)


def test_others_are_counted_by_class() -> None:
    """Who else is unlocked is told by class and number: a primary key may be an address."""

    class Base(DeclarativeBase):
        pass

    class Account(KeyOwner, Base):
        __tablename__ = "accounts"
        email: Mapped[str] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Team(KeyOwner, Base):
        __tablename__ = "teams"
        email: Mapped[str] = mapped_column(primary_key=True)
        phone: Mapped[str | None] = mapped_column(EncryptedType(Text))

    engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    server = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    with Session(engine) as session, server.server_mode(reason="test"):
        server.enroll(session, Account(email="ada@example.org", phone="1"), secret=SECRET)
        session.add(Account(email="ben@example.org", phone="2"))
        session.commit()
        alone = told(lambda: session.get_one(Account, "ada@example.org").phone)
        session.add_all(
            [Account(email="eve@example.org", phone="3"), Team(email="us@example.org", phone="4")]
        )
        session.commit()
        several = told(lambda: session.get_one(Account, "ada@example.org").phone)

    assert "1 owner of class Account is unlocked here, which does not open it: " in str(alone)
    assert (
        "2 owners of class Account and 1 owner of class Team are unlocked here, which do not open it: "
        in str(several)
    )
    assert "example.org" not in f"{alone}{several}"


@pytest.mark.parametrize("way", ["read", "add", "insert"])
def test_the_block_has_ended(scene: Started, way: str) -> None:
    """After the `with` of the unlock, the error says that it has ended; inside the next all is well."""
    ada = scene.ada
    with scene.fresh() as session:
        ada = session.get_one(User, ada.id)
        with unlock(session, ada):
            assert ada.phone is not None
        error = told(touch(session, ada)[way])
        session.rollback()
        with unlock(session, ada):
            touch(session, ada)[way]()

    assert error.reason is LockReason.LEFT
    assert "locked: it is used after the `with` of its unlock has ended." in str(error)


def test_the_session_has_ended_too(scene: Started) -> None:
    """An object that a function returned from both blocks still knows that it was open; one that was never
    open does not say so, whatever its session was for."""
    ada, eve = scene.ada, scene.ben
    with scene.fresh() as session, unlock(session, session.get_one(User, ada.id)):
        opened, locked = session.get_one(User, ada.id), session.get_one(User, eve.id)
        assert opened.phone is not None

    assert told(lambda: opened.phone).reason is LockReason.LEFT
    assert told(lambda: locked.phone).reason is LockReason.NOTHING_UNLOCKED


def test_an_inner_block_has_ended(scene: Started) -> None:
    """What an inner unlock opened tells of its end, though somebody else is unlocked around it."""
    ada, eve = scene.ada, scene.ben
    with scene.fresh() as session:
        ada, eve = session.get_one(User, ada.id), session.get_one(User, eve.id)
        with unlock(session, eve):
            with unlock(session, ada):
                assert ada.phone is not None
            error = told(lambda: ada.phone)

    assert error.reason is LockReason.LEFT


@pytest.mark.parametrize("way", ["add", "insert"])
@pytest.mark.parametrize("around", [False, True])
def test_the_owner_has_no_keys(scene: Started, way: str, around: bool) -> None:
    """Whoever writes for an owner without keys is told to enroll it, whoever else is unlocked."""
    ada, eve = scene.ada, User(email="eve@example.org")
    scene.session.add(eve)
    scene.session.commit()
    with scene.fresh() as session:
        eve = session.get_one(User, eve.id)
        if around:
            with unlock(session, session.get_one(User, ada.id)):
                error = told(touch(session, eve)[way])
        else:
            error = told(touch(session, eve)[way])
        session.rollback()
        with envelope.enroll(session, eve, secret=SECRET):
            touch(session, eve)[way]()

    assert error.reason is LockReason.NOT_ENROLLED
    assert (
        "notes.body cannot be encrypted: its User has no keys yet. Make them, `envelope.enroll(session, "
        "owner, ...)`." in str(error)
    )


@pytest.mark.parametrize("way", ["add", "insert"])
def test_the_owner_is_not_there(scene: Started, way: str) -> None:
    """A row that names nobody is told from a row of an owner without keys."""
    with scene.fresh() as session, unlock(session, session.get_one(User, scene.ada.id)):
        error = told(touch(session, User(id=999))[way])

    assert "its row names a User that is not in the database" in str(error)


@pytest.mark.parametrize("way", ["read", "add", "insert"])
def test_server_mode_without_a_slot(scene: Started, way: str) -> None:
    """In server mode the error says that it is on, and what it lacks: a grant is enough to read."""
    ada = scene.ada
    lacks = {"read": "and neither a slot of its provider 'staff' nor a grant leads to the key"}
    server = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), providers={"staff": ServerKeyring([b"k" * 32])}
    )
    with scene.fresh() as session, server.server_mode(session, provider="staff", reason="test"):
        error = told(touch(session, session.get_one(User, ada.id))[way])

    assert "server mode is on" in str(error)
    assert lacks.get(way, "and its provider 'staff' has no slot of the owner") in str(error)


def test_a_sealed_value_taken_apart(scene: Started) -> None:
    """What takes a value apart that it does not know, as FastAPI's encoder does, ends in the error itself;
    what only looks is let."""
    ada = scene.ada
    with scene.fresh() as session:
        sealed = session.scalars(select(User.phone).where(User.id == ada.id)).one()

    def as_json(value: Any) -> list[Any]:
        try:
            return [*dict(value).items()]
        except EnvelopeError:
            return [*vars(value).items()]

    assert told(lambda: as_json(sealed)).reason is None
    assert isinstance(dir(sealed), list)
