"""People who are found by blind indexes of every kind."""

import datetime as dt

from sqlalchemy import Date, Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring
from tests.prepared import tables_of

SECRET = "correct horse battery staple"
KEYS = [bytes(range(32))]


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("email", scope="server", normalize="email-v1"), unique=True
    )
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))
    phone_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("phone", scope="server", normalize="phone-v1:CH"), index=True
    )
    last: Mapped[str | None] = mapped_column(EncryptedType(String))
    last_exact: Mapped[bytes | None] = mapped_column(BlindIndex("last", scope="server"), index=True)
    last_folded: Mapped[bytes | None] = mapped_column(
        BlindIndex("last", scope="server", normalize="diacritics-v1"), index=True
    )
    last_start: Mapped[bytes | None] = mapped_column(
        BlindIndex("last", scope="server", normalize="case-v1", prefix=3), index=True
    )
    born: Mapped[dt.date | None] = mapped_column(EncryptedType(Date))
    name_index: Mapped[bytes | None] = mapped_column(
        BlindIndex(("last", "born"), scope="server", normalize=("case-v1", None)), index=True
    )
    pin: Mapped[str | None] = mapped_column(EncryptedType(String))
    pin_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("pin", scope="server", slow=KdfProfile.unsafe_for_tests()), index=True
    )


def new_envelope() -> Envelope:
    """An envelope with the server's keys."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(KEYS))


def enroll(engine: Engine, envelope: Envelope, *people: Person) -> list[int]:
    """Store these people, all locked; their ids."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        for person in people:
            envelope.enroll(session, person, secret=SECRET)
        session.commit()
        return [person.id for person in people]
