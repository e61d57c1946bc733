"""Every way of reading, and what it gives: the table of docs/reference/reading.md.

`test_reading_table.py` holds each cell against the library. After a change here, write the page anew:

    python -m tests.orm.reading.reading_table > docs/reference/reading.md
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ForeignKey, String, func, insert, select, text, union_all, update
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Bundle,
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    attribute_keyed_dict,
    column_property,
    contains_eager,
    defer,
    deferred,
    immediateload,
    joinedload,
    load_only,
    mapped_column,
    query_expression,
    relationship,
    selectinload,
    subqueryload,
    synonym,
    undefer,
    with_expression,
)

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(32)]))
LABEL = {"column": "notes.body", "row": "pages.body"}


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    notes: Mapped[list[Note]] = relationship(back_populates="user", order_by="Note.id")
    pages: Mapped[list[Page]] = relationship(back_populates="user", order_by="Page.id")
    lines: Mapped[list[Line]] = relationship(
        primaryjoin="User.id == foreign(Line.user_id)", order_by="Line.id", viewonly=True
    )
    by_body: Mapped[dict[str, Note]] = relationship(
        collection_class=attribute_keyed_dict("body"), viewonly=True
    )
    by_id: Mapped[dict[int, Note]] = relationship(collection_class=attribute_keyed_dict("id"), viewonly=True)
    chosen: Mapped[str | None] = query_expression()


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="notes")
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String))
    later: Mapped[str | None] = deferred(mapped_column(EncryptedType(String, label="notes.body")))
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="pages")
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))
    later: Mapped[str | None] = deferred(mapped_column(EncryptedType(String, bind="row", label="pages.body")))
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Sheet(Base):
    __tablename__ = "sheets"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship()


class Line(Base):
    """Its owner is that of its sheet; in these tests each user has one, of the same number."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("sheets.id", ondelete="CASCADE"))
    sheet: Mapped[Sheet] = relationship()
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String, owner="sheet.user"))
    later: Mapped[str | None] = deferred(
        mapped_column(EncryptedType(String, owner="sheet.user", label="lines.body"))
    )
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Memo(Base):
    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))


class Leaf(Base):
    __tablename__ = "leaves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row", label="pages.body"))


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("sheets.id", ondelete="CASCADE"))
    sheet: Mapped[Sheet] = relationship()
    body: Mapped[str] = mapped_column(EncryptedType(String, owner="sheet.user", label="lines.body"))


class Team(KeyOwner, Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    motto: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))
    song: Mapped[str] = mapped_column(EncryptedType(String, label="lines.body"))
    crest: Mapped[str] = mapped_column(EncryptedType(String, bind="row", label="pages.body"))


@dataclass(frozen=True)
class Kind:
    """What is read: a table, and beside it what a way needs of others.

    Attributes:
        model: the class whose rows they are.
        other: another class, whose values have the same label.
        team: the column of another class of owners with the same label.
        many: the attribute of a user who has these rows.
    """

    name: str
    model: Any
    other: Any
    team: Any
    many: str

    @property
    def table(self) -> Any:
        """What Core reads."""
        return self.model.__table__

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """The columns with which a row says all about its value."""
        return self.model.id, self.model.body, self.model.user_id

    def of_user(self, user: User) -> list[Any]:
        """The rows of a user."""
        found: list[Any] = getattr(user, self.many)
        return found


MOVED_PLACE = 7
"""The `place` of a row whose value was moved there."""
COLUMN = Kind("column", Note, Memo, Team.motto, "notes")
ROW = Kind("row", Page, Leaf, Team.crest, "pages")
LINKED = Kind("linked", Line, Entry, Team.song, "lines")
KINDS = (COLUMN, ROW, LINKED)


def by_itself(kind: Kind) -> Any:
    """The value of a row, as a scalar subquery of another alias of its table."""
    one = kind.table.alias()
    return select(one.c.body).where(one.c.id == kind.model.id).correlate_except(one).scalar_subquery()


for _kind in KINDS:
    _kind.model.copied = column_property(by_itself(_kind), deferred=True)
