"""Other `Table` objects than the model's, of the same name: what they write is encrypted, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, bindparam, insert, lambda_stmt, literal, null, select, text, union_all, update
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner, StatementRefusedError
from sqlalchemy_envelope.orm.writing import namesakes
from sqlalchemy_envelope.orm.writing.gate import check_writes
from sqlalchemy_envelope.orm.writing.marks import mark
from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock
from tests.orm.writing.gate.notes import bodies, read

pytestmark = pytest.mark.both_lines
PLAIN = "plaintext that must not be stored"
NOTES: Any = Note.__table__
OWNER = 1  # ada's


def twins(engine: Engine) -> dict[str, Any]:
    """Tables of the same name that know of no encryption."""
    return {
        "lightweight": sa.table("notes", sa.column("user_id"), sa.column("body")),
        "reflected": sa.Table("notes", sa.MetaData(), autoload_with=engine),
        "typed": sa.Table(
            "notes", sa.MetaData(), sa.Column("user_id", sa.Integer), sa.Column("body", sa.Text)
        ),
    }


TWIN_FORMS: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "values": lambda twin: (insert(twin).values(user_id=1, body=PLAIN), None),
    "rows": lambda twin: (insert(twin), [{"user_id": 1, "body": PLAIN}, {"user_id": 1, "body": None}]),
    "multi-values": lambda twin: (insert(twin).values([{"user_id": 1, "body": PLAIN}]), None),
    "a parameter": lambda twin: (
        insert(twin).values(user_id=1, body=bindparam("words")),
        {"words": PLAIN},
    ),
    "a parameter in multi-values": lambda twin: (
        insert(twin).values([{"user_id": 1, "body": bindparam("words")}]),
        {"words": PLAIN},
    ),
    "update": lambda twin: (update(twin).values(body=PLAIN), None),
    "an expression": lambda twin: (update(twin).values(body=sa.func.lower(PLAIN)), None),
    "from select": lambda twin: (
        insert(twin).from_select(["user_id", "body"], select(literal(1), literal(PLAIN))),
        None,
    ),
    "lambda": lambda twin: (lambda_stmt(lambda: insert(twin).values(user_id=1, body=PLAIN)), None),
}


@pytest.mark.parametrize("form", TWIN_FORMS)
@pytest.mark.parametrize("kind", ["lightweight", "reflected", "typed"])
@pytest.mark.any_database
def test_another_table_object(started: Started, kind: str, form: str) -> None:
    """A table that is made twice stores no plaintext by its second object, with or without a Session."""
    twin = twins(started.engine)[kind]
    statement, parameters = TWIN_FORMS[form](twin)
    with (
        started.engine.begin() as connection,
        pytest.raises(StatementRefusedError, match="Table object") as caught,
    ):
        connection.execute(statement, parameters)

    assert PLAIN not in str(caught.value)
    assert bodies(started.engine) == []


@pytest.mark.parametrize("own_engine", [True, False])
def test_a_table_that_becomes_an_encrypted_one(tmp_path: Path, own_engine: bool) -> None:
    """A light table of a column that was plain when it was written through first, and is encrypted by a later
    revision of the same process, on the same engine or on one of its own."""

    class Fresh(DeclarativeBase):
        pass

    class Owner(KeyOwner, Fresh):
        __tablename__ = "becoming_owners"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Becoming(Fresh):
        __tablename__ = "becoming"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(sa.ForeignKey("becoming_owners.id"))
        body: Mapped[str | None] = mapped_column(EncryptedType(sa.Text, check=False))

    engine = sa.create_engine(f"sqlite:///{tmp_path / 'a.db'}")
    revisions = sa.create_engine(engine.url) if own_engine else engine
    light = sa.table("becoming", sa.column("owner_id"), sa.column("body"))
    with revisions.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE becoming (id INTEGER PRIMARY KEY, owner_id INT, body TEXT)")
    with engine.begin() as connection:
        connection.execute(insert(light).values(owner_id=1, body="plain as yet"))
    with revisions.begin() as connection:
        connection.execute(sa.text("  DROP TABLE becoming"))
        Fresh.metadata.create_all(connection)
    with engine.begin() as connection, pytest.raises(StatementRefusedError, match="Table object"):
        connection.execute(insert(light).values(owner_id=1, body=PLAIN))

    for one in (engine, revisions):
        one.dispose()


def test_what_another_table_object_may_write(lite: Started) -> None:
    """Stored bytes, NULL, the column itself, and all other columns."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(user_id=OWNER, body=PLAIN))
        lite.session.commit()
        (stored,) = bodies(lite.engine)
        twin = sa.table("notes", *(sa.column(one) for one in ("user_id", "title", "body")))
        with lite.engine.begin() as connection:
            connection.execute(insert(twin).values(user_id=OWNER, body=stored, title="a copy"))
            connection.execute(insert(twin).values(user_id=OWNER, body=None))
            connection.execute(update(twin).values(body=twin.c.body, title="t"))
            connection.execute(update(twin).values(user_id=twin.c.user_id, title="t"))
            titles = sa.table("notes", sa.column("title"))
            named = update(titles).values(title=bindparam("body")).where(sa.text("user_id = :user_id"))
            connection.execute(named, {"user_id": OWNER, "body": "a title"})
            connection.execute(update(NOTES).values(user_id=NOTES.c.user_id, title="t"))

        assert read(lite) == [PLAIN, PLAIN, None]


