"""Statements on tables that have nothing to do with encryption: what is asked of them, and how often.

`python -m benchmarks --only plain-statements` tells what that takes; here it is counted.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    func,
    insert,
    lambda_stmt,
    quoted_name,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm import hooks
from sqlalchemy_envelope.orm.tables import watched
from sqlalchemy_envelope.orm.writing.plain import is_plain
from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock

pytestmark = pytest.mark.both_lines


class Base(DeclarativeBase):
    """Apart from the models of the other tests."""


class Region(Base):
    """Its members go with it."""

    __tablename__ = "plain_regions"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


class Member(KeyOwner, Base):
    __tablename__ = "plain_members"
    id: Mapped[int] = mapped_column(primary_key=True)
    region_id: Mapped[int | None] = mapped_column(ForeignKey(Region.id, ondelete="CASCADE"))


class Team(KeyOwner, Base):
    __tablename__ = "plain_teams"
    id: Mapped[int] = mapped_column(primary_key=True)


class Seat(KeyGrant, Base, of="team_id", to="member_id"):
    __tablename__ = "plain_seats"
    team_id: Mapped[int] = mapped_column(ForeignKey(Team.id, ondelete="CASCADE"), primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey(Member.id, ondelete="CASCADE"), primary_key=True)


class Order(Base):
    """Leads its items to their owner."""

    __tablename__ = "plain_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    member_id: Mapped[int] = mapped_column(ForeignKey(Member.id))
    member: Mapped[Member] = sa.orm.relationship()


class Item(Base):
    __tablename__ = "plain_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey(Order.id))
    order: Mapped[Order] = sa.orm.relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(String, owner="order.member"))


class City(Region):
    """A joined subclass: a bulk statement on it comes for each of its tables."""

    __tablename__ = "plain_cities"
    id: Mapped[int] = mapped_column(ForeignKey(Region.id), primary_key=True)
    mayor: Mapped[str | None]


REGIONS: Any = Region.__table__
sa.orm.configure_mappers()

PLAIN: dict[str, Callable[[Any], Any]] = {
    "Core SELECT": lambda s: s.execute(select(REGIONS.c.name).where(REGIONS.c.id == 1)).all(),
    "a function": lambda s: s.execute(select(func.count(REGIONS.c.id))).all(),
    "INSERT": lambda s: s.execute(insert(REGIONS), {"name": "x"}),
    "INSERT of many": lambda s: s.execute(insert(REGIONS), [{"name": "x"}, {"name": "y"}]),
    "INSERT, RETURNING": lambda s: s.execute(insert(REGIONS).returning(REGIONS.c.id), {"name": "x"}).all(),
    "UPDATE": lambda s: s.execute(update(REGIONS).where(REGIONS.c.id == 1), {"name": "z"}),
    "DELETE": lambda s: s.execute(delete(City.__table__).where(City.__table__.c.id == 0)),
}
OF_A_SESSION: dict[str, Callable[[Session], Any]] = {
    "objects": lambda s: s.scalars(select(Region).where(Region.id == 1)).all(),
    "get": lambda s: s.get(Region, 1, populate_existing=True),
    "a flush": lambda s: (s.add(Region(name="x")), s.flush()),
    "a bulk INSERT": lambda s: s.execute(insert(Region), [{"name": "x"}]),
    "a bulk INSERT of a joined class": lambda s: s.execute(insert(City), [{"name": "x", "mayor": "y"}]),
    "an ORM UPDATE": lambda s: s.execute(update(Region).where(Region.id == 1).values(name="z")),
}


SERVER = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))]))


@pytest.fixture(autouse=True)
def of_one_application() -> Iterator[None]:
    """The models of other tests are configured when those run, or never."""
    waiting = set(watched.EXPECTED)
    watched.EXPECTED.clear()
    yield
    watched.EXPECTED.update(waiting)


@pytest.fixture
def made(lite: Started) -> Started:
    Base.metadata.create_all(lite.engine)
    with Session(lite.engine) as session:
        session.add(Region(id=1))
        session.commit()
    return lite


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of statements beyond the first question, and the walk over the elements of one."""
    calls: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls.append(name)
            return function(*arguments, **named)

        monkeypatch.setattr(module, name, counted)

    for module, name in (
        (hooks.statements, "encrypt"),
        (hooks.membership, "on_statement"),
        (hooks, "_check"),
        (hooks, "_read"),
        (hooks.forms, "elements_in"),
        (hooks.gate, "check_writes"),
    ):
        count(module, name)
    return calls


@pytest.mark.parametrize("inside", ["nobody", "one unlocked", "server mode"])
def test_a_plain_statement_is_asked_one_question(made: Started, asked: list[str], inside: str) -> None:
    """Once it is compiled, nothing else looks at it: it is neither walked nor encrypted nor opened."""
    with Session(made.engine) as session:
        entered: Any = {
            "nobody": nullcontext,
            "one unlocked": lambda: unlock(session, session.get_one(User, made.ada.id)),
            "server mode": lambda: SERVER.server_mode(reason="test"),
        }[inside]()
        found: dict[str, list[str]] = {}
        with entered, made.engine.connect() as connection, Session(connection) as other:
            todo = [(name, run, connection) for name, run in PLAIN.items()]
            todo += [(f"{name}, session", run, other) for name, run in (PLAIN | OF_A_SESSION).items()]
            for name, run, on in todo:
                run(on)  # compiled, and looked at once
                asked.clear()
                run(on)
                found[name] = list(asked)

    assert {name: calls for name, calls in found.items() if calls} == {}
    assert 2 * len(PLAIN) + len(OF_A_SESSION) == len(found)


