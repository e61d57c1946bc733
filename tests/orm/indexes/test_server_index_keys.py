"""The index keys of a server: made once, kept by no transaction that is rolled back, and brought back by
nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    Envelope,
    KdfProfile,
    KeyInUseError,
    KeyNotFoundError,
    ProviderError,
    ServerKeyring,
    TamperedKeyError,
)
from sqlalchemy_envelope.keys import index_keys
from tests.orm.indexes.rotation_models import (
    KEYS,
    Base,
    Clock,
    Contact,
    Desk,
    new_process,
    one_desk,
    rotate,
    working,
)
from tests.orm.verbs.provider_unlock.remote import Remote, down

STORED = Base.metadata.tables["contacts_indexkey"]
LABEL = "contacts.email_index"


def add(session: Session, desk: int, *emails: str) -> None:
    session.add_all(Contact(desk_id=desk, email=email) for email in emails)
    session.flush()


def found(engine: Engine, process: Envelope, email: str) -> bool:
    """Whether a process finds a contact."""
    with working(engine, process) as session:
        return session.scalars(select(Contact.id).where(Contact.email == email)).first() is not None


def keys_of(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        query = select(STORED).where(STORED.c.label == LABEL).order_by(STORED.c.epoch)
        return list(connection.execute(query).mappings())


def test_two_processes_make_the_first_key_at_once(engine: Engine) -> None:
    """One key is stored, and both write by it."""
    desk, begun = one_desk(engine), Barrier(2)

    def write(email: str) -> None:
        with working(engine, new_process()) as session:
            session.get_one(Desk, desk)
            session.rollback()
            begun.wait(10)
            add(session, desk, email)
            session.commit()

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(write, ["ada@example.org", "ben@example.org"]))

    assert len(keys_of(engine)) == 1
    assert found(engine, new_process(), "ada@example.org")
    assert found(engine, new_process(), "ben@example.org")


def test_a_key_that_was_rolled_back_is_kept_by_nobody(engine: Engine) -> None:
    """Neither a rollback of the transaction nor of a savepoint leaves a key in memory that is not stored."""
    desk, process = one_desk(engine), new_process()
    with working(engine, process) as session:
        add(session, desk, "ada@example.org")
        session.rollback()
        with session.begin_nested() as savepoint:
            add(session, desk, "ben@example.org")
            savepoint.rollback()
        add(session, desk, "cy@example.org")
        assert session.scalars(select(Contact.id).where(Contact.email == "cy@example.org")).one()
        session.commit()

    assert found(engine, new_process(), "cy@example.org")
    assert not found(engine, new_process(), "ada@example.org")


def test_without_keys_an_index_that_has_tags_is_an_error(engine: Engine) -> None:
    """The rows of keys are gone: nothing is found silently, and no second first key is made."""
    desk = one_desk(engine)
    with working(engine, new_process()) as session:
        assert session.scalars(select(Contact.id).where(Contact.email == "ada@example.org")).all() == []
        add(session, desk, "ada@example.org")
        session.execute(delete(STORED))
        session.commit()
    process = new_process()
    with pytest.raises(KeyNotFoundError, match="has no key"):
        found(engine, process, "ada@example.org")
    with working(engine, process) as session, pytest.raises(KeyNotFoundError, match="Restore"):
        add(session, desk, "ben@example.org")
    with working(engine, process) as session, pytest.raises(KeyNotFoundError):
        next(process.rotate_index(session, Contact.email_index))
    with working(engine, process) as session, pytest.raises(KeyNotFoundError):
        process.open_index_keys(session, Base)


def rotated(engine: Engine) -> list[Any]:
    """The rows of keys before a rotation and after it."""
    desk = one_desk(engine)
    with working(engine, new_process()) as session:
        add(session, desk, "ada@example.org")
        session.commit()
    before = keys_of(engine)
    rotate(engine, Contact.email_index, alone=True)
    return [before, keys_of(engine)]


def put(engine: Engine, rows: list[Any], **changed: Any) -> None:
    """Store these rows in place of what is there."""
    with engine.begin() as connection:
        connection.execute(delete(STORED).where(STORED.c.label == LABEL))
        connection.execute(STORED.insert(), [dict(row) for row in rows])
        if changed:
            newest = select(func.max(STORED.c.epoch)).scalar_subquery()
            connection.execute(update(STORED).where(STORED.c.epoch == newest).values(**changed))


def test_a_retired_key_is_not_brought_back(sqlite_engine: Engine) -> None:
    """Somebody writes to the database, and has copies of its rows and the key itself: the new key stays."""
    before, after = rotated(sqlite_engine)
    (old,), new = before, after[1]

    assert after[0]["wrapped"] == b""
    assert found(sqlite_engine, new_process(), "ada@example.org")
    for rows in (
        [{**old}, {**new}],  # both active
        [{**old, "state": "active"}, {**new, "state": "retired"}],
        [{**old}, {**new, "state": "next"}],  # the new key's seal is for the state "active"
        [{**old}, {**new, "state": "moving"}],
        [{**after[0]}, {**new, "state": "destroyed"}, {**old, "epoch": 3}],
        [{**old, "epoch": 2}],
        [{**new, "wrapped": old["wrapped"]}],
    ):
        unique = {row["key_id"]: row for row in rows}
        put(sqlite_engine, list(unique.values()))
        with pytest.raises((TamperedKeyError, ProviderError, KeyNotFoundError)):
            found(sqlite_engine, new_process(), "ada@example.org")
    put(sqlite_engine, after)

    assert found(sqlite_engine, new_process(), "ada@example.org")


def test_a_process_notices_that_the_rows_of_before_were_put_back(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows a later generation."""
    clock = Clock(monkeypatch)
    before, _ = rotated(sqlite_engine)
    process = new_process()
    assert found(sqlite_engine, process, "ada@example.org")
    put(sqlite_engine, before)
    clock.sleep(index_keys.FRESH_SECONDS + 1)
    with pytest.raises(TamperedKeyError, match="older"):
        found(sqlite_engine, process, "ada@example.org")


