"""The end of a campaign: reports, what stands in its way, and the key that is shredded; a campaign behind an
offline key."""

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    KdfProfile,
    KeyNotFoundError,
    MigrationRefusedError,
    ProviderError,
    ServerKeyring,
    UnclaimedError,
)
from sqlalchemy_envelope.campaign.report import CampaignStatus
from sqlalchemy_envelope.keys.providers import CampaignKey, OfflineKey, OfflinePublicKey
from tests.migration.campaign.site import Base, Letter, Member, Site

CHEAP = KdfProfile.unsafe_for_tests()


# ---------------------------------------------------------------- the end


def test_everybody_claimed(site: Site) -> None:
    """The campaign is closed without a word, and the process forgets what it had of the key."""
    site.add(2)
    site.campaign.provide()
    site.write()
    site.claim(1, 2)

    report = site.campaign.close()

    assert report.destroyed
    assert not site.path.exists()
    assert site.named("campaign_closed") == 2
    assert site.letters(1) == ["old 1"]
    with Session(site.engine) as session:
        table = Base.metadata.tables["members_keyslot"]
        assert session.scalar(select(func.count()).where(table.c.kind == "provider")) == 0
    with pytest.raises(ProviderError):
        site.envelope.server_mode(provider="campaign", reason="again").prepare()


def test_the_report_as_text_and_json(lite: Site) -> None:
    """It names the key, the counts and what was done, the same in each of its forms; and no key."""
    lite.add(3)
    lite.campaign.provide()
    lite.claim(1)
    text = lite.path.read_text().strip()

    report = lite.campaign.close("shred", confirm=2)

    assert json.loads(report.as_json()) == json.loads(json.dumps(report.as_dict()))
    assert report.as_dict()["total"]["claimed"] == 1
    assert "claimed    1, of them hardened 1" in str(report)
    assert "shredded 2" in str(report)
    assert f"{lite.key.reference}: destroyed" in str(report)
    assert text not in report.as_json()


def test_kept_owners_keep_the_key(site: Site) -> None:
    """With "keep" the unclaimed can claim later; the report says that the key is still there."""
    site.add(2)
    site.campaign.provide()
    site.write()
    site.claim(1)

    report = site.campaign.close("keep")

    assert (report.kept, report.destroyed) == (1, False)
    assert "NOT destroyed" in str(report)
    assert site.path.exists()
    site.claim(2)
    assert site.letters(2) == ["old 2"]
    assert site.campaign.close("keep").destroyed


def test_unclaimed_owners_under_another_provider(site: Site) -> None:
    """With "provider:server" the server opens them from then on, and the campaign's key is destroyed."""
    site.add(3)
    site.campaign.provide()
    site.write()
    site.claim(1)

    report = site.campaign.close("provider:server")

    assert (report.rewrapped, report.kept, report.destroyed) == (2, 0, True)
    with (
        Session(site.engine) as session,
        site.envelope.unlock(session, session.get_one(Member, 3), provider="server", reason="test"),
    ):
        assert session.scalars(select(Letter.text).where(Letter.member_id == 3)).one() == "old 3"


def test_shredding_is_confirmed_by_its_number(site: Site) -> None:
    """Without the number of owners, or with another one, nothing is done; with it nobody opens them."""
    site.add(3)
    site.campaign.provide()
    site.write()
    site.claim(1)

    for confirm in (None, 0, 1, 3):
        with pytest.raises(MigrationRefusedError, match="confirm=2"):
            site.campaign.close("shred", confirm=confirm)
    assert site.members().unclaimed == 2
    assert site.campaign.close("shred", confirm=2).shredded == 2

    assert site.letters(1) == ["old 1"]
    with pytest.raises(KeyNotFoundError):
        site.letters(2)
    assert site.members() == CampaignStatus(owners=3, claimed=1, hardened=1, other=2)


def test_a_key_that_a_person_has_to_destroy(sqlite_engine: Engine, tmp_path: Path) -> None:
    """For a provider that cannot destroy its key the report says what to do."""
    Base.metadata.create_all(sqlite_engine)
    site = Site(sqlite_engine, tmp_path, CampaignKey(ServerKeyring([b"\x77" * 32])))

    report = site.campaign.close()

    assert not report.destroyed
    assert report.by_hand is not None
    assert "nothing here can" in str(report)


