"""An application whose owners were given keys while they were away."""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile
from sqlalchemy_envelope.keys.providers import CampaignKeyFile
from tests.orm.models import SECRET, Base, Note, User

CHEAP = KdfProfile.unsafe_for_tests()


class Application:
    """An application in the middle of a campaign, and a way to start it anew with nothing cached."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.path = engine, folder / "campaign.key"
        self.key: Any = CampaignKeyFile.generate(self.path)
        self.events: list[AuditEvent] = []
        self.envelope = self.restart()

    def restart(self, key: object | None = None, **options: Any) -> Envelope:
        self.key = key or self.key
        options.setdefault("providers", {"campaign": self.key})
        self.envelope = Envelope(kdf_profile=CHEAP, audit=self.events.append, **options)
        return self.envelope

    def away(self, name: str = "ada", note: str | None = None) -> int:
        """An owner whose keys the campaign made, with a note under them; its id."""
        with Session(self.engine) as session:
            user = User(email=name)
            session.add(user)
            session.commit()
            with self.envelope.server_mode(session, provider="campaign", reason="backfill").prepare():
                session.add(Note(user=user, body=note or f"of {name}"))
                session.commit()
            return user.id

    def note(self, owner: int, envelope: Envelope | None = None, **how: Any) -> str | None:
        """The owner's first note, after an unlock that is settled and committed."""
        with (
            Session(self.engine) as session,
            (envelope or self.envelope).unlock(session, session.get_one(User, owner), **how) as unlocked,
        ):
            unlocked.settle()
            query = select(Note).where(Note.user_id == owner).order_by(Note.id)
            found = session.scalars(query).first()
            body = None if found is None else found.body
            session.commit()
            return body

    def claim(self, owner: int, secret: str = SECRET) -> None:
        """The owner comes back: the application has authenticated them."""
        with Session(self.engine) as session:
            self.envelope.enroll(session, session.get_one(User, owner), secret=secret)
            session.commit()

    def slots(self) -> list[tuple[Any, ...]]:
        """Every key slot as it is stored."""
        with self.engine.connect() as connection:
            table = Base.metadata.tables["users_keyslot"]
            return [tuple(row) for row in connection.execute(select(table).order_by(table.c.slot_id))]

    def keys(self) -> list[tuple[Any, ...]]:
        """Every key as it is stored."""
        with self.engine.connect() as connection:
            table = Base.metadata.tables["users_key"]
            return [tuple(row) for row in connection.execute(select(table).order_by(table.c.key_id))]

    def roots(self) -> int:
        """How many root keys there are."""
        return sum(row.count("root") for row in self.keys())

    def kinds(self) -> list[str]:
        """The kinds of all slots."""
        with self.engine.connect() as connection:
            return sorted(connection.scalars(select(Base.metadata.tables["users_keyslot"].c.kind)))

    def named(self, name: str) -> int:
        """How many audit events of this name there were."""
        return sum(event.name == name for event in self.events)
