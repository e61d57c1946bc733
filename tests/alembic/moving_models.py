"""The same tables before, while and after their values are moved to encrypted columns."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import Engine, ForeignKey, Integer, MetaData, String, Text, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, PreviousColumn, ServerKeyring

SERVER_KEY = b"\x51\x52" * 16
FOREIGN_KEY = "key-of-another-library"

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([SERVER_KEY]))

Stage = Literal["plaintext", "both", "read", "refuse", "moved", "in place"]


class Foreign(TypeDecorator[str]):
    """As of another library: what `repr` shows has its key in it."""

    impl = String(200)
    cache_ok = True

    def __init__(self, key: str = FOREIGN_KEY) -> None:
        super().__init__()
        self.key = key

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Turn it around."""
        return None if value is None else value[::-1]

    def process_result_value(self, value: str | None, dialect: Any) -> str | None:
        """Turn it back."""
        return None if value is None else value[::-1]

    def __repr__(self) -> str:
        return f"Foreign(key={self.key!r})"


@dataclass(frozen=True)
class Models:
    """The classes of one deployment."""

    Base: Any
    User: Any
    Note: Any


@cache
def declare(stage: Stage, schema: str | None = None) -> Models:
    """The classes at one step: of an owner, and of rows that have one, under a composite key."""

    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)

    def moving(name: str, inner: Any, previous: Any, label: str) -> Any:
        """A column at this step, beside its previous one."""
        if stage == "plaintext":
            return mapped_column(name, previous, nullable=True)
        if stage == "in place":
            return mapped_column(name, EncryptedType(inner))
        if stage == "moved":
            return mapped_column(f"{name}_encrypted", EncryptedType(inner, label=label))
        before = PreviousColumn(name, previous, stage)
        return mapped_column(f"{name}_encrypted", EncryptedType(inner, label=label, previous=before))

    class User(KeyOwner, Base):
        __tablename__ = "users"

        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(String(80), unique=True)
        phone: Mapped[str | None] = moving("phone", String, String(20), "users.phone")

    users = f"{schema}.users" if schema else "users"

    class Note(Base):
        __tablename__ = "notes"

        user_id: Mapped[int] = mapped_column(ForeignKey(f"{users}.id", ondelete="CASCADE"), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        body: Mapped[str | None] = moving("body", Text, Text, "notes.body")
        size: Mapped[int | None] = moving("size", Integer, Integer, "notes.size")
        token: Mapped[str | None] = moving("token", String, Foreign(), "notes.token")

    configure_mappers()
    return Models(Base, User, Note)


def values(engine: Engine, stage: Stage, schema: str | None = None) -> list[tuple[Any, ...]]:
    """Every value, as the application reads it in server mode at this step."""
    models = declare(stage, schema)
    with envelope.server_mode(reason="test"), Session(engine) as session:
        users = session.query(models.User).order_by(models.User.id)
        notes = session.query(models.Note).order_by(models.Note.user_id, models.Note.number)
        return [(one.email, one.phone) for one in users] + [
            (one.user_id, one.number, one.body, one.size, one.token) for one in notes
        ]


def fill(engine: Engine, schema: str | None = None, users: int = 4) -> list[tuple[Any, ...]]:
    """Plaintext of some users, with NULL and the empty string among it; every value."""
    models = declare("plaintext", schema)
    phones = ["+44 20 7946 0000", None, "", "ä %s :n 'q' ö"]
    with Session(engine) as session:
        for number in range(users):
            phone = phones[number % len(phones)]
            user = models.User(id=number + 1, email=f"{number}@example.org", phone=phone)
            session.add(user)
        session.flush()
        for number in range(users):
            for place in range(3):
                note = models.Note(
                    user_id=number + 1,
                    number=place,
                    body=f"note {place}",
                    size=place or None,
                    token=f"t{place}",
                )
                session.add(note)
        session.commit()
    return values(engine, "plaintext", schema)
