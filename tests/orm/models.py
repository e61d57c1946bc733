"""The models and small helpers that the tests of the ORM share."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import JSON, Engine, ForeignKey, Integer, LargeBinary, String, Text, Uuid, event
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner

SECRET = "correct horse battery staple"
OVERHEAD = 45

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))
    notes: Mapped[list["Note"]] = relationship(
        back_populates="user", passive_deletes=True, order_by="Note.id"
    )


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None]
    body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))
    size: Mapped[int | None] = mapped_column(EncryptedType(Integer, owner="user_id"))
    tags: Mapped[list[str] | None] = mapped_column(
        MutableList.as_mutable(EncryptedType(JSON, owner="user_id"))
    )
    extra: Mapped[dict[str, Any] | None] = mapped_column(
        MutableDict.as_mutable(EncryptedType(JSON, owner="user_id"))
    )
    user: Mapped[User] = relationship(back_populates="notes")


class Page(Base):
    """Its values are bound to their row, too."""

    __tablename__ = "pages"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None]
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id", bind="row"))
    user: Mapped[User] = relationship()


def stored(engine: Engine, column: Any, key: Any) -> bytes | None:
    """The bytes in the database, read past the library."""
    column = getattr(column, "__table__", column)
    table = column.table
    (key_column,) = table.primary_key.columns
    raw = sa.table(
        table.name, sa.column(key_column.name, key_column.type), sa.column(column.name, LargeBinary)
    )
    with engine.connect() as connection:
        found = connection.scalar(sa.select(raw.c[column.name]).where(raw.c[key_column.name] == key))
    return None if found is None else bytes(found)


def new_user(session: Session, name: str = "ada") -> User:
    """An enrolled owner, committed and locked."""
    user = User(email=f"{name}@example.org")
    envelope.enroll(session, user, secret=SECRET)
    session.commit()
    return user


def unlock(session: Session, user: object) -> Any:
    """Unlock with the secret that every test owner has."""
    return envelope.unlock(session, user, secret=SECRET)


@contextmanager
def statements_sent(engine: Engine) -> Iterator[list[str]]:
    """The statements that reach the database driver, but for the question in which schema a table is: other
    tests' models have tables of these names too."""
    sent: list[str] = []

    def note(cursor: object, statement: str, *_: object) -> None:
        if "current_schemas(" not in statement:
            sent.append(statement)

    for name in ("do_execute", "do_executemany", "do_execute_no_params"):
        event.listen(engine, name, note)
    try:
        yield sent
    finally:
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            event.remove(engine, name, note)


def unchecked(connection: Any) -> None:
    """Do away with every CHECK for what comes on this connection, as who owns the database can."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        return
    inspector = sa.inspect(connection)
    for table in inspector.get_table_names():
        for check in inspector.get_check_constraints(table):
            connection.exec_driver_sql(f'ALTER TABLE {table} DROP CONSTRAINT "{check["name"]}"')


def without_checks(engine: Engine) -> None:
    """Do away with every CHECK, as who owns the database can, so that any bytes can be planted."""
    if engine.dialect.name == "sqlite":

        def ignore(connection: Any, _: object) -> None:
            connection.execute("PRAGMA ignore_check_constraints = ON")

        event.listen(engine, "connect", ignore)
        engine.dispose()
        return
    inspector = sa.inspect(engine)
    with engine.begin() as connection:
        for table in inspector.get_table_names():
            for check in inspector.get_check_constraints(table):
                connection.exec_driver_sql(f'ALTER TABLE {table} DROP CONSTRAINT "{check["name"]}"')
