"""Who changes what leads to the owner of encrypted values, and who encrypts for an owner behind other rows: a
value is never stored under the key of another owner than its row's."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, MetaData, Table, Text, insert, select, table, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, foreign, mapped_column, relationship, synonym

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
)
from tests.prepared import prepared

pytestmark = pytest.mark.both_lines


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    total: Mapped[int | None]
    customer: Mapped[User | None] = relationship()
    buyer: Mapped[int | None] = synonym("customer_id")


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="order.customer"))


class Label(Base):
    __tablename__ = "labels"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int | None] = mapped_column(ForeignKey("items.id"))
    item: Mapped[Item | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="item.order.customer"))


class Node(Base):
    __tablename__ = "nodes"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("nodes.id"))
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    parent: Mapped["Node | None"] = relationship(remote_side="Node.id")
    user: Mapped[User | None] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="parent.user"))


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    user: Mapped[User] = relationship(post_update=True)
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "doc"}


class Letter(Doc):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(ForeignKey("docs.id"), primary_key=True)
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "letter"}


OWNERS = {
    "items": "SELECT i.id, o.customer_id, i.text FROM items i LEFT JOIN orders o ON o.id = i.order_id",
    "labels": "SELECT l.id, o.customer_id, l.text FROM labels l JOIN items i ON i.id = l.item_id "
    "LEFT JOIN orders o ON o.id = i.order_id",
    "nodes": "SELECT n.id, p.user_id, n.text FROM nodes n JOIN nodes p ON p.id = n.parent_id",
    "letters": "SELECT l.id, d.user_id, l.text FROM letters l JOIN docs d ON d.id = l.id",
}
ISOLATION = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


@dataclass
class Shop:
    """Users 1 and 2; order 1 of user 1 with an item, order 2 of user 2 without, letter 1 of user 1; node 2
    of user 1, with a value behind it in the nodes 1 and 3."""

    engine: Engine
    envelope: Envelope

    @contextmanager
    def session(self, **options: Any) -> Iterator[Session]:
        with Session(self.engine, **options) as session, self.envelope.server_mode(session, reason="test"):
            yield session

    def stored(self, table_name: str) -> dict[int, tuple[Any, Any]]:
        """By primary key, the owner of a row and the owner of the key that its value names, read past the
        library."""
        keys = Base.metadata.tables["users_key"]
        with self.engine.connect() as connection:
            named = {
                one.bytes: owner for one, owner in connection.execute(select(keys.c.key_id, keys.c.owner_id))
            }
            rows = connection.exec_driver_sql(OWNERS[table_name]).all()
        return {key: (owner, named[bytes(blob)[1:17]]) for key, owner, blob in rows if blob is not None}

    def is_sound(self) -> bool:
        """Whether each value is under the key of its row's owner."""
        return all(owner == key for name in OWNERS for owner, key in self.stored(name).values())


@pytest.fixture
def shop(engine: Engine) -> Shop:
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    shop = Shop(engine, envelope)

    def make() -> None:
        Base.metadata.create_all(engine)
        with shop.session() as session:
            session.add_all([User(id=1), User(id=2)])
            session.flush()
            session.add_all([Order(id=1, customer_id=1), Order(id=2, customer_id=2)])
            session.flush()
            session.add_all([Item(id=1, order_id=1, text="item"), Letter(id=1, user_id=1, text="letter")])
            session.add(Node(id=4, user_id=1))
            session.flush()
            session.add(Node(id=2, user_id=1, parent_id=4))
            session.flush()
            session.add_all([Node(id=at, parent_id=2, text=f"node {at}") for at in (1, 3)])
            session.commit()

    prepared(engine, "shop", make)
    return shop


def upsert(session: Session, model: Any) -> Any:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return (sqlite.insert if is_sqlite else postgresql.insert)(model)


def _upsert_order(session: Session) -> None:
    statement = upsert(session, Order).values(id=1, customer_id=2)
    assigned = {"customer_id": statement.excluded.customer_id}
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=assigned))