User.latest = column_property(  # type: ignore[attr-defined]
    select(Note.body).where(Note.user_id == User.id).limit(1).correlate_except(Note).scalar_subquery(),
    deferred=True,
)

Read = tuple[int, Callable[[], Any]]
"""The number of a row, and what reads its value."""
Reader = Callable[[Session, Kind], Iterable[Read]]
AsyncReader = Callable[[AsyncSession, Kind], Awaitable[Iterable[Read]]]


# What a way gives


@dataclass(frozen=True)
class Outcome:
    """What is read, by who is unlocked. With nobody unlocked every value is sealed.

    Attributes:
        one, several, server: of a genuine value, of one that was moved there from another owner's row, and
            of one that was moved there from another row of the same owner.
    """

    one: tuple[str, str, str]
    several: tuple[str, str, str]
    server: tuple[str, str, str]

    def of(self, mode: str) -> tuple[str, str, str]:
        """What is read in a mode."""
        found: tuple[str, str, str] = getattr(self, mode)
        return found


VALUE, SEALED, REFUSED, OWN, NONE = "value", "sealed", "refused", "own value", "-"
_OPEN, _SHUT = (VALUE, REFUSED, VALUE), (SEALED, SEALED, SEALED)
_BOUND = (VALUE, REFUSED, REFUSED)
COMPARED = Outcome(_OPEN, _OPEN, _OPEN)
"""The row says whose it is."""
UNPLACED = Outcome((VALUE, OWN, VALUE), _SHUT, _SHUT)
"""It does not; a value opens for the only owner who is unlocked."""
ADDS_OWNER = Outcome((VALUE, OWN, VALUE), _OPEN, _OPEN)
"""It does not; the ORM reads the owner too, where several owners are unlocked."""
BOUND = Outcome(_BOUND, _BOUND, _BOUND)
"""The row says whose it is, and which."""
KEY_ALONE = Outcome(_BOUND, _SHUT, _SHUT)
"""It says which it is."""
UNBOUND = Outcome(_SHUT, _SHUT, _SHUT)
"""It does not say which it is."""
ADDED = Outcome((VALUE, NONE, NONE), (VALUE, NONE, NONE), (VALUE, NONE, NONE))
"""The row is new, and nothing can have been moved there."""


@dataclass(frozen=True)
class Way:
    """A way of reading.

    Attributes:
        name: as in the documentation.
        read: reads a table's rows in that way.
        column, row: what it gives for a value that is bound to its column, and to its row.
        linked: for one whose owner other rows lead to, if that is not the same as `column`.
    """

    name: str
    read: Reader
    column: Outcome = COMPARED
    row: Outcome = BOUND
    linked: Outcome | None = None

    def outcome(self, kind: Kind) -> Outcome:
        """What it gives for this kind of value."""
        if kind is LINKED and self.linked is not None:
            return self.linked
        return self.row if kind is ROW else self.column


@dataclass(frozen=True)
class AsyncWay(Way):
    """A way of reading under asyncio."""

    read: Any  # an AsyncReader


# How they are read


def rows(found: Iterable[Any]) -> list[Read]:
    """Rows that begin with their number and their value."""
    return [(row[0], lambda row=row: row[1]) for row in found]


def objects(found: Iterable[Any], key: str = "body") -> list[Read]:
    """Objects that have their value as an attribute."""
    return [(one.id, lambda one=one: getattr(one, key)) for one in found]


def _execute(make: Callable[[Kind], Any]) -> Reader:
    return lambda session, kind: rows(session.execute(make(kind)).all())


def _core(make: Callable[[Kind], Any]) -> Reader:
    return lambda session, kind: rows(session.connection().execute(make(kind)).all())


def _load(make: Callable[[Kind], Any], key: str = "body") -> Reader:
    return lambda session, kind: objects(session.scalars(make(kind)).unique().all(), key)


def _of_users(option: Callable[[Any], Any] | None) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        statement = select(User)
        if option is not None:
            statement = statement.options(option(getattr(User, kind.many)))
        users = session.scalars(statement).unique().all()
        return objects(one for user in users for one in kind.of_user(user))

    return read


