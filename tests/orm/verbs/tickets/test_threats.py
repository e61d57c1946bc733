"""The threat table of docs/how-to/stay-logged-in.md, line by line: what a thief of each thing gets."""

import base64
import datetime as dt
import shutil
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.cobblestone import Cobblestone256Decryptor
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, LockedError, ServerKeyring, TicketError, UnlockError
from sqlalchemy_envelope.exceptions import TamperedKeyError
from tests.orm import outsider as spec
from tests.orm.sharing_models import Base, Post, secret_of
from tests.orm.verbs.tickets.application import (
    DAY,
    HOUR,
    KEY,
    OTHER_KEY,
    PROFILE,
    TICKETS,
    Application,
    Clock,
    envelope,
)

USERS_KEY: sa.Table = Base.metadata.tables["users_key"]


def opened(row: Any, client_half: bytes, server_key: bytes, *, realm: str = "") -> bytes | None:
    """What the parts of a ticket's key give a thief, by the specification and without the library."""

    def seconds(moment: dt.datetime) -> int:
        return int(moment.replace(tzinfo=dt.UTC).timestamp())

    context = spec.ctx(
        "ticket",
        row.ticket_id.bytes,
        spec.ctx("owner", b"users", spec.reference(row.owner_id)),
        row.key_id.bytes,
        seconds(row.issued_at).to_bytes(8, "big"),
        seconds(row.expires_at).to_bytes(8, "big"),
        (row.idle_seconds or 0).to_bytes(4, "big"),
        realm.encode(),
    )
    pepper = spec.expand(server_key, spec.ctx("ticket-pepper"), 32)
    key = HKDF(SHA512(), 32, None, context).derive(client_half + bytes(row.server_half) + pepper)
    message = Cobblestone256Decryptor(key, b"")
    try:
        return message.update(bytes(row.wrapped)[1:]) + message.finalize()
    except Exception:  # noqa: BLE001 - whatever its name is
        return None


def half_of(ticket: str) -> bytes:
    """The client's half, from the text of a ticket."""
    return base64.urlsafe_b64decode(ticket[4:])[16:]


def test_a_stolen_dump(lite_app: Application) -> None:
    """With every row, and any guess at the other parts, a thief opens nothing."""
    lite_app.log_in()
    (row,) = lite_app.rows()
    guesses = [bytes(32), bytes(row.server_half), row.ticket_id.bytes * 2]

    assert [opened(row, half, key) for half in guesses for key in guesses] == [None] * 9


def test_a_stolen_dump_and_cookie(lite_app: Application) -> None:
    """Both are not enough: the server holds the third part. With all three, the carried keys are open, and
    they are data keys alone."""
    ticket = lite_app.log_in()
    (row,) = lite_app.rows()
    entries = opened(row, half_of(ticket), KEY)
    kinds = {key.key_id.bytes: key.purpose for key in lite_app.rows(USERS_KEY)}

    assert opened(row, half_of(ticket), OTHER_KEY) is None
    assert entries is not None
    assert {"data", None} == {kinds.get(entries[at : at + 16]) for at in range(0, len(entries), 64)}
    assert opened(row, half_of(ticket), KEY, realm="another") is None


def test_a_stolen_pepper_and_dump(lite_app: Application) -> None:
    """The server's key and the rows open no ticket without its cookie."""
    lite_app.log_in()
    (row,) = lite_app.rows()

    assert opened(row, bytes(32), KEY) is None


def test_a_stolen_cookie(lite_app: Application) -> None:
    """It reads and writes through the application until it ends, and changes nothing about keys: another test
    has all the verbs."""
    ticket = lite_app.log_in()
    before = lite_app.key_rows()

    assert lite_app.diary(ticket) == "the diary of ada"
    assert before == lite_app.key_rows()


@pytest.mark.parametrize(
    "values",
    [
        {"expires_at": Clock().moment + 30 * DAY},
        {"issued_at": Clock().moment + HOUR / 60},
        {"idle_seconds": 86400},
        {"idle_seconds": None},
        {"idle_seconds": -1},
        {"server_half": bytes(32)},
        {"server_key_id": bytes(16)},
        {"wrapped": b""},
        {"wrapped": b"\x31"},
        {"wrapped": b"\x11" + bytes(136)},
        {"wrapped": b"\x31" + bytes(136)},
    ],
    ids=lambda values: " ".join(f"{name} {str(value)[:8]}" for name, value in values.items()),
)
def test_an_edited_row(app: Application, values: dict[str, Any]) -> None:
    """Each column of a row is bound to its wrap: an edited date makes no ticket live longer."""
    ticket = app.log_in()
    app.alter(**values)
    with pytest.raises(TicketError, match=r"does not open|is not configured"):
        app.diary(ticket)


