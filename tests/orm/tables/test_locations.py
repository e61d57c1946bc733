"""An owner's name says database and schema: every tenant has a user 1, whose keys serve no other's rows."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    MetaData,
    StaticPool,
    String,
    TypeDecorator,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql import Delete, Update

from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    LockedError,
    RowSealError,
    ServerKeyring,
    StatementRefusedError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.tables.databases import database_name
from tests.orm.models import SECRET, Base, Note, User, envelope

PROFILE = KdfProfile.unsafe_for_tests()
KEYS = [b"k" * 32]


def database(url: str) -> Engine:
    engine = create_engine(url)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        envelope.enroll(session, User(email="one@example.org"), secret=SECRET)
        session.commit()
    return engine


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Engine, Engine]]:
    """Two databases with a user 1 each."""
    engines = database(f"sqlite:///{tmp_path / 'one.db'}"), database(f"sqlite:///{tmp_path / 'two.db'}")
    yield engines
    for engine in engines:
        engine.dispose()


def unlocked(session: Session) -> Any:
    return envelope.unlock(session, session.get_one(User, 1), secret=SECRET)


WRITES: dict[str, Callable[[Session], Any]] = {
    "an object": lambda session: (session.add(Note(user_id=1, body="needle")), session.flush()),
    "two objects": lambda session: (
        session.add_all([Note(user_id=1, body="needle"), Note(user_id=1, body="needle")]),
        session.flush(),
    ),
    "bulk": lambda session: session.execute(insert(Note), [{"user_id": 1, "body": "needle"}] * 2),
    "one insert": lambda session: session.execute(insert(Note).values(user_id=1, body="needle")),
    "an owner's own column": lambda session: (
        setattr(session.get_one(User, 1), "phone", "needle"),
        session.flush(),
    ),
    "a connection": lambda session: (
        session.get_bind()
        .connect()
        .execute(  # type: ignore[union-attr]
            insert(Note.__table__), [{"user_id": 1, "body": "needle"}]
        )
    ),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_whoever_is_unlocked_in_one_database_is_locked_in_another(
    two: tuple[Engine, Engine], write: Callable[[Session], Any]
) -> None:
    """The same class and primary key in a second database is another owner: nothing is written under the
    first one's key."""
    one, other = two
    with Session(one) as here, Session(other) as there, unlocked(here):
        with pytest.raises(LockedError):
            write(there)
        there.rollback()
    with other.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM notes WHERE body IS NOT NULL")) == 0


def test_each_database_has_its_own_key_while_both_are_unlocked(two: tuple[Engine, Engine]) -> None:
    """Nested unlocks of a user 1 in two databases write each database under its own key, in either order."""
    with Session(two[0]) as one, Session(two[1]) as other, unlocked(one), unlocked(other):
        one.add(Note(user_id=1, body="in one"))
        other.add(Note(user_id=1, body="in the other"))
        one.commit()
        other.commit()
    for engine, body in zip(two, ("in one", "in the other"), strict=True):
        with Session(engine) as session, unlocked(session):
            assert session.scalars(select(Note)).one().body == body


def test_a_value_of_another_databases_owner_is_refused(two: tuple[Engine, Engine]) -> None:
    """A ciphertext that was copied from user 1's row in one database to user 1's row in another is an
    error."""
    with Session(two[0]) as session, unlocked(session):
        session.add(Note(user_id=1, body="of the first"))
        session.commit()
    with two[0].connect() as source, two[1].begin() as target:
        blob = source.scalar(text("SELECT body FROM notes"))
        target.execute(text("INSERT INTO notes (user_id, body) VALUES (1, :blob)"), {"blob": blob})
    with Session(two[0]) as one, Session(two[1]) as other, unlocked(one), unlocked(other):
        note = select(Note)
        with pytest.raises(DecryptionError):
            print(other.scalars(note).one().body)


def test_databases_in_memory_are_told_apart() -> None:
    """Two engines on `sqlite://` have one URL and two databases."""
    one, other = database("sqlite://"), database("sqlite://")
    with Session(one) as here, Session(other) as there, unlocked(here):
        there.add(Note(user_id=1, body="x"))
        with pytest.raises(LockedError):
            there.flush()