def _contained(session: Session, kind: Kind) -> list[Read]:
    many = getattr(User, kind.many)
    users = session.scalars(select(User).join(many).options(contains_eager(many))).unique()
    return objects(one for user in users for one in kind.of_user(user))


def _loaded(session: Session, kind: Kind) -> list[Any]:
    return list(session.scalars(select(kind.model)))


def _pairs(session: Session, kind: Kind) -> list[Read]:
    one, other = aliased(kind.model), aliased(kind.model)
    found = session.execute(select(one, other).join(other, other.id == one.id + 1)).all()
    return [read for row in found for read in objects(row)]


def _pair_columns(session: Session, kind: Kind) -> list[Read]:
    one, other = aliased(kind.model), aliased(kind.model)
    pairs = select(one.id, one.body, other.id, other.body, one.user_id, other.user_id)
    found = session.execute(pairs.join(other, other.id == one.id + 1)).all()
    return [read for row in found for read in (*rows([row[:2]]), *rows([row[2:4]]))]


def _crossed(session: Session, kind: Kind) -> list[Read]:
    """A subquery with the value of one row and the owner of another."""
    one, other = aliased(kind.model), aliased(kind.model)
    inner = select(one.id, one.body, other.user_id).join(other, other.id == one.id % 6 + 1).subquery()
    return rows(session.execute(select(inner.c.id, inner.c.body, inner.c.user_id)).all())


def _refreshed(*names: str) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        found = _loaded(session, kind)
        for one in found:
            session.refresh(one, names or None)
        return objects(found)

    return read


def _expired(*names: str) -> Reader:
    def read(session: Session, kind: Kind) -> list[Read]:
        found = _loaded(session, kind)
        for one in found:
            session.expire(one, names or None)
        return objects(found)

    return read


def _committed(session: Session, kind: Kind) -> list[Read]:
    found = _loaded(session, kind)
    session.commit()
    return objects(found)


def _again(session: Session, kind: Kind) -> list[Read]:
    held = _loaded(session, kind)
    return objects(found for found in _loaded(session, kind) if found in held)


def _merged(session: Session, kind: Kind) -> list[Read]:
    numbers = session.scalars(select(kind.model.id)).all()
    return objects([session.merge(kind.model(id=number)) for number in numbers])


def _got(session: Session, kind: Kind) -> list[Read]:
    numbers = session.scalars(select(kind.model.id)).all()
    return objects([session.get_one(kind.model, number) for number in numbers])


def _got_anew(session: Session, kind: Kind) -> list[Read]:
    held = _loaded(session, kind)
    return objects([session.get_one(kind.model, one.id, populate_existing=True) for one in held])


def _yielded(session: Session, kind: Kind) -> list[Read]:
    return objects(session.scalars(select(kind.model).execution_options(yield_per=2)).all())


def _by_parts(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts).execution_options(yield_per=2))
    return [read for part in found.partitions() for read in rows(part)]


def _frozen(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(select(*kind.parts)).freeze()().all())


def _frozen_entities(session: Session, kind: Kind) -> list[Read]:
    return objects(session.execute(select(kind.model)).freeze()().scalars().all())


def _one_by_one(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts))
    return rows(list(iter(found.fetchone, None)))


def _by_fetchmany(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts))
    return rows(row for part in iter(lambda: found.fetchmany(5), []) for row in part)


def _scalars(session: Session, kind: Kind) -> list[Read]:
    """Each value by itself."""
    return [
        (number, lambda number=number: session.scalar(select(kind.model.body).where(kind.model.id == number)))
        for number in session.scalars(select(kind.model.id)).all()
    ]


def _mappings(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(*kind.parts)).mappings().all()
    return [(row["id"], lambda row=row: row["body"]) for row in found]


def _bundled(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(Bundle("both", kind.model.id, kind.model.body))).scalars()
    return [(one.id, lambda one=one: one.body) for one in found]


