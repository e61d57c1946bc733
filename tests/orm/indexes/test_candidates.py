"""Rows that an index gives as candidates are compared after decryption, or the statement is refused."""

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    String,
    TypeDecorator,
    case,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    contains_eager,
    joinedload,
    load_only,
    mapped_column,
    selectinload,
    with_loader_criteria,
)

from sqlalchemy_envelope import (
    AsyncEnvelope,
    BlindIndex,
    DecryptionError,
    EncryptedType,
    Envelope,
    KeyOwner,
    LockedError,
    StatementRefusedError,
    ValueEncodingError,
)
from tests.orm.indexes.range_models import SECRET, Base, Patient, Visit, new_envelope, opened, visits
from tests.prepared import prepared

CITIES = [f"city {number % 9}" for number in range(700)]
WANTED = [number + 1 for number, city in enumerate(CITIES) if city == "city 3"]


@pytest.fixture
def many(sqlite_engine: Engine) -> Iterator[Session]:
    """A session of a patient with 700 visits in nine cities, whose tags have two bits."""
    envelope = new_envelope()
    patient = prepared(
        sqlite_engine,
        "many visits",
        lambda: visits(sqlite_engine, envelope, *({"city": one, "score": 30} for one in CITIES)),
    )
    with opened(sqlite_engine, envelope, patient) as session:
        yield session


def _ids(rows: Any) -> list[int]:
    return [row.id for row in rows]


FETCHES: list[Callable[[Session, Any], list[int]]] = [
    lambda session, wanted: _ids(session.scalars(wanted).all()),
    lambda session, wanted: _ids(session.execute(wanted).scalars()),
    lambda session, wanted: _ids(session.scalars(wanted.execution_options(yield_per=7))),
    lambda session, wanted: _ids(
        session.scalars(wanted.execution_options(stream_results=True, max_row_buffer=5))
    ),
    lambda session, wanted: [one.id for part in session.scalars(wanted).partitions(10) for one in part],
    lambda session, wanted: _ids(session.query(Visit).filter_by(city="city 3").order_by(Visit.id)),
    lambda session, wanted: _ids(
        session.connection()
        .execution_options(stream_results=True)
        .execute(
            select(Visit.__table__).where(Visit.__table__.c.city == "city 3").order_by(Visit.__table__.c.id)
        )
    ),
]


@pytest.mark.parametrize("number", range(len(FETCHES)))
def test_candidates_are_dropped_however_they_are_fetched(many: Session, number: int) -> None:
    """Each way to fetch gives the rows of the value, all of them and no other."""
    wanted = select(Visit).where(Visit.city == "city 3").order_by(Visit.id)

    assert FETCHES[number](many, wanted) == WANTED


def test_rows_are_fetched_one_by_one_and_some_at_a_time(many: Session) -> None:
    """No fetch ends early because all rows of it were dropped, and `first`, `one` and `fetchmany` count what
    is left."""
    wanted = select(Visit.id, Visit.city).where(Visit.city == "city 3").order_by(Visit.id)
    one_by_one = many.execute(wanted)
    some = many.execute(wanted)

    assert [row.id for row in iter(one_by_one.fetchone, None)] == WANTED
    assert WANTED[:20] == _ids(some.fetchmany(20))
    assert WANTED[20:] == _ids(some.fetchall())
    assert many.execute(wanted).first() == (4, "city 3")
    assert many.scalars(select(Visit).where(Visit.city == "nowhere")).one_or_none() is None
    assert many.scalars(select(Visit).where(Visit.city == "nowhere")).first() is None


async def test_candidates_are_dropped_asynchronously(async_engine: AsyncEngine) -> None:
    """An AsyncSession gives the same rows, streamed too."""
    envelope = AsyncEnvelope(new_envelope())
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        patient = Patient()
        async with envelope.enroll(session, patient, secret=SECRET):
            await session.flush()
            session.add_all([Visit(patient_id=patient.id, city=one) for one in CITIES[:300]])
            await session.commit()
            wanted = select(Visit).where(Visit.city == "city 3").order_by(Visit.id)
            expected = [one for one in WANTED if one <= 300]

            assert expected == _ids(await session.scalars(wanted))
            assert expected == [one.id async for one in await session.stream_scalars(wanted)]


