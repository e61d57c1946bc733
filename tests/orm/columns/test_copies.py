"""A copy of an encrypted column takes the path of the original where that is certain."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, MetaData, Table, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import ConfigurationError, EncryptedType, KeyOwner, OwnerColumn
from sqlalchemy_envelope.orm.columns.plans import plan_of_table


def key(**more: Any) -> Any:
    return mapped_column(primary_key=True, **more)


def models(naming: dict[str, str] | None = None) -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=naming)

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = key()
        phone: Mapped[str | None] = mapped_column(EncryptedType(Text))

    Base.User = User  # type: ignore[attr-defined]
    return Base


def phone(**more: Any) -> Any:
    return mapped_column(EncryptedType(Text, label="users.phone", **more))


def path(table: Any) -> tuple[str, tuple[str, ...]]:
    plan = plan_of_table(table)
    assert plan is not None  # every table here has an encrypted column
    ((found, _),) = plan.groups
    return found.owner_class.name, found.keys


def test_a_key_of_the_copys_own_names_no_owner() -> None:
    """A history that numbers its rows itself is refused, with the column that names the owner."""
    base = models()

    class History(base):  # type: ignore[misc]
        __tablename__ = "users_history"
        id: Mapped[int] = key()
        users_id: Mapped[int] = mapped_column()
        phone: Mapped[str | None] = phone()

    with pytest.raises(ConfigurationError, match=r"OwnerColumn\('users_id', of=User\)"):
        base.registry.configure()


def test_a_key_that_is_made_names_no_owner() -> None:
    """Neither does one column of a composite key, where each row gets a value of its own."""
    base = models()

    class History(base):  # type: ignore[misc]
        __tablename__ = "users_history"
        id: Mapped[int] = key(autoincrement=True)
        users_id: Mapped[int] = key()
        phone: Mapped[str | None] = phone()

    with pytest.raises(ConfigurationError, match="may be a row's own"):
        base.registry.configure()


def test_the_cure_of_the_error_is_taken() -> None:
    """Both lines that the error says lead to the owner, by another column or by the same."""
    base = models()

    class History(base):  # type: ignore[misc]
        __tablename__ = "users_history"
        id: Mapped[int] = key()
        users_id: Mapped[int] = mapped_column()
        phone: Mapped[str | None] = phone(owner=OwnerColumn("users_id", of=base.User))

    class Archive(base):  # type: ignore[misc]
        __tablename__ = "users_archive"
        id: Mapped[int] = key()
        archived_by: Mapped[int] = mapped_column()
        phone: Mapped[str | None] = phone(owner=OwnerColumn("id", of=base.User))

    base.registry.configure()

    assert path(History.__table__) == ("User", ("users_id",))
    assert path(Archive.__table__) == ("User", ("id",))


def test_a_version_table_keeps_the_original_key() -> None:
    """With a version beside the original's key, that key names the owner."""
    base = models()

    class Version(base):  # type: ignore[misc]
        __tablename__ = "users_version"
        id: Mapped[int] = key(autoincrement=False)
        transaction_id: Mapped[int] = key()
        phone: Mapped[str | None] = phone()

    base.registry.configure()

    assert path(Version.__table__) == ("User", ("id",))


def test_a_table_with_the_same_columns_keeps_the_original_key() -> None:
    """`Table.to_metadata` copies every column and adds none: nothing else could name the owner."""
    base = models()
    copy = base.User.__table__.to_metadata(base.metadata, name="users_archive")

    assert path(copy) == ("User", ("id",))


def schemas(here: str) -> Any:
    base = models()

    class Company(KeyOwner, base):  # type: ignore[misc]
        __tablename__ = "companies"
        id: Mapped[int] = key()

    def notes(schema: str, target: str) -> Table:
        columns = ("id", sa.Integer), ("own", sa.Integer, ForeignKey(f"{target}.id"))
        made = [sa.Column(*one, primary_key=at == 0) for at, one in enumerate(columns)]
        return Table("notes", base.metadata, *made, sa.Column("v", EncryptedType(Text)), schema=schema)

    notes("s1", "users")
    notes("s2", "companies")
    label = EncryptedType(Text, label="notes.v")
    plain = [sa.Column("id", sa.Integer, primary_key=True), sa.Column("own", sa.Integer)]
    copy = Table("notes_h", base.metadata, *plain, sa.Column("v", label), schema=here)
    base.registry.configure()
    return copy


def test_the_original_in_the_copys_own_schema_is_taken() -> None:
    """Two tables have one name and one label: a copy beside one of them is that one's."""
    assert path(schemas("s1")) == ("User", ("own",))
    assert path(schemas("s2")) == ("Company", ("own",))


def test_several_originals_in_other_schemas_are_refused() -> None:
    """A copy in a third schema could be of either; the error names both tables."""
    with pytest.raises(ConfigurationError, match=r"s1\.notes and s2\.notes.*OwnerColumn"):
        path(schemas("s3"))


def test_a_copy_is_no_original() -> None:
    """A copy with the original's name in another schema stands in no other copy's way, and two tables that
    name no owner are not each other's originals."""
    base = models()
    copy = base.User.__table__.to_metadata(base.metadata, schema="audit")
    further = base.User.__table__.to_metadata(base.metadata, name="users_archive", schema="audit")
    unclear = [
        Table(
            "notes",
            base.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("v", EncryptedType(Text)),
            schema=schema,
        )
        for schema in ("s1", "s2")
    ]

    assert path(copy) == path(further) == ("User", ("id",))
    for table in unclear:
        with pytest.raises(ConfigurationError, match="is not clear"):
            path(table)


def test_a_naming_convention_without_indexes() -> None:
    """The key tables' indexes have names where the application's convention names none."""
    base = models({"ck": "ck_%(table_name)s_%(constraint_name)s"})
    base.registry.configure()
    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    found = {one["name"] for one in sa.inspect(engine).get_indexes("users_key")}

    assert found == {"ix_users_key_owner_id", "ix_users_key_wrapping_key_id", "uq_users_key_active"}
