"""Server mode is entered for a block or for the process, and left. Owners without a slot stay locked."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    Envelope,
    KdfProfile,
    LockedError,
    ServerKeyring,
    ServerSession,
    SessionLeftError,
)
from sqlalchemy_envelope.orm.current.context import NOTHING
from tests.orm.models import SECRET, Note, User, stored
from tests.orm.sessions.server_mode.devices import Serving

KEY = b"\x07" * 32


WAIT = 30
"""Seconds after which a thread that does not come is given up."""


# Entering and leaving


def test_what_was_written_is_read_by_a_later_process(serving: Serving) -> None:
    """Values come back in another process of a plain application, and are encrypted at rest."""
    (ada,) = serving.users(1, "hello")

    assert serving.bodies(ada) == ["hello"]
    assert b"hello" not in (stored(serving.engine, Note.body, 1) or b"")


@pytest.mark.any_database
def test_outside_of_the_block_everything_is_locked(serving: Serving) -> None:
    """Leaving wipes the keys and expires what was decrypted; loading goes on, and touching does not."""
    (ada,) = serving.users(1, "hello")
    with Session(serving.engine) as session:
        with serving.mode() as server:
            note = session.scalars(select(Note)).one()
            assert note.body == "hello"
        again = session.scalars(select(Note).execution_options(populate_existing=True)).one()

        assert not server.is_open
        with pytest.raises(LockedError):
            _ = again.body
        assert again.user_id == ada


def test_a_block_is_entered_once(lite: Serving) -> None:
    """A server session that was left is of no use, and one that is open is not entered again."""
    with lite.mode() as server, pytest.raises(ConfigurationError):
        server.__enter__()

    with pytest.raises(SessionLeftError):
        server.__enter__()
    with pytest.raises(SessionLeftError):
        server.everywhere()


@pytest.mark.parametrize("reason", ["", "   ", None])
def test_a_reason_is_asked_for(lite: Serving, reason: Any) -> None:
    """Opening without the owner says why, or does not begin."""
    with pytest.raises(ConfigurationError, match="reason"):
        lite.envelope().server_mode(reason=reason)


def test_an_unknown_provider_is_told_at_once(lite: Serving) -> None:
    """A name that was not given to the envelope is a mistake of configuration, told before any row."""
    with pytest.raises(ConfigurationError, match="'kms'"):
        lite.envelope().server_mode(provider="kms", reason="test")
    with pytest.raises(ConfigurationError, match="'server'"):
        Envelope(kdf_profile=KdfProfile.unsafe_for_tests()).server_mode(reason="test")


def test_audit_events_carry_the_reason(lite: Serving) -> None:
    """What was started, made and opened is told, with the reason and the provider, and never a value."""
    lite.users(3)
    lite.bodies(1, 2, 3)

    names = [(event.name, event.count) for event in lite.events]
    assert ("server_mode_started", 1) in names
    assert ("server_enrolled", 3) in names
    assert ("server_opened", 3) in names
    assert {("test", "server")} == {
        (event.reason, event.provider) for event in lite.events if event.name.startswith("server_")
    }
    assert "note" not in " ".join(map(str, lite.events))


@pytest.mark.any_database
def test_bound_to_a_session_it_serves_other_contexts(serving: Serving) -> None:
    """A dependency that runs in another context finds the keys through the session."""
    serving.users(1, "hello")
    with Session(serving.engine) as session:
        with serving.envelope().server_mode(session, reason="job"):
            read = Context().run(lambda: session.scalars(select(Note)).one().body)
        assert read == "hello"


# The whole process


def test_everywhere_serves_threads_and_tasks_from_before_and_after(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Threads and tasks that were started before server mode came on read as those that are started later."""
    serving.users(1, "hello")
    started, on = threading.Event(), threading.Event()

    def read() -> str | None:
        with Session(serving.engine) as session:
            return session.scalars(select(Note)).one().body

    def wait_and_read() -> str | None:
        started.set()
        assert on.wait(WAIT)
        return read()

    async def in_tasks() -> list[str | None]:
        gate = asyncio.Event()

        async def earlier() -> str | None:
            await gate.wait()
            return read()

        task = asyncio.create_task(earlier())
        await asyncio.sleep(0)
        everywhere(serving.mode())
        on.set()
        gate.set()
        later = asyncio.create_task(asyncio.to_thread(read))
        loop = asyncio.get_running_loop()
        return [await task, await later, await loop.run_in_executor(None, read), read()]

    with ThreadPoolExecutor(1) as before:
        earlier = before.submit(wait_and_read)
        assert started.wait(WAIT)
        in_loop = asyncio.run(in_tasks())
        with ThreadPoolExecutor(1) as after:
            later = after.submit(read).result(WAIT)

        assert [earlier.result(WAIT), later, *in_loop] == ["hello"] * 6


