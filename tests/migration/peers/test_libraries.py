"""Other libraries' ciphertext, written by the real packages, becomes ours without a plaintext step.

For each package: every value comes over type-exactly, a wrong key is refused before anything is written, and
what cannot be opened is never taken for plaintext, whatever the package itself does with it.

pgcrypto is no part of the wheel that the other tests take PostgreSQL from. Its tests use the server that the
command line names, or an installed one (Debian: postgresql and postgresql-contrib), and are skipped without.
"""

import base64
import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy_encrypted_field as encrypted_field
from sqlalchemy import JSON, Date, DateTime, Engine, Integer, Text, text
from sqlalchemy_utils import JSONType, StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, AesGcmEngine, FernetEngine

from sqlalchemy_envelope.migration.foreign_types import Revealed
from tests.migration.peers.other_libraries import TEXTS, Database, every_peer, refusal, utils

CANARY = "canary 5d1e73"
KEY, WRONG = "the application's old key", "some other key"


@every_peer
def test_texts_come_over(database: Database, peer: Callable[[str], Any]) -> None:
    """Every text that the package wrote is read before, during and after the migration as it was."""
    values = [*TEXTS, None, *(f"{number}" for number in range(5))]
    database.before(peer(KEY), values)

    database.models(peer(KEY)).comes_over(values)


@pytest.mark.any_database
@every_peer
def test_wrong_key_is_refused(database: Database, peer: Callable[[str], Any]) -> None:
    """With another key nothing is written, and the error names the row and shows no value."""
    database.before(peer(KEY), [None, CANARY, *TEXTS[1:]])

    error = refusal(database.models(peer(WRONG)))

    assert "(2,)" in str(error)
    assert database.is_untouched()
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NULL")[0][0] == 1


def test_writes_of_both_steps(database: Database) -> None:
    """While both columns are written, the other library's application reads what this one wrote, and this one
    what the other wrote."""
    type_ = utils(AesGcmEngine)(KEY)
    database.before(type_, ["one", "two"])
    database.models(utils(AesGcmEngine)(KEY))
    database.migrator.run("notes.body")
    theirs = sa.Table(
        "notes", sa.MetaData(), sa.Column("id", Integer, primary_key=True), sa.Column("body", type_)
    )

    with database.serving() as session:
        session.get_one(database.Note, 1).body = "ours"
        session.commit()
    with database.engine.begin() as connection:
        connection.execute(theirs.update().where(theirs.c.id == 2).values(body="theirs"))
        read = connection.execute(sa.select(theirs.c.body).order_by(theirs.c.id)).scalars().all()

    assert read == ["ours", "theirs"]
    assert database.read() == ["ours", "theirs"]
    assert database.migrator.status("notes.body").pending == 1
    assert database.migrator.run("notes.body").rows == 3
    assert database.migrator.verify("notes.body").is_clean


def test_goes_back(database: Database) -> None:
    """Reversed, what was written encrypted alone is in the other library's ciphertext again."""
    type_ = utils(AesGcmEngine)(KEY)
    database.before(type_, ["one", "two"])
    database.models(type_)
    database.migrator.run("notes.body")
    database.models(type_, policy="read")
    with database.serving() as session:
        session.add(database.Note(id=3, user_id=1, body="three"))
        session.commit()

    database.models(type_)
    assert database.migrator.reverse("notes.body").finished
    with database.engine.connect() as connection:
        read = connection.execute(sa.select(sa.column("body", type_)).select_from(text("notes ORDER BY id")))
        assert read.scalars().all() == ["one", "two", "three"]


INTEGERS = [0, 1, -1, 2**31, -(2**70), None]
MOMENTS = [dt.datetime(2026, 11, 22, 3, 4, 5, 678901), dt.datetime(1, 1, 1), dt.datetime.max, None]
DATES = [dt.date(1815, 12, 10), dt.date.min, None]
DOCUMENTS = [{"a": [1, 2.5, None, "Grüße"]}, {}, [], [{"b": True}], None]
BOOLEANS = [True, False, None]
TYPED: dict[str, tuple[Any, Any, list[Any]]] = {
    "int": (Integer, Integer, INTEGERS),
    "datetime": (DateTime, DateTime, MOMENTS),
    "date": (Date, Date, DATES),
    "bool": (sa.Boolean, sa.Boolean, BOOLEANS),
}


@pytest.mark.any_database
@pytest.mark.parametrize("engine_class", [AesEngine, AesGcmEngine, FernetEngine])
@pytest.mark.parametrize(("theirs", "ours", "values"), TYPED.values(), ids=TYPED)
def test_typed_values_come_over(
    database: Database, engine_class: Any, theirs: Any, ours: Any, values: list[Any]
) -> None:
    """sqlalchemy-utils' typed values come over as values of the same type."""
    type_ = StringEncryptedType(theirs, KEY, engine_class, "pkcs5" if engine_class is AesEngine else None)
    database.before(type_, values)

    database.models(type_, ours).comes_over(values)


def test_json_of_utils(sqlite_engine: Engine) -> None:
    """JSON of sqlalchemy-utils comes over as JSON."""
    database = Database(sqlite_engine)
    database.before(StringEncryptedType(JSONType, KEY, AesGcmEngine), DOCUMENTS)

    database.models(StringEncryptedType(JSONType, KEY, AesGcmEngine), JSON).comes_over(DOCUMENTS)


def test_json_of_utils_on_postgres(postgres_engine: Engine) -> None:
    """On PostgreSQL sqlalchemy-utils stores the `repr` of a document, and reads a text: that comes over."""
    database = Database(postgres_engine)
    database.before(StringEncryptedType(JSONType, KEY, AesGcmEngine), [{"a": [True]}])

    database.models(StringEncryptedType(JSONType, KEY, AesGcmEngine), JSON).comes_over(["{'a': [True]}"])


FIELD_KEY, OTHER_FIELD_KEY = (base64.b64encode(bytes([one]) * 32).decode() for one in (1, 2))
FIELDS = [
    (encrypted_field.EncryptedText, Text, TEXTS),
    (encrypted_field.EncryptedBytes, sa.LargeBinary, [b"", b"\x00\xff", b"x" * 5000]),
    (encrypted_field.EncryptedJson, JSON, [one for one in DOCUMENTS if isinstance(one, dict)]),
]


@pytest.mark.parametrize(("theirs", "ours", "values"), FIELDS)
def test_encrypted_field_comes_over(database: Database, theirs: Any, ours: Any, values: list[Any]) -> None:
    """sqlalchemy-encrypted-field's values, which it hands out wrapped, come over unwrapped."""
    encrypted_field.configure(FIELD_KEY)
    database.before(theirs(), values)
    database.sql("INSERT INTO notes (id, user_id) VALUES (100, 1)")

    database.models(Revealed(theirs), ours).comes_over([*values, None])


def test_encrypted_field_wrong_key(database: Database) -> None:
    """It says so itself when the key is wrong, but only once a value is asked for: refused before."""
    encrypted_field.configure(FIELD_KEY)
    database.before(encrypted_field.EncryptedText(), [CANARY])
    encrypted_field.configure(OTHER_FIELD_KEY)

    assert "(1,)" in str(refusal(database.models(Revealed(encrypted_field.EncryptedText))))
    assert database.is_untouched()


def test_encrypted_field_without_unwrapping(database: Database) -> None:
    """Its type named bare is refused, and not what it shows of itself encrypted."""
    encrypted_field.configure(FIELD_KEY)
    database.before(encrypted_field.EncryptedText(), [CANARY])

    assert "a Secret where 'str' is wanted" in str(refusal(database.models(encrypted_field.EncryptedText())))
