"""Writing for owners who are locked: a sealed write epoch encrypts any number of ordinary values with one
seal, nothing of them can be read back, and their owner reads them after the next unlock.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AsyncEnvelope, LockedError, NotEnrolledError, ServerKeyring, SessionLeftError
from tests.orm.models import OVERHEAD, SECRET, Base, Note, Page, User, stored
from tests.orm.sessions.write_only.webhook import Webhook

pytestmark = pytest.mark.any_database
KEYS: sa.Table = Base.metadata.tables["users_key"]


def locked(read: Callable[[], Any]) -> bool:
    """Whether reading says that it is locked."""
    try:
        read()
    except LockedError:
        return True
    return False


# Writing without reading


def test_the_owner_reads_after_the_next_unlock(webhook: Webhook) -> None:
    """What was written for a locked user is ordinary ciphertext, and theirs to read; the epoch is adopted."""
    ada = webhook.user()
    webhook.write(ada, "one", "two")
    (sealed,) = webhook.epochs(ada)
    raw = stored(webhook.engine, Note.body, 1)

    assert sealed.wrapped[:1] == b"\x12"
    assert len(sealed.wrapped) == 81
    assert raw is not None
    assert raw[:1] == b"\x01"
    assert len(raw) == len("one") + OVERHEAD
    assert webhook.read(ada) == ["one", "two"]
    (adopted,) = webhook.epochs(ada)
    assert adopted.wrapped[:1] == b"\x11"
    assert adopted.purpose == "write"
    assert adopted.key_id == sealed.key_id
    assert "write_epoch_adopted" in [event.name for event in webhook.events]
    assert webhook.read(ada) == ["one", "two"]


def test_the_block_cannot_read_what_it_wrote(webhook: Webhook) -> None:
    """After flush, refresh, expiry or in another session values are locked; so is all from before."""
    ada = webhook.user()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.unlock(session, user, secret=SECRET):
            session.add(Note(user_id=ada, body="before"))
            session.commit()
    with Session(webhook.engine) as session:
        with webhook.envelope.write_only(session, session.get_one(User, ada)) as block:
            note = Note(user_id=ada, body="new", title="t")
            session.add(note)
            session.flush()
            session.refresh(note)
            assert locked(lambda: note.body)
            session.expire(note)
            assert note.title == "t"
            assert locked(lambda: note.body)
            session.commit()
            assert locked(lambda: note.body)
            found = session.scalars(select(Note).order_by(Note.id)).all()
            assert [locked(lambda one=one: one.body) for one in found] == [True, True]
            with Session(webhook.engine) as other:
                assert locked(lambda: other.get_one(Note, note.id).body)
            handle: Any = session.scalars(select(Note.body)).all()[0]
            with pytest.raises(LockedError):
                block.decrypt(handle)
        assert locked(lambda: note.body)

    assert webhook.read(ada) == ["before", "new"]


def test_leaving_forgets_the_plaintext_that_was_written(webhook: Webhook) -> None:
    """Without expire_on_commit the object holds what was assigned only until the block is left."""
    ada = webhook.user()
    with Session(webhook.engine, expire_on_commit=False) as session:
        with webhook.envelope.write_only(session, session.get_one(User, ada)) as block:
            note = Note(user_id=ada, body="new")
            session.add(note)
            session.commit()

        assert locked(lambda: note.body)
        assert not block.is_open
        with pytest.raises(SessionLeftError):
            block.__enter__()


def test_a_column_of_a_locked_row_is_overwritten(webhook: Webhook) -> None:
    """An existing locked row takes a new value, and the owner's own columns do."""
    ada = webhook.user()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.unlock(session, user, secret=SECRET):
            session.add(Note(user_id=ada, body="before", size=1))
            session.commit()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.write_only(session, user):
            session.scalars(select(Note)).one().body = "after"
            user.phone = "123"
            session.commit()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.unlock(session, user, secret=SECRET):
            note = session.scalars(select(Note)).one()

            assert (note.body, note.size, user.phone) == ("after", 1, "123")


def test_row_bound_columns(webhook: Webhook) -> None:
    """A row-bound value that was written for a locked user is bound to its row all the same."""
    ada = webhook.user()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.write_only(session, user):
            session.add_all([Page(user_id=ada, text="one"), Page(user_id=ada, text="two")])
            session.commit()
        with webhook.envelope.unlock(session, user, secret=SECRET):
            assert {"one", "two"} == {page.text for page in session.scalars(select(Page))}


