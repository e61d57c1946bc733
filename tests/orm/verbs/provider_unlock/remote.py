"""A provider over a network, and an application that enrols with it."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile, ServerKeyring
from tests.orm.models import Base, Note, User


class Remote:
    """A provider over a network, as it were: it counts, fails and dawdles when told to."""

    local = False
    reference = "remote/1"

    def __init__(self, key: bytes = b"\x21" * 32) -> None:
        self._keys = ServerKeyring([key])
        self.wraps = self.unwraps = 0
        self.threads: list[int] = []
        self.before: Callable[[], None] = lambda: None
        self.answer: bytes | None = None

    @property
    def calls(self) -> int:
        return self.wraps + self.unwraps

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        self.wraps += 1
        self.threads.append(threading.get_ident())
        self.before()
        return self._keys.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        self.unwraps += 1
        self.threads.append(threading.get_ident())
        self.before()
        return self.answer or self._keys.unwrap(wrapped, context)


class Application:
    """An application with a remote provider, and a way to start it anew with nothing cached."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.remote = Remote()
        self.events: list[AuditEvent] = []
        self.envelope = self.restart()

    def restart(self, **options: Any) -> Envelope:
        options.setdefault("providers", {"remote": self.remote})
        options.setdefault("provider_retries", 0)
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(), audit=self.events.append, **options
        )
        return self.envelope

    def enroll(self, name: str = "ada", **how: Any) -> int:
        """An owner with one note; its id."""
        with Session(self.engine) as session:
            user = User(email=name)
            with self.envelope.enroll(session, user, **(how or {"provider": "remote"})):
                session.add(Note(user=user, body=f"of {name}"))
                session.commit()
                return user.id

    def read(self, owner: int, **how: Any) -> str | None:
        """The owner's note, after an unlock."""
        how = how or {"provider": "remote", "reason": "test"}
        with (
            Session(self.engine) as session,
            self.envelope.unlock(session, session.get_one(User, owner), **how),
        ):
            return session.scalars(select(Note).where(Note.user_id == owner)).one().body

    def count(self, table: str) -> int:
        """How many rows a table has."""
        with self.engine.connect() as connection:
            found = connection.scalar(select(sa.func.count()).select_from(Base.metadata.tables[table]))
            return found or 0


def down() -> None:
    raise ConnectionError("no route to host")
