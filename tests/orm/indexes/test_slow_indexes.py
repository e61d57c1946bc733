"""A slow index makes a guess cost a key derivation, even for whoever has its key. It finds the same rows."""

import asyncio
import time
from pathlib import Path

import pytest
from argon2.low_level import Type, hash_secret_raw
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import KdfProfile, UnlockBusyError
from sqlalchemy_envelope.crypto import slow_index
from sqlalchemy_envelope.crypto.argon2id import KdfLimit
from sqlalchemy_envelope.crypto.blind_index import IndexHasher
from sqlalchemy_envelope.crypto.kdf import subkey
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.slow_index import SlowIndexHasher, slow_form
from tests.orm.indexes.people_models import SECRET, Base, Person, enroll, new_envelope

CHEAP = KdfProfile.unsafe_for_tests()


def key() -> KeyBytes:
    return KeyBytes(bytes(range(32)))


def test_a_tag_is_that_of_the_stretched_value() -> None:
    """The tag is the HMAC of Argon2id's 32 bytes, under a salt of the key and the label."""
    salt = bytes(subkey(key(), "index-salt", b"people.pin").buffer[:16])
    stretched = hash_secret_raw(b"1234", salt, 1, 64, 1, 32, Type.ID, 19)
    form = "argon2id m=64,t=1,p=1 of exact str"
    hasher = SlowIndexHasher(key(), "people.pin", form, 128, CHEAP)

    assert form == slow_form("exact str", CHEAP)
    assert IndexHasher(key(), "people.pin", form).tag(stretched) == hasher.tag(b"1234")
    assert hasher.tag(b"1234") == hasher.tag(b"1234")
    assert hasher.tag(b"1234") != SlowIndexHasher(key(), "people.pin2", form, 128, CHEAP).tag(b"1234")
    assert hasher.tag(b"1234") != IndexHasher(key(), "people.pin", form).tag(b"1234")
    assert "1234" not in repr(hasher)


def test_many_tags_are_those_of_each_value() -> None:
    """A bulk write stretches equal values once, on all processors, and NULL has no tag."""
    hasher = SlowIndexHasher(key(), "people.pin", "exact str", 128, CHEAP)
    datas = [b"1", None, b"2", b"1", b""]

    assert [None if one is None else hasher.tag(one) for one in datas] == hasher.tags(datas)
    assert hasher.tags([None]) == [None]


def test_a_guess_costs_what_the_profile_says() -> None:
    """Under the default profile a value takes milliseconds, where another index takes microseconds."""
    hasher = SlowIndexHasher(key(), "people.pin", "exact str", 128, KdfProfile.OWASP_MINIMUM)
    began = time.process_time()
    hasher.tag(b"1234")

    assert time.process_time() - began > 0.005


def test_derivations_take_their_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more values are stretched at once than there are processors; who waits too long is told so."""
    limit = KdfLimit(1, 0.01)
    monkeypatch.setattr(slow_index, "LIMIT", limit)
    hasher = SlowIndexHasher(key(), "people.pin", "exact str", 128, CHEAP)
    with limit._place(0.0), pytest.raises(UnlockBusyError):
        hasher.tag(b"1234")

    assert len(hasher.tag(b"1234")) == 16


def test_a_slow_index_finds_its_rows(engine: Engine) -> None:
    """It is declared and used as every other."""
    envelope = new_envelope()
    one, other, _ = enroll(engine, envelope, Person(pin="1234"), Person(pin="4321"), Person())
    with Session(engine) as session:
        envelope.attach(session)

        assert [one] == session.scalars(select(Person.id).where(Person.pin == "1234")).all()
        assert {one, other} == set(session.scalars(select(Person.id).where(Person.pin.in_(["1234", "4321"]))))
        assert [other] == session.scalars(select(Person.id).where(Person.pin != "1234")).all()


async def test_the_event_loop_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under asyncio a value is stretched in a thread, for a write and for a search."""
    slow = SlowIndexHasher._stretched
    loops: list[bool] = []

    def stretched(self: SlowIndexHasher, data: bytes) -> bytes:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)
        return slow(self, data)

    monkeypatch.setattr(SlowIndexHasher, "_stretched", stretched)
    envelope = new_envelope()
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'slow.db'}")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.exec_driver_sql("PRAGMA foreign_keys=ON")
    async with AsyncSession(engine) as session:
        person = Person(pin="1234")
        await session.run_sync(lambda sync: envelope.enroll(sync, person, secret=SECRET))
        found = (await session.scalars(select(Person.id).where(Person.pin == "1234"))).all()
    await engine.dispose()

    assert [person.id] == found
    assert loops == [False, False]