def test_two_engines_on_one_database_are_one(two: tuple[Engine, Engine], tmp_path: Path) -> None:
    """A second engine with the same URL, and one with an option more, reach the same owners."""
    path = tmp_path / "one.db"
    for url in (f"sqlite:///{path}", f"sqlite+pysqlite:///{path}", f"sqlite:///file:{path}?mode=rw&uri=true"):
        again = create_engine(url)
        enforce_foreign_keys(again)
        with Session(two[0]) as here, Session(again) as there, unlocked(here):
            here.commit()
            there.add(Note(user_id=1, body="by another engine"))
            there.commit()
        again.dispose()

    with Session(two[0]) as session, unlocked(session):
        assert [note.body for note in session.scalars(select(Note))] == ["by another engine"] * 3


def test_names_of_databases() -> None:
    """A database is its address without driver, user and options; what has no address is told by its
    engine."""

    def name(url: str, realm: Any = None) -> str:
        return database_name(create_engine(url), realm)

    same = {
        name("postgresql+psycopg://ada:x@db.example/app"),
        name("postgresql+psycopg://ben@db.example/app?application_name=x"),
        name("postgresql+asyncpg://db.example/app"),
    }

    assert len(same) == 1
    assert name("postgresql+psycopg://db.example/app") != name("postgresql+psycopg://db.example/other")
    assert name("postgresql+psycopg://db.example/app") != name("postgresql+psycopg://db.example:5433/app")
    assert name("postgresql+psycopg://") != name("postgresql+psycopg://")
    assert name("sqlite://") != name("sqlite:///:memory:")
    assert name("sqlite:///a.db") == name("sqlite:///./a.db") != name("sqlite:///b.db")
    assert name("sqlite://", "app") == name("postgresql+psycopg://h/d", "app") == "realm app"
    assert name("sqlite:///a.db", lambda engine: engine.url.database) == "realm a.db"


class Routing(Session):
    """Reads from a follower and writes to the leader, as SQLAlchemy's documentation of vertical partitioning
    does."""

    engines: dict[str, Engine]

    def get_bind(self, mapper: Any = None, *, clause: Any = None, **more: Any) -> Engine:
        if self._flushing or isinstance(clause, (Update, Delete)):
            return self.engines["leader"]
        return self.engines[random.choice(["one", "other"])]


def test_followers_of_a_leader_serve_its_owners(tmp_path: Path) -> None:
    """A session that reads from replicas and writes to the leader unlocks, reads and writes one owner."""
    path = tmp_path / "leader.db"
    leader = database(f"sqlite:///{path}")
    followers = {
        name: create_engine(f"sqlite:///file:{path}?mode=rw&uri=true&psow={name == 'one'}")
        for name in ("one", "other")
    }
    for follower in followers.values():
        enforce_foreign_keys(follower)
    Routing.engines = {"leader": leader, **followers}
    for _ in range(4):
        with Routing() as session:
            user = session.get_one(User, 1)
            with envelope.unlock(session, user, secret=SECRET):
                session.commit()
                session.add(Note(user_id=1, body="routed"))
                session.commit()
                read = {note.body for note in session.scalars(select(Note))}
                session.commit()

        assert read == {"routed"}


def test_a_realm_is_one_database_behind_several_urls(tmp_path: Path) -> None:
    """With `Envelope(realm=...)` whoever was unlocked through one URL may write through another."""
    one, other = (f"sqlite:///{tmp_path / name}" for name in ("one.db", "link.db"))
    first = database(one)
    (tmp_path / "hard").mkdir()
    (tmp_path / "hard" / "link.db").hardlink_to(tmp_path / "one.db")
    second = create_engine(f"sqlite:///{tmp_path / 'hard' / 'link.db'}")
    enforce_foreign_keys(second)
    named = Envelope(kdf_profile=PROFILE, realm="app")
    for serving, allowed in ((envelope, False), (named, True)):
        with Session(first) as here, Session(second) as there:
            user = here.get_one(User, 1)
            with serving.unlock(here, user, secret=SECRET):
                here.commit()
                there.add(Note(user_id=1, body="x"))
                if allowed:
                    there.commit()
                else:
                    with pytest.raises(LockedError):
                        there.flush()
    assert str(other) != str(one)


# Schemas


