"""The schema of an owner is the one in which the database finds the owner's tables."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    column,
    create_engine,
    event,
    insert,
    table,
    text,
)
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError, StatementRefusedError
from sqlalchemy_envelope.orm.tables.default_schema import may_change
from tests.orm.lone_models import Base, Hermit, Saying, new_hermit, unlock

TENANTS = ("acme", "bolt")


@pytest.fixture
def tenants(postgres_engine: Engine) -> Iterator[Engine]:
    """One database with two schemas, a user 1 in each, and a role whose own schema each is."""
    with postgres_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA shared"))
        connection.execute(
            text(
                "CREATE FUNCTION public.work_in(name text) RETURNS void LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM set_config('search_path', name, false); END $$"
            )
        )
        for name in TENANTS:
            connection.execute(text(f'CREATE ROLE "{name}"'))
            connection.execute(text(f'CREATE SCHEMA "{name}" AUTHORIZATION "{name}"'))
            connection.execute(text(f"SET LOCAL search_path TO {name}"))
            Base.metadata.create_all(connection)
            for kind in ("TABLES", "SEQUENCES"):
                connection.execute(text(f"GRANT ALL ON ALL {kind} IN SCHEMA {name} TO {name}"))
    for name in TENANTS:
        with Session(postgres_engine) as session:
            session.execute(text(f"SET LOCAL search_path TO {name}"))
            new_hermit(session, f"{name}@example.org")
    yield postgres_engine
    postgres_engine.dispose()
    with postgres_engine.begin() as connection:
        for name in TENANTS:
            connection.execute(text(f'DROP OWNED BY "{name}" CASCADE'))
            connection.execute(text(f'DROP ROLE "{name}"'))


def unlocked(session: Session) -> Any:
    return unlock(session, session.get_one(Hermit, 1))


WAYS = {
    "a path with another schema first": "SET search_path TO shared, {}",
    "a path with a schema first that does not exist": "SET search_path TO nosuch, {}",
    "a role": "SET ROLE {}",
    "an authorization": "SET SESSION AUTHORIZATION {}",
    "a setting": "SELECT set_config('search' || '_path', '{}', false)",
    "a block": "DO $$ BEGIN PERFORM set_config('search' || '_path', '{}', false); END $$",
    "a function": "SELECT public.work_in('{}')",
    "a comment before it": "/* tenant */ SET search_path TO {}",
}


@pytest.mark.backend
def test_whatever_changes_the_schema_is_noticed(tenants: Engine) -> None:
    """Who is unlocked in one tenant's schema is locked in the other's, however the session came there."""
    for name, way in WAYS.items():
        with Session(tenants) as session:
            session.execute(text(way.format("acme")))
            with unlocked(session):
                session.add(Saying(hermit_id=1, body=name))
                session.flush()
                session.execute(text("RESET ALL"))
                session.execute(text("RESET ROLE"))
                session.execute(text("RESET SESSION AUTHORIZATION"))
                session.execute(text(way.format("bolt")))
                with pytest.raises(LockedError, match="another database or schema"):
                    session.execute(insert(Saying), [{"hermit_id": 1, "body": name}])
                session.rollback()
    with tenants.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bolt.sayings")) == 0


BODY = {"hermit_id": 1, "body": b"plain"}


def light_table(**where: Any) -> Any:
    return table("sayings", column("hermit_id"), column("body"), **where)


@pytest.mark.backend
def test_another_table_object_in_a_schema(tenants: Engine) -> None:
    """It is known in each tenant's schema, however a statement comes there; not in one that holds no keys."""
    named = Table("sayings", MetaData(), schema="bolt", autoload_with=tenants)
    mapped = Table("sayings", MetaData(), Column("hermit_id", Integer), Column("body", LargeBinary))
    light = light_table()
    to_bolt: Any = {"schema_translate_map": {None: "bolt"}}
    to_acme: Any = {"schema_translate_map": {None: "acme"}}
    with tenants.connect() as connection:
        connection.execute(text("CREATE TABLE shared.sayings (hermit_id int, body bytea)"))
        connection.commit()
        for path, target, options, passes in (
            ("public", named, {}, False),
            ("acme", named, {}, False),
            ("public", named, to_acme, False),
            ("bolt", light, {}, False),
            ("shared, bolt", light, {}, True),
            ("bolt, shared", light, {}, False),
            ("shared", light, to_bolt, True),  # a lightweight table is not translated
            ("shared", mapped, to_bolt, False),
            ("shared", mapped, {}, True),
            ("bolt", light_table(schema="shared"), {}, True),
            ("shared", light_table(schema="bolt"), {}, False),
        ):
            connection.execute(text(f"SET LOCAL search_path TO {path}"))
            for statement in (insert(target).values(BODY), insert(target).values([BODY])):
                with nullcontext() if passes else pytest.raises(StatementRefusedError, match="Table object"):
                    connection.execute(statement, execution_options=options)
        connection.commit()
        counts = [connection.scalar(text(f"SELECT count(*) FROM {one}.sayings")) for one in TENANTS]

        assert [*counts, 8] == [0, 0, connection.scalar(text("SELECT count(*) FROM shared.sayings"))]