def _bundled_with_owner(session: Session, kind: Kind) -> list[Read]:
    both = Bundle("both", kind.model.id, Bundle("inner", kind.model.body), kind.model.user_id)
    return [(one.id, lambda one=one: one.inner.body) for one in session.execute(select(both)).scalars()]


def _pickled(session: Session, kind: Kind) -> list[Read]:
    kept = pickle.dumps(_loaded(session, kind))
    session.expunge_all()
    found = pickle.loads(kept)  # noqa: S301 - made in the line above
    session.add_all(found)
    return objects(found)


def _beside(session: Session, kind: Kind) -> list[Read]:
    found = session.execute(select(kind.model, kind.model.body)).all()
    return [(row[0].id, lambda row=row: row[1]) for row in found]


def _query(session: Session, kind: Kind) -> list[Read]:
    return objects(session.query(kind.model).all())


def _query_columns(session: Session, kind: Kind) -> list[Read]:
    return rows(session.query(*kind.parts).all())


def _chosen(kind: Kind) -> Any:
    return select(kind.model).options(with_expression(kind.model.chosen, by_itself(kind)))


def _subquery(make: Callable[[Any], Any], *, owner: bool = True) -> Reader:
    """A select from what `make` makes of a select."""

    def read(session: Session, kind: Kind) -> list[Read]:
        inner = make(select(*kind.parts)).c
        columns = (inner.id, inner.body, inner.user_id) if owner else (inner.id, inner.body)
        return rows(session.execute(select(*columns)).all())

    return read


def _twice(statement: Any) -> Any:
    return union_all(statement, statement.where(sa.false()))


def _recursive(statement: Any) -> Any:
    found = statement.cte(recursive=True)
    return found.union_all(select(found.c.id, found.c.body, found.c.user_id).where(sa.false()))


def _numbered(kind: Kind) -> Any:
    return select(*kind.parts, func.row_number().over(order_by=kind.model.id))


def _lambda(kind: Kind) -> Any:
    model = kind.model
    return sa.lambda_stmt(lambda: select(model.id, model.body))


def _with_user(kind: Kind) -> Any:
    return select(*kind.parts[:2], User.id).join(User, User.id == kind.model.user_id)


def _of_another(kind: Kind) -> Any:
    one, other = aliased(kind.model), aliased(kind.model)
    return select(one.id, one.body, other.user_id).join(other, other.id == one.id)


def _coerced(kind: Kind) -> Any:
    coerced = sa.type_coerce(kind.model.body, kind.table.c.body.type)
    return select(kind.model.id, coerced, kind.model.user_id)


def _labelled_inside(kind: Kind) -> Any:
    inner = select(kind.model.id, kind.model.body.label("x"), kind.model.user_id).subquery()
    return select(inner.c.id, inner.c.x, inner.c.user_id)


def _scalar_subquery(kind: Kind) -> Any:
    one, model = aliased(kind.model), kind.model
    return select(one.id, select(model.body).where(model.id == one.id).scalar_subquery(), one.user_id)


def _ranked(kind: Kind) -> Any:
    inner = select(*kind.parts, func.rank().over(order_by=kind.model.id).label("rank")).subquery()
    return select(inner.c.id, inner.c.body, inner.c.user_id).where(inner.c.rank > 0)


def _two_tables(kind: Kind) -> Any:
    other = kind.other
    return union_all(select(*kind.parts), select(other.id, other.body, other.user_id))


def _two_owner_classes(kind: Kind) -> Any:
    return union_all(select(*kind.parts), select(Team.id, kind.team, Team.id))


def _in_text(kind: Kind, prefix: str = "") -> Any:
    names = ("id", "user_id", "place", "body", "later")
    columns = ", ".join(f"{name} AS {prefix}{name}" if prefix else name for name in names)
    return text(f"SELECT {columns} FROM {kind.table.name}")


def _in_label_style(kind: Kind) -> Any:
    return select(kind.model).from_statement(_in_text(kind, f"{kind.table.name}_"))


def _text_columns(kind: Kind) -> Any:
    return text(f"SELECT id, body, user_id FROM {kind.table.name}").columns(*kind.parts)


