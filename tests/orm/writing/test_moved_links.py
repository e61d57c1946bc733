"""Who changes what leads to the owner of encrypted values, and who encrypts for an owner behind other rows: a
value is never stored under the key of another owner than its row's."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, MetaData, Table, insert, select, table, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring, StatementRefusedError
from tests.orm.writing.moving_shop import Base, Doc, Item, Label, Letter, Node, Order, Shop, User
from tests.prepared import prepared

pytestmark = pytest.mark.both_lines


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
            StatementRefusedError,
            match=r"the owner of encrypted values|encrypted for the former owner or key",
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
        from tests.orm.writing.moving_shop import Base, Order
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


@pytest.mark.any_database
def test_a_key_that_a_foreign_key_holds_changes_freely(shop: Shop) -> None:
    """A foreign key that is looked at at once sees to it that no row leads elsewhere: nobody else asks."""
    with shop.session() as session:
        session.execute(insert(Order).values(id=8, customer_id=1))
        session.execute(update(Order).where(Order.id == 8).values(id=9))
        session.commit()

    assert shop.is_sound()