def test_candidates_are_dropped_wherever_a_row_is_just_handed_over(many: Session) -> None:
    """Joins, aliases, loaders, subqueries that hand the columns on, and criteria of the session."""
    other, here = aliased(Visit), Visit.city == "city 3"
    inner = select(Visit.id, Visit.patient_id, Visit.city, Visit.city_index).subquery()
    criterion = with_loader_criteria(Visit, Visit.city == "city 3")
    patients = select(Patient).join(Patient.visits).where(here).options(contains_eager(Patient.visits))
    statements: list[tuple[Any, Callable[[Any], list[int]]]] = [
        (select(Visit).join(Visit.patient).where(here, Patient.id > 0), _ids),
        (select(other).where(other.city == "city 3"), _ids),
        (select(Patient, Visit).join(Visit).where(here), lambda rows: [row.id for row in rows]),
        (select(Visit).where(here).options(joinedload(Visit.patient)), _ids),
        (select(Visit).where(here).options(selectinload(Visit.patient)), _ids),
        (select(Visit).where((Visit.id > 0) & (here & (Visit.kind == ""))), _ids),
        (select(Visit).distinct().where(here), _ids),
        (select(Visit).from_statement(select(Visit).where(here)), _ids),
        (select(Visit).options(criterion), _ids),
    ]

    for statement, ids in statements:
        found = many.scalars(statement.execution_options(populate_existing=True)).unique().all()
        if statement.column_descriptions[0]["entity"] is Patient:
            assert len(WANTED) == len(many.execute(statement).all())
        else:
            assert sorted(ids(found)) == WANTED
    assert sorted(row.id for row in many.execute(select(inner).where(inner.c.city == "city 3"))) == WANTED
    (patient,) = many.scalars(patients.execution_options(populate_existing=True)).unique()
    assert _ids(patient.visits) == WANTED
    many.expire_all()
    many.info["city"] = "city 3"
    (patient,) = many.scalars(select(Patient).options(criterion, selectinload(Patient.visits)))
    assert _ids(patient.visits) == WANTED


HERE = Visit.city == "city 3"
IDS = select(Visit.id).where(HERE)
REFUSED: dict[str, Callable[[], Any]] = {
    "the value is left out": lambda: IDS,
    "the value is not loaded": lambda: select(Visit).where(HERE).options(load_only(Visit.kind)),
    "limit": lambda: select(Visit).where(HERE).limit(1),
    "offset": lambda: select(Visit).where(HERE).offset(1),
    "fetch": lambda: select(Visit).where(HERE).fetch(1),
    "count": lambda: select(func.count()).select_from(Visit).where(HERE),
    "count of a subquery": lambda: select(func.count()).select_from(select(Visit).where(HERE).subquery()),
    "window": lambda: select(Visit, func.row_number().over(order_by=Visit.id)).where(HERE),
    "aggregate": lambda: select(Visit.city, Visit.patient_id, func.max(Visit.id)).where(HERE),
    "group": lambda: select(Visit.id, Visit.patient_id).where(HERE).group_by(Visit.id),
    "or": lambda: select(Visit).where(or_(HERE, Visit.id == 1)),
    "not": lambda: select(Visit).where(~HERE),
    "case": lambda: select(Visit).where(case((HERE, 1), else_=0) == 1),
    "column": lambda: select(Visit, HERE.label("here")),
    "twice": lambda: select(Visit).where(HERE, exists(select(Patient.id).where(HERE))),
    "exists": lambda: select(Patient).where(exists(IDS.where(Visit.patient_id == Patient.id))),
    "any": lambda: select(Patient).where(Patient.visits.any(HERE)),
    "in": lambda: select(Visit).where(Visit.id.in_(IDS)),
    "scalar subquery": lambda: select(Patient.id, IDS.scalar_subquery()),
    "on": lambda: select(Visit).join(Visit.patient.and_(HERE)),
    "outer on": lambda: select(Patient, Visit).outerjoin(Patient.visits.and_(HERE)),
    "joined criterion": lambda: select(Patient).options(joinedload(Patient.visits.and_(HERE))),
    "union": lambda: union_all(select(Visit).where(HERE), select(Visit).where(Visit.id == 1)),
    "cte": lambda: select(aliased(Visit, select(Visit).where(HERE).cte())),
    "update": lambda: update(Visit).where(HERE).values(kind="x"),
    "update, fetched": lambda: (
        update(Visit).where(HERE).values(kind="x").execution_options(synchronize_session="fetch")
    ),
    "delete": lambda: delete(Visit).where(HERE),
    "insert": lambda: insert(Patient).from_select(["id"], select(literal(77)).where(HERE)),
    "for other values": lambda: select(Visit).where(Visit.city != "city 3"),
    "for none of these": lambda: select(Visit).where(Visit.city.not_in(["city 3"])),
    "between columns": lambda: select(Visit).join(aliased(Visit), Visit.city == aliased(Visit).city),
}


