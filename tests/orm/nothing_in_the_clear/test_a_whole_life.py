"""No secret, no key and no plaintext is found in the database, in what is logged, in errors, or in the
text of objects.

Each test plants canaries, goes through a whole life of an owner or makes one thing go wrong, and searches
everything
that came out of it.
"""

import base64
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, insert, select, type_coerce, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, enforce_foreign_keys
from sqlalchemy_envelope.crypto.secret import KeyBytes
from tests.conftest import LogCapture
from tests.orm.nothing_in_the_clear.canaries import VALUES, Base, Everything, Needles, Owner, every_text_of

SECRET, NEW_SECRET, WRONG = "canary-first-secret", "canary-second-secret", "canary-wrong-secret"
PLAIN = "CanaryPlaintext"
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


def live_a_life(engine: Engine) -> list[BaseException]:
    """Everything that the library does, and everything that commonly goes wrong."""
    caught: list[BaseException] = []

    def fails(work: Callable[[], Any]) -> None:
        with pytest.raises(Exception) as info:  # any error at all; its text is searched
            work()
        caught.append(info.value)

    with Session(engine) as session:
        owner = Owner(email="a@example.org", phone=PLAIN)
        with envelope.enroll(session, owner, secret=SECRET):
            row = Everything(owner_id=owner.id, unique="u", **VALUES)
            session.add(row)
            session.commit()
            assert [getattr(row, name) for name in VALUES] == list(VALUES.values())
        fails(lambda: row.as_str)
        fails(lambda: envelope.unlock(session, owner, secret=WRONG))
        with envelope.unlock(session, owner, secret=SECRET) as unlocked:
            session.expire_all()
            read = session.scalars(select(Everything)).one()
            assert [getattr(read, name) for name in VALUES] == list(VALUES.values())
            session.execute(select(Everything.as_str, Everything.as_json, Everything.in_row)).all()
            session.execute(select(Everything, Everything.as_str.label("again"))).all()
            assert session.execute(select(type_coerce(Everything.as_str, Everything.as_str.type))).scalar()
            assert session.scalars(select(select(Everything.as_str).scalar_subquery())).all()
            list(session.scalars(select(Everything).execution_options(yield_per=1)))
            read.as_str, read.as_json = PLAIN + "-changed", {"CanaryMember": "CanaryItem"}
            session.commit()
            made = session.scalars(
                insert(Everything).returning(Everything),
                [{"owner_id": owner.id, "as_str": PLAIN + str(n), "in_row": PLAIN} for n in range(3)],
            ).all()
            assert made[0].as_str == PLAIN + "0"
            with unlocked.using(owner):
                session.execute(update(Everything).where(Everything.owner_id == owner.id).values(as_int=5))
            session.commit()
            session.add(Everything(owner_id=owner.id, unique="u", **VALUES))
            fails(session.commit)
            session.rollback()
        envelope.change_secret(session, owner, old=SECRET, new=NEW_SECRET)
        session.commit()
        fails(lambda: envelope.unlock(session, owner, secret=SECRET))
        session.connection().exec_driver_sql("UPDATE canary_rows SET as_str = as_bytes")
        session.commit()
        session.expunge_all()
        owner = session.get_one(Owner, 1)
        with envelope.unlock(session, owner, secret=NEW_SECRET):
            fails(lambda: [one.as_str for one in session.scalars(select(Everything))])
            session.rollback()
        session.connection().exec_driver_sql("UPDATE canary_owners_keyslot SET kdf = 'x'")
        fails(lambda: envelope.unlock(session, owner, secret=NEW_SECRET))
        session.rollback()
        with envelope.unlock(session, owner, secret=NEW_SECRET):
            session.execute(update(Everything).values(as_str=None))
            owner.phone = PLAIN + "-again"
            session.commit()
    return caught


