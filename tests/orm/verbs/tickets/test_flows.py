"""Staying logged in: a ticket is issued, opens requests, is listed and revoked, and ends by itself."""

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    Envelope,
    IssuedTicket,
    LockedError,
    Ticket,
    TicketError,
    TicketExpiredError,
    UnlockError,
)
from tests.orm.sharing_models import Base, Post, User, calls_sent, secret_of
from tests.orm.verbs.tickets.application import (
    DAY,
    HOUR,
    PROFILE,
    TICKETS,
    Application,
    envelope,
    events,
)

SECOND = dt.timedelta(seconds=1)


def test_a_ticket_opens_requests(app: Application) -> None:
    """Requests with a ticket read and write the user's own values and the group's."""
    ticket = app.log_in(label="browser")
    with app.request(ticket) as session:
        user = app.user(session)
        before = user.diary, user.display_name, [post.text for post in session.scalars(select(Post))]
        user.diary = "a new entry"
        session.add(Post(group_id=app.group_id, text="by ticket"))
        session.commit()
    with app.with_secret("ben") as (session, _):
        posts = [post.text for post in session.scalars(select(Post).order_by(Post.id))]

    assert before == ("the diary of ada", "Ada", ["the first post"])
    assert app.diary(ticket) == "a new entry"
    assert posts == ["the first post", "by ticket"]
    told = [one for one in events if one.name.startswith("ticket")]
    assert [one.name for one in told] == ["ticket_issued", "ticket_used", "ticket_used"]
    assert {(1,)} == {one.owner_id for one in told}


def test_a_request_by_ticket_takes_one_query(app: Application) -> None:
    """One query beside the request's own: the keys of the user, with the ticket beside its root key."""
    ticket = app.log_in()
    app.diary(ticket)
    with Session(app.engine) as session:
        user = app.user(session)
        with calls_sent(app.engine) as sent, envelope.unlock(session, user, ticket=ticket):
            assert user.diary == "the diary of ada"

    assert len(sent) == 1


def test_log_out(app: Application) -> None:
    """A revoked ticket opens nothing, and its row is gone. Another user's ticket cannot be revoked."""
    ticket, other = app.log_in(), app.log_in()
    with Session(app.engine) as session:
        ada, ben = app.user(session), app.user(session, "ben")

        assert not envelope.revoke_ticket(session, ben, ticket)
        assert envelope.revoke_ticket(session, ada, ticket)
        assert not envelope.revoke_ticket(session, ada, uuid.uuid4())
        session.commit()
    with pytest.raises(TicketError):
        app.diary(ticket)

    assert app.diary(other) == "the diary of ada"
    assert [other.ticket_id] == [row.ticket_id for row in app.rows()]
    assert [one.name for one in events[-3:-1]] == ["ticket_revoked", "ticket_refused"]


def test_your_devices(app: Application) -> None:
    """The list shows what still opens, with its label and times; log-out everywhere empties it."""
    first = app.log_in(label="phone")
    app.clock.forward(SECOND)
    app.log_in(label="browser", lifetime=DAY, idle=None)
    app.log_in("ben")
    with Session(app.engine) as session:
        listed = envelope.tickets(session, app.user(session))
        app.clock.forward(HOUR)
        later = envelope.tickets(session, app.user(session))
        count = envelope.revoke_tickets(session, app.user(session))
        session.commit()
        rest = envelope.tickets(session, app.user(session))
    start = app.clock.moment - HOUR - SECOND

    assert IssuedTicket(first.ticket_id, "phone", start, start, start + DAY, HOUR) == listed[0]
    assert [one.label for one in listed] == ["phone", "browser"]
    assert [one.label for one in later] == ["browser"]
    assert (count, rest) == (2, [])
    assert len(app.rows()) == 1


def changed(app: Application) -> None:
    with Session(app.engine) as session:
        envelope.change_secret(session, app.user(session), old=secret_of("ada"), new="other words")
        session.commit()


def reset(app: Application) -> None:
    with app.with_secret() as (session, unlocked):
        unlocked.set_secret(app.user(session), "other words")
        session.commit()


