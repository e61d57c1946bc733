"""A transaction that has written waits for no network: the provider is asked before it, or not at all."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError, ProviderError, ServerKeyring
from tests.orm.models import Note, User
from tests.orm.verbs.provider_unlock.remote import Application, down

pytestmark = pytest.mark.any_database

WAIT = 10
"""Seconds after which a thread that does not come is given up."""
WRITES = ("INSERT", "UPDATE", "DELETE")


@pytest.fixture
def written(app: Application) -> Iterator[list[bool]]:
    """For each call of the provider, whether the application's connection had written something."""
    seen: list[bool] = []
    open_writes = [False]

    def sent(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(WRITES):
            open_writes[0] = True

    def over(*_: Any) -> None:
        open_writes[0] = False

    event.listen(app.engine, "before_cursor_execute", sent)
    event.listen(app.engine, "commit", over)
    event.listen(app.engine, "rollback", over)
    app.remote.before = lambda: seen.append(open_writes[0])
    yield seen
    event.remove(app.engine, "before_cursor_execute", sent)
    event.remove(app.engine, "commit", over)
    event.remove(app.engine, "rollback", over)


def write_by_flush(session: Session) -> None:
    session.add(User(email="other"))
    session.flush()


def write_by_core(session: Session) -> None:
    session.execute(sa.insert(User.__table__).values(email="other"))  # type: ignore[arg-type]


def write_by_text(session: Session) -> None:
    session.execute(sa.text("UPDATE users SET email = 'other' WHERE id = -1"))


def delete_by_core(session: Session) -> None:
    session.execute(sa.delete(Note.__table__).where(Note.id == -1))  # type: ignore[arg-type]


def lock_rows(session: Session) -> None:
    session.execute(select(User).with_for_update())


def write_in_savepoint(session: Session) -> None:
    with session.begin_nested():
        write_by_text(session)


@pytest.mark.parametrize(
    "write", [write_by_flush, write_by_core, write_by_text, delete_by_core, lock_rows, write_in_savepoint]
)
def test_a_transaction_that_has_written_does_not_wait_for_a_network(
    app: Application, written: list[bool], write: Callable[[Session], None]
) -> None:
    """Unlock and enroll say so and write nothing; they go on after it, and what is cached never waits."""
    ada = app.enroll()
    app.restart()
    written.clear()
    with Session(app.engine) as session:
        user = session.get_one(User, ada)
        write(session)
        with pytest.raises(ProviderError, match="holds locks"):
            app.envelope.unlock(session, user, provider="remote", reason="test")
        with pytest.raises(ProviderError, match="holds locks"):
            app.envelope.enroll(session, User(email="new"), provider="remote")
        assert written == []
        session.rollback()
        with app.envelope.unlock(session, user, provider="remote", reason="test"):
            assert session.scalars(select(Note)).one().body == "of ada"
        write(session)
        with app.envelope.unlock(session, user, provider="remote", reason="test"):
            assert session.scalars(select(Note)).one().body == "of ada"
        session.rollback()

    assert written == [False]
    assert app.count("users") == 1


def test_reading_takes_no_locks(app: Application) -> None:
    """A transaction that has only read may wait for the provider; SQL in text that begins with SELECT too."""
    ada = app.enroll()
    app.restart()
    with Session(app.engine) as session:
        session.execute(sa.text("SELECT 1"))
        session.execute(select(Note.id)).all()
        user = session.get_one(User, ada)
        with app.envelope.unlock(session, user, provider="remote", reason="test"):
            assert session.scalars(select(Note)).one().body == "of ada"


def test_a_local_provider_is_called_anywhere(app: Application) -> None:
    """Server keys answer at once, so that a written transaction does not matter."""
    app.restart(server_keys=ServerKeyring([b"\x07" * 32]), providers={})
    ada = app.enroll(provider="server")
    app.restart(server_keys=ServerKeyring([b"\x07" * 32]), providers={})
    with Session(app.engine) as session:
        write_by_flush(session)
        with app.envelope.unlock(session, session.get_one(User, ada), provider="server", reason="test"):
            assert session.scalars(select(Note)).one().body == "of ada"
        app.envelope.enroll(session, User(email="new"), provider="server")
        session.commit()
    assert app.count("users_keyslot") == 2


def test_server_mode_does_not_wait_in_a_written_transaction(app: Application, written: list[bool]) -> None:
    """Rows that would need the network are refused after a write, and open when they are loaded before it."""
    ada = app.enroll()
    app.restart()
    written.clear()
    with app.envelope.server_mode(provider="remote", reason="test"), Session(app.engine) as session:
        write_by_core(session)
        with pytest.raises(ProviderError, match="holds locks"):
            session.scalars(select(Note)).all()
        session.rollback()
        session.add(Note(user_id=ada, body="more"))
        with pytest.raises(ProviderError, match="holds locks"):
            session.flush()
        session.rollback()
        assert written == []
        assert [note.body for note in session.scalars(select(Note))] == ["of ada"]
        session.add(Note(user_id=ada, body="more"))
        session.commit()
        assert {"of ada", "more"} == {note.body for note in session.scalars(select(Note))}

    assert written == [False]


def test_server_mode_asks_before_a_flush_has_written(app: Application, written: list[bool]) -> None:
    """New owners' KEK is wrapped ahead of the flush's first statement, and never after one."""
    with app.envelope.server_mode(provider="remote", reason="test"), Session(app.engine) as session:
        session.add_all([User(email=str(n), notes=[Note(body="x")]) for n in range(3)])
        session.commit()
        assert written == [False]
        session.add_all([User(email=str(n)) for n in range(3, 6)])
        session.flush()
        session.add(User(email="6", phone="123"))
        session.commit()
    app.restart()
    with app.envelope.server_mode(provider="remote", reason="test"), Session(app.engine) as session:
        write_by_flush_of_notes = Note(user_id=1, body="later")
        assert session.get_one(User, 7).phone == "123"
        session.add(write_by_flush_of_notes)
        session.commit()
        session.add(User(email="7"))
        session.commit()

    assert not any(written)
    assert app.count("users_keyslot") == 8


def test_a_new_owner_in_a_written_transaction_is_refused(app: Application, written: list[bool]) -> None:
    """With no KEK ready yet, a new owner after a write is refused; nothing of it is stored."""
    with app.envelope.server_mode(provider="remote", reason="test"), Session(app.engine) as session:
        write_by_core(session)
        session.add(User(email="new", phone="123"))
        with pytest.raises(ProviderError, match="holds locks"):
            session.flush()
        session.rollback()

    assert written == []
    assert app.count("users") == 0
    assert app.count("users_key") == 0


def test_server_mode_with_a_provider_that_fails(app: Application) -> None:
    """A provider that is down makes the statement fail, and leaves nothing refused when it is back."""
    ada = app.enroll()
    app.restart()
    app.remote.before = down
    with app.envelope.server_mode(provider="remote", reason="test"):
        with Session(app.engine) as session, pytest.raises(ProviderError):
            session.scalars(select(Note)).all()
        with Session(app.engine) as session:
            session.add(User(email="new", phone="123"))
            with pytest.raises(ProviderError):
                session.flush()
            session.rollback()
        app.remote.before = lambda: None
        with Session(app.engine) as session:
            assert session.scalars(select(Note)).one().body == "of ada"
            session.add(User(email="new", phone="123", notes=[Note(body="new")]))
            session.add(Note(user_id=ada, body="more"))
            session.commit()
            assert {"of ada", "new", "more"} == {note.body for note in session.scalars(select(Note))}


def test_a_wrong_answer_in_server_mode_is_not_for_ever(app: Application) -> None:
    """A provider that answered with another key, once, does not shut its owners out until a restart."""
    app.enroll()
    app.restart()
    app.remote.answer = b"\x55" * 32
    with app.envelope.server_mode(provider="remote", reason="test"):
        with Session(app.engine) as session, pytest.raises((ProviderError, LockedError)):
            _ = session.scalars(select(Note)).one().body
        app.remote.answer = None
        with Session(app.engine) as session:
            assert session.scalars(select(Note)).one().body == "of ada"


def test_threads_that_wait_for_the_provider_at_once_all_read(app: Application) -> None:
    """While a thread waits for the provider, another one that reads the same row is not told it is locked."""
    ada = app.enroll()
    server = app.restart().server_mode(provider="remote", reason="test").everywhere()
    both = threading.Barrier(2)
    app.remote.before = lambda: both.wait(WAIT) and None

    def read() -> str | None:
        with Session(app.engine) as session:
            return session.scalars(select(Note).where(Note.user_id == ada)).one().body

    try:
        with ThreadPoolExecutor(2) as pool:
            found = [one.result(WAIT) for one in [pool.submit(read), pool.submit(read)]]
        assert found == ["of ada", "of ada"]
    finally:
        both.abort()
        server.stop()


def test_server_mode_opens_a_shared_kek_once(app: Application) -> None:
    """50 owners under one KEK cost server mode one call of the provider."""
    for number in range(50):
        app.enroll(str(number))
    app.restart()
    with app.envelope.server_mode(provider="remote", reason="test"), Session(app.engine) as session:
        assert {f"of {n}" for n in range(50)} == {note.body for note in session.scalars(select(Note))}

    assert app.remote.unwraps == 1


def test_server_mode_prepared_at_start_up_asks_in_no_flush(app: Application) -> None:
    """prepare() has the provider wrap the KEK of new slots; new owners' flushes then call it no more, in a
    transaction that has written neither."""
    server = app.envelope.server_mode(provider="remote", reason="test").prepare()
    assert app.remote.wraps == 1
    with server.prepare(), Session(app.engine) as session:
        session.execute(select(User).with_for_update())
        session.add_all([User(email="ada", phone="1"), User(email="ben", phone="2")])
        session.commit()

        assert sorted(user.phone or "" for user in session.scalars(select(User))) == ["1", "2"]
    assert app.remote.wraps == 1