@pytest.mark.parametrize("echo", [True, "debug"])
def test_a_whole_life_leaves_nothing_on_sqlite(
    sqlite_url: URL, capture_logs: LogCapture, needles: Needles, echo: Any, caplog: Any
) -> None:
    """Neither in the file and its journals, before and after the owner is deleted, nor in the log, result
    rows and all."""
    engine = create_engine(sqlite_url, echo=echo)
    enforce_foreign_keys(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    Base.metadata.create_all(engine)
    errors = live_a_life(engine)

    def stored() -> bytes:
        path = Path(str(sqlite_url.database))
        return b"".join(one.read_bytes() for one in sorted(path.parent.glob(path.name + "*")))

    in_use = stored()
    with Session(engine) as session:
        session.delete(session.get_one(Owner, 1))
        session.commit()
    deleted = stored()
    engine.dispose()

    assert len(in_use) > 10_000
    assert b"canary_rows" in in_use
    assert needles.in_bytes(in_use) == []
    assert needles.in_bytes(deleted) == []
    assert len(capture_logs.text) > 10_000
    assert echo is True or "some encrypted: not shown" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []
    assert needles.in_text(caplog.text) == []
    assert len(errors) == 6
    assert [needles.in_text(every_text_of(error)) for error in errors] == [[]] * 6


@pytest.mark.backend
def test_a_whole_life_leaves_nothing_on_postgres(
    postgres_url: URL, postgres_dump: Callable[[], str], capture_logs: LogCapture, needles: Needles
) -> None:
    """Neither in what pg_dump prints, its hexadecimal decoded too, nor in the log."""
    engine = create_engine(postgres_url.set(drivername="postgresql+psycopg"), echo="debug")
    Base.metadata.create_all(engine)
    errors = live_a_life(engine)
    engine.dispose()
    dump = postgres_dump()
    decoded = b"\n".join(bytes.fromhex(run) for run in re.findall(r"\\x((?:[0-9a-f]{2})+)", dump))

    assert len(decoded) > 1_000
    assert needles.in_text(dump) == []
    assert needles.in_bytes(dump.encode()) == []
    assert needles.in_bytes(decoded) == []
    assert "some encrypted: not shown" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []
    assert [needles.in_text(every_text_of(error)) for error in errors] == [[]] * len(errors)


def test_the_search_finds_what_is_there(needles: Needles) -> None:
    """Each kind of needle, in each of its spellings: a search that finds nothing anywhere would prove
    nothing."""
    key = KeyBytes(bytes(range(200, 232)))
    data = bytes(key.buffer)

    for spelling in (
        data.hex(),
        base64.b64encode(data).decode(),
        repr(data),
        f"x{SECRET}x",
        PLAIN.encode().hex(),
    ):
        assert needles.in_text(spelling)
    for raw in (data, data.hex().encode(), PLAIN.encode(), SECRET.encode().hex().encode()):
        assert needles.in_bytes(b"<" + raw + b">")


def test_debug_echo_shows_rows_without_encrypted_columns_as_ever(
    lite: Engine, capture_logs: LogCapture
) -> None:
    """Only rows with an encrypted column are hidden, on every engine and with every way to switch the log
    on."""
    engine = create_engine(lite.url, echo="debug", logging_name="named")
    with Session(engine) as session:
        session.connection().exec_driver_sql(
            "INSERT INTO canary_owners (id, email) VALUES (1, 'a@example.org')"
        )
        session.execute(select(Owner.id, Owner.email)).all()
        shown = capture_logs.text
        session.execute(select(Owner)).all()
    engine.dispose()

    assert re.search(r"Row \(1, 'a@example.org'\)", shown)
    assert "some encrypted: not shown" not in shown
    assert "(3 columns, some encrypted: not shown)" in capture_logs.text


@pytest.mark.parametrize("how", ["level", "named", "options", "token"])
def test_no_way_to_switch_debug_on_shows_a_decrypted_row(
    lite: Engine, capture_logs: LogCapture, needles: Needles, how: str
) -> None:
    """By the logger's level, under a logging name, through an engine with options, with a logging token."""
    options: dict[str, Any] = {"named": {"echo": "debug", "logging_name": "x"}}.get(how, {})
    engine = create_engine(lite.url, **options)
    enforce_foreign_keys(engine)
    used = engine.execution_options(isolation_level="AUTOCOMMIT") if how == "options" else engine
    used = used.execution_options(logging_token="t") if how == "token" else used
    logging.getLogger("sqlalchemy.engine.Engine").setLevel(logging.DEBUG)

    with Session(used) as session:
        owner = Owner(email="a@example.org", phone=PLAIN)
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
            assert owner.phone == PLAIN
            assert session.execute(select(Owner.phone)).all() == [(PLAIN,)]
    engine.dispose()

    assert "Row" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []
