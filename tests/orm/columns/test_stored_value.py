"""The CHECK of an encrypted column: what it lets in on each database, and that every table made of the models
has it.

MariaDB's is tried where `ENVELOPE_MARIADB_URL` names a server.
"""

import pickle
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    make_url,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateTable

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    PreviousColumn,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm.columns.stored_value import EncryptedCheck, check_name
from tests.plain_sql import insert_of

SECRET = "correct horse battery staple"

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))
    Odd: Mapped[str | None] = mapped_column("Odd: 100%", EncryptedType(Text))
    free: Mapped[str | None] = mapped_column(EncryptedType(Text, check=False))


@pytest.fixture
def made(engine: Engine) -> Engine:
    """A database with the tables of the models."""
    Base.metadata.create_all(engine)
    return engine


@pytest.fixture
def mariadb(mariadb_engine: Engine) -> Engine:
    """A database of MariaDB with the tables."""
    Base.metadata.create_all(
        mariadb_engine, tables=[Base.metadata.tables["notes"], Base.metadata.tables["users"]]
    )
    return mariadb_engine


def is_refused(engine: Engine, value: object, name: str = "body") -> bool:
    """Whether the database itself refuses a value."""
    with engine.connect() as connection:
        try:
            connection.execute(insert_of(engine.dialect, "notes", {"id": 1, name: value}))
        except sa.exc.DBAPIError:
            return True
    return False


REFUSED = {
    "empty": b"",
    "one byte": b"\x01",
    "44 bytes": b"\x01" + bytes(43),
    "another first byte": b"\x02" + bytes(44),
    "of a key": b"\x11" + bytes(104),
    "plaintext bytes": b"SECRET",
    "long plaintext bytes": b"SECRET " * 10,
    "text": "SECRET",
    "empty text": "",
    "long text": "SECRET " * 10,
    "a number": 1,
}
TAKEN = {"least": b"\x01" + bytes(44), "long": b"\x01" + bytes(range(256)) * 40, "NULL": None}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused(made: Engine, value: object) -> None:
    """Everything that is no ciphertext, whatever its type, in a column of whatever name."""
    assert is_refused(made, value)
    assert is_refused(made, value, "Odd: 100%")


def test_text_that_begins_as_a_ciphertext_on_sqlite(sqlite_engine: Engine) -> None:
    """SQLite stores text in a BLOB column: text is refused for being text."""
    Base.metadata.create_all(sqlite_engine)

    assert is_refused(sqlite_engine, "\x01" + "x" * 60)


@pytest.mark.parametrize("value", TAKEN.values(), ids=TAKEN.keys())
def test_what_is_taken(made: Engine, value: object) -> None:
    """NULL, and what looks as a ciphertext does."""
    assert not is_refused(made, value)
    assert not is_refused(made, value, "Odd: 100%")


def test_without_it(made: Engine) -> None:
    """With check=False the database takes any bytes."""
    assert not is_refused(made, b"SECRET", "free")


def test_on_mariadb(mariadb: Engine) -> None:
    """The same values are refused and taken."""
    bytes_alone = {name: value for name, value in REFUSED.items() if not isinstance(value, int)}

    assert set(bytes_alone) == {name for name, value in bytes_alone.items() if is_refused(mariadb, value)}
    assert set() == {name for name, value in TAKEN.items() if is_refused(mariadb, value, "Odd: 100%")}

    with mariadb.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE notes DROP COLUMN body")


def test_a_reflected_table(made: Engine) -> None:
    """A reflected table is recognised where the models are declared: nothing is sent."""
    reflected = Table("notes", MetaData(), autoload_with=made)
    with pytest.raises(StatementRefusedError), made.begin() as connection:
        connection.execute(reflected.insert().values(id=1, body=b"SECRET"))
    with made.connect() as connection:
        assert connection.execute(sa.select(reflected)).all() == []


