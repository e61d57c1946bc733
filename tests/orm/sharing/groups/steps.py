"""What the tests of groups do over and over: join, leave, unlock."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from tests.orm.sharing_models import Base, Membership, User, add_user, envelope, unlock
from tests.prepared import prepared


def with_users(engine: Engine, *names: str) -> Engine:
    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in names:
                add_user(session, name)

    prepared(engine, ("users of sharing", *names), make)
    return engine


def id_of(session: Session, name: str) -> int:
    return session.scalars(select(User.id).where(User.email == name)).one()


def leave_group(engine: Engine, group_id: int, name: str, by: str | None = None) -> None:
    with Session(engine) as session, unlocked_user(session, by):
        session.delete(session.get_one(Membership, (group_id, id_of(session, name))))
        session.commit()


@contextmanager
def unlocked_user(session: Session, name: str | None) -> Iterator[None]:
    if name is None:
        envelope.attach(session)
        yield
    else:
        with unlock(session, name):
            yield
