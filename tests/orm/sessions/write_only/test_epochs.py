"""One sealed write epoch encrypts many rows, and ends after its seconds, its values, or with its owner."""

from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from tests.orm.models import SECRET, Base, Note, Page, User
from tests.orm.sessions.write_only.webhook import Webhook

pytestmark = pytest.mark.any_database
KEYS: sa.Table = Base.metadata.tables["users_key"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], None]]:
    """A function that lets seconds go by for write epochs."""
    now = [1000.0]
    monkeypatch.setattr("sqlalchemy_envelope.orm.sessions.write_only.time.monotonic", lambda: now[0])

    def go_by(seconds: float) -> None:
        now[0] += seconds

    return go_by


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
