"""Users whose texts are found by what they contain."""

from sqlalchemy import Engine, ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    Grams,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    Starts,
    enforce_foreign_keys,
    token_index,
)
from tests.prepared import prepared

SECRET = "correct horse battery staple"
KEYS = [bytes(range(32))]


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    slug: Mapped[str | None] = mapped_column(String(40), unique=True)
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))
    part: Mapped[str | None] = mapped_column(EncryptedType(String))
    body_words = token_index("body", scope="server")
    part_grams = token_index("part", scope="server", tokens=Grams(3))
    part_starts = token_index("part", scope="server", tokens=Starts(2, 4, fold=True))


def new_envelope() -> Envelope:
    """An envelope with the server's keys."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(KEYS))


def enroll(engine: Engine) -> int:
    """A user, locked; its id."""
    enforce_foreign_keys(engine)

    def make() -> int:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            user = User()
            new_envelope().enroll(session, user, secret=SECRET)
            session.commit()
            return user.id

    return prepared(engine, (User, "tokens"), make)
