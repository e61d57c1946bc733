"""Writing for owners who are locked: a sealed write epoch encrypts any number of ordinary values with one
seal, nothing of them can be read back, and their owner reads them after the next unlock.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    Envelope,
    KdfProfile,
    LockedError,
    NotEnrolledError,
    ServerKeyring,
    SessionLeftError,
)
from tests.orm.models import OVERHEAD, SECRET, Base, Note, Page, User, stored
from tests.prepared import tables_of

pytestmark = pytest.mark.any_database

KEYS: sa.Table = Base.metadata.tables["users_key"]


@dataclass
class Webhook:
    """An application with users who are away."""

    engine: Engine
    events: list[AuditEvent] = field(default_factory=list)
    envelope: Envelope = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, **options: Any) -> Envelope:
        """The application as another process: it remembers no epoch."""
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(), audit=self.events.append, **options
        )
        return self.envelope

    def user(self, name: str = "ada", **options: Any) -> int:
        """A user who is enrolled and away; its id."""
        with Session(self.engine) as session:
            user = User(email=name)
            self.envelope.enroll(session, user, **(options or {"secret": SECRET}))
            session.commit()
            return user.id

    def write(self, owner: int, *bodies: str) -> None:
        """Notes for a user who is locked, in a session and a block of their own."""
        with Session(self.engine) as session, self.envelope.write_only(session, session.get_one(User, owner)):
            session.add_all([Note(user_id=owner, body=body) for body in bodies])
            session.commit()

    def read(self, owner: int) -> list[str | None]:
        """What a user reads who unlocks, and settles as a log-in does."""
        with Session(self.engine) as session:
            user = session.get_one(User, owner)
            with self.envelope.unlock(session, user, secret=SECRET) as unlocked:
                unlocked.settle()
                bodies = [
                    note.body
                    for note in session.scalars(select(Note).where(Note.user_id == owner).order_by(Note.id))
                ]
                session.commit()
            return bodies

    @property
    def seals(self) -> int:
        """How many write epochs were sealed."""
        return [event.name for event in self.events].count("write_epoch_sealed")

    def epochs(self, owner: int) -> list[Any]:
        """The rows of a user's write epochs."""
        query = select(KEYS).where(KEYS.c.owner_id == owner, KEYS.c.purpose == "write")
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(KEYS.c.created_at)))


