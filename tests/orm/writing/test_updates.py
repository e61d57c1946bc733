"""Every form of UPDATE and upsert stores an encrypted column under the key of its row's owner, or is refused
before anything reaches the driver."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, bindparam, delete, insert, inspect, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from sqlalchemy_envelope import EnvelopeError, LockedError, StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, statements_sent, stored, unlock
from tests.orm.writing.reading_back import BODY, add_note, both, opens_for

pytestmark = pytest.mark.both_lines
NOTES: Any = Note.__table__
PLAIN = "p1aintext"


def everything(excluded: Any) -> dict[str, Any]:
    """An upsert's SET of the owner with every encrypted column: one left out would stay under the old
    owner's key."""
    return {name: excluded[name] for name in ("user_id", "body", "size", "tags", "extra")}


def upsert_for(engine: Engine) -> Any:
    """The dialect's own insert()."""
    return sqlite.insert if engine.dialect.name == "sqlite" else postgresql.insert


# Updates


def test_bulk_updates_by_primary_key(started: Started) -> None:
    """Under `using(owner)` each form of bulk update is encrypted for that owner; without it, it is
    refused."""
    with unlock(started.session, started.ada) as unlocked:
        ids = [add_note(started) for _ in range(3)]
        session = started.session
        rows = [{"id": note_id, "body": f"{PLAIN} {note_id}"} for note_id in ids]
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError, match="using"):
            session.execute(update(Note), rows)
        assert sent == []
        with unlocked.using(started.ada):
            session.execute(update(Note), rows)
        session.commit()
        assert [opens_for(started, started.ada, n) for n in ids] == [row["body"] for row in rows]

        with unlocked.using(started.ada):
            session.bulk_update_mappings(inspect(Note), [{"id": ids[0], "body": "mapping"}])
            note = session.get_one(Note, ids[1])
            session.expunge(note)
            note.body = "object"
            session.bulk_save_objects([note])
        session.commit()

    assert opens_for(started, started.ada, ids[0]) == "mapping"
    assert opens_for(started, started.ada, ids[1]) == "object"


