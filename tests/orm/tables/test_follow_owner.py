"""Keys follow their owner: to its engine, into its MetaData, schema and registry, under names that fit."""

import pickle
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, MetaData, Table, Text, create_engine, insert, select
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    configure_mappers,
    mapped_column,
    registry,
    sessionmaker,
)

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    GrantNames,
    KdfProfile,
    KeyGrant,
    KeyNames,
    KeyOwner,
    ServerKeyring,
    enforce_foreign_keys,
)

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
SECRET = "correct horse battery staple"


def _database(path: Path, name: str) -> Engine:
    engine = create_engine(f"sqlite:///{path / name}.db")
    enforce_foreign_keys(engine)
    return engine


def _models(base: Any, metadata_of: Any = None) -> tuple[Any, Any, Any, Any]:
    """An owner, its notes, and a group that it is granted the key of."""
    under = metadata_of or base

    class User(KeyOwner, under):  # type: ignore[misc]
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Note(under):  # type: ignore[misc]
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
        body: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Group(KeyOwner, under):  # type: ignore[misc]
        __tablename__ = "groups"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Membership(KeyGrant, under, of="group_id", to="user_id"):  # type: ignore[misc]
        __tablename__ = "memberships"
        group_id: Mapped[int] = mapped_column(ForeignKey(Group.id, ondelete="CASCADE"), primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)

    return User, Note, Group, Membership


KEY_TABLES = {"users_key", "users_keyslot", "groups_key", "groups_keyslot", "memberships_keygrant"}


@pytest.fixture
def base() -> Iterator[Any]:
    """A declarative base of this test's own."""

    class Fresh(DeclarativeBase):
        pass

    yield Fresh
    Fresh.registry.dispose()


def _use(sessions: Any, user: Any, note: Any, group: Any, membership: Any) -> str | None:
    """Enroll, write, grant, change the secret, unlock and read, in sessions of their own."""
    with sessions() as session:
        owner = user(name="ada")
        with envelope.enroll(session, owner, secret="first"):
            team = group(name="circle")
            with envelope.enroll(session, team, secret="group"):
                session.add(membership(group_id=team.id, user_id=owner.id))
                session.add(note(user_id=owner.id, body="dear diary"))
                session.commit()
        envelope.change_secret(session, owner, old="first", new=SECRET)
        session.commit()
    with sessions() as session, envelope.unlock(session, session.get(user, 1), secret=SECRET):
        assert session.scalars(select(group)).one().name == "circle"
        body: str | None = session.scalars(select(note)).one().body
        session.delete(session.scalars(select(membership)).one())
        session.flush()
        return body


@pytest.mark.parametrize("by", ["base", "class", "table", "mixin", "flask"])
def test_binds(base: Any, tmp_path: Path, by: str) -> None:
    """Keys and grants are on the engine of the owner's class, by whatever a session's binds name it."""

    class Mark:
        pass

    class Marked(base, Mark):  # type: ignore[misc]
        __abstract__ = True

    classes = _models(Marked)
    here, elsewhere = _database(tmp_path, "here"), _database(tmp_path, "elsewhere")
    base.metadata.create_all(here)
    sessions: Any = {
        "base": lambda: Session(elsewhere, binds={base: here}),
        "class": lambda: Session(binds=dict.fromkeys(classes, here)),
        "table": lambda: Session(elsewhere, binds={one.__table__: here for one in classes}),
        "mixin": sessionmaker(binds={Mark: here}),
        "flask": lambda: _FlaskSession({base.metadata: here}),
    }[by]

    assert _use(sessions, *classes) == "dear diary"
    assert sa.inspect(elsewhere).get_table_names() == []


class _FlaskSession(Session):
    """Chooses the engine as Flask-SQLAlchemy does: by the MetaData of the mapper's table."""

    def __init__(self, engines: dict[MetaData, Engine]) -> None:
        super().__init__()
        self.engines = engines

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **_: Any) -> Any:
        if bind is not None:
            return bind
        table = sa.inspect(mapper).local_table if mapper is not None else clause.table
        return self.engines[table.metadata]


class _RoutingSession(Session):
    """Reads from a replica and writes to the leader, as SQLAlchemy's documentation shows."""

    leader: Engine
    replica: Engine

    def get_bind(self, mapper: Any = None, *, clause: Any = None, bind: Any = None, **_: Any) -> Any:
        if self._flushing or getattr(clause, "is_dml", False):
            return self.leader
        return self.leader if getattr(clause, "_for_update_arg", None) is not None else self.replica


def test_a_session_that_routes_by_statement(base: Any, tmp_path: Path) -> None:
    """A `get_bind` that looks at the kind of statement sees it: keys are written to the leader alone."""
    classes = _models(base)
    _RoutingSession.leader = _database(tmp_path, "leader")
    _RoutingSession.replica = create_engine(f"sqlite:///file:{tmp_path / 'leader.db'}?mode=ro&uri=true")
    enforce_foreign_keys(_RoutingSession.replica)
    base.metadata.create_all(_RoutingSession.leader)
    user = classes[0]
    with _RoutingSession() as session:
        owner = user()
        envelope.enroll(session, owner, secret=SECRET)
        session.commit()
        envelope.change_secret(session, owner, old=SECRET, new="another")
        session.commit()

    with _RoutingSession() as session, envelope.unlock(session, session.get(user, 1), secret="another") as it:
        assert it is not None


def test_server_mode_with_binds(base: Any, tmp_path: Path) -> None:
    """Server mode makes, loads and seals keys on the owner's engine."""
    user, note, *_ = _models(base)
    server = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()),
    )
    here = _database(tmp_path, "here")
    base.metadata.create_all(here)
    sessions = sessionmaker(binds={base: here})
    with sessions() as session, server.server_mode(session, reason="test"):
        session.execute(insert(user), [{"id": 1}, {"id": 2}])
        session.add(note(user_id=2, body="by the server"))
        session.commit()

    with sessions() as session, server.server_mode(session, reason="test"):
        assert session.scalars(select(note)).one().body == "by the server"


def test_a_metadata_of_its_own(base: Any) -> None:
    """Key tables go into the MetaData of the owner, as of an abstract base under Flask-SQLAlchemy's binds."""

    class Vault(base):  # type: ignore[misc]
        __abstract__ = True
        metadata = MetaData(schema="vault")

    _models(base, Vault)

    assert set(base.metadata.tables) == set()
    assert {f"vault.{one}" for one in KEY_TABLES} <= set(Vault.metadata.tables)
    assert all(one.schema == "vault" for one in Vault.metadata.tables.values())


@pytest.mark.filterwarnings("ignore:This declarative base already")  # the two users of this test
def test_a_metadata_of_one_class(tmp_path: Path) -> None:
    """Two MetaData on one base, each in a database of its own, work in one session."""

    class Base(DeclarativeBase):
        pass

    class Other(Base):
        __abstract__ = True
        metadata = MetaData()

    first, second = _models(Base), _models(Other)
    one, two = _database(tmp_path, "one"), _database(tmp_path, "two")
    Base.metadata.create_all(one)
    Other.metadata.create_all(two)
    sessions = sessionmaker(binds={**dict.fromkeys(first, one), **dict.fromkeys(second, two)})

    assert _use(sessions, *first) == "dear diary"
    assert _use(sessions, *second) == "dear diary"


CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


@pytest.mark.parametrize("convention", [None, CONVENTION])
@pytest.mark.parametrize("name", ["users", "Order", "a.b", "mixed Case", "t" * 54, "ü" * 27])
def test_names(engine: Engine, convention: Any, name: str) -> None:
    """Tables of any name that fits, with a naming convention or without: no name of ours is too long."""

    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=convention)

    class User(KeyOwner, Base):
        __tablename__ = name
        one: Mapped[int] = mapped_column("The id", primary_key=True, key="one")
        two: Mapped[int] = mapped_column("select", primary_key=True)
        body: Mapped[str | None] = mapped_column(EncryptedType(Text))

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        with envelope.enroll(session, User(one=1, two=2, body="x"), secret=SECRET):
            session.commit()
        session.expunge_all()
        with envelope.unlock(session, session.get(User, (1, 2)), secret=SECRET):
            body = session.scalars(select(User)).one().body

    assert body == "x"
    Base.registry.dispose()


@pytest.mark.parametrize("name", ["t" * 56, "ü" * 28])
def test_a_name_that_would_be_too_long(base: Any, name: str) -> None:
    """What PostgreSQL would cut off or refuse is our error, with the keyword that chooses another name."""
    with pytest.raises(ConfigurationError, match=r"Owner: .* 64 bytes.*key_names=KeyNames\("):

        class Owner(KeyOwner, base):  # type: ignore[misc]
            __tablename__ = name
            id: Mapped[int] = mapped_column(primary_key=True)


def test_chosen_names(base: Any, sqlite_engine: Engine) -> None:
    """Names are chosen by a class keyword, an abstract base's pattern, or left as they are documented."""

    class Owned(KeyOwner, base, key_names=KeyNames("{table}_secrets", slot_class="{owner}Way")):  # type: ignore[misc]
        __abstract__ = True

    class User(Owned):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Group(KeyOwner, base):  # type: ignore[misc]
        __tablename__ = "groups"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Seat(KeyGrant, base, of="group_id", to="user_id", grant_names=GrantNames("seat_keys")):  # type: ignore[misc]
        __tablename__ = "seats"
        group_id: Mapped[int] = mapped_column(ForeignKey(Group.id, ondelete="CASCADE"), primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), primary_key=True)

    tables = {"users_secrets", "users_keyslot", "groups_key", "groups_keyslot", "seat_keys"}
    tables |= {"users_keyticket", "groups_keyticket"}
    generated: list[Any] = [
        User.__key_class__,
        User.__slot_class__,
        Group.__key_class__,
        Group.__slot_class__,
        Group.__ticket_class__,
        Seat.__grant_class__,
    ]

    assert tables == set(base.metadata.tables) - {"users", "groups", "seats"}
    assert [one.__name__ for one in generated] == [
        "UserKey",
        "UserWay",
        "GroupKey",
        "GroupKeySlot",
        "GroupKeyTicket",
        "SeatKeyGrant",
    ]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (KeyNames(key_table="keys"), r"Second: .*'keys' already.*key_names=KeyNames"),
        (KeyNames(slot_table="{tabel}_slot"), r"First: .*\{tabel\}_slot.*\{table\} and \{owner\}"),
        (KeyNames("both", "both"), r"First: .*'both' already"),
    ],
)
def test_names_that_cannot_be(base: Any, names: KeyNames, says: str) -> None:
    """Two owners never share a table of keys, nor keys one with slots; a pattern says what it may name."""

    def declare(name: str) -> None:
        values = {"__tablename__": name, "id": mapped_column(sa.Integer, primary_key=True)}
        types.new_class(name, (KeyOwner, base), {"key_names": names}, lambda it: it.update(values))

    with pytest.raises(ConfigurationError, match=says):
        [declare(name) for name in ("First", "Second")]


def test_table_options_follow(base: Any) -> None:
    """MariaDB takes no foreign key between tables of other character sets: the owner's are taken over."""

    class User(KeyOwner, base):  # type: ignore[misc]
        __tablename__ = "users"
        __table_args__: ClassVar = {"mysql_charset": "latin1", "sqlite_strict": True}
        id: Mapped[str] = mapped_column(sa.String(20), primary_key=True)

    table: Any = User.__key_class__.__table__
    made = str(sa.schema.CreateTable(table).compile(dialect=sa.dialects.mysql.dialect()))

    assert "CHARSET=latin1" in made
    assert "STRICT" not in str(sa.schema.CreateTable(table).compile(dialect=sa.dialects.sqlite.dialect()))


