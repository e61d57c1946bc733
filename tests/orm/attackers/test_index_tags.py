"""Somebody has a copy of a database with blind indexes, or writes to it: what the tags tell without the index
key, what they tell with it, and what comes of tags and index keys that were moved or planted. The attacker is
written from the specification, and uses nothing of the library."""

import hashlib
import hmac
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, Table, insert, select, text, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import EnvelopeError, LockedError, UnlockError
from tests.conftest import EveryNth
from tests.orm.attackers.scene import flip
from tests.orm.indexes.server_models import KEYS, SECRET, Base, Note, User, enroll, new_envelope
from tests.orm.outsider import ctx, expand

ADA, BEN, EVE = "ada@example.org", "ben@example.org", "eve@example.org"
ADAS = "the secret of ada alone"
EMAILS = "users.email_index"
KEY_ROWS = Base.metadata.tables["users_indexkey"]


def tag_of(index_key: bytes, label: str, value: str) -> bytes:
    """Section 13, of an exact index of text."""
    mac_key = expand(index_key, ctx("index", label.encode()))
    return hmac.digest(mac_key, ctx("index-tag", b"exact str") + value.encode(), "sha256")[:16]


def copied(engine: Engine) -> dict[Table, list[Any]]:
    """A copy of all rows."""
    with engine.connect() as connection:
        return {table: list(connection.execute(select(table))) for table in Base.metadata.sorted_tables}


def fitting(rows: dict[Table, list[Any]], guess: str, *known_keys: bytes) -> set[str]:
    """What in a copy fits a guess: any bytes as a key of any kind, and hashes without a key."""
    values = [value for found in rows.values() for row in found for value in row]
    blobs = [bytes(value) for value in values if isinstance(value, (bytes, memoryview))]
    blobs += [value.bytes for value in values if isinstance(value, uuid.UUID)]
    tags = {blob for blob in blobs if len(blob) == 16}
    keys = {blob[at : at + 32] for blob in blobs for at in range(len(blob) - 31)} | set(known_keys)
    return {name for name, made in _made(guess, keys) if made[:16] in tags}


def _made(guess: str, keys: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    data = guess.encode()
    for name in ("sha256", "sha512", "md5", "blake2b"):
        yield "hash", hashlib.new(name, data).digest()
        yield "hash", hashlib.new(name, ctx("index-tag", b"exact str") + data).digest()
    for key in keys:
        yield "index key", tag_of(key, EMAILS, guess)
        yield "other key", hmac.digest(key, ctx("index-tag", b"exact str") + data, "sha256")
        yield "other key", hmac.digest(key, data, "sha256")


def index_key_of(engine: Engine) -> bytes:
    """The key of the addresses' index, stolen from a process that has the server keys."""
    envelope = new_envelope()
    with Session(engine) as session:
        envelope.attach(session)
        session.scalars(select(User.id).where(User.email == ADA)).all()
        (key,) = envelope.policy.index_keys._opened.values()
        return bytes(key.buffer)


def found(engine: Engine, email: str) -> list[int]:
    """Whom a log-in form finds, in a process that has just started."""
    envelope = new_envelope()
    with Session(engine) as session:
        envelope.attach(session)
        return list(session.scalars(select(User.id).where(User.email == email).order_by(User.id)))


def tags(engine: Engine) -> dict[int, Any]:
    with engine.connect() as connection:
        return dict(connection.execute(text("SELECT id, email_index FROM users")).all())  # type: ignore[arg-type]


def set_tag(engine: Engine, user: int, tag: bytes | None) -> None:
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE users SET email_index = :tag WHERE id = :id"), {"tag": tag, "id": user}
        )


def test_without_the_key_a_copy_tests_no_guess(sqlite_engine: Engine) -> None:
    """Nothing in the rows tells the right value from a wrong one: not the server key either, until it opens
    the index key. The guesser is a good one: given that key, it is right."""
    enroll(sqlite_engine, new_envelope(), ADA, BEN)
    rows = copied(sqlite_engine)

    assert len(rows[KEY_ROWS]) == 1
    assert fitting(rows, ADA) == set()
    assert fitting(rows, ADA, *KEYS) == set()
    assert fitting(rows, ADA, index_key_of(sqlite_engine)) == {"index key"}
    assert fitting(rows, EVE, index_key_of(sqlite_engine)) == set()