@pytest.mark.parametrize("state", ["unheard of", "next", "retired"])
def test_states_that_do_not_fit_together_are_refused(sqlite_engine: Engine, state: str) -> None:
    """A single key is active, and nothing else."""
    rotated(sqlite_engine)
    put(sqlite_engine, keys_of(sqlite_engine)[1:], state=state)
    with pytest.raises(TamperedKeyError, match=LABEL):
        found(sqlite_engine, new_process(), "ada@example.org")


def remote_process(remote: Remote) -> Envelope:
    """A process whose index keys are held by a provider over a network."""
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring(KEYS),
        providers={"remote": remote},
        provider_retries=0,
    )
    envelope.policy.index_provider = "remote"
    return envelope


def test_a_statement_does_not_wait_for_a_network(sqlite_engine: Engine) -> None:
    """Keys of a remote provider are made and opened when the process starts, and not by a statement."""
    desk, remote = one_desk(sqlite_engine), Remote()
    first = remote_process(remote)
    with working(sqlite_engine, first) as session, pytest.raises(KeyNotFoundError, match="open_index_keys"):
        add(session, desk, "ada@example.org")
    with working(sqlite_engine, first) as session:
        assert first.open_index_keys(session, Base) == 2
        session.commit()
        add(session, desk, "ada@example.org")
        session.commit()
    second = remote_process(remote)
    with pytest.raises(KeyNotFoundError, match="open_index_keys"):
        found(sqlite_engine, second, "ada@example.org")
    with Session(sqlite_engine) as session:
        second.open_index_keys(session, Base)
    calls = remote.calls

    assert found(sqlite_engine, second, "ada@example.org")
    assert calls == remote.calls


def test_the_next_key_of_a_remote_provider_is_opened_beside_the_application(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is being opened the process goes on as before, and no longer than a rotation waits for."""
    desk, remote, clock = one_desk(sqlite_engine), Remote(), Clock(monkeypatch)
    operator, process = remote_process(remote), remote_process(remote)
    with working(sqlite_engine, process) as session:
        process.open_index_keys(session, Base)
        session.commit()
        add(session, desk, "ada@example.org")
        session.commit()
    with working(sqlite_engine, operator) as session:
        run = operator.rotate_index(session, Contact.email_index)
        next(run)
        session.commit()
        clock.sleep(index_keys.FRESH_SECONDS + 1)
        remote.before = down

        assert found(sqlite_engine, process, "ada@example.org")

        clock.sleep(index_keys.FRESH_SECONDS + 1)
        with pytest.raises(KeyNotFoundError, match="open_index_keys"):
            found(sqlite_engine, process, "ada@example.org")
        remote.before = lambda: None
        with Session(sqlite_engine) as start:
            process.open_index_keys(start, Base)
        for _ in run:
            session.commit()

    assert [row["state"] for row in keys_of(sqlite_engine)] == ["destroyed", "active"]


def test_one_name_of_a_column_is_enough(sqlite_engine: Engine) -> None:
    """A table cannot declare the guard's column itself."""
    from sqlalchemy import Column, LargeBinary, MetaData, Table

    from sqlalchemy_envelope import BlindIndex

    with pytest.raises(ConfigurationError, match="the library declares it"):
        Table(
            "t",
            MetaData(),
            Column("a_index_guard", LargeBinary),
            Column("a_index", BlindIndex("a", scope="server")),
        )
    with pytest.raises(ConfigurationError, match="63 bytes"):
        Table("t", MetaData(), Column("a" * 60, BlindIndex("a", scope="server")))


def test_a_new_server_key_wraps_the_index_keys(sqlite_engine: Engine) -> None:
    """`rotate_provider` wraps them anew; until then they keep the old server key needed. No tag changes."""
    desk, old = one_desk(sqlite_engine), KEYS[0]
    with working(sqlite_engine, new_process()) as session:
        add(session, desk, "ada@example.org")
        session.commit()
    both = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"n" * 32, old]))
    new = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"n" * 32]))
    name = f"server:{both.policy.seals.server_key_ids[1].hex()}"
    with Session(sqlite_engine) as session:
        before = both.key_references(session, Base, name)
        assert sum(one.count for one in before.needed if one.what == "index key") == 1
        with pytest.raises(KeyInUseError, match="index key under it"):
            before.require_unused()
        turns = []
        for so_far in both.rotate_provider(session, Desk):
            session.commit()
            turns.append(so_far)

        assert turns[-1].index_keys == 1
        assert turns[-1].slots == 1
        assert both.key_references(session, Base, name).needed == ()
    assert found(sqlite_engine, new, "ada@example.org")
