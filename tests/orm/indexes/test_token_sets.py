"""Parts and beginnings of texts: what their tokens find, and what is refused."""

import pickle
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    MetaData,
    Table,
    bindparam,
    delete,
    func,
    insert,
    lambda_stmt,
    select,
    text,
)
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.sql import operators

from sqlalchemy_envelope import (
    ConfigurationError,
    Grams,
    Starts,
    StatementRefusedError,
    ValueEncodingError,
    Words,
    fill_tokens,
    register_splitter,
    stale_tokens,
)
from sqlalchemy_envelope.orm.indexes.tokens.operators import pattern_of
from tests.orm.indexes.token_models import SECRET, Note, User, enroll, new_envelope


def ids(session: Session, condition: object) -> list[int]:
    return sorted(session.scalars(select(Note.id).where(condition)).all())  # type: ignore[arg-type]


def test_parts_and_beginnings_are_found(sqlite_engine: Engine) -> None:
    """A part of the size of the tokens, and a beginning within their lengths, are found for certain."""
    user_id = enroll(sqlite_engine)
    parts = ["AB-1234", "ab-99", "x", None, "12"]
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all([Note(id=at, user_id=user_id, part=part) for at, part in enumerate(parts, 1)])
            session.commit()

        assert ids(session, Note.part.contains("123")) == [1]
        assert ids(session, Note.part.like("%b-9%")) == [2]
        assert ids(session, ~Note.part.contains("123")) == [2, 3, 5]
        assert ids(session, Note.part.not_like("%123%")) == [2, 3, 5]
        assert ids(session, Note.part.contains("%_%", autoescape=True)) == []
        assert ids(session, Note.part.istartswith("aB-")) == [1, 2]
        assert ids(session, Note.part.ilike("AB-1%")) == [1]
        assert ids(session, Note.part.not_ilike("AB-%")) == [3, 5]


def test_what_no_token_answers_is_refused(sqlite_engine: Engine) -> None:
    """A comparison that tokens do not answer is refused where it is written, and the error says why."""
    refused = [
        (lambda: Note.part.contains("no"), "3 characters"),
        (lambda: Note.part.not_like("%secret%"), "candidates"),
        (lambda: Note.part.istartswith("s"), "2 characters"),
        (lambda: Note.part.ilike("%secret%"), "beginning"),
        (lambda: Note.part.has_word("secret"), "answers `.contains"),
        (lambda: Note.body.contains("secret"), "has_word"),
        (lambda: Note.body.has_word("secret word"), "2 words"),
        (lambda: Note.body.has_word("-"), "0 words"),
        (lambda: Note.body.has_words(""), "no word"),
        (lambda: Note.body.has_word(7), "type int, is no text"),
        (lambda: Note.body.has_word("\ud800a"), "no text"),
        (lambda: Note.part.contains("ab\ud800"), "no text"),
        (lambda: Note.body.has_word(Note.slug), "SQL expression"),
        (lambda: Note.body.has_words(bindparam("word")), "SQL expression"),
        (lambda: Note.part.has_word(bindparam("word")), "answers `.contains"),
        (lambda: Note.body == "secret", "equal values"),
        (lambda: User.id.has_word("secret"), None),
    ]
    for make, why in refused:
        error = AttributeError if why is None else StatementRefusedError
        with pytest.raises(error, match=why) as raised:
            make()

        assert "secret" not in str(raised.value)
        assert raised.value.__context__ is None or why is None


