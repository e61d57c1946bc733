"""Writing for a group whose members are all away: present members read it, and who was removed does not."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, EnrollmentError, Envelope, KdfProfile, LockedError, ServerKeyring
from sqlalchemy_envelope.orm.verbs.envelope.envelope import Follow
from tests.orm.sharing_models import Base, Group, Membership, Post, User

SECRET = "correct horse battery staple"


class Application:
    """A webhook's application: users in a group, and what it wrote for the group."""

    def __init__(self, engine: Engine) -> None:
        Base.metadata.create_all(engine)
        self.engine = engine
        self.events: list[AuditEvent] = []
        keys = ServerKeyring([os.urandom(32)])
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=keys, audit=self.events.append
        )

    def user(self, email: str) -> int:
        """A user who is enrolled and away; its id."""
        with Session(self.engine) as session:
            user = User(email=email)
            self.envelope.enroll(session, user, secret=SECRET)
            session.commit()
            return user.id

    def group(self, founder: int, *members: int, **options: Any) -> int:
        """A group of users; its id."""
        with Session(self.engine) as session, self.unlock(session, founder):
            group = Group(name="group")
            self.envelope.enroll(session, group, **options)
            session.add_all([Membership(group_id=group.id, user_id=one) for one in (founder, *members)])
            session.commit()
            return group.id

    def unlock(self, session: Session, user: int, follow: Follow = "needed") -> Any:
        """A user's unlocked session, not entered yet."""
        return self.envelope.unlock(session, session.get_one(User, user), secret=SECRET, follow=follow)

    def write(self, group: int, text: str) -> None:
        """A post for a group that nobody has unlocked."""
        with Session(self.engine) as session, self.envelope.write_only(session):
            session.add(Post(group_id=group, text=text))
            session.commit()

    def read(self, user: int) -> list[str | None]:
        """What a user reads of the posts; None for what stays locked."""
        with Session(self.engine) as session, self.unlock(session, user):
            found = self.posts(session)
            session.commit()
            return found

    def posts(self, session: Session) -> list[str | None]:
        """The posts as they show in a session."""
        posts = session.scalars(select(Post).order_by(Post.id)).all()
        return [None if locked(lambda post=post: post.text) else post.text for post in posts]

    def remove(self, user: int) -> None:
        """Take a member out by raw SQL."""
        with self.engine.begin() as connection:
            connection.execute(sa.text("DELETE FROM memberships WHERE user_id = :id"), {"id": user})


def locked(read: Callable[[], object]) -> bool:
    """Whether reading raises LockedError."""
    try:
        read()
    except LockedError:
        return True
    return False


@pytest.fixture
def app(engine: Engine) -> Application:
    """The application, on SQLite and on PostgreSQL."""
    return Application(engine)


def test_a_group_reads_what_was_written_for_it(app: Application) -> None:
    """Every member reads what a webhook wrote for the group while all were away, under one seal."""
    ada, ben = app.user("ada"), app.user("ben")
    group = app.group(ada, ben)
    app.write(group, "one")
    app.write(group, "two")

    assert [event.name for event in app.events].count("write_epoch_sealed") == 1
    assert ["one", "two"] == app.read(ben) == app.read(ada)


@pytest.mark.parametrize("adopted", [False, True], ids=["away", "adopted"])
def test_what_is_written_after_somebody_was_removed_is_not_theirs(app: Application, adopted: bool) -> None:
    """After raw SQL removed a member, the group's next value is under an epoch that they do not hold."""
    ada, ben = app.user("ada"), app.user("ben")
    group = app.group(ada, ben)
    app.write(group, "before")
    if adopted:
        assert app.read(ada) == ["before"]
    with Session(app.engine) as session:
        kept = app.unlock(session, ben, "all")
        session.commit()  # Ben's process holds all that he may have
        app.remove(ben)
        app.write(group, "after")
        with kept:
            assert app.posts(session) == ["before", None]

    assert app.read(ada) == ["before", "after"]
    assert app.read(ben) == [None, None]


def test_nothing_is_written_for_nobody(app: Application) -> None:
    """For a group whose last member left, `write_only` asks for a member, and not for another try; who is
    added reads what is written then."""
    ada, ben = app.user("ada"), app.user("ben")
    group = app.group(ada)
    app.remove(ada)
    with pytest.raises(EnrollmentError, match="Nobody is left who could read what is written for this Group"):
        app.write(group, "lost")
    with Session(app.engine) as session:
        app.envelope.attach(session)
        session.add(Membership(group_id=group, user_id=ben))
        session.commit()
    app.write(group, "kept")

    assert app.read(ben) == ["kept"]


def test_server_mode_starts_an_epoch_for_a_group_too(app: Application) -> None:
    """Server mode, with the group's keys at hand, writes nothing for a member whom raw SQL removed."""
    ada, ben = app.user("ada"), app.user("ben")
    group = app.group(ada, ben, provider="server")
    with Session(app.engine) as session, app.envelope.server_mode(reason="test"):
        session.add(Post(group_id=group, text="before"))
        session.commit()
        with Session(app.engine) as other:
            kept = app.unlock(other, ben, "all")
            other.commit()
        app.remove(ben)
        session.add(Post(group_id=group, text="after"))
        session.commit()

        assert session.scalars(select(Post.text).order_by(Post.id)).all() == ["before", "after"]
    with kept, Session(app.engine) as session:
        assert app.posts(session) == ["before", None]
    assert app.read(ada) == ["before", "after"]
