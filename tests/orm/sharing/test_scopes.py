"""Scopes: several data keys of one owner, by name, so that a grant can open a profile and not the diary."""

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String, delete, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column

from sqlalchemy_envelope import ConfigurationError, EncryptedType, KeyGrant, KeyOwner, LockedError
from sqlalchemy_envelope.orm.tables import key_grant
from tests.orm.sharing_models import (
    Base,
    Membership,
    ProfileShare,
    User,
    add_user,
    count,
    envelope,
    found_group,
    is_readable,
    secret_of,
    unlock,
)
from tests.prepared import prepared

pytestmark = pytest.mark.any_database

KEYS = Base.metadata.tables["users_key"]
SHARES = Base.metadata.tables["profile_shares_keygrant"]


@pytest.fixture
def shared(engine: Engine) -> Engine:
    """A database with three enrolled users, on SQLite and on PostgreSQL."""

    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for name in ("founder", "member", "newcomer"):
                add_user(session, name)

    prepared(engine, "scopes", make)
    return engine


def _header(engine: Engine, column: Any) -> bytes:
    """The key id that a stored value of the first user names."""
    raw = sa.type_coerce(column, sa.LargeBinary)
    with engine.connect() as connection:
        return bytes(connection.scalar(select(raw).where(User.__table__.c.email == "founder")) or b"")[1:17]


def _share(engine: Engine, name: str, group_id: int) -> None:
    with Session(engine) as session, unlock(session, name):
        user = session.scalars(select(User).where(User.email == name)).one()
        session.add(ProfileShare(user_id=user.id, group_id=group_id))
        session.commit()


def _seen(engine: Engine, reader: str, of: str) -> tuple[str | None, str | None]:
    """What one user reads of another: the name and the diary."""
    with Session(engine) as session, unlock(session, reader) as unlocked:
        unlocked.settle()
        user = session.scalars(select(User).where(User.email == of)).one()
        session.commit()
        return (
            user.display_name if is_readable(user, "display_name") else None,
            user.diary if is_readable(user, "diary") else None,
        )


def test_each_scope_has_a_key_of_its_own(shared: Engine) -> None:
    """One owner's values of two scopes are under two data keys, both wrapped under its root key."""
    columns = User.__table__.c
    name, diary = _header(shared, columns.display_name), _header(shared, columns.diary)
    with shared.connect() as connection:
        rows = connection.execute(select(KEYS.c.key_id, KEYS.c.scope).where(KEYS.c.owner_id == 1)).all()
    scopes = {key_id.bytes: scope for key_id, scope in rows}

    assert (scopes[name], scopes[diary]) == ("profile", "")
    assert len(rows) == 3


def test_a_scope_opens_without_the_rest(shared: Engine) -> None:
    """Who is granted one scope reads it, and nothing else of that owner, who reads both."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    _share(shared, "founder", group_id)

    assert _seen(shared, "member", "founder") == ("Founder", None)
    assert _seen(shared, "newcomer", "founder") == (None, None)
    assert _seen(shared, "founder", "founder") == ("Founder", "the diary of founder")


def test_a_scope_is_for_reading_and_writing(shared: Engine) -> None:
    """A grant of a scope lets its recipients write under it, as a grant of all does; of the rest they write
    nothing."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    _share(shared, "founder", group_id)
    with Session(shared) as session, unlock(session, "member"):
        founder = session.scalars(select(User).where(User.email == "founder")).one()
        founder.display_name = "The Founder"
        session.commit()
        founder.diary = "not mine"
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()

    assert _seen(shared, "founder", "founder") == ("The Founder", "the diary of founder")


