"""Values of other libraries that were corrupted, and ciphertext of our own in the previous column."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, Text
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, FernetEngine

from sqlalchemy_envelope import EncryptedType
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.foreign_types import (
    FernetText,
    PartlyPlaintext,
    PgCryptoText,
    Revealed,
    check_of,
)
from sqlalchemy_envelope.migration.migrator import Migrator
from tests.migration.peers.other_libraries import (
    PEERS,
    TEXTS,
    Database,
    every_peer,
    fernet_of,
    refusal,
    stopped_in_the_middle,
    utils,
)

CANARY = "canary 5d1e73"
KEY, WRONG = "the application's old key", "some other key"


@pytest.mark.any_database
@every_peer
def test_corrupted_in_the_middle(database: Database, peer: Callable[[str], Any]) -> None:
    """A value in the middle that its package cannot open stops the run cleanly, with the row's key."""
    database.before(peer(KEY), [CANARY] * 9)
    database.models(peer(KEY))
    database.migrator.run("notes.body")
    stored = database.sql("SELECT body FROM notes WHERE id = 7")[0][0]
    cut = stored[:-8]
    database.sql("UPDATE notes SET body = :cut WHERE id = 7", cut=cut)

    assert "(7,)" in str(stopped_in_the_middle(database))


def is_read_as_something(type_: Any, stored: str, engine: Engine) -> bool:
    try:
        type_.process_result_value(stored, engine.dialect)
    except Exception:  # noqa: BLE001 - the usual case; each padding raises something else
        return False
    return True


@pytest.mark.parametrize("padding", ["naive", "zeroes", "oneandzeroes", "pkcs5"])
def test_cbc_under_another_key(sqlite_engine: Engine, padding: str) -> None:
    """AES-CBC makes something of a ciphertext under every key; of 500 keys none passes for the right one.

    With the padding "zeroes" it reads nearly every short value as the empty string.
    """
    type_ = utils(AesEngine, padding)(KEY)
    foreign = [
        utils(AesEngine, padding)(f"key {number}").process_bind_param("a name", sqlite_engine.dialect)
        for number in range(500)
    ]
    silent = [stored for stored in foreign if is_read_as_something(type_, stored, sqlite_engine)]
    check = check_of(type_)
    assert check is not None

    assert not any(check(stored) for stored in silent)
    assert len(silent) > 400 if padding == "zeroes" else len(silent) < 30


@pytest.mark.parametrize("padding", ["naive", "zeroes", "oneandzeroes", "pkcs5"])
def test_cbc_under_another_key_in_the_middle(database: Database, padding: str) -> None:
    """One row under another key, behind the sample, stops the run, whatever it can be read as."""
    type_ = utils(AesEngine, padding)
    database.before(type_(KEY), [CANARY[:9]] * 9)
    database.models(type_(KEY))
    database.migrator.run("notes.body")
    foreign = type_(WRONG).process_bind_param("a name", database.engine.dialect)
    database.sql("UPDATE notes SET body = :foreign WHERE id = 7", foreign=foreign)

    assert "(7,)" in str(stopped_in_the_middle(database))


def test_stars_that_naive_padding_ate(database: Database) -> None:
    """Values of which sqlalchemy-utils itself lost the last characters come over as it reads them."""
    type_ = utils(AesEngine)(KEY)
    values = ["p@ss**", "x" * 12 + "****", "*" * 40, "y" * 16 + "*" * 16]
    database.before(type_, values)

    database.models(type_).comes_over(["p@ss", "x" * 12, "", "y" * 16])


@pytest.mark.any_database
@pytest.mark.parametrize("peer", [*PEERS.values()], ids=PEERS)
def test_plaintext_among_ciphertext(database: Database, peer: Callable[[str], Any]) -> None:
    """A column that was half encrypted is refused: what does not open is not taken for plaintext."""
    database.before(peer(KEY), ["one", None, "two"])
    database.models(peer(KEY))
    plaintext: Any = (
        CANARY.encode() if isinstance(database.sql("SELECT body FROM notes")[0][0], bytes) else CANARY
    )
    database.sql("UPDATE notes SET body = :plaintext WHERE id = 3", plaintext=plaintext)

    assert "(3,)" in str(refusal(database))
    assert database.is_untouched()


@pytest.mark.parametrize("type_", [utils(FernetEngine), lambda key: FernetText(fernet_of(key))])
def test_plaintext_among_ciphertext_on_request(database: Database, type_: Callable[[str], Any]) -> None:
    """Half encrypted columns come over where a function says which is which; a wrong key is refused."""
    database.before(type_(KEY), ["one", None, "two"])
    database.sql("UPDATE notes SET body = :plaintext WHERE id = 3", plaintext=CANARY)

    def is_token(stored: str) -> bool:
        return stored.startswith("gAAAA")

    refusal(database.models(PartlyPlaintext(type_(WRONG), is_token)))
    assert database.is_untouched()
    database.models(PartlyPlaintext(type_(KEY), is_token)).comes_over(["one", None, CANARY])


