"""What `sqlalchemy-2.0.sql` and `sqlalchemy-2.1.sql` hold. `python -m tests.golden.application FILE` makes
one with the line of SQLAlchemy that is installed.
"""

import datetime as dt
import enum
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    ServerKeyring,
    enforce_foreign_keys,
)

SECRET = "correct horse battery staple"
SERVER_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


VALUES: dict[str, tuple[Any, Any]] = {
    "bigint": (sa.BigInteger(), 2**60),
    "binary": (sa.LargeBinary(), b"\x00\xff"),
    "boolean": (sa.Boolean(), True),
    "date": (sa.Date(), dt.date(1843, 7, 10)),
    "datetime": (sa.DateTime(), dt.datetime(1843, 7, 10, 9, 30)),
    "datetime_utc": (sa.DateTime(timezone=True), dt.datetime(1843, 7, 10, 9, 30, tzinfo=dt.UTC)),
    "double": (sa.Double(), 2.5),
    "enum": (sa.Enum(Colour), Colour.BLUE),
    "float": (sa.Float(), 1.5),
    "float_decimal": (sa.Float(asdecimal=True), Decimal("1.5")),
    "interval": (sa.Interval(), dt.timedelta(days=3)),
    "json": (sa.JSON(), {"notes": ["A", None]}),
    "numeric": (sa.Numeric(10, 2), Decimal("1.50")),
    "numeric_float": (sa.Numeric(asdecimal=False), 1.25),
    "text": (sa.Text(), "Añ"),
    "time": (sa.Time(), dt.time(9, 30)),
    "uuid": (sa.Uuid(), uuid.UUID(int=7)),
}


class Base(DeclarativeBase):
    """The tables."""


class User(KeyOwner, Base):
    """A user, who has a secret."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Team(KeyOwner, Base):
    """A team, with a column of each type."""

    __table__ = sa.Table(
        "teams",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(name, EncryptedType(type_)) for name, (type_, _) in VALUES.items()),
    )


class Membership(KeyGrant, Base, of="team_id", to="user_id"):
    """The grant of a team's key to a user."""

    __tablename__ = "memberships"
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


def make_envelope() -> Envelope:
    """The same server key each time."""
    keys = ServerKeyring.from_text(SERVER_KEY)
    return Envelope(server_keys=keys, kdf_profile=KdfProfile.unsafe_for_tests())


def make_engine() -> Engine:
    """An empty database."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    return engine


def fill(engine: Engine, envelope: Envelope) -> None:
    """Ada's team, which Ben has left, and to which the server has a slot."""
    Base.metadata.create_all(engine)
    values = {name: value for name, (_, value) in VALUES.items()}
    with Session(engine) as session:
        ada, ben = User(id=1), User(id=2)
        envelope.enroll(session, [ada, ben], secret={ada: SECRET, ben: SECRET + "s"})
        session.commit()
        with envelope.unlock(session, ada, secret=SECRET):
            envelope.enroll(session, Team(id=1, **values), provider="server")
            session.add_all([Membership(team_id=1, user_id=1), Membership(team_id=1, user_id=2)])
            session.commit()
            session.delete(session.get_one(Membership, (1, 2)))
            session.commit()
            envelope.enroll(session, Team(id=2, **values))
            session.add(Membership(team_id=2, user_id=1))
            session.commit()


def main() -> None:
    engine = make_engine()
    fill(engine, make_envelope())
    with engine.connect() as connection:
        lines = connection.connection.driver_connection.iterdump()  # type: ignore[union-attr]
        Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
