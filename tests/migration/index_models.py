"""An application before and after it declares a blind index."""

from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    PreviousColumn,
    ServerKeyring,
)
from sqlalchemy_envelope.migration import Migrator
from tests.prepared import tables_of

SECRET = "correct horse battery staple"


@cache
def models(*, indexed: bool) -> Any:
    """The declarative base of a release; `base.user` and `base.note` are its classes."""

    class Base(DeclarativeBase):
        user: Any
        note: Any

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(EncryptedType(String))
        if indexed:
            email_index: Mapped[bytes | None] = mapped_column(
                BlindIndex("email", scope="server"), index=True, unique=True
            )

    class Note(Base):
        __tablename__ = "notes"
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None] = mapped_column(EncryptedType(String, owner="user_id", bind="row"))
        if indexed:
            title_index: Mapped[bytes | None] = mapped_column(BlindIndex("title", scope="server"), index=True)

    configure_mappers()
    Base.user, Base.note = User, Note
    return Base


def new_envelope() -> Envelope:
    """An envelope with the server's keys."""
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))]))


def old_rows(engine: Engine, *emails: str | None, provider: bool = True) -> Envelope:
    """What the release without the index wrote: users, each with three notes."""
    base, envelope = models(indexed=False), new_envelope()
    tables_of(base.metadata, engine)
    with Session(engine) as session:
        for email in emails:
            user = base.user(email=email)
            with envelope.enroll(session, user, secret=SECRET):
                notes = [base.note(user_id=user.id, number=n, title=f"title {n}") for n in range(3)]
                session.add_all(notes)
                session.flush()
                if provider:
                    envelope.add_provider(session, user, provider="server")
        session.commit()
    return envelope


def add_indexes(engine: Engine, base: Any = None) -> None:
    """What an Alembic revision does: the columns, their indexes, and the tables of index keys."""
    base = models(indexed=True) if base is None else base
    with engine.begin() as connection:
        for table in base.metadata.tables.values():
            for column in [one for one in table.columns if isinstance(one.type, BlindIndex)]:
                kind = column.type.compile(engine.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")
                unique = "UNIQUE " if column.unique else ""
                connection.exec_driver_sql(
                    f"CREATE {unique}INDEX ix_{column.name} ON {table.name} ({column.name})"
                )
        base.metadata.create_all(connection)


def migrator(engine: Engine, envelope: Envelope, **options: Any) -> Migrator:
    """The migrator of the release with the index."""
    options = {"provider": "server"} | options
    return Migrator(engine, envelope, models(indexed=True), **options)


def found(engine: Engine, envelope: Envelope, email: str) -> list[int]:
    """The ids of the users that a log-in form finds."""
    user = models(indexed=True).user
    with Session(engine) as session:
        envelope.attach(session)
        return list(session.scalars(sa.select(user.id).where(user.email == email)))


@cache
def moving(policy: Any) -> Any:
    """The base of a release that moves plaintext e-mail addresses into an indexed column."""

    class Base(DeclarativeBase):
        user: Any

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None] = mapped_column(
            "email_encrypted", EncryptedType(String, previous=PreviousColumn("email", String(80), policy))
        )
        email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"), unique=True)

    configure_mappers()
    Base.user = User
    return Base


@cache
def models_of_names() -> Any:
    """A release with an index over two values, and one over one of them."""

    class Base(DeclarativeBase):
        user: Any

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        last: Mapped[str | None] = mapped_column(EncryptedType(String))
        first: Mapped[str | None] = mapped_column(EncryptedType(String))
        last_index: Mapped[bytes | None] = mapped_column(BlindIndex("last", scope="server"))
        both_index: Mapped[bytes | None] = mapped_column(BlindIndex(("last", "first"), scope="server"))

    configure_mappers()
    Base.user = User
    return Base