class PickledBase(DeclarativeBase):
    """A base at module level, whose classes pickle can find."""


class Pickled(KeyOwner, PickledBase):
    """An owner at module level."""

    __tablename__ = "pickled"
    id: Mapped[int] = mapped_column(primary_key=True)


def test_generated_classes_can_be_found() -> None:
    """A generated class is where its qualified name says, so that it and its instances can be pickled."""
    key_class: Any = Pickled.__key_class__

    taken = pickle.loads(pickle.dumps((key_class, key_class(epoch=3), PickledBase.metadata)))  # noqa: S301

    assert key_class is taken[0]
    assert taken[1].epoch == 3
    assert {"pickled", "pickled_key", "pickled_keyslot", "pickled_keyticket"} == set(taken[2].tables)


def test_a_class_of_the_same_name(base: Any) -> None:
    """A class of the application called as a generated one is no warning, before or after, and is what a
    relationship finds by its name."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class UserKeySlot(base):  # type: ignore[misc]
            __tablename__ = "slots"
            id: Mapped[int] = mapped_column(primary_key=True)

        class User(KeyOwner, base):  # type: ignore[misc]
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)
            key_number: Mapped[int] = mapped_column(ForeignKey("keys.id"))
            key: Mapped[Any] = sa.orm.relationship("UserKey")

        class UserKey(base):  # type: ignore[misc]
            __tablename__ = "keys"
            id: Mapped[int] = mapped_column(primary_key=True)

        configure_mappers()

    assert UserKey is sa.inspect(User).relationships["key"].mapper.class_
    base.registry.dispose()


def test_a_table_of_the_same_name(base: Any) -> None:
    """Another table that has the name of a key table is a clear error."""
    Table("users_key", base.metadata, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(ConfigurationError, match=r"User: .*'users_key'.*key_names=KeyNames"):
        _models(base)


@pytest.mark.parametrize("how", ["reflect", "deferred", "automap"])
def test_reflected_before(engine: Engine, how: str) -> None:
    """A second start that reads the database's tables first gets the same classes, and they work."""

    class First(DeclarativeBase):
        pass

    _models(First)
    First.metadata.create_all(engine)
    base: Any = automap_base() if how == "automap" else registry().generate_base()
    if how == "reflect":
        base.metadata.reflect(engine)

    class Reflected(*((DeferredReflection,) if how == "deferred" else ()), base):  # type: ignore[misc]
        __abstract__ = True
        __table_args__: ClassVar = {"extend_existing": True}

    if how == "reflect":
        classes = _models(base, Reflected)
        assert len(classes[0].__key_class__.__table__.foreign_key_constraints) == 2
        assert len({one.name for one in classes[0].__key_class__.__table__.indexes}) == len(
            classes[0].__key_class__.__table__.indexes
        )
        assert _use(sessionmaker(engine), *classes) == "dear diary"
        return

    class User(KeyOwner, Reflected):
        __tablename__ = "users"
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))

    if how == "deferred":
        Reflected.prepare(engine)
    else:
        base.prepare(autoload_with=engine)
    with Session(engine) as session:
        with envelope.enroll(session, User(name="ada"), secret=SECRET):
            session.commit()
        with envelope.unlock(session, session.scalars(select(User)).one(), secret=SECRET):
            assert session.scalars(select(User)).one().name == "ada"


def test_made_a_second_time(base: Any, engine: Engine) -> None:
    """Classes that are made once more in the same MetaData, as in a notebook, take over the tables."""
    _models(base)
    base.metadata.create_all(engine)

    class Again(base):  # type: ignore[misc]
        __abstract__ = True
        __table_args__: ClassVar = {"extend_existing": True}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sa.exc.SAWarning)  # of SQLAlchemy's, on the application's classes
        classes = _models(base, Again)

    assert _use(sessionmaker(engine), *classes) == "dear diary"
    assert len(base.metadata.tables) == 11


