"""The sole owner of a class with one row: found in the database, made once, deleted and made again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, Text, delete, insert, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    EncryptedType,
    EnrollmentError,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    ServerKeyring,
    StatementRefusedError,
    TransactionConflictError,
)
from tests.prepared import tables_of

pytestmark = pytest.mark.both_lines

KEYS = ServerKeyring([b"k" * 32])


class Base(DeclarativeBase):
    pass


class Vault(KeyOwner, Base, sole=True):
    __tablename__ = "vaults"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Credential(Base):
    __tablename__ = "credentials"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str | None] = mapped_column(EncryptedType(Text, owner=Vault))


class Number(Base):
    __tablename__ = "numbers"
    id: Mapped[int] = mapped_column(primary_key=True)


@dataclass
class Application:
    """Server mode for the process, as an application has it."""

    engine: Engine
    envelope: Envelope

    def write(self, token: str = "t") -> int:  # noqa: S107 - the value of a column
        with Session(self.engine) as session:
            credential = Credential(token=token)
            session.add(credential)
            session.commit()
            return credential.id

    def read(self, key: int) -> str | None:
        with Session(self.engine) as session:
            return session.get_one(Credential, key).token

    def run(self, *statements: Any) -> None:
        with Session(self.engine) as session:
            for statement in statements:
                session.execute(statement)
            session.commit()

    def vaults(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.exec_driver_sql("SELECT id FROM vaults ORDER BY id").scalars())

    def owner_of_stored(self, key: int) -> int | None:
        """The vault whose key a stored token names, read past the library."""
        with self.engine.connect() as connection:
            raw = sa.table("credentials", sa.column("id"), sa.column("token", sa.LargeBinary))
            blob = connection.scalar(select(raw.c.token).where(raw.c.id == key))
            stored: Any = Vault.__key_class__
            rows = connection.execute(select(stored.key_id, stored.owner_id))
            keys = {row[0].bytes: row[1] for row in rows}
            return keys.get(bytes(blob or b"")[1:17])


@pytest.fixture
def app(engine: Engine) -> Iterator[Application]:
    tables_of(Base.metadata, engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS)
    serving = envelope.server_mode(reason="test").everywhere()
    yield Application(engine, envelope)
    serving.stop()


def by_the_unit_of_work(app: Application) -> None:
    with Session(app.engine) as session:
        session.delete(session.scalars(select(Vault)).one())
        session.commit()


def by_a_statement(app: Application) -> None:
    app.run(delete(Vault))


def by_another_program(app: Application) -> None:
    with app.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM vaults")


DELETED = [by_the_unit_of_work, by_a_statement, by_another_program]


@pytest.mark.parametrize("gone", DELETED, ids=lambda one: one.__name__)
@pytest.mark.parametrize("again", [None, 1, 7])
@pytest.mark.any_database
def test_a_vault_that_is_deleted_and_made_again(
    app: Application, gone: Callable[[Application], None], again: int | None
) -> None:
    """What the process kept of the old row is not believed: the next value is under the row that is there."""
    app.write()
    gone(app)
    if again is not None:
        app.run(insert(Vault).values(id=again))
    key = app.write("second")

    assert [again or 1] == app.vaults()
    assert app.vaults() == [app.owner_of_stored(key)]
    assert app.read(key) == "second"
    with Session(app.engine) as session, app.envelope.server_mode(session, reason="another"):
        assert session.get_one(Credential, key).token == "second"
        session.add(Credential(token="third"))
        session.commit()


def test_a_vault_that_is_replaced_in_one_flush(app: Application) -> None:
    """A deleted row and a new one in one flush, and a value beside them: it is under the new one."""
    app.write()
    with Session(app.engine) as session:
        session.delete(session.scalars(select(Vault)).one())
        credential = Credential(token="new")
        session.add_all([credential, Vault(id=7)])
        session.commit()
        key = credential.id

    assert app.vaults() == [7]
    assert app.owner_of_stored(key) == 7
    assert app.read(key) == "new"
    assert app.owner_of_stored(app.write()) == 7


def test_a_vault_that_is_replaced_within_a_transaction(app: Application) -> None:
    """Each write of one transaction is under the row that is there by then; a savepoint takes it back."""
    with Session(app.engine) as session:
        session.add(Credential(token="first"))
        session.flush()
        session.execute(delete(Vault))
        session.execute(insert(Vault).values(id=5))
        second = Credential(token="second")
        session.add(second)
        session.flush()
        savepoint = session.begin_nested()
        session.execute(delete(Vault))
        session.execute(insert(Vault).values(id=6))
        session.add(Credential(token="lost"))
        session.flush()
        savepoint.rollback()
        third = Credential(token="third")
        session.add(third)
        session.commit()
        keys = second.id, third.id

    assert app.vaults() == [5]
    assert [app.owner_of_stored(key) for key in keys] == [5, 5]


@pytest.mark.parametrize("vault_first", [True, False])
@pytest.mark.any_database
def test_the_vault_beside_what_it_owns(app: Application, vault_first: bool) -> None:
    """A new vault and a value of its own go into one flush, in either order."""
    credential, vault = Credential(token="t"), Vault(name="mine")
    with Session(app.engine) as session:
        session.add_all([vault, credential] if vault_first else [credential, vault])
        session.commit()
        key = credential.id
        assert session.scalars(select(Vault.name)).all() == ["mine"]

    assert app.owner_of_stored(key) == 1
    assert app.read(key) == "t"


def test_the_vault_is_enrolled_beside_what_it_owns(sqlite_engine: Engine) -> None:
    """`enroll` flushes values that wait for the vault's key."""
    Base.metadata.create_all(sqlite_engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with Session(sqlite_engine) as session:
        session.add(Credential(id=1, token="t"))
        with envelope.enroll(session, Vault(), secret="correct horse battery"):
            session.commit()

            assert session.get_one(Credential, 1).token == "t"


def test_an_unlocked_vault_that_is_another_one(sqlite_engine: Engine) -> None:
    """The keys of a vault that is gone are not taken for those of the one that is there: it is locked."""
    Base.metadata.create_all(sqlite_engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with (
        Session(sqlite_engine) as session,
        envelope.enroll(session, Vault(), secret="correct horse battery"),
    ):
        session.commit()
        with sqlite_engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM vaults")
            connection.exec_driver_sql("INSERT INTO vaults (id) VALUES (2)")
        session.add(Credential(token="t"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()


def test_it_is_looked_for_once_in_a_transaction(app: Application) -> None:
    """Many flushes of one transaction ask one time where the vault is, and the next transaction again."""
    app.write()
    asked: list[str] = []

    def note(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FROM vaults" in statement and "vaults_key" not in statement:
            asked.append(statement)

    sa.event.listen(app.engine, "before_cursor_execute", note)
    with Session(app.engine) as session:
        for count in (1, 2):
            for _ in range(3):
                session.add(Credential(token="t"))
                session.flush()
                session.execute(insert(Number))
            session.commit()

            assert count == len(asked)


# A second row


def objects(*keys: int) -> Any:
    return lambda session: session.add_all([Vault(id=key) for key in keys])


def bulk_objects(*keys: int) -> Any:
    return lambda session: session.bulk_save_objects([Vault(id=key) for key in keys])


def mappings(*keys: int) -> Any:
    return lambda session: session.bulk_insert_mappings(sa.inspect(Vault), [{"id": key} for key in keys])


def rows(*keys: int) -> Any:
    return lambda session: session.execute(insert(Vault), [{"id": key} for key in keys])


def core(*keys: int) -> Any:
    def write(session: Session) -> None:
        session.connection().execute(insert(Vault.__table__), [{"id": key} for key in keys])  # type: ignore[arg-type]

    return write


def values(*keys: int) -> Any:
    return lambda session: session.execute(insert(Vault).values([{"id": key} for key in keys]))


def from_select(*keys: int) -> Any:
    return lambda session: session.execute(insert(Vault).from_select(["id"], select(literal(keys[-1]))))


def in_a_cte(*keys: int) -> Any:
    def write(session: Session) -> None:
        statement: Any = insert(Vault)
        statement = (
            statement.values([{"id": key} for key in keys]) if len(keys) > 1 else statement.values(id=keys[0])
        )
        session.execute(select(literal(1)).add_cte(statement.cte("made")))

    return write


FORMS = [objects, bulk_objects, mappings, rows, core, values, from_select, in_a_cte]


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("form", FORMS, ids=lambda one: one.__name__)
def test_a_second_row_is_refused(app: Application, form: Callable[..., Any], there: bool) -> None:
    """Every way of inserting a second row, or two at once, is refused; the error says which it is."""
    if form is in_a_cte and app.engine.dialect.name == "sqlite":
        pytest.skip("SQLite takes no INSERT in a CTE")
    if there:
        app.write()
    with Session(app.engine) as session:
        with pytest.raises(EnrollmentError) as refused:  # noqa: PT012 - objects are sent by the flush
            form(*((5,) if there else (5, 6)))(session)
            session.flush()
        session.rollback()

    assert ([1] if there else []) == app.vaults()
    if form is not from_select:
        assert ("has its row already" if there else "several are being added") in str(refused.value)
    app.write()


def test_an_upsert_of_the_row_that_is_there(app: Application) -> None:
    """`ON CONFLICT` of the very row makes no second one, and passes; of another row it is refused."""
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[app.engine.dialect.name]
    new: Any = dialect.insert(Vault)
    for _ in range(2):
        app.run(new.values(id=1).on_conflict_do_nothing())
    app.run(new.values(id=1, name="x").on_conflict_do_update(index_elements=["id"], set_={"name": "x"}))
    with Session(app.engine) as session:
        session.execute(new.on_conflict_do_nothing(), {"id": 1})
        session.commit()
    for statement in (
        new.values(id=2).on_conflict_do_nothing(),
        new.values(name="y").on_conflict_do_nothing(),
    ):
        with pytest.raises(EnrollmentError, match="has its row already"):
            app.run(statement)

    assert app.vaults() == [1]
    assert app.owner_of_stored(app.write()) == 1


@pytest.mark.parametrize("by_object", [True, False])
@pytest.mark.any_database
def test_its_primary_key_stays(app: Application, by_object: bool) -> None:
    """Its keys are bound to its primary key: an UPDATE of that is refused, and of another column is not."""
    key = app.write()
    app.run(update(Vault).values(name="mine"))
    with Session(app.engine) as session:
        if by_object:
            session.scalars(select(Vault)).one().id = 4
        with pytest.raises(StatementRefusedError, match=r"vaults\.id is the primary key of the sole Vault"):
            session.flush() if by_object else session.execute(update(Vault).values(id=4))

    assert app.owner_of_stored(key) == 1
    assert app.read(key) == "t"


def test_several_rows_are_told_at_each_write(app: Application) -> None:
    """Rows that came past the library: whose key encrypts is not clear, also where a key is at hand."""
    app.write()
    with app.engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO vaults (id) VALUES (2)")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="Vault is declared sole=True and has several rows"):
            app.write()


# Races, step by step


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_another_process_makes_it_after_the_snapshot(postgres_engine: Engine, level: Any) -> None:
    """The database's own serialization error, which retry middleware knows; the second try is right."""
    Base.metadata.create_all(postgres_engine)
    app = Application(postgres_engine, Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS))
    strict = postgres_engine.execution_options(isolation_level=level)
    with app.envelope.server_mode(reason="test"), Session(strict) as late:
        late.scalar(select(sa.func.count()).select_from(Number))
        app.write()  # as another process does
        late.add(Credential(token="late"))
        with pytest.raises(OperationalError) as failed:
            late.commit()
        late.rollback()
        late.add(Credential(id=99, token="late"))
        late.commit()

    assert getattr(failed.value.orig, "sqlstate", None) == "40001"
    assert app.vaults() == [1]
    assert app.owner_of_stored(99) == 1


def test_the_row_is_gone_as_soon_as_it_is_made(sqlite_engine: Engine) -> None:
    """Others delete it at the same moment: the transaction is to be run again."""
    Base.metadata.create_all(sqlite_engine)
    app = Application(sqlite_engine, Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS))
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER gone AFTER INSERT ON vaults BEGIN DELETE FROM vaults; END")
    with app.envelope.server_mode(reason="test"), pytest.raises(TransactionConflictError):
        app.write()


def test_two_transactions_with_explicit_ids(postgres_engine: Engine) -> None:
    """Neither sees the other's row: both are stored, and the next write says so."""
    Base.metadata.create_all(postgres_engine)
    app = Application(postgres_engine, Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS))
    with app.envelope.server_mode(reason="test"):
        with Session(postgres_engine) as one, Session(postgres_engine) as two:
            one.add(Vault())
            one.flush()
            two.add(Vault(id=2))
            two.flush()
            one.commit()
            two.commit()
        with pytest.raises(ConfigurationError, match="several rows"):
            app.write()


async def test_asynchronous_sessions(async_engine: AsyncEngine) -> None:
    """The same through asyncio: made beside its values, deleted past the library, made again."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    envelope = AsyncEnvelope(Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=KEYS))
    async with AsyncSession(async_engine) as session:
        with envelope.server_mode(session, reason="test"):
            session.add_all([Credential(id=1, token="first"), Vault(id=3)])
            await session.commit()
            async with async_engine.begin() as connection:
                await connection.exec_driver_sql("DELETE FROM credentials")
                await connection.exec_driver_sql("DELETE FROM vaults")
            session.expunge_all()
            session.add(Credential(id=2, token="second"))
            await session.commit()

            assert (await session.scalars(select(Vault.id))).all() == [1]
            assert (await session.get_one(Credential, 2)).token == "second"