def test_a_later_use_is_a_longer_idle_time(lite_app: Application) -> None:
    """The one column that is not bound: who writes to the database makes a ticket live to the end of its
    lifetime, and no longer."""
    ticket = lite_app.log_in(lifetime=2 * HOUR, idle=HOUR)
    lite_app.clock.forward(1.5 * HOUR)
    lite_app.alter(used_at=lite_app.clock.moment)

    assert lite_app.diary(ticket) == "the diary of ada"
    lite_app.clock.forward(HOUR)
    lite_app.alter(used_at=lite_app.clock.moment)
    with pytest.raises(TicketError):
        lite_app.diary(ticket)


def test_a_replay_after_revocation(lite_app: Application) -> None:
    """The cookie of a user who logged out opens nothing; nor does it with the row put back by whoever writes
    to the database, once the secret was changed with a new root key."""
    ticket = lite_app.log_in()
    (row,) = lite_app.rows()
    with lite_app.engine.begin() as connection:
        connection.execute(TICKETS.delete())
    with pytest.raises(TicketError):
        lite_app.diary(ticket)
    with lite_app.engine.begin() as connection:
        connection.execute(TICKETS.insert().values(**row._mapping))

    assert lite_app.diary(ticket) == "the diary of ada"
    root = (USERS_KEY.c.owner_id == 1) & (USERS_KEY.c.purpose == "root")
    with lite_app.with_secret() as (session, unlocked):
        user = lite_app.user(session)
        unlocked.add_secret(user, "words of the phone", label="phone")
        session.commit()
        (slot,) = [one for one in envelope.slots(session, user) if one.label == "phone"]
        unlocked.remove_slot(user, slot)
        session.commit()
    with lite_app.engine.begin() as connection:
        active = connection.scalar(sa.select(USERS_KEY.c.key_id).where(root, USERS_KEY.c.state == "active"))
    for key_id in (row.key_id, active):
        with lite_app.engine.begin() as connection:
            connection.execute(TICKETS.delete())
            connection.execute(TICKETS.insert().values(**{**row._mapping, "key_id": key_id}))
        with pytest.raises(TicketError):
            lite_app.diary(ticket)


def test_a_ticket_of_another_user(app: Application) -> None:
    """Ben's cookie opens Ben, and not Ada; nor with his row moved to her."""
    ticket = app.log_in("ben")
    with pytest.raises(TicketError, match="another owner"):
        app.diary(ticket, "ada")
    with app.engine.begin() as connection:
        ada = connection.scalar(
            sa.select(USERS_KEY.c.key_id).where(USERS_KEY.c.owner_id == 1, USERS_KEY.c.purpose == "root")
        )
    app.alter(owner_id=1)
    for key_id in (None, ada):
        if key_id is not None:
            app.alter(key_id=key_id)
        with pytest.raises(TicketError):
            app.diary(ticket, "ada")


def test_two_swapped_rows(lite_app: Application) -> None:
    """The wrap of one ticket in the row of another opens neither."""
    one, other = lite_app.log_in(), lite_app.log_in()
    rows = lite_app.rows()
    with lite_app.engine.begin() as connection:
        for row, from_row in zip(rows, rows[::-1], strict=True):
            moved = {"wrapped": from_row.wrapped, "server_half": from_row.server_half}
            connection.execute(TICKETS.update().where(TICKETS.c.ticket_id == row.ticket_id).values(**moved))
    for ticket in (one, other):
        with pytest.raises(TicketError):
            lite_app.diary(ticket)


def test_a_ticket_in_another_database(lite_app: Application, tmp_path: Any) -> None:
    """A copy of the database that has a realm of its own opens no ticket of the first. Without a realm, a
    copy with the same server keys is the same database."""
    ticket = lite_app.log_in()
    shutil.copyfile(lite_app.engine.url.database or "", tmp_path / "copy.db")
    engine = create_engine(make_url(f"sqlite:///{tmp_path / 'copy.db'}"))
    copy = Application(engine, lite_app.clock)
    other = Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([KEY]), realm="staging")
    with copy.engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
    from sqlalchemy_envelope import enforce_foreign_keys

    enforce_foreign_keys(engine)

    assert copy.diary(ticket) == "the diary of ada"
    with Session(engine) as session:
        other.seal_rows(
            session,
            *{mapper.class_ for mapper in Base.registry.mappers if hasattr(mapper.class_, "__key_class__")},
        )
        session.commit()
    with pytest.raises(TicketError, match="another database"):
        copy.diary(ticket, by=other)
    engine.dispose()