def test_imperative_and_dataclasses(engine: Engine) -> None:
    """Imperative mappings and dataclasses own keys as declared classes do."""
    mapping = registry(metadata=MetaData())
    table = Table(
        "accounts", mapping.metadata,
        sa.Column("account_id", sa.Integer, key="id", primary_key=True),
        sa.Column("pin", EncryptedType(Text)),
    )  # fmt: skip

    class Account(KeyOwner):
        id: int
        pin: str

    class Base(MappedAsDataclass, DeclarativeBase):
        metadata = mapping.metadata

    class Person(KeyOwner, Base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        pin: Mapped[str] = mapped_column(EncryptedType(Text))

    mapping.map_imperatively(Account, table)
    mapping.metadata.create_all(engine)
    account = Account()
    account.pin = "1234"
    for owner in (account, Person(pin="1234")):
        with Session(engine) as session:
            with envelope.enroll(session, owner, secret=SECRET):
                session.commit()
            session.expunge_all()
            again = session.scalars(select(type(owner))).one()
            with envelope.unlock(session, again, secret=SECRET):
                assert again.pin == "1234"


def test_registry_is_followed(base: Any) -> None:
    """Generated classes are mapped in the owner's registry and are disposed of with it."""
    user, *_ = _models(base)
    key_class: Any = user.__key_class__
    mapper = sa.inspect(key_class)

    assert base.registry is mapper.registry
    assert mapper in base.registry.mappers
    base.registry.dispose()
    assert not base.registry.mappers


def test_two_phase_commit(base: Any, postgres_url: sa.URL) -> None:
    """Owners in two PostgreSQL databases are enrolled and written in one transaction of two phases; what is
    rolled back is gone from both."""
    first, second = _models(base), _models(registry().generate_base())
    address = postgres_url.set(drivername="postgresql+psycopg")
    admin = create_engine(address, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text("CREATE DATABASE envelope_second"))
    one, two = create_engine(address), create_engine(address.set(database="envelope_second"))
    try:
        first[0].metadata.create_all(one)
        second[0].metadata.create_all(two)
        binds = {**dict.fromkeys(first, one), **dict.fromkeys(second, two)}
        sessions = sessionmaker(binds=binds, twophase=True)

        assert _use(sessions, *first) == "dear diary"
        assert _use(sessions, *second) == "dear diary"
        with sessions() as session:
            envelope.enroll(session, first[0](), secret=SECRET)
            envelope.enroll(session, second[0](), secret=SECRET)
            session.prepare()
            session.rollback()
            for user, *_ in (first, second):
                assert session.scalar(select(sa.func.count()).select_from(user)) == 1
    finally:
        one.dispose()
        two.dispose()
        with admin.connect() as connection:
            connection.execute(sa.text("DROP DATABASE envelope_second WITH (FORCE)"))
        admin.dispose()


def test_sharded_session(base: Any, tmp_path: Path) -> None:
    """Keys of a ShardedSession are refused at the first verb, with the reason and the way."""
    user, *_ = _models(base)
    shards = {"a": _database(tmp_path, "a"), "b": _database(tmp_path, "b")}
    for one in shards.values():
        base.metadata.create_all(one)
    session = ShardedSession(
        shard_chooser=lambda *_, **__: "a",
        identity_chooser=lambda *_, **__: ["a", "b"],
        execute_chooser=lambda *_: ["a", "b"],
        shards=shards,
    )
    with (
        session,
        pytest.raises(ConfigurationError, match="ShardedSession is not supported"),
    ):
        envelope.enroll(session, user(), secret=SECRET)
    for one in shards.values():
        with one.connect() as connection:
            assert connection.scalar(select(sa.func.count()).select_from(user.__key_class__.__table__)) == 0
