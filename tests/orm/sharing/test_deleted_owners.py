"""A value that outlives its owner, because it has no foreign key to it, stays closed: to the process that
deleted the owner, and to the next owner with the same primary key."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
from sqlalchemy import Engine, ForeignKey, Text, create_engine, delete, event, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    OwnerColumn,
    ServerKeyring,
    ServerSession,
)
from tests.prepared import tables_of

SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class Company(Base):
    """No owner itself; its people go with it."""

    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id", ondelete="CASCADE"))
    invited_by: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))


class Setting(Base):
    __tablename__ = "settings"
    user_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    theme: Mapped[str | None] = mapped_column(EncryptedType(Text, owner=OwnerColumn("user_id", of=User)))


def server_mode() -> ServerSession:
    keys = ServerKeyring([bytes(range(32))])
    return Envelope(server_keys=keys, kdf_profile=KdfProfile.unsafe_for_tests()).server_mode(reason="a test")


@pytest.fixture
def users(engine: Engine) -> Engine:
    """Two users of one company with a setting each, which server mode wrote."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session, session.begin():
        session.add(Company(id=1))
        session.flush()
        with server_mode():
            session.add_all([User(id=2), User(id=3)])
            session.flush()
            session.add(User(id=1, company_id=1, invited_by=3))
            session.flush()
            session.add_all(Setting(user_id=number, theme=f"of {number}") for number in (1, 2))
            session.flush()
    return engine


def theme_of(engine: Engine, number: int) -> str | None:
    with Session(engine) as session:
        return session.get_one(Setting, number).theme


WAYS: dict[str, Callable[[Session], object]] = {
    "unit of work": lambda session: session.delete(session.get_one(User, 1)),
    "statement": lambda session: session.execute(delete(User).where(User.id == 1)),
    "table": lambda session: session.execute(delete(User.__table__).where(User.id == 1)),  # type: ignore[arg-type]
    "cascade": lambda session: session.execute(delete(Company)),
    "cascade of the unit of work": lambda session: session.delete(session.get_one(User, 3)),
    "table, in a flush": lambda session: delete_in_flush(session),
}


def delete_in_flush(session: Session) -> None:
    """A listener of the application deletes the user while another one is deleted."""

    def listener(*_: object) -> None:
        session.execute(delete(User.__table__).where(User.id == 1))  # type: ignore[arg-type]

    event.listen(session, "after_flush", listener)
    session.execute(text("UPDATE users SET invited_by = NULL"))
    session.delete(session.get_one(User, 3))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("whole_process", [False, True])
@pytest.mark.any_database
def test_the_next_owner_with_the_key_does_not_read(users: Engine, way: str, whole_process: bool) -> None:
    """Keys that server mode had open are gone with the commit of the delete, and everybody else's are not."""
    server = server_mode()
    if whole_process:
        server.everywhere()
    with nullcontext() if whole_process else server:
        before = [theme_of(users, 1), theme_of(users, 2)]
        with Session(users) as session:
            WAYS[way](session)
            session.commit()
        deleted = tried(users, 1)
        with Session(users) as session, session.begin():
            session.add(User(id=1))
        followed = tried(users, 1)
        with Session(users) as session, session.begin():
            session.add(Setting(user_id=11, theme=None))
            session.execute(text("DELETE FROM settings WHERE user_id = 11"))
        other = theme_of(users, 2)
    if whole_process:
        server.stop()

    assert (before, deleted, followed, other) == (["of 1", "of 2"], "locked", "locked", "of 2")