@pytest.mark.parametrize("name", ["excluded", "inserted", "new"])
def test_a_source_with_the_name_of_an_upserts_row(lite: Started, name: str) -> None:
    """Only an alias of the table itself holds what is stored in it: a table, an alias, a subquery or a CTE
    may have any name."""
    twin = twins(lite.engine)["lightweight"]
    rows = select(literal(1).label("user_id"), literal(PLAIN).label("body"))
    sources: list[Any] = [
        sa.table(name, sa.column("user_id"), sa.column("body")),
        sa.table("staging", sa.column("user_id"), sa.column("body")).alias(name),
        rows.subquery(name),
        rows.cte(name),
    ]
    two: Any = union_all(select(twin.c.body), select(literal(PLAIN))).scalar_subquery()
    statements: list[Any] = [update(twin).values(body=two)]
    for source in sources:
        copied = select(source.c.user_id, source.c.body)
        statements += [
            insert(twin).from_select(["user_id", "body"], copied),
            update(twin).values(body=source.c.body),
            update(twin).values(body=select(source.c.body).scalar_subquery()),
        ]
    with lite.engine.begin() as connection:
        for statement in statements:
            with pytest.raises(StatementRefusedError, match="Table object"):
                connection.execute(statement)

    assert bodies(lite.engine) == []


