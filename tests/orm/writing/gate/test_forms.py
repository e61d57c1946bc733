"""What writes to an encrypted column goes through the statement hook, in whichever form it comes, or is
refused before it is sent; and statements that have nothing to do with one never notice."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, bindparam, delete, event, insert, lambda_stmt, literal, null, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import ClauseElement, Executable

from sqlalchemy_envelope import EnvelopeError, LockedError, StatementRefusedError
from sqlalchemy_envelope.orm.writing.marks import mark
from tests.orm.conftest import Started
from tests.orm.models import Note, User, statements_sent, unlock
from tests.orm.writing.gate.notes import bodies, read

pytestmark = pytest.mark.both_lines
PLAIN = "plaintext that must not be stored"
NOTES: Any = Note.__table__


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
