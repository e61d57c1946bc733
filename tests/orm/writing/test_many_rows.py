"""Many rows at once, in parameters of every form, are written under the keys of their owners."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, String, bindparam, insert, select, update
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqlalchemy_envelope import LockedError, StatementRefusedError, ValueEncodingError
from tests.orm.conftest import Started
from tests.orm.models import Base, Note, Page, User, new_user, statements_sent, unlock
from tests.orm.writing.reading_back import add_note, both, opens_for

pytestmark = pytest.mark.both_lines
NOTES: Any = Note.__table__
PLAIN = "p1aintext"


@pytest.mark.any_database
def test_an_update_in_order(started: Started) -> None:
    """`ordered_values()` is encrypted, and checked for moves, like `values()`."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = add_note(started)
        where = update(Note).where(Note.id == note_id)
        plain = {"synchronize_session": False}
        with unlocked.using(started.ada):
            started.session.execute(
                where.ordered_values((Note.title, "t"), (Note.body, PLAIN)), execution_options=plain
            )
        started.session.commit()
        with pytest.raises(StatementRefusedError):
            started.session.execute(where.ordered_values((Note.user_id, 2)), execution_options=plain)

    assert opens_for(started, started.ada, note_id) == PLAIN


@pytest.mark.parametrize("parameter", [bindparam("said", "default"), bindparam("said", type_=String)])
def test_a_parameter_of_another_type(lite: Started, parameter: Any) -> None:
    """A `bindparam` with a type or default of its own would be bound past the check for plaintext: it is
    refused."""
    with unlock(lite.session, lite.ada) as unlocked, unlocked.using(lite.ada):
        connection = lite.session.connection()
        for statement in (
            NOTES.insert().values(user_id=1, body=parameter),
            NOTES.update().values(body=parameter),
        ):
            for given in ({"said": PLAIN}, {}):
                with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError):
                    connection.execute(statement, given)

                assert sent == []


def test_literals_and_parameters(lite: Started) -> None:
    """`literal()` of any type is encrypted; a named parameter among several rows of `values()` is refused."""
    with unlock(lite.session, lite.ada):
        connection = lite.session.connection()
        connection.execute(NOTES.insert().values(user_id=1, body=sa.literal(PLAIN, String)))
        rows = [{"user_id": 1, "body": bindparam("said")}, {"user_id": 1, "body": PLAIN}]
        with pytest.raises(StatementRefusedError):
            connection.execute(NOTES.insert().values(rows), {"said": PLAIN})
        lite.session.commit()
        (note_id,) = lite.session.scalars(select(Note.id)).all()

    assert opens_for(lite, lite.ada, note_id) == PLAIN


def test_many_rows_of_many_owners_at_once(lite: Started) -> None:
    """A thousand rows of two owners in one `insertmanyvalues`, each under its own key."""
    with both(lite):
        rows = [{"user_id": 1 + n % 2, "body": f"{n}"} for n in range(1000)]
        made = lite.session.scalars(insert(Note).returning(Note), rows).all()

        assert {(note.user_id, note.body) for note in made} == {(row["user_id"], row["body"]) for row in rows}


def test_many_rows_of_each_kind_at_once(lite: Started) -> None:
    """Rows of two owners, in runs and in turn, with and without a value, more than are encrypted at a time:
    each value opens in its own row, for its owner, whether it was inserted or updated."""
    with both(lite):
        ids = [uuid.UUID(int=n) for n in range(300)]
        rows = [
            {"id": one, "user_id": 1 + (n // 100 if n < 200 else n) % 2, "text": f"{n}" if n % 7 else None}
            for n, one in enumerate(ids)
        ]
        lite.session.bulk_insert_mappings(Page.__mapper__, rows)
        inserted = {page.id: page.text for page in lite.session.scalars(select(Page))}
        lite.session.expire_all()
        changes = [{**row, "text": f"new {row['text']}"} for row in rows]
        lite.session.execute(update(Page), changes)

        assert {row["id"]: row["text"] for row in rows} == inserted
        assert {row["id"]: row["text"] for row in changes} == {
            page.id: page.text for page in lite.session.scalars(select(Page))
        }


def test_the_first_of_many_rows_that_cannot_be_written(lite: Started) -> None:
    """One value among many that its column cannot hold refuses them all and names the column."""
    rows: list[dict[str, Any]] = [{"user_id": 1 + n % 2, "body": f"{n}", "size": n} for n in range(300)]
    rows[270]["size"] = "many"
    with both(lite), pytest.raises(ValueEncodingError, match=r"notes\.size holds 'int' values; this str "):
        lite.session.execute(insert(Note), rows)

    assert not lite.session.scalars(select(Note)).all()


@pytest.mark.any_database
def test_core_without_a_session(started: Started) -> None:
    """A connection of the engine's own writes and reads under the keys of the context."""
    with unlock(started.session, started.ada) as unlocked, started.engine.connect() as connection:
        started.session.commit()
        connection.execute(NOTES.insert(), [{"user_id": 1, "body": PLAIN}, {"user_id": 1, "body": "more"}])
        with unlocked.using(started.session.get_one(User, 1)):
            connection.execute(NOTES.update().where(NOTES.c.body.is_(None)).values(body="never"))
        found = connection.execute(select(NOTES.c.body).order_by(NOTES.c.id)).scalars().all()

        assert found == [PLAIN, "more"]
        with pytest.raises(LockedError):
            connection.execute(NOTES.insert(), [{"user_id": 2, "body": PLAIN}])


@pytest.mark.any_database
def test_a_session_on_a_connection(postgres_engine: Engine) -> None:
    """A session that joins a transaction from outside finds its keys, and its savepoints work."""
    Base.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        new_user(session)
    with postgres_engine.connect() as connection, connection.begin() as outer:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            ada = session.get_one(User, 1)
            with unlock(session, ada):
                session.add(Note(user_id=1, body=PLAIN))
                session.commit()
                assert session.scalars(select(Note)).one().body == PLAIN
                session.add(Note(user_id=1, body="lost"))
                session.flush()
                session.rollback()
                assert session.scalars(select(Note)).one().body == PLAIN
        outer.rollback()
    with Session(postgres_engine) as session:
        assert session.scalars(select(Note)).all() == []


def test_scoped_sessions(lite: Started) -> None:
    """A `scoped_session` is taken for the session behind it."""
    scoped = scoped_session(sessionmaker(lite.engine))
    with unlock(scoped, scoped.get_one(User, 1)):
        scoped.add(Note(user_id=1, body=PLAIN))
        scoped.commit()
        assert scoped.scalars(select(Note)).one().body == PLAIN
    with pytest.raises(LockedError):
        _ = scoped.scalars(select(Note)).one().body
    scoped.remove()


def test_legacy_updates(lite: Started) -> None:
    """`Query.update()` follows the rules of `update()`."""
    with unlock(lite.session, lite.ada) as unlocked:
        note_id = add_note(lite)
        query = lite.session.query(Note).filter(Note.id == note_id)
        for values in ({"body": PLAIN}, {Note.body: PLAIN}, {"user_id": 2}, {Note.body: Note.title}):
            with pytest.raises(StatementRefusedError):
                query.update(values)  # type: ignore[arg-type]
        with unlocked.using(lite.ada):
            query.update({Note.body: PLAIN})
        lite.session.commit()

    assert opens_for(lite, lite.ada, note_id) == PLAIN