@pytest.mark.parametrize("what", REFUSED)
def test_candidates_are_refused_where_the_database_would_use_them(many: Session, what: str) -> None:
    """Wherever the database would count, limit, combine or change candidates, the statement is refused, at
    its second execution too, and nothing is changed."""
    for _ in range(2):
        with pytest.raises(StatementRefusedError, match=r"Visit\.city|visits\.city"):
            many.execute(REFUSED[what]())

    assert len(CITIES) == many.scalar(select(func.count()).select_from(Visit).where(Visit.kind == ""))


def test_a_query_says_what_it_does_not_do(many: Session) -> None:
    """`Query.first()`, `count()` and `exists()` are refused with the line to write."""
    query = many.query(Visit).filter(Visit.city == "city 3")

    assert len(WANTED) == len(query.all())
    for refused in (query.first, query.count, lambda: query.update({"kind": "x"}), query.delete):
        with pytest.raises(StatementRefusedError, match=r"`Visit\.id\.in_\(\[\.\.\.\]\)`"):
            refused()


def test_a_compiled_statement_is_used_with_and_without_candidates(many: Session) -> None:
    """What is looked for is not a part of the statement that SQLAlchemy keeps: each execution has its own."""
    for wanted in ("city 3", "city 4", "nowhere"):
        found = many.scalars(select(Visit).where(Visit.city == wanted)).all()

        assert CITIES.count(wanted) == len(found)
    both = select(Visit).where(Visit.city == "city 3", Visit.city.in_(["city 4", "city 3"]))
    assert sorted(_ids(many.scalars(both))) == WANTED
    assert many.scalars(select(Visit).where(Visit.city == "city 4", Visit.city.in_(["city 3"]))).all() == []


def test_a_candidate_of_a_locked_owner_is_an_error(sqlite_engine: Engine) -> None:
    """Whether a locked row has the value cannot be told: that is no wrong row and no missing row. The error
    says what to do, and no value."""
    envelope = new_envelope()
    ada = visits(sqlite_engine, envelope, {"city": "Rome"}, {"city": None})
    ben = visits(sqlite_engine, envelope, {"city": "Rome"})
    wanted = select(Visit).where(Visit.city == "Rome")
    with opened(sqlite_engine, envelope, ada) as session:
        with pytest.raises(LockedError, match=r"Visit\.city that is looked for") as raised:
            session.scalars(wanted).all()

        assert "Rome" not in str(raised.value)
        assert [ada] == [one.patient_id for one in session.scalars(wanted.where(Visit.patient_id == ada))]
        table = Visit.__table__
        with pytest.raises(LockedError):
            session.execute(select(table.c.city).where(table.c.city == "Rome")).all()
    with opened(sqlite_engine, envelope, ada, ben) as session:
        assert [ada, ben] == [one.patient_id for one in session.scalars(wanted.order_by(Visit.id))]
        assert session.scalars(select(Visit.city).where(Visit.city == "Rome")).all() == ["Rome", "Rome"]
        with pytest.raises(LockedError, match="Select the row's owner beside it"):
            session.connection().execute(select(table.c.city).where(table.c.city == "Rome")).all()
    with Session(sqlite_engine) as session:
        envelope.attach(session)
        with pytest.raises(LockedError):
            session.scalars(wanted).all()


