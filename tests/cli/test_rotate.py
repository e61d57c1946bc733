"""`sqlalchemy-envelope rotate` and `keys retire`: each kind of key is rotated batch by batch, and a key goes
only when nothing refers to it; each outcome has its exit code."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sqlalchemy_envelope import ServerKeyring
from tests.cli.migrating import APP, USERS, Old, make_old

ROWS = 20


@pytest.fixture(scope="module")
def migrated(template: Old, tmp_path_factory: pytest.TempPathFactory) -> Old:
    """The application after its migration: every value is encrypted under keys that the server holds."""
    old = make_old(template, tmp_path_factory.mktemp("rotate") / "app", ROWS)
    assert old.steps("run", "verify", "cutover") == [0, 0, 0]
    return old


@pytest.fixture
def old(migrated: Old, tmp_path: Path) -> Old:
    """A copy of it."""
    folder = tmp_path / "app"
    shutil.copytree(migrated.folder, folder)
    return replace(migrated, folder=folder, url=f"sqlite:///{folder / 'notes.db'}")


RUN = """
import json, sys
from click.testing import CliRunner
from sqlalchemy_envelope.cli.group import commands
ran = [CliRunner().invoke(commands, one, terminal_width=100) for one in json.loads(sys.argv[1])]
json.dump([[one.exit_code, one.output] for one in ran], open("ran.json", "w"))
"""


def run(old: Old, *lines: str, **more: str) -> list[tuple[int, str]]:
    """Some commands in one process: the exit code of each, and what it printed, without plaintext or key."""
    ran = old.python("-c", RUN, json.dumps([line.split() for line in lines]), ENVELOPE_APP=APP, **more)
    assert ran.returncode == 0, ran.stderr
    found = [(code, output) for code, output in json.loads((old.folder / "ran.json").read_text())]
    old.check_output("".join(output for _, output in found))
    return found


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_server_key_from_first_to_last(old: Old) -> None:
    """Publish, use, rotate, retire: refused while it is needed, then free, and the application reads without
    it. A second run has nothing to do."""
    new = ServerKeyring.generate_key()
    key = f"server:{ServerKeyring.from_text(old.key).active[0].hex()}"
    ran = run(
        old,
        f"keys retire {key} --explain",
        f"keys retire {key} --backups-until 2026-01-01",
        "rotate provider --batch 2 --json",
        "rotate provider",
        f"keys retire {key} --backups-until 2126-01-01",
        f"keys retire {key[:15]} --backups-until 2026-01-01",
        ENVELOPE_SERVER_KEYS=f"{new},{old.key}",
    )
    codes, (explained, refused, rotated, again, kept, free) = zip(*ran, strict=True)
    made = events(rotated)

    assert codes == (1, 3, 0, 0, 3, 0)
    assert re.search(rf"users_keyslot.provider_wrapped +slot +{USERS} +yes", explained)
    assert "It has to stay" in explained
    assert f"users_keyslot.provider_wrapped has {USERS} slots under it" in refused
    assert [one["event"] for one in made] == ["started", *["progress"] * 3, "finished"]
    assert (made[-1]["rotated"], made[-1]["slots"], made[-1]["keks"]) == (USERS, USERS, 1)
    assert "User: 0 owners rotated" in again
    assert "backups need it until 2126-01-01 00:00 UTC" in kept
    assert "nothing refers to it: take it off the list of server keys" in free
    assert old.read(ENVELOPE_SERVER_KEYS=new) == (ROWS, ROWS, USERS, USERS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_full_disk_is_one_line(old: Old) -> None:
    """A rotation whose first line cannot be written says that, and warns of nothing."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sqlalchemy_envelope.cli", "rotate", "provider", "--json"]
        ran = subprocess.run(
            command,
            check=False,
            cwd=old.folder,
            env=old.environment(ENVELOPE_APP=APP),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            text=True,
        )

    assert ran.stderr == "Error: The output cannot be written: No space left on device.\n"
    assert ran.returncode == 4


def test_data_keys_from_first_to_last(old: Old) -> None:
    """Rotate, re-encrypt, explain, destroy: within the horizon and without a word of yes it is refused."""
    (key,) = old.execute("SELECT key_id FROM users_key WHERE owner_id = 1 AND purpose = 'data'")[0]
    ran = run(
        old,
        "rotate data --reason yearly --json",
        "rotate data --reason yearly --before 2026-01-01",
        f"keys retire {key} --horizon 30d",
        "rotate values",
        f"keys retire {key} --horizon 0d --yes",
    )
    codes, (rotated, again, needed, values, moment) = zip(*ran, strict=True)
    old.execute("UPDATE users_key SET retired_at = '2026-01-01 00:00:00' WHERE retired_at IS NOT NULL")
    ended = run(
        old,
        f"keys retire {key} --horizon 30d",
        f"keys retire {key} --horizon 30d --yes",
        f"keys retire {key} --explain --json",
        *("rotate root --reason leaver --provider server --owners User", "rotate seals", "rotate kdf"),
        *("rotate values notes.body", "rotate provider --owners Nobody", "rotate provider --provider kms"),
        "rotate data --reason yearly --before yesterday",
        "keys retire ffffffff --explain",
        "keys retire ff --explain",
        "keys retire ffffffff --horizon month",
    )
    (asked, gone, explained, root), others = [one for _, one in ended[:4]], [code for code, _ in ended[4:]]

    assert codes == (0, 0, 3, 0, 3)
    assert [code for code, _ in ended[:4]] == [3, 0, 0, 0]
    assert events(rotated)[-1]["rotated"] == USERS
    assert "User: nothing to do" in again
    assert "notes.body_encrypted has 4 values under it" in needed
    assert f"notes.body: {ROWS} values re-encrypted" in values
    assert "may still get values until" in moment
    assert "There is no terminal to ask at" in asked
    assert "destroyed" in gone
    assert (json.loads(explained)["state"], json.loads(explained)["needed"]) == ("destroyed", 0)
    assert f"User: {USERS} owners rotated" in root
    assert others == [0, 0, 0, 2, 2, 2, 4, 2, 2]
    assert old.read() == (ROWS, ROWS, USERS, USERS)
