"""A group, its founder and a member, and what each is told."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.orm.sharing_models import Base, Membership, add_user, envelope, found_group, unlock
from tests.prepared import prepared

FOUNDER, MEMBER, OUTSIDER = 1, 2, 3
GROUP = 1


def make_scene(engine: Engine) -> Engine:
    """Three users, two of them in a group with one post."""

    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in ("founder", "member", "outsider"):
                add_user(session, name)
            assert found_group(session, "founder", "member") == GROUP

    prepared(engine, "a group and an outsider", make)
    return engine


def add_pending(engine: Engine, user_id: int = OUTSIDER) -> None:
    """A membership that is added while nobody holds the key."""
    with Session(engine) as session:
        envelope.attach(session)
        session.add(Membership(group_id=GROUP, user_id=user_id))
        session.commit()


@contextmanager
def as_user(engine: Engine, name: str) -> Iterator[Session]:
    """A session in which this user is unlocked."""
    with Session(engine) as session, unlock(session, name):
        yield session
