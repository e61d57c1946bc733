"""Whatever models derive from is a base: of Alembic's key source, of migrations and of campaigns."""

from typing import Any

import pytest
from sqlalchemy import MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, declarative_base, mapped_column, registry

from sqlalchemy_envelope import ConfigurationError, EncryptedType, KeyOwner
from sqlalchemy_envelope.migration.database.columns import encrypted_columns
from sqlalchemy_envelope.orm.tables.bases import mappers_of, metadata_of


def _sqlmodel() -> tuple[Any, type[Any]]:
    sqlmodel: Any = pytest.importorskip("sqlmodel")

    class Member(KeyOwner, sqlmodel.SQLModel, table=True):  # type: ignore[misc]
        __tablename__ = "sqlmodel_members"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        name: str | None = sqlmodel.Field(default=None, sa_type=EncryptedType(Text))

    return sqlmodel.SQLModel, Member


def _sqlmodel_first() -> tuple[Any, type[Any]]:
    sqlmodel: Any = pytest.importorskip("sqlmodel")

    class Guest(sqlmodel.SQLModel, KeyOwner, table=True):  # type: ignore[misc]
        __tablename__ = "sqlmodel_guests"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        name: str | None = sqlmodel.Field(default=None, sa_type=EncryptedType(Text))

    return sqlmodel.SQLModel, Guest


def _declared(base: Any) -> type[Any]:
    class User(KeyOwner, base):  # type: ignore[misc]
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))

    return User


class _Shared(DeclarativeBase):
    pass


def _abstract() -> tuple[Any, type[Any]]:
    class Vault(_Shared):
        __abstract__ = True
        metadata = MetaData()

    return Vault, _declared(Vault)


def _of_registry() -> tuple[Any, type[Any]]:
    base = registry().generate_base()
    return base.registry, _declared(base)


def _old_style() -> tuple[Any, type[Any]]:
    base = declarative_base()
    return base, _declared(base)


@pytest.mark.parametrize("make", [_sqlmodel, _sqlmodel_first, _abstract, _of_registry, _old_style])
def test_bases(make: Any) -> None:
    """The models, the encrypted columns and the key tables of every kind of base are found."""
    base, user = make()
    table = user.__table__

    assert user.__mapper__ in mappers_of(base)
    assert f"{table.name}.name" in [one.name for one in encrypted_columns(base)]
    assert table.metadata is next(one for one in metadata_of(base) if table.key in one.tables)
    assert f"{table.name}_key" in table.metadata.tables


@pytest.mark.parametrize("wrong", [object, None, "Base", MetaData()])
def test_what_is_no_base(wrong: Any) -> None:
    """What no model derives from is refused."""
    with pytest.raises(ConfigurationError, match="neither a declarative base nor a registry"):
        encrypted_columns(wrong if wrong is not object else type("Alone", (), {}))