def test_tags_tell_equality_and_nothing_else(engine: Engine) -> None:
    """Tags are equal where values are, and as long for a letter as for a page. Two indexes have no tag in
    common, and two databases under one server key have none."""
    titles = ["a", "a" * 5_000, "a", ADA, "", None]
    (ada,) = enroll(engine, new_envelope(), ADA)
    envelope = new_envelope()
    with Session(engine) as session:
        user = session.get_one(User, ada)
        with envelope.unlock(session, user, secret=SECRET):
            session.execute(insert(Note), [{"user_id": ada, "title": title} for title in titles])
            session.commit()
    with engine.connect() as connection:
        query = text("SELECT title_index FROM notes ORDER BY id")
        stored = [None if tag is None else bytes(tag) for tag in connection.execute(query).scalars()]

    assert [None if tag is None else stored.index(tag) for tag in stored] == [0, 1, 0, 3, 4, None]
    assert {16} == {len(tag) for tag in stored if tag is not None}
    assert set(stored).isdisjoint(map(bytes, tags(engine).values()))


def test_two_databases_have_no_tag_in_common(sqlite_engine: Engine, tmp_path: Any) -> None:
    """Their index keys are random, and no server key makes them again."""
    enroll(sqlite_engine, new_envelope(), ADA)
    first = tags(sqlite_engine)
    with sqlite_engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(text(f"DELETE FROM {table.name}"))
    enroll_again = new_envelope()
    with Session(sqlite_engine) as session:
        enroll_again.enroll(session, User(email=ADA), secret=SECRET)
        session.commit()

    assert set(first.values()).isdisjoint(tags(sqlite_engine).values())


def test_with_the_key_a_copy_is_worth_a_dictionary(engine: Engine) -> None:
    """Somebody with the index key gets the values of the dictionary, and no other: a tag does not turn back
    into a value."""
    ada, *_, eve = enroll(engine, new_envelope(), ADA, "x7!q@nowhere.example", BEN, EVE)
    key = index_key_of(engine)
    dictionary = {tag_of(key, EMAILS, word): word for word in (ADA, EVE, "zoe@example.org")}
    told = {user: dictionary[bytes(tag)] for user, tag in tags(engine).items() if bytes(tag) in dictionary}

    assert told == {ada: ADA, eve: EVE}


def test_exchanged_tags_mislead_a_look_up(engine: Engine) -> None:
    """Not detected by a look-up: it finds the other's row. It opens nothing: the secret of whoever is looked
    for does not unlock that row, and its value, once unlocked, is not what was looked for."""
    ada, ben = enroll(engine, new_envelope(), ADA, BEN)
    stored, envelope = tags(engine), new_envelope()
    with Session(engine) as session:
        envelope.change_secret(session, session.get_one(User, ada), old=SECRET, new=ADAS)
        session.commit()
    set_tag(engine, ada, None)
    set_tag(engine, ben, bytes(stored[ada]))
    set_tag(engine, ada, bytes(stored[ben]))

    assert found(engine, ADA) == [ben]
    with Session(engine) as session:
        with pytest.raises(UnlockError):
            envelope.unlock(session, session.get_one(User, ben), secret=ADAS)
        with envelope.unlock(session, session.get_one(User, ben), secret=SECRET):
            assert session.get_one(User, ben).email == BEN


@pytest.mark.parametrize("tag", [None, b"\0" * 16, b"short", b"\0" * 40])
def test_a_tag_that_was_changed_hides_its_row(sqlite_engine: Engine, tag: bytes | None) -> None:
    """Not detected by a look-up: the value is not found. The value itself still opens."""
    ada, ben = enroll(sqlite_engine, new_envelope(), ADA, BEN)
    set_tag(sqlite_engine, ada, tag)
    envelope = new_envelope()

    assert found(sqlite_engine, ADA) == []
    assert found(sqlite_engine, BEN) == [ben]
    with Session(sqlite_engine) as session:
        user = session.get_one(User, ada)
        with envelope.unlock(session, user, secret=SECRET):
            assert user.email == ADA