@pytest.mark.parametrize("synchronize", ["auto", "evaluate", "fetch", False])
def test_update_where(started: Started, synchronize: Any) -> None:
    """`update().where().values()` needs `using`, and objects in the session show plaintext after it, never
    ciphertext."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = add_note(started)
        session = started.session
        note = session.get_one(Note, note_id)
        assert note.body == "before"
        statement = update(Note).where(Note.id == note_id).values(body=PLAIN, title="t")
        options = {"synchronize_session": synchronize}
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError, match="using"):
            session.execute(
                statement.where(Note.title.is_(None)), execution_options={"synchronize_session": False}
            )
        assert sent == []
        with unlocked.using(started.ada):
            session.execute(statement, execution_options=options)
        if synchronize:
            assert note.body == PLAIN
            assert not session.is_modified(note)
        session.commit()

        assert note.body == PLAIN

    assert opens_for(started, started.ada, note_id) == PLAIN


def test_update_where_names_the_owner(started: Started) -> None:
    """An UPDATE that moves rows and rewrites every value of theirs is encrypted for the new owner."""
    with both(started):
        note_id = add_note(started)
        values = {"user_id": started.ben.id, "body": PLAIN, "size": None, "tags": None, "extra": None}
        started.session.execute(update(Note).where(Note.id == note_id).values(**values))
        started.session.commit()

    assert opens_for(started, started.ben, note_id) == PLAIN


def test_update_returning_gives_plaintext(started: Started) -> None:
    """`update().returning(Note)` gives objects whose values are open."""
    with unlock(started.session, started.ada) as unlocked:
        note_id = add_note(started)
        with unlocked.using(started.ada):
            note = started.session.scalars(
                update(Note).where(Note.id == note_id).values(body=PLAIN).returning(Note)
            ).one()

        assert note.body == PLAIN


def test_core_updates(lite: Started) -> None:
    """Core updates under `using`, with values, with parameters, and with parameters of another name."""
    with unlock(lite.session, lite.ada) as unlocked:
        ids = [add_note(lite) for _ in range(4)]
        connection = lite.session.connection()
        where = NOTES.update().where(NOTES.c.id == bindparam("which"))
        with unlocked.using(lite.ada):
            connection.execute(NOTES.update().where(NOTES.c.id == ids[0]).values(body="one"))
            connection.execute(where.values(body=bindparam("said")), {"which": ids[1], "said": "two"})
            connection.execute(
                where.values(body=bindparam("said")), [{"which": i, "said": "more"} for i in ids[2:]]
            )
        lite.session.commit()

    assert [opens_for(lite, lite.ada, n) for n in ids] == ["one", "two", "more", "more"]


def test_setting_null_needs_no_key(lite: Started) -> None:
    """NULL is not encrypted, so no owner has to be named or unlocked for it."""
    with unlock(lite.session, lite.ada):
        ids = [add_note(lite) for _ in range(3)]
    session = lite.session
    session.execute(update(Note).where(Note.id == ids[0]).values(body=None))
    session.execute(update(Note).where(Note.id == ids[1]).values(body=sa.null()))
    session.connection().execute(NOTES.update().where(NOTES.c.id == ids[2]), {"body": None})
    session.commit()

    assert [stored(lite.engine, BODY, note_id) for note_id in ids] == [None] * 3


@pytest.mark.parametrize(
    "statement",
    [
        update(Note).values(body=Note.title),
        update(Note).values(body=Note.body),
        update(Note).values(body=sa.func.upper("x")),
        update(Note).values(body=sa.literal("x") + "y"),
        update(Note).values(body=text("'x'")),
        update(Note).values(body=sa.case((Note.id == 1, "a"), else_="b")),
        update(Note).values(body=select(Note.title).limit(1).scalar_subquery()),
        update(Note).values(title=Note.body),
        update(Note).values(title=sa.func.upper(Note.body)),
        update(Note).values(title=sa.case((Note.body.is_(None), "none"), else_=Note.body)),
        update(Note).values(title=select(Note.body).limit(1).scalar_subquery()),
        insert(Note).values(user_id=1, body=sa.func.upper("x")),
        insert(Note).values(user_id=1, body=text("'x'")),
        insert(Note).values([{"user_id": 1, "body": sa.func.upper("x")}, {"user_id": 1, "body": "x"}]),
        insert(Note).from_select(["user_id", "body"], select(Note.user_id, Note.title)),
        insert(Note).from_select(["user_id", "title"], select(Note.user_id, Note.body)),
        insert(Note).from_select(["user_id", "body"], select(sa.literal(1), sa.literal(PLAIN))),
    ],
    ids=lambda one: " ".join(str(one).split())[:70],
)
def test_expressions_are_refused(lite: Started, statement: Any) -> None:
    """What the database would have to compute on ciphertext, or copy past its owner, is refused and not
    sent."""
    with both(lite) as unlocked, unlocked.using(lite.ada):
        add_note(lite)
        lite.session.connection()
        with statements_sent(lite.engine) as sent, pytest.raises(StatementRefusedError):
            lite.session.execute(statement, execution_options={"synchronize_session": False})

        assert sent == []


def test_expression_on_an_object_is_refused(lite: Started) -> None:
    """`note.body = func.upper(...)` fails its flush, and the note keeps working."""
    with unlock(lite.session, lite.ada):
        note_id = add_note(lite)
        note = lite.session.get_one(Note, note_id)
        note.body = sa.func.upper(PLAIN)  # type: ignore[assignment]
        with pytest.raises(EnvelopeError):
            lite.session.flush()
        lite.session.rollback()

        assert note.body == "before"


@pytest.mark.any_database
def test_moving_the_owner_alone_is_refused(started: Started) -> None:
    """An UPDATE of the owner column alone would leave a value under the old owner's key."""
    with both(started):
        note_id = add_note(started)
        session = started.session
        for statement, rows in (
            (update(Note).where(Note.id == note_id).values(user_id=2), None),
            (update(Note), [{"id": note_id, "user_id": 2}]),
            (NOTES.update().where(NOTES.c.id == note_id).values(user_id=bindparam("to")), [{"to": 2}]),
            (NOTES.update().values(user_id=NOTES.c.user_id + 1), None),
        ):
            with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError):
                session.execute(statement, rows)
            assert sent == []
        session.rollback()

    assert opens_for(started, started.ada, note_id) == "before"


def test_rows_without_a_value_may_move(lite: Started) -> None:
    """There is nothing to encrypt anew where every value is NULL."""
    with unlock(lite.session, lite.ada):
        note_id = add_note(lite, body=None)
    lite.session.get_one(Note, note_id).user = lite.ben
    lite.session.commit()

    assert lite.session.get_one(Note, note_id).user_id == lite.ben.id


@pytest.mark.parametrize("how", ["column", "relationship", "backref"])
@pytest.mark.parametrize("was", ["loaded", "expired"])
def test_moving_to_another_owner(lite: Started, how: str, was: str) -> None:
    """A row that moves is encrypted anew for its new owner, every column of it."""
    with both(lite):
        note_id = add_note(lite, size=7, tags=["a"])
        note = lite.session.get_one(Note, note_id)
        assert note.body == "before"
        if was == "expired":
            lite.session.expire(note)
        if how == "column":
            note.user_id = lite.ben.id
        elif how == "relationship":
            note.user = lite.ben
        else:
            lite.ben.notes.append(note)
        lite.session.commit()

    assert opens_for(lite, lite.ben, note_id) == "before"
    assert opens_for(lite, lite.ben, note_id, Note, "size") == 7
    assert opens_for(lite, lite.ben, note_id, Note, "tags") == ["a"]