def test_bulk_inserts_and_statements(webhook: Webhook) -> None:
    """Bulk and Core inserts for a locked user, and an UPDATE for the owner that `using` names."""
    ada = webhook.user()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.write_only(session, user) as block:
            session.execute(insert(Note), [{"user_id": ada, "body": f"bulk {n}"} for n in range(50)])
            session.execute(insert(Note.__table__), [{"user_id": ada, "body": "core"}] * 2)  # type: ignore[arg-type]
            with block.using(user):
                session.execute(update(Note.__table__).where(Note.id == 1).values(body="updated"))  # type: ignore[arg-type]
            session.commit()

    assert webhook.seals == 1
    assert ["updated", *(f"bulk {n}" for n in range(1, 50)), "core", "core"] == webhook.read(ada)


# For whom


def test_several_owners(webhook: Webhook) -> None:
    """One block writes for several owners, one seal for each, and each reads their own alone."""
    ada, ben = webhook.user("ada"), webhook.user("ben")
    with Session(webhook.engine) as session:
        owners = [session.get_one(User, one) for one in (ada, ben)]
        with webhook.envelope.write_only(session, *owners):
            session.add_all(
                [Note(user_id=one, body=f"for {one} {n}") for n in range(3) for one in (ada, ben)]
            )
            session.commit()

    assert webhook.seals == 2
    for one in (ada, ben):
        assert [f"for {one} {n}" for n in range(3)] == webhook.read(one)
    with (
        Session(webhook.engine) as session,
        webhook.envelope.unlock(session, session.get_one(User, ada), secret=SECRET),
    ):
        other = session.scalars(select(Note).where(Note.user_id == ben)).first()
        assert other is not None
        assert locked(lambda: other.body)


