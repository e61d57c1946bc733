"""What writes to an encrypted column goes through the statement hook, in whichever form it comes, or is
refused before it is sent; and statements that have nothing to do with one never notice."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Engine,
    bindparam,
    delete,
    event,
    insert,
    lambda_stmt,
    literal,
    null,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql.expression import ClauseElement, Executable

from sqlalchemy_envelope import EncryptedType, EnvelopeError, KeyOwner, LockedError, StatementRefusedError
from sqlalchemy_envelope.orm.writing import namesakes
from sqlalchemy_envelope.orm.writing.gate import check_writes
from sqlalchemy_envelope.orm.writing.marks import mark
from tests.orm.conftest import Started
from tests.orm.models import Note, User, statements_sent, unlock

pytestmark = pytest.mark.both_lines

PLAIN = "plaintext that must not be stored"
NOTES: Any = Note.__table__


def bodies(engine: Engine) -> list[Any]:
    """What is stored, read past the library."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT body FROM notes WHERE body IS NOT NULL ORDER BY id"))
        return [bytes(one) if not isinstance(one, str) else one for (one,) in rows]


def read(started: Started) -> list[str | None]:
    """What its owner reads."""
    started.session.expire_all()
    return list(started.session.scalars(select(Note.body).order_by(Note.id)))


# Forms that work

OWNER = 1  # ada's


def by_lambda(session: Session) -> None:
    body = PLAIN
    session.execute(lambda_stmt(lambda: insert(Note).values(user_id=OWNER, body=body)))


def by_lambda_on_a_table(session: Session) -> None:
    body = PLAIN
    session.connection().execute(lambda_stmt(lambda: insert(NOTES).values(user_id=OWNER, body=body)))


def by_lambda_with_more(session: Session) -> None:
    body = PLAIN
    statement = lambda_stmt(lambda: insert(Note))
    statement += lambda one: one.values(user_id=OWNER, body=body)
    session.execute(statement)


def by_spoiled_lambda(session: Session) -> None:
    body = PLAIN
    session.execute(lambda_stmt(lambda: insert(Note).values(user_id=OWNER, body=body)).spoil())


def by_lambda_and_parameters(session: Session) -> None:
    session.execute(lambda_stmt(lambda: insert(Note)), {"user_id": OWNER, "body": PLAIN})


def by_from_statement(session: Session) -> None:
    made = insert(Note).values(user_id=OWNER, body=PLAIN).returning(Note)
    assert [note.body for note in session.scalars(select(Note).from_statement(made))] == [PLAIN]


def by_from_statement_of_a_literal(session: Session) -> None:
    made = insert(Note).values(user_id=OWNER, body=literal(PLAIN, sa.String)).returning(Note)
    assert [note.body for note in session.scalars(select(Note).from_statement(made))] == [PLAIN]


def by_from_statement_of_parameters(session: Session) -> None:
    made = insert(Note).values(user_id=bindparam("owner"), body=bindparam("words")).returning(Note)
    found = session.scalars(select(Note).from_statement(made), {"owner": OWNER, "words": PLAIN})
    assert [note.body for note in found] == [PLAIN]


def by_tuple(session: Session) -> None:
    cells = {"id": 50, "user_id": OWNER, "body": PLAIN}
    session.execute(insert(NOTES).values(tuple(cells.get(column.key) for column in NOTES.c)))


def by_tuples(session: Session) -> None:
    cells = {"id": 50, "user_id": OWNER, "body": PLAIN}
    session.execute(insert(Note).values([tuple(cells.get(column.key) for column in NOTES.c)]))


def by_multi_values_with_null(session: Session) -> None:
    session.execute(
        insert(Note).values([{"user_id": OWNER, "body": PLAIN}, {"user_id": OWNER, "body": null()}])
    )


def by_update_of_an_alias(session: Session) -> None:
    session.execute(insert(Note).values(user_id=OWNER))
    session.execute(
        update(NOTES.alias("n")).values(body=PLAIN, user_id=OWNER, size=None, tags=None, extra=None)
    )