def _upsert_doc(session: Session) -> None:
    statement = upsert(session, Doc).values(id=1, kind="letter", user_id=2)
    assigned = {"user_id": statement.excluded.user_id}
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=assigned))


def _switch_order(session: Session) -> None:
    session.delete(session.get_one(Order, 1))
    session.add(Order(id=1, customer_id=2))
    session.flush()


def _switch_letter(session: Session) -> None:
    session.delete(session.get_one(Letter, 1))
    session.add(Letter(id=1, user_id=2))
    session.flush()


def _flush_order(session: Session) -> None:
    session.get_one(Order, 1).customer_id = 2
    session.flush()


def _empty_customer(session: Session) -> None:
    session.get_one(Order, 1).customer = None
    session.flush()


def _reflected(session: Session) -> None:
    orders = Table("orders", MetaData(), autoload_with=session.connection())
    session.execute(update(orders).where(orders.c.id == 1).values(customer_id=2))


def _changed_unnamed(session: Session) -> None:
    columns = (sa.Column("id", sa.Integer, primary_key=True), sa.Column("total", sa.Integer))
    orders = Table("orders", MetaData(), *columns, sa.Column("customer_id", sa.Integer, onupdate=2))
    session.execute(update(orders).values(total=1))


def _lightweight(session: Session) -> None:
    orders = table("orders", sa.column("id"), sa.column("customer_id"))
    session.execute(update(orders).where(orders.c.id == 1).values(customer_id=2))


def _bound(session: Session) -> None:
    statement = update(Order.__table__).where(Order.__table__.c.id == sa.bindparam("at"))
    statement = statement.values(customer_id=sa.bindparam("whose"))
    session.connection().execute(statement, [{"at": 2, "whose": 2}, {"at": 1, "whose": 2}])


def _over_a_literal(session: Session) -> None:
    session.execute(update(Order).where(Order.id == 1).values(customer_id=1), {"customer_id": 2})


def _key_of_a_subclass(session: Session) -> None:
    letters: Any = Letter.__table__
    session.execute(insert(Doc.__table__).values(id=50, kind="doc", user_id=2))  # type: ignore[arg-type]
    session.execute(update(letters).where(letters.c.id == 1).values(id=50))


def _in_a_cte(session: Session) -> None:
    moving = update(Order).where(Order.id == 1).values(customer_id=2).returning(Order.id).cte()
    if session.get_bind().dialect.name == "sqlite":
        pytest.skip("SQLite writes in no CTE")
    session.execute(select(moving.c.id))


def _nodes(session: Session) -> tuple[Node, ...]:
    return tuple(session.get_one(Node, at) for at in (1, 2, 3))


def _written_before(session: Session) -> None:
    first, parent, last = _nodes(session)
    parent.user_id, first.text, last.text = 2, "new", None
    session.flush()


def _written_after(session: Session) -> None:
    first, parent, last = _nodes(session)
    parent.user_id, first.text, last.text = 2, None, "new"
    session.flush()


def _written_with_it(session: Session) -> None:
    first, parent, last = _nodes(session)
    last.text = None
    session.flush()
    for node in (first, parent):
        node.user_id, node.text = 2, "new"
    session.flush()


def _moved_at_the_end(session: Session) -> None:
    letter = session.get_one(Letter, 1)
    letter.text, letter.user = "new", session.get_one(User, 2)
    session.flush()


def _moved_by_a_listener(session: Session) -> None:
    moving = update(Doc.__table__).where(Doc.__table__.c.id == 1).values(user_id=2)

    def move(_: Any, connection: Any, target: Any) -> None:
        connection.execute(moving)

    sa.event.listen(Letter, "before_update", move)
    try:
        session.get_one(Letter, 1).text = "new"
        session.flush()
    finally:
        sa.event.remove(Letter, "before_update", move)


