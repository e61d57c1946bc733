"""Members, teams and letters from before the campaign."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AuditEvent,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    ServerKeyring,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignStatus
from sqlalchemy_envelope.keys.providers import CampaignKeyFile

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
