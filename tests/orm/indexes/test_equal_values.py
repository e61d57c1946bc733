"""Values that are equal have equal tags, whatever they were written as."""

import datetime as dt
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Date,
    DateTime,
    Engine,
    Float,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Uuid,
    create_engine,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    ConfigurationError,
    EncryptedType,
    KeyOwner,
    enforce_foreign_keys,
)
from tests.orm.indexes.server_models import SECRET, new_envelope

NOON = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
EQUAL: dict[str, tuple[Any, list[Any]]] = {
    "decimal": (Numeric(30, 10), [Decimal(one) for one in ("1", "1.0", "1.00", "10E-1")]),
    "big": (Numeric(60, 0), [Decimal("1E+50"), Decimal("1" + "0" * 50)]),
    "zero": (Numeric(10, 2), [Decimal(one) for one in ("0", "-0", "0.00", "0E+3")]),
    "float": (Float(), [0.0, -0.0]),
    "instant": (DateTime(timezone=True), [NOON, NOON.astimezone(dt.timezone(dt.timedelta(hours=2)))]),
    "date": (Date(), [dt.date(2026, 1, 1)]),
    "whole": (Integer(), [7]),
    "bytes": (LargeBinary(), [b"abc", bytearray(b"abc"), memoryview(b"abc")]),
    "uuid": (Uuid(as_uuid=False), [str(uuid.UUID(int=10)), uuid.UUID(int=10).hex.upper()]),
    "text": (String(), ["", ""]),
}
OTHER: dict[str, Any] = {
    "decimal": Decimal("1.0000000001"),
    "big": Decimal("1" + "0" * 49 + "1"),
    "zero": Decimal("0.01"),
    "float": 5e-324,
    "instant": NOON.replace(microsecond=1),
    "date": dt.date(2026, 1, 2),
    "whole": -7,
    "bytes": b"abc\x00",
    "uuid": str(uuid.UUID(int=11)),
    "text": " ",
}


class Base(DeclarativeBase):
    pass


class Thing(KeyOwner, Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


for name, (inner, _) in EQUAL.items():
    setattr(Thing, name, mapped_column(name, EncryptedType(inner)))
    setattr(Thing, f"{name}_index", mapped_column(f"{name}_index", BlindIndex(name, scope="server")))


@pytest.fixture(scope="module")
def things() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("name", EQUAL)
def test_equal_values_are_found(things: Engine, name: str) -> None:
    """Each value is found by each that is equal to it, and by no other."""
    envelope, values = new_envelope(), EQUAL[name][1]
    attribute = getattr(Thing, name)
    with Session(things) as session:
        made = [Thing(**{name: value}) for value in values]
        for one in [*made, Thing(**{name: OTHER[name]})]:
            envelope.enroll(session, one, secret=SECRET)
        wanted = [one.id for one in made]

        for value in values:
            assert wanted == session.scalars(select(Thing.id).where(attribute == value)).all()


def test_values_without_one_form() -> None:
    """An index of JSON is refused: `1` and `1.0`, or keys in another order, would not be found."""

    class Other(DeclarativeBase):
        pass

    class Document(KeyOwner, Other):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[Any] = mapped_column(EncryptedType(JSON))
        body_index: Mapped[bytes | None] = mapped_column(BlindIndex("body", scope="server"))

    with pytest.raises(ConfigurationError, match="several texts"):
        _ = Document.body == {"a": 1}
