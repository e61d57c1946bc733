"""Several new owners in one flush, each with indexed values of its own."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, String, Text, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    enforce_foreign_keys,
    matches,
    token_index,
)

SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"), unique=True)
    last: Mapped[str | None] = mapped_column(EncryptedType(String))
    own_index: Mapped[bytes | None] = mapped_column(BlindIndex("last"))
    both_index: Mapped[bytes | None] = mapped_column(BlindIndex(("last", "email"), scope="server"))
    about: Mapped[str | None] = mapped_column(EncryptedType(Text))
    about_words = token_index("about", scope="server")


def new_envelope() -> Envelope:
    keys = ServerKeyring([bytes(range(32))])
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys)


def new_users() -> list[User]:
    return [User(email=f"{name}@x.org", last="King", about=f"about {name}") for name in ("ada", "ben", "cy")]


def add_in_server_mode(envelope: Envelope, session: Session) -> None:
    with envelope.server_mode(session, reason="sign-ups"):
        session.add_all(new_users())
        session.commit()


def enroll_together(envelope: Envelope, session: Session) -> None:
    users = new_users()
    envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
    session.commit()


@pytest.mark.parametrize("make", [add_in_server_mode, enroll_together])
def test_new_owners_of_one_flush_are_found(engine: Engine, make: Callable[..., None]) -> None:
    """Each new owner's row gets the keys of its own object, and the tags of its own values."""
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    envelope = new_envelope()
    with Session(engine) as session:
        make(envelope, session)
    with Session(engine) as session:
        envelope.attach(session)
        found = session.scalars(select(User.id).where(User.email == "ben@x.org")).all()
        both = matches(User.both_index, last="King", email="ben@x.org")

        assert len(found) == 1
        assert found == session.scalars(select(User.id).where(both)).all()
        assert found == session.scalars(select(User.id).where(User.about.has_word("ben"))).all()
    if make is enroll_together:
        with Session(engine) as session:
            ben = session.get_one(User, found[0])
            with envelope.unlock(session, ben, secret=SECRET):
                assert (ben.email, ben.last) == ("ben@x.org", "King")
                assert found == session.scalars(select(User.id).where(User.last == "King")).all()


async def test_new_owners_of_an_asynchronous_flush_are_found(async_engine: AsyncEngine) -> None:
    """The same through asynchronous drivers."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(new_envelope())
    async with AsyncSession(async_engine) as session:
        users = new_users()
        await envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
        await session.commit()
        emails = (User.email == "ada@x.org") | (User.email == "cy@x.org")

        assert len((await session.scalars(select(User.id).where(emails))).all()) == 2
