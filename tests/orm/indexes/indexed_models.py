"""The shared models of the ORM's tests, with a blind index over the notes' texts, and two enrolled owners."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring
from tests.prepared import prepared

SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None]
    body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))
    body_index: Mapped[bytes | None] = mapped_column(BlindIndex("body", scope="server"), index=True)


@dataclass
class Indexed:
    """Two owners, locked, a session on their database, and the envelope, which has the server's keys."""

    engine: Engine
    session: Session
    ada: User
    ben: User
    envelope: Envelope

    def fresh(self) -> Session:
        """Another session on the same database, to be used in a `with`."""
        return Session(self.engine)

    def unlock(self, session: Session, user: object) -> Any:
        """Unlock with the secret that every test owner has."""
        return self.envelope.unlock(session, user, secret=SECRET)


def started_with_indexes(engine: Engine) -> Iterator[Indexed]:
    """Two owners, locked, and a session."""
    # No global: with server keys there is a single envelope in a process.
    keys = ServerKeyring([bytes(range(32))])
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys)

    def make() -> list[int]:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            envelope.attach(session)
            users = [User(email=f"{name}@example.org") for name in ("ada", "ben")]
            for user in users:
                envelope.enroll(session, user, secret=SECRET)
            session.commit()
            return [user.id for user in users]

    ids = prepared(engine, "started with indexes", make)
    with Session(engine) as session:
        ada, ben = (session.get_one(User, one) for one in ids)
        session.commit()
        yield Indexed(engine, session, ada, ben, envelope)