def test_a_compiled_statement_is_walked_once(lite: Started, asked: list[str]) -> None:
    """The gate looks at a compiled statement with encrypted columns once, and its rows are opened each
    time."""
    with lite.engine.connect() as connection:
        connection.execute(select(Note.__table__.c.body, Note.__table__.c.title)).all()
        before = list(asked)
        asked.clear()
        connection.execute(select(Note.__table__.c.body, Note.__table__.c.title)).all()

    assert ("elements_in" in before, "check_writes" in before) == (True, True)
    assert asked == ["_read"]


def named(name: str) -> Table:
    """Another table of this name, which knows of no encryption."""
    return Table(name, MetaData(), Column("id", Integer, primary_key=True), Column("body", LargeBinary))


ADDED = insert(Note).values(body="x").returning(Note.id).cte("added")
WATCHED: dict[str, Any] = {
    "encrypted": insert(Note),
    "encrypted, UPDATE": update(Note.__table__),
    "of an alias": update(aliased(Note.__table__, name="n")),
    "of another Table": insert(named("notes")),
    "in other letters": insert(named("NOTES")),
    "quoted": insert(named(quoted_name("Notes", quote=True))),
    "in another schema": insert(Table("notes", MetaData(), Column("id", Integer), schema="s")),
    "a bare name": insert(sa.table("notes", sa.column("body"))),
    "an owner": update(Member),
    "a grant": insert(Seat),
    "what leads to an owner": update(Order),
    "an upsert of that": sqlite.insert(Order.__table__).on_conflict_do_nothing(),
    "owners go with it": delete(Region),
    "in a lambda": lambda_stmt(lambda: insert(Note)),
    "from_statement": select(Note).from_statement(insert(Note).returning(Note)),
    "text": text("SELECT 1"),
    "a UNION": select(Note.id).union(select(Note.id)),
}
WATCHED_IN_CTES: dict[str, Any] = {
    "a CTE": select(ADDED.c.id),
    "beside": select(sa.literal(1)).add_cte(ADDED),
    "INSERT FROM": insert(REGIONS).from_select(["id"], select(ADDED.c.id)),
    "before an UPDATE": update(REGIONS).values(name="x").add_cte(ADDED),
}


class On:
    """What a question about statements asks a connection."""

    def __init__(self, dialect: Any) -> None:
        self.dialect = dialect


@pytest.mark.parametrize("dialect", [sqlite.dialect(), postgresql.dialect(), mysql.dialect()])
def test_which_statements_are_not_plain(dialect: Any) -> None:
    """Whatever may write to a table of a watched name, by whichever Table object, alias or form, is looked
    at; so is a DELETE that takes owners along."""
    on: Any = On(dialect)
    in_ctes = WATCHED_IN_CTES if dialect.name == "postgresql" else {}

    assert [name for name, one in (WATCHED | in_ctes).items() if is_plain(on, one)] == []
    assert is_plain(on, update(REGIONS).values(name="x"))
    assert is_plain(on, delete(City.__table__))


def test_a_bulk_statement_on_a_joined_class() -> None:
    """It comes once for each table: it is looked at if the one that it writes to, or its class's, is
    watched."""
    on: Any = On(sqlite.dialect())

    assert not is_plain(on, insert(REGIONS)._annotate({"_emit_insert_table": Note.__table__}))
    assert not is_plain(on, insert(Note.__table__)._annotate({"_emit_insert_table": REGIONS}))
    assert not is_plain(on, update(REGIONS)._annotate({"_emit_update_table": Note.__table__}))
    assert is_plain(on, insert(REGIONS)._annotate({"_emit_insert_table": City.__table__}))


def test_a_table_that_is_declared_later(lite: Started) -> None:
    """A statement that was plain is so no longer when a model of this name appears, whatever was found out of
    it before."""
    of_old = named("plain_until_declared")
    of_old.create(lite.engine)
    statement = insert(of_old)
    with lite.engine.begin() as connection:
        connection.execute(statement, {"id": 1, "body": b"x"})
        before = is_plain(connection, statement)

    class Later(Base):
        __tablename__ = "plain_until_declared"
        id: Mapped[int] = mapped_column(primary_key=True)
        member_id: Mapped[int] = mapped_column(ForeignKey(Member.id))
        body: Mapped[str | None] = mapped_column(EncryptedType(String, owner="member_id"))

    Base.metadata.create_all(lite.engine)
    with lite.engine.connect() as connection:
        after = is_plain(connection, statement)
        with pytest.raises(StatementRefusedError, match="plain_until_declared"):
            connection.execute(statement, {"id": 2, "body": b"plaintext"})

    assert (before, after) == (True, False)


def test_while_mappers_wait_to_be_configured() -> None:
    """Until then nobody knows which tables lead to an owner: every write to a table of their MetaData is
    looked at. An application may have classes that it never uses, and they cost the others nothing."""
    on: Any = On(sqlite.dialect())
    before = is_plain(on, insert(REGIONS))

    class Reply(Base):
        __tablename__ = "plain_replies"
        id: Mapped[int] = mapped_column(primary_key=True)
        item_id: Mapped[int] = mapped_column(ForeignKey(Item.id))
        item: Mapped[Item] = sa.orm.relationship()
        text: Mapped[str | None] = mapped_column(EncryptedType(String, owner="item.order.member"))

    waiting = is_plain(on, insert(REGIONS))
    elsewhere = is_plain(on, insert(named("of_another_part")))
    sa.orm.configure_mappers()

    assert (before, waiting, is_plain(on, insert(REGIONS))) == (True, False, True)
    assert elsewhere
    assert not is_plain(on, update(Item))
