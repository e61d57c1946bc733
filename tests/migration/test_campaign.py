"""A whole campaign: keys for everybody, claims as they come back, the end, and what is left to whoever kept a
copy of the old database, of the server's secrets and of the campaign's key.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, Text, create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AuditEvent,
    ConfigurationError,
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyGrant,
    KeyNotFoundError,
    KeyOwner,
    LockedError,
    MigrationRefusedError,
    ProviderError,
    ServerKeyring,
    UnclaimedError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus
from sqlalchemy_envelope.keys.providers import CampaignKey, CampaignKeyFile, OfflineKey, OfflinePublicKey

CHEAP = KdfProfile.unsafe_for_tests()


class Base(DeclarativeBase):
    pass


class Member(KeyOwner, Base):
    __tablename__ = "members"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Tenant(KeyOwner, Base):
    """Its key has two columns, and its keys are bound to another attribute."""

    __tablename__ = "tenants"
    __owner_reference__ = "slug"

    region: Mapped[str] = mapped_column(String(10), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    slug: Mapped[str | None] = mapped_column(String(40), unique=True)
    contact: Mapped[str | None] = mapped_column(EncryptedType(String))


class Team(KeyOwner, Base):
    __tablename__ = "teams"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class TeamMember(KeyGrant, Base, of="team_id", to="member_id"):
    __tablename__ = "team_members"

    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"), primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("members.id", ondelete="CASCADE"), primary_key=True)


class Letter(Base):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("members.id", ondelete="CASCADE"), index=True)
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Site:
    """A database with owners who are away, and a campaign."""

    def __init__(self, engine: Engine, folder: Path, key: Any = None, **options: Any) -> None:
        self.engine, self.path = engine, folder / "campaign.key"
        self.key = key or CampaignKeyFile.generate(self.path)
        self.events: list[AuditEvent] = []
        options.setdefault("server_keys", ServerKeyring([b"\x51" * 32]))
        self.envelope = Envelope(
            kdf_profile=CHEAP, providers={"campaign": self.key}, audit=self.events.append, **options
        )
        self.campaign = Campaign(engine, self.envelope, Base)

    def add(self, count: int) -> None:
        """So many owners, with an account and no data."""
        with Session(self.engine) as session:
            session.execute(
                sa.insert(Member), [{"email": f"{number}@example.org"} for number in range(count)]
            )
            session.commit()

    def write(self, text: str = "old") -> None:
        """A letter for each, encrypted as a backfill does."""
        with Session(self.engine) as session:
            ids = session.scalars(select(Member.id)).all()
            with self.envelope.server_mode(session, provider="campaign", reason="backfill"):
                session.execute(
                    sa.insert(Letter), [{"member_id": one, "text": f"{text} {one}"} for one in ids]
                )
                session.commit()

    def claim(self, *owners: int, text: str | None = None) -> None:
        """These come back, and write a letter of their own if it is said; some at once, for one commit."""
        for start in range(0, len(owners), 100):
            with Session(self.engine) as session:
                for owner in owners[start : start + 100]:
                    member, secret = session.get_one(Member, owner), f"secret {owner}"
                    with self.envelope.unlock(session, member, secret=secret, authenticated=True):
                        if text is not None:
                            session.add(Letter(member_id=owner, text=f"{text} {owner}"))
                        session.flush()
                session.commit()

    def letters(self, owner: int) -> list[str | None]:
        """What an owner reads who has a secret, and settles as a log-in does."""
        with (
            Session(self.engine) as session,
            self.envelope.unlock(
                session, session.get_one(Member, owner), secret=f"secret {owner}"
            ) as unlocked,
        ):
            unlocked.settle()
            query = select(Letter.text).where(Letter.member_id == owner).order_by(Letter.id)
            found = list(session.scalars(query))
            session.commit()
            return found

    def members(self) -> CampaignStatus:
        return self.campaign.status()["Member"]

    def named(self, name: str) -> int:
        """The sum of the counts of all audit events of this name."""
        return sum(event.count for event in self.events if event.name == name)


@pytest.fixture
def site(engine: Engine, tmp_path: Path) -> Site:
    """On SQLite and on PostgreSQL."""
    Base.metadata.create_all(engine)
    return Site(engine, tmp_path)


@pytest.fixture
def lite(sqlite_engine: Engine, tmp_path: Path) -> Site:
    """On SQLite."""
    Base.metadata.create_all(sqlite_engine)
    return Site(sqlite_engine, tmp_path)


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

    with pytest.raises(MigrationRefusedError, match="1 owners still depend"):
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