def test_an_owner_who_is_not_named_is_refused(webhook: Webhook) -> None:
    """A block for one owner writes nothing for another; one without owners writes for anybody."""
    ada, ben = webhook.user("ada"), webhook.user("ben")
    with Session(webhook.engine) as session, webhook.envelope.write_only(session, session.get_one(User, ada)):
        session.add(Note(user_id=ben, body="no"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()
        session.add(Note(user_id=ada, body="yes"))
        session.commit()
    with Session(webhook.engine) as session, webhook.envelope.write_only(session):
        session.add_all([Note(user_id=ada, body="both"), Note(user_id=ben, body="both")])
        session.commit()

    assert webhook.read(ada) == ["yes", "both"]
    assert webhook.read(ben) == ["both"]


def test_an_owner_without_keys(webhook: Webhook) -> None:
    """Nothing can be written for who has no keys, named or not: told with the first value."""
    with Session(webhook.engine) as session:
        user = User(email="bare")
        session.add(user)
        session.commit()
        for owners in ([user], []):
            with webhook.envelope.write_only(session, *owners):
                session.add(Note(user_id=user.id, body="no"))
                with pytest.raises(NotEnrolledError):
                    session.flush()
                session.rollback()

    assert webhook.seals == 0


def test_an_owner_that_is_not_there(lite: Webhook) -> None:
    """A row that names nobody is told from a row of an owner without keys."""
    statement = insert(Note).values(user_id=999, body="no")
    with (
        Session(lite.engine) as session,
        lite.envelope.write_only(session),
        pytest.raises(NotEnrolledError, match="names a User that is not in the database"),
    ):
        session.execute(statement)


@pytest.mark.parametrize("served", [False, True])
def test_the_error_about_an_owner_without_keys(lite: Webhook, served: bool) -> None:
    """It names what makes keys: server mode only where there are server keys, and both cures work."""
    envelope = lite.restart(**({"server_keys": ServerKeyring([b"k" * 32])} if served else {}))
    with Session(lite.engine) as session:
        user = User(email="bare")
        session.add(user)
        session.commit()
        with envelope.write_only(session), pytest.raises(NotEnrolledError) as caught:
            session.execute(insert(Note).values(user_id=user.id, body="no"))

        assert "has no keys to write under, and write_only makes none. Make them, `envelope.enroll(" in str(
            caught.value
        )
        assert ("let server mode make them with the first value" in str(caught.value)) is served

        with ExitStack() as stack:
            if served:
                stack.enter_context(envelope.server_mode(reason="test"))
            else:
                envelope.enroll(session, user, secret=SECRET)
            stack.enter_context(envelope.write_only(session))
            session.execute(insert(Note).values(user_id=user.id, body="yes"))


def test_post_quantum(webhook: Webhook) -> None:
    """With `post_quantum` epochs are sealed in format 0x13, 1,169 bytes; values cost no more than before."""
    webhook.restart(post_quantum=True)
    ada = webhook.user()
    webhook.write(ada, "one")
    (sealed,) = webhook.epochs(ada)
    raw = stored(webhook.engine, Note.body, 1)

    assert sealed.wrapped[:1] == b"\x13"
    assert len(sealed.wrapped) == 1169
    assert raw is not None
    assert len(raw) == len("one") + OVERHEAD
    assert webhook.read(ada) == ["one"]
    (adopted,) = webhook.epochs(ada)
    assert adopted.wrapped[:1] == b"\x11"


def test_a_key_from_before_post_quantum_is_sealed_to_as_it_is(webhook: Webhook) -> None:
    """Owners who were enrolled before the option have no such key pair, and are written for all the same."""
    ada = webhook.user()
    webhook.restart(post_quantum=True)
    webhook.write(ada, "one")
    (sealed,) = webhook.epochs(ada)

    assert sealed.wrapped[:1] == b"\x12"
    assert webhook.read(ada) == ["one"]


def test_inside_anothers_unlocked_session(webhook: Webhook) -> None:
    """In a block inside Ada's unlocked session her values are read and written as usual, Ben's written."""
    ada, ben = webhook.user("ada"), webhook.user("ben")
    with Session(webhook.engine) as session:
        users = {one.id: one for one in session.scalars(select(User))}
        with webhook.envelope.unlock(session, users[ada], secret=SECRET):
            with webhook.envelope.write_only(session, users[ben]):
                mine, his = Note(user_id=ada, body="mine"), Note(user_id=ben, body="his")
                session.add_all([mine, his])
                session.commit()
                assert mine.body == "mine"
                assert locked(lambda: his.body)
            assert mine.body == "mine"
            assert locked(lambda: his.body)

    assert webhook.seals == 1
    assert webhook.epochs(ada) == []
    assert webhook.read(ada) == ["mine"]
    assert webhook.read(ben) == ["his"]


def test_unlocking_inside_the_block(webhook: Webhook) -> None:
    """Who is unlocked inside a block is written for under their own keys and reads what the block wrote."""
    ada = webhook.user()
    with Session(webhook.engine) as session:
        user = session.get_one(User, ada)
        with webhook.envelope.write_only(session):
            session.add(Note(user_id=ada, body="sealed"))
            session.commit()
            with webhook.envelope.unlock(session, user, secret=SECRET):
                session.add(Note(user_id=ada, body="direct"))
                session.commit()
                assert {"sealed", "direct"} == {note.body for note in session.scalars(select(Note))}
            assert all(locked(lambda one=one: one.body) for one in session.scalars(select(Note)))

    assert webhook.seals == 1
    assert webhook.read(ada) == ["sealed", "direct"]


def test_server_mode_reads_what_was_written_for_its_owners(webhook: Webhook) -> None:
    """For an owner whose keys a provider holds, server mode opens what a block wrote, adopted or not."""
    webhook.restart(server_keys=ServerKeyring([b"\x07" * 32]))
    ada = webhook.user(secret=SECRET, provider="server")
    webhook.write(ada, "one")
    for _ in range(2):
        with webhook.envelope.server_mode(reason="test"), Session(webhook.engine) as session:
            assert session.scalars(select(Note)).one().body == "one"

    assert webhook.read(ada) == ["one"]


def test_a_block_inside_server_mode_writes_for_user_held_owners(webhook: Webhook) -> None:
    """Inside server mode a block seals for owners without a slot, and writes for the others as usual."""
    webhook.restart(server_keys=ServerKeyring([b"\x07" * 32]))
    ada, held = webhook.user("ada"), webhook.user("held", provider="server")
    with (
        webhook.envelope.server_mode(reason="test"),
        Session(webhook.engine) as session,
        webhook.envelope.write_only(session),
    ):
        session.add_all([Note(user_id=ada, body="hers"), Note(user_id=held, body="the server's")])
        session.commit()
        found = {note.user_id: note for note in session.scalars(select(Note))}
        assert found[held].body == "the server's"
        assert locked(lambda: found[ada].body)

    assert webhook.seals == 1
    assert webhook.epochs(held) == []
    assert webhook.read(ada) == ["hers"]


# Async


async def test_async(async_engine: AsyncEngine) -> None:
    """The same with `AsyncSession`: written for a locked user, not readable, and read after `async with`."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    webhook = Webhook(async_engine.sync_engine)
    envelope = AsyncEnvelope(webhook.envelope)
    async with AsyncSession(async_engine) as session:
        user = User(email="ada")
        await envelope.enroll(session, user, secret=SECRET)
        ada = user.id
        await session.commit()
    async with AsyncSession(async_engine) as session:
        user = await session.get_one(User, ada)
        plain = session.sync_session
        block = await session.run_sync(lambda _: webhook.envelope.write_only(plain, user))
        with block:
            for number in range(3):
                session.add_all([Note(user_id=ada, body=f"{number} {n}") for n in range(10)])
                await session.commit()
            note = (await session.scalars(select(Note))).first()
            assert note is not None
            assert locked(lambda: note.body)
    assert webhook.seals == 1
    async with AsyncSession(async_engine) as session:
        user = await session.get_one(User, ada)
        async with envelope.unlock(session, user, secret=SECRET):
            notes = (await session.scalars(select(Note).order_by(Note.id))).all()

            assert [f"{number} {n}" for number in range(3) for n in range(10)] == [
                note.body for note in notes
            ]