@pytest.fixture
def webhook(engine: Engine) -> Webhook:
    """The application, on SQLite and on PostgreSQL."""
    tables_of(Base.metadata, engine)
    return Webhook(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Webhook:
    """The application, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return Webhook(sqlite_engine)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A function that lets seconds go by for write epochs."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.write_only.time.monotonic", lambda: now[0])

    def go_by(seconds: float) -> None:
        now[0] += seconds

    return go_by


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


# One seal for an epoch


def test_one_seal_for_many_rows_blocks_and_transactions(webhook: Webhook) -> None:
    """2,000 rows over several blocks and transactions of one process cost one seal and one row of keys."""
    ada = webhook.user()
    for block in range(4):
        with Session(webhook.engine) as session, webhook.envelope.write_only(session):
            for part in range(5):
                rows = [{"user_id": ada, "body": f"{block} {part} {n}"} for n in range(100)]
                session.execute(insert(Note), rows)
                session.commit()

    assert webhook.seals == 1
    assert len(webhook.epochs(ada)) == 1
    bodies = webhook.read(ada)
    assert bodies == [f"{block} {part} {n}" for block in range(4) for part in range(5) for n in range(100)]


def test_an_adopted_epoch_goes_on(webhook: Webhook) -> None:
    """An epoch that its owner has adopted meanwhile is written under until it ends."""
    ada = webhook.user()
    webhook.write(ada, "one")
    assert webhook.read(ada) == ["one"]
    webhook.write(ada, "two")

    assert webhook.seals == 1
    assert webhook.read(ada) == ["one", "two"]


def test_another_process_seals_its_own(webhook: Webhook) -> None:
    """A process that remembers nothing makes an epoch of its own; both are adopted at once."""
    ada = webhook.user()
    webhook.write(ada, "one")
    webhook.restart()
    webhook.write(ada, "two")

    assert len(webhook.epochs(ada)) == 2
    assert webhook.read(ada) == ["one", "two"]
    assert [row.wrapped[:1] for row in webhook.epochs(ada)] == [b"\x11", b"\x11"]


def test_an_epoch_that_was_rolled_back_is_not_used_again(webhook: Webhook) -> None:
    """After a rollback, in the same block or a later one, a new epoch is sealed."""
    ada = webhook.user()
    with Session(webhook.engine) as session, webhook.envelope.write_only(session, session.get_one(User, ada)):
        session.add(Note(user_id=ada, body="lost"))
        session.flush()
        session.rollback()
        session.add(Note(user_id=ada, body="one"))
        session.commit()
        session.add(Note(user_id=ada, body="lost"))
        session.flush()
        session.rollback()
    webhook.write(ada, "two")

    assert webhook.seals == 2
    assert webhook.read(ada) == ["one", "two"]


def test_an_epoch_of_a_savepoint_goes_with_it(webhook: Webhook) -> None:
    """An epoch that was sealed inside a savepoint is not used after that was rolled back."""
    ada = webhook.user()
    with Session(webhook.engine) as session, webhook.envelope.write_only(session, session.get_one(User, ada)):
        with session.begin_nested() as savepoint:
            session.add(Note(user_id=ada, body="lost"))
            session.flush()
            savepoint.rollback()
        session.add(Note(user_id=ada, body="kept"))
        session.commit()

    assert webhook.read(ada) == ["kept"]


@pytest.mark.parametrize("within", ["one block", "two blocks"])
def test_an_epoch_whose_owner_was_made_again_is_not_used(webhook: Webhook, within: str) -> None:
    """The owner was deleted and enrolled again under the same id: an epoch of before leads nowhere."""
    ada = webhook.user()

    def again() -> None:
        with Session(webhook.engine) as other:
            other.execute(sa.delete(User).where(User.id == ada))
            user = User(id=ada, email="again")
            webhook.envelope.enroll(other, user, secret=SECRET)
            other.commit()

    if within == "one block":
        with Session(webhook.engine) as session, webhook.envelope.write_only(session):
            session.add(Note(user_id=ada, body="before"))
            session.commit()
            again()
            session.add(Note(user_id=ada, body="after"))
            session.commit()
    else:
        webhook.write(ada, "before")
        again()
        webhook.write(ada, "after")

    assert webhook.seals == 2
    assert webhook.read(ada) == ["after"]


def test_an_epoch_ends_after_its_seconds(webhook: Webhook, clock: Callable[[float], None]) -> None:
    """After `write_epoch_seconds` the next value is under a new epoch, in a new block and in the same one."""
    webhook.restart(write_epoch_seconds=60)
    ada = webhook.user()
    webhook.write(ada, "one")
    clock(59)
    webhook.write(ada, "two")
    assert webhook.seals == 1
    clock(2)
    webhook.write(ada, "three")
    assert webhook.seals == 2
    with Session(webhook.engine) as session, webhook.envelope.write_only(session):
        session.add(Note(user_id=ada, body="four"))
        session.commit()
        assert webhook.seals == 2
        clock(61)
        session.add(Note(user_id=ada, body="five"))
        session.commit()

    assert webhook.seals == 3
    assert webhook.read(ada) == ["one", "two", "three", "four", "five"]


@pytest.mark.parametrize("blocks", [1, 6], ids=["one-block", "six-blocks"])
def test_an_epoch_ends_after_its_values(webhook: Webhook, blocks: int) -> None:
    """No epoch encrypts more than `write_epoch_values`, over however many transactions; few are made."""
    webhook.restart(write_epoch_values=20)
    ada = webhook.user()
    for block in range(blocks):
        with Session(webhook.engine) as session, webhook.envelope.write_only(session):
            for part in range(6 // blocks):
                rows = [{"user_id": ada, "text": f"{block} {part} {n}"} for n in range(8)]
                session.execute(insert(Page), rows)
                session.commit()

    with webhook.engine.connect() as connection:
        raw = sa.table("pages", sa.column("text", sa.LargeBinary))
        headers = [bytes(blob)[:17] for blob in connection.scalars(select(raw.c.text))]
    assert len(headers) == 48
    assert max(headers.count(header) for header in headers) <= 20
    assert webhook.seals == 3  # two statements of 8 fit into an epoch of 20


def test_a_statement_larger_than_an_epoch_takes_one(webhook: Webhook) -> None:
    """A statement with more values than an epoch may have is under one epoch, which then ends."""
    webhook.restart(write_epoch_values=5)
    ada = webhook.user()
    webhook.write(ada, *(str(n) for n in range(10)))

    assert webhook.seals == 1
    webhook.write(ada, "next")
    assert webhook.seals == 2
    assert len(webhook.read(ada)) == 11


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


def test_nothing_of_an_epoch_is_kept_but_its_end(lite: Webhook) -> None:
    """Leaving a block wipes its copy of the key; the process keeps one for each owner for later."""
    ada = lite.user()
    with (
        Session(lite.engine) as session,
        lite.envelope.write_only(session, session.get_one(User, ada)) as block,
    ):
        session.add(Note(user_id=ada, body="one"))
        session.commit()

    assert len(block.keyring) == 0
    assert len(lite.envelope.policy.write_epochs) == 1