@pytest.mark.parametrize("open_owner", ["ada", "ben", None])
def test_moving_while_one_side_is_locked(lite: Started, open_owner: str | None) -> None:
    """A move needs both owners' keys; with one missing it is refused and nothing changes."""
    with unlock(lite.session, lite.ada):
        note_id = add_note(lite)
    before = stored(lite.engine, BODY, note_id)

    def move() -> None:
        note = lite.session.get_one(Note, note_id)
        note.user_id = 2
        with pytest.raises(LockedError):
            lite.session.flush()
        lite.session.rollback()

    if open_owner is None:
        move()
    else:
        with unlock(lite.session, getattr(lite, open_owner)):
            move()

    assert stored(lite.engine, BODY, note_id) == before
    assert opens_for(lite, lite.ada, note_id) == "before"


def test_deleting_rows_needs_no_key(lite: Started) -> None:
    """Locked rows can be deleted, by the session and by statement."""
    with unlock(lite.session, lite.ada):
        ids = [add_note(lite) for _ in range(2)]
    lite.session.delete(lite.session.get_one(Note, ids[0]))
    lite.session.commit()
    lite.session.execute(delete(Note))
    lite.session.commit()

    assert lite.session.scalar(select(sa.func.count()).select_from(Note)) == 0


# Upserts


def test_upsert_from_the_proposed_row(started: Started) -> None:
    """`excluded.body` with the owner beside it is the value that was encrypted for that owner."""
    make = upsert_for(started.engine)
    with both(started):
        note_id = add_note(started)
        proposed = make(Note).values(id=note_id, user_id=started.ben.id, body=PLAIN)
        started.session.execute(
            proposed.on_conflict_do_update(index_elements=["id"], set_=everything(proposed.excluded))
        )
        started.session.commit()

    assert opens_for(started, started.ben, note_id) == PLAIN


def test_upsert_of_many_rows(started: Started) -> None:
    """The same for a list of rows, and `do_nothing` leaves the old value."""
    make = upsert_for(started.engine)
    with unlock(started.session, started.ada):
        note_id = add_note(started)
        owner = started.ada.id
        proposed = make(Note)
        proposed = proposed.on_conflict_do_update(
            index_elements=[Note.id], set_=everything(proposed.excluded)
        )
        rows = [{"id": note_id, "user_id": owner, "body": PLAIN}, {"id": 77, "user_id": owner, "body": "new"}]
        started.session.execute(proposed, rows)
        started.session.execute(make(Note).on_conflict_do_nothing(), [rows[0] | {"body": "ignored"}])
        started.session.commit()

    assert [opens_for(started, started.ada, n) for n in (note_id, 77)] == [PLAIN, "new"]


def _refused_upserts(make: Any) -> list[Any]:
    proposed = make(Note).values(id=1, user_id=2, body=PLAIN)
    excluded = proposed.excluded
    on_key = {"index_elements": ["id"]}
    return [
        proposed.on_conflict_do_update(**on_key, set_={"body": "literal " + PLAIN}),
        proposed.on_conflict_do_update(**on_key, set_={"body": excluded.body}),
        proposed.on_conflict_do_update(**on_key, set_={"user_id": excluded.user_id}),
        proposed.on_conflict_do_update(**on_key, set_={"body": excluded.body, "user_id": excluded.user_id}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"body": excluded.title}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"body": sa.func.upper("x")}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"user_id": 1}),
        proposed.on_conflict_do_update(**on_key, set_=everything(excluded) | {"user_id": Note.user_id}),
        proposed.on_conflict_do_update(**on_key, set_={"title": excluded.body}),
        proposed.on_conflict_do_update(
            **on_key, set_=everything(excluded), where=sa.func.length(excluded.body) > 3
        ),
    ]


@pytest.mark.parametrize("which", range(10))
def test_refused_upserts(started: Started, which: int) -> None:
    """An upsert that could leave a value under another owner's key, or in the clear, is refused and not
    sent."""
    with both(started):
        add_note(started, id=1)
        started.session.connection()
        statement = _refused_upserts(upsert_for(started.engine))[which]
        with statements_sent(started.engine) as sent, pytest.raises(StatementRefusedError):
            started.session.execute(statement)

        assert not any("INSERT" in one for one in sent)


def test_upsert_of_a_row_bound_column(started: Started) -> None:
    """Allowed on the primary key alone; on another key the value would lie in a row it is not bound to."""
    make = upsert_for(started.engine)
    with unlock(started.session, started.ada):
        page = Page(user=started.ada, text="before")
        started.session.add(page)
        started.session.commit()
        page_id, owner = page.id, started.ada.id
        proposed = make(Page).values(id=page_id, user_id=owner, text=PLAIN)
        sets = {"text": proposed.excluded.text, "user_id": proposed.excluded.user_id}
        started.session.execute(proposed.on_conflict_do_update(index_elements=["id"], set_=sets))
        started.session.commit()
        with pytest.raises(StatementRefusedError):
            started.session.execute(proposed.on_conflict_do_update(index_elements=["title"], set_=sets))

    assert opens_for(started, started.ada, page_id, Page, "text") == PLAIN
