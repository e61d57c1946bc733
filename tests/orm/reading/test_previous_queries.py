"""Statements on columns whose values are being moved: each gives what both columns say, or is refused where
it could only give None for a value that is there."""

# ruff: noqa: N806 - the classes are those of a step, and are found in it

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, exists, func, insert, select, type_coerce, union_all, update
from sqlalchemy.orm import Bundle, Session, aliased, joinedload, load_only, undefer

from sqlalchemy_envelope import (
    LockedError,
    PlaintextRefusedError,
    StatementRefusedError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from tests.orm import models as plain_models
from tests.orm.models import statements_sent
from tests.orm.previous_models import SECRET, Moving, envelope, start

pytestmark = pytest.mark.any_database

PENDING, NOTHING, WHOLE = 7, 8, 9


def three_rows(engine: Engine, policy: Any) -> Moving:
    """A pending note, one without a value, and an encrypted one with a value beside it that is not its."""
    moving = start(engine, policy)
    moving.old("INSERT INTO notes (id, user_id, body) VALUES (7, 1, 'old')")
    moving.old("INSERT INTO notes (id, user_id) VALUES (8, 1)")
    with moving.unlocked() as session:
        moving.note(session, id=9, body="new")
    moving.old("UPDATE notes SET body = 'beside' WHERE id = 9")
    return moving


@pytest.fixture(params=["both", "read"])
def anywhere(request: pytest.FixtureRequest, engine: Engine) -> Moving:
    """The steps that read the previous column, on SQLite and on PostgreSQL."""
    return three_rows(engine, request.param)


@pytest.fixture(params=["both", "read"])
def moving(request: pytest.FixtureRequest, sqlite_engine: Engine) -> Moving:
    """The steps that read the previous column, on SQLite."""
    return three_rows(sqlite_engine, request.param)


BODIES = ["old", None, "new"]


def with_labels(session: Session, m: Any) -> list[Any]:
    rows = session.execute(
        select(m.Note.id, m.Note.body.label("text"), m.Note.title).order_by(m.Note.id)
    ).all()
    assert list(rows[0]._mapping) == ["id", "text", "title"]
    return [one.text for one in rows]


def of_an_alias(session: Session, m: Any) -> list[Any]:
    alias = aliased(m.Note)
    return [one.body for one in session.execute(select(alias.body, alias.id).order_by(alias.id))]


def beside_the_object(session: Session, m: Any) -> list[Any]:
    rows = session.execute(select(m.Note, m.Note.body).order_by(m.Note.id)).all()
    assert [one.Note.body for one in rows] == [one.body for one in rows]
    return [one.body for one in rows]


def of_two_entities(session: Session, m: Any) -> list[Any]:
    statement = select(m.User.phone, m.Note.body).join(m.Note.user).order_by(m.Note.id)
    rows = session.execute(statement).all()
    assert {one.phone for one in rows} == {None}
    return [one.body for one in rows]


def with_loader_options(session: Session, m: Any) -> list[Any]:
    statement = select(m.Note).options(load_only(m.Note.body), joinedload(m.Note.user)).order_by(m.Note.id)
    return [one.body for one in session.scalars(statement.limit(3)).unique()]


def of_a_subquery(session: Session, m: Any) -> list[Any]:
    inner = select(m.Note.id, m.Note.body.label("e"), m.Note.body_encrypted__previous.label("p")).subquery()
    rows = session.execute(select(inner.c.id, inner.c.e, inner.c.p).order_by(inner.c.id)).all()
    return [one.e if one.e is not None else one.p for one in rows]


READS: dict[str, Any] = {
    "scalars": lambda session, m: session.scalars(select(m.Note.body).order_by(m.Note.id)).all(),
    "rows": lambda session, m: [one for (one,) in session.execute(select(m.Note.body).order_by(m.Note.id))],
    "query": lambda session, m: [one for (one,) in session.query(m.Note.body).order_by(m.Note.id)],
    "query, two": lambda session, m: [
        one.body for one in session.query(m.Note.id, m.Note.body).order_by("id")
    ],
    "labels": with_labels,
    "alias": of_an_alias,
    "object": beside_the_object,
    "two entities": of_two_entities,
    "options": with_loader_options,
    "yield_per": lambda session, m: session.scalars(
        select(m.Note.body).order_by(m.Note.id).execution_options(yield_per=1)
    ).all(),
    "filtered": lambda session, m: session.scalars(
        select(m.Note.body).filter_by(user_id=1).order_by(m.Note.id).limit(3)
    ).all(),
    "core, both": lambda session, m: [
        one[0] if one[0] is not None else one[1]
        for one in session.execute(
            select(m.Note.__table__.c.body_encrypted, m.Note.__table__.c.body_encrypted__previous).order_by(
                m.Note.__table__.c.id
            )
        )
    ],
    "bundle of both": lambda session, m: [
        one.b.body or one.b.body_encrypted__previous
        for one in session.execute(
            select(Bundle("b", m.Note.body, m.Note.body_encrypted__previous)).order_by(m.Note.id)
        )
    ],
    "subquery of both": of_a_subquery,
}


@pytest.mark.parametrize("form", READS)
def test_reads(anywhere: Moving, form: str) -> None:
    """Each form gives the encrypted value, else the previous one, under the name it always had."""
    with anywhere.unlocked() as session:
        assert list(READS[form](session, anywhere.m)) == BODIES


def test_unique_first_and_one(moving: Moving) -> None:
    """What is done with a result works as with any column."""
    Note = moving.m.Note
    with moving.unlocked() as session:
        assert session.execute(select(Note.body).where(Note.id == PENDING)).scalar_one() == "old"
        assert session.scalar(select(Note.body).where(Note.id == WHOLE)) == "new"
        assert len(session.scalars(select(Note.body)).unique().all()) == 3
        assert session.query(Note.body).filter(Note.id == PENDING).scalar() == "old"
        assert session.execute(select(Note.id, Note.body).order_by(Note.id)).first() == (PENDING, "old")


def test_locked(moving: Moving) -> None:
    """Locked, the first step reads the previous column and the second hands out what is sealed."""
    Note = moving.m.Note
    with moving.locked() as session:
        read = session.scalars(select(Note.body).order_by(Note.id)).all()

    assert read[:2] == ["old", None]
    if moving.policy == "both":
        assert read[2] == "beside"
    else:
        assert isinstance(read[2], Sealed)


def test_refused_values(sqlite_engine: Engine) -> None:
    """Under the last policy a column read is an error if a row has nothing but a previous value."""
    moving = three_rows(sqlite_engine, "refuse")
    Note = moving.m.Note
    with moving.unlocked() as session:
        assert session.scalars(select(Note.body).where(Note.id > PENDING).order_by(Note.id)).all() == [
            None,
            "new",
        ]
        with pytest.raises(PlaintextRefusedError) as caught:
            session.scalars(select(Note.body)).all()
        session.scalar(select(func.count(Note.body)))

    assert "old" not in str(caught.value)


# NULL


def of_table(m: Any) -> Any:
    return m.Note.__table__.c.body_encrypted


NULLS: dict[str, Any] = {
    "is_": lambda m: (m.Note, m.Note.body.is_(None)),
    "==": lambda m: (m.Note, m.Note.body == None),  # noqa: E711 - SQLAlchemy's operator
    "not is_not": lambda m: (m.Note, ~m.Note.body.is_not(None)),
    "alias": lambda m: ((alias := aliased(m.Note)), alias.body.is_(None)),
    "table": lambda m: (m.Note, of_table(m).is_(None)),
    "label": lambda m: (m.Note, m.Note.body.label("b").is_(None)),
    "null()": lambda m: (m.Note, m.Note.body.is_(sa.null())),
}


@pytest.mark.parametrize("form", NULLS)
def test_null_tests(anywhere: Moving, form: str) -> None:
    """A row holds nothing if both columns do, and something if one does; on aliases and tables too."""
    entity, nothing = NULLS[form](anywhere.m)
    with anywhere.locked() as session:
        assert session.scalars(select(entity.id).where(nothing)).all() == [NOTHING]
        assert session.scalars(select(entity.id).filter_by(body=None)).all() == [NOTHING]
        rest = session.scalars(select(entity.id).where(~nothing).order_by(entity.id)).all()
        assert rest == [PENDING, WHOLE]


def test_not_null(anywhere: Moving) -> None:
    """`is_not(None)` and `!= None`, in a relationship's `any()` and in a DELETE."""
    m = anywhere.m
    with anywhere.locked() as session:
        for test in (m.Note.body.is_not(None), m.Note.body != None):  # noqa: E711 - SQLAlchemy's operator
            assert session.scalars(select(m.Note.id).where(test).order_by(m.Note.id)).all() == [
                PENDING,
                WHOLE,
            ]
            assert session.scalar(select(func.count()).select_from(m.Note).where(test)) == 2
        assert session.scalars(select(m.User.id).where(m.User.notes.any(m.Note.body.is_not(None)))).all() == [
            1
        ]
        inner = select(m.Note).subquery()
        names = [name for name in inner.c.keys() if name in ("body", "body_encrypted")]  # noqa: SIM118
        assert session.scalars(select(inner.c.id).where(inner.c[names[0]].is_(None))).all() == [NOTHING]
        session.execute(sa.delete(m.Note).where(m.Note.body.is_(None)))
        assert session.scalars(select(m.Note.id).order_by(m.Note.id)).all() == [PENDING, WHOLE]


# Refused


REFUSED: dict[str, Any] = {
    "count": lambda m: select(func.count(m.Note.body)),
    "count, filtered": lambda m: select(m.Note.id, func.count(m.Note.body).over()),
    "table": lambda m: select(of_table(m)),
    "subquery": lambda m: select(select(m.Note.body).subquery()),
    "cte": lambda m: select(select(m.Note.id, m.Note.body).cte()),
    "scalar subquery": lambda m: select(
        m.User.id, select(m.Note.body).where(m.Note.user_id == m.User.id).limit(1).scalar_subquery()
    ),
    "union": lambda m: union_all(select(m.Note.body), select(m.Note.body)),
    "bundle": lambda m: select(Bundle("b", m.Note.id, m.Note.body)),
    "insert returning": lambda m: insert(m.Note).values(user_id=1, body="x").returning(m.Note.body),
    "update returning": lambda m: update(m.Note).values(title="x").returning(m.Note.id, m.Note.body),
    "column of a subquery": lambda m: (
        select(select(m.Note).subquery().c.body_encrypted)
        if "body_encrypted" in select(m.Note).subquery().c
        else select(select(m.Note).subquery().c.body)
    ),
    "another's previous column": lambda m: select(
        of_table(m), (other := m.Note.__table__.alias()).c.body_encrypted__previous
    ).where(other.c.id == m.Note.__table__.c.id),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused(anywhere: Moving, form: str) -> None:
    """What could only give None for a pending value is refused, each time, and nothing is sent."""
    with anywhere.unlocked() as session:
        for _ in range(2):
            with statements_sent(anywhere.engine) as sent, pytest.raises(StatementRefusedError):
                session.execute(REFUSED[form](anywhere.m)).all()
            assert sent == []


def test_refused_on_a_connection(anywhere: Moving) -> None:
    """Without a session there is nobody to merge: both columns, or none."""
    table = anywhere.m.Note.__table__
    with anywhere.engine.connect() as connection:
        with pytest.raises(StatementRefusedError):
            connection.execute(select(table.c.body_encrypted))
        rows = connection.execute(select(table).where(table.c.id == PENDING)).all()
        assert rows[0].body_encrypted is None
        assert rows[0].body_encrypted__previous == "old"


def test_what_stays_allowed(anywhere: Moving) -> None:
    """EXISTS, counting rows, raw bytes, copying both columns, and objects given back by a statement."""
    m = anywhere.m
    Note, table = m.Note, m.Note.__table__
    with anywhere.unlocked() as session:
        assert session.scalar(select(exists(select(Note.body).where(Note.id == WHOLE))))
        assert session.query(Note).count() == 3
        assert session.scalar(select(func.count()).select_from(Note)) == 3
        raw = session.scalars(select(type_coerce(Note.body, sa.LargeBinary)).where(Note.id == WHOLE)).one()
        assert bytes(raw)[:1] == b"\x01"
        given = session.scalars(
            update(Note).where(Note.id == PENDING).values(title="x").returning(Note),
            execution_options={"synchronize_session": False},
        ).one()
        assert given.body == "old"
        names = ["user_id", "body_encrypted", "body_encrypted__previous"]
        copy = select(*(table.c[name] for name in names))
        session.execute(insert(table).from_select(names, copy))
        assert sorted(str(one) for one in session.scalars(select(Note.body))) == sorted(map(str, BODIES * 2))
        with pytest.raises(StatementRefusedError):
            session.execute(
                insert(table).from_select(names[:2], select(table.c.user_id, table.c.body_encrypted))
            )


def test_options_of_the_application(anywhere: Moving) -> None:
    """The application's own `undefer` and `load_only` go with ours."""
    Note = anywhere.m.Note
    with anywhere.locked() as session:
        statement = select(Note).options(load_only(Note.id), undefer(Note.body)).where(Note.id == PENDING)
        assert session.scalars(statement).one().body == "old"
        session.expunge_all()
        alias = aliased(Note)
        statement = select(alias).options(load_only(alias.body)).where(alias.id == PENDING)
        with statements_sent(anywhere.engine) as sent:
            assert session.scalars(statement).one().body == "old"
        assert len(sent) == 1


def test_a_column_and_the_locks_of_several_owners(moving: Moving) -> None:
    """Column reads with several owners unlocked: what is pending comes from nobody's key."""
    m = moving.m
    with moving.unlocked() as session:
        ben = m.User(email="ben@example.org")
        with envelope.enroll(session, ben, secret=SECRET):
            session.commit()
            rows = session.execute(select(m.Note.id, m.Note.user_id, m.Note.body).order_by(m.Note.id)).all()
            assert [one.body for one in rows] == BODIES


def test_tables_without_previous_columns_are_as_before(moving: Moving) -> None:
    """A locked value of another table's column is still an error to decrypt, and its count is allowed."""
    engine = sa.create_engine("sqlite://")
    enforce_foreign_keys(engine)
    plain_models.Base.metadata.create_all(engine)
    with Session(engine) as session:
        user = plain_models.User(email="a")
        with plain_models.envelope.enroll(session, user, secret=SECRET):
            session.add(plain_models.Note(user=user, body="x"))
            session.commit()
            assert session.scalar(select(func.count(plain_models.Note.body))) == 1
            assert session.scalars(select(plain_models.Note.body)).all() == ["x"]
        session.expire_all()
        with pytest.raises(LockedError):
            session.scalars(select(plain_models.Note)).one().body  # noqa: B018 - reading it is the point
