"""Ciphertext that stands in a previous column is never encrypted once more, whoever's key it is under; and
plaintext that looks like it is neither lost nor taken for it."""

import uuid
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import load_only
from sqlalchemy.orm.attributes import flag_modified

from sqlalchemy_envelope import MigrationStoppedError
from sqlalchemy_envelope.migration.jobs.early_ciphertext import _bytes_of
from tests.migration.engine_models import Trial

KEY = uuid.UUID(int=(8 << 76) | (2 << 62) | (0xABC << 80))
LOOKALIKE = b"\x01" + KEY.bytes + b"plaintext that begins as values do"
PLAIN = [
    b"\x01" * 60,
    b"\x01" + uuid.uuid4().bytes + bytes(60),
    LOOKALIKE[:44],
    b"\x02" + LOOKALIKE[1:],
]
"""Bytes that cannot be ciphertext: no key id, a random one, too short, another format."""


def as_hex(blob: bytes) -> str:
    """Bytes as PostgreSQL writes them into text."""
    return "\\x" + blob.hex()


def as_escapes(blob: bytes) -> str:
    """The same, with `bytea_output = 'escape'`."""
    return "".join(
        "\\\\" if one == 0x5C else chr(one) if 0x20 <= one <= 0x7E else f"\\{one:03o}" for one in blob
    )


@pytest.fixture
def trial(sqlite_engine: Engine) -> Trial:
    """An old application with a column of bytes and one of text."""
    return Trial(sqlite_engine).create("kinds")


def put(trial: Trial, column: str, value: Any, key: int = 1) -> None:
    """What the old program inserts, for the first user."""
    trial.insert("kinds", [{"id": key, "user_id": 1, column: value}])


@pytest.mark.parametrize(("column", "form"), [("a_bytes", bytes), ("a_str", as_hex), ("a_str", as_escapes)])
def test_ciphertext_under_any_key_of_the_database(trial: Trial, column: str, form: Any) -> None:
    """A value under the key of another owner, and so of another epoch, stops the run, and stays; the advice
    is for a column that has one beside it."""
    trial.insert("kinds", [{"id": 9, "user_id": 2, "a_bytes": b"of the second user"}])
    trial.migrator().run("kinds.a_bytes")
    early = form(trial.states("kinds", "a_bytes")[9][1])
    put(trial, column, early)
    with pytest.raises(MigrationStoppedError, match=r"row \(1,\) is ciphertext already") as caught:
        trial.migrator().run(f"kinds.{column}")

    assert (early, None) == trial.states("kinds", column)[1]
    assert "Put the bytes into the encrypted column by hand" in str(caught.value)


def test_bytes_that_cannot_be_ciphertext(trial: Trial) -> None:
    """Plaintext that begins with the byte of our format is encrypted like any other."""
    for key, value in enumerate(PLAIN, 1):
        put(trial, "a_bytes", value, key)

    assert trial.migrator().run("kinds.a_bytes").finished
    assert {(key,): value for key, value in enumerate(PLAIN, 1)} == trial.read("Kind", "a_bytes")


def test_plaintext_that_looks_like_ciphertext(trial: Trial) -> None:
    """It is not taken for either: the run stops, and what the error says brings it to its end."""
    put(trial, "a_bytes", LOOKALIKE)
    put(trial, "a_bytes", b"another", 2)
    with pytest.raises(MigrationStoppedError, match="looks like ciphertext, and the database does") as caught:
        trial.migrator().run("kinds.a_bytes")

    assert trial.states("kinds", "a_bytes")[1] == (LOOKALIKE, None)
    assert "`flag_modified(row, 'a_bytes')`" in str(caught.value)
    with trial.server() as session:
        Kind = trial.make("both").Kind  # noqa: N806
        some = load_only(Kind.id, Kind.user_id, Kind.a_bytes)  # the others are not moved here
        row = session.scalars(select(Kind).where(Kind.id == 1).options(some)).one()
        flag_modified(row, "a_bytes")
        session.commit()
    assert trial.migrator().run("kinds.a_bytes").finished
    assert trial.read("Kind", "a_bytes") == {(1,): LOOKALIKE, (2,): b"another"}


@pytest.mark.parametrize("form", [as_hex, as_escapes])
def test_text_is_read_as_postgresql_writes_bytes(form: Any) -> None:
    """Both forms give back every byte; text that is in neither is none of ours."""
    blob = b"\x01" + bytes(range(256))

    assert blob == _bytes_of(form(blob))
    for text in ("\\x01g0", "\\x010", "\\001\\", "\\001\\9", "\\001\\777", "\\001漢", "\x01plain", ""):
        assert _bytes_of(text) is None