def test_the_pepper_is_taken_away(lite_app: Application) -> None:
    """A server key that rotates serves its tickets as long as it is configured; without it, all are refused
    at once."""
    ticket = lite_app.log_in()
    rotated = Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([OTHER_KEY, KEY]))
    without = Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([OTHER_KEY]))

    assert lite_app.diary(ticket, by=rotated) == "the diary of ada"
    with pytest.raises((TicketError, TamperedKeyError)):
        lite_app.diary(ticket, by=without)


def test_a_pepper_comes_before_the_server_keys(lite_app: Application) -> None:
    """With a pepper, tickets are issued under it; those from before still open, and need no pepper."""
    server_keys, pepper = ServerKeyring([KEY]), ServerKeyring([OTHER_KEY])
    peppered = Envelope(kdf_profile=PROFILE, server_keys=server_keys, pepper=pepper)
    before = lite_app.log_in()
    with Session(lite_app.engine) as session:
        user = lite_app.user(session)
        with peppered.unlock(session, user, secret=secret_of("ada")) as unlocked:
            ticket = unlocked.issue_ticket(user, lifetime=HOUR)
            session.commit()

    assert [lite_app.diary(one, by=peppered) for one in (before, ticket)] == ["the diary of ada"] * 2
    with pytest.raises(TicketError, match="is not configured"):
        lite_app.diary(ticket)


def test_a_clock_that_goes_back(lite_app: Application) -> None:
    """Minutes make no difference: the time of the last use stands. By more, the ticket is refused, and not
    lost: it opens when the clock is right."""
    ticket = lite_app.log_in()
    lite_app.clock.forward(-dt.timedelta(minutes=4))

    assert lite_app.diary(ticket) == "the diary of ada"
    lite_app.clock.forward(-dt.timedelta(minutes=4))
    with pytest.raises(TicketError, match="clock"):
        lite_app.diary(ticket)
    lite_app.clock.forward(dt.timedelta(minutes=8))
    assert lite_app.diary(ticket) == "the diary of ada"


def test_a_removed_member_with_a_ticket(app: Application) -> None:
    """The membership was deleted by SQL a moment ago: the group is locked at once, to read and to write."""
    ticket = app.log_in("ben")
    app.remove_member("ben")
    with app.request(ticket, "ben") as session:
        post = session.scalars(sa.select(Post)).one()
        with pytest.raises(LockedError, match="log in again"):
            getattr(post, "text")  # noqa: B009
        session.add(Post(group_id=app.group_id, text="still here"))
        with pytest.raises(LockedError, match="log in again"):
            session.flush()
        session.rollback()

        assert app.user(session, "ben").diary == "the diary of ben"


def test_a_key_row_that_says_whose_it_is(lite_app: Application) -> None:
    """Without row seals, whoever writes to the database gives the group's data key to Ada as her own, to read
    what she writes from then on: the ticket knows which key was whose."""
    plain = Envelope(kdf_profile=PROFILE)
    groups: sa.Table = Base.metadata.tables["groups_key"]
    ticket = lite_app.log_in()
    with lite_app.engine.begin() as connection:
        key = connection.execute(sa.select(groups).where(groups.c.purpose == "data")).one()
        mine = (USERS_KEY.c.owner_id == 1) & (USERS_KEY.c.purpose == "data") & (USERS_KEY.c.scope == "")
        before = connection.execute(sa.select(USERS_KEY).where(mine)).one()
        connection.execute(
            USERS_KEY.update()
            .where(mine)
            .values(key_id=key.key_id, commitment=key.commitment, public_key=key.public_key)
        )
    plain.policy.ticket_keys = envelope.policy.ticket_keys
    with lite_app.request(ticket, by=plain) as session:
        lite_app.user(session).diary = "private"
        with pytest.raises(TamperedKeyError, match="since the ticket was issued"):
            session.flush()
        session.rollback()

    assert before.key_id != key.key_id


def test_only_one_error_to_catch() -> None:
    """Whatever is wrong with a ticket, a browser is sent to the log-in."""
    assert issubclass(TicketError, UnlockError)