WORK = [
    *(by_lambda, by_lambda_on_a_table, by_lambda_with_more, by_spoiled_lambda, by_lambda_and_parameters),
    *(by_from_statement, by_from_statement_of_a_literal, by_from_statement_of_parameters),
    *(by_tuple, by_tuples, by_multi_values_with_null, by_update_of_an_alias),
]


@pytest.mark.parametrize("form", WORK)
def test_works(started: Started, form: Callable[[Session], None]) -> None:
    """The value is stored encrypted, under the key of the owner that the statement names."""
    started.session.connection()
    with unlock(started.session, started.ada):
        form(started.session)
        started.session.commit()

        assert PLAIN in read(started)
    assert all(type(one) is bytes and one[0] == 1 for one in bodies(started.engine))


@pytest.mark.parametrize("form", WORK)
def test_locked(lite: Started, form: Callable[[Session], None]) -> None:
    """With nobody unlocked nothing is stored, and no error shows the value."""
    with pytest.raises(EnvelopeError) as caught:
        form(lite.session)
    lite.session.rollback()

    assert PLAIN not in str(caught.value)
    assert bodies(lite.engine) == []


CTES = {
    "added": lambda made: select(literal(1)).add_cte(made.cte("i")),
    "selected from": lambda made: select(made.returning(NOTES.c.id).cte("i")),
    "in a delete": lambda made: delete(User).where(User.id == -1).add_cte(made.cte("i")),
}


@pytest.mark.backend
@pytest.mark.parametrize("around", CTES)
@pytest.mark.parametrize("value", [PLAIN, literal(PLAIN, sa.String), bindparam("words")])
def test_in_a_cte(postgres_engine: Engine, around: str, value: Any) -> None:
    """PostgreSQL takes an INSERT inside of a statement; its values are encrypted there."""
    from tests.orm.conftest import _start

    for started in _start(postgres_engine):
        with unlock(started.session, started.ada):
            made = CTES[around](insert(NOTES).values(user_id=OWNER, body=value))
            started.session.execute(made, {"words": PLAIN} if isinstance(value, sa.BindParameter) else {})
            started.session.commit()

            assert read(started) == [PLAIN]


# A lambda's variables


def test_a_variable_that_changes(lite: Started) -> None:
    """A lambda is analysed once, and each execution stores what its variables hold then, for the owner that
    they name then."""
    ada, ben = lite.ada.id, lite.ben.id

    def write(owner: int, body: Any) -> None:
        lite.session.execute(lambda_stmt(lambda: insert(Note).values(user_id=owner, body=body)))

    with unlock(lite.session, lite.ada):
        for body in ("first", None, "second", "third"):
            write(ada, body)
        with pytest.raises(LockedError):
            write(ben, "for somebody else")

        assert read(lite) == ["first", None, "second", "third"]


def test_a_variable_of_another_type(lite: Started) -> None:
    """What the column cannot hold is refused, though the lambda was analysed with what it can."""

    def write(body: Any) -> None:
        lite.session.execute(lambda_stmt(lambda: insert(Note).values(user_id=OWNER, body=body)))

    with unlock(lite.session, lite.ada):
        write("first")
        for wrong in (b"bytes", 7, PLAIN.encode()):
            with pytest.raises(EnvelopeError) as caught:
                write(wrong)
            assert PLAIN not in str(caught.value)

        assert read(lite) == ["first"]


# What is compiled decides


class explain(Executable, ClauseElement):  # noqa: N801 - SQLAlchemy's recipe
    """A construct of somebody else's, which shows nothing of the statement inside."""

    inherit_cache = False
    _inline = True

    def __init__(self, statement: Any) -> None:
        self.statement = statement


@compiles(explain)
def _compile_explain(element: Any, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.statement, **kw))


@pytest.mark.parametrize("times", [1, 2])
def test_a_construct_that_nobody_knows(lite: Started, times: int) -> None:
    """A statement in it is found by what was compiled, each time."""
    made = update(NOTES).values(user_id=OWNER, body=literal(PLAIN, sa.String))
    with unlock(lite.session, lite.ada), statements_sent(lite.engine) as sent:
        lite.session.connection()
        for _ in range(times):
            with pytest.raises(StatementRefusedError) as caught:
                lite.session.execute(explain(made))

    assert PLAIN not in str(caught.value)
    assert [one for one in sent if one.startswith("UPDATE notes")] == []


