"""Models with a column of every type, and the canaries that are looked for."""

import base64
import datetime as dt
import enum
import traceback
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner

SECRET, NEW_SECRET, WRONG = "canary-first-secret", "canary-second-secret", "canary-wrong-secret"
PLAIN = "CanaryPlaintext"


class Colour(enum.Enum):
    CANARYRED = "canary-red"


class Upper(TypeDecorator[str]):
    """Refuses what is not upper case, and says what it was given."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is not None and value != value.upper():
            raise ValueError(f"not upper case: {value!r}")
        return value


class Fails(TypeDecorator[str]):
    """A plain column whose bind processor fails on demand."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == "fail":
            raise ValueError("the other column")
        return value


class Base(DeclarativeBase):
    pass


class Owner(KeyOwner, Base):
    __tablename__ = "canary_owners"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Everything(Base):
    __tablename__ = "canary_rows"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[int] = mapped_column(ForeignKey("canary_owners.id", ondelete="CASCADE"))
    unique: Mapped[str | None] = mapped_column(unique=True)
    fails: Mapped[str | None] = mapped_column(Fails)
    as_str: Mapped[Any] = mapped_column(EncryptedType(Text), nullable=True)
    as_bytes: Mapped[Any] = mapped_column(EncryptedType(LargeBinary), nullable=True)
    as_int: Mapped[Any] = mapped_column(EncryptedType(Integer), nullable=True)
    as_float: Mapped[Any] = mapped_column(EncryptedType(Float), nullable=True)
    as_decimal: Mapped[Any] = mapped_column(EncryptedType(Numeric), nullable=True)
    as_bool: Mapped[Any] = mapped_column(EncryptedType(Boolean), nullable=True)
    as_date: Mapped[Any] = mapped_column(EncryptedType(Date), nullable=True)
    as_time: Mapped[Any] = mapped_column(EncryptedType(Time), nullable=True)
    as_datetime: Mapped[Any] = mapped_column(EncryptedType(DateTime), nullable=True)
    as_zoned: Mapped[Any] = mapped_column(EncryptedType(DateTime(timezone=True)), nullable=True)
    as_interval: Mapped[Any] = mapped_column(EncryptedType(Interval), nullable=True)
    as_uuid: Mapped[Any] = mapped_column(EncryptedType(Uuid), nullable=True)
    as_enum: Mapped[Any] = mapped_column(EncryptedType(Enum(Colour)), nullable=True)
    as_json: Mapped[Any] = mapped_column(EncryptedType(JSON), nullable=True)
    as_upper: Mapped[Any] = mapped_column(EncryptedType(Upper), nullable=True)
    in_row: Mapped[Any] = mapped_column(EncryptedType(Text, bind="row"), nullable=True)


VALUES: dict[str, Any] = {
    "as_str": PLAIN + "-str",
    "as_bytes": PLAIN.encode() + b"-bytes",
    "as_int": 918_273_645_546_372_819,
    "as_float": 918273.6455463728,
    "as_decimal": Decimal("918273645546.372819918"),
    "as_bool": True,
    "as_date": dt.date(1918, 11, 9),
    "as_time": dt.time(19, 18, 27, 364554),
    "as_datetime": dt.datetime(1918, 11, 9, 19, 18, 27, 364554),
    "as_zoned": dt.datetime(1918, 11, 9, 19, 18, 27, 364554, dt.UTC),
    "as_interval": dt.timedelta(microseconds=918_273_645_546_372),
    "as_uuid": uuid.UUID("91827364-5546-4728-8191-827364554637"),
    "as_enum": Colour.CANARYRED,
    "as_json": {"CanaryMember": ["CanaryItem", 918_273_645]},
    "as_upper": "CANARYUPPER",
    "in_row": PLAIN + "-row",
}

PLAIN_CANARIES = [
    "CanaryPlaintext", "CanaryMember", "CanaryItem", "CANARYUPPER", "CANARYRED", "canary-red", "918273645",
    "918273.6455", "1918-11-09", "19:18:27", "1918, 11, 9", "19, 18, 27", "91827364-5546", "918273645546",
]  # fmt: skip
SECRET_CANARIES = [SECRET, NEW_SECRET, WRONG]


class Needles:
    """Everything that must not be found, in each spelling in which it could be."""

    def __init__(self) -> None:
        self.texts = [*PLAIN_CANARIES, *SECRET_CANARIES]
        number = (918_273_645_546_372_819).to_bytes(8, "big")
        self.raw = [text.encode() for text in self.texts] + [text.encode("utf-16-le") for text in self.texts]
        self.raw += [number, VALUES["as_uuid"].bytes]
        for one in (*SECRET_CANARIES, PLAIN):
            self.texts += [one.encode().hex(), base64.b64encode(one.encode()).decode()[:-4]]

    def add_key(self, key: bytes) -> None:
        """Raw, hexadecimal, base64, and as Python prints it."""
        self.raw.append(key)
        self.texts += [
            key.hex(),
            base64.b64encode(key).decode()[:40],
            base64.urlsafe_b64encode(key).decode()[:40],
        ]
        self.texts += [repr(key)[2:-1], repr(list(key))[1:-1]]

    def in_text(self, text: str) -> list[str]:
        lowered = text.lower()
        return [one for one in self.texts if one.lower() in lowered]

    def in_bytes(self, data: bytes) -> list[bytes]:
        texts = [one.encode() for one in self.texts]
        return [one for one in [*self.raw, *texts] if one in data or one.hex().encode() in data]


def every_text_of(error: BaseException) -> str:
    """An error with all that hangs on it, as any handler might show it."""
    seen: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or len(seen) > 200:
            continue
        seen += [
            str(one),
            repr(one),
            repr(one.args),
            repr(vars(one)),
            "".join(traceback.format_exception(one)),
        ]
        for name in ("params", "statement", "orig", "detail", "hide_parameters"):
            seen.append(f"{getattr(one, name, None)} {getattr(one, name, None)!r}")
        waiting += [one.__cause__, one.__context__, getattr(one, "orig", None)]
    # The lines of this file that a traceback quotes hold no canary themselves: they name constants.
    return "\n".join(seen)
