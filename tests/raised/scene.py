"""Where every error of the library is raised: models, a scene, and the list of what raises."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ForeignKey, Integer, String, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    EmergencyAccess,
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    PreviousColumn,
    enforce_foreign_keys,
)
from tests.orm.models import unchecked

RIGHT = "needle-right cafe\u0301"  # not in the form in which it is prepared
WRONG = "needle-wrong cafe\u0301"
NEW = "needle-new cafe\u0301"
CODE = "DSJP-AS3C-CMPQ-4SB3-DXV6-AWKS-5NHP-YS35-N66A"
"""A recovery code of nobody, with the bytes `needle-recovery-code` behind it."""
PLAIN = "needle-plaintext"
CHEAP = KdfProfile.unsafe_for_tests()
SERVER_KEY = b"server-key-of-thirty-two-bytes-1"


FAULTS: list[Exception] = []
"""What the application's default raises next."""


def no_size() -> None:
    """A default of the application's."""
    if FAULTS:
        raise FAULTS.pop()


class Base(DeclarativeBase):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)!r})"  # as many applications have it


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))
    size: Mapped[int | None] = mapped_column(EncryptedType(Integer), default=lambda: no_size())


class Address(Base):
    __tablename__ = "addresses"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", normalize="email-v1"))


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Nesting(KeyGrant, Base, of="outer_id", to="inner_id"):
    __tablename__ = "nestings"

    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Helper(EmergencyAccess, Base, of="owner_id", to="person_id"):
    __tablename__ = "helpers"

    owner_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Moving(Base):
    """Its values stand in two columns."""

    __tablename__ = "moving"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    refused: Mapped[str | None] = mapped_column(
        "refused_encrypted", EncryptedType(Text, previous=PreviousColumn("refused", Text, "refuse"))
    )
    at: Mapped[dt.datetime | None] = mapped_column(
        "at_encrypted",
        EncryptedType(sa.DateTime(timezone=True), previous=PreviousColumn("at", sa.DateTime(timezone=True))),
    )
    text: Mapped[str | None] = mapped_column(
        "text_encrypted",
        EncryptedType(
            Text,
            previous=PreviousColumn(
                "text", EncryptedType(Text, owner="user_id", label="moving.text"), "both"
            ),
        ),
    )


class Kms:
    """A provider that behaves as it is told."""

    local = True
    reference = "kms"

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.fails: Callable[[bytes], bytes] | None = None

    def wrap(self, key: bytes, context: Any) -> bytes:
        if self.fails is not None:
            self.fails(key)
        self.keys[b"number %d" % len(self.keys)] = key
        return list(self.keys)[-1]

    def unwrap(self, wrapped: bytes, context: Any) -> bytes:
        key = self.keys[wrapped]
        return key if self.fails is None else self.fails(key)


class Scene:
    """A database with an owner who has a secret, a provider's slot and a note, and what errors come from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kms = folder, Kms()
        self.engine = create_engine(f"sqlite:///{folder / 'scene.db'}")
        enforce_foreign_keys(self.engine)
        Base.metadata.create_all(self.engine)
        self.envelope = self.make_envelope(providers={"kms": self.kms})
        self.session = Session(self.engine)
        self.ada = User(phone=PLAIN)
        with self.envelope.enroll(self.session, self.ada, secret=RIGHT, provider="kms"):
            self.session.add(Note(user_id=self.ada.id, body=PLAIN, size=4711471147))
            self.session.commit()
        self.again()

    def make_envelope(self, **options: Any) -> Envelope:
        return Envelope(kdf_profile=CHEAP, **options)

    def again(self, **options: Any) -> None:
        """Another session, with nothing cached; another envelope, if it is to be one."""
        self.session.close()
        if options:
            self.envelope = self.make_envelope(**options)
        self.session = Session(self.engine)
        self.ada = self.session.get_one(User, 1)

    def unlock(self, secret: str = RIGHT, **options: Any) -> Any:
        return self.envelope.unlock(self.session, self.ada, secret=secret, **options)

    def planted(self, table: str, change: Callable[[bytes], bytes], column: str = "wrapped") -> None:
        """Change the stored bytes of a column in all rows of a table."""
        self.session.close()
        with self.engine.begin() as connection:
            unchecked(connection)
            found = connection.execute(
                sa.text(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL")
            )
            for row, data in found.all():
                connection.execute(
                    sa.text(f"UPDATE {table} SET {column} = :made WHERE rowid = :row"),
                    {"made": change(bytes(data)), "row": row},
                )
        self.again()

    def raw(self, statement: str, **values: Any) -> None:
        """SQL past the library."""
        with self.engine.begin() as connection:
            unchecked(connection)
            connection.execute(sa.text(statement), values)


def flipped(at: int) -> Callable[[bytes], bytes]:
    """One bit of bytes changed."""

    def change(data: bytes) -> bytes:
        altered = bytearray(data)
        altered[at] ^= 1
        return bytes(altered)

    return change


SCENES: list[tuple[type[EnvelopeError], Callable[[Scene], Any]]] = []


def raises(error: type[EnvelopeError]) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    def note(scene: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        SCENES.append((error, scene))
        return scene

    return note
