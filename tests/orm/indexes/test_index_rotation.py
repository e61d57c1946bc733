"""A server's index key is rotated while others read and write: values are found, and none is there twice."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from sqlalchemy_envelope import AsyncEnvelope, ConfigurationError, StatementRefusedError, should_retry
from sqlalchemy_envelope.keys import index_keys
from sqlalchemy_envelope.orm.indexes import server_keys
from sqlalchemy_envelope.orm.verbs.rotation import index_rotation
from tests.orm.indexes.rotation_models import (
    Base,
    Clock,
    Contact,
    Desk,
    Other,
    new_process,
    one_desk,
    rotate,
    working,
)

VALUES = [f"{name}@example.org" for name in ("ada", "ben", "cy", "di", "eve", "fay")]
TOWNS = ["Rome", "Oslo", "Lima"]


def raw(engine: Engine, query: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(query).all())


def guards(engine: Engine) -> int:
    table = Contact.__table__
    return int(raw(engine, select(func.count(table.c.email_index__guard)))[0][0])


def states(engine: Engine, label: str = "contacts.email_index") -> list[tuple[int, str]]:
    keys = Contact.metadata.tables["contacts_indexkey"]
    query = select(keys.c.epoch, keys.c.state).where(keys.c.label == label).order_by(keys.c.epoch)
    return [tuple(row) for row in raw(engine, query)]


class Process:
    """A process that reads and writes contacts, compared with a plain dictionary."""

    def __init__(self, engine: Engine, desk: int, twin: dict[int, tuple[str, str]]) -> None:
        self.engine, self.desk, self.twin = engine, desk, twin
        self.envelope = new_process()

    def write(self, chance: random.Random) -> None:
        """Insert, change or delete a contact: it works exactly if no other has the value."""
        email, town, doing = chance.choice(VALUES), chance.choice(TOWNS), chance.random()
        row = chance.choice(list(self.twin)) if self.twin else None
        with working(self.engine, self.envelope) as session:
            if doing < 0.2 and row is not None:
                session.execute(delete(Contact).where(Contact.id == row))
                session.commit()
                del self.twin[row]
                return
            taken = {value for key, (value, _) in self.twin.items() if doing > 0.6 or key != row}
            if doing > 0.85:
                self.insert_unless_there(session, email, town, is_there=email in taken)
                return
            try:
                if doing > 0.6 or row is None:
                    made = Contact(desk_id=self.desk, email=email, town=town)
                    session.add(made)
                elif doing > 0.4:
                    made = session.get_one(Contact, row)
                    made.email, made.town = email, town
                else:
                    made = session.get_one(Contact, row)
                    values = {"desk_id": self.desk, "email": email, "town": town}
                    session.execute(update(Contact).where(Contact.id == row).values(values))
                session.commit()
            except IntegrityError:
                assert email in taken
                return
            assert email not in taken
            self.twin[made.id] = email, town

    def insert_unless_there(self, session: Session, email: str, town: str, *, is_there: bool) -> None:
        """An upsert that names the index."""
        values = {"desk_id": self.desk, "email": email, "town": town}
        upsert = sqlite_insert(Contact).on_conflict_do_nothing(index_elements=["email_index"])
        before = set(session.scalars(select(Contact.id)))
        session.execute(upsert, values)
        made = set(session.scalars(select(Contact.id))) - before
        session.commit()
        assert len(made) == (not is_there)
        self.twin |= dict.fromkeys(made, (email, town))

    def read(self) -> None:
        """Every value is found, in one row or none, and equal towns are joined."""
        with working(self.engine, self.envelope) as session:
            for email in VALUES:
                found = set(session.scalars(select(Contact.id).where(Contact.email == email)))
                assert {key for key, (value, _) in self.twin.items() if value == email} == found
            others = set(session.scalars(select(Contact.id).where(Contact.town != "Rome")))
            assert {key for key, (_, town) in self.twin.items() if town != "Rome"} == others
            pairs = session.execute(select(Contact.id, Other.id).join(Other, Contact.town == Other.town))
            by_town: dict[str, list[int]] = {}
            for key, (_, town) in self.twin.items():
                by_town.setdefault(town, []).append(key)
            same = {(one, other) for keys in by_town.values() for one in keys for other in keys}
            assert same == {tuple(pair) for pair in pairs}


class Operator:
    """A process that rotates an index, turn by turn."""

    def __init__(self, engine: Engine, index: Any, **options: Any) -> None:
        self.envelope, self.session = new_process(), Session(engine)
        self.run = iter(self.envelope.rotate_index(self.session, index, batch=2, **options))
        self.is_done = False

    def turn(self, *, loses: bool) -> None:
        """Do a turn, and commit it, or lose it."""
        with self.envelope.server_mode(self.session, provider="server", reason="test"):
            self.is_done = next(self.run, None) is None
        self.session.rollback() if loses else self.session.commit()


@pytest.mark.parametrize(
    "seed", [0, 2, 7, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(10, 60))]
)
def test_no_interleaving_loses_a_row_or_lets_a_value_in_twice(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two processes with caches of different ages read and write between all turns of three operators."""
    chance, clock = random.Random(seed), Clock(monkeypatch)
    desk, twin = one_desk(sqlite_engine), dict[int, tuple[str, str]]()
    processes = [Process(sqlite_engine, desk, twin) for _ in range(2)]
    for _ in range(6):
        processes[0].write(chance)
    indexes = (Contact.email_index, Contact.email_index, Contact.town_index)
    operators = [Operator(sqlite_engine, index) for index in indexes]
    while at_work := [one for one in operators if not one.is_done]:
        doing = chance.random()
        if doing < 0.35:
            chance.choice(processes).write(chance)
        elif doing < 0.5:
            chance.choice(processes).read()
        elif doing < 0.6:
            clock.sleep(chance.choice([0.5, 3, 20]))
        else:
            chance.choice(at_work).turn(loses=chance.random() < 0.1)
    for one in processes:
        one.read()

    assert states(sqlite_engine) == [(1, "destroyed"), (2, "active")]
    assert states(sqlite_engine, "contacts.town_index") == [(1, "destroyed"), (2, "active")]
    assert guards(sqlite_engine) == 0


