"""Tags are taken away by a transaction whose snapshot is older than another's row: it is told to run again,
and leaves no tag behind."""

from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ConfigurationError, TransactionConflictError, should_retry
from tests.orm.indexes import owned_token_models as texts
from tests.orm.indexes import rotation_models as server
from tests.orm.indexes.owner_models import Note, User, envelope, tags, two_users, unlock

REPEATABLE = {"isolation_level": "REPEATABLE READ"}


def note(engine: Engine, user_id: int, title: str) -> None:
    """Write a note, as in another request."""

    def write() -> None:
        with Session(engine) as session, unlock(session, user_id):
            session.add(Note(user_id=user_id, title=title))
            session.commit()

    Context().run(write)


def change_root(
    engine: Engine, user_id: int, between: Callable[[], Any], first: Callable[[Session], Any] | None = None
) -> None:
    """A new root key, by a snapshot from before `between`."""
    with Session(engine) as session:
        user = session.get_one(User, user_id)
        with unlock(session, user_id) as unlocked:
            between()
            if first is not None:
                first(session)
            unlocked.rotate(user, root=True)
            session.commit()


def test_a_unique_index_gets_the_tags_of_newer_rows_too(postgres_engine: Engine) -> None:
    """A root rotation that does not see a note is run again; then no note has the same title."""
    ada, _ = two_users(postgres_engine)
    older = postgres_engine.execution_options(**REPEATABLE)
    with pytest.raises(TransactionConflictError) as raised:
        change_root(older, ada, lambda: note(postgres_engine, ada, "x"))
    assert should_retry(raised.value)

    change_root(older, ada, lambda: None)
    with pytest.raises(IntegrityError):
        note(postgres_engine, ada, "x")


def test_a_row_that_was_filled_since_is_told(postgres_engine: Engine) -> None:
    """So is a note that the snapshot has without its tag."""
    ada, _ = two_users(postgres_engine)
    with Session(postgres_engine) as session, envelope.write_only(session):
        session.add(Note(user_id=ada, title="x"))
        session.commit()
    older = postgres_engine.execution_options(**REPEATABLE)
    with pytest.raises(Exception, match="could not serialize") as raised:
        change_root(older, ada, lambda: note(postgres_engine, ada, "y"))
    assert should_retry(raised.value)


def test_own_rows_are_in_no_ones_way(postgres_engine: Engine) -> None:
    """A transaction that wrote and deleted notes itself starts an epoch at any isolation level."""
    ada, _ = two_users(postgres_engine)
    note(postgres_engine, ada, "x")

    def write(session: Session) -> None:
        session.delete(session.scalars(select(Note)).one())
        session.flush()
        session.add(Note(user_id=ada, title="x"))
        session.flush()

    change_root(postgres_engine.execution_options(**REPEATABLE), ada, lambda: None, write)
    with Session(postgres_engine) as session:
        assert all(tags(session, Note.title_index).values())


def test_a_shred_takes_the_tags_of_newer_rows_away(postgres_engine: Engine) -> None:
    """A shred that does not see a contact is run again: its value is found by the server's index no more."""
    desk, process = server.one_desk(postgres_engine), server.new_process()
    found = select(server.Contact.id).where(server.Contact.email == "ada@example.org")

    def write() -> None:
        with server.working(postgres_engine, server.new_process()) as session:
            session.add(server.Contact(desk_id=desk, email="ada@example.org"))
            session.commit()

    for between in (write, None):
        with Session(postgres_engine.execution_options(**REPEATABLE)) as session:
            owner = session.get_one(server.Desk, desk)
            if between is not None:
                Context().run(between)
                with pytest.raises(TransactionConflictError):
                    process.shred(session, owner, reason="test")
                continue
            process.shred(session, owner, reason="test")
            session.commit()
    with server.working(postgres_engine, process) as session:
        assert session.scalars(found).all() == []


def test_a_shred_takes_newer_words_away(postgres_engine: Engine) -> None:
    """So do the tags of words."""
    ada, _ = texts.two_users(postgres_engine)

    def write() -> None:
        with Session(postgres_engine) as session, texts.unlock(session, ada):
            session.add(texts.Entry(user_id=ada, text="some words"))
            session.commit()

    with Session(postgres_engine.execution_options(**REPEATABLE)) as session:
        owner = session.get_one(texts.User, ada)
        Context().run(write)
        with pytest.raises(TransactionConflictError):
            texts.envelope.shred(session, owner, reason="test")


def test_without_another_connection_it_is_refused(postgres_engine: Engine) -> None:
    """Where nothing can look for newer rows, the isolation level has to be another."""
    ada, _ = two_users(postgres_engine)
    alone = create_engine(postgres_engine.url, poolclass=StaticPool, **REPEATABLE)
    with pytest.raises(ConfigurationError, match="READ COMMITTED"):
        change_root(alone, ada, lambda: None)
    alone.dispose()