def test_a_marked_form_lets_no_unmarked_one_pass(lite: Started) -> None:
    """The compiled form of a statement that was encrypted is of no use to the same statement without it: the
    mark is part of the cache key."""
    plain = insert(NOTES).values(user_id=OWNER, body=literal(PLAIN, sa.String))
    with unlock(lite.session, lite.ada):
        lite.session.execute(plain)
        lite.session.commit()
    before = bodies(lite.engine)

    def unhook(*arguments: Any) -> tuple[Any, Any, Any]:
        return plain, arguments[2], arguments[3]

    other = sa.create_engine(lite.engine.url)
    other._compiled_cache = lite.engine._compiled_cache  # type: ignore[attr-defined]
    event.listen(other, "before_execute", unhook, retval=True)  # after the library's own
    with (
        unlock(lite.session, lite.ada),
        other.begin() as connection,
        pytest.raises(StatementRefusedError, match="cannot be encrypted"),
    ):
        connection.execute(plain)
    other.dispose()

    assert before == bodies(lite.engine)


def test_a_parameter_of_another_type_in_a_marked_statement(lite: Started) -> None:
    """The mark alone is not believed: each value has to be bound by the column's type."""
    forged = mark(insert(NOTES).values(user_id=OWNER, body=literal(PLAIN, sa.String)))

    def forge(*arguments: Any) -> tuple[Any, Any, Any]:
        return forged, arguments[2], arguments[3]

    other = sa.create_engine(lite.engine.url)
    event.listen(other, "before_execute", forge, retval=True)
    with other.begin() as connection, pytest.raises(StatementRefusedError) as caught:
        connection.execute(select(literal(1)))
    other.dispose()

    assert PLAIN not in str(caught.value)
    assert bodies(lite.engine) == []


# Other Table objects


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


# INSERT .. FROM SELECT


@pytest.fixture
def copied(lite: Started) -> Started:
    """A note of Ada's and one of Ben's."""
    for owner in (lite.ada, lite.ben):
        with unlock(lite.session, owner):
            lite.session.add(Note(user_id=owner.id, body=f"{PLAIN} {owner.id}"))
            lite.session.commit()
    return lite


ONE, OTHER = NOTES.alias("one"), NOTES.alias("other")
SAME = select(NOTES.c.user_id, NOTES.c.body)
TYPED_TEXT = text(f"SELECT 1 AS user_id, '{PLAIN}' AS body").columns(NOTES.c.user_id, NOTES.c.body)
TWO_ROWS = select(ONE.c.user_id, OTHER.c.body).where(ONE.c.id != OTHER.c.id)
COPIES = {
    "a table": lambda: SAME,
    "an alias": lambda: select(ONE.c.user_id, ONE.c.body),
    "a subquery": lambda: select(SAME.subquery()),
    "a CTE of a subquery": lambda: select(select(SAME.subquery()).cte()),
    "a join": lambda: select(ONE.c.user_id, ONE.c.body).join_from(ONE, User, User.id == ONE.c.user_id),
    "a UNION ALL": lambda: union_all(SAME, SAME),
    "a UNION ALL in a subquery": lambda: select(
        union_all(SAME, select(ONE.c.user_id, ONE.c.body)).subquery()
    ),
    "entities": lambda: select(Note.user_id, Note.body),
}
NO_COPIES: dict[str, Callable[[], Any]] = {
    "a NULL that may be another value": lambda: select(NOTES.c.user_id, literal(None)),
    "text": lambda: TYPED_TEXT,
    "text in a subquery": lambda: select(TYPED_TEXT.subquery()),
    "text in a CTE": lambda: select(TYPED_TEXT.cte()),
    "text in a UNION ALL": lambda: union_all(SAME, TYPED_TEXT),
    "two aliases": lambda: TWO_ROWS,
    "two aliases in a subquery": lambda: select(TWO_ROWS.subquery()),
    "two copies of a subquery": lambda: (
        lambda a, b: select(a.c.user_id, b.c.body).where(a.c.user_id != b.c.user_id)
    )(SAME.subquery("a"), SAME.subquery("b")),
    "a CTE beside its alias": lambda: (lambda a: select(a.c.user_id, a.alias("b").c.body))(SAME.cte("a")),
    "an owner by itself": lambda: select(literal(1), NOTES.c.body),
    "an owner of a UNION ALL": lambda: select(union_all(SAME, select(literal(1), NOTES.c.body)).subquery()),
    "a literal in a UNION ALL": lambda: union_all(SAME, select(literal(1), literal(PLAIN))),
    "type_coerce": lambda: select(NOTES.c.user_id, sa.type_coerce(NOTES.c.title, NOTES.c.body.type)),
    "a UNION": lambda: sa.union(SAME, SAME),
}


