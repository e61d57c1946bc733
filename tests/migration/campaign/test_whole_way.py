"""A whole campaign: keys for everybody, claims as they come back, the end, and what is left to whoever kept a
copy of the old database, of the server's secrets and of the campaign's key.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    ConfigurationError,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyNotFoundError,
    LockedError,
    MigrationRefusedError,
    ProviderError,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus
from sqlalchemy_envelope.keys.providers import CampaignKey, CampaignKeyFile
from tests.migration.campaign.site import Base, Letter, Member, Site, Team, Tenant

CHEAP = KdfProfile.unsafe_for_tests()


# ---------------------------------------------------------------- the whole way


def campaign_of(count: int, lite: Site, tmp_path: Path) -> CampaignReport:
    """Nobody has logged in; half come back; the campaign is closed; somebody kept copies of everything."""
    lite.add(count)
    assert lite.campaign.provide() == count
    lite.write()
    assert lite.members() == CampaignStatus(owners=count, unclaimed=count)
    lite.engine.dispose()
    shutil.copy(tmp_path / "test.db", tmp_path / "old.db")
    shutil.copy(lite.path, tmp_path / "kept.key")

    half = count // 2
    writers = range(half, 0, -10)  # each tenth is enough to look for
    lite.claim(*writers, text="new")
    lite.claim(*(owner for owner in range(1, half + 1) if owner not in writers))
    assert lite.members() == CampaignStatus(owners=count, unclaimed=count - half, claimed=half, hardened=half)
    with pytest.raises(MigrationRefusedError, match=str(count - half)):
        lite.campaign.close()
    return lite.campaign.close("shred", confirm=count - half)


def opened(path: Path, envelope: Envelope, provider: str) -> list[str | None]:
    """Every letter in a database that this provider opens."""
    engine = create_engine(f"sqlite:///{path}")
    enforce_foreign_keys(engine)
    found = []
    try:
        with Session(engine) as session, envelope.server_mode(session, provider=provider, reason="attack"):
            for letter in session.scalars(select(Letter).order_by(Letter.id)):
                try:
                    found.append(letter.text)
                except EnvelopeError:
                    continue
    finally:
        engine.dispose()
    return found


def check_whole_campaign(count: int, lite: Site, tmp_path: Path) -> None:
    report = campaign_of(count, lite, tmp_path)
    half = count // 2

    assert report.total == CampaignStatus(owners=count, unclaimed=count - half, claimed=half, hardened=half)
    assert (report.shredded, report.rewrapped, report.kept) == (count - half, 0, 0)
    assert report.destroyed
    assert report.by_hand is None
    assert not lite.path.exists()
    assert lite.letters(1) == ["old 1"]
    assert lite.letters(half) == [f"old {half}", f"new {half}"]
    with pytest.raises(KeyNotFoundError):
        lite.letters(count)

    # All that the server has, and the database as it was: the campaign's key is gone, and with it every wrap.
    server = Envelope(kdf_profile=CHEAP, server_keys=ServerKeyring([b"\x51" * 32]))
    assert opened(tmp_path / "old.db", server, "server") == []
    with pytest.raises(ProviderError):
        opened(tmp_path / "old.db", lite.envelope, "campaign")
    # Somebody kept a copy of the key as well: what was old is read in the old copy, nothing new is anywhere.
    (tmp_path / "kept.key").chmod(0o600)
    kept = Envelope(
        kdf_profile=CHEAP,
        server_keys=ServerKeyring([b"\x51" * 32]),
        providers={"campaign": CampaignKeyFile(tmp_path / "kept.key")},
    )
    assert len(opened(tmp_path / "old.db", kept, "campaign")) == count
    assert opened(tmp_path / "test.db", kept, "campaign") == []
    # The old key rows put into the new database do not reach what was written since.
    lite.engine.dispose()
    put_back(tmp_path)
    found = opened(tmp_path / "test.db", kept, "campaign")
    assert not any(text is None or text.startswith("new") for text in found)


def put_back(tmp_path: Path) -> None:
    """The campaign's slots of the old copy, in the new database again."""
    engine = create_engine(f"sqlite:///{tmp_path / 'test.db'}")
    with engine.begin() as connection:
        connection.execute(sa.text("ATTACH :path AS old"), {"path": str(tmp_path / "old.db")})
        connection.execute(sa.text("INSERT INTO main.members_keyslot SELECT * FROM old.members_keyslot"))
    engine.dispose()


