"""Contacts of one owner, found by a unique and by a common value; and processes with clocks of the test's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    foreign,
    mapped_column,
    relationship,
    remote,
)

from sqlalchemy_envelope import (
    BlindIndex,
    EncryptedType,
    Envelope,
    IndexRotation,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
)
from sqlalchemy_envelope.keys import index_keys
from sqlalchemy_envelope.orm.indexes import executing, server_keys
from sqlalchemy_envelope.orm.verbs.rotation import index_rotation
from tests.prepared import prepared

KEYS = [bytes(range(32))]


class Base(DeclarativeBase):
    pass


class Desk(KeyOwner, Base):
    __tablename__ = "desks"
    id: Mapped[int] = mapped_column(primary_key=True)


class Contact(Base):
    __tablename__ = "contacts"
    id: Mapped[int] = mapped_column(primary_key=True)
    desk_id: Mapped[int] = mapped_column(ForeignKey("desks.id", ondelete="CASCADE"))
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    town: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"), unique=True)
    town_index: Mapped[bytes | None] = mapped_column(BlindIndex("town", scope="server"), index=True)
    neighbours: Mapped[list[Contact]] = relationship(
        primaryjoin=lambda: foreign(remote(Contact.town)) == Contact.town, viewonly=True, uselist=True
    )


Other = aliased(Contact)


def new_process() -> Envelope:
    """What a process has: an envelope, with a cache of its own."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring(KEYS))


def one_desk(engine: Engine) -> int:
    """A desk whose keys the server opens; its id."""

    def make() -> int:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            desk = Desk()
            new_process().enroll(session, desk, provider="server")
            session.commit()
            return desk.id

    return prepared(engine, "one desk", make)


@contextmanager
def working(engine: Engine, process: Envelope) -> Iterator[Session]:
    """A session of a process, in server mode."""
    with Session(engine) as session, process.server_mode(session, provider="server", reason="test"):
        process.attach(session)
        yield session


class Clock:
    """The time of all processes, in the hands of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        for module in (index_keys, executing, server_keys, index_rotation):
            monkeypatch.setattr(module, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


def rotate(engine: Engine, index: Any, process: Envelope | None = None, **options: Any) -> IndexRotation:
    """A whole rotation; its last progress."""
    process = process or new_process()
    with working(engine, process) as session:
        turns = []
        for so_far in process.rotate_index(session, index, **options):
            session.commit()
            turns.append(so_far)
        return turns[-1]