MOVES: dict[str, Callable[[Session], Any]] = {
    "a flush": _flush_order,
    "a flush that empties": _empty_customer,
    "merge": lambda s: (s.merge(Order(id=1, customer_id=2)), s.flush()),
    "another row in its place": _switch_order,
    "a flush that wrote the value before": _written_before,
    "a flush that writes the value after": _written_after,
    "a flush that writes the value with it": _written_with_it,
    "a flush that moves the row at its end": _moved_at_the_end,
    "a listener of a flush": _moved_by_a_listener,
    "bulk_update_mappings": lambda s: s.bulk_update_mappings(Order, [{"id": 1, "customer_id": 2}]),  # type: ignore[arg-type]
    "a list of rows": lambda s: s.execute(update(Order), [{"id": 1, "customer_id": 2}]),
    "update": lambda s: s.execute(update(Order).where(Order.id == 1).values(customer_id=2)),
    "update of all": lambda s: s.execute(update(Order).values(customer_id=2)),
    "update by another column": lambda s: s.execute(
        update(Order).where(Order.customer_id == 1).values(customer_id=2)
    ),
    "an expression": lambda s: s.execute(update(Order).values(customer_id=3 - Order.customer_id)),
    "a synonym": lambda s: s.execute(update(Order).where(Order.id == 1).values(buyer=2)),
    "ordered_values": lambda s: s.execute(
        update(Order).where(Order.id == 1).ordered_values((Order.customer_id, 2))
    ),
    "query.update": lambda s: s.query(Order).filter_by(id=1).update({"customer_id": 2}),
    "a lambda": lambda s: s.execute(
        sa.lambda_stmt(lambda: update(Order).where(Order.id == 1).values(customer_id=2))
    ),
    "bound parameters": _bound,
    "a parameter over a literal": _over_a_literal,
    "the key of a subclass": _key_of_a_subclass,
    "a CTE": _in_a_cte,
    "an upsert": _upsert_order,
    "a reflected table": _reflected,
    "another table's onupdate": _changed_unnamed,
    "a lightweight table": _lightweight,
    "the base: update": lambda s: s.execute(update(Doc).where(Doc.id == 1).values(user_id=2)),
    "the base: a list of rows": lambda s: s.execute(update(Doc), [{"id": 1, "user_id": 2}]),
    "the subclass: a list of rows": lambda s: s.execute(update(Letter), [{"id": 1, "user_id": 2}]),
    "the subclass: with the value": lambda s: s.execute(
        update(Letter), [{"id": 1, "user_id": 2, "text": "new"}]
    ),
    "the subclass: bulk_update_mappings": lambda s: s.bulk_update_mappings(
        Letter,  # type: ignore[arg-type]
        [{"id": 1, "user_id": 2}],
    ),
    "the base: query.update": lambda s: s.query(Doc).filter_by(id=1).update({"user_id": 2}),
    "the base: an upsert": _upsert_doc,
    "the subclass: another row in its place": _switch_letter,
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_move_that_leaves_values_behind_is_refused(shop: Shop, move: Callable[[Session], Any]) -> None:
    """Whatever form a statement has, the row stays where it is, also if the rest is committed."""
    with shop.session() as session:
        with pytest.raises(
            StatementRefusedError, match=r"the owner of encrypted values|encrypted for where it was"
        ):
            move(session)
        if session.is_active:
            session.commit()

    assert shop.is_sound()
    assert {1: (1, 1)} == shop.stored("items") == shop.stored("letters")
    assert shop.stored("nodes") == {1: (1, 1), 3: (1, 1)}


def _switch_letter_with_value(session: Session, **values: Any) -> None:
    session.delete(session.get_one(Letter, 1))
    session.add(Letter(id=1, text="new", **values))
    session.flush()


HARMLESS: dict[str, Callable[[Session], Any]] = {
    "the same owner": lambda s: s.execute(update(Order).where(Order.id == 1).values(customer_id=1)),
    "the same owner for all": lambda s: s.execute(update(Order).values(customer_id=Order.customer_id)),
    "a list with the same owner": lambda s: s.execute(
        update(Order), [{"id": 1, "customer_id": 1, "total": 5}]
    ),
    "no values behind it": lambda s: s.execute(update(Order).where(Order.id == 2).values(customer_id=1)),
    "another column": lambda s: s.execute(update(Order).values(total=7)),
    "no such row": lambda s: s.execute(update(Order).where(Order.id == 9).values(customer_id=2)),
    "an upsert of another column": lambda s: s.execute(
        upsert(s, Order)
        .values(id=1, customer_id=2, total=1)
        .on_conflict_do_update(index_elements=["id"], set_={"total": 3})
    ),
    "another letter in its place": lambda s: _switch_letter_with_value(s, user_id=2),
    "another letter in its place, of the same user": _switch_letter_with_value,
    "an object of a joined subclass": lambda s: (setattr(s.get_one(Letter, 1), "user_id", 2), s.flush()),
}


@pytest.mark.parametrize("move", HARMLESS.values(), ids=HARMLESS)
def test_what_moves_no_value_is_allowed(shop: Shop, move: Callable[[Session], Any]) -> None:
    """A statement is refused only for values that it would leave under another owner's key."""
    with shop.session() as session:
        move(session)
        session.commit()

    assert shop.is_sound()


@pytest.mark.any_database
def test_an_object_of_a_joined_subclass_takes_its_value_along(shop: Shop) -> None:
    """A flush that moves the row in the base table writes the value in the subclass's table anew."""
    with shop.session() as session:
        session.get_one(Letter, 1).user_id = 2
        session.commit()

        assert session.get_one(Letter, 1).text == "letter"
    assert shop.stored("letters") == {1: (2, 2)}


@pytest.mark.any_database
def test_a_path_of_three_steps_is_watched_at_each(shop: Shop) -> None:
    """A row in the middle of the way to the owner cannot be moved past what hangs on it."""
    with shop.session() as session:
        session.add(Label(id=1, item_id=1, text="label"))
        session.execute(update(Item).values(text=None))
        session.commit()
        with pytest.raises(StatementRefusedError, match=r"items\.order_id leads .* labels\.text"):
            session.execute(update(Item), [{"id": 1, "order_id": 2}])
        with pytest.raises(StatementRefusedError, match=r"orders\.customer_id leads .* labels\.text"):
            session.execute(update(Order), [{"id": 1, "customer_id": 2}])
        session.commit()

    assert shop.stored("labels") == {1: (1, 1)}


def _by_id(session: Session, order: Order) -> None:
    order.customer_id = 1
    session.add(Item(id=9, order_id=2, text="new"))


def _by_relationship(session: Session, order: Order) -> None:
    order.customer = session.get_one(User, 1)
    session.add(Item(id=9, order=order, text="new"))


def _expired(session: Session, order: Order) -> None:
    session.add(Item(id=9, order_id=2))
    session.commit()
    order.customer_id = 1
    session.get_one(Item, 9).text = "new"


@pytest.mark.parametrize("write", [_by_id, _by_relationship, _expired])
@pytest.mark.any_database
def test_a_value_of_the_flush_that_moves_its_owner(
    shop: Shop, write: Callable[[Session, Order], None]
) -> None:
    """An item that is written with its order's move is encrypted for the owner that the order has then."""
    with shop.session(autoflush=False) as session:
        write(session, session.get_one(Order, 2))
        session.commit()

    assert shop.stored("items")[9] == (1, 1)


@pytest.mark.parametrize("form", ["by id", "by object", "bulk"])
@pytest.mark.any_database
def test_an_object_older_than_its_row_does_not_decide(shop: Shop, form: str) -> None:
    """An order that others moved is asked for in the database, whatever the session has loaded."""
    with shop.session(expire_on_commit=False) as session:
        order = session.get_one(Order, 2)
        session.commit()
        with shop.session() as other:
            other.get_one(Order, 2).customer_id = 1
            other.commit()
        if form == "bulk":
            session.execute(insert(Item), [{"id": 9, "order_id": 2, "text": "a"}])
        else:
            session.add(
                Item(id=9, **({"order": order} if form == "by object" else {"order_id": 2}), text="a")
            )
        session.commit()

    assert shop.stored("items")[9] == (1, 1)


@contextmanager
def counting(engine: Engine, *words: str) -> Iterator[list[str]]:
    """The statements with all of these words."""
    sent: list[str] = []

    def note(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if all(word in statement for word in words):
            sent.append(statement)

    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


@pytest.mark.any_database
def test_one_question_for_a_batch(shop: Shop) -> None:
    """However many items a flush or a bulk INSERT writes, their orders are asked for once; a letter's flush
    asks nothing, and a bulk INSERT of letters asks their base table once."""
    with shop.session() as session, counting(shop.engine, "SELECT", "FROM orders") as asked:
        session.add_all([Item(id=10 + at, order_id=1 + at % 2, text="a") for at in range(20)])
        session.flush()
        flushed = len(asked)
        session.execute(
            insert(Item), [{"id": 50 + at, "order_id": 1 + at % 2, "text": "a"} for at in range(20)]
        )

        assert (flushed, len(asked)) == (1, 2)
        with counting(shop.engine, "SELECT", "FROM docs") as bases:
            session.add_all([Letter(id=10 + at, user_id=1 + at % 2, text="a") for at in range(20)])
            session.flush()
            flushed = len(bases)
            rows = [{"id": 50 + at, "user_id": 1 + at % 2, "text": "a"} for at in range(20)]
            session.execute(insert(Letter), rows)

            assert (flushed, len(bases)) == (0, 1)
        session.commit()
    assert shop.is_sound()


@pytest.mark.any_database
def test_bulk_statements_on_a_joined_subclass(shop: Shop) -> None:
    """The base table is asked whose rows these are, for an INSERT and for an UPDATE of the value alone."""
    with shop.session() as session:
        session.execute(insert(Letter), [{"id": 8, "user_id": 2, "text": "a"}])
        session.bulk_save_objects([Letter(id=9, user_id=2, text="b")])
        session.execute(update(Letter), [{"id": 1, "text": "c"}, {"id": 8, "text": "d"}])
        session.commit()

        assert list(session.scalars(select(Letter.text).order_by(Letter.id))) == ["c", "d", "b"]
    assert shop.stored("letters") == {1: (1, 1), 8: (2, 2), 9: (2, 2)}


def test_the_first_statement_of_a_process(tmp_path: Any) -> None:
    """A process that begins with Core knows what leads to owners before any class was used."""
    program = f"""
        from sqlalchemy import create_engine, update
        from tests.orm.writing.test_moved_links import Base, Order
        from sqlalchemy_envelope import StatementRefusedError
        engine = create_engine("sqlite:///{tmp_path}/shop.db")
        orders = Order.__table__
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            connection.exec_driver_sql("insert into users (id) values (1), (2)")
            connection.exec_driver_sql("insert into orders (id, customer_id) values (1, 1)")
            connection.exec_driver_sql("pragma ignore_check_constraints = 1")
            connection.exec_driver_sql("insert into items (id, order_id, text) values (1, 1, x'01')")
            try:
                connection.execute(update(orders).where(orders.c.id == 1).values(customer_id=2))
            except StatementRefusedError as error:
                print("refused")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, capture_output=True, text=True
    )

    assert done.stdout.strip() == "refused"


def test_another_database_with_a_table_of_that_name(shop: Shop, tmp_path: Any) -> None:
    """A table that is called `orders` in a database without items is nobody's concern."""
    other = sa.create_engine(f"sqlite:///{tmp_path}/other.db")
    orders = table("orders", sa.column("customer_id"))
    with other.begin() as connection:
        connection.exec_driver_sql("create table orders (customer_id integer)")
        connection.execute(insert(orders).values(customer_id=1))
        connection.execute(update(orders).values(customer_id=2))

        assert connection.scalar(select(orders.c.customer_id)) == 2


def test_a_table_of_that_name_in_another_schema() -> None:
    """It leads to owners where encrypted values are stored beside it, as in a tenant's schema."""
    engine = sa.create_engine("sqlite://")
    tenant, other = (table("orders", sa.column("customer_id"), schema=one) for one in ("tenant", "other"))
    with engine.begin() as connection:
        for schema, kind in (("tenant", "blob"), ("other", "varchar")):
            connection.exec_driver_sql(f"attach ':memory:' as {schema}")
            connection.exec_driver_sql(f"create table {schema}.orders (customer_id integer)")
            connection.exec_driver_sql(f"create table {schema}.items (text {kind})")
        connection.execute(insert(other).values(customer_id=1))
        connection.execute(update(other).values(customer_id=2))
        with pytest.raises(StatementRefusedError, match="another Table object"):
            connection.execute(update(tenant).values(customer_id=2))

        assert connection.scalar(select(other.c.customer_id)) == 2


# Two transactions at a time. Each step of the second waits for a lock of the first at most half a second.


@pytest.fixture
def contested(postgres_engine: Engine) -> Iterator[Shop]:
    """Two empty orders, and keys for both users."""
    url = postgres_engine.url.update_query_dict({"options": "-c lock_timeout=500"})
    engine = sa.create_engine(url)
    Base.metadata.create_all(engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    made = Shop(engine, envelope)
    with made.session() as session:
        session.add_all([User(id=1), User(id=2)])
        session.flush()
        session.add_all([Order(id=1, customer_id=1), Order(id=2, customer_id=2)])
        session.flush()
        session.add(Item(id=1, order_id=1, text="keys for user 1"))
        session.add(Item(id=2, order_id=2, text="keys for user 2"))
        session.flush()
        session.execute(sa.delete(Item))
        session.commit()
    yield made
    engine.dispose()


def _move(session: Session) -> None:
    session.execute(update(Order).where(Order.id == 1).values(customer_id=2))


def _add(session: Session) -> None:
    session.execute(insert(Item).values(id=1, order_id=1, text="new"))


INTERLEAVED = [
    "move add commit-move commit-add",
    "move add commit-add commit-move",
    "add move commit-add commit-move",
    "add move commit-move commit-add",
    "move commit-move add commit-add",
    "add commit-add move commit-move",
]


@pytest.mark.backend
@pytest.mark.parametrize("steps", INTERLEAVED)
@pytest.mark.parametrize("isolation", ISOLATION)
def test_a_move_beside_a_new_value(contested: Shop, steps: str, isolation: str) -> None:
    """One transaction moves an empty order, another adds an item: in whatever order, with both snapshots
    taken first, at most one gets through where both would leave the item under the former owner's key."""
    refused = []
    contested.engine = engine = contested.engine.execution_options(isolation_level=isolation)
    sessions = {"move": Session(engine), "add": Session(engine)}
    server = contested.envelope.server_mode(reason="test").everywhere()
    for session in sessions.values():
        session.scalar(select(Order.total).where(Order.id == 2))
    for step in steps.split():
        verb, _, who = step.rpartition("-")
        session = sessions[who]
        try:
            if verb:
                session.commit()
            elif who in refused:
                continue
            else:
                {"move": _move, "add": _add}[who](session)
        except (DBAPIError, StatementRefusedError):
            session.rollback()
            refused.append(who)
    for session in sessions.values():
        session.close()
    server.stop()

    assert contested.is_sound()
    assert len(refused) < 2


@pytest.mark.backend
def test_a_new_value_waits_for_a_move(contested: Shop) -> None:
    """At READ COMMITTED an item that is added during a move is encrypted for the new owner."""
    engine = contested.engine.execution_options()
    server = contested.envelope.server_mode(reason="test").everywhere()
    with Session(engine) as mover, Session(engine) as adder:
        _move(mover)
        waiting = threading.Thread(target=lambda: (_add(adder), adder.commit()))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
        mover.commit()
        waiting.join(5)
    server.stop()

    assert contested.stored("items") == {1: (2, 2)}


@pytest.mark.backend
def test_items_beside_a_changed_total(contested: Shop) -> None:
    """Two that add an item to one order and then change its total wait for each other no longer than without
    encryption: what they lock is what a foreign key locks."""
    server = contested.envelope.server_mode(reason="test").everywhere()
    with Session(contested.engine) as one, Session(contested.engine) as other:
        one.execute(insert(Item).values(id=1, order_id=1, text="new"))
        other.execute(insert(Item).values(id=2, order_id=1, text="new"))
        one.execute(update(Order).where(Order.id == 1).values(total=1))
        one.commit()
        other.execute(update(Order).where(Order.id == 1).values(total=2))
        other.commit()
    server.stop()

    assert contested.is_sound()


# A row on the way that is found by something other than a foreign key


class Coded(DeclarativeBase):
    pass


class Member(KeyOwner, Coded):
    __tablename__ = "coded_members"
    id: Mapped[int] = mapped_column(primary_key=True)


class Code(Coded):
    __tablename__ = "codes"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(Text, unique=True)
    member_id: Mapped[int] = mapped_column(ForeignKey("coded_members.id"))
    member: Mapped[Member] = relationship()


class Leaf(Coded):
    __tablename__ = "leaves"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(Text)
    by_code: Mapped[Code] = relationship(primaryjoin=lambda: foreign(Leaf.code) == Code.code)
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="by_code.member"))


class Later(Coded):
    """Its foreign key is looked at when the transaction ends, and two rows may change places before."""

    __tablename__ = "laters"
    id: Mapped[int] = mapped_column(primary_key=True)
    code_id: Mapped[int] = mapped_column(ForeignKey("codes.id", deferrable=True, initially="DEFERRED"))
    by_id: Mapped[Code] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="by_id.member"))


