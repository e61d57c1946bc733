"""`keys receipt-key` and `keys verify-receipt`: a receipt is checked offline, and against a database."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ReceiptKey, ServerKeyring
from sqlalchemy_envelope.cli.group import commands
from tests.orm.models import Base, User

SERVER_KEY = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="


def run(*arguments: str, **environment: str) -> Result:
    runner = CliRunner(env={"ENVELOPE_SERVER_KEYS": None, "ENVELOPE_RECEIPT_KEY": None, **environment})
    return runner.invoke(commands, ["keys", *arguments], prog_name="sqlalchemy-envelope")


@pytest.fixture
def receipt(sqlite_engine: Engine, tmp_path: Path) -> Path:
    """The receipt of a shredded owner, beside a copy of the database from before."""
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring.from_text(SERVER_KEY)
    )
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = User(email="ada@example.org", phone="1")
        envelope.enroll(session, user, secret="a secret")
        session.commit()
        shutil.copy(str(sqlite_engine.url.database), tmp_path / "backup.db")
        made = envelope.shred(session, user, reason="asked")
        session.commit()
    file = tmp_path / "receipt.json"
    file.write_text(made.to_json())
    return file


def public_key() -> str:
    return run("receipt-key", ENVELOPE_SERVER_KEYS=SERVER_KEY).output.strip()


def test_a_receipt_is_checked_offline(receipt: Path) -> None:
    """The printed public key checks the receipt, and another key does not."""
    good = run("verify-receipt", str(receipt), "--public-key", public_key())
    other = ReceiptKey(bytes(32)).public_text
    wrong = run("verify-receipt", str(receipt), "--public-key", other)
    either = run(
        "verify-receipt", str(receipt), "--public-key", other, "--public-key", public_key(), "--json"
    )

    assert (good.exit_code, wrong.exit_code, either.exit_code) == (0, 3, 0)
    assert "2 keys destroyed at" in good.output
    assert "The signature fits." in good.output
    assert "backups" in good.output
    assert "signed by the key" in wrong.stderr
    assert json.loads(either.output)["counts"]["values"] == 1


def test_an_altered_receipt_proves_nothing(receipt: Path) -> None:
    """A changed count ends with 3, and so does another file."""
    receipt.write_text(receipt.read_text().replace('"values": 1', '"values": 0'))
    altered = run("verify-receipt", str(receipt), "--public-key", public_key())
    receipt.write_text("nothing")
    foreign = run("verify-receipt", str(receipt), "--public-key", public_key())

    assert (altered.exit_code, foreign.exit_code) == (3, 3)
    assert "was altered" in altered.stderr
    assert "no erasure receipt" in foreign.stderr


def test_a_restored_backup_is_found(receipt: Path, sqlite_engine: Engine) -> None:
    """The database of today holds none of the keys; a backup of before does, and whose they are is told."""
    given = ["verify-receipt", str(receipt), "--public-key", public_key(), "--database"]
    today = run(*given, f"sqlite:///{sqlite_engine.url.database}")
    restored = run(*given, f"sqlite:///{receipt.parent / 'backup.db'}")
    as_json = run(*given, f"sqlite:///{receipt.parent / 'backup.db'}", "--json")
    nowhere = run(*given, "sqlite://")

    assert (today.exit_code, restored.exit_code, as_json.exit_code, nowhere.exit_code) == (0, 1, 1, 2)
    assert "None of them is back" in today.output
    assert restored.output.count("BACK: users_key: key ") == 2
    assert "owner_id=1" in restored.output
    assert len(json.loads(as_json.output)["returned"]) == 2


def test_another_database_reassures_nobody(receipt: Path, sqlite_engine: Engine) -> None:
    """A database without the receipt's keys is no proof that they are gone: it is said, and without any keys
    it ends with 3."""
    given = ["verify-receipt", str(receipt), "--public-key", public_key(), "--database"]
    url = f"sqlite:///{sqlite_engine.url.database}"
    with Session(sqlite_engine) as session:
        session.delete(session.scalars(select(User)).one())
        session.commit()
        empty = run(*given, url)
        envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
        envelope.enroll(session, User(email="ben@example.org", phone="2"), secret="a secret")
        session.commit()
    others = run(*given, url)
    without_table = run(*given, "sqlite://")

    assert (empty.exit_code, others.exit_code, without_table.exit_code) == (3, 0, 2)
    assert "users_key has no row of these keys. It has no keys at all" in empty.output
    assert "if the owners were deleted" in others.output
    assert "no table users_key" in without_table.stderr
    assert "None of them is back" not in empty.output + others.output


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql+nodriver://u:hidden@h/db", "NoSuchModuleError"),
        ("postgresql+pg8000://u:hidden@h/db", "not installed: pg8000"),
        ("postgresql+psycopg://u:hidden@h:port/db", "ValueError"),
        ("sqlite+aiosqlite:///{0}/backup.db", "a driver for asyncio"),
        ("sqlite:///{0}/misspelt.db", "There is no database"),
    ],
)
def test_a_database_that_cannot_be_asked(receipt: Path, address: str, why: str) -> None:
    """It is wrong usage, and never taken for keys that are back; no password is shown and no file is made."""
    given = address.format(receipt.parent)
    found = run("verify-receipt", str(receipt), "--public-key", public_key(), "--database", given)

    assert found.exit_code == 2
    assert why in found.stderr
    assert "hidden" not in found.output
    assert not (receipt.parent / "misspelt.db").exists()


def test_the_key_is_found_where_the_application_has_it(tmp_path: Path) -> None:
    """A receipt key in the environment comes first; a file of server keys is taken if it is named."""
    own = ReceiptKey.generate_key()
    file = tmp_path / "server.keys"
    file.write_text(SERVER_KEY)
    file.chmod(0o600)
    named = run("receipt-key", ENVELOPE_SERVER_KEYS=SERVER_KEY, ENVELOPE_RECEIPT_KEY=own)
    missing = run("receipt-key")

    assert ReceiptKey.from_text(own).public_text == named.output.strip()
    assert public_key() == run("receipt-key", "--server-keys", str(file)).output.strip()
    assert missing.exit_code == 2
    assert ReceiptKey.from_text(run("generate", "receipt").output.strip())
