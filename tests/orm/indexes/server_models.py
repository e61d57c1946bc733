"""Users who are found by an encrypted email address, while everybody is locked."""

from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring
from tests.prepared import tables_of

SECRET = "correct horse battery staple"
KEYS = [bytes(range(32))]


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"), unique=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(EncryptedType(String))
    title_index: Mapped[bytes | None] = mapped_column(BlindIndex("title", scope="server"), index=True)


class Invitation(Base):
    """Its index has the label of another table's."""

    __tablename__ = "invitations"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("email", scope="server", label="users.email_index")
    )


def new_envelope() -> Envelope:
    """An envelope with the server's keys."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(KEYS))


def enroll(engine: Engine, envelope: Envelope, *emails: str | None) -> list[int]:
    """Users with these addresses, all locked; their ids."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        users = [User(email=email) for email in emails]
        for user in users:
            envelope.enroll(session, user, secret=SECRET)
        session.commit()
        return [user.id for user in users]
