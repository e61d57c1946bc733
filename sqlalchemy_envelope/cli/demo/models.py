"""The data of the demo: people and their clinic journals, made up, and the same each time."""

import datetime as dt
import enum
import random
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    ForeignKey,
    LargeBinary,
    Numeric,
    String,
    Text,
    Uuid,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyOwner


class Base(DeclarativeBase):
    """The registry of the demo's tables, apart from any other."""


class Kind(enum.Enum):
    """The subject of a visit."""

    CHECKUP = "check-up"
    THERAPY = "therapy"
    EMERGENCY = "emergency"
    VACCINATION = "vaccination"


class Person(KeyOwner, Base):
    """A person with a journal and keys of their own."""

    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str] = mapped_column(EncryptedType(String))


class Entry(Base):
    """A visit. Its only foreign key to a `KeyOwner` names the owner, and that owner's keys encrypt it."""

    __tablename__ = "journal"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), index=True)
    person: Mapped[Person] = relationship()
    day: Mapped[dt.date] = mapped_column(EncryptedType(Date))
    seen_at: Mapped[dt.datetime] = mapped_column(EncryptedType(DateTime(timezone=True)))
    kind: Mapped[Kind] = mapped_column(EncryptedType(Enum(Kind)))
    note: Mapped[str] = mapped_column(EncryptedType(Text))
    plan: Mapped[str] = mapped_column(EncryptedType(Text))
    fee: Mapped[Decimal] = mapped_column(EncryptedType(Numeric(10, 2)))
    insurance: Mapped[int] = mapped_column(EncryptedType(BigInteger))
    urgent: Mapped[bool] = mapped_column(EncryptedType(Boolean))
    vitals: Mapped[dict[str, Any]] = mapped_column(EncryptedType(JSON))
    ecg: Mapped[bytes] = mapped_column(EncryptedType(LargeBinary))
    sample: Mapped[uuid.UUID] = mapped_column(EncryptedType(Uuid))
    dose: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))


ENCRYPTED = tuple(column.key for column in Entry.__table__.columns if isinstance(column.type, EncryptedType))
"""The encrypted columns of a journal."""

_COMPLAINTS = (
    "Palpitations after coffee",
    "Migraine with aura",
    "Sleeps badly since spring",
    "Cough, third week",
)
_FINDINGS = (
    "chest clear",
    "no fever",
    "slightly raised blood pressure",
    "nothing remarkable",
    "tender left knee",
)
_PLANS = (
    "Call back in two weeks",
    "Blood count, then decide",
    "Refer to Dr Hopkins",
    "Rest, and a lot of tea",
)
_DRUGS = ("bisoprolol", "sumatriptan", "melatonin", "ibuprofen", "codeine")


def journal(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The values of `count` entries; the same seed gives the same values."""
    draw = random.Random(seed)  # noqa: S311 - made-up data that must come out alike each time; no key comes from it
    opening = dt.datetime(2019, 1, 7, 8, 30, tzinfo=dt.UTC)
    for number in range(count):
        seen_at = opening + dt.timedelta(days=3 * number, minutes=draw.randrange(540))
        yield {
            "id": uuid.UUID(int=draw.getrandbits(128), version=4),
            "day": seen_at.date(),
            "seen_at": seen_at,
            "kind": draw.choice(list(Kind)),
            "note": f"{draw.choice(_COMPLAINTS)}; {draw.choice(_FINDINGS)} (visit {number + 1}).",
            "plan": f"{draw.choice(_PLANS)}; weight {draw.uniform(55, 95):.1f} kg.",
            "fee": Decimal(draw.randrange(100_000, 999_999)).scaleb(-2),
            "insurance": draw.randrange(10**13, 10**14),
            "urgent": draw.random() < 0.2,
            "vitals": {
                "pressure": [draw.randrange(100, 150), draw.randrange(60, 95)],
                "pulse": draw.randrange(52, 110),
            },
            "ecg": draw.randbytes(48),
            "sample": uuid.UUID(int=draw.getrandbits(128), version=4),
            "dose": f"{draw.choice(_DRUGS)} {draw.randrange(5, 60) * 10} mg",
        }
