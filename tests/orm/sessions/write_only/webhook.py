"""A webhook that writes for owners who are away."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile
from tests.orm.models import SECRET, Base, Note, User

KEYS: sa.Table = Base.metadata.tables["users_key"]


@dataclass
class Webhook:
    """An application with users who are away."""

    engine: Engine
    events: list[AuditEvent] = field(default_factory=list)
    envelope: Envelope = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self, **options: Any) -> Envelope:
        """The application as another process: it remembers no epoch."""
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(), audit=self.events.append, **options
        )
        return self.envelope

    def user(self, name: str = "ada", **options: Any) -> int:
        """A user who is enrolled and away; its id."""
        with Session(self.engine) as session:
            user = User(email=name)
            self.envelope.enroll(session, user, **(options or {"secret": SECRET}))
            session.commit()
            return user.id

    def write(self, owner: int, *bodies: str) -> None:
        """Notes for a user who is locked, in a session and a block of their own."""
        with Session(self.engine) as session, self.envelope.write_only(session, session.get_one(User, owner)):
            session.add_all([Note(user_id=owner, body=body) for body in bodies])
            session.commit()

    def read(self, owner: int) -> list[str | None]:
        """What a user reads who unlocks, and settles as a log-in does."""
        with Session(self.engine) as session:
            user = session.get_one(User, owner)
            with self.envelope.unlock(session, user, secret=SECRET) as unlocked:
                unlocked.settle()
                bodies = [
                    note.body
                    for note in session.scalars(select(Note).where(Note.user_id == owner).order_by(Note.id))
                ]
                session.commit()
            return bodies

    @property
    def seals(self) -> int:
        """How many write epochs were sealed."""
        return [event.name for event in self.events].count("write_epoch_sealed")

    def epochs(self, owner: int) -> list[Any]:
        """The rows of a user's write epochs."""
        query = select(KEYS).where(KEYS.c.owner_id == owner, KEYS.c.purpose == "write")
        with self.engine.connect() as connection:
            return list(connection.execute(query.order_by(KEYS.c.created_at)))
