"""The tables that plans are made of, and what is found in them."""

from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner
from sqlalchemy_envelope.migration.database.columns import MigratingColumn, column_named, migrating_columns
from sqlalchemy_envelope.migration.inspection.findings import Finding
from sqlalchemy_envelope.migration.inspection.obstacles import find_obstacles
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)


class Contact(Base):
    __tablename__ = "contacts"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"))
    phone: Mapped[str | None] = mapped_column(
        "phone_encrypted", EncryptedType(String, previous=PreviousColumn("phone", String(20)))
    )


USERS = "CREATE TABLE users (id varchar(40) NOT NULL PRIMARY KEY)"
KEY = "id integer NOT NULL PRIMARY KEY"
OWNER = "user_id varchar(40) NOT NULL REFERENCES users (id)"
PHONE = "phone varchar(20)"
CONTACTS = f"CREATE TABLE contacts ({KEY}, {OWNER}, {PHONE})"


def contact_phone() -> MigratingColumn:
    return column_named(migrating_columns(Base), "contacts.phone")


def found_in(engine: Engine, *statements: str) -> list[Finding]:
    """What is found after these statements."""
    with engine.begin() as connection:
        for statement in (USERS, *statements):
            connection.exec_driver_sql(statement)
        for name in ("users_key", "users_keyslot"):
            Base.metadata.tables[name].create(connection)
        return find_obstacles(connection, contact_phone())


def codes(findings: list[Finding]) -> set[tuple[str, str, str]]:
    return {(one.code, one.severity, one.object) for one in findings}


def table(*parts: str, before: str = "CREATE TABLE", after: str = "") -> str:
    return f"{before} contacts ({', '.join(parts)}) {after}"


def harmless(dialect: str) -> set[tuple[str, str, str]]:
    """What is said of every table."""
    return {
        "sqlite": {("rows", "note", "contacts"), ("journal-mode", "note", "the database file")},
        "postgresql": {("rows", "note", "contacts")},
    }[dialect]