def recovered(app: Application) -> None:
    with app.with_secret() as (session, unlocked):
        code = unlocked.add_recovery_code(app.user(session))
        session.commit()
    with Session(app.engine) as session:
        envelope.reset_secret(session, app.user(session), recovery_code=code, new="other words")
        session.commit()


def rotated(app: Application) -> None:
    with app.with_secret() as (session, unlocked):
        user = app.user(session)
        unlocked.add_secret(user, "words of the phone", label="phone")
        session.commit()
        (slot,) = [one for one in envelope.slots(session, user) if one.label == "phone"]
        unlocked.remove_slot(user, slot)
        session.commit()


@pytest.mark.parametrize("how", [changed, reset, recovered, rotated])
def test_what_revokes_every_ticket(app: Application, how: Any) -> None:
    """A change of the secret, a new secret, and a new root key: no earlier ticket opens, and no row stays
    after a sweep. The tickets of others stay."""
    tickets, other = [app.log_in(), app.log_in()], app.log_in("ben")
    how(app)
    for ticket in tickets:
        with pytest.raises(TicketError):
            app.diary(ticket)
    with Session(app.engine) as session:
        envelope.sweep_tickets(session, User)
        session.commit()

    assert app.diary(other, "ben") == "the diary of ben"
    assert [other.ticket_id] == [row.ticket_id for row in app.rows()]


def test_rows_go_with_their_owner(app: Application) -> None:
    """Deleting a user by SQL deletes the tickets."""
    app.log_in()
    with app.engine.begin() as connection:
        connection.execute(sa.delete(User).where(User.email == "ada"))

    assert app.rows() == []


def test_a_ticket_ends(app: Application) -> None:
    """After its lifetime, however often it was used; and after its idle time. It stays over when the clock
    goes back, and says so to its holder alone."""
    ticket = app.log_in(lifetime=2 * HOUR, idle=HOUR)
    for _ in range(3):
        app.clock.forward(HOUR / 2)
        app.diary(ticket)
    idle = app.log_in(idle=HOUR)
    app.clock.forward(HOUR / 2)
    with pytest.raises(TicketExpiredError):
        app.diary(ticket)
    app.clock.forward(HOUR / 2)
    with pytest.raises(TicketExpiredError):
        app.diary(idle)
    app.clock.forward(-HOUR)
    for one in (ticket, idle):
        with pytest.raises(TicketError, match="Log in again"):
            app.diary(one)

    assert app.rows() == []


def test_use_is_written_now_and_then(app: Application) -> None:
    """At most ten times in the idle time, and it stays although the request commits nothing."""
    ticket, start = app.log_in(idle=HOUR), app.clock.moment
    uses = set()
    for _ in range(20):
        app.clock.forward(dt.timedelta(minutes=1))
        app.diary(ticket)
        with Session(app.engine) as session:
            uses.add(envelope.tickets(session, app.user(session))[0].used_at)

    assert {start + minutes * dt.timedelta(minutes=6) for minutes in range(4)} == uses


def test_a_write_elsewhere_is_not_waited_for(lite_app: Application) -> None:
    """While another request writes to the SQLite file, a use is not noted, and the request goes on."""
    ticket = lite_app.log_in()
    lite_app.clock.forward(HOUR / 2)
    with lite_app.engine.connect() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

        assert lite_app.diary(ticket) == "the diary of ada"
        connection.rollback()
    assert lite_app.clock.moment - HOUR / 2 == lite_app.rows()[0].used_at.replace(tzinfo=dt.UTC)


@pytest.mark.parametrize("many", [10, pytest.param(500, marks=pytest.mark.thorough)])
def test_a_thousand_tickets(lite_app: Application, many: int) -> None:
    """Issued and revoked, they leave no row; those that ended go with the next one of their owner."""
    with lite_app.with_secret() as (session, unlocked):
        user = lite_app.user(session)
        for _ in range(many):
            unlocked.revoke_ticket(user, unlocked.issue_ticket(user, lifetime=HOUR))
        for _ in range(many):
            unlocked.issue_ticket(user, lifetime=HOUR)
        lite_app.clock.forward(HOUR)
        last = unlocked.issue_ticket(user, lifetime=HOUR)
        session.commit()

        assert [last.ticket_id] == [row.ticket_id for row in lite_app.rows()]
        unlocked.revoke_tickets(user)
        session.commit()
    assert lite_app.rows() == []