def test_an_upsert_by_another_table_object(lite: Started) -> None:
    """Stored bytes of the row that was to be inserted, and of any other row, are copied."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(id=1, user_id=OWNER, body=PLAIN))
        lite.session.commit()
        (stored,) = bodies(lite.engine)
        twin = sa.table("notes", *(sa.column(one) for one in ("id", "user_id", "body")))
        proposed = sqlite.insert(twin).values(id=1, user_id=OWNER, body=stored)
        other = twin.alias()
        with lite.engine.begin() as connection:
            connection.execute(
                proposed.on_conflict_do_update(index_elements=["id"], set_={"body": proposed.excluded.body})
            )
            connection.execute(update(twin).values(body=other.c.body).where(other.c.id == twin.c.id))

        assert read(lite) == [PLAIN]


def made_of(type_: Any = sa.Text, **body: Any) -> Any:
    """Another object of the table, whose column gets something from SQLAlchemy by itself."""
    return sa.Table(
        "notes",
        sa.MetaData(),
        *(sa.Column("id", sa.Integer, primary_key=True), sa.Column("user_id", sa.Integer)),
        sa.Column("body", type_, **body),
    )


class Other(DeclarativeBase):
    """Models of somebody who knows nothing of the encrypted column."""


class OtherNote(Other):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int]
    body: Mapped[str | None] = mapped_column(default=PLAIN, onupdate=PLAIN)


ADDED: dict[str, Callable[[], Any]] = {
    "default": lambda: insert(made_of(default=PLAIN)).values(user_id=1),
    "called default": lambda: insert(made_of(default=lambda: PLAIN)).values(user_id=1),
    "default of SQL": lambda: insert(made_of(default=sa.func.lower(PLAIN))).values(user_id=1),
    "default under another key": lambda: insert(made_of(default=PLAIN, key="words")).values(user_id=1),
    "default in one of two rows": lambda: insert(made_of(default=PLAIN)).values(
        [{"user_id": 1, "body": None}, {"user_id": 1}]
    ),
    "default beside a select": lambda: insert(made_of(default=PLAIN)).from_select(
        ["user_id"], select(literal(1))
    ),
    "default of a model": lambda: insert(OtherNote).values(user_id=1),
    "onupdate": lambda: update(made_of(onupdate=PLAIN)).values(user_id=1),
    "called onupdate": lambda: update(made_of(onupdate=lambda: PLAIN)).values(user_id=1),
    "onupdate of SQL": lambda: update(made_of(onupdate=sa.func.lower(PLAIN))).values(user_id=1),
    "onupdate of a model": lambda: update(OtherNote).values(user_id=1),
}


@pytest.mark.parametrize("form", ADDED)
@pytest.mark.any_database
def test_what_sqlalchemy_adds(started: Started, form: str) -> None:
    """A `default=` or `onupdate=` of another Table object is looked at as what the statement names, each
    time."""
    for _ in range(2):
        with pytest.raises(StatementRefusedError, match="Table object") as caught:
            started.session.execute(ADDED[form]())
        started.session.rollback()

        assert PLAIN not in str(caught.value)
    assert bodies(started.engine) == []


@pytest.mark.any_database
def test_an_object_of_another_model(started: Started) -> None:
    """A flush adds a `default=` as well."""
    started.session.add(OtherNote(user_id=1))
    with pytest.raises(StatementRefusedError, match="Table object"):
        started.session.flush()
    started.session.rollback()

    assert bodies(started.engine) == []


@pytest.mark.backend
@pytest.mark.parametrize("form", ["default", "onupdate", "default of SQL"])
def test_what_sqlalchemy_adds_in_a_cte(postgres_engine: Engine, form: str) -> None:
    """The same where the statement stands in a CTE."""
    from tests.orm.conftest import _start

    for started in _start(postgres_engine):
        made = ADDED[form]().returning(literal(1)).cte("i")
        with pytest.raises(StatementRefusedError, match="Table object"):
            started.session.execute(select(literal(1)).add_cte(made))


NOTHING_ADDED: dict[str, Callable[[], Any]] = {
    "None for a default": lambda: insert(made_of(sa.LargeBinary, default=PLAIN)).values(user_id=1, body=None),
    "None for a default in each row": lambda: insert(made_of(sa.LargeBinary, default=PLAIN)).values(
        [{"user_id": 1, "body": None}] * 2
    ),
    "a default of NULL": lambda: insert(made_of(sa.LargeBinary, default=null())).values(user_id=1),
    "a select without defaults": lambda: insert(made_of(sa.LargeBinary, default=PLAIN)).from_select(
        ["user_id"], select(literal(1)), include_defaults=False
    ),
    "None for an onupdate": lambda: update(made_of(sa.LargeBinary, onupdate=PLAIN)).values(body=None),
    "an onupdate at an INSERT": lambda: insert(made_of(sa.LargeBinary, onupdate=PLAIN)).values(user_id=1),
    "a default at an UPDATE": lambda: update(made_of(sa.LargeBinary, default=PLAIN)).values(id=1),
    "a selected NULL": lambda: insert(made_of(sa.LargeBinary)).from_select(
        ["user_id", "body"], select(literal(1), null())
    ),
}


@pytest.mark.parametrize("form", NOTHING_ADDED)
@pytest.mark.any_database
def test_what_is_not_added(started: Started, form: str) -> None:
    """A default that is not used, or is NULL, is in nobody's way."""
    started.session.execute(NOTHING_ADDED[form]())
    started.session.commit()

    assert bodies(started.engine) == []


def test_another_model_with_another_encrypted_column(lite: Started) -> None:
    """A table with encrypted columns of its own is another object of the table all the same."""

    class More(DeclarativeBase):
        pass

    class MoreUser(KeyOwner, More):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class MoreNote(More):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(sa.ForeignKey("users.id"))
        title: Mapped[str | None] = mapped_column(EncryptedType(sa.String))
        body: Mapped[str | None]

    with (
        unlock(lite.session, lite.ada),
        pytest.raises(StatementRefusedError, match=r"notes\.body .* Table object"),
    ):
        lite.session.execute(insert(MoreNote).values(user_id=OWNER, body=PLAIN))
    lite.session.rollback()

    assert bodies(lite.engine) == []


@pytest.mark.parametrize("value", [NOTES.c.title, literal(PLAIN)])
def test_an_update_of_two_tables(lite: Started, value: Any) -> None:
    """MariaDB updates two tables at once: the second one's encrypted column is found there, and the column
    that says whose it is."""
    statement = update(User.__table__).where(User.id == NOTES.c.user_id).values({NOTES.c.body: value})
    twin = made_of()
    other = update(User.__table__).where(User.id == twin.c.user_id).values({twin.c.body: value})
    with lite.engine.connect() as connection:
        of_both = update(User.__table__).where(User.id == NOTES.c.user_id, User.id == twin.c.user_id)
        moves = [of_both.values({NOTES.c.user_id: 2}), of_both.values({twin.c.user_id: 2})]
        for one, said in zip((statement, other, *moves), ("another table", "Table object") * 2, strict=True):
            compiled = one.compile(dialect=mysql.dialect())
            with pytest.raises(StatementRefusedError, match=said):
                check_writes(connection, compiled, [mark(one)], {})