@pytest.mark.parametrize("by", ["owner", "sql"])
def test_a_scope_taken_back(shared: Engine, by: str) -> None:
    """Who lost the scope does not read what is written in it later; the diary's key stays as it is."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
    _share(shared, "founder", group_id)
    _share(shared, "founder", found := _other_group(shared))
    before = _header(shared, User.__table__.c.diary)
    assert _seen(shared, "member", "founder")[0] == "Founder"
    if by == "sql":
        with shared.begin() as connection:
            connection.execute(delete(ProfileShare.__table__).where(ProfileShare.group_id == group_id))
    else:
        with Session(shared) as session, unlock(session, "founder"):
            session.delete(
                session.scalars(select(ProfileShare).where(ProfileShare.group_id == group_id)).one()
            )
            session.commit()
    with Session(shared) as session, unlock(session, "founder"):
        founder = session.scalars(select(User).where(User.email == "founder")).one()
        founder.display_name, founder.diary = "New Name", "new diary"
        session.commit()

    assert _seen(shared, "member", "founder") == (None, None)
    assert _seen(shared, "newcomer", "founder") == ("New Name", None)
    assert _header(shared, User.__table__.c.diary) == before
    assert count(shared, KEYS, KEYS.c.owner_id == 1, KEYS.c.scope == "profile") == 2
    assert found != group_id


def _other_group(engine: Engine) -> int:
    with Session(engine) as session:
        return found_group(session, "newcomer")


def test_a_newcomer_of_the_group_reads_earlier_names(shared: Engine) -> None:
    """A scope that was rotated keeps its old values readable to who holds the grant, or joins later."""
    with Session(shared) as session:
        group_id = found_group(session, "founder", "member")
        other = found_group(session, "founder")
    for name in ("founder", "member"):
        _share(shared, name, group_id)
    _share(shared, "founder", other)
    with Session(shared) as session:
        envelope.attach(session)
        session.delete(session.scalars(select(ProfileShare).where(ProfileShare.group_id == other)).one())
        session.commit()  # a new epoch of the founder's profile, made by nobody who holds it
    with Session(shared) as session, unlock(session, "founder"):
        session.add(Membership(group_id=group_id, user_id=3))
        session.commit()

    assert _seen(shared, "newcomer", "founder") == ("Founder", None)
    assert _seen(shared, "newcomer", "member") == ("Member", None)


def test_a_share_by_somebody_who_is_away(shared: Engine) -> None:
    """A share that the owner's absence leaves pending is there from the owner's next unlock on."""
    with Session(shared) as session:
        group_id = found_group(session, "founder")
        envelope.attach(session)
        member = session.scalars(select(User).where(User.email == "member")).one()
        session.add(ProfileShare(user_id=member.id, group_id=group_id))
        session.commit()

    assert _seen(shared, "founder", "member") == (None, None)
    assert _seen(shared, "member", "member")[0] == "Member"
    assert _seen(shared, "founder", "member") == ("Member", None)
    assert count(shared, SHARES, SHARES.c.state == "pending") == 0


def _without_profile(engine: Engine) -> None:
    """The founder as they were before the application had the scope."""
    with engine.begin() as connection:
        connection.execute(update(User.__table__).where(User.__table__.c.id == 1).values(display_name=None))
        connection.execute(delete(KEYS).where(KEYS.c.owner_id == 1, KEYS.c.scope == "profile"))


def test_a_scope_that_is_declared_later(shared: Engine) -> None:
    """An owner enrolled before the scope was declared gets its key at the next unlock, once."""
    _without_profile(shared)
    for name in ("first", "second"):
        with Session(shared) as session, unlock(session, "founder"):
            session.get_one(User, 1).display_name = name
            session.commit()

    assert _seen(shared, "founder", "founder") == ("second", "the diary of founder")
    assert count(shared, KEYS, KEYS.c.owner_id == 1, KEYS.c.scope == "profile") == 1


@pytest.mark.parametrize("savepoint", [False, True], ids=["transaction", "savepoint"])
def test_a_scope_key_that_was_rolled_back_encrypts_nothing(shared: Engine, savepoint: bool) -> None:
    """The key of a later scope that is rolled back is not used, for nothing could read what it wrote; the
    next write makes another."""
    _without_profile(shared)
    with Session(shared) as session:
        transaction: Any = session.begin_nested() if savepoint else session
        with unlock(session, "founder") as unlocked:
            unlocked.settle()
            transaction.rollback()
            user = session.get_one(User, 1)
            user.display_name = "kept"
            user.diary = "and this"
            session.commit()

    assert _seen(shared, "founder", "founder") == ("kept", "and this")
    assert count(shared, KEYS, KEYS.c.owner_id == 1, KEYS.c.scope == "profile") == 1


@pytest.mark.parametrize("scope", ["x" * 65, None, 7])
def test_a_scope_that_is_no_name(scope: Any) -> None:
    """A scope is a name of at most 64 characters, and the message says so."""
    with pytest.raises(ConfigurationError, match=r"scope=.*at most 64 characters"):
        EncryptedType(String, scope=scope)


def test_the_longest_scope_name_is_stored(sqlite_engine: Engine) -> None:
    """Sixty-four characters are a scope."""

    class Own(DeclarativeBase):
        pass

    class Keeper(KeyOwner, Own):
        __tablename__ = "keepers"
        id: Mapped[int] = mapped_column(primary_key=True)
        note: Mapped[str | None] = mapped_column(EncryptedType(String, scope="s" * 64))

    Own.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        keeper = Keeper(note="text")
        envelope.enroll(session, keeper, secret=secret_of("keeper"))
        session.commit()
        with envelope.unlock(session, keeper, secret=secret_of("keeper")):
            assert keeper.note == "text"


# Declarations that cannot be right


def _declare(*, owner_of: bool = True, owner_to: bool = True, **keywords: Any) -> None:
    """Declare a share with these keywords between two classes, key owners or not, and configure."""

    class Own(DeclarativeBase):
        pass

    class Giver(*((KeyOwner, Own) if owner_of else (Own,))):  # type: ignore[misc]
        __tablename__ = "givers"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(
            EncryptedType(String, scope="profile") if owner_of else String()
        )

    class Taker(*((KeyOwner, Own) if owner_to else (Own,))):  # type: ignore[misc]
        __tablename__ = "takers"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Share(KeyGrant, Own, **keywords):
        __tablename__ = "shares"
        id: Mapped[int] = mapped_column(primary_key=True)
        giver_id: Mapped[int] = mapped_column(ForeignKey("givers.id", ondelete="CASCADE"))
        taker_id: Mapped[int] = mapped_column(ForeignKey("takers.id", ondelete="CASCADE"))
        other: Mapped[int | None]

    configure_mappers()


@pytest.fixture(autouse=True)
def _forget_grants() -> Iterator[None]:
    """Classes that a test declared are configured with no later test's."""
    known = set(key_grant._complete_grants)
    yield
    key_grant._waiting.clear()
    for mapper in set(key_grant._complete_grants) - known:
        mapper.registry.dispose()
        del key_grant._complete_grants[mapper]


