"""Visits with encrypted columns whose indexes give candidates: of few bits, and of buckets."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from sqlalchemy import Date, DateTime, Engine, Float, ForeignKey, Integer, Numeric, String, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import BlindIndex, Buckets, EncryptedType, Envelope, KeyOwner
from tests.orm.indexes.server_models import SECRET, new_envelope

__all__ = ["SECRET", "Base", "Patient", "Visit", "new_envelope", "opened", "visits"]


class Base(DeclarativeBase):
    pass


class Patient(KeyOwner, Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)
    visits: Mapped[list["Visit"]] = relationship(order_by="Visit.id", back_populates="patient")


class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id", ondelete="CASCADE"))
    patient: Mapped[Patient] = relationship(back_populates="visits")
    kind: Mapped[str] = mapped_column(default="")
    city: Mapped[str | None] = mapped_column(EncryptedType(String))
    city_index: Mapped[bytes | None] = mapped_column(BlindIndex("city", scope="server", bits=2))
    score: Mapped[int | None] = mapped_column(EncryptedType(Integer))
    score_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("score", scope="server", bucket=Buckets(10, low=0, high=120))
    )
    born: Mapped[dt.date | None] = mapped_column(EncryptedType(Date))
    born_index: Mapped[bytes | None] = mapped_column(BlindIndex("born", scope="server", bucket="month"))
    fee: Mapped[Decimal | None] = mapped_column(EncryptedType(Numeric(10, 2)))
    fee_index: Mapped[bytes | None] = mapped_column(BlindIndex("fee", scope="server", bucket=Decimal("2.50")))
    weight: Mapped[float | None] = mapped_column(EncryptedType(Float))
    weight_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("weight", scope="server", bucket=Buckets(0.5, low=-10, high=10))
    )
    at: Mapped[dt.datetime | None] = mapped_column(EncryptedType(DateTime(timezone=True)))
    at_index: Mapped[bytes | None] = mapped_column(
        BlindIndex(
            "at",
            scope="server",
            bits=12,
            bucket=Buckets(
                dt.timedelta(hours=6),
                low=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
                high=dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
            ),
        )
    )


def visits(engine: Engine, envelope: Envelope, *rows: dict[str, Any]) -> int:
    """The id of a locked patient with these visits."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("patients"):
            connection.close()
            Base.metadata.create_all(engine)
    with Session(engine) as session:
        patient = Patient()
        with envelope.enroll(session, patient, secret=SECRET):
            session.flush()
            session.add_all([Visit(patient_id=patient.id, **row) for row in rows])
            session.commit()
        return patient.id


@contextmanager
def opened(engine: Engine, envelope: Envelope, *ids: int) -> Iterator[Session]:
    """A session in which these patients are unlocked."""
    with Session(engine) as session:
        entered = [envelope.unlock(session, session.get_one(Patient, one), secret=SECRET) for one in ids]
        try:
            for one in entered:
                one.__enter__()
            yield session
        finally:
            for one in reversed(entered):
                one.__exit__(None, None, None)