@pytest.fixture
def of_one_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has the models of one application: the other tests have tables of these names too, some
    with keys in tables as bare as somebody else's."""
    own: Any = Note.__table__
    monkeypatch.setitem(namesakes._by_name, "notes", WeakSet([own]))


@pytest.mark.usefixtures("of_one_application")
@pytest.mark.parametrize("type_", [sa.Text, sa.LargeBinary])
def test_a_table_of_the_same_name_in_another_database(lite: Started, tmp_path: Path, type_: Any) -> None:
    """It is none of ours: whatever its columns hold passes."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    other = sa.Table(
        "notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("body", type_)
    )
    other.create(engine)
    value = PLAIN if type_ is sa.Text else PLAIN.encode()
    with engine.begin() as connection:
        connection.execute(insert(other).values(body=value))
        connection.execute(insert(sa.table("notes", sa.column("body"))), [{"body": value}])

        assert [value, value] == connection.scalars(select(other.c.body)).all()
    engine.dispose()


@pytest.mark.usefixtures("of_one_application")
def test_a_table_of_the_same_name_whose_keys_are_in_a_database_that_is_not_attached(
    lite: Started, tmp_path: Path
) -> None:
    """Another registry has a table of this name with keys in a schema that SQLite does not know here: that is
    nobody's error."""

    class Base(DeclarativeBase):
        pass

    class Owner(KeyOwner, Base):
        __tablename__ = "vault_owners"
        __table_args__ = ({"schema": "vault"},)
        id: Mapped[int] = mapped_column(primary_key=True)

    class OtherNote(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(sa.ForeignKey("vault.vault_owners.id", ondelete="CASCADE"))
        body: Mapped[str] = mapped_column(EncryptedType(sa.String))

    sa.orm.configure_mappers()
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    other = sa.Table("notes", sa.MetaData(), sa.Column("body", sa.LargeBinary))
    other.create(engine)
    with engine.begin() as connection:
        connection.execute(insert(other).values(body=b"of somebody else"))

        assert connection.scalars(select(other.c.body)).all() == [b"of somebody else"]
    engine.dispose()
    Base.registry.dispose()


@pytest.mark.usefixtures("of_one_application")
def test_a_table_with_the_name_of_the_keys(lite: Started, tmp_path: Path) -> None:
    """Somebody else's table may be called as ours with the keys is: it has other columns."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    metadata = sa.MetaData()
    other = sa.Table("notes", metadata, sa.Column("body", sa.LargeBinary))
    sa.Table("users_key", metadata, sa.Column("id", sa.Integer))
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(other).values(body=PLAIN.encode()))

        assert [PLAIN.encode()] == connection.scalars(select(other.c.body)).all()
    engine.dispose()


@pytest.mark.parametrize("name", ["notes", "Notes"])
def test_a_temporary_table(started: Started, name: str) -> None:
    """It stands before the one with the encrypted column for as long as it is there, and no longer."""
    if name != "notes" and started.engine.dialect.name != "sqlite":
        pytest.skip("another name on PostgreSQL")
    temporary = sa.Table(
        name, sa.MetaData(), sa.Column("body", sa.LargeBinary), prefixes=["TEMPORARY"], quote=False
    )
    write = insert(temporary).values(body=PLAIN.encode())
    schema = "temp" if started.engine.dialect.name == "sqlite" else "pg_temp"
    with started.engine.begin() as connection:
        temporary.create(connection, checkfirst=False)
        connection.execute(write)
        connection.execute(text(f"DROP TABLE {schema}.notes"))
        with pytest.raises(StatementRefusedError, match="Table object"):
            connection.execute(write)

    assert bodies(started.engine) == []


def test_a_table_in_an_attached_file(lite: Started, tmp_path: Path) -> None:
    """SQLite looks for a name without a schema in attached files too, and so does the gate."""
    engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool)
    light = sa.table("notes", sa.column("user_id"), sa.column("body"))
    with engine.connect() as connection:
        connection.exec_driver_sql(f"ATTACH '{tmp_path / 'acme.db'}' AS acme")
        connection.commit()
    NOTES.metadata.create_all(engine.execution_options(schema_translate_map={None: "acme"}))
    with engine.begin() as connection:
        with pytest.raises(StatementRefusedError, match="Table object"):
            connection.execute(insert(light).values(user_id=1, body=PLAIN))

        assert connection.scalars(text("SELECT body FROM acme.notes")).all() == []
    engine.dispose()