def test_genuine_values(made: Engine) -> None:
    """What the library writes is taken, of an empty string too, and so is its copy by SQL."""
    with Session(made) as session:
        user = User()
        with envelope.enroll(session, user, secret=SECRET):
            session.add_all(
                [Note(id=1, user_id=user.id, body=""), Note(id=2, user_id=user.id, body="x" * 99)]
            )
            session.commit()
    with made.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO notes (id, user_id, body) SELECT id + 10, user_id, body FROM notes"
        )
        connection.exec_driver_sql("UPDATE notes SET body = NULL WHERE id = 11")
    with Session(made) as session:
        user = session.scalars(sa.select(User)).one()
        with envelope.unlock(session, user, secret=SECRET):
            bodies = {note.id: note.body for note in session.scalars(sa.select(Note))}

    assert bodies == {1: "", 2: "x" * 99, 11: None, 12: "x" * 99}


def checks_of(table: Table) -> list[str]:
    """The names of the CHECKs that a CREATE TABLE has."""
    return sorted(
        str(one.name)
        for column in table.columns
        for one in column.constraints
        if isinstance(one, EncryptedCheck)
    )


def created(table: Table, url: str = "sqlite://") -> str:
    """The CREATE TABLE of a database."""
    return str(CreateTable(table).compile(dialect=make_url(url).get_dialect()()))


def test_copies_of_a_table() -> None:
    """A table in another MetaData, under another name, pickled, or of copied columns has the CHECK once."""
    notes = Base.metadata.tables["notes"]
    renamed = notes.to_metadata(MetaData(), name="notes_version")
    columns = [Column("id", Integer, primary_key=True), notes.c.body._copy()]
    history = Table("history", MetaData(), *columns)
    alone = Table("notes", MetaData(), notes.c.id._copy(), notes.c.body._copy())
    unpickled = pickle.loads(pickle.dumps(alone))  # noqa: S301 - of ours

    assert checks_of(notes) == ["ck_notes_Odd: 100%_ciphertext", "ck_notes_body_ciphertext"]
    assert checks_of(notes.to_metadata(MetaData())) == checks_of(notes)
    assert checks_of(renamed) == ["ck_notes_version_Odd: 100%_ciphertext", "ck_notes_version_body_ciphertext"]
    assert checks_of(history) == ["ck_history_body_ciphertext"]
    assert created(unpickled) == created(alone)


def test_a_mixin_and_inheritance() -> None:
    """Each table has the CHECK of its own columns: of a mixin, of a subclass with a table, and without."""

    class Other(DeclarativeBase):
        pass

    class Signed:
        signature: Mapped[str | None] = mapped_column(EncryptedType(Text, "user_id"))

    class Person(KeyOwner, Other):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Paper(Signed, Other):
        __tablename__ = "papers"
        __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_on": "kind"}
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        user_id: Mapped[int] = mapped_column(ForeignKey("people.id"))

    class Letter(Paper):
        __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "letter"}
        address: Mapped[str | None] = mapped_column(EncryptedType(Text))

    tables = Other.metadata.tables

    assert checks_of(tables["papers"]) == ["ck_papers_address_ciphertext", "ck_papers_signature_ciphertext"]


def test_a_column_that_is_replaced() -> None:
    """The CHECK belongs to its column: one that takes its place has its own, or none."""
    table = Table(
        "notes", MetaData(), Column("id", Integer, primary_key=True), Column("body", EncryptedType(Text))
    )
    table.append_column(Column("body", EncryptedType(String)), replace_existing=True)

    assert created(table).count("CHECK") == 1

    table.append_column(Column("body", Text), replace_existing=True)

    assert "CHECK" not in created(table)


def test_both_columns_of_a_move(engine: Engine) -> None:
    """While values are moved, the encrypted column has its CHECK and takes NULL; the previous one is free."""
    metadata = MetaData()
    moving = EncryptedType(Text, label="t.c", previous=PreviousColumn("body", Text))
    Table("notes", metadata, Column("id", Integer, primary_key=True), Column("sealed", moving))
    metadata.create_all(engine)

    assert is_refused(engine, b"SECRET", "sealed")
    assert not is_refused(engine, None, "sealed")
    assert not is_refused(engine, "SECRET", "body")