def test_the_text_of_a_ticket() -> None:
    """It is text, fit for a cookie; its `repr` shows nothing."""
    ticket = Ticket("st1." + "A" * 64)

    assert repr(ticket) == "<Ticket redacted>"
    assert f"st1.{'A' * 64}" == str(ticket) == f"{ticket}"
    assert uuid.UUID(int=0) == ticket.ticket_id


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text[:-1], "cut or changed"),
        (lambda text: text[:40], "cut or changed"),
        (lambda text: text + "A", "cut or changed"),
        (lambda text: text[:-1] + "é", "cut or changed"),
        (lambda text: text + "\n", "cut or changed"),
        (lambda text: "", "cut or changed"),
        (lambda text: "a session id", "cut or changed"),
        (lambda text: text.replace("st1.", "st2."), "a later release"),
        (lambda text: text.replace("st1.", "st10."), "a later release"),
        (lambda text: text.encode(), "is text"),
        (lambda text: text[:10] + ("A" if text[10] != "A" else "B") + text[11:], "does not open"),
        (lambda text: text[:50] + ("A" if text[50] != "A" else "B") + text[51:], "does not open"),
        (lambda text: text[:4] + text[4:].swapcase(), "does not open"),
    ],
)
def test_a_text_that_is_no_ticket(lite_app: Application, change: Any, says: str) -> None:
    """Cut, changed, of a later version, or of another type: each is refused, by one error."""
    ticket = lite_app.log_in()
    with pytest.raises(TicketError, match=says) as caught:
        lite_app.diary(change(ticket))

    assert type(caught.value) is TicketError
    assert isinstance(caught.value, UnlockError)
    assert events[-1].name == "ticket_refused"


def test_a_ticket_changes_nothing_about_keys(app: Application) -> None:
    """It gives no slot and no ticket, makes no keys and settles nothing; no row of a key changes."""
    ticket = app.log_in()
    before = app.key_rows()
    with Session(app.engine) as session:
        user = app.user(session)
        with envelope.unlock(session, user, ticket=ticket) as unlocked:
            for refused in (
                lambda: unlocked.add_secret(user, "another secret", label="phone"),
                lambda: unlocked.set_secret(user, "another secret"),
                lambda: unlocked.add_provider(user, "server"),
                lambda: unlocked.issue_ticket(user, lifetime=HOUR),
                lambda: unlocked.settle(),
                lambda: envelope.settle(session),
            ):
                with pytest.raises(LockedError, match="ticket"):
                    refused()
            user.diary = "a new entry"
            session.add(Post(group_id=app.group_id, text="by ticket"))
            session.commit()

    assert before == app.key_rows()


@pytest.mark.parametrize(
    "times",
    [
        {"lifetime": dt.timedelta(0)},
        {"lifetime": -HOUR},
        {"lifetime": dt.timedelta(days=401)},
        {"lifetime": "3600"},
        {"lifetime": float("nan")},
        {"idle": dt.timedelta(0)},
        {"idle": True},
        {"idle": 0.5},
        {"label": "x" * 256},
        {"label": 3},
    ],
)
def test_times_that_are_refused(lite_app: Application, times: Any) -> None:
    """A lifetime or idle time that is no time, or too long."""
    with pytest.raises(ConfigurationError):
        lite_app.log_in(**times)

    assert lite_app.rows() == []


def test_a_ticket_needs_a_key_of_the_server(sqlite_engine: Any) -> None:
    """Without server keys there are no tickets, and the error shows the line to write."""
    plain = Envelope(kdf_profile=PROFILE)
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = User(email="ada")
        with plain.enroll(session, user, secret="a secret") as unlocked:
            session.commit()
            with pytest.raises(ConfigurationError, match=r"Envelope\(server_keys="):
                unlocked.issue_ticket(user, lifetime=HOUR)