def test_a_candidate_that_was_altered_is_an_error(sqlite_engine: Engine) -> None:
    """A candidate whose value is not what was written there is neither a match nor none."""
    envelope = new_envelope()
    patient = visits(sqlite_engine, envelope, {"city": "Rome"}, {"city": "Oslo"})
    with sqlite_engine.begin() as connection:
        found = connection.exec_driver_sql("SELECT city_index, city FROM visits ORDER BY id").all()
        altered = (found[0][0], found[1][1][:-1] + bytes([found[1][1][-1] ^ 1]))
        connection.exec_driver_sql("UPDATE visits SET city_index = ?, city = ? WHERE id = 2", altered)
    with opened(sqlite_engine, envelope, patient) as session, pytest.raises(DecryptionError):
        session.scalars(select(Visit).where(Visit.city == "Rome")).all()


def test_a_row_whose_value_was_shredded_has_no_value(sqlite_engine: Engine) -> None:
    """Where the owner's key was destroyed, the value is gone, and equals nothing."""
    envelope: Envelope = new_envelope()
    ada = visits(sqlite_engine, envelope, {"city": "Rome"})
    ben = visits(sqlite_engine, envelope, {"city": "Rome"})
    with Session(sqlite_engine) as session:
        envelope.shred(session, session.get_one(Patient, ben), reason="test")
        session.commit()
    with opened(sqlite_engine, envelope, ada) as session:
        found = session.scalars(select(Visit).where(Visit.city == "Rome")).all()

        assert [ada] == [one.patient_id for one in found]


def test_candidates_are_dropped_where_keys_are_fetched_as_they_are_needed(sqlite_engine: Engine) -> None:
    """In server mode rows are opened ahead of the one that is fetched, and none is taken for the last."""
    envelope = new_envelope()
    patients = [visits(sqlite_engine, envelope, *({"city": one} for one in CITIES[:90])) for _ in range(2)]
    with Session(sqlite_engine) as session:
        for one in patients:
            patient = session.get_one(Patient, one)
            with envelope.unlock(session, patient, secret=SECRET) as unlocked:
                unlocked.add_provider(patient, "server")
        session.commit()
        wanted = select(Visit.id, Visit.patient_id, Visit.city).where(Visit.city == "city 3")
        with envelope.server_mode(session, reason="a test"):
            found = session.execute(wanted.order_by(Visit.id))
            one_by_one = [row.id for row in iter(found.fetchone, None)]

            assert [4 + 9 * number for number in range(20)] == one_by_one


class _Picky(TypeDecorator[str]):
    """Text that a later version of the application takes no longer."""

    impl = String
    cache_ok = True
    refuses = False

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if type(self).refuses and value == "Atlantis":
            raise ValueError(f"{value} is no city")
        return value


class _Base(DeclarativeBase):
    pass


class _Trip(KeyOwner, _Base):
    __tablename__ = "trips"
    id: Mapped[int] = mapped_column(primary_key=True)
    to: Mapped[str] = mapped_column(EncryptedType(_Picky))
    to_index: Mapped[bytes] = mapped_column(BlindIndex("to", scope="server", bits=1))


def test_a_value_that_can_be_compared_no_longer_is_an_error_that_does_not_show_it(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no match and no other value, and neither the error nor its frames have the value."""
    _Base.metadata.create_all(sqlite_engine)
    envelope = new_envelope()
    with Session(sqlite_engine) as session:
        trip = _Trip(to="Atlantis")
        with envelope.enroll(session, trip, secret=SECRET):
            session.commit()
            monkeypatch.setattr(_Picky, "refuses", True)
            twenty = [f"city {number}" for number in range(20)]  # one tag of two is that of the value
            with pytest.raises(ValueEncodingError, match=r"'trips\.to' cannot be compared") as raised:
                session.scalars(select(_Trip.to).where(_Trip.to.in_(twenty))).all()

    shown = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "Atlantis" not in shown.replace('_Trip(to="Atlantis")', "")


def test_null_is_no_candidate(many: Session) -> None:
    """A row whose tag raw SQL left behind, and whose value is NULL, has no value that is looked for."""
    many.connection().exec_driver_sql("UPDATE visits SET city = NULL WHERE id > 4")

    assert _ids(many.scalars(select(Visit).where(Visit.city == "city 3"))) == [4]