@pytest.mark.thorough
def test_threads_write_and_read_during_rotations(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real time: three processes write the same values at once, and read them, while two operators rotate."""
    for module in (index_keys, index_rotation):
        monkeypatch.setattr(module, "FRESH_SECONDS", 0.4)
    monkeypatch.setattr(index_rotation, "A_STATEMENT", 0.4)
    desk, ends = one_desk(postgres_engine), Event()
    index, values = Contact.email_index, [f"{number}@example.org" for number in range(40)]
    with working(postgres_engine, new_process()) as session:
        session.add(Contact(desk_id=desk, email=values[0]))
        session.commit()

    def work(seed: int) -> int:
        chance, process, count = random.Random(seed), new_process(), 0
        while not ends.is_set():
            email = chance.choice(values)
            with working(postgres_engine, process) as session:
                found = session.scalars(select(Contact).where(Contact.email == email)).all()
                assert len(found) <= 1
                try:
                    if found and chance.random() < 0.5:
                        session.execute(delete(Contact).where(Contact.id == found[0].id))
                    elif found:
                        assert found[0].email == email
                        found[0].email = chance.choice(values)
                    else:
                        session.add(Contact(desk_id=desk, email=email))
                    session.commit()
                    count += 1
                except (IntegrityError, StaleDataError):
                    session.rollback()
        return count

    with ThreadPoolExecutor(5) as threads:
        workers = [threads.submit(work, seed) for seed in range(3)]
        try:
            for _ in range(2):
                runs = [threads.submit(rotate, postgres_engine, index, batch=7) for _ in range(2)]
                assert all(one.result().is_done for one in runs)
        finally:
            ends.set()
        assert min(one.result() for one in workers) > 10
    with working(postgres_engine, new_process()) as session:
        stored = list(session.scalars(select(Contact.email)))
        for email in values:
            found = session.scalars(select(Contact.email).where(Contact.email == email)).all()
            assert found == [one for one in stored if one == email]

    assert len(set(stored)) == len(stored)
    assert guards(postgres_engine) == 0


def test_rows_of_locked_owners_keep_both_keys(engine: Engine) -> None:
    """What no key here opens is counted, found under either key, and moved by its owner's next write, or by
    a later run."""
    desk = one_desk(engine)
    with working(engine, new_process()) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org"))
        session.add(Contact(desk_id=desk, email="ben@example.org"))
        session.commit()
    operator = new_process()
    with Session(engine) as session:
        turns = []
        for so_far in operator.rotate_index(session, Contact.email_index, alone=True):
            session.commit()
            turns.append(so_far)

    assert turns[-1].pending == 2
    assert not turns[-1].is_done
    assert states(engine) == [(1, "active"), (2, "next")]

    with working(engine, process := new_process()) as session:
        ada = session.scalars(select(Contact).where(Contact.email == "ada@example.org")).one()
        ada.email = "new@example.org"
        session.commit()

        assert guards(engine) == 1
        assert rotate(engine, Contact.email_index, process, alone=True).is_done
        found = session.scalars(
            select(Contact.email).where(Contact.email.in_(["new@example.org", VALUES[1]]))
        )
        assert sorted(found) == ["ben@example.org", "new@example.org"]
    assert states(engine) == [(1, "destroyed"), (2, "active")]


def test_a_transaction_that_goes_on_stops_the_next_step(postgres_engine: Engine) -> None:
    """A row that was written before the rotation and is not committed would have the old key's tag alone."""
    desk, old = one_desk(postgres_engine), new_process()
    with working(postgres_engine, old) as first:
        first.add(Contact(desk_id=desk, email="ben@example.org"))
        first.commit()
        first.add(Contact(desk_id=desk, email="ada@example.org"))
        first.flush()
        operator = Operator(postgres_engine, Contact.email_index, alone=True)
        for _ in range(4):
            operator.turn(loses=False)

        assert states(postgres_engine) == [(1, "active"), (2, "next")]

        first.commit()
    while not operator.is_done:
        operator.turn(loses=False)
    with working(postgres_engine, new_process()) as session:
        assert session.scalars(select(Contact.email).where(Contact.email == "ada@example.org")).all()
    assert states(postgres_engine) == [(1, "destroyed"), (2, "active")]


@pytest.mark.parametrize("updates", [True, False])
def test_an_upsert_finds_the_row_at_each_step(engine: Engine, updates: bool) -> None:
    """A row that conflicts by its index is found, whichever key its tag is under."""
    upsert: Any = postgresql_insert if engine.dialect.name == "postgresql" else sqlite_insert
    desk, process = one_desk(engine), new_process()
    rows = [{"desk_id": desk, "email": f"{number}@example.org"} for number in range(3)]
    statement = upsert(Contact)
    if updates:
        sets = {name: statement.excluded[name] for name in ("email", "town", "desk_id")}
        statement = statement.on_conflict_do_update(index_elements=[Contact.email_index], set_=sets)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=["email_index"])
    with working(engine, process) as session:
        session.execute(insert(Contact), rows)
        session.commit()
        operator = Operator(engine, Contact.email_index, alone=True)
        seen = set()
        while not operator.is_done:
            operator.turn(loses=False)
            process.policy.index_keys.forget_all()
            seen.add(tuple(states(engine)))
            session.execute(statement, rows)
            session.commit()
            assert session.scalar(select(func.count(Contact.id))) == 3
    with working(engine, new_process()) as session:
        for row in rows:
            assert session.scalars(select(Contact.id).where(Contact.email == row["email"])).one()
    assert len(seen) == 5


