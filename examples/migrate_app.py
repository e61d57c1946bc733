"""Phone numbers and notes, in plain columns until now, move into encrypted ones while the program runs.

Settings: `DATABASE_URL`; `ENVELOPE_SERVER_KEYS`, a line that `ServerKeyring.generate_key()` makes; and
`NOTES_POLICY`, which each of four deployments sets: both, read, refuse, and at last none. The migration:
`sqlalchemy-envelope migrate run --app examples.migrate_app`.
"""

import os
from typing import Any

from sqlalchemy import ForeignKey, String, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, PreviousColumn, ServerKeyring
from sqlalchemy_envelope.migration import Migrator

policy: Any = os.environ.get("NOTES_POLICY", "both")


def previously(name: str, type_: Any) -> PreviousColumn | None:
    """Where a column's values come from; the last deployment has forgotten it."""
    return None if policy == "none" else PreviousColumn(name, type_, policy=policy)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(200), unique=True)
    phone: Mapped[str | None] = mapped_column(
        "phone_encrypted",
        EncryptedType(String, previous=previously("phone", String(20))),
    )


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str | None] = mapped_column(
        "body_encrypted",
        EncryptedType(Text, previous=previously("body", Text)),
    )


engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///notes.db"))
envelope = Envelope(server_keys=ServerKeyring.from_environment())
migrator = Migrator(engine, envelope, Base, provider="server")
