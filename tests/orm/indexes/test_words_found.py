"""Texts are found by the words in them, whoever wrote them by whatever statement."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, literal_column, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_envelope import StatementRefusedError
from tests.orm.indexes.token_models import SECRET, Note, User, enroll, new_envelope

Written = tuple[Session, int]


@pytest.fixture
def written(engine: Engine) -> Iterator[Written]:
    """A session in which a user is unlocked."""
    user_id = enroll(engine)
    with Session(engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET) as unlocked, unlocked.using(user):
            yield session, user_id


def ids(session: Session, condition: object) -> list[int]:
    return sorted(session.scalars(select(Note.id).where(condition)).all())  # type: ignore[arg-type]


def tags(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Note.body_words.table)) or 0


def test_words_are_found_by_each_comparison(written: Written) -> None:
    """A text is found by a word, by all of several words, and not by a part of a word."""
    session, user_id = written
    bodies = ["Ada wrote the first program", "Ben read the PROGRAM of Ada", None, ""]
    session.add_all([Note(id=at, user_id=user_id, body=body) for at, body in enumerate(bodies, 1)])
    session.commit()

    assert ids(session, Note.body.has_word("ada")) == [1, 2]
    assert ids(session, Note.body.has_words("the Program READ")) == [2]
    assert ids(session, Note.body.has_word("prog")) == []
    assert ids(session, ~Note.body.has_word("ada")) == [4]
    assert ids(session, ~Note.body.has_words("ada first")) == [2, 4]
    assert ids(session, ~~Note.body.has_words("ada first")) == [1]
    assert ids(session, Note.body.has_word("read") | Note.body.has_word("first")) == [1, 2]
    assert session.scalar(select(func.count()).where(Note.body.has_word("the"))) == 2
    inner = select(Note.user_id).where(Note.body.has_word("read"))
    assert [user_id] == list(session.scalars(select(User.id).where(User.id.in_(inner))))


def test_the_tags_follow_each_write_of_an_object(written: Written) -> None:
    """A changed text is found by its new words alone, and no tag outlives its row."""
    session, user_id = written
    note = Note(user_id=user_id, body="ada")
    session.add_all([note, Note(id=50, user_id=user_id, body="ben")])
    session.commit()
    note.body = "eve"
    session.flush()

    assert ids(session, Note.body.has_word("ada")) == []
    assert ids(session, Note.body.has_word("eve")) == [note.id]
    note.id = 7
    session.commit()
    assert ids(session, Note.body.has_word("eve")) == [7]
    note.body = None
    session.commit()
    assert ids(session, Note.body.has_word("eve") | ~Note.body.has_word("eve")) == [50]
    assert tags(session) == 2
    session.delete(session.get_one(Note, 50))
    session.commit()
    assert tags(session) == 0


def test_a_row_that_takes_the_place_of_a_deleted_one_has_its_own_tags(written: Written) -> None:
    """A new object with the key of a deleted one is found by its own words alone."""
    session, user_id = written
    session.add(Note(id=1, user_id=user_id, body="ada"))
    session.commit()
    session.delete(session.get_one(Note, 1))
    session.add(Note(id=1, user_id=user_id, body="eve"))
    session.commit()

    assert ids(session, Note.body.has_word("ada")) == []
    assert ids(session, Note.body.has_word("eve")) == [1]
    session.merge(Note(id=1, user_id=user_id, body="mallory"))
    session.commit()
    assert ids(session, Note.body.has_word("mallory")) == [1]


def test_the_tags_follow_bulk_statements(written: Written) -> None:
    """Rows have their tags that get their keys from the database, or are changed by key or by WHERE."""
    session, user_id = written
    rows = [{"user_id": user_id, "body": f"word{at} all"} for at in range(300)]
    session.execute(insert(Note), rows)
    session.execute(insert(Note).values(user_id=user_id, body="literal"))
    session.execute(insert(Note).values([{"id": 900, "user_id": user_id, "body": "several"}]))
    found = {note.body: note.id for note in session.scalars(select(Note))}

    assert ids(session, Note.body.has_word("word17")) == [found["word17 all"]]
    assert ids(session, Note.body.has_word("literal")) == [found["literal"]]
    assert ids(session, Note.body.has_word("several")) == [900]
    session.execute(update(Note), [{"id": found["word17 all"], "body": "by key"}])
    assert ids(session, Note.body.has_word("word17")) == []
    assert ids(session, Note.body.has_word("key")) == [found["word17 all"]]
    by_where = update(Note).where(Note.id > 890).values(body="by where")
    session.execute(by_where, execution_options={"synchronize_session": False})
    assert ids(session, Note.body.has_word("where")) == [900]
    connection = session.connection()
    table = Note.__table__
    connection.execute(table.update().where(table.c.user_id == user_id).values(body="core"))
    assert len(ids(session, Note.body.has_word("core"))) == 302
    assert ids(session, Note.body.has_word("all")) == []
    connection.execute(table.delete().where(table.c.id != 900))
    assert tags(session) == 2


def test_rows_with_keys_made_by_the_client_come_back_by_returning(written: Written) -> None:
    """RETURNING goes together with tags if the rows have their keys, and is refused if they have none."""
    session, user_id = written
    rows = [{"id": at, "user_id": user_id, "body": f"word{at}"} for at in (91, 92)]
    made = session.scalars(insert(Note).returning(Note), rows).all()

    assert [one.body for one in made] == ["word91", "word92"]
    assert ids(session, Note.body.has_word("word92")) == [92]
    changed = session.scalars(update(Note).where(Note.id == 92).values(body="x").returning(Note)).all()
    assert [one.body for one in changed] == ["x"]
    assert ids(session, Note.body.has_word("word92")) == []
    assert ids(session, Note.body.has_word("x")) == [92]
    (made_here,) = session.scalars(insert(Note).returning(Note), [{"user_id": user_id, "body": "unkeyed"}])
    assert ids(session, Note.body.has_word("unkeyed")) == [made_here.id]
    core = insert(Note.__table__).returning(Note.__table__.c.id)
    with pytest.raises(StatementRefusedError, match="Give each row its id"):
        session.connection().execute(core, [{"user_id": user_id, "body": "a"}])


def test_upserts_write_the_tags_of_the_row_that_they_change(written: Written) -> None:
    """An upsert replaces tags as it replaces the text, and is refused where nothing tells which row it is."""
    session, user_id = written
    new = postgresql_insert if session.get_bind().dialect.name == "postgresql" else sqlite_insert
    session.add(Note(id=1, user_id=user_id, slug="a", body="old"))
    session.commit()

    def upsert(*rows: dict[str, object], **on: object) -> object:
        statement = new(Note).values(list(rows))
        return statement.on_conflict_do_update(
            set_={key: statement.excluded[key] for key in ("body", "part", "user_id")},
            **on,  # type: ignore[arg-type]
        )

    row = {"user_id": user_id, "slug": "a"}
    session.execute(upsert({**row, "id": 1, "body": "by id"}, index_elements=["id"]))
    assert ids(session, Note.body.has_word("old")) == []
    assert ids(session, Note.body.has_word("id")) == [1]
    session.execute(
        upsert({**row, "body": "by slug"}, {**row, "slug": "b", "body": "by slug"}, index_elements=["slug"])
    )
    assert ids(session, Note.body.has_word("id")) == []
    assert len(ids(session, Note.body.has_word("slug"))) == 2
    nothing = new(Note).on_conflict_do_nothing()
    session.execute(nothing.values({**row, "id": 1, "body": "nothing"}))
    assert ids(session, Note.body.has_word("nothing")) == []
    session.execute(nothing.values({"id": 77, "user_id": user_id, "body": "something"}))
    assert ids(session, Note.body.has_word("something")) == [77]
    session.execute(
        nothing.values([{**row, "id": 1, "body": "x"}, {**row, "slug": "c", "id": 78, "body": "x"}])
    )
    assert ids(session, Note.body.has_word("x")) == [78]
    session.execute(upsert({**row, "id": 1, "body": "y"}, index_elements=["id"], where=Note.id > 2))
    assert ids(session, Note.body.has_word("y")) == []
    with pytest.raises(StatementRefusedError, match="Give each row its id"):
        session.execute(nothing.values({**row, "body": "x"}))


def test_writes_that_do_not_tell_their_rows_are_refused(written: Written) -> None:
    """A copy inside the database and a write in a CTE are refused, and nothing is sent."""
    session, user_id = written
    session.add(Note(id=1, user_id=user_id, body="ada"))
    session.commit()
    source = select(Note.user_id, Note.body)
    with pytest.raises(StatementRefusedError, match="token index"):
        session.execute(insert(Note).from_select(["user_id", "body"], source))
    if session.get_bind().dialect.name == "postgresql":
        with pytest.raises(IntegrityError), session.begin_nested():
            session.execute(insert(Note).values(id=1, user_id=user_id, body="x"))
        plain = insert(Note).values(id=2, user_id=user_id).returning(Note.id).cte()
        assert session.scalars(select(plain.c.id)).all() == [2]
        session.rollback()
        inner = insert(Note).values(id=2, user_id=user_id, body="x").returning(Note.id).cte()
        with pytest.raises(StatementRefusedError, match="in a CTE"):
            session.execute(select(inner.c.id))

    assert session.scalar(select(func.count()).select_from(Note)) == 1


def test_the_tags_follow_what_sends_in_bulk(written: Written) -> None:
    """The bulk methods of a Session, `Query.update`, and a savepoint that is rolled back."""
    session, user_id = written
    session.bulk_save_objects([Note(user_id=user_id, body="saved") for _ in range(3)])
    session.bulk_insert_mappings(Note.__mapper__, [{"user_id": user_id, "body": "mapped"} for _ in range(3)])
    saved = ids(session, Note.body.has_word("saved"))
    session.bulk_update_mappings(Note.__mapper__, [{"id": saved[0], "body": "renewed"}])
    session.query(Note).filter(Note.id == saved[1]).update({"body": "queried"})
    nested = session.begin_nested()
    session.get_one(Note, saved[2]).body = "nested"
    session.flush()
    assert ids(session, Note.body.has_word("nested")) == [saved[2]]
    nested.rollback()

    assert len(ids(session, Note.body.has_word("mapped"))) == 3
    assert ids(session, Note.body.has_word("renewed")) == [saved[0]]
    assert ids(session, Note.body.has_word("queried")) == [saved[1]]
    assert ids(session, Note.body.has_word("saved")) == [saved[2]]
    assert ids(session, Note.body.has_word("nested")) == []


def test_tags_lie_in_an_order_that_tells_nothing(written: Written) -> None:
    """The words of a text are not stored in their order, and a word has another tag in another index."""
    session, user_id = written
    session.add(Note(user_id=user_id, body="one two three four five six", part="one"))
    session.commit()
    if session.get_bind().dialect.name == "postgresql":
        order = Note.body_words.table.c.tag
        stored = session.scalars(select(order).order_by(literal_column("ctid"))).all()
        assert sorted(stored) == list(stored)
    words = set(session.scalars(select(Note.body_words.table.c.tag)))

    assert len(words) == 7
    assert words.isdisjoint(session.scalars(select(Note.part_grams.table.c.tag)))


def test_the_database_looks_a_word_up_in_its_index(written: Written) -> None:
    """The plan of a search reads the tags by their primary key, and the rows by theirs."""
    session, user_id = written
    session.execute(insert(Note), [{"user_id": user_id, "body": f"word{at} all"} for at in range(2_000)])
    connection = session.connection()
    postgres = connection.dialect.name == "postgresql"
    if postgres:
        connection.exec_driver_sql("ANALYZE")
    sent: list[tuple[str, Any]] = []
    event.listen(connection, "before_cursor_execute", lambda *arguments: sent.append(arguments[2:4]))
    assert len(ids(session, Note.body.has_word("word17"))) == 1
    sql, parameters = next((sql, given) for sql, given in sent if "notes_body_words" in sql)
    plan = connection.exec_driver_sql(f"EXPLAIN {'' if postgres else 'QUERY PLAN'} {sql}", parameters)
    shape = " ".join(str(one) for row in plan for one in row)

    assert ("pk_notes_body_words" if postgres else "USING PRIMARY KEY (tag=?)") in shape
    assert ("notes_pkey" if postgres else "USING INTEGER PRIMARY KEY") in shape
    assert "Seq Scan on" not in shape