def _renamed_object(session: Session) -> None:
    session.get_one(Code, 1).code = "new"
    session.flush()


CODES: dict[str, Callable[[Session], object]] = {
    "an object": _renamed_object,
    "an update": lambda session: session.execute(update(Code).values(code="new").where(Code.id == 1)),
    "an update by what it changes": lambda session: session.execute(
        update(Code).values(code="new").where(Code.code == "a")
    ),
    "rows": lambda session: session.execute(update(Code), [{"id": 2, "code": "c"}, {"id": 1, "code": "d"}]),
    "another Table object": lambda session: session.execute(
        update(table("codes", sa.column("code"))).values(code="new")
    ),
    "a key that is held at the end alone": lambda session: session.execute(
        update(Code.__table__).where(Code.id == 1).values(id=7)
    ),
}


@pytest.mark.parametrize("how", CODES)
@pytest.mark.any_database
def test_what_a_row_is_found_by(engine: Engine, how: str) -> None:
    """A row on the way to the owner keeps what it is found by while encrypted values hang on it, where no
    foreign key sees to that; without such values it changes freely."""
    Coded.metadata.create_all(engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        session.add_all([Member(id=1), Member(id=2)])
        session.flush()
        session.add_all([Code(id=1, code="a", member_id=1), Code(id=2, code="b", member_id=2)])
        session.flush()
        session.add_all([Leaf(id=1, code="a", text="of 1"), Later(id=1, code_id=1, text="of 1")])
        session.commit()
        with pytest.raises(StatementRefusedError, match=r"leads to the owner"):
            CODES[how](session)
        session.rollback()
        session.execute(update(Code).where(Code.id == 2).values(code="free"))
        session.commit()

        assert session.get_one(Leaf, 1).text == session.get_one(Later, 1).text == "of 1"


@pytest.mark.any_database
def test_a_key_that_a_foreign_key_holds_changes_freely(shop: Shop) -> None:
    """A foreign key that is looked at at once sees to it that no row leads elsewhere: nobody else asks."""
    with shop.session() as session:
        session.execute(insert(Order).values(id=8, customer_id=1))
        session.execute(update(Order).where(Order.id == 8).values(id=9))
        session.commit()

    assert shop.is_sound()