RIGHT = {"of": "giver_id", "to": "taker_id"}


def test_a_right_declaration() -> None:
    """What the refused ones are changed from is accepted."""
    _declare(**RIGHT, scope="profile")


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({**RIGHT, "scope": "profil"}, r"EncryptedType\(\.\.\., scope='profil'\)"),
        ({**RIGHT, "of": "other"}, r"of='other'.*to='taker_id'.*foreign key.*KeyOwner"),
        ({**RIGHT, "to": "other"}, r"of='giver_id'.*to='other'.*foreign key.*KeyOwner"),
        ({**RIGHT, "of": "nothing"}, r"of='nothing'"),
        ({**RIGHT, "owner_of": False}, r"of='giver_id'.*KeyOwner"),
        ({**RIGHT, "owner_to": False}, r"to='taker_id'.*KeyOwner"),
        ({**RIGHT, "history": "all"}, r"history='all'; use 'shared' or 'from_join'"),
        ({"of": "giver_id"}, r"names both, of= and to="),
        ({"to": "taker_id"}, r"names both, of= and to="),
        ({}, r"class Share\(KeyGrant, Base, of='group_id', to='user_id'\)"),
    ],
)
def test_a_wrong_declaration_says_what_to_write(keywords: dict[str, Any], message: str) -> None:
    """A grant that cannot be right is refused when classes are declared or configured, with its cure."""
    with pytest.raises(ConfigurationError, match=message):
        _declare(**keywords)


def test_two_histories_of_one_key_are_refused() -> None:
    """Two classes that grant one owner's whole key agree on who reads what was before."""

    class Own(DeclarativeBase):
        pass

    class Giver(KeyOwner, Own):
        __tablename__ = "givers"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Taker(KeyOwner, Own):
        __tablename__ = "takers"
        id: Mapped[int] = mapped_column(primary_key=True)

    class First(KeyGrant, Own, of="giver_id", to="taker_id"):
        __tablename__ = "firsts"
        giver_id: Mapped[int] = mapped_column(ForeignKey("givers.id", ondelete="CASCADE"), primary_key=True)
        taker_id: Mapped[int] = mapped_column(ForeignKey("takers.id", ondelete="CASCADE"), primary_key=True)

    class Second(KeyGrant, Own, of="giver_id", to="taker_id", history="from_join"):
        __tablename__ = "seconds"
        giver_id: Mapped[int] = mapped_column(ForeignKey("givers.id", ondelete="CASCADE"), primary_key=True)
        taker_id: Mapped[int] = mapped_column(ForeignKey("takers.id", ondelete="CASCADE"), primary_key=True)

    with pytest.raises(ConfigurationError, match=r"First, Second.*one history"):
        configure_mappers()
