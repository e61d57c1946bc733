"""The functions that read, each in its own way."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import sqlalchemy as sa
from sqlalchemy import func, insert, select, text, union_all, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Bundle, Session, aliased, contains_eager, with_expression

from tests.orm.reading.reading_models import MOVED_PLACE, Kind, Read, Reader, Team, User, by_itself

# How they are read


def rows(found: Iterable[Any]) -> list[Read]:
    """Rows that begin with their number and their value."""
    return [(row[0], lambda row=row: row[1]) for row in found]


def objects(found: Iterable[Any], key: str = "body") -> list[Read]:
    """Objects that have their value as an attribute."""
    return [(one.id, lambda one=one: getattr(one, key)) for one in found]


def read_execute(make: Callable[[Kind], Any]) -> Reader:
    return lambda session, kind: rows(session.execute(make(kind)).all())


def core(make: Callable[[Kind], Any]) -> Reader:
    return lambda session, kind: rows(session.connection().execute(make(kind)).all())


def load(make: Callable[[Kind], Any], key: str = "body") -> Reader:
    return lambda session, kind: objects(session.scalars(make(kind)).unique().all(), key)


def of_users(option: Callable[[Any], Any] | None) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        statement = select(User)
        if option is not None:
            statement = statement.options(option(getattr(User, kind.many)))
        users = session.scalars(statement).unique().all()
        return objects(one for user in users for one in kind.of_user(user))

    return read


def contained(session: Session, kind: Kind) -> list[Read]:
    many = getattr(User, kind.many)
    users = session.scalars(select(User).join(many).options(contains_eager(many))).unique()
    return objects(one for user in users for one in kind.of_user(user))


def _loaded(session: Session, kind: Kind) -> list[Any]:
    return list(session.scalars(select(kind.model)))


def read_pairs(session: Session, kind: Kind) -> list[Read]:
    one, other = aliased(kind.model), aliased(kind.model)
    found = session.execute(select(one, other).join(other, other.id == one.id + 1)).all()
    return [read for row in found for read in objects(row)]


def pair_columns(session: Session, kind: Kind) -> list[Read]:
    one, other = aliased(kind.model), aliased(kind.model)
    pairs = select(one.id, one.body, other.id, other.body, one.user_id, other.user_id)
    found = session.execute(pairs.join(other, other.id == one.id + 1)).all()
    return [read for row in found for read in (*rows([row[:2]]), *rows([row[2:4]]))]


def crossed(session: Session, kind: Kind) -> list[Read]:
    """A subquery with the value of one row and the owner of another."""
    one, other = aliased(kind.model), aliased(kind.model)
    inner = select(one.id, one.body, other.user_id).join(other, other.id == one.id % 6 + 1).subquery()
    return rows(session.execute(select(inner.c.id, inner.c.body, inner.c.user_id)).all())


def refreshed(*names: str) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        found = _loaded(session, kind)
        for one in found:
            session.refresh(one, names or None)
        return objects(found)

    return read


def expired(*names: str) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        found = _loaded(session, kind)
        for one in found:
            session.expire(one, names or None)
        return objects(found)

    return read


def committed(session: Session, kind: Kind) -> list[Read]:
    found = _loaded(session, kind)
    session.commit()
    return objects(found)


def read_again(session: Session, kind: Kind) -> list[Read]:
    held = _loaded(session, kind)
    return objects(found for found in _loaded(session, kind) if found in held)


def merged(session: Session, kind: Kind) -> list[Read]:
    numbers = session.scalars(select(kind.model.id)).all()
    return objects([session.merge(kind.model(id=number)) for number in numbers])


def got(session: Session, kind: Kind) -> list[Read]:
    numbers = session.scalars(select(kind.model.id)).all()
    return objects([session.get_one(kind.model, number) for number in numbers])


def got_anew(session: Session, kind: Kind) -> list[Read]:
    held = _loaded(session, kind)
    return objects([session.get_one(kind.model, one.id, populate_existing=True) for one in held])


def yielded(session: Session, kind: Kind) -> list[Read]:
    return objects(session.scalars(select(kind.model).execution_options(yield_per=2)).all())


def by_parts(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts).execution_options(yield_per=2))
    return [read for part in found.partitions() for read in rows(part)]


def read_frozen(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(select(*kind.parts)).freeze()().all())


def frozen_entities(session: Session, kind: Kind) -> list[Read]:
    return objects(session.execute(select(kind.model)).freeze()().scalars().all())


def one_by_one(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts))
    return rows(list(iter(found.fetchone, None)))


def by_fetchmany(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts))
    return rows(row for part in iter(lambda: found.fetchmany(5), []) for row in part)


def read_scalars(session: Session, kind: Kind) -> list[Read]:
    """Each value by itself."""
    return [
        (number, lambda number=number: session.scalar(select(kind.model.body).where(kind.model.id == number)))
        for number in session.scalars(select(kind.model.id)).all()
    ]


def read_mappings(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts)).mappings().all()
    return [(row["id"], lambda row=row: row["body"]) for row in found]


def bundled(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(Bundle("both", kind.model.id, kind.model.body))).scalars()
    return [(one.id, lambda one=one: one.body) for one in found]


def bundled_with_owner(session: Session, kind: Kind) -> list[Read]:
    both = Bundle("both", kind.model.id, Bundle("inner", kind.model.body), kind.model.user_id)
    return [(one.id, lambda one=one: one.inner.body) for one in session.execute(select(both)).scalars()]


def read_pickled(session: Session, kind: Kind) -> list[Read]:
    kept = pickle.dumps(_loaded(session, kind))
    session.expunge_all()
    found = pickle.loads(kept)  # noqa: S301 - made in the line above
    session.add_all(found)
    return objects(found)


def read_beside(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(kind.model, kind.model.body)).all()
    return [(row[0].id, lambda row=row: row[1]) for row in found]


def read_query(session: Session, kind: Kind) -> list[Read]:
    return objects(session.query(kind.model).all())


def query_columns(session: Session, kind: Kind) -> list[Read]:
    return rows(session.query(*kind.parts).all())


def read_chosen(kind: Kind) -> Any:
    return select(kind.model).options(with_expression(kind.model.chosen, by_itself(kind)))


def read_subquery(make: Callable[[Any], Any], *, owner: bool = True) -> Reader:
    """A select from what `make` makes of a select."""

    def read(session: Session, kind: Kind) -> list[Read]:
        inner = make(select(*kind.parts)).c
        columns = (inner.id, inner.body, inner.user_id) if owner else (inner.id, inner.body)
        return rows(session.execute(select(*columns)).all())

    return read


def twice(statement: Any) -> Any:
    return union_all(statement, statement.where(sa.false()))


def read_recursive(statement: Any) -> Any:
    found = statement.cte(recursive=True)
    return found.union_all(select(found.c.id, found.c.body, found.c.user_id).where(sa.false()))


def numbered(kind: Kind) -> Any:
    return select(*kind.parts, func.row_number().over(order_by=kind.model.id))


def read_lambda(kind: Kind) -> Any:
    model = kind.model
    return sa.lambda_stmt(lambda: select(model.id, model.body))


def with_user(kind: Kind) -> Any:
    return select(*kind.parts[:2], User.id).join(User, User.id == kind.model.user_id)


def of_another(kind: Kind) -> Any:
    one, other = aliased(kind.model), aliased(kind.model)
    return select(one.id, one.body, other.user_id).join(other, other.id == one.id)


def read_coerced(kind: Kind) -> Any:
    coerced = sa.type_coerce(kind.model.body, kind.table.c.body.type)
    return select(kind.model.id, coerced, kind.model.user_id)


def labelled_inside(kind: Kind) -> Any:
    inner = select(kind.model.id, kind.model.body.label("x"), kind.model.user_id).subquery()
    return select(inner.c.id, inner.c.x, inner.c.user_id)


def read_scalar_subquery(kind: Kind) -> Any:
    one, model = aliased(kind.model), kind.model
    return select(one.id, select(model.body).where(model.id == one.id).scalar_subquery(), one.user_id)


def ranked(kind: Kind) -> Any:
    inner = select(*kind.parts, func.rank().over(order_by=kind.model.id).label("rank")).subquery()
    return select(inner.c.id, inner.c.body, inner.c.user_id).where(inner.c.rank > 0)


def two_tables(kind: Kind) -> Any:
    other = kind.other
    return union_all(select(*kind.parts), select(other.id, other.body, other.user_id))


def two_owner_classes(kind: Kind) -> Any:
    return union_all(select(*kind.parts), select(Team.id, kind.team, Team.id))


def in_text(kind: Kind, prefix: str = "") -> Any:
    names = ("id", "user_id", "place", "body", "later")
    columns = ", ".join(f"{name} AS {prefix}{name}" if prefix else name for name in names)
    return text(f"SELECT {columns} FROM {kind.table.name}")


def in_label_style(kind: Kind) -> Any:
    return select(kind.model).from_statement(in_text(kind, f"{kind.table.name}_"))


def text_columns(kind: Kind) -> Any:
    return text(f"SELECT id, body, user_id FROM {kind.table.name}").columns(*kind.parts)


def text_types(kind: Kind) -> Any:
    return text(f"SELECT id, body, user_id FROM {kind.table.name}").columns(body=kind.table.c.body.type)


def read_literal_column(kind: Kind) -> Any:
    body: Any = sa.literal_column("body", kind.table.c.body.type)
    return select(sa.literal_column("id"), body, sa.literal_column("user_id")).select_from(
        text(kind.table.name)
    )


def _added(session: Session, kind: Kind) -> Iterator[dict[str, Any]]:
    """Rows that whoever is unlocked can write."""
    for number, user in enumerate(writers(session)):
        yield {"id": 1001 + number, "user_id": user, "place": 0, "body": f"word {1001 + number}"}


def writers(session: Session) -> list[int]:
    """For whom a row can be written in this session."""
    found: list[int] = session.info["writers"]
    return found


def inserted(session: Session, kind: Kind) -> list[Read]:
    return [
        read
        for one in _added(session, kind)
        for read in rows(session.execute(insert(kind.model).values(one).returning(*kind.parts)).all())
    ]


def inserted_objects(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    return objects(session.scalars(insert(kind.model).returning(kind.model), added).all())


def inserted_many(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    statement = insert(kind.model).returning(*kind.parts, sort_by_parameter_order=True)
    return rows(session.execute(statement, added).all())


def inserted_by_core(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    statement = insert(kind.table).returning(*kind.table.c["id", "body", "user_id"])
    return rows(session.connection().execute(statement, added).all())


def upserted(session: Session, kind: Kind) -> list[Read]:
    """Rows that are there are returned as they are, with another place."""
    found = session.execute(select(kind.model.id, kind.model.user_id)).all()
    reads: list[Read] = []
    for number, user in found:
        if user in writers(session):
            new = {"id": number, "user_id": user, "place": 1, "body": "not written"}
            statement: Any = upsert(kind.model).values(new)
            statement = statement.on_conflict_do_update(index_elements=["id"], set_={"place": 1})
            reads += rows(session.execute(statement.returning(*kind.parts)).all())
    return reads


def updated(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(update(kind.model).values(place=1).returning(*kind.parts)).all())


def updated_objects(session: Session, kind: Kind) -> list[Read]:
    return objects(session.scalars(update(kind.model).values(place=1).returning(kind.model)).all())


def updated_without(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(update(kind.model).values(place=1).returning(*kind.parts[:2])).all())


def read_deleted(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(sa.delete(kind.model).returning(*kind.parts)).all())


def read_options(**options: Any) -> Reader:
    return read_execute(lambda kind: select(*kind.parts).execution_options(**options))


def read_lateral(kind: Kind) -> Any:
    inner = select(*kind.parts).where(kind.model.user_id == User.id).lateral()
    return select(inner.c.id, inner.c.body, inner.c.user_id).select_from(User).join(inner, sa.true())


def inserted_past_a_trigger(session: Session, kind: Kind) -> list[Read]:
    """Rows that were moved are deleted and added again; a trigger puts into them what was in them."""
    name, reads = kind.table.name, []
    found = session.execute(select(kind.model.id, kind.model.user_id).where(kind.model.place == MOVED_PLACE))
    session.execute(text(f"CREATE TABLE former AS SELECT * FROM {name}"))
    session.execute(
        text(
            "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.body := (SELECT body FROM former WHERE id = NEW.id); RETURN NEW; END $$"
        )
    )
    session.execute(text(f"CREATE TRIGGER move BEFORE INSERT ON {name} FOR EACH ROW EXECUTE FUNCTION move()"))
    for number, user in found.all():
        if user in writers(session):
            new = {"id": number, "user_id": user, "place": 0, "body": "not kept"}
            session.execute(sa.delete(kind.model).where(kind.model.id == number))
            reads += rows(session.execute(insert(kind.model).values(new).returning(*kind.parts)).all())
    return reads


async def async_scalars(session: AsyncSession, kind: Kind) -> list[Read]:
    return objects((await session.scalars(select(kind.model))).all())


async def async_execute(session: AsyncSession, kind: Kind) -> list[Read]:
    return rows((await session.execute(select(*kind.parts))).all())


async def read_stream(session: AsyncSession, kind: Kind) -> list[Read]:
    found = await session.stream(select(*kind.parts).execution_options(yield_per=2))
    return [read async for row in found for read in rows([row])]


async def read_stream_scalars(session: AsyncSession, kind: Kind) -> list[Read]:
    found = await session.stream_scalars(select(kind.model).execution_options(yield_per=2))
    return [read async for one in found for read in objects([one])]


async def async_core(session: AsyncSession, kind: Kind) -> list[Read]:
    connection = await session.connection()
    return rows((await connection.execute(select(*kind.table.c["id", "body", "user_id"]))).all())


async def async_core_stream(session: AsyncSession, kind: Kind) -> list[Read]:
    connection = await session.connection()
    found = await connection.stream(select(*kind.table.c["id", "body", "user_id"]))
    return [read async for row in found for read in rows([row])]