def test_a_database_that_is_not_known() -> None:
    """Where the CHECK cannot be written, the table is made without."""
    assert "CHECK" not in created(Base.metadata.tables["notes"], "oracle+oracledb://")


RULES = [
    (None, "ck_notes_body_ciphertext"),
    ({"ck": "check_%(table_name)s_%(constraint_name)s"}, "check_notes_body_ciphertext"),
    ({sa.CheckConstraint: "c_%(column_0_name)s_%(constraint_name)s"}, "c_body_body_ciphertext"),
    ({"ck": "ck_%(table_name)s_%(column_0_name)s"}, "ck_notes_body_ciphertext"),
    ({"ix": "ix_%(column_0_label)s"}, "ck_notes_body_ciphertext"),
]


@pytest.mark.parametrize(("rules", "name"), RULES)
def test_the_name(rules: Any, name: str) -> None:
    """It follows the MetaData's naming convention where that asks for the constraint's name."""
    metadata = MetaData(naming_convention=rules)
    table = Table(
        "notes", metadata, Column("id", Integer, primary_key=True), Column("body", EncryptedType(Text))
    )

    assert checks_of(table) == [name]
    assert f"CONSTRAINT {name} CHECK" in created(table)


def test_long_names(engine: Engine) -> None:
    """Names stay within the least limit of the databases and apart from each other."""
    metadata = MetaData()
    long = "a_table_with_a_name_that_is_as_long_as_postgresql_lets_it_be"
    columns = [Column(f"{'ä' * 25}_{number}", EncryptedType(Text)) for number in range(2)]
    table = Table(long, metadata, Column("id", Integer, primary_key=True), *columns)
    metadata.create_all(engine)
    names = checks_of(table)

    assert len(set(names)) == 2
    assert all(len(name.encode()) <= 63 for name in names)
    assert {one["name"] for one in sa.inspect(engine).get_check_constraints(long)} == set(names)
    assert check_name(long, columns[0].name) in names


def test_the_argument() -> None:
    """It is part of the cache key, of the representation and of copies."""
    with_, without = EncryptedType(Text, check=True), EncryptedType(Text, check=False)

    assert with_._static_cache_key != without._static_cache_key
    assert repr(without) == "EncryptedType(Text(), check=False)"
    assert repr(EncryptedType(Text)) == "EncryptedType(Text())"
    assert without.copy().check is False
    assert without.labelled("t.c").check is False


def test_drop_column_on_sqlite(sqlite_engine: Engine) -> None:
    """SQLite drops a column of a table that create_all made, its CHECK with it."""
    Base.metadata.create_all(sqlite_engine)
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE notes DROP COLUMN body")

    assert "body" not in {one["name"] for one in sa.inspect(sqlite_engine).get_columns("notes")}


def test_an_older_table(engine: Engine) -> None:
    """A table without the CHECK goes on working."""
    metadata = MetaData()
    Table(
        "notes",
        metadata,
        *(Column(name, LargeBinary) for name in ("body", "Odd: 100%", "free")),
        Column("id", Integer, primary_key=True),
        Column("user_id", Integer),
    )
    metadata.create_all(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        user = User()
        with envelope.enroll(session, user, secret=SECRET):
            session.add(Note(id=1, user_id=user.id, body="hello"))
            session.commit()

            assert session.get_one(Note, 1).body == "hello"


def test_a_table_and_a_column_can_be_printed() -> None:
    """`repr` of a table shows the CHECK by its name: debuggers, loggers and Alembic's comparison print it."""
    table = sa.Table("t", sa.MetaData(), sa.Column("body", EncryptedType(sa.Text)))

    assert "EncryptedCheck('body', name='ck_t_body_ciphertext')" in repr(table)
    assert "EncryptedCheck('body', name='ck_t_body_ciphertext')" in repr(table.c.body)