def test_an_old_snapshot_is_searched_by_its_own_keys(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that sees the rows of before a rotation finds them, and may not write by the old key."""
    monkeypatch.setattr(server_keys, "_A_MOMENT", 0.0)
    desk, process = one_desk(postgres_engine), new_process()
    with working(postgres_engine, process) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org"))
        session.commit()
        repeatable = postgres_engine.execution_options(isolation_level="REPEATABLE READ")
        with working(repeatable, process) as old:
            old.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            assert old.scalars(select(func.count(Contact.id))).one() == 1
            rotate(postgres_engine, Contact.email_index, alone=True)
            process.policy.index_keys.forget_all()
            session.scalars(select(Contact.id).where(Contact.email == "ada@example.org")).one()
            session.rollback()

            assert old.scalars(select(Contact.email).where(Contact.email == "ada@example.org")).all() == [
                "ada@example.org"
            ]
            old.add(Contact(desk_id=desk, email="ben@example.org"))
            with pytest.raises(OperationalError) as raised:
                old.flush()
            assert should_retry(raised.value)


def test_a_writer_who_holds_the_keys_goes_first(
    postgres_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction with an older snapshot locks the rows of the keys, and then the table: a rotation that
    has the table by then lets go of it, and neither ends in a deadlock."""
    monkeypatch.setattr(server_keys, "_A_MOMENT", 0.0)
    desk, process = one_desk(postgres_engine), new_process()
    with working(postgres_engine, process) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org"))
        session.commit()
    rotate(postgres_engine, Contact.email_index, alone=True)
    has_keys, has_table = Event(), Event()

    @event.listens_for(postgres_engine, "after_cursor_execute")
    def stop(connection: Any, cursor: Any, sql: str, *_: Any) -> None:
        if "FOR SHARE" in sql and "contacts_indexkey" in sql:
            has_keys.set()
            assert has_table.wait(10)
        elif sql.startswith("LOCK TABLE"):
            has_table.set()

    def write() -> None:
        repeatable = postgres_engine.execution_options(isolation_level="REPEATABLE READ")
        with working(repeatable, process) as old:
            assert old.scalars(select(func.count(Contact.id))).one() == 1
            process.policy.index_keys.forget_all()
            old.add(Contact(desk_id=desk, email="ben@example.org"))
            old.commit()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        assert has_keys.wait(10)
        assert rotate(postgres_engine, Contact.email_index, alone=True).is_done
        writing.result()
    with working(postgres_engine, new_process()) as session:
        assert session.scalars(select(Contact.id).where(Contact.email == "ben@example.org")).one()


def test_a_join_goes_by_the_indexes(engine: Engine) -> None:
    """What a join compares during a rotation alone costs no scan outside of it."""
    desk = one_desk(engine)
    join = select(Contact.id).join(Other, Contact.town == Other.town)
    with working(engine, new_process()) as session:
        session.execute(insert(Contact), [{"desk_id": desk, "town": str(number)} for number in range(300)])
        explained: list[str] = []

        def explain(connection: Any, cursor: Any, sql: str, parameters: Any, *_: Any) -> tuple[str, Any]:
            if " JOIN " in sql:
                sql = ("EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN ") + sql
                explained.append(sql)
            return sql, parameters

        event.listen(session.connection(), "before_cursor_execute", explain, retval=True)
        plan = " ".join(str(row) for row in session.connection().execute(join))

    assert len(explained) == 1
    if engine.dialect.name == "sqlite":
        assert plan.count("SCAN") == 1
    else:
        assert "Nested Loop" not in plan
        assert "guard" not in plan


def test_a_relationship_by_tags_is_never_followed_to_half_of_its_rows(sqlite_engine: Engine) -> None:
    """It gives all rows, or is refused while rows are moved."""
    desk, process, refused = one_desk(sqlite_engine), new_process(), 0
    with working(sqlite_engine, process) as session:
        session.add_all(Contact(desk_id=desk, town="Rome") for _ in range(5))
        session.commit()
        operator = Operator(sqlite_engine, Contact.town_index, alone=True)
        while not operator.is_done:
            operator.turn(loses=False)
            process.policy.index_keys.forget_all()
            session.expire_all()
            one = session.scalars(select(Contact)).first()
            assert one is not None
            try:
                assert len(one.neighbours) == 5
            except StatementRefusedError:
                refused += 1
            session.rollback()

    assert refused > 0


def test_who_is_shredded_leaves_no_guard(sqlite_engine: Engine) -> None:
    """Neither the tags under the key that is in use stay, nor those under the next."""
    desk, process = one_desk(sqlite_engine), new_process()
    with working(sqlite_engine, process) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org", town="Rome"))
        session.commit()
    operator = Operator(sqlite_engine, Contact.email_index, alone=True)
    while guards(sqlite_engine) == 0:
        operator.turn(loses=False)
    with Session(sqlite_engine) as session:
        process.shred(session, session.get_one(Desk, desk), reason="test", keep_row=True)
        session.commit()

    c = Contact.__table__.c
    assert raw(sqlite_engine, select(c.email_index, c.email_index__guard, c.town_index)) == [
        (None, None, None)
    ]


def test_a_turn_that_is_not_committed_is_refused(sqlite_engine: Engine) -> None:
    """The next step is for processes that can see the last."""
    desk, process = one_desk(sqlite_engine), new_process()
    with working(sqlite_engine, process) as session:
        session.add(Contact(desk_id=desk, email="ada@example.org"))
        session.commit()
        run = process.rotate_index(session, Contact.email_index, alone=True)
        next(run)
        with pytest.raises(ConfigurationError, match="commit at each turn"):
            next(run)


@pytest.mark.parametrize("index", [Contact.email, Contact.id, "email_index", None])
def test_only_an_index_of_the_server_is_rotated(index: Any) -> None:
    """Everything else is refused before the loop."""
    with pytest.raises(ConfigurationError, match="scope 'server'"):
        new_process().rotate_index(Session(), index)


def test_an_index_without_a_row_is_rotated_to_nothing(sqlite_engine: Engine) -> None:
    """No key was made yet: there is nothing to do."""
    one_desk(sqlite_engine)
    with working(sqlite_engine, process := new_process()) as session:
        assert list(process.rotate_index(session, Contact.email_index)) == []


async def test_asynchronously(async_engine: AsyncEngine) -> None:
    """The asynchronous face does the same."""
    process = new_process()
    envelope = AsyncEnvelope(process)
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        desk = Desk()
        await envelope.enroll(session, desk, provider="server")
        await session.commit()
        with envelope.server_mode(session, provider="server", reason="test"):
            session.add(Contact(desk_id=desk.id, email="ada@example.org"))
            await session.commit()
            assert await envelope.open_index_keys(session, Base) == 2
            turns = []
            async for so_far in envelope.rotate_index(session, Contact.email_index, alone=True):
                await session.commit()
                turns.append(so_far)
            found = select(Contact.email).where(Contact.email == "ada@example.org")
            assert (await session.scalars(found)).one() == "ada@example.org"

    assert turns[-1].is_done
    assert (turns[-1].filled, turns[-1].moved, turns[-1].pending) == (1, 1, 0)
