"""An index of any kind is filled, and compared with its values."""

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KeyOwner
from sqlalchemy_envelope.migration import Migrator
from tests.orm.indexes.people_models import SECRET, Base, Person, new_envelope
from tests.prepared import tables_of

BORN = dt.date(1815, 12, 10)


def enroll(session: Session, envelope: Envelope, person: Any) -> None:
    with envelope.enroll(session, person, secret=SECRET):
        envelope.add_provider(session, person, provider="server")
    session.commit()


def ada(**values: Any) -> Person:
    person = Person(email="Ada@Example.org", phone="044 668 18 00", last="Lovelace", born=BORN, pin="1234")
    for name, value in values.items():
        setattr(person, name, value)
    return person


def test_each_kind_is_filled(engine: Engine) -> None:
    """The tags are those that a write would have made: each comparison finds its row again."""
    tables_of(Base.metadata, engine)
    envelope = new_envelope()
    with Session(engine) as session:
        enroll(session, envelope, ada())
        enroll(session, envelope, ada(email="ben@example.org", born=None, pin=None))
        tags = [one for one in Person.__table__.columns if isinstance(one.type, BlindIndex)]
        names = ", ".join(one.name for one in tags)
        before = session.execute(sa.text(f"SELECT {names} FROM people ORDER BY id")).all()
        session.execute(sa.text("UPDATE people SET " + ", ".join(f"{one.name} = NULL" for one in tags)))
        session.commit()
        moving = Migrator(engine, envelope, Base, provider="server")
        for name in moving.indexes:
            assert moving.verify_index(name).pending, name
            assert moving.fill_index(name).bad == 0, name
            assert moving.verify_index(name).is_clean, name

        assert before == session.execute(sa.text(f"SELECT {names} FROM people ORDER BY id")).all()


def test_a_value_that_the_index_does_not_take_is_named(sqlite_engine: Engine) -> None:
    """A text from before the index, that is no phone number, gets no tag; its row is in the report."""
    of: list[Any] = []
    for indexed in (False, True):

        class Calls(DeclarativeBase):
            pass

        class Call(KeyOwner, Calls):
            __tablename__ = "calls"
            id: Mapped[int] = mapped_column(primary_key=True)
            phone: Mapped[str | None] = mapped_column(EncryptedType(String))
            if indexed:
                phone_index: Mapped[bytes | None] = mapped_column(
                    BlindIndex("phone", scope="server", normalize="phone-v1:CH"), index=True
                )

        of.append((Calls, Call))
    (before, old), (base, _) = of
    before.metadata.create_all(sqlite_engine)
    envelope = new_envelope()
    with Session(sqlite_engine) as session:
        for phone in ("044 668 18 00", "ask Ada"):
            enroll(session, envelope, old(phone=phone))
        for column in ("phone_index", "phone_index_guard"):
            session.execute(sa.text(f"ALTER TABLE calls ADD COLUMN {column} BLOB"))
        session.commit()
    base.metadata.create_all(sqlite_engine)

    report = Migrator(sqlite_engine, envelope, base, provider="server").fill_index("calls.phone_index")

    assert (report.rows, report.bad, report.examples) == (1, 1, ("(2,)",))
