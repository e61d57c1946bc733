"""Models whose owners a server opens, and a server that serves them."""

import os
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile, ServerKeyring, ServerSession
from tests.orm.models import Note, User

KEY = b"\x07" * 32
OWNERS = int(os.environ.get("ENVELOPE_OWNERS", "1100"))
"""How many owners have a row each where there are many; 10,000 take a minute."""


@dataclass
class Serving:
    """An application with a server key, on one database."""

    engine: Engine
    events: list[AuditEvent] = field(default_factory=list)

    def envelope(self, **options: Any) -> Envelope:
        """One of its processes, as it were: nothing is cached yet."""
        return Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=ServerKeyring([KEY]),
            audit=self.events.append,
            **options,
        )

    def mode(self, **options: Any) -> ServerSession:
        """Server mode of a process that has just started."""
        return self.envelope(**options).server_mode(reason="test")

    def users(self, count: int, body: str | None = None) -> list[int]:
        """So many users with keys of their own, each with one note; their ids."""
        with self.mode(), Session(self.engine) as session:
            some = [
                User(email=f"{number}@example.org", notes=[Note(body=body or f"note {number}")])
                for number in range(count)
            ]
            session.add_all(some)
            session.commit()
            return [user.id for user in some]

    def bare_user(self, name: str) -> int:
        """A user who is in the database and has no keys."""
        with self.engine.begin() as connection:
            row = connection.execute(
                sa.insert(User.__table__).values(email=name).returning(User.__table__.c.id)  # type: ignore[arg-type]
            )
            return int(row.scalar_one())

    def bodies(self, *owners: int) -> list[str | None]:
        """What a process that has just started reads of these owners' notes."""
        with self.mode(), Session(self.engine) as session:
            query = select(Note).order_by(Note.id)
            return [note.body for note in session.scalars(query.where(Note.user_id.in_(owners)))]