def _text_types(kind: Kind) -> Any:
    return text(f"SELECT id, body, user_id FROM {kind.table.name}").columns(body=kind.table.c.body.type)


def _literal_column(kind: Kind) -> Any:
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


def _inserted(session: Session, kind: Kind) -> list[Read]:
    return [
        read
        for one in _added(session, kind)
        for read in rows(session.execute(insert(kind.model).values(one).returning(*kind.parts)).all())
    ]


def _inserted_objects(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    return objects(session.scalars(insert(kind.model).returning(kind.model), added).all())


def _inserted_many(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    statement = insert(kind.model).returning(*kind.parts, sort_by_parameter_order=True)
    return rows(session.execute(statement, added).all())


def _inserted_by_core(session: Session, kind: Kind) -> list[Read]:
    added = list(_added(session, kind))
    if not added:
        return []
    statement = insert(kind.table).returning(*kind.table.c["id", "body", "user_id"])
    return rows(session.connection().execute(statement, added).all())


def _upserted(session: Session, kind: Kind) -> list[Read]:
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


def _updated(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(update(kind.model).values(place=1).returning(*kind.parts)).all())


def _updated_objects(session: Session, kind: Kind) -> list[Read]:
    return objects(session.scalars(update(kind.model).values(place=1).returning(kind.model)).all())


def _updated_without(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(update(kind.model).values(place=1).returning(*kind.parts[:2])).all())


def _deleted(session: Session, kind: Kind) -> list[Read]:
    return rows(session.execute(sa.delete(kind.model).returning(*kind.parts)).all())


def _options(**options: Any) -> Reader:
    return _execute(lambda kind: select(*kind.parts).execution_options(**options))


def _lateral(kind: Kind) -> Any:
    inner = select(*kind.parts).where(kind.model.user_id == User.id).lateral()
    return select(inner.c.id, inner.c.body, inner.c.user_id).select_from(User).join(inner, sa.true())


def _inserted_past_a_trigger(session: Session, kind: Kind) -> list[Read]:
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


async def _async_scalars(session: AsyncSession, kind: Kind) -> list[Read]:
    return objects((await session.scalars(select(kind.model))).all())


async def _async_execute(session: AsyncSession, kind: Kind) -> list[Read]:
    return rows((await session.execute(select(*kind.parts))).all())


async def _stream(session: AsyncSession, kind: Kind) -> list[Read]:
    found = await session.stream(select(*kind.parts).execution_options(yield_per=2))
    return [read async for row in found for read in rows([row])]


async def _stream_scalars(session: AsyncSession, kind: Kind) -> list[Read]:
    found = await session.stream_scalars(select(kind.model).execution_options(yield_per=2))
    return [read async for one in found for read in objects([one])]


async def _async_core(session: AsyncSession, kind: Kind) -> list[Read]:
    connection = await session.connection()
    return rows((await connection.execute(select(*kind.table.c["id", "body", "user_id"]))).all())


async def _async_core_stream(session: AsyncSession, kind: Kind) -> list[Read]:
    connection = await session.connection()
    found = await connection.stream(select(*kind.table.c["id", "body", "user_id"]))
    return [read async for row in found for read in rows([row])]


OBJECTS = [
    Way("`select(Note)`", _load(lambda kind: select(kind.model))),
    Way("an alias", _load(lambda kind: select(aliased(kind.model)))),
    Way("a join of two aliases", _pairs),
    Way("`joinedload`", _of_users(joinedload)),
    Way("`selectinload`", _of_users(selectinload)),
    Way("`subqueryload`", _of_users(subqueryload)),
    Way("`immediateload`", _of_users(immediateload)),
    Way("`contains_eager`", _contained),
    Way("lazy loading", _of_users(None)),
    Way("`session.get`", _got),
    Way("`session.get(populate_existing=True)`", _got_anew),
    Way("`session.merge`", _merged),
    Way("a select of what the session has", _again),
    Way(
        "the same, `populate_existing`",
        _load(lambda kind: select(kind.model).execution_options(populate_existing=True)),
    ),
    Way("`defer`, then a touch", _load(lambda kind: select(kind.model).options(defer(kind.model.body)))),
    Way("a `deferred` column, then a touch", _load(lambda kind: select(kind.model), "later")),
    Way(
        "a `deferred` column, `undefer`",
        _load(lambda kind: select(kind.model).options(undefer(kind.model.later)), "later"),
    ),
    Way(
        "`load_only` of the value",
        _load(lambda kind: select(kind.model).options(load_only(kind.model.body))),
    ),
    Way(
        "`load_only` of another column, then a touch",
        _load(lambda kind: select(kind.model).options(load_only(kind.model.place))),
    ),
    Way("`refresh`", _refreshed()),
    Way("`refresh` of the value", _refreshed("body")),
    Way("`expire`, then a touch", _expired()),
    Way("`expire` of the value, then a touch", _expired("body")),
    Way("`commit`, then a touch", _committed),
    Way(
        "objects of a subquery",
        _load(lambda kind: select(aliased(kind.model, select(kind.model).subquery()))),
    ),
    Way("objects of a CTE", _load(lambda kind: select(aliased(kind.model, select(kind.model).cte())))),
    Way(
        "objects of a UNION",
        _load(lambda kind: select(aliased(kind.model, _twice(select(kind.model)).subquery()))),
    ),
    Way(
        "`from_statement` of a select",
        _load(lambda kind: select(kind.model).from_statement(select(kind.model))),
    ),
    Way("`from_statement` of a text", _load(lambda kind: select(kind.model).from_statement(_in_text(kind)))),
    Way("the same, its columns named `notes_body`", _load(_in_label_style)),
    Way("a `synonym`", _load(lambda kind: select(kind.model), "text")),
    Way("a `hybrid_property`", _load(lambda kind: select(kind.model), "shown")),
    Way("objects, `yield_per`", _yielded),
    Way("objects, `freeze`", _frozen_entities),
    Way("objects that were pickled, and added to the session", _pickled),
    Way("`session.query(Note)`", _query),
]
COLUMNS = [
    Way("columns with the owner's", _execute(lambda kind: select(*kind.parts))),
    Way("columns without it", _execute(lambda kind: select(*kind.parts[:2])), ADDS_OWNER),
    Way("the value alone", _scalars, ADDS_OWNER, UNBOUND),
    Way("columns of two aliases", _pair_columns),
    Way("a column beside its object", _beside),
    Way("a `Bundle` with the owner", _bundled_with_owner),
    Way("a `Bundle` without it", _bundled, UNPLACED, KEY_ALONE),
    Way(
        "a `hybrid_property` of the class",
        _execute(lambda kind: select(kind.model.id, kind.model.shown)),
        ADDS_OWNER,
    ),
    Way("`mappings()`", _mappings),
    Way(
        "labelled, with the owner",
        _execute(
            lambda kind: select(kind.model.id, kind.model.body.label("x"), kind.model.user_id.label("y"))
        ),
    ),
    Way(
        "labelled, without it",
        _execute(lambda kind: select(kind.model.id, kind.model.body.label("x"))),
        ADDS_OWNER,
    ),
    Way("columns without it, in a lambda", _execute(_lambda), UNPLACED, KEY_ALONE),
    Way("a join, the owner's key in place of the row's column", _execute(_with_user), ADDS_OWNER),
    Way("a join, the owner of another alias", _execute(_of_another), ADDS_OWNER),
    Way("GROUP BY with the owner", _execute(lambda kind: select(*kind.parts).group_by(kind.model.id))),
    Way("DISTINCT with the primary key and the owner", _execute(lambda kind: select(*kind.parts).distinct())),
    Way(
        "DISTINCT with the primary key alone",
        _execute(lambda kind: select(*kind.parts[:2]).distinct()),
        UNPLACED,
        KEY_ALONE,
    ),
    Way("a subquery with the owner", _subquery(lambda inner: inner.subquery())),
    Way("a subquery of a subquery", _subquery(lambda inner: select(inner.subquery()).subquery())),
    Way(
        "a subquery, the owner not selected from it",
        _subquery(lambda inner: inner.subquery(), owner=False),
        UNPLACED,
        KEY_ALONE,
    ),
    Way("a subquery with the owner of another row", _crossed, UNPLACED, KEY_ALONE),
    Way("a CTE", _subquery(lambda inner: inner.cte())),
    Way("a recursive CTE", _subquery(_recursive)),
    Way("a UNION", _execute(lambda kind: _twice(select(*kind.parts)))),
    Way("a UNION in a subquery", _subquery(lambda inner: _twice(inner).subquery())),
    Way("a UNION of two tables", _execute(_two_tables), linked=UNPLACED),
    Way("a UNION of two classes of owners", _execute(_two_owner_classes), UNPLACED, KEY_ALONE),
    Way("a window function beside it", _execute(_numbered)),
    Way("a subquery with a window function", _execute(_ranked)),
    Way("a scalar subquery", _execute(_scalar_subquery), UNPLACED, UNBOUND),
    Way(
        "a `column_property` of a scalar subquery",
        _load(lambda kind: select(kind.model), "copied"),
        UNPLACED,
        UNBOUND,
    ),
    Way("`query_expression`, `with_expression`", _load(_chosen, "chosen"), UNPLACED, UNBOUND),
    Way("`text().columns(Note.body, ...)`", _execute(_text_columns)),
    Way("`text().columns(body=EncryptedType(...))`", _execute(_text_types), UNPLACED, UNBOUND),
    Way("`literal_column` of that type", _execute(_literal_column), UNPLACED, UNBOUND),
    Way("`type_coerce` to that type", _execute(_coerced), UNPLACED, UNBOUND),
    Way("`session.query(Note.body, ...)`", _query_columns),
    Way("`fetchone`", _one_by_one),
    Way("`fetchmany`", _by_fetchmany),
    Way("`yield_per`", _options(yield_per=2)),
    Way("`partitions`", _by_parts),
    Way("`stream_results`", _options(stream_results=True)),
    Way("`freeze`", _frozen),
]
RETURNED = [
    Way("`insert().returning(Note.body, ...)`", _inserted, ADDED, ADDED),
    Way("`insert().returning(Note)` of many rows", _inserted_objects, ADDED, ADDED),
    Way("the same, `sort_by_parameter_order`", _inserted_many, ADDED, ADDED),
    Way("the same by Core", _inserted_by_core, ADDED, ADDED),
    Way("`ON CONFLICT DO UPDATE .. RETURNING`", _upserted),
    Way("`update().returning(Note.body, ...)`", _updated),
    Way("`update().returning(Note)`", _updated_objects),
    Way("`update().returning(..)` without the owner", _updated_without, UNPLACED, KEY_ALONE),
    Way("`delete().returning(Note.body, ...)`", _deleted),
]
CORE = [
    Way(
        "columns with the owner's, by Core",
        _core(lambda kind: select(*kind.table.c["id", "body", "user_id"])),
    ),
    Way(
        "columns without it, by Core",
        _core(lambda kind: select(*kind.table.c["id", "body"])),
        UNPLACED,
        KEY_ALONE,
    ),
    Way(
        "an alias, by Core",
        _core(lambda kind: select(*kind.table.alias().c["id", "body", "user_id"])),
    ),
    Way("classes on a connection", _core(lambda kind: select(*kind.parts))),
]
ASYNC: list[AsyncWay] = [
    AsyncWay("`AsyncSession.scalars`", _async_scalars),
    AsyncWay("`AsyncSession.execute`", _async_execute),
    AsyncWay("`AsyncSession.stream`", _stream),
    AsyncWay("`AsyncSession.stream_scalars`", _stream_scalars),
    AsyncWay("`AsyncConnection.execute`", _async_core),
    AsyncWay("`AsyncConnection.stream`", _async_core_stream),
]
POSTGRES = [
    Way("a server-side cursor", _options(stream_results=True, max_row_buffer=2)),
    Way("`yield_per`, a server-side cursor", _options(yield_per=2)),
    Way("LATERAL with the owner", _execute(_lateral)),
    Way("`insert().returning(..)`, a trigger has moved a value there", _inserted_past_a_trigger),
]
WAYS: dict[str, Sequence[Way]] = {
    "Objects": OBJECTS,
    "Columns": COLUMNS,
    "RETURNING": RETURNED,
    "A Core connection": CORE,
    "asyncio": ASYNC,
    "PostgreSQL": POSTGRES,
}
TRACED_TWICE = Way("a subquery with the owner, its value labelled", _execute(_labelled_inside))
"""Not read as the table would say. A column that is labelled in a subquery is traced on two ways, by the label and
by what it labels, and the owner beside it on one. So the row is taken for nobody's."""
LATE = {
    "`session.merge`",
    "`defer`, then a touch",
    "a `deferred` column, then a touch",
    "`load_only` of another column, then a touch",
    "`refresh` of the value",
    "`expire` of the value, then a touch",
}
"""Not read as the table says, where other rows lead to the owner and one user is unlocked: where the session has not
loaded those rows, a value that is loaded by itself is taken for that user's."""


# The page

_PAGE = """\
# What each way of reading gives

Made by `python -m tests.orm.reading.reading_table`, from the table that the tests go through cell by cell. Two rules are
enough to use the library:

- **Select the row's owner beside the value**, or the entity. What stands in a row is compared with its owner
  wherever the row says who that is.
- **For a value with `bind="row"`, select the primary key too.** Nothing opens it without.

| word | what a reader gets |
|---|---|
| value | what was written in this row |
| sealed | `LockedError` from an attribute; in a row of columns a `Sealed`, which says what to do |
| refused | `DecryptionError` from an attribute; in a row of columns a `Sealed` that raises it when it is used |
| own value | a value of the reader's own that was moved here. The row does not say whose it is, and nobody else is unlocked |

A *moved* value is one that somebody with write access to the database copied there from another owner's row.
A *genuine* one stands where it was written; it is never refused, and an object that was loaded before the unlock
makes no difference to that. A value whose key is locked is sealed wherever it stands. With nobody unlocked that is
every value.

Not in the tables is what SQLAlchemy does not know to be an encrypted column: `text("SELECT ...")` without
`.columns(...)`, `exec_driver_sql`, a driver's own cursor and `type_coerce(Note.body, String)` give the stored bytes.
What would compute on those, as `func.max(Note.body)` or `case`, is [refused](errors.md#statement-refused) before it is sent.
So is what would compare them, DISTINCT or a UNION of values: with the primary key among the columns it compares rows.

## Bound to its column

`EncryptedType(String)`. Between two rows of one owner a value can be moved, and nothing tells.

Where other rows lead to the owner (`owner="order.customer"`) each line is the same, but for a UNION of two tables: the
ways to their owners are two, so that one user reads a value, and several and a server get it sealed.

{column_table}

## Bound to its row

`EncryptedType(String, bind="row")`. A value that was moved from another row of the same owner gives the same as one
from another owner's.

{row_table}
"""


def table(kind: Kind) -> str:
    """The table of one kind of value, in Markdown."""
    lines = [
        "| way | one user: genuine | moved | several: genuine | moved | server: genuine | moved | nobody |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, ways in WAYS.items():
        lines.append(f"| **{group}** | | | | | | | |")
        for way in ways:
            outcome = way.outcome(kind)
            cells = [word for mode in ("one", "several", "server") for word in _two(outcome.of(mode), kind)]
            added = outcome is ADDED
            lines.append("| " + " | ".join([way.name, *cells, NONE if added else SEALED]) + " |")
    return "\n".join(lines)


def _two(words: tuple[str, str, str], kind: Kind) -> tuple[str, str]:
    """Of a genuine value and of one that was moved, from wherever that is told."""
    genuine, moved, within = words
    assert kind is COLUMN or moved == within
    return genuine, moved


def page() -> str:
    """The whole page."""
    return _PAGE.format(column_table=table(COLUMN), row_table=table(ROW))


if __name__ == "__main__":
    print(page(), end="")