def test_a_ticket_right_after_enrolling(app: Application) -> None:
    """A new user is logged in at once."""
    with Session(app.engine) as session:
        user = User(email="new", diary="the diary of new")
        with envelope.enroll(session, user, secret="the secret of new") as unlocked:
            ticket = unlocked.issue_ticket(user, lifetime=HOUR)
            session.commit()

    assert app.diary(ticket, "new") == "the diary of new"


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """The same with `await`: issued, used, its use noted, listed, revoked, swept."""
    aenvelope = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        user = User(email="ada", diary="the diary of ada")
        async with aenvelope.enroll(session, user, secret="a secret") as unlocked:
            with pytest.raises(ConfigurationError, match=r"await AsyncEnvelope\(envelope\).issue_ticket"):
                unlocked.issue_ticket(user, lifetime=HOUR)
            ticket = await aenvelope.issue_ticket(session, user, lifetime=DAY, idle=HOUR)
            await session.commit()
        await session.execute(TICKETS.update().values(used_at=dt.datetime.now(dt.UTC) - HOUR / 2))
        await session.commit()
        async with aenvelope.unlock(session, user, ticket=ticket):
            await session.refresh(user)

            assert user.diary == "the diary of ada"
        (listed,) = await aenvelope.tickets(session, user)
        assert listed.used_at > dt.datetime.now(dt.UTC) - HOUR / 4
        assert await aenvelope.revoke_ticket(session, user, ticket)
        assert await aenvelope.revoke_tickets(session, user) == 0
        assert await aenvelope.sweep_tickets(session, User) == 0
        with pytest.raises(TicketError):
            async with aenvelope.unlock(session, user, ticket=ticket):
                pass


def test_the_owner_by_the_ticket(app: Application) -> None:
    """With the class in place of the owner, one query loads the user and opens it; log-out needs no user."""
    ticket = app.log_in("ben")
    app.diary(ticket, "ben")
    with Session(app.engine) as session:
        with calls_sent(app.engine) as sent, envelope.unlock(session, User, ticket=ticket) as unlocked:
            found = unlocked.owner.email, unlocked.owner.diary
        envelope.revoke_ticket(session, User, ticket)
        session.commit()
        with pytest.raises(TicketError):
            envelope.unlock(session, User, ticket=ticket)
        with pytest.raises(ConfigurationError, match="no class of key owners"):
            envelope.unlock(session, Post, ticket=ticket)

    assert found == ("ben", "the diary of ben")
    assert len(sent) == 1
    assert events[-1].owner_id is None


def test_a_ticket_issued_while_the_secret_changes(app: Application) -> None:
    """Another request changes the secret before the log-in has committed: the change waits, and revokes the
    ticket that it could not see yet."""
    with app.with_secret() as (session, unlocked):
        ticket = unlocked.issue_ticket(app.user(session), lifetime=HOUR)
        with ThreadPoolExecutor(1) as pool:
            change = pool.submit(changed, app)
            done, _ = wait([change], timeout=0.5)
            session.commit()
            change.result()

    assert not done
    with pytest.raises(TicketError):
        app.diary(ticket)


@pytest.mark.parametrize("by_class", [False, True], ids=["owner", "class"])
def test_a_ticket_shows_slots_that_were_added(app: Application, by_class: bool) -> None:
    """A slot that somebody added is shown to whoever comes by ticket, until it is acknowledged."""
    ticket = app.log_in()
    shown = []
    for acknowledges in (False, True, False):
        with app.with_secret() as (session, unlocked):
            user = app.user(session)
            if not shown:
                unlocked.add_secret(user, "of the phone", label="phone")
            if acknowledges:
                unlocked.acknowledge_slots(user)
            session.commit()
        with Session(app.engine) as session:
            owner = User if by_class else app.user(session)
            with envelope.unlock(session, owner, ticket=ticket) as unlocked:
                shown.append([slot.label for slot in unlocked.unacknowledged_slots])

    assert shown == [["phone"], [], []]


def test_a_lifetime_may_be_given_in_seconds(app: Application) -> None:
    """A number is so many seconds, as elsewhere in this library."""
    app.log_in(lifetime=3600, idle=600)
    with Session(app.engine) as session:
        (made,) = envelope.tickets(session, app.user(session))

    assert (HOUR, dt.timedelta(minutes=10)) == (made.expires_at - made.issued_at, made.idle)