def test_half_of_the_owners_claim_and_the_campaign_is_closed(lite: Site, tmp_path: Path) -> None:
    """The report is right, the key is gone, and no copy of anything opens what was written after a claim."""
    check_whole_campaign(100, lite, tmp_path)


@pytest.mark.thorough
def test_many_owners(lite: Site, tmp_path: Path) -> None:
    """The same with more owners than one batch takes; `ENVELOPE_OWNERS=10000` for as many as you like."""
    check_whole_campaign(int(os.environ.get("ENVELOPE_OWNERS", "600")), lite, tmp_path)


# ---------------------------------------------------------------- keys for everybody


def test_providing_goes_on_where_it_stopped(site: Site) -> None:
    """A run that is stopped has committed its batches; the next makes the rest; the one after, nothing."""
    site.add(25)
    told = []

    def stop(name: str, made: int) -> None:
        told.append((name, made))
        if made == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        site.campaign.provide(Member, batch=10, progress=stop)

    assert told == [("Member", 10), ("Member", 20)]
    assert site.members().unclaimed == 20
    assert site.campaign.provide(batch=10) == 5
    assert site.campaign.provide(batch=10) == 0
    assert site.members() == CampaignStatus(owners=25, unclaimed=25)


def test_owners_who_came_meanwhile_and_those_with_keys(site: Site) -> None:
    """Who enrolled on their own is left alone, and who came since the last run is provided by the next."""
    site.add(2)
    with Session(site.engine) as session:
        site.envelope.enroll(session, Member(email="own"), secret="mine")
        session.commit()

    assert site.campaign.provide() == 2
    site.add(3)
    assert site.members().unprovided == 3
    assert site.campaign.provide() == 3
    assert site.members() == CampaignStatus(owners=6, unclaimed=5, enrolled=1)


