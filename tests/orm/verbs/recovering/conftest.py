"""An owner with a secret, a recovery code and a note; and what opens her."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, Envelope, KdfProfile, RecoveryCode, ServerKeyring
from tests.orm.models import SECRET, Base, Note, User

NEW = "other words entirely"


class Forgetful:
    """The database of an owner, who may have forgotten her secret. Each call is a visit with a session of its
    own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: list[AuditEvent] = []
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=ServerKeyring([b"\x05" * 32]),
            audit=self.events.append,
        )
        Base.metadata.create_all(engine)
        self.user = self.enrolled("ada")
        self.code = self.new_code("in the safe")
        self.events.clear()

    def enrolled(self, name: str, **ways: Any) -> int:
        """A user with a note; without `ways`, with a secret."""
        with Session(self.engine) as session:
            user = User(email=name)
            with self.envelope.enroll(session, user, **(ways or {"secret": SECRET})):
                session.add(Note(user=user, body=f"of {name}"))
                session.commit()
            return user.id

    def new_code(self, label: str | None = None, user: int | None = None) -> RecoveryCode:
        with Session(self.engine) as session:
            owner = session.get_one(User, user or self.user)
            with self.envelope.unlock(session, owner, secret=SECRET) as unlocked:
                code = unlocked.add_recovery_code(owner, label=label)
                session.commit()
            return code

    def bodies(self, user: int | None = None, **way: Any) -> list[str | None]:
        """What the owner reads, unlocked in this way."""
        with Session(self.engine) as session:
            owner = session.get_one(User, user or self.user)
            with self.envelope.unlock(session, owner, **way):
                notes = select(Note).where(Note.user_id == owner.id).order_by(Note.id)
                return [note.body for note in session.scalars(notes)]

    def write(self, body: str, **way: Any) -> None:
        with Session(self.engine) as session:
            owner = session.get_one(User, self.user)
            with self.envelope.unlock(session, owner, **way):
                session.add(Note(user=owner, body=body))
                session.commit()

    def reset(self, code: str | RecoveryCode, new: str = NEW, user: int | None = None) -> RecoveryCode:
        with Session(self.engine) as session:
            owner = session.get_one(User, user or self.user)
            made = self.envelope.reset_secret(session, owner, recovery_code=code, new=new)
            session.commit()
            return made

    def slots(self) -> list[tuple[str, str | None]]:
        """Kind and label of each slot of the owner's active root key."""
        with Session(self.engine) as session:
            found = self.envelope.slots(session, session.get_one(User, self.user))
            return sorted((slot.kind, slot.label) for slot in found)

    def rows(self) -> dict[str, list[Any]]:
        """Every row of keys and slots: what must not change where nothing is done."""
        tables = Base.metadata.tables
        with self.engine.connect() as connection:
            return {
                name: sorted(map(str, connection.execute(tables[name].select())))
                for name in ("users_key", "users_keyslot")
            }


@pytest.fixture
def forgetful(engine: Engine) -> Forgetful:
    """On SQLite and on PostgreSQL."""
    return Forgetful(engine)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Iterator[Forgetful]:
    """On SQLite."""
    return Forgetful(sqlite_engine)