@pytest.fixture
def tenants(tmp_path: Path) -> Engine:
    """One engine with two schemas, a user 1 in each: attached databases of SQLite."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    for name in ("acme", "bolt"):
        with engine.connect() as connection:
            connection.exec_driver_sql(f"ATTACH '{tmp_path / name}.db' AS {name}")
        with tenant(engine, name) as session:
            Base.metadata.create_all(session.connection())
            envelope.enroll(session, User(email=f"{name}@example.org"), secret=SECRET)
            session.commit()
    return engine


@contextmanager
def tenant(engine: Engine, name: str) -> Iterator[Session]:
    with Session(engine.execution_options(schema_translate_map={None: name})) as session:
        yield session


def test_a_schema_of_its_own_is_a_place_of_its_own(tenants: Engine) -> None:
    """With a schema for each tenant, whoever is unlocked in one is locked in the other, and each writes its
    own."""
    with tenant(tenants, "acme") as acme, tenant(tenants, "bolt") as bolt, unlocked(acme):
        bolt.add(Note(user_id=1, body="x"))
        with pytest.raises(LockedError):
            bolt.flush()
        bolt.rollback()
        with unlocked(bolt):
            acme.add(Note(user_id=1, body="acme's"))
            bolt.add(Note(user_id=1, body="bolt's"))
            acme.commit()
            bolt.commit()
    for name in ("acme", "bolt"):
        with tenant(tenants, name) as session, unlocked(session):
            assert session.scalars(select(Note)).one().body == f"{name}'s"


def test_the_map_of_a_connection_counts_too(tenants: Engine) -> None:
    """A session that is told its schema through its connection is as good as one through its engine."""
    with Session(tenants) as session:
        session.connection(execution_options={"schema_translate_map": {None: "bolt"}})
        with unlocked(session):
            session.add(Note(user_id=1, body="bolt's"))
            session.flush()

            assert session.scalars(select(Note)).one().body == "bolt's"


def test_a_map_of_one_statement_is_refused(tenants: Engine) -> None:
    """A statement with a schema of its own would be encrypted under keys of another; it is refused by
    name."""
    with tenant(tenants, "acme") as acme, unlocked(acme):
        acme.flush()
        with pytest.raises(StatementRefusedError, match="schema_translate_map"):
            acme.execute(
                insert(Note).values(user_id=1, body="x"),
                execution_options={"schema_translate_map": {None: "bolt"}},
            )


class Stripped(TypeDecorator[str]):
    """An application's decorator around ours."""

    impl = EncryptedType
    cache_ok = True