@pytest.mark.parametrize("source", COPIES)
def test_copied(copied: Started, source: str) -> None:
    """Ciphertext is copied with its owner, and its owner reads it."""
    with unlock(copied.session, copied.ada):
        statement = insert(Note).from_select(["user_id", "body"], COPIES[source]())
        copied.session.execute(statement)
        mine = copied.session.scalars(select(Note.body).where(Note.user_id == copied.ada.id)).all()

        assert {f"{PLAIN} {copied.ada.id}"} == set(mine)
        assert len(mine) > 1


@pytest.mark.parametrize("source", NO_COPIES)
def test_not_copied(copied: Started, source: str) -> None:
    """What does not come with its owner, from one and the same row of a table, is refused."""
    before = bodies(copied.engine)
    with unlock(copied.session, copied.ada), pytest.raises(StatementRefusedError) as caught:
        copied.session.execute(insert(Note).from_select(["user_id", "body"], NO_COPIES[source]()))
    copied.session.rollback()

    assert PLAIN not in str(caught.value)
    assert before == bodies(copied.engine)


@pytest.mark.parametrize("nothing", [null(), null().label("body"), sa.cast(null(), sa.LargeBinary)])
def test_null_is_copied(copied: Started, nothing: Any) -> None:
    """A NULL belongs to every owner."""
    before = bodies(copied.engine)
    copied.session.execute(insert(Note).from_select(["user_id", "body"], select(NOTES.c.user_id, nothing)))
    copied.session.commit()

    assert before == bodies(copied.engine)
    assert copied.session.scalar(select(sa.func.count(Note.id))) == 4


@pytest.mark.skipif(not hasattr(sa.schema, "CreateTableAs"), reason="SQLAlchemy 2.1 has it")
@pytest.mark.parametrize(
    "source",
    [
        lambda: select(NOTES.c.body),
        lambda: select(Note.id, Note.body.label("words")),
        lambda: union_all(select(NOTES.c.title), select(sa.type_coerce(NOTES.c.body, sa.String))),
        lambda: select(SAME.subquery()),
    ],
)
def test_no_table_is_made_of_ciphertext(lite: Started, source: Callable[[], Any]) -> None:
    """CREATE TABLE AS is refused as INSERT .. FROM SELECT into a plain column is."""
    with pytest.raises(StatementRefusedError, match=r"into copies\.\w+, which is not encrypted"):
        lite.session.execute(sa.schema.CreateTableAs(source(), "copies"))
    lite.session.execute(sa.schema.CreateTableAs(select(NOTES.c.id, NOTES.c.title), "copies"))
    lite.session.execute(sa.schema.CreateView(select(NOTES.c.id, NOTES.c.body), "seen"))

    assert [one["name"] for one in sa.inspect(lite.session.connection()).get_columns("copies")] == [
        "id",
        "title",
    ]


