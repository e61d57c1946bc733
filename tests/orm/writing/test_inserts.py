"""Every form of INSERT stores an encrypted column under the key of its row's owner, or is refused before
anything reaches the driver."""

import uuid
from typing import Any

import pytest
from sqlalchemy import bindparam, insert, inspect, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, statements_sent, stored, unlock
from tests.orm.writing.reading_back import BODY, both, opens_for

pytestmark = pytest.mark.both_lines
NOTES: Any = Note.__table__
PAGES: Any = Page.__table__
PLAIN = "p1aintext"


def _bulk_save(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([Note(**row) for row in rows])


def _bulk_save_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_save_objects([Note(**row) for row in rows], return_defaults=True)


def _bulk_mappings(session: Session, rows: list[dict[str, Any]]) -> None:
    session.bulk_insert_mappings(inspect(Note), rows)


def _execute_rows(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note), rows)


def _execute_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).returning(Note), rows).all()
    assert sorted(note.body or "" for note in made) == sorted(row["body"] for row in rows)


def _execute_returning_sorted(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).returning(Note, sort_by_parameter_order=True), rows).all()
    assert [note.body for note in made] == [row["body"] for row in rows]


def _execute_returning_columns(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.execute(insert(Note).returning(Note.user_id, Note.body), rows).all()
    assert sorted(body for _, body in made) == sorted(row["body"] for row in rows)


def _values_single(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(Note).values(**row))


def _values_multiple(session: Session, rows: list[dict[str, Any]]) -> None:
    session.execute(insert(Note).values(rows))


def _values_multiple_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = session.scalars(insert(Note).values(rows).returning(Note)).all()
    assert sorted(note.body or "" for note in made) == sorted(row["body"] for row in rows)


def _values_by_attribute(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.execute(insert(Note).values({getattr(Note, name): value for name, value in row.items()}))


def _core_rows(session: Session, rows: list[dict[str, Any]]) -> None:
    session.connection().execute(NOTES.insert(), rows)


def _core_one_row(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(NOTES.insert(), row)


def _core_values(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(NOTES.insert().values(row))


def _core_values_tuples(session: Session, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        session.connection().execute(
            NOTES.insert().values((None, row["user_id"], None, row["body"], None, None, None))
            if session.get_bind().dialect.name == "sqlite"
            else NOTES.insert().values(row)
        )


def _core_other_names(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = NOTES.insert().values(user_id=bindparam("whose"), body=bindparam("said"))
    session.connection().execute(statement, [{"whose": row["user_id"], "said": row["body"]} for row in rows])


def _core_one_other_name(session: Session, rows: list[dict[str, Any]]) -> None:
    statement = NOTES.insert().values(body=bindparam("said"))
    session.connection().execute(
        statement, [{"user_id": row["user_id"], "said": row["body"]} for row in rows]
    )


def _core_returning(session: Session, rows: list[dict[str, Any]]) -> None:
    made = (
        session.connection()
        .execute(NOTES.insert().returning(NOTES.c.body, NOTES.c.user_id), rows)
        .scalars()
        .all()
    )
    assert sorted(made) == sorted(row["body"] for row in rows)


@pytest.mark.parametrize(
    "write",
    [
        _bulk_save,
        _bulk_save_returning,
        _bulk_mappings,
        _execute_rows,
        _execute_returning,
        _execute_returning_sorted,
        _execute_returning_columns,
        _values_single,
        _values_multiple,
        _values_multiple_returning,
        _values_by_attribute,
        _core_rows,
        _core_one_row,
        _core_values,
        _core_values_tuples,
        _core_other_names,
        _core_one_other_name,
        _core_returning,
    ],
)
def test_inserts_that_name_the_owner(started: Started, write: Any) -> None:
    """Each row is encrypted for the owner its parameters name."""
    a, b = started.ada.id, started.ben.id
    rows = [{"user_id": owner, "body": f"{PLAIN} {n} {owner}"} for n in range(3) for owner in (a, b)]
    with both(started):
        write(started.session, rows)
        started.session.commit()
        ids = started.session.execute(select(Note.id, Note.user_id).order_by(Note.id)).all()

    assert len(ids) == len(rows)
    for owner in (started.ada, started.ben):
        bodies = {opens_for(started, owner, note_id) for note_id, of in ids if of == owner.id}
        assert bodies == {row["body"] for row in rows if row["user_id"] == owner.id}
    for note_id, _ in ids:
        assert PLAIN.encode() not in (stored(started.engine, BODY, note_id) or b"")


def test_row_bound_inserts(started: Started) -> None:
    """Bulk and Core inserts make the client-side key first and bind to it."""
    user_id = started.ada.id
    given = uuid.uuid4()
    with unlock(started.session, started.ada):
        started.session.execute(
            insert(Page), [{"user_id": user_id, "text": "one"}, {"user_id": user_id, "text": "two"}]
        )
        started.session.execute(insert(Page).values(user_id=user_id, text="three"))
        started.session.execute(
            insert(Page).values([{"user_id": user_id, "text": "four"}, {"user_id": user_id, "text": "five"}])
        )
        started.session.connection().execute(PAGES.insert(), {"id": given, "user_id": user_id, "text": "six"})
        started.session.bulk_save_objects([Page(user_id=user_id, text="seven")])
        started.session.commit()
        texts = {page.text for page in started.session.scalars(select(Page))}

    assert texts == {"one", "two", "three", "four", "five", "six", "seven"}
    assert opens_for(started, started.ada, given, Page, "text") == "six"


def test_inserts_without_an_owner(lite: Started) -> None:
    """A row that does not say whose it is is refused, also under `using`: it would be stored without that
    owner."""
    with unlock(lite.session, lite.ada) as unlocked:
        with statements_sent(lite.engine) as sent:
            with pytest.raises(StatementRefusedError, match=r"Name it in the values \(`user_id=`\)"):
                lite.session.execute(insert(Note), [{"body": PLAIN}])
            with unlocked.using(lite.ada), pytest.raises(StatementRefusedError, match="`using` gives no row"):
                lite.session.execute(insert(Note), [{"body": PLAIN}])

        assert sent == []


@pytest.mark.parametrize("several", [False, True], ids=["one row", "several rows"])
def test_a_literal_beside_rows_is_refused(lite: Started, several: bool) -> None:
    """`values(body=...)` with a list of rows cannot be encrypted for each row. SQLAlchemy's error over
    several rows in `values()` would print the list."""
    values: Any = [{"user_id": 1, "body": PLAIN}] * 2 if several else {"body": PLAIN}
    statement = NOTES.insert().values(values).returning(NOTES.c.id)
    with unlock(lite.session, lite.ada):
        with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError) as caught:
            lite.session.connection().execute(statement, [{"user_id": 1, "words": PLAIN}] * 2)

        assert sent == []
        assert PLAIN not in str(caught.value)