def test_plaintext_among_cbc_on_request(database: Database) -> None:
    """The same with a cipher that is checked by encrypting again: plaintext is not."""
    database.before(utils(AesEngine, "pkcs5")(KEY), ["one", "two"])
    database.sql("UPDATE notes SET body = 'plain' WHERE id = 2")

    mixed = PartlyPlaintext(utils(AesEngine, "pkcs5")(KEY), lambda stored: stored != "plain")
    database.models(mixed).comes_over(["one", "plain"])


def test_what_types_refuse() -> None:
    """Types that could not do what they say are refused where they are declared."""
    with pytest.raises(ConfigurationError):
        PartlyPlaintext(PgCryptoText(KEY), bool)
    with pytest.raises(ConfigurationError):
        Revealed(Text())
    with pytest.raises(ConfigurationError):
        FernetText(KEY)  # type: ignore[arg-type]
    assert KEY not in repr(FernetText(fernet_of(KEY)))


OURS = {
    "row": ({"label": "notes.body"}, {"bind": "row", "label": "notes.body"}),
    "column": ({"label": "notes.body", "bind": "row"}, {"label": "notes.text"}),
    "label": ({"label": "an old name"}, {}),
    "scope": ({"label": "notes.body"}, {"label": "notes.body", "scope": "medical"}),
}


@pytest.mark.any_database
@pytest.mark.parametrize(("before", "after"), OURS.values(), ids=OURS)
def test_our_own_ciphertext(database: Database, before: dict[str, Any], after: dict[str, Any]) -> None:
    """From column-bound to row-bound and back, to another label, to another scope: through the same steps."""
    database.our_own(before, TEXTS)
    previous = EncryptedType(Text, owner="user_id", **before)

    database.models(previous, Text, **after).comes_over(TEXTS)


@pytest.mark.parametrize(("before", "after"), OURS.values(), ids=OURS)
def test_our_own_ciphertext_goes_back(
    database: Database, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """What was written encrypted alone goes back to the previous column, encrypted as that one wants it."""
    database.our_own(before, ["one", "two"])
    previous = EncryptedType(Text, owner="user_id", **before)
    database.models(previous, Text, **after)
    database.migrator.run("notes.body")
    database.models(previous, Text, "read", **after)
    with database.serving() as session:
        session.add(database.Note(id=3, user_id=1, body="three"))
        session.commit()
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NULL")[0][0] == 1

    database.models(previous, Text, **after)
    report = database.migrator.reverse("notes.body")

    assert (report.finished, report.rows) == (True, 1)
    database.sql("ALTER TABLE notes RENAME COLUMN body_encrypted TO left_over")
    database.sql("ALTER TABLE notes RENAME COLUMN body TO body_encrypted")
    database.models(None, Text, **before)
    assert database.read() == ["one", "two", "three"]


def test_our_own_ciphertext_altered(database: Database) -> None:
    """A value of ours that was moved to another row's column stops the run with that row's key."""
    before = {"label": "notes.body", "bind": "row"}
    database.our_own(before, [CANARY, "two", "three"])
    database.sql("UPDATE notes SET body = (SELECT body FROM notes WHERE id = 1) WHERE id = 3")

    assert "(3,)" in str(refusal(database.models(EncryptedType(Text, owner="user_id", **before))))


def test_our_own_ciphertext_that_is_locked(database: Database) -> None:
    """Values whose keys nobody here holds stay as they are, and are counted as left."""
    database.our_own({"label": "notes.body"}, ["one", "two"])
    previous = EncryptedType(Text, owner="user_id", label="notes.body")
    database.models(previous, Text, bind="row", label="notes.body")

    report = Migrator(database.engine, database.envelope, database.Base).run("notes.body")

    assert (report.finished, report.rows, report.pending) == (False, 0, 2)


def test_our_own_new_scope(database: Database) -> None:
    """Owners who have no key of the new scope yet are left as they are until they have."""
    database.our_own({"label": "notes.body"}, ["one", "two"], scope="")
    previous = EncryptedType(Text, owner="user_id", label="notes.body")
    database.models(previous, Text, label="notes.body", scope="medical")

    report = database.migrator.run("notes.body")

    assert (report.finished, report.rows, report.pending) == (False, 0, 2)
    assert database.read() == ["one", "two"]
