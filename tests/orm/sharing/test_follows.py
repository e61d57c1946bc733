"""Shares that follow a membership, by declaration: they come and go with it, in whatever way it comes and
goes."""

import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, Text, UniqueConstraint, delete, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    UnlockedSession,
)
from tests.orm.sharing_models import calls_sent, count, is_readable, secret_of
from tests.prepared import prepared

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))
    diary: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    memberships: Mapped[list["Membership"]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class ProfileShare(KeyGrant, Base, of="user_id", to="group_id", scope="profile", follows=Membership):
    __tablename__ = "profile_shares"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    membership: Mapped[Membership] = relationship()


GRANTS = Base.metadata.tables["profile_shares_keygrant"]
KEYS = Base.metadata.tables["users_key"]


def _unlock(session: Session, user_id: int) -> UnlockedSession:
    return envelope.unlock(session, session.get_one(User, user_id), secret=secret_of(str(user_id)))


def _scene(engine: Engine) -> None:
    """Users 1 to 3, and group 1 of users 1 and 2; user 1 was there when both were added."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        users = [User(id=number, name=f"user {number}", diary="own") for number in (1, 2, 3)]
        envelope.enroll(session, users, secret={one: secret_of(str(one.id)) for one in users})
        session.commit()
        with _unlock(session, 1):
            envelope.enroll(session, [Group(id=1), Group(id=2)])
            session.add_all([Membership(group_id=1, user_id=number) for number in (1, 2)])
            session.add(Membership(group_id=2, user_id=1))
            session.commit()


@pytest.fixture
def scene(engine: Engine) -> Engine:
    prepared(engine, "follows", lambda: _scene(engine))
    return engine


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    prepared(sqlite_engine, "follows", lambda: _scene(sqlite_engine))
    return sqlite_engine


def _log_in(engine: Engine, user_id: int) -> None:
    with Session(engine) as session, _unlock(session, user_id):
        envelope.settle(session)
        session.commit()


def _names(engine: Engine, user_id: int) -> list[str]:
    """The names that a user reads."""
    _log_in(engine, user_id)
    with Session(engine) as session, _unlock(session, user_id):
        users = session.scalars(select(User).order_by(User.id)).all()
        return [str(one.name) for one in users if is_readable(one, "name")]


def _shares(engine: Engine) -> set[tuple[int, int]]:
    with Session(engine) as session:
        return {(one.user_id, one.group_id) for one in session.scalars(select(ProfileShare))}


def test_a_share_comes_with_the_membership(scene: Engine) -> None:
    """Who is added shows the profile to the group: at once if they are unlocked, else from their next log-in
    on. The diary stays theirs, and an outsider reads nothing."""
    assert _shares(scene) == {(1, 1), (2, 1), (1, 2)}
    assert _names(scene, 3) == ["user 3"]
    assert count(scene, GRANTS, GRANTS.c.state == "pending") == 1
    _log_in(scene, 2)
    assert _names(scene, 1) == ["user 1", "user 2"]
    assert _names(scene, 2) == ["user 1", "user 2"]
    with Session(scene) as session, _unlock(session, 2):
        assert not is_readable(session.get_one(User, 1), "diary")


def _with_sql(session: Session) -> None:
    session.execute(text("DELETE FROM memberships WHERE group_id = 1 AND user_id = 2"))


def _in_bulk(session: Session) -> None:
    session.execute(delete(Membership).where(Membership.user_id == 2))


def _as_object(session: Session) -> None:
    session.delete(session.get_one(Membership, (1, 2)))


def _as_orphan(session: Session) -> None:
    group = session.get_one(Group, 1)
    group.memberships.remove(next(one for one in group.memberships if one.user_id == 2))
    session.flush()


@pytest.mark.parametrize("leave", [_with_sql, _in_bulk, _as_object, _as_orphan])
def test_it_goes_with_the_membership(scene: Engine, leave: Callable[[Session], None]) -> None:
    """However a membership is deleted, the share and its wraps are gone with it, the group does not read what
    that user writes next, and who left does not read what the others write."""
    for user_id in (1, 2):
        _log_in(scene, user_id)
    with Session(scene) as session:
        envelope.attach(session)
        leave(session)
        session.commit()

    assert _shares(scene) == {(1, 1), (1, 2)}
    assert count(scene, GRANTS, GRANTS.c.row_user_id == 2) == 0
    for user_id in (1, 2):
        with Session(scene) as session, _unlock(session, user_id):
            session.get_one(User, user_id).name = "new"
            session.commit()
    assert _names(scene, 1) == ["new"]
    assert _names(scene, 2) == ["new"]


def test_a_membership_that_is_moved_takes_its_share_along(scene: Engine) -> None:
    """A membership is given to another user: that one's profile is shared and the former one's no more."""
    _log_in(scene, 2)
    with Session(scene) as session, _unlock(session, 1):
        session.get_one(Membership, (1, 2)).user_id = 3
        session.commit()
    with Session(scene) as session, _unlock(session, 2):
        session.get_one(User, 2).name = "not for the group"
        session.commit()

    assert _shares(scene) == {(1, 1), (3, 1), (1, 2)}
    assert _names(scene, 3) == ["user 1", "user 3"]
    assert _names(scene, 1) == ["user 1", "user 3"]


def test_who_has_no_keys_yet_shares_from_the_enrolment_on(lite: Engine) -> None:
    """A member without keys is taken in, and what they share is granted when they are enrolled."""
    with Session(lite) as session, _unlock(session, 1):
        session.add(User(id=4))
        session.flush()
        session.add(Membership(group_id=1, user_id=4))
        session.commit()
    with Session(lite) as session:
        newcomer = session.get_one(User, 4)
        newcomer.name = "user 4"
        envelope.enroll(session, [newcomer], secret={newcomer: secret_of("4")})
        session.commit()

    assert (4, 1) in _shares(lite)
    assert _names(lite, 1) == ["user 1", "user 4"]


def test_a_deleted_row_and_a_new_one_in_one_flush(lite: Engine) -> None:
    """A membership that is replaced in one flush keeps its share."""
    _log_in(lite, 2)
    with Session(lite) as session, _unlock(session, 1):
        session.delete(session.get_one(Membership, (1, 2)))
        session.add(Membership(group_id=1, user_id=2))
        session.commit()

    assert _shares(lite) == {(1, 1), (2, 1), (1, 2)}
    assert _names(lite, 1) == ["user 1", "user 2"]


def test_a_share_that_is_added_as_well(lite: Engine) -> None:
    """Code that adds the share itself, beside the membership that it refers to, is not in the way."""
    with Session(lite) as session, _unlock(session, 3), _unlock(session, 1):
        membership = Membership(group_id=1, user_id=3)
        session.add(ProfileShare(user_id=3, group_id=1, membership=membership))
        session.commit()

    assert count(lite, GRANTS, GRANTS.c.row_user_id == 3) == 1
    assert _names(lite, 1) == ["user 1", "user 3"]


def test_a_rollback_takes_it_back(lite: Engine) -> None:
    """Membership and share are of one transaction."""
    with Session(lite) as session, _unlock(session, 1):
        session.add(Membership(group_id=1, user_id=3))
        session.flush()
        session.rollback()

    assert _shares(lite) == {(1, 1), (2, 1), (1, 2)}


def test_many_memberships_cost_the_statements_of_one(lite: Engine) -> None:
    """The rows of shares are looked for and inserted once for a flush."""
    costs = []
    for first, many in ((10, 1), (20, 10)):
        with Session(lite) as session:
            envelope.attach(session)
            users = [User(id=number) for number in range(first, first + many)]
            session.add_all(users)
            session.flush()
            with calls_sent(lite) as sent:
                session.add_all([Membership(group_id=1, user_id=one.id) for one in users])
                session.commit()
            costs.append(len([one for one, _ in sent if "profile_shares" in one]))

    assert costs[0] == costs[1] == 3


def test_the_foreign_key_is_real(lite: Engine) -> None:
    """The table refers to the membership by both columns, in the database, and a share beside no membership
    is refused there."""
    (found,) = [
        one
        for one in sa.inspect(lite).get_foreign_keys("profile_shares")
        if one["referred_table"] == "memberships"
    ]
    assert found["constrained_columns"] == found["referred_columns"] == ["group_id", "user_id"]
    assert found["options"] == {"ondelete": "CASCADE", "onupdate": "CASCADE"}
    with Session(lite) as session, pytest.raises(sa.exc.IntegrityError):
        session.execute(text("INSERT INTO profile_shares (user_id, group_id) VALUES (3, 1)"))


def _models(**options: Any) -> None:
    """Small models, with one thing about them that cannot be."""

    class Small(DeclarativeBase):
        pass

    class Person(KeyOwner, Small):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))

    class Team(KeyOwner, Small):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))

    class Place(KeyGrant, Small, of="team_id", to="person_id"):
        __tablename__ = "places"
        __table_args__ = options.get("keys", (UniqueConstraint("person_id", "team_id"),))
        id: Mapped[int] = mapped_column(primary_key=True)
        team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
        person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"))

    class Share(
        KeyGrant,
        Small,
        of=options.get("of", "person_id"),
        to=options.get("to", "team_id"),
        scope=options.get("scope", "profile"),
        follows=options.get("follows", Place),
    ):
        __tablename__ = "shares"
        id: Mapped[int] = mapped_column(primary_key=True)
        team_id: Mapped[int] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
        person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"))
        note: Mapped[str] = mapped_column(default=options.get("note", "none"))

    Small.registry.configure()
    (key,) = [one for one in Share.__table__.foreign_key_constraints if one.referred_table is Place.__table__]
    assert list(key.column_keys) == ["person_id", "team_id"]
    Small.registry.dispose()


def test_a_unique_constraint_does_for_a_primary_key() -> None:
    """Where a membership has a primary key of its own, the share refers to its unique constraint."""
    _models()
    configure_mappers()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keys": ()}, r"add UniqueConstraint\('team_id', 'person_id'\)"),
        ({"of": "team_id", "to": "person_id"}, "the share goes the other way, of= the Person to= the Team"),
        ({"scope": None}, "Name a scope="),
        ({"note": None}, "give note a default"),
        ({"follows": User}, "takes a class of memberships"),
    ],
    ids=["no key", "the other way", "the whole key", "a column without a value", "no grant"],
)
def test_what_cannot_follow_is_told_where_it_is_declared(options: dict[str, Any], match: str) -> None:
    """A share that cannot follow is refused when mappers are configured, with the line to write."""
    try:
        _models(**options)
        told = "nothing"
    except ConfigurationError as error:
        told = str(error)
    gc.collect()  # else they are told again by whoever configures mappers next

    assert re.search(match, told)
    configure_mappers()
