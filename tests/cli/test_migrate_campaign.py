"""`sqlalchemy-envelope campaign` gives keys to owners who are away, tells who claimed theirs, and ends with
the key's destruction; each outcome has its exit code."""

import json
from pathlib import Path

import pytest

from tests.cli.migrating import APP, USERS, Old, make_old

CAMPAIGN_APP = f"""
from pathlib import Path
from sqlalchemy_envelope import Envelope
from sqlalchemy_envelope.keys.providers.campaign_key import CampaignKeyFile
from sqlalchemy_envelope.campaign.campaign import Campaign
from {APP} import Base, engine

path = Path("campaign.key")
key = CampaignKeyFile(path) if path.exists() else CampaignKeyFile.generate(path)
campaign = Campaign(engine, Envelope(providers={{"campaign": key}}), Base)
"""


@pytest.fixture
def old(template: Old, tmp_path: Path) -> Old:
    """An old application with a campaign."""
    old = make_old(template, tmp_path / "app", 10)
    (old.folder / "mine.py").write_text(CAMPAIGN_APP)
    return old


def campaign(old: Old, *arguments: str, code: int = 0) -> str:
    """One command: what it printed, where there is neither plaintext nor the campaign's key."""
    key = old.folder / "campaign.key"
    secret = key.read_text() if key.exists() else "\0"
    ran = old.python("-m", "sqlalchemy_envelope.cli", "campaign", *arguments, "--app", "mine")
    old.check_output(ran.stdout + ran.stderr)
    assert secret.strip() not in ran.stdout + ran.stderr
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def test_from_first_to_last(old: Old) -> None:
    """Keys for everybody, a count of who has not claimed them, and an end: refused at first, then done."""
    assert f"{USERS} owners were given keys" in campaign(old, "provide", "--batch", "2")
    assert json.loads(campaign(old, "status", "--json", code=1))["total"]["unclaimed"] == USERS
    assert "There is no terminal to ask at" in campaign(old, "close", code=3)
    codes = old.steps(
        *("status", "release", "close --yes", "close --unclaimed nonsense --yes", "close --unclaimed keep"),
        "close --unclaimed shred --yes",
        group="campaign",
        ENVELOPE_APP="mine:campaign",
    )
    closed = campaign(old, "close", "--unclaimed", "shred", "--confirm", str(USERS), "--yes", "--json")

    assert codes == [1, 3, 3, 2, 1, 3]
    assert json.loads(closed)["shredded"] == USERS
    assert json.loads(closed)["destroyed"] is True
    assert not (old.folder / "campaign.key").exists()
