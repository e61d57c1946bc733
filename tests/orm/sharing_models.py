"""The models and small helpers of the tests of sharing: users in groups, groups in organisations, what users
share with groups, and the same with other histories and other primary keys.
"""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, ForeignKeyConstraint, String, Text, Uuid, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    LockedError,
    UnlockedSession,
)
from sqlalchemy_envelope.orm.verbs.envelope.envelope import Follow

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    type_annotation_map: ClassVar[Any] = {str: String(80)}  # MariaDB asks for a length


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    display_name: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))
    diary: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    memberships: Mapped[list["Membership"]] = relationship(
        back_populates="group", cascade="all, delete-orphan", passive_deletes=True
    )


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role: Mapped[str | None]
    group: Mapped[Group] = relationship(back_populates="memberships")
    user: Mapped[User] = relationship()


class ProfileShare(KeyGrant, Base, of="user_id", to="group_id", scope="profile"):
    """What members show their group, and nothing else of theirs. Its primary key is known after the flush."""

    __tablename__ = "profile_shares"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship()
    group: Mapped[Group] = relationship()


class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))
    group: Mapped[Group] = relationship()


class Organisation(KeyOwner, Base):
    __tablename__ = "organisations"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Affiliation(KeyGrant, Base, of="organisation_id", to="group_id"):
    """A group is a member of an organisation, and so are its members."""

    __tablename__ = "affiliations"

    organisation_id: Mapped[int] = mapped_column(
        ForeignKey("organisations.id", ondelete="CASCADE"), primary_key=True
    )
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Nesting(KeyGrant, Base, of="outer_id", to="inner_id"):
    """A group within a group."""

    __tablename__ = "nestings"

    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Club(KeyOwner, Base):
    """Who joins does not read what was before."""

    __tablename__ = "clubs"

    id: Mapped[int] = mapped_column(primary_key=True)
    motto: Mapped[str | None] = mapped_column(EncryptedType(String))


class ClubMembership(KeyGrant, Base, of="club_id", to="user_id", history="from_join"):
    __tablename__ = "club_memberships"

    club_id: Mapped[int] = mapped_column(ForeignKey("clubs.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Minute(Base):
    __tablename__ = "minutes"

    id: Mapped[int] = mapped_column(primary_key=True)
    club_id: Mapped[int] = mapped_column(ForeignKey("clubs.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


class PlainBase(DeclarativeBase):
    """Nothing but users in groups: what a plain application has, for counting statements."""


class Reader(KeyOwner, PlainBase):
    __tablename__ = "readers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Circle(KeyOwner, PlainBase):
    __tablename__ = "circles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Seat(KeyGrant, PlainBase, of="circle_id", to="reader_id"):
    __tablename__ = "seats"

    circle_id: Mapped[int] = mapped_column(ForeignKey("circles.id", ondelete="CASCADE"), primary_key=True)
    reader_id: Mapped[int] = mapped_column(ForeignKey("readers.id", ondelete="CASCADE"), primary_key=True)


class Letter(PlainBase):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    circle_id: Mapped[int] = mapped_column(ForeignKey("circles.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


class KeysBase(DeclarativeBase):
    """The same again with primary keys of other kinds: two columns, and UUIDs."""


class Tenant(KeyOwner, KeysBase):
    __tablename__ = "tenants"

    region: Mapped[str] = mapped_column(String(8), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str | None] = mapped_column(EncryptedType(String))


class Team(KeyOwner, KeysBase):
    __tablename__ = "teams"

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    # The other side does not know of it: nothing marks an object that is taken out of the list.
    places: Mapped[list["TeamPlace"]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class TeamPlace(KeyGrant, KeysBase, of="team_id", to=("tenant_region", "tenant_number")):
    __tablename__ = "team_places"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_region", "tenant_number"], ["tenants.region", "tenants.number"], ondelete="CASCADE"
        ),
    )

    id: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True, default=uuid.uuid4)
    team_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    tenant_region: Mapped[str] = mapped_column(String(8))
    tenant_number: Mapped[int]


class TeamNote(KeysBase):
    __tablename__ = "team_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("teams.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text))


def secret_of(name: str) -> str:
    """The secret of a test user."""
    return f"the secret of {name}"


def add_user(session: Session, name: str, **values: Any) -> User:
    """An enrolled user, committed and locked."""
    user = User(email=name, **{"display_name": name.title(), "diary": f"the diary of {name}", **values})
    envelope.enroll(session, user, secret=secret_of(name))
    session.commit()
    return user


def unlock(session: Session, name: str, follow: Follow = "needed") -> UnlockedSession:
    """Unlock one of them by name; a keyring that is kept for later follows "all"."""
    user = session.scalars(select(User).where(User.email == name)).one()
    return envelope.unlock(session, user, secret=secret_of(name), follow=follow)


def found_group(session: Session, founder: str, *members: str) -> int:
    """A group of the founder and the members, with one post, committed; its primary key."""
    with unlock(session, founder):
        group = Group(name=f"the group of {founder}")
        envelope.enroll(session, group)
        for name in (founder, *members):
            user = session.scalars(select(User).where(User.email == name)).one()
            session.add(Membership(group=group, user=user))
        session.add(Post(group=group, text="the first post"))
        session.commit()
        return group.id


def write(engine: Engine, name: str, group_id: int, text: str) -> None:
    """A post by this user, in a session and an unlock of their own."""
    with Session(engine) as session, unlock(session, name):
        session.add(Post(group_id=group_id, text=text))
        session.commit()


def read(engine: Engine, name: str, group_id: int | None = None) -> list[str]:
    """The posts that this user reads, in a session and an unlock of their own, which is settled as a log-in
    does."""
    with Session(engine) as session, unlock(session, name) as unlocked:
        unlocked.settle()
        texts = read_here(session, group_id)
        session.commit()
    return texts


def read_here(session: Session, group_id: int | None = None) -> list[str]:
    """The posts that open in this session as it is, loaded anew."""
    session.expire_all()
    query = select(Post).order_by(Post.id)
    if group_id is not None:
        query = query.where(Post.group_id == group_id)
    return [post.text for post in session.scalars(query) if is_readable(post, "text")]  # type: ignore[misc]


def is_readable(instance: object, attribute: str) -> bool:
    """Whether an encrypted attribute opens here."""
    try:
        getattr(instance, attribute)
    except LockedError:
        return False
    return True


def count(engine: Engine, model: Any, *where: Any) -> int:
    """Rows of a table, counted past the session."""
    table = getattr(model, "__table__", model)
    with engine.connect() as connection:
        return connection.scalar(select(sa.func.count()).select_from(table).where(*where)) or 0


def epochs(engine: Engine, owner: type[Any], key: Any) -> int:
    """How many root keys an owner has had."""
    keys = sa.Table(f"{owner.__tablename__}_key", owner.metadata)
    return count(engine, keys, keys.c.owner_id == key, keys.c.purpose == "root")


@contextmanager
def calls_sent(engine: Engine) -> Iterator[list[tuple[str, int]]]:
    """What reaches the database driver: each statement, with its number of rows of parameters; but for the
    question in which schema a table is, since other tests' models have tables of these names too."""
    sent: list[tuple[str, int]] = []

    def one(cursor: object, statement: str, *_: object) -> None:
        if "current_schemas(" not in statement:
            sent.append((statement, 1))

    def many(cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, len(parameters)))

    listeners = {"do_execute": one, "do_execute_no_params": one, "do_executemany": many}
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        yield sent
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)