def test_a_key_that_does_not_let_itself_be_destroyed(sqlite_engine: Engine, tmp_path: Path) -> None:
    """The failure is told and the campaign can be closed again."""
    Base.metadata.create_all(sqlite_engine)
    answers: list[Any] = [OSError("busy"), "KMS deletes it in 7 days."]

    def destroy() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    site = Site(sqlite_engine, tmp_path, CampaignKey(ServerKeyring([b"\x77" * 32]), destroy))

    with pytest.raises(ProviderError, match="OSError"):
        site.campaign.close()
    report = site.campaign.close()
    assert report.destroyed
    assert "7 days" in str(report)


@pytest.mark.parametrize("policy", ["", "shredd", "provider", "provider:nobody", "provider:campaign"])
def test_a_policy_that_is_none(lite: Site, policy: str) -> None:
    """What is misspelt is refused before anything is done."""
    lite.add(1)
    lite.campaign.provide()

    with pytest.raises(ConfigurationError):
        lite.campaign.close(policy, confirm=1)
    assert lite.members().unclaimed == 1


def test_altered_rows_hold_the_end_up(lite: Site) -> None:
    """An owner whose slot was altered is not rewrapped; its key is not destroyed."""
    lite.add(3)
    lite.campaign.provide()
    lite.write()
    table = Base.metadata.tables["members_keyslot"]
    with lite.engine.begin() as connection:
        slot = connection.scalars(select(table.c.slot_id)).first()
        connection.execute(table.update().where(table.c.slot_id == slot).values(wrapped=b"\x11" * 105))

    with pytest.raises(MigrationRefusedError, match="1 owner still depends"):
        lite.campaign.close("provider:server")

    assert lite.path.exists()
    assert lite.named("rewrap_refused") == 1


# ---------------------------------------------------------------- an offline campaign


@pytest.fixture
def offline(sqlite_engine: Engine, tmp_path: Path) -> tuple[Site, Site]:
    """The application, which has the public half, and the custodians' machine."""
    Base.metadata.create_all(sqlite_engine)
    private = OfflineKey.generate()
    public = OfflinePublicKey(OfflineKey(private).public_key)
    return Site(sqlite_engine, tmp_path, public), Site(sqlite_engine, tmp_path, OfflineKey(private))


def test_an_offline_campaign(offline: tuple[Site, Site]) -> None:
    """Keys for everybody, data that the server cannot read, claims that wait, a release, and the end."""
    site, custodians = offline
    site.add(4)
    assert site.campaign.provide() == 4
    with (
        Session(site.engine) as session,
        site.envelope.write_only(session),
    ):
        session.add_all(Letter(member_id=owner, text=f"old {owner}") for owner in range(1, 5))
        session.commit()
    site.claim(1, 2)
    assert site.members() == CampaignStatus(owners=4, unclaimed=2, waiting=2)
    with pytest.raises(UnclaimedError):
        site.letters(1)
    with pytest.raises(ConfigurationError, match="custodians"), Session(site.engine) as session:
        site.campaign.release(session)

    with Session(site.engine) as session:
        assert custodians.campaign.release(session) == (2, 0)
        session.commit()
    assert site.letters(1) == ["old 1"]
    assert site.members() == CampaignStatus(owners=4, unclaimed=2, claimed=2, hardened=1)

    with pytest.raises(ConfigurationError, match="custodians"):
        site.campaign.close("provider:server")
    report = custodians.campaign.close("provider:server")
    assert (report.rewrapped, report.destroyed) == (2, False)
    assert report.by_hand is not None
    assert site.letters(2) == ["old 2"]


def test_who_waits_is_unclaimed_at_the_end(offline: tuple[Site, Site]) -> None:
    """Whoever waits for the custodians depends on their key, and is counted before it is destroyed."""
    site, _ = offline
    site.add(2)
    site.campaign.provide()
    site.claim(1)

    with pytest.raises(MigrationRefusedError, match="2 owners"):
        site.campaign.close()