def test_the_next_owner_beside_the_former_one(users: Engine) -> None:
    """The next owner's own keys, fetched together with a value of the former one, do not open that value."""
    with server_mode():
        theme_of(users, 1)
        with Session(users) as session, session.begin():
            session.execute(text("UPDATE settings SET user_id = 7 WHERE user_id = 1"))
            session.delete(session.get_one(User, 1))
            session.flush()
            session.add(User(id=1))
            session.flush()
            session.add(Setting(user_id=1, theme="of the next"))
        with Session(users) as session:
            # One query gives the values of both, under the former owner's key and the next one's.
            rows = session.execute(select(Setting.theme).order_by(Setting.user_id)).scalars().all()
            told = [rows[0], type(rows[2]).__name__]

    assert told == ["of the next", "Sealed"]


def test_a_rolled_back_delete(users: Engine) -> None:
    """A delete that is rolled back closes nothing, and costs no query."""
    with server_mode():
        theme_of(users, 1)
        with Session(users) as session:
            session.delete(session.get_one(User, 1))
            session.flush()
            session.rollback()
        with Session(users) as session:
            sent: list[str] = []
            event.listen(users, "before_cursor_execute", lambda *args: sent.append(args[2]))
            read = session.get_one(Setting, 1).theme

    assert (read, len(sent)) == ("of 1", 1)


def test_deletes_of_other_rows(users: Engine) -> None:
    """A DELETE that can reach no owner leaves what is open alone: the next read sends its own query only."""
    with server_mode():
        theme_of(users, 1)
        with Session(users) as session, session.begin():
            session.execute(delete(Setting).where(Setting.user_id == 2))
        with Session(users) as session:
            sent: list[str] = []
            event.listen(users, "before_cursor_execute", lambda *args: sent.append(args[2]))
            read = session.get_one(Setting, 1).theme

    assert (read, len(sent)) == ("of 1", 1)


def test_an_owner_that_its_secret_opened(engine: Engine) -> None:
    """An unlocked session forgets its owner with the commit of the delete, inside of another one too."""
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        users = [User(id=1), User(id=2)]
        with (
            envelope.enroll(session, users[0], secret=SECRET),
            envelope.enroll(session, users[1], secret=SECRET),
        ):
            session.add_all(Setting(user_id=number, theme=f"of {number}") for number in (1, 2))
            session.commit()
            session.delete(users[0])
            session.commit()
            left = session.get_one(Setting, 1)
            with pytest.raises(LockedError):
                _ = left.theme
            other = session.get_one(Setting, 2).theme

    assert other == "of 2"


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_next_owner_in_the_same_transaction(engine: Engine, is_kept: bool) -> None:
    """The keys of the deleted owner open nothing more once another one of its name is enrolled, inside of its
    own unlock; that one's stay with the commit, and with a rollback the former one is back."""
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    Base.metadata.create_all(engine)
    with Session(engine) as session, envelope.enroll(session, former := User(id=1), secret=SECRET):
        session.add_all([Setting(user_id=1, theme="of the former"), Setting(user_id=2)])
        session.commit()
        session.delete(former)
        session.flush()
        with envelope.enroll(session, User(id=1), secret=SECRET) as inner:
            with pytest.raises(LockedError):
                _ = session.get_one(Setting, 1, populate_existing=True).theme
            if is_kept:
                session.get_one(Setting, 1).theme = "of the next"
                session.commit()
            else:
                session.rollback()
            found = session.get_one(Setting, 1).theme
            is_open = bool(inner.places)
        outside = tried(engine, 1)

    assert (found, is_open) == ("of the next" if is_kept else "of the former", is_kept)
    assert outside == ("locked" if is_kept else "of the former")


def test_sqlite_without_foreign_keys() -> None:
    """Server mode makes no keys where deleting their owner would leave them."""
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with server_mode(), Session(engine) as session:
        session.add(User(id=1))
        with pytest.raises(ConfigurationError, match="enforce_foreign_keys"):
            session.flush()
        session.rollback()
        left = session.scalar(select(func.count()).select_from(User.__table__))

    assert left == 0


def tried(engine: Engine, number: int) -> str | None:
    """What a reader gets: a value, or the code of the error."""
    try:
        return theme_of(engine, number)
    except LockedError as error:
        return error.code
