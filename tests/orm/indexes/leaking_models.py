"""A table with blind indexes that leak as much as their columns' values let them."""

from collections.abc import Sequence
from random import Random
from typing import Any

from sqlalchemy import Boolean, Engine, ForeignKey, String, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring
from tests.prepared import tables_of

SECRET = "correct horse battery staple"
ENVELOPE = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))]))


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class Record(Base):
    __tablename__ = "records"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"))
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    smokes: Mapped[bool | None] = mapped_column(EncryptedType(Boolean))
    town: Mapped[str | None] = mapped_column(EncryptedType(String))
    first: Mapped[str | None] = mapped_column(EncryptedType(String))
    code: Mapped[str | None] = mapped_column(EncryptedType(String))
    name_index: Mapped[bytes | None] = mapped_column(BlindIndex("name", scope="server"), index=True)
    smokes_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("smokes", scope="server", allow_low_entropy="a test of what it leaks")
    )
    town_index: Mapped[bytes | None] = mapped_column(BlindIndex("town", scope="server", bits=5))
    first_index: Mapped[bytes | None] = mapped_column(BlindIndex("first", scope="server", prefix=3))
    code_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("code", scope="server", slow=KdfProfile.unsafe_for_tests())
    )
    both_index: Mapped[bytes | None] = mapped_column(BlindIndex(("first", "code"), scope="server"))
    own_index: Mapped[bytes | None] = mapped_column(BlindIndex("name", scope="owner"))


def fill(engine: Engine, **columns: Sequence[Any]) -> None:
    """A row for each value, all of one person."""
    tables_of(Base.metadata, engine)
    count = len(next(iter(columns.values())))
    with Session(engine) as session:
        person = Person()
        with ENVELOPE.enroll(session, person, secret=SECRET):
            session.commit()
            rows = [
                {"person_id": person.id, **{name: values[number] for name, values in columns.items()}}
                for number in range(count)
            ]
            session.execute(insert(Record), rows)
            session.commit()


def zipf(count: int) -> dict[str, float]:
    """The weights of so many values, of which the n-th is n times rarer than the first."""
    return {f"town-{number}": 1 / number for number in range(1, count + 1)}


def drawn(weights: dict[str, float], count: int, seed: int = 7) -> list[str]:
    """Values by their weights; the same seed draws the same."""
    return Random(seed).choices(list(weights), list(weights.values()), k=count)