TYPED = text("SELECT body FROM notes").columns(body=Stripped(String, label="notes.body"))
MAP: Any = {"schema_translate_map": {None: "bolt"}}
READS: dict[str, Callable[[Session], Any]] = {
    "objects": lambda session: session.scalars(select(User), execution_options=MAP).all(),
    "columns": lambda session: session.execute(select(Note.body).execution_options(**MAP)).all(),
    "Query": lambda session: session.query(User).execution_options(**MAP).all(),
    "get": lambda session: session.get(User, 1, execution_options=MAP),
    "a decorator": lambda session: session.execute(TYPED, execution_options=MAP).all(),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_a_map_of_one_reading_statement_is_refused(tenants: Engine, read: Callable[[Session], Any]) -> None:
    """Keys would be looked for in another schema than the rows; what reads nothing encrypted goes on."""
    with Session(tenants) as session:
        with pytest.raises(ConfigurationError, match=r"session\.connection\(execution_options="):
            read(session)

        assert session.execute(select(User.id), execution_options=MAP).all() == [(1,)]


@pytest.mark.backend
@pytest.mark.parametrize("how", ["SET search_path TO {}", 'set SEARCH_PATH = "{}", public'])
def test_search_path(postgres_engine: Engine, how: str) -> None:
    """`SET search_path` is a schema as well as a map is: an unlock in one serves no other."""
    with postgres_engine.begin() as connection:
        for name in ("acme", "bolt"):
            connection.execute(text(f"DROP SCHEMA IF EXISTS {name} CASCADE"))
            connection.execute(text(f"CREATE SCHEMA {name}"))
            connection.execute(text(how.format(name)))
            Base.metadata.create_all(connection)
    for name in ("acme", "bolt"):
        with Session(postgres_engine) as session:
            session.execute(text(how.format(name)))
            envelope.enroll(session, User(email="x"), secret=SECRET)
            session.commit()
    try:
        with Session(postgres_engine) as session:
            session.execute(text(how.format("acme")))
            with unlocked(session):
                session.add(Note(user_id=1, body="acme's"))
                session.flush()
                session.execute(text(how.format("bolt")))
                session.expunge_all()
                session.add(Note(user_id=1, body="x"))
                with pytest.raises(LockedError):
                    session.flush()
    finally:
        with postgres_engine.begin() as connection:
            for name in ("acme", "bolt"):
                connection.execute(text(f"DROP SCHEMA {name} CASCADE"))


# Realms and row seals


def sealed(realm: Any = None) -> Envelope:
    return Envelope(kdf_profile=PROFILE, server_keys=ServerKeyring(KEYS), realm=realm)


def transplant(source: Engine, target: Engine) -> None:
    """Put user 1's key and slot rows of one database in the place of another's."""
    metadata = MetaData()
    metadata.reflect(source, only=["users_key", "users_keyslot"])
    with source.connect() as read, target.begin() as write:
        write.execute(metadata.tables["users_key"].delete())
        for name in ("users_key", "users_keyslot"):
            rows = read.execute(metadata.tables[name].select()).mappings().all()
            write.execute(metadata.tables[name].insert(), [dict(row) for row in rows])


@pytest.mark.parametrize("realms", [("one", "other"), (None, "other"), ("one", None), ("one", "One")])
def test_rows_that_were_sealed_in_another_realm_are_refused(
    tmp_path: Path, realms: tuple[str | None, str | None]
) -> None:
    """With one server key for two databases, an owner's rows of the one do not log in to the other."""
    engines = []
    for name, realm in zip(("one", "two"), realms, strict=True):
        engine = create_engine(f"sqlite:///{tmp_path / name}.db")
        enforce_foreign_keys(engine)
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            sealed(realm).enroll(session, User(email="x"), secret=f"secret of {name}")
            session.commit()
        engines.append(engine)
    transplant(*engines)

    with Session(engines[1]) as session, pytest.raises(RowSealError):
        sealed(realms[1]).unlock(session, session.get_one(User, 1), secret="secret of one")


def test_a_realm_is_renamed_by_sealing_anew(sqlite_engine: Engine) -> None:
    """After a realm was renamed the rows are refused with the cure, and `seal_rows` is that cure."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        sealed("before").enroll(session, User(email="x"), secret=SECRET)
        session.commit()
        renamed, user = sealed("after"), session.get_one(User, 1)
        with pytest.raises(RowSealError, match="seal_rows"):
            renamed.unlock(session, user, secret=SECRET)
        session.rollback()
        renamed.seal_rows(session, User)
        session.commit()

        with renamed.unlock(session, user, secret=SECRET):
            session.add(Note(user_id=1, body="after"))
            session.commit()


def test_a_realm_can_be_a_function_of_the_engine(two: tuple[Engine, Engine]) -> None:
    """One Envelope serves several databases, each in a realm of its own."""
    served = sealed(lambda engine: Path(str(engine.url.database)).stem)
    for engine in two:
        with Session(engine) as session:
            served.seal_rows(session, User)
            session.commit()
        with Session(engine) as session, served.unlock(session, session.get_one(User, 1), secret=SECRET):
            session.add(Note(user_id=1, body="x"))
            session.commit()
    with Session(two[0]) as session, pytest.raises(RowSealError):
        sealed("two").unlock(session, session.get_one(User, 1), secret=SECRET)


@pytest.mark.parametrize("realm", ["", "  ", 5, b"app"])
def test_what_is_no_name_of_a_realm(realm: Any) -> None:
    """A realm is text or a function."""
    with pytest.raises(ConfigurationError, match="realm"):
        Envelope(realm=realm)


# What is not supported


def test_a_sharded_session_is_refused_with_a_sentence(two: tuple[Engine, Engine]) -> None:
    """Keys would have to follow each row into its shard: said at the first verb, and nothing is written."""
    sessions = sessionmaker(
        class_=ShardedSession,
        shards={"one": two[0], "two": two[1]},
        shard_chooser=lambda mapper, instance, clause=None: "one",
        identity_chooser=lambda *args, **more: ["one", "two"],
        execute_chooser=lambda context: ["one", "two"],
    )
    with sessions() as session:
        with pytest.raises(ConfigurationError, match="ShardedSession"):
            envelope.enroll(session, User(email="sharded@example.org"), secret=SECRET)
        session.rollback()
    for engine in two:
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM users_key")) == 2