PLAIN_TABLE = sa.Table("plain_notes", sa.MetaData(), sa.Column("data", sa.LargeBinary))
ALONE = select(NOTES.c.body).limit(1)
JOINED = PLAIN_TABLE.c.data == sa.cast(NOTES.c.title, sa.LargeBinary)
INTO_THE_CLEAR = {
    "from select": lambda: insert(PLAIN_TABLE).from_select(["data"], select(NOTES.c.body)),
    "from select of a title": lambda: insert(Note).from_select(
        ["user_id", "title"], select(NOTES.c.user_id, NOTES.c.body)
    ),
    "from a subquery": lambda: insert(PLAIN_TABLE).from_select(["data"], select(ALONE.subquery())),
    "by type_coerce": lambda: insert(PLAIN_TABLE).from_select(
        ["data"], select(sa.type_coerce(NOTES.c.body, sa.LargeBinary))
    ),
    "from a UNION ALL": lambda: insert(PLAIN_TABLE).from_select(
        ["data"], union_all(select(literal(b"x")), select(NOTES.c.body))
    ),
    "by value": lambda: insert(PLAIN_TABLE).values(data=ALONE.scalar_subquery()),
    "by multi-values": lambda: insert(PLAIN_TABLE).values([{"data": ALONE.scalar_subquery()}]),
    "by update": lambda: update(PLAIN_TABLE).where(JOINED).values(data=NOTES.c.body),
    "by update of type_coerce": lambda: (
        update(PLAIN_TABLE).where(JOINED).values(data=sa.type_coerce(NOTES.c.body, sa.LargeBinary))
    ),
    "by update of a subquery": lambda: update(PLAIN_TABLE).values(data=ALONE.scalar_subquery()),
}


@pytest.mark.parametrize("form", INTO_THE_CLEAR)
def test_ciphertext_stays_in_encrypted_columns(lite: Started, form: str) -> None:
    """A column that is not encrypted gets no ciphertext, by whatever type it goes."""
    PLAIN_TABLE.create(lite.engine)
    with pytest.raises(StatementRefusedError, match=r"plain_notes\.data|notes\.title|'data'"):
        lite.session.execute(INTO_THE_CLEAR[form]())


# UPDATE of one column of two


def test_update_of_one_column(lite: Started) -> None:
    """The error names the column that is written, and first the cure that works."""
    with unlock(lite.session, lite.ada), pytest.raises(StatementRefusedError) as caught:
        lite.session.execute(update(Note).where(Note.user_id == OWNER).values(size=4))

    said = str(caught.value)
    assert said.startswith("A statement writes notes.size and does not name")
    assert said.index("using(owner)") < said.index("load the objects")
    assert "in the values" not in said


PINNED = {
    "where": lambda: (update(Note).where(Note.user_id == OWNER).values(size=4, user_id=OWNER), {}),
    "the other way round": lambda: (
        update(NOTES).where(literal(OWNER) == NOTES.c.user_id).values(size=4, user_id=OWNER),
        {},
    ),
    "and": lambda: (
        update(Note)
        .where(sa.and_(Note.id > 0, sa.and_(Note.user_id == OWNER, Note.id < 9)))
        .values(size=4, user_id=OWNER),
        {},
    ),
    "a parameter": lambda: (
        update(NOTES).where(NOTES.c.user_id == bindparam("mine")).values(size=4, user_id=bindparam("mine")),
        {"mine": OWNER},
    ),
    "a lambda": lambda: (
        lambda_stmt(lambda: update(Note).where(Note.user_id == OWNER).values(size=4, user_id=OWNER)),
        {},
    ),
}


@pytest.mark.parametrize("form", PINNED)
def test_an_update_that_stays_with_its_owner(lite: Started, form: str) -> None:
    """`WHERE user_id = 1` with `user_id=1` among the values moves nothing."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(user_id=OWNER, body=PLAIN))
        lite.session.commit()
        statement, parameters = PINNED[form]()
        lite.session.execute(statement, parameters, execution_options={"synchronize_session": False})
        lite.session.commit()

        assert list(lite.session.execute(select(Note.body, Note.size))) == [(PLAIN, 4)]


@pytest.mark.parametrize(
    "condition",
    [
        lambda: Note.user_id == 2,
        lambda: sa.or_(Note.user_id == OWNER, Note.id > 0),
        lambda: Note.user_id != OWNER,
        lambda: ~(Note.user_id == OWNER),
        lambda: Note.user_id.in_([OWNER]),
        lambda: ONE.c.user_id == OWNER,
    ],
)
def test_an_update_that_may_move(lite: Started, condition: Callable[[], Any]) -> None:
    """Whatever does not say that all rows are this owner's is a move, and refused."""
    with unlock(lite.session, lite.ada), pytest.raises(StatementRefusedError, match="moves rows"):
        lite.session.execute(
            update(Note).where(condition()).values(size=4, user_id=OWNER),
            execution_options={"synchronize_session": False},
        )


