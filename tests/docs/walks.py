"""The four walks of docs/architecture.md, carried out: which functions are called, in order."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from sqlalchemy import Engine, ForeignKey, String, Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    LockedError,
    enforce_foreign_keys,
)

PACKAGE = "sqlalchemy_envelope."
SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(EncryptedType(String))


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(Text))


Calls = list[str]


@contextmanager
def calls() -> Iterator[Calls]:
    """The functions of the package that are called, as `room.module.Class.function`."""
    found: Calls = []
    names: dict[CodeType, str | None] = {}

    def name_of(frame: FrameType) -> str | None:
        module = str(frame.f_globals.get("__name__", ""))
        if not module.startswith(PACKAGE):
            return None
        return f"{module.removeprefix(PACKAGE)}.{frame.f_code.co_qualname.replace('.<locals>', '')}"

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code not in names:
            names[code] = name_of(frame)
        if (name := names[code]) is not None:
            found.append(name)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield found
    finally:
        sys.setprofile(before)


def walks() -> dict[str, Calls]:
    """What is called in each walk, by its heading on the page."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with Session(engine) as session:
        users = [User(id=1), User(id=2)]
        envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
        session.commit()
    steps: dict[str, Callable[[Engine, Envelope], Calls]] = {
        "A value goes in": value_in,
        "A value comes out": value_out,
        "A secret opens an owner": secret,
        "A grant is made, followed and adopted": grant,
    }
    try:
        return {heading: walk(engine, envelope) for heading, walk in steps.items()}
    finally:
        engine.dispose()


def value_in(engine: Engine, envelope: Envelope) -> Calls:
    with (
        Session(engine) as session,
        envelope.unlock(session, session.get_one(User, 1), secret=SECRET),
        calls() as found,
    ):
        session.add(Note(user_id=1, body="hello"))
        session.commit()
    return found


def value_out(engine: Engine, envelope: Envelope) -> Calls:
    with Session(engine) as session:
        with envelope.unlock(session, session.get_one(User, 1), secret=SECRET), calls() as found:
            assert session.scalars(select(Note)).one().body == "hello"
        session.expire_all()
        with calls() as locked:
            try:
                session.scalars(select(Note)).one().body  # noqa: B018 - the touch is what raises
            except LockedError:
                return [*found, *locked]
    raise AssertionError("nothing was locked")


def secret(engine: Engine, envelope: Envelope) -> Calls:
    with Session(engine) as session:
        user = session.get_one(User, 1)
        with calls() as found, envelope.unlock(session, user, secret=SECRET):
            pass
    return found


def grant(engine: Engine, envelope: Envelope) -> Calls:
    with Session(engine) as session, envelope.unlock(session, session.get_one(User, 1), secret=SECRET):
        envelope.enroll(session, group := Group(id=1, name="expedition"))
        session.add(Membership(group_id=group.id, user_id=1))
        session.commit()
        with calls() as made:
            session.add(Membership(group_id=1, user_id=2))
            session.commit()
    with Session(engine) as session, envelope.unlock(session, session.get_one(User, 2), secret=SECRET):
        with calls() as followed:
            assert session.scalars(select(Group)).one().name == "expedition"
        with calls() as adopted:
            envelope.settle(session)
            session.commit()
    return [*made, *followed, *adopted]
