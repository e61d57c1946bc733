"""Models whose owner comes from a default, an expression or a link."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, Text, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    OneOf,
    OwnerColumn,
    ServerKeyring,
    StatementRefusedError,
)

TENANT = [1]
CALLS: list[int] = []


def current_tenant() -> int:
    CALLS.append(TENANT[0])
    return TENANT[0]


def by_context(context: Any) -> int:
    return int(context.get_current_parameters()["id"])


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Team(KeyOwner, Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True)


class Device(KeyOwner, Base):
    __tablename__ = "devices"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


def text(owner: Any = None) -> Any:
    return mapped_column(EncryptedType(Text, owner))


class Plain(Base):
    __tablename__ = "plains"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    text: Mapped[str | None] = text()


class Called(Base):
    __tablename__ = "called"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=current_tenant)
    user: Mapped[User] = relationship()
    text: Mapped[str | None] = text()


class Constant(Base):
    __tablename__ = "constants"
    id: Mapped[int] = mapped_column(primary_key=True)
    whose: Mapped[int] = mapped_column("user_id", ForeignKey("users.id"), default=1)
    text: Mapped[str | None] = text()


class ByContext(Base):
    __tablename__ = "by_context"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=by_context)
    text: Mapped[str | None] = text()


class ByDatabase(Base):
    __tablename__ = "by_database"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), server_default="1")
    text: Mapped[str | None] = text()


class ByExpression(Base):
    __tablename__ = "by_expression"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), default=sa.text("1"))
    text: Mapped[str | None] = text()


class Either(Base):
    __tablename__ = "either"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class EitherDefault(Base):
    __tablename__ = "either_default"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), default=current_tenant)
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class EitherDatabase(Base):
    __tablename__ = "either_database"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"), server_default="1")
    team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
    text: Mapped[str | None] = text(OneOf("user_id", "team_id"))


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship()


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"), default=current_tenant)
    order: Mapped[Order | None] = relationship()
    text: Mapped[str | None] = text("order.user")


class Setting(Base):
    __tablename__ = "settings"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[int]
    text: Mapped[str | None] = text(OwnerColumn("account", of=User))


class Reading(Base):
    __tablename__ = "readings"
    id: Mapped[int] = mapped_column(primary_key=True)
    device_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("devices.id"))
    text: Mapped[str | None] = text()


DEVICE = uuid.UUID(int=7)


@dataclass
class Application:
    engine: Engine
    envelope: Envelope
    server: Any

    def stored(self, model: Any) -> list[tuple[Any, ...]]:
        """What each row names as its user and team, and whose key its value names, read past the library."""
        owners = {}
        with self.engine.connect() as connection:
            for owner in (User, Team):
                keys: Any = owner.__key_class__
                for key_id, owner_id in connection.execute(select(keys.key_id, keys.owner_id)):
                    owners[key_id.bytes] = (owner.__name__, owner_id)
            columns = [name for name in ("user_id", "team_id", "order_id") if name in model.__table__.c]
            raw = sa.table(model.__tablename__, *map(sa.column, columns), sa.column("text", sa.LargeBinary))
            found = connection.execute(select(*raw.c)).all()
        return [(*row[:-1], owners.get(bytes(row[-1])[1:17])) for row in found]


def start(engine: Engine) -> Iterator[Application]:
    Base.metadata.create_all(engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    server = envelope.server_mode(reason="test").everywhere()
    with Session(engine) as session:
        session.add_all([model(id=number) for model in (User, Team) for number in (1, 2)])
        session.add(Device(id=DEVICE))
        session.flush()
        session.add_all([Order(id=1, user_id=2), Order(id=2, user_id=1)])
        session.commit()
    TENANT[0] = 1
    CALLS.clear()
    yield Application(engine, envelope, server)
    server.stop()


Write = Callable[[Session, Any, dict[str, Any]], Any]


def by_flush(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.add(model(**values))
    session.flush()


def by_values(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model).values(**values))


def by_parameters(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.connection().execute(insert(model.__table__), {column_of(model, k): v for k, v in values.items()})


def by_rows(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model), [values, values])


def by_core_rows(session: Session, model: Any, values: dict[str, Any]) -> None:
    row = {column_of(model, key): value for key, value in values.items()}
    session.connection().execute(insert(model.__table__), [row, row])


def by_multiple_values(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.execute(insert(model).values([values, values]))


def by_mappings(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.bulk_insert_mappings(model, [values, values])


def by_bulk_objects(session: Session, model: Any, values: dict[str, Any]) -> None:
    session.bulk_save_objects([model(**values), model(**values)])


def column_of(model: Any, key: str) -> str:
    return str(sa.inspect(model).columns[key].key)


EVERY_WAY = [
    by_flush, by_values, by_parameters, by_rows, by_core_rows, by_multiple_values, by_mappings,
    by_bulk_objects,
]  # fmt: skip


def refused(app: Application, written: Any, match: str, model: Any) -> None:
    """What is written, values in every way or what a function writes, raises our error, and no row is
    there."""
    ways = [written] if callable(written) else [partial(written_by, way, model, written) for way in EVERY_WAY]
    for write in ways:
        with Session(app.engine) as session:
            with pytest.raises((StatementRefusedError, ConfigurationError), match=match) as error:
                write(session)
            session.rollback()
            assert session.scalar(select(sa.func.count()).select_from(model.__table__)) == 0
        assert "needle" not in str(error.value)


def written_by(way: Write, model: Any, values: dict[str, Any], session: Session) -> None:
    way(session, model, values)