def test_bulk_update_of_one_column(lite: Started) -> None:
    """By primary key as well: the column that is written, and `using` first."""
    with unlock(lite.session, lite.ada) as unlocked:
        note = Note(user_id=OWNER, body=PLAIN, size=1)
        lite.session.add(note)
        lite.session.commit()
        with pytest.raises(StatementRefusedError, match=r"writes notes\.size .* say whose"):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4}])
        with pytest.raises(StatementRefusedError, match=r"leave user_id out of the values"):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4, "user_id": OWNER}])
        with unlocked.using(lite.ada):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4}])
        lite.session.commit()

        assert list(lite.session.execute(select(Note.body, Note.size))) == [(PLAIN, 4)]


# Statements with nothing encrypted in them

TAGS = sa.Table(
    "tags", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String)
)
NAMES = union_all(select(TAGS.c.name), select(literal("untagged"))).subquery()
INNOCENT = {
    "distinct over a union": lambda: select(NAMES).distinct(),
    "union of a union": lambda: sa.union(select(NAMES), select(null())),
    "except": lambda: sa.except_(select(TAGS.c.name), select(sa.func.lower("A"))),
    "order by a union": lambda: select(NAMES).order_by(NAMES.c.name),
    "distinct of text": lambda: select(text("name")).select_from(TAGS).distinct(),
    "lambda": lambda: lambda_stmt(lambda: select(TAGS.c.name)),
    "insert from select": lambda: insert(TAGS).from_select(["name"], select(NAMES)),
    "multi-values": lambda: insert(TAGS).values([{"name": sa.func.lower("A")}, {"name": "b"}]),
    "a function without arguments": lambda: select(sa.func.current_timestamp()),
    "update": lambda: update(TAGS).values(name=select(NAMES.c.name).limit(1).scalar_subquery()),
}


@pytest.mark.parametrize("form", INNOCENT)
def test_innocent(lite: Started, form: str) -> None:
    """What has no encrypted column in it never notices this library."""
    TAGS.create(lite.engine)
    lite.session.execute(INNOCENT[form]())


@pytest.mark.backend
def test_a_sequence(postgres_engine: Engine) -> None:
    """The next value of a sequence, alone and as a value beside an encrypted one."""
    from tests.orm.conftest import _start

    for started in _start(postgres_engine):
        sequence = sa.Sequence("numbers")
        with started.engine.begin() as connection:
            connection.execute(sa.schema.CreateSequence(sequence))
            assert connection.scalar(select(sequence.next_value())) == 1
            assert connection.scalar(sequence) == 2
        with unlock(started.session, started.ada):
            made = insert(NOTES).values(id=sequence.next_value(), user_id=OWNER, body=PLAIN)
            started.session.execute(made)

            assert list(started.session.execute(select(Note.id, Note.body))) == [(3, PLAIN)]


CONCRETE = """
import sys
from sqlalchemy import ForeignKey, Text, create_engine, select
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, declared_attr, mapped_column
from sqlalchemy_envelope import EncryptedType, KeyOwner
class Base(DeclarativeBase): ...
class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
class Paper(AbstractConcreteBase, Base):
    id: Mapped[int] = mapped_column(primary_key=True)
    @declared_attr
    def user_id(cls) -> Mapped[int]: return mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
class Letter(Paper):
    __tablename__ = "letters"
    __mapper_args__ = {"polymorphic_identity": "letter", "concrete": True}
class Memo(Paper):
    __tablename__ = "memos"
    __mapper_args__ = {"polymorphic_identity": "memo", "concrete": True}
    text: Mapped[str] = mapped_column(EncryptedType(Text, owner="user_id"))
configure_mappers()
engine = create_engine("sqlite://")
Base.metadata.create_all(engine)
with Session(engine) as session:
    assert session.scalars(select(Paper)).all() == []
"""


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(one, marks=pytest.mark.thorough) for one in (2, 3))])
def test_a_column_that_one_concrete_subclass_alone_has(seed: int) -> None:
    """The application starts, and asks for all of them, in every process: whatever order a set has there."""
    done = subprocess.run(
        [sys.executable, "-c", CONCRETE], env={**os.environ, "PYTHONHASHSEED": str(seed)}, check=False
    )

    assert done.returncode == 0
