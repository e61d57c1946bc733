"""What would compare, sort, group or compute on ciphertext is an error of ours that says what to do
instead, and nothing is sent; what only hands values on, or asks whether they are there, works."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    LargeBinary,
    String,
    func,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import (
    Mapped,
    Session,
    aliased,
    contains_eager,
    joinedload,
    relationship,
    selectinload,
    subqueryload,
    with_loader_criteria,
)

from sqlalchemy_envelope import Sealed, StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import Base, Note, Page, User, statements_sent, unlock

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]
NOTES: Any = Note.__table__
PLAIN = "p1aintext"
Other = aliased(Note)


@pytest.fixture
def written(lite: Started) -> Started:
    """Two notes of Ada's and one of Ben's, one of them without a body; Ada stays unlocked."""
    _write(lite)
    return lite


@pytest.fixture
def written_anywhere(started: Started) -> Started:
    """The same on both databases."""
    _write(started)
    return started


def _write(started: Started) -> None:
    session = started.session
    for owner, bodies in ((started.ada, (PLAIN, None)), (started.ben, ("of ben",))):
        with unlock(session, owner):
            session.add_all([Note(user=owner, body=body, title=f"{body}"[:1]) for body in bodies])
            session.commit()
    session.expunge_all()


REFUSED: dict[str, Callable[[], Any]] = {
    "==": lambda: select(Note).where(Note.body == PLAIN),
    "== reversed": lambda: select(Note).where(sa.literal(PLAIN) == Note.body),
    "== of a column": lambda: select(Note).where(Note.title == Note.body),
    "== to a column": lambda: select(Note).where(Note.body == Note.title),
    "== of two": lambda: select(Note, Other).where(Note.body == Other.body),
    "== of a core column": lambda: select(Note).where(NOTES.c.title == NOTES.c.body),
    "!=": lambda: select(Note).where(Note.body != PLAIN),
    "in": lambda: select(Note).where(Note.body.in_([PLAIN])),
    "in subquery": lambda: select(Note).where(Note.body.in_(select(Note.title))),
    "in a subquery of it": lambda: select(Note).where(Note.title.in_(select(Note.body))),
    "not in": lambda: select(Note).where(Note.body.not_in([PLAIN])),
    "like": lambda: select(Note).where(Note.body.like("p%")),
    "ilike": lambda: select(Note).where(Note.body.ilike("p%")),
    "contains": lambda: select(Note).where(Note.body.contains("p")),
    "startswith": lambda: select(Note).where(Note.body.startswith("p")),
    "regexp": lambda: select(Note).where(Note.body.regexp_match("p")),
    "<": lambda: select(Note).where(Note.size < 3),
    "between": lambda: select(Note).where(Note.size.between(1, 3)),
    "between reversed": lambda: select(Note).where(sa.literal(1).between(Note.size, Note.size)),
    "is true": lambda: select(Note).where(Note.size.is_(True)),
    "is distinct from": lambda: select(Note).where(Note.body.is_distinct_from(PLAIN)),
    "+": lambda: select(Note.size + 1),
    "1 +": lambda: select(1 + Note.size),
    "||": lambda: select(Note.body + "x"),
    "'x' ||": lambda: select(sa.literal("x") + Note.body),
    "concat": lambda: select(func.concat(Note.body, "x")),
    "-": lambda: select(-Note.size),
    "not": lambda: select(Note).where(~Note.size),
    "[]": lambda: select(Note.extra["k"]),
    "filter_by": lambda: select(Note).filter_by(body=PLAIN),
    "order by": lambda: select(Note).order_by(Note.body),
    "order by desc": lambda: select(Note).order_by(Note.body.desc()),
    "order by asc()": lambda: select(Note).order_by(sa.asc(Note.body)),
    "order by nulls first": lambda: select(Note).order_by(sa.nulls_first(Note.body)),
    "order by label": lambda: select(Note.body.label("said")).order_by("said"),
    "order by label desc": lambda: select(Note.body.label("said")).order_by(sa.desc("said")),
    "order by name": lambda: select(NOTES.c.body).order_by("body"),
    "order by of a subquery": lambda: select((q := select(Note.id, Note.body).subquery()).c.id).order_by(
        q.c.body
    ),
    "order by of a union": lambda: union(select(Note.body), select(Other.body)).order_by("body"),
    "order by core": lambda: select(NOTES.c.id).order_by(NOTES.c.body),
    "group by": lambda: select(func.count()).group_by(Note.body),
    "group by label": lambda: select(Note.body.label("said"), func.count()).group_by("said"),
    "having": lambda: select(Note.user_id).group_by(Note.user_id).having(func.max(Note.body) == "x"),
    "having count": lambda: (
        select(Note.user_id).group_by(Note.user_id).having(func.count(func.lower(Note.body)) > 1)
    ),
    "distinct": lambda: select(Note.body).distinct(),
    "distinct with owner": lambda: select(Note.user_id, Note.body).distinct(),
    "count distinct": lambda: select(func.count(Note.body.distinct())),
    "count distinct()": lambda: select(func.count(sa.distinct(Note.body))),
    "lower": lambda: select(func.lower(Note.body)),
    "lower in where": lambda: select(Note).where(func.lower(Note.body) == PLAIN),
    "max": lambda: select(func.max(Note.body)),
    "coalesce": lambda: select(func.coalesce(Note.body, "none")),
    "length": lambda: select(func.length(Note.body)),
    "cast": lambda: select(sa.cast(Note.body, String)),
    "cast to binary": lambda: select(sa.cast(Note.body, LargeBinary)),
    "case": lambda: select(sa.case((Note.id == 1, Note.body), else_="x")),
    "case value": lambda: select(sa.case({PLAIN: 1}, value=Note.body, else_=0)),
    "case inside": lambda: select(Note).where(sa.case((Note.body == PLAIN, 1), else_=0) == 1),
    "collate": lambda: select(Note).order_by(Note.body.collate("BINARY")),
    "any": lambda: select(Note).where(sa.literal(PLAIN) == sa.any_(Note.body)),
    "tuple": lambda: select(Note).where(sa.tuple_(Note.id, Note.body).in_([(1, PLAIN)])),
    "window order": lambda: select(Note.id, func.row_number().over(order_by=Note.body)),
    "window partition": lambda: select(Note.id, func.row_number().over(partition_by=Note.body)),
    "window first value": lambda: select(func.first_value(Note.body).over(order_by=Note.id)),
    "filter clause": lambda: select(func.count().filter(func.lower(Note.body) == "x")),
    "join on": lambda: select(Note).join(Other, Note.body == Other.body),
    "join on title": lambda: select(Note).join(Other, Note.title == Other.body),
    "exists": lambda: select(User).where(select(Note.id).where(func.lower(Note.body) == "x").exists()),
    "in a cte": lambda: select(select(func.lower(Note.body).label("l")).cte().c.l),
    "in a scalar subquery": lambda: select(User.id, select(func.max(Note.body)).scalar_subquery()),
    "scalar subquery compared": lambda: select(Note).where(
        select(Other.body).limit(1).scalar_subquery() == PLAIN
    ),
    "any() of a relationship": lambda: select(User).where(User.notes.any(func.lower(Note.body) == "x")),
    "union of two labels": lambda: union(select(Note.body), select(User.phone)),
    "union of a label and none": lambda: union_all(select(Note.body), select(Note.title)),
    "union of none and a label": lambda: union_all(select(Note.title), select(Note.body)),
    "union in a subquery": lambda: select(
        union_all(select(Note.body.label("x")), select(User.phone)).subquery().c.x
    ),
    "union": lambda: union(select(Note.body), select(Other.body)),
    "union in a subquery of one label": lambda: select(
        union(select(Note.body), select(Other.body)).subquery()
    ),
    "except": lambda: sa.except_(select(Note.body), select(Other.body)),
    "intersect": lambda: sa.intersect(select(Note.body), select(Other.body)),
    "delete where": lambda: sa.delete(Note).where(func.lower(Note.body) == PLAIN),
    "delete where ==": lambda: sa.delete(NOTES).where(NOTES.c.title == NOTES.c.body),
    "update where": lambda: update(Note).where(func.lower(Note.body) == PLAIN).values(title="t"),
    "returning lower": lambda: insert(Note).values(user_id=1, title="t").returning(func.lower(Note.body)),
    "update from": lambda: (
        update(Note).where(Note.id == Other.id, Note.title == Other.body).values(title="t")
    ),
    "insert in a cte": lambda: select(
        insert(Note).values(user_id=1, body=PLAIN).returning(Note.id).cte("i").c.id
    ),
    "insert of a text literal in a cte": lambda: select(
        insert(NOTES).values(user_id=1, body=sa.literal(PLAIN, String)).returning(NOTES.c.id).cte("i").c.id
    ),
    "move in a cte": lambda: select(sa.literal(1)).add_cte(update(NOTES).values(user_id=2).cte("u")),
    "insert in a delete": lambda: sa.delete(User).add_cte(
        insert(NOTES).values(user_id=1, body=sa.literal(PLAIN, String)).cte("i")
    ),
    "extract": lambda: select(sa.extract("year", Note.size)),
    "json path": lambda: select(func.json_extract(Note.extra, "$.k")),
    "order by a scalar subquery": lambda: select(Note.id).order_by(
        select(Other.body).where(Other.id == Note.id).scalar_subquery()
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused(written: Started, form: str) -> None:
    """The statement is refused where it is built or before it is sent, by an error that says what to do
    instead."""
    session = written.session
    session.connection()
    with (
        unlock(session, session.get_one(User, 1)),
        statements_sent(written.engine) as sent,
        pytest.raises(StatementRefusedError) as caught,
    ):
        session.execute(REFUSED[form](), execution_options={"synchronize_session": False}).all()

    assert sent == []
    assert PLAIN not in str(caught.value)
    assert any(
        cure in str(caught.value)
        for cure in ("decrypted values", "label=", "is_(None)", "through the ORM", "the other")
    )


def _distinct_on(column: Any) -> Any:
    extension = getattr(postgresql, "distinct_on", None)  # in 2.1, which deprecates the other form
    return select(Note).distinct(column) if extension is None else select(Note).ext(extension(column))


@pytest.mark.parametrize(
    "make",
    [
        *(REFUSED[form] for form in ("order by", "lower", "distinct", "union of two labels", "cast")),
        lambda: _distinct_on(Note.body),
        lambda: select(func.array_agg(postgresql.aggregate_order_by(Note.id, Note.body))),
        lambda: select(func.encode(Note.body, "hex")),
        lambda: postgresql.insert(Note).values(user_id=1).returning(func.length(Note.body)),
    ],
)
def test_refused_on_postgres(postgres_engine: sa.Engine, make: Any) -> None:
    """The same on PostgreSQL, with what only PostgreSQL has."""
    Base.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        session.connection()
        with statements_sent(postgres_engine) as sent, pytest.raises(StatementRefusedError):
            session.execute(make())

    assert sent == []


@pytest.mark.parametrize("times", [2])
def test_refused_each_time(written: Started, times: int) -> None:
    """A statement that was refused is refused again when it comes from the cache."""
    for _ in range(times):
        with statements_sent(written.engine) as sent, pytest.raises(StatementRefusedError):
            written.session.execute(select(Note).order_by(Note.body))
        assert not any("ORDER BY" in one for one in sent)


def test_order_by_in_a_relationship(written: Started) -> None:
    """A relationship that sorts by an encrypted column is refused when it loads."""
    with unlock(written.session, written.session.get_one(User, 1)):
        owner = written.session.get_one(SortingUser, 1)
        for option in (joinedload, selectinload, subqueryload):
            with pytest.raises(StatementRefusedError):
                written.session.scalars(
                    select(SortingUser).options(option(SortingUser.sorted_notes))
                ).unique().all()
        with pytest.raises(StatementRefusedError):
            _ = owner.sorted_notes


class SortingUser(Base):
    __table__ = User.__table__
    __mapper_args__ = {"include_properties": ["id"]}  # noqa: RUF012
    sorted_notes: Mapped[list[Note]] = relationship(order_by=Note.body, viewonly=True)


Q = select(Note.id, Note.body.label("said"), Note.user_id).subquery()
C = select(Note.id, Note.body).cte("c")
INNER = aliased(Note, select(Note).subquery())

WORKS: dict[str, tuple[Callable[[], Any], Any]] = {
    "is null": (lambda: select(Note.id).where(Note.body.is_(None)), [2]),
    "== None": (lambda: select(Note.id).where(Note.body == None), [2]),  # noqa: E711
    "is not null": (lambda: select(Note.id).where(Note.body.is_not(None), Note.user_id == 1), [1]),
    "!= None": (lambda: select(Note.id).where(Note.body != None, Note.user_id == 1), [1]),  # noqa: E711
    "is null()": (lambda: select(Note.id).where(Note.body.is_(sa.null())), [2]),
    "not is null": (lambda: select(Note.id).where(~Note.body.is_(None), Note.user_id == 1), [1]),
    "filter_by None": (lambda: select(Note.id).filter_by(body=None), [2]),
    "select is null": (lambda: select(Note.body.is_(None)).order_by(Note.id), [False, True, False]),
    "order by is null": (lambda: select(Note.id).order_by(Note.body.is_(None), Note.id), [1, 3, 2]),
    "case is null": (lambda: select(sa.case((Note.body.is_(None), 0), else_=1)).order_by(Note.id), [1, 0, 1]),
    "count(*)": (lambda: select(func.count()).select_from(Note), [3]),
    "count(column)": (lambda: select(func.count(Note.body)), [2]),
    "count filter": (lambda: select(func.count().filter(Note.body.is_(None))), [1]),
    "having count": (
        lambda: (
            select(Note.user_id)
            .group_by(Note.user_id)
            .having(func.count(Note.body) > 0)
            .order_by(Note.user_id)
        ),
        [1, 2],
    ),
    "column": (lambda: select(Note.body).where(Note.user_id == 1).order_by(Note.id), [PLAIN, None]),
    "core column": (lambda: select(NOTES.c.body).where(NOTES.c.id == 1), [PLAIN]),
    "label": (lambda: select(Note.body.label("said")).where(Note.id == 1), [PLAIN]),
    "subquery": (lambda: select(Q.c.said).where(Q.c.id == 1), [PLAIN]),
    "cte": (lambda: select(C.c.body).where(C.c.id == 1), [PLAIN]),
    "recursive cte": (
        lambda: select(
            (base := select(Note.id, Note.body).where(Note.id == 1).cte("r", recursive=True))
            .union_all(select(Note.id, Note.body).where(Note.id == base.c.id + 100))
            .c.body
        ),
        [PLAIN],
    ),
    "alias": (lambda: select(Other.body).where(Other.id == 1), [PLAIN]),
    "alias of a subquery": (lambda: select(INNER.body).where(INNER.id == 1), [PLAIN]),
    "exists": (
        lambda: (
            select(User.id).where(select(Note.body).where(Note.user_id == User.id).exists()).order_by(User.id)
        ),
        [1, 2],
    ),
    "any()": (lambda: select(User.id).where(User.notes.any(Note.body.is_(None))), [1]),
    "has()": (lambda: select(Note.id).where(Note.user.has(User.phone.is_(None)), Note.id == 1), [1]),
    "scalar subquery": (
        lambda: select(select(Note.body).where(Note.user_id == User.id).limit(1).scalar_subquery()).where(
            User.id == 1
        ),
        [PLAIN],
    ),
    "outer join without a match": (
        lambda: (
            select(Other.body)
            .select_from(Note)
            .join(Other, Other.id == Note.id + 100, isouter=True)
            .where(Note.id == 1)
        ),
        [None],
    ),
    "join on other columns": (
        lambda: select(Note.body).join(User, User.id == Note.user_id).where(User.id == 1, Note.id == 1),
        [PLAIN],
    ),
    "select_from join": (
        lambda: select(Note.body).select_from(User).join(Note, Note.user_id == User.id).where(Note.id == 1),
        [PLAIN],
    ),
    "loader criteria": (
        lambda: select(Note.id).options(with_loader_criteria(Note, Note.body.is_(None))),
        [2],
    ),
    "count as a window": (lambda: select(func.count(Note.body).over()).limit(1), [2]),
    "count of a label": (lambda: select(func.count(Q.c.said)), [2]),
    "exists of a select": (lambda: select(sa.exists().where(Note.body.is_(None))), [True]),
    "delete returning": (lambda: sa.delete(Note).where(Note.id == 1).returning(Note.body), [PLAIN]),
    "delete where null": (lambda: sa.delete(Note).where(Note.body.is_(None)).returning(Note.id), [2]),
    "update where null": (
        lambda: update(Note).where(Note.body.is_(None)).values(title="none").returning(Note.id),
        [2],
    ),
    "union all of literals beside it": (
        lambda: union_all(
            select(Note.body, literal_column("1").label("n")).where(Note.id == 1),
            select(Note.body, literal_column("2")).where(Note.id == 1),
        ).order_by("n"),
        [PLAIN, PLAIN],
    ),
    "union all of one column": (
        lambda: union_all(select(Note.body).where(Note.id == 1), select(Other.body).where(Other.id == 1)),
        [PLAIN, PLAIN],
    ),
    "union beside the primary key": (
        lambda: union(select(Note.id, Note.body).where(Note.id == 1), select(Other.id, Other.body)).order_by(
            "id"
        ),
        [1, 2, 3],
    ),
    "except of whole rows": (
        lambda: sa.except_(select(Note.id, Note.body), select(Other.id, Other.body).where(Other.id < 3)),
        [3],
    ),
    "order by another column": (
        lambda: select(Note.body).where(Note.user_id == 1).order_by(Note.id.desc()),
        [None, PLAIN],
    ),
    "window over others": (
        lambda: select(Note.body).where(Note.id == 1).add_columns(func.row_number().over(order_by=Note.id)),
        [PLAIN],
    ),
    "distinct without it": (lambda: select(Note.user_id).distinct().order_by(Note.user_id), [1, 2]),
    "group by the key": (lambda: select(Note.id).group_by(Note.id).order_by(Note.id), [1, 2, 3]),
    "in of ids": (lambda: select(Note.body).where(Note.id.in_([1])), [PLAIN]),
    "in of a subquery beside it": (
        lambda: select(Note.body).where(Note.id.in_(select(Other.id).where(Other.id == 1))),
        [PLAIN],
    ),
    "literal beside it": (lambda: select(Note.body, literal_column("1")).where(Note.id == 1), [PLAIN]),
    "text where": (lambda: select(Note.body).where(text("id = 1")), [PLAIN]),
    "text columns": (lambda: text("select body from notes where id = 1").columns(NOTES.c.body), [PLAIN]),
    "limit offset": (lambda: select(Note.body).order_by(Note.id).limit(1).offset(1), [None]),
}


@pytest.mark.parametrize("form", WORKS)
def test_works(written_anywhere: Started, form: str) -> None:
    """The statement runs, and its values are open."""
    make, expected = WORKS[form]
    with unlock(written_anywhere.session, written_anywhere.session.get_one(User, 1)):
        found = list(written_anywhere.session.scalars(make()))

    assert found == expected


def test_raw_bytes_by_type_coerce(written_anywhere: Started) -> None:
    """`type_coerce(column, LargeBinary)` reads the stored bytes, in a select, an ORDER BY and a length."""
    raw = type_coerce(Note.body, LargeBinary)
    found = written_anywhere.session.scalars(select(raw).where(raw.is_not(None)).order_by(Note.id)).all()
    lengths = written_anywhere.session.scalars(select(func.length(raw)).order_by(Note.id)).all()

    assert [bytes(one)[:1] for one in found] == [b"\x01", b"\x01"]
    assert lengths == [45 + len(PLAIN), None, 45 + len("of ben")]


LOADERS = {
    "joinedload": lambda: select(User).options(joinedload(User.notes)),
    "inner joinedload": lambda: select(User).options(joinedload(User.notes, innerjoin=True)),
    "selectinload": lambda: select(User).options(selectinload(User.notes)),
    "subqueryload": lambda: select(User).options(subqueryload(User.notes)),
    "contains_eager": lambda: (
        select(User).join(User.notes).options(contains_eager(User.notes)).order_by(Note.id)
    ),
    "lazy": lambda: select(User),
    "joinedload with limit": lambda: select(User).options(joinedload(User.notes)).order_by(User.id).limit(1),
    "joinedload both ways": lambda: select(User).options(joinedload(User.notes).joinedload(Note.user)),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_relationship_loaders(written_anywhere: Started, loader: str) -> None:
    """Every way to load a relationship opens what is unlocked, a LEFT JOIN without a match included."""
    session = written_anywhere.session
    session.add(User(email="nobody@example.org"))
    session.commit()
    with unlock(session, session.get_one(User, 1)):
        users = {user.id: user for user in session.scalars(LOADERS[loader]()).unique()}

        assert [note.body for note in users[1].notes] == [PLAIN, None]


def test_limit_with_joinedload_and_distinct(written_anywhere: Started) -> None:
    """`select(Entity).distinct()` names the primary key, and is let pass; LIMIT with joinedload wraps it."""
    session = written_anywhere.session
    with unlock(session, session.get_one(User, 1)):
        query = select(Note).join(Note.user).where(User.id == 1).order_by(Note.id)
        if session.get_bind().dialect.name == "sqlite":
            assert [note.body for note in session.scalars(query.distinct())] == [PLAIN, None]
            assert [
                row[1] for row in session.execute(select(Note.id, Note.body).distinct().where(Note.id == 1))
            ] == [PLAIN]
        loaded = session.scalars(query.options(joinedload(Note.user)).limit(1)).unique().all()
        assert [note.body for note in loaded] == [PLAIN]
        locked = session.scalars(query.with_for_update()).all()
        assert [note.body for note in locked] == [PLAIN, None]


def test_yield_per(written_anywhere: Started) -> None:
    """Streaming in batches opens values as they come."""
    session = written_anywhere.session
    with unlock(session, session.get_one(User, 1)):
        streamed = session.scalars(
            select(Note).where(Note.user_id == 1).order_by(Note.id).execution_options(yield_per=1)
        )

        assert [note.body for note in streamed] == [PLAIN, None]


def test_legacy_query(written: Started) -> None:
    """`session.query()` is refused and works like `select()`."""
    session = written.session
    with unlock(session, session.get_one(User, 1)):
        assert session.query(Note).filter(Note.body.is_(None)).one().id == 2
        assert session.query(Note.body).filter_by(id=1).scalar() == PLAIN
        assert session.query(Note).count() == 3
        assert session.query(Note).filter(Note.body.isnot(None)).exists() is not None
        with pytest.raises(StatementRefusedError):
            session.query(Note).order_by(Note.body).all()
        with pytest.raises(StatementRefusedError):
            session.query(func.max(Note.body)).all()
        with pytest.raises(StatementRefusedError):
            session.query(Note.body).distinct().all()


def test_pages_too(written: Started) -> None:
    """Row-bound columns are held to the same rules, and come as handles from a select of columns."""
    session = written.session
    with unlock(session, session.get_one(User, 1)):
        session.add(Page(user_id=1, text=PLAIN))
        session.commit()
        assert isinstance(session.scalar(select(Page.text)), Sealed)
        assert session.scalar(select(func.count(Page.text))) == 1
        with pytest.raises(StatementRefusedError):
            session.execute(select(Page).order_by(Page.text))
        with pytest.raises(StatementRefusedError):
            session.execute(select(func.max(Page.text)))


@pytest.mark.parametrize(
    ("make", "written"),
    [
        (lambda: Note.body == "x", "`==`"),
        (lambda: Note.body > "x", "`>`"),
        (lambda: Note.body + "x", "`+`"),
        (lambda: Note.body.desc(), "`.desc()`"),
        (lambda: Note.body.in_(["x"]), "`.in_()`"),
        (lambda: Note.body.not_in(["x"]), "`.not_in()`"),
        (lambda: Note.body.ilike("x"), "`.ilike()`"),
        (lambda: Note.body.op("<->")("x"), "`.op('<->')`"),
    ],
)
def test_an_operator_is_named_as_it_is_written(make: Callable[[], Any], written: str) -> None:
    """The error shows the operator of the application's own line."""
    with pytest.raises(StatementRefusedError) as caught:
        make()

    assert str(caught.value).startswith(f"{written} cannot work on the encrypted column 'notes.body'")