@pytest.mark.backend
def test_a_rollback_takes_the_schema_back(tenants: Engine) -> None:
    """A savepoint and a transaction that are rolled back take `SET` back, and the owner is unlocked again."""
    with Session(tenants) as session:
        session.execute(text("SET search_path TO acme"))
        session.commit()
        with unlocked(session):
            session.add(Saying(hermit_id=1, body="one"))
            session.flush()
            savepoint = session.begin_nested()
            session.execute(text("SET search_path TO bolt"))
            with pytest.raises(LockedError):
                session.execute(insert(Saying), [{"hermit_id": 1, "body": "x"}])
            savepoint.rollback()
            session.execute(insert(Saying), [{"hermit_id": 1, "body": "two"}])
            session.commit()
            session.execute(text("SET LOCAL search_path TO bolt"))
            session.rollback()
            session.execute(insert(Saying), [{"hermit_id": 1, "body": "three"}])
            session.commit()
    with tenants.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM acme.sayings")) == 3


@pytest.mark.backend
def test_a_checkout_listener_may_change_the_schema(tenants: Engine) -> None:
    """What a listener of the pool sends on the driver's own cursor counts: a role for each request."""
    tenant = "acme"

    def work_as(driver: Any, *_: Any) -> None:
        with driver.cursor() as cursor:
            cursor.execute(f"SET ROLE {tenant}")
        driver.commit()

    event.listen(tenants, "checkout", work_as)
    with Session(tenants) as session, unlocked(session):
        session.add(Saying(hermit_id=1, body="acme's"))
        session.commit()
        tenant = "bolt"
        with pytest.raises(LockedError):
            session.execute(insert(Saying), [{"hermit_id": 1, "body": "x"}])
        session.rollback()
        tenant = "acme"
    with Session(tenants) as session, unlocked(session):
        assert session.query(Saying).one().body == "acme's"
    event.remove(tenants, "checkout", work_as)


@pytest.mark.backend
def test_the_schema_is_asked_for_once(tenants: Engine) -> None:
    """Three transactions of one connection ask once, and once more after a statement that may change it."""
    asked: list[str] = []

    def note(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "current_schemas" in statement:
            asked.append(statement)

    engine = create_engine(tenants.url, pool_size=1, max_overflow=0)
    with Session(engine) as session:
        session.execute(text("SET search_path TO acme"))
        session.commit()
        with unlocked(session):
            session.commit()
            event.listen(engine, "before_cursor_execute", note)
            counts = []
            for statement in (None, None, text("SELECT 1"), text("SET search_path TO acme"), None, None):
                if statement is not None:
                    session.execute(statement)
                session.add(Saying(hermit_id=1, body="x"))
                session.commit()
                session.query(Saying).order_by(Saying.id.desc()).first()
                with session.begin_nested():
                    session.execute(insert(Saying), [{"hermit_id": 1, "body": "y"}])
                session.commit()
                counts.append(len(asked))
            event.remove(engine, "before_cursor_execute", note)
    engine.dispose()

    assert counts[:3] == [0, 0, 0]
    assert counts[3] > 0
    assert counts[-1] == counts[4]


SAME = (
    "SELECT notes.id, count(*) FROM notes WHERE id IN (__[POSTCOMPILE_id]) GROUP BY lower(body)",
    'INSERT INTO acme."No (tes" (a, b) SELECT p0::INTEGER FROM (VALUES (1)) AS sen(p0, p1) RETURNING id',
    "INSERT INTO notes (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET a = excluded.a",
    "UPDATE notes SET a = CAST(1 AS VARCHAR(20))",
    "SAVEPOINT one",
)
OTHER = (
    "SET ROLE acme",
    "RESET ROLE",
    "ROLLBACK TO SAVEPOINT one",
    "CREATE TABLE users (id INTEGER)",
    "SELECT * INTO users FROM other",
    "SELECT 1; SET ROLE acme",
    "select work_in ('acme')",
    "select \"work_in\"('acme')",
    "select work_in/**/('acme')",
    "SELECT public.count(1)",
    "SELECT * FROM work_in('acme') AS (a INTEGER)",
    "INSERT INTO notes SELECT work_in('acme')",
    "CALL work_in('acme')",
    "USE acme",
)


@pytest.mark.parametrize(("statements", "changes"), [(SAME, False), (OTHER, True)])
def test_what_may_change_the_schema(statements: tuple[str, ...], changes: bool) -> None:
    """What is plain changes nothing; a function that is not known, and whatever else, may."""
    found: dict[str, bool] = {one: may_change(one) for one in statements}

    assert dict.fromkeys(statements, changes) == found