def test_somebody_enrolls_in_the_same_moment(lite: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner that gets keys between the look and the write costs the batch nothing: its own keys stay."""
    lite.add(4)
    providing = lite.campaign._providing
    make = providing._make
    called: list[int] = []

    def enroll_before(*arguments: Any) -> int:
        if not called:
            called.append(1)
            with Session(lite.engine) as other:
                lite.envelope.enroll(other, other.get_one(Member, 2), secret="secret 2")
                other.commit()
        return make(*arguments)

    monkeypatch.setattr(providing, "_make", enroll_before)

    assert lite.campaign.provide() == 3
    assert lite.members() == CampaignStatus(owners=4, unclaimed=3, enrolled=1)
    assert lite.letters(2) == []


def test_composite_keys_and_another_reference(site: Site) -> None:
    """Owners of any primary key get keys that are bound to what their class says; who has none, waits."""
    with Session(site.engine) as session:
        session.add_all(
            Tenant(region=region, number=number, slug=None if number == 5 else f"{region}-{number}")
            for region in ("eu", "us")
            for number in range(6)
        )
        session.commit()

    assert site.campaign.provide(Tenant, batch=3) == 10

    with Session(site.engine) as session:
        tenant = session.get_one(Tenant, ("us", 3))
        with site.envelope.enroll(session, tenant, secret="secret"):
            tenant.contact = "somebody"
            session.commit()
    with Session(site.engine) as session:
        tenant = session.get_one(Tenant, ("us", 3))
        with site.envelope.unlock(session, tenant, secret="secret"):
            assert tenant.contact == "somebody"
    assert site.campaign.status()["Tenant"] == CampaignStatus(
        owners=12, unprovided=2, unclaimed=9, claimed=1, hardened=1
    )


def test_many_owners_with_a_composite_key(lite: Site) -> None:
    """More of them than SQLite takes conditions in one statement get keys and lose them."""
    with Session(lite.engine) as session:
        rows = [{"region": "eu", "number": number, "slug": f"eu-{number}"} for number in range(1100)]
        session.execute(sa.insert(Tenant), rows)
        session.commit()

    assert lite.campaign.provide() == 1100
    with Session(lite.engine) as session:
        assert lite.campaign.release(session, owners=[]) == (0, 0)
    assert lite.campaign.close("shred", confirm=1100).shredded == 1100


def test_groups_are_granted_to_the_members_they_have(site: Site) -> None:
    """Rows of membership that were there before any key was give the members the group's, at their claim."""
    site.add(2)
    with Session(site.engine) as session:
        session.execute(sa.insert(Team), [{}, {}])
        session.execute(
            sa.insert(Base.metadata.tables["team_members"]),
            [{"team_id": 1, "member_id": 1}, {"team_id": 1, "member_id": 2}],
        )
        session.commit()

    assert site.campaign.provide() == 4
    with (
        Session(site.engine) as session,
        site.envelope.server_mode(session, provider="campaign", reason="backfill"),
    ):
        session.get_one(Team, 1).name = "readers"
        session.commit()
    site.claim(1, 2)

    with (
        Session(site.engine) as session,
        site.envelope.unlock(session, session.get_one(Member, 2), secret="secret 2"),
    ):
        assert session.get_one(Team, 1).name == "readers"
        session.commit()
    assert site.campaign.status()["Team"] == CampaignStatus(owners=2, unclaimed=1, shared=1)
    report = site.campaign.close("shred", confirm=1)
    assert report.destroyed
    with (
        Session(site.engine) as session,
        site.envelope.unlock(session, session.get_one(Member, 1), secret="secret 1"),
    ):
        assert session.get_one(Team, 1).name == "readers"
        session.get_one(Team, 1).name = "writers"
        session.commit()


# ---------------------------------------------------------------- how it is made


def test_what_a_campaign_is_made_with(lite: Site) -> None:
    """Another provider, no engine, and no base are told at once; a maker of sessions will do."""
    with pytest.raises(ConfigurationError, match="no campaign's"):
        Campaign(lite.engine, lite.envelope, Base, provider="server")
    kms = ServerKeyring([b"\x79" * 32])
    both = Envelope(kdf_profile=CHEAP, providers={"kms": kms, "campaign": CampaignKey(kms)})
    with pytest.raises(ConfigurationError, match="under the same key"):
        Campaign(lite.engine, both, Base)
    with pytest.raises(ConfigurationError, match="No provider"):
        Campaign(lite.engine, lite.envelope, Base, provider="other")
    with pytest.raises(ConfigurationError):
        Campaign("sqlite://", lite.envelope, Base)  # type: ignore[arg-type]  # what somebody may pass
    with pytest.raises(ConfigurationError, match="declarative base"):
        Campaign(lite.engine, lite.envelope, int)
    with pytest.raises(ConfigurationError, match="no class of key owners"):
        lite.campaign.provide(Letter)
    lite.add(1)
    assert Campaign(sessionmaker(lite.engine), lite.envelope, Base.registry).provide() == 1


def test_a_campaign_whose_name_begins_as_another(lite: Site) -> None:
    """The slots of "campaign_2" are none of "campaign", whatever their names share."""
    lite.add(1)
    second = Envelope(
        kdf_profile=CHEAP,
        server_keys=ServerKeyring([b"\x51" * 32]),
        providers={"campaign_2": CampaignKey(ServerKeyring([b"\x78" * 32]))},
    )
    Campaign(lite.engine, second, Base, provider="campaign_2").provide()

    assert lite.members() == CampaignStatus(owners=1, other=1)
    assert lite.campaign.close().destroyed
    with Session(lite.engine) as session:
        second.enroll(session, session.get_one(Member, 1), secret="secret 1")
        session.commit()
        with pytest.raises(AlreadyEnrolledError):
            second.enroll(session, session.get_one(Member, 1), secret="secret 1")


def test_an_unclaimed_owner_is_locked_to_a_server_without_the_key(lite: Site) -> None:
    """Server keys alone open nobody of the campaign: its key is a provider of its own."""
    lite.add(1)
    lite.campaign.provide()
    lite.write()

    with (
        Session(lite.engine) as session,
        lite.envelope.server_mode(session, provider="server", reason="look"),
    ):
        letter = session.scalars(select(Letter)).one()
        with pytest.raises(LockedError):
            letter.text  # noqa: B018
