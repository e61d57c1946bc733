"""Users in a group under one server key, and the same application with a second server key before it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, LargeBinary, inspect, select, type_coerce
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from tests.orm.sharing_models import Base, Group, Membership, Post, User, secret_of
from tests.prepared import prepared

OLD, NEW = (os.urandom(32) for _ in range(2))
OLD_ID, NEW_ID = (ServerKeyring([key]).active[0] for key in (OLD, NEW))


def application(*keys: bytes, **options: Any) -> Envelope:
    """The application, with these server keys."""
    return Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring(keys) if keys else None,
        **options,
    )


def make(engine: Engine) -> None:
    """Three users with a secret and a slot of the server, two of them in a group with a post."""
    Base.metadata.create_all(engine)
    envelope = application(OLD)
    with Session(engine) as session:
        users = [
            User(id=n, email=f"user{n}", diary=f"diary {n}", display_name=f"name {n}") for n in (1, 2, 3)
        ]
        secrets = {user: secret_of(user.email) for user in users}
        envelope.enroll(session, users, secret=secrets, provider="server")
        with envelope.unlock(session, users[0], secret=secret_of("user1")):
            envelope.enroll(session, Group(id=1, name="group 1"), provider="server")
            session.add_all([Membership(group_id=1, user_id=number) for number in (1, 2)])
            session.add(Post(id=1, group_id=1, text="post 1"))
            session.commit()
    with unlocked(engine, envelope, 2) as (_, _, keys):
        keys.settle()  # the member adopts its grant


def started(engine: Engine) -> Engine:
    """The database of `make`."""
    prepared(engine, ("rotating", OLD), lambda: make(engine))
    return engine


@contextmanager
def unlocked(engine: Engine, envelope: Envelope, number: int = 1) -> Iterator[tuple[Session, User, Any]]:
    """A user, unlocked with the secret; what is written is committed."""
    with Session(engine) as session:
        user = session.get_one(User, number)
        with envelope.unlock(session, user, secret=secret_of(f"user{number}")) as keys:
            yield session, user, keys
            session.commit()


def read(engine: Engine, envelope: Envelope) -> list[str | None]:
    """Everything that was written, as the server reads it."""
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        users = session.scalars(select(User).order_by(User.id)).all()
        posts = session.scalars(select(Post).order_by(Post.id)).all()
        found = [one.diary for one in users] + [one.display_name for one in users]
        return found + [one.text for one in posts] + [session.get_one(Group, 1).name]


WRITTEN = [f"diary {n}" for n in (1, 2, 3)] + [f"name {n}" for n in (1, 2, 3)] + ["post 1", "group 1"]


def rows_with(engine: Engine, part: bytes) -> int:
    """How many columns of the whole database have these bytes in them: a scan past the library."""
    count = 0
    with engine.connect() as connection:
        for name in inspect(engine).get_table_names():
            table = Base.metadata.tables[name]
            columns = [type_coerce(c, LargeBinary) for c in table.c if isinstance(c.type, LargeBinary)]
            columns += [
                type_coerce(c, LargeBinary) for c in table.c if type(c.type).__name__ == "EncryptedType"
            ]
            if columns:
                for row in connection.execute(select(*columns)):
                    count += sum(part in bytes(value) for value in row if value is not None)
    return count