def test_a_word_may_be_given_when_the_statement_is_sent(sqlite_engine: Engine) -> None:
    """A parameter and a lambda's variable get their words with each execution."""
    user_id = enroll(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all(
                [Note(id=at, user_id=user_id, body=body) for at, body in enumerate(["ada", "ben"])]
            )
            session.commit()
        new_envelope().attach(session)
        later = select(Note.id).where(Note.body.has_word(bindparam("word")))
        others = select(Note.id).where(~Note.body.has_word(bindparam("word")))

        def by_lambda(word: str) -> Any:
            return lambda_stmt(lambda: select(Note.id).where(Note.body.has_word(word)))

        for at, word in enumerate(["ada", "Ben"]):
            assert [at] == session.scalars(later, {"word": word}).all()
            assert [1 - at] == session.scalars(others, {"word": word}).all()
            assert [at] == session.scalars(by_lambda(word)).all()
        with pytest.raises(StatementRefusedError, match="2 words"):
            session.scalars(later, {"word": "secret word"})


def test_a_negation_around_several_conditions_is_refused(sqlite_engine: Engine) -> None:
    """`~(a & b)` would find rows without a text: it is refused, and the cure gives the right rows."""
    user_id = enroll(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all([Note(id=1, user_id=user_id, body="ada ben"), Note(id=2, user_id=user_id)])
            session.commit()
        ada = Note.body.has_word("ada")
        with pytest.raises(StatementRefusedError, match="by itself"):
            ids(session, ~(ada & (Note.id > 1)))

        assert ids(session, ~ada | ~(Note.id > 1)) == [1]
        no_notes = ~User.id.in_(select(Note.user_id).where(Note.body.has_word("eve")))
        assert [user_id] == list(session.scalars(select(User.id).where(no_notes)))


def test_no_value_leaves_by_a_statement(sqlite_engine: Engine) -> None:
    """The text of a statement, its literal form and its pickle have no word in it."""
    enroll(sqlite_engine)
    statement = select(Note).where(Note.body.has_word("secret"))

    assert "secret" not in str(statement) + repr(statement.whereclause)
    with pytest.raises((StatementRefusedError, CompileError)) as raised:
        statement.compile(sqlite_engine, compile_kwargs={"literal_binds": True})
    assert "secret" not in str(raised.value)
    with suppress(StatementRefusedError):
        assert b"secret" not in pickle.dumps(
            select(Note.__table__.c.id).where(Note.__table__.c.body.has_word("secret"))
        )


def test_texts_without_tags_are_pending(sqlite_engine: Engine) -> None:
    """A row that another program wrote is found by no word, and is visible; a new write of it fills it."""
    user_id = enroll(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all(
                [Note(id=at, user_id=user_id, body=text) for at, text in enumerate(["ada", ""], 1)]
            )
            session.commit()
            session.connection().execute(Note.body_words.table.delete())
            pending = session.scalars(select(Note).where(Note.body_words.pending())).all()
            assert [note.id for note in pending] == [1, 2]
            assert ids(session, ~Note.body.has_word("eve")) == []
            fill_tokens(session, Note.body_words, pending)
            session.commit()

        assert ids(session, Note.body_words.pending()) == []
        assert ids(session, Note.body.has_word("ada")) == [1]
        assert ids(session, ~Note.body.has_word("ada")) == [2]


def test_texts_that_cannot_be_taken_apart_are_refused(sqlite_engine: Engine) -> None:
    """A lone surrogate, another type, and more tokens than the index takes: nothing is stored."""
    user_id = enroll(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET) as unlocked, unlocked.using(user):
            for value, error in (
                ("a \ud800", ValueEncodingError),
                (7, ValueEncodingError),
                (" ".join(map(str, range(10_001))), StatementRefusedError),
            ):
                with pytest.raises(error) as raised:
                    session.execute(insert(Note), [{"user_id": user_id, "body": value}])
                assert "9999" not in str(raised.value)
            session.execute(insert(Note), [{"user_id": user_id, "body": "a " * 5_000_000}])

        assert ids(session, Note.body.has_word("a")) == [1]
        assert session.scalar(select(func.count()).select_from(Note)) == 1


def test_arguments_out_of_range_are_refused() -> None:
    """Each kind of tokens names the range of its arguments, and a splitter that is gone says what to call."""
    for make in (
        lambda: Grams(1),
        lambda: Grams(33),
        lambda: Starts(0, 2),
        lambda: Starts(3, 2),
        lambda: Starts(1, 65),
        lambda: Words("gone-v1"),
        lambda: register_splitter("words-v1", str.split),
    ):
        with pytest.raises(ConfigurationError):
            make()


@pytest.mark.parametrize(
    ("pattern", "escape", "parts"),
    [
        ("a%b_c", None, ("a", True, "b", False, "c")),
        ("%%a%%", None, (True, "a", True)),
        ("50/%%", "/", ("50%", True)),
        ("a/", "/", ("a/",)),
        ("", None, ()),
        ("__", None, (False, False)),
    ],
)
def test_a_pattern_is_taken_apart_as_the_database_does(
    pattern: str, escape: str | None, parts: tuple[str | bool, ...]
) -> None:
    """Wildcards, escaped characters and texts of a LIKE pattern."""
    found = pattern_of(operators.like_op, pattern, {"escape": escape})

    assert found is not None
    assert parts == found.parts


def test_what_raw_sql_changed_is_told(sqlite_engine: Engine) -> None:
    """A text or a tag that raw SQL changed is found by the check, and a new write puts it right. Another
    `Table` object changes no text."""
    user_id = enroll(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all([Note(id=at, user_id=user_id, body=f"text{at}") for at in range(1, 5)])
            session.commit()
            session.execute(
                text("UPDATE notes SET body = (SELECT body FROM notes WHERE id = 1) WHERE id = 2")
            )
            session.execute(text("UPDATE notes SET body = NULL WHERE id = 3"))
            words = Note.body_words.table
            session.connection().execute(delete(words).where(words.c.row_id == 4))
            notes = session.scalars(select(Note).order_by(Note.id)).all()
            stale = stale_tokens(session, Note.body_words, notes)
            assert [note.id for note in stale] == [2, 3, 4]
            for note in stale:
                flag_modified(note, "body")
            session.commit()
            assert stale_tokens(session, Note.body_words, notes) == []
            assert ids(session, Note.body.has_word("text1")) == [1, 2]
            twin = Table("notes", MetaData(), autoload_with=session.connection())
            with pytest.raises(StatementRefusedError, match="its token index"):
                session.connection().execute(twin.update().values(body=None))
            session.connection().execute(twin.update().values(slug=None))
