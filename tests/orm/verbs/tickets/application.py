"""An application with server keys whose users are in groups and stay logged in by ticket."""

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile, ServerKeyring, Ticket, UnlockedSession
from sqlalchemy_envelope.orm.verbs import tickets
from tests.orm.sharing_models import Base, Group, Membership, Post, User, secret_of
from tests.prepared import prepared

KEY, OTHER_KEY = bytes(range(32)), bytes(range(32, 64))
PROFILE = KdfProfile.unsafe_for_tests()
TICKETS: sa.Table = Base.metadata.tables["users_keyticket"]
DAY = dt.timedelta(days=1)
HOUR = dt.timedelta(hours=1)

events: list[AuditEvent] = []
"""The events of `envelope`, in their order."""
envelope = Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring([KEY]), audit=events.append)


class Clock:
    """The clock of the machine, which a test puts on and back."""

    def __init__(self) -> None:
        self.moment = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)

    def __call__(self) -> dt.datetime:
        return self.moment

    def forward(self, by: dt.timedelta) -> None:
        self.moment += by


class Application:
    """A database with Ada and Ben in a group, and the clock.

    Attributes:
        group_id: the group; Ada founded it.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self.clock = clock
        self.group_id = 1

    def log_in(self, name: str = "ada", label: str | None = None, **times: Any) -> Ticket:
        """Unlock with the secret, and issue a ticket for the next requests."""
        with Session(self.engine) as session:
            user = self.user(session, name)
            with envelope.unlock(session, user, secret=secret_of(name)) as unlocked:
                times = {"lifetime": DAY, "idle": HOUR, **times}
                ticket = unlocked.issue_ticket(user, label=label, **times)
                session.commit()
                return ticket

    @contextmanager
    def request(self, ticket: str, name: str = "ada", by: Envelope = envelope) -> Iterator[Session]:
        """A request of this user, who sends this ticket."""
        with Session(self.engine) as session:
            user = self.user(session, name)
            with by.unlock(session, user, ticket=ticket):
                yield session

    @contextmanager
    def with_secret(self, name: str = "ada") -> Iterator[tuple[Session, UnlockedSession]]:
        """A request of this user, who types the secret."""
        with Session(self.engine) as session:
            user = self.user(session, name)
            with envelope.unlock(session, user, secret=secret_of(name)) as unlocked:
                yield session, unlocked

    def diary(self, ticket: str, name: str = "ada", by: Envelope = envelope) -> str | None:
        """The diary, as a request with this ticket reads it."""
        with self.request(ticket, name, by) as session:
            return self.user(session, name).diary

    def user(self, session: Session, name: str = "ada") -> User:
        return session.scalars(select(User).where(User.email == name)).one()

    def remove_member(self, name: str) -> None:
        """Delete a membership by SQL, so that no epoch starts."""
        with Session(self.engine) as session:
            user = self.user(session, name)
            session.execute(delete(Membership).where(Membership.user_id == user.id))
            session.commit()

    def alter(self, **values: Any) -> None:
        """Change every ticket's row past the library."""
        with self.engine.begin() as connection:
            connection.execute(TICKETS.update().values(**values))

    def rows(self, table: sa.Table = TICKETS) -> list[Any]:
        """The rows of a table, past the session."""
        with self.engine.connect() as connection:
            return list(connection.execute(select(table).order_by(*table.primary_key)))

    def key_rows(self) -> list[list[Any]]:
        """Every row of keys, slots and grants, to be compared before and after."""
        names = [name for name in Base.metadata.tables if name.endswith(("_key", "_keyslot", "_keygrant"))]
        return [self.rows(Base.metadata.tables[name]) for name in sorted(names)]


def _make(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ada, ben, eve = (
            User(email=name, display_name=name.title(), diary=f"the diary of {name}")
            for name in ("ada", "ben", "eve")
        )
        envelope.enroll(
            session, [ada, ben, eve], secret={one: secret_of(one.email) for one in (ada, ben, eve)}
        )
        session.commit()
        with envelope.unlock(session, ada, secret=secret_of("ada")):
            group = Group(name="the group of ada")
            envelope.enroll(session, group)
            session.add_all([Membership(group=group, user=ada), Membership(group=group, user=ben)])
            session.add(Post(group=group, text="the first post"))
            session.commit()


def make_application(engine: Engine, monkeypatch: Any) -> Application:
    """The application, freshly set up or copied from a template."""
    clock = Clock()
    monkeypatch.setattr(tickets, "now", clock)
    prepared(engine, "tickets", lambda: _make(engine))
    events.clear()
    return Application(engine, clock)