def test_a_moved_value_is_not_found_by_the_tag_of_another(sqlite_engine: Engine) -> None:
    """A value and its tag that are moved to another owner's row together are found there, and do not open."""
    ada, ben = enroll(sqlite_engine, new_envelope(), ADA, BEN)
    with sqlite_engine.begin() as connection:
        row = connection.execute(text(f"SELECT email, email_index FROM users WHERE id = {ada}")).one()
        connection.execute(text(f"UPDATE users SET email_index = NULL WHERE id = {ada}"))
        moved = text(f"UPDATE users SET email = :email, email_index = :tag WHERE id = {ben}")
        connection.execute(moved, {"email": row.email, "tag": row.email_index})
    envelope = new_envelope()

    assert found(sqlite_engine, ADA) == [ben]
    with Session(sqlite_engine) as session:
        user = session.get_one(User, ben)
        with envelope.unlock(session, user, secret=SECRET), pytest.raises(LockedError):
            getattr(user, "email")  # noqa: B009 - the touch is what raises


PLANTED: dict[str, Any] = {
    "a wrap of the outsider's": lambda row: {"wrapped": b"\x14" + bytes(120)},
    "no wrap": lambda row: {"wrapped": b""},
    "the wrap of another key": lambda row: {"wrapped": row["other"]},
    "another id": lambda row: {"key_id": uuid.uuid4()},
    "another commitment": lambda row: {"commitment": bytes(32)},
    "another provider": lambda row: {"provider_ref": "planted 1"},
}


@pytest.mark.parametrize("what", PLANTED)
def test_an_altered_index_key_is_an_error(engine: Engine, what: str) -> None:
    """Never an empty result, and never a tag under the outsider's key."""
    (ada,) = enroll(engine, new_envelope(), ADA)
    envelope = new_envelope()
    with Session(engine) as session:
        user = session.get_one(User, ada)
        with envelope.unlock(session, user, secret=SECRET):
            session.add(Note(user_id=ada, title=ADA))
            session.commit()
    with engine.begin() as connection:
        other = connection.execute(select(Base.metadata.tables["notes_indexkey"].c.wrapped)).scalar_one()
        connection.execute(update(KEY_ROWS).values(PLANTED[what]({"other": other})))

    with pytest.raises(EnvelopeError):
        found(engine, ADA)
    with Session(engine) as session, pytest.raises(EnvelopeError):
        new_envelope().enroll(session, User(email=BEN), secret=SECRET)


@pytest.mark.parametrize("state", ["active", "next", "moving"])
def test_a_planted_index_key_is_an_error(sqlite_engine: Engine, state: str) -> None:
    """A row beside the genuine one, of a newer generation: whoever planted it has no server key for it."""
    enroll(sqlite_engine, new_envelope(), ADA)
    with sqlite_engine.begin() as connection:
        row = dict(connection.execute(select(KEY_ROWS)).mappings().one())
        planted = row | {"key_id": uuid.uuid4(), "epoch": 2, "state": state, "wrapped": b"\x14" + bytes(120)}
        connection.execute(insert(KEY_ROWS).values(planted))

    with pytest.raises(EnvelopeError):
        found(sqlite_engine, ADA)


def test_no_altered_byte_of_an_index_key_goes_unnoticed(sqlite_engine: Engine, every_nth: EveryNth) -> None:
    """Every byte of its wrap and of its commitment."""
    enroll(sqlite_engine, new_envelope(), ADA)
    with sqlite_engine.connect() as connection:
        row = connection.execute(select(KEY_ROWS.c.wrapped, KEY_ROWS.c.commitment)).one()
    done = 0
    for column, before in (("wrapped", bytes(row.wrapped)), ("commitment", bytes(row.commitment))):
        for at in every_nth(7, range(len(before))):
            with sqlite_engine.begin() as connection:
                connection.execute(update(KEY_ROWS).values({column: flip(before, at)}))
            with pytest.raises(EnvelopeError):
                found(sqlite_engine, ADA)
            done += 1
        with sqlite_engine.begin() as connection:
            connection.execute(update(KEY_ROWS).values({column: before}))

    assert done > 20
    assert len(found(sqlite_engine, ADA)) == 1