def test_one_server_mode_serves_the_process(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A second one is refused until the first is stopped."""
    first = everywhere(lite.mode())
    with pytest.raises(ConfigurationError, match="stop"):
        lite.mode().everywhere()
    with pytest.raises(ConfigurationError):
        first.everywhere()
    first.stop()

    lite.mode().everywhere().stop()


@pytest.mark.any_database
def test_stop_locks_the_process(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """After `stop` no key is left and what is loaded later stays locked; a new one serves again."""
    (ada,) = serving.users(1, "hello")
    server = everywhere(serving.mode())
    with Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"
    server.stop()

    assert NOTHING.server is None
    assert len(server.keyring) == 0
    with Session(serving.engine) as session:
        note = session.scalars(select(Note)).one()
        with pytest.raises(LockedError):
            _ = note.body
    with Session(serving.engine) as session:
        session.add(Note(user_id=ada, body="lost"))
        with pytest.raises(LockedError):
            session.flush()
    everywhere(serving.mode())
    assert serving.bodies(ada) == ["hello"]


@pytest.mark.any_database
def test_a_user_unlocks_inside(
    serving: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """Who unlocks inside server mode sees both, and takes only their own keys along when leaving."""
    served = serving.users(1, "the server's")
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="own@example.org")
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        own = user.id
    everywhere(serving.mode())
    with Session(serving.engine) as session:
        user = session.get_one(User, own)
        with envelope.unlock(session, user, secret=SECRET):
            session.add_all([Note(user_id=own, body="mine"), Note(user_id=served[0], body="more")])
            session.commit()
            inside = session.scalars(select(Note).order_by(Note.id)).all()

            assert {"the server's", "mine", "more"} == {note.body for note in inside}
        outside = session.scalars(select(Note).where(Note.user_id == served[0])).all()

        assert {"the server's", "more"} == {note.body for note in outside}
        (mine,) = session.scalars(select(Note).where(Note.user_id == own)).all()
        with pytest.raises(LockedError):
            _ = mine.body


def test_a_block_inside_the_process_wide_one_leaves_it_as_it_was(
    lite: Serving, everywhere: Callable[[ServerSession], ServerSession]
) -> None:
    """A job's own server mode inside the process's ends with the job; the process goes on."""
    (ada,) = lite.users(1, "hello")
    everywhere(lite.mode())
    with Session(lite.engine) as session:
        with lite.mode():
            session.add(Note(user_id=ada, body="job"))
            session.commit()
        session.add(Note(user_id=ada, body="after"))
        session.commit()

        assert [n.body for n in session.scalars(select(Note).order_by(Note.id))] == ["hello", "job", "after"]


# Who stays locked


@pytest.mark.any_database
def test_owners_without_a_slot_stay_locked(serving: Serving) -> None:
    """Rows of an owner whose keys only a secret opens load, and do not open; nor can they be written."""
    served = serving.users(1, "the server's")
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="own@example.org", phone="123")
        with envelope.enroll(session, user, secret=SECRET):
            note = Note(user=user, body="secret")
            session.add(note)
            session.commit()
            own = user.id
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()

        assert [served[0], own] == [note.user_id for note in notes]
        assert notes[0].body == "the server's"
        with pytest.raises(LockedError):
            _ = notes[1].body
        with pytest.raises(LockedError):
            _ = session.get_one(User, own).phone
        notes[1].title = "seen"
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        session.add(Note(user_id=own, body="planted"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()
    with Session(serving.engine) as session:
        user = session.get_one(User, own)
        with envelope.unlock(session, user, secret=SECRET):
            assert [(note.title, note.body) for note in user.notes] == [("seen", "secret")]


@pytest.mark.any_database
def test_slots_of_another_provider_stay_locked(serving: Serving) -> None:
    """Server mode of one provider opens nothing that another one holds."""
    envelope = serving.envelope(providers={"other": ServerKeyring([b"\x08" * 32])})
    with Session(serving.engine) as session:
        user = User(email="other@example.org")
        with envelope.enroll(session, user, provider="other"):
            session.add(Note(user=user, body="hello"))
            session.commit()
    with envelope.server_mode(reason="test"), Session(serving.engine) as session:
        note = session.scalars(select(Note)).one()
        with pytest.raises(LockedError):
            _ = note.body
    with envelope.server_mode(provider="other", reason="test"), Session(serving.engine) as session:
        assert session.scalars(select(Note)).one().body == "hello"


@pytest.mark.any_database
def test_a_value_moved_to_another_owners_row_is_found(serving: Serving) -> None:
    """With everybody's keys within reach a value is still compared with its row's owner."""
    serving.users(2)
    notes = sa.table("notes", sa.column("id"), sa.column("body"))
    with serving.engine.begin() as connection:
        one = select(notes.c.body).where(notes.c.id == 1).scalar_subquery()
        connection.execute(update(notes).where(notes.c.id == 2).values(body=one))

    with serving.mode(), Session(serving.engine) as session, pytest.raises(DecryptionError):
        _ = session.scalars(select(Note).where(Note.id == 2)).one().body
