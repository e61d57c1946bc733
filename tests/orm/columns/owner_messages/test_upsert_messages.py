"""What is said of an upsert or a move that would need a value: the application's own classes and columns."""

from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.orm import Session, configure_mappers, defer, undefer

from sqlalchemy_envelope import Envelope, KdfProfile, LockedError, ServerKeyring, StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.writing.copies import check_upsert
from tests.orm.columns.owner_messages.shop_models import (
    Base,
    Customer,
    Document,
    Order,
    Setting,
    Token,
    Vault,
    refused,
)

pytestmark = pytest.mark.any_database
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))


@pytest.mark.parametrize("first", [False, True])
def test_a_listener_that_moves_a_row(shop: Engine, first: bool) -> None:
    """A `before_update` listener that gives a row another owner after it was looked at is told so; one that
    runs first may."""

    def change(_: Any, __: Any, order: Order) -> None:
        order.customer_id = 2

    def write(session: Session) -> None:
        session.get_one(Order, 1).note = "changed"
        session.flush()

    with Session(shop) as session, envelope.server_mode(reason="test"):
        session.add(Customer(id=2))
        session.commit()
    event.listen(Order, "before_update", change, insert=first)
    try:
        if not first:
            assert "Order.customer_id was changed while the Order was being flushed" in refused(shop, write)
            return
        with Session(shop) as session, envelope.server_mode(reason="test"):
            write(session)
            session.commit()
            session.expire_all()
            order = session.get_one(Order, 1)

            assert (order.customer_id, order.address) == (2, "somewhere")
    finally:
        event.remove(Order, "before_update", change)


def upsert_of(model: Any, index: str, row: dict[str, Any], **sets: str) -> Any:
    """An INSERT of a row that sets these columns where it is there: to another column of the new row, or to
    the very text."""
    statement = sqlite.insert(model).values(row)
    proposed = {key: getattr(statement.excluded, value[1:]) for key, value in sets.items() if value[0] == "."}
    return statement.on_conflict_do_update(index_elements=[index], set_=sets | proposed)


ORDER = {"id": 1, "customer_id": 1, "address": "x"}


@pytest.mark.parametrize(
    ("statement", "why", "cure"),
    [
        (
            upsert_of(Token, "name", {"name": "a", "token": "x"}, token="y"),
            "This upsert sets tokens.token to a value that is in no row",
            "Put the value into the row, and set token from `excluded.token`. [",
        ),
        (
            upsert_of(Order, "id", ORDER, address=".address"),
            "orders.address is encrypted for the row that was to be inserted, and the row that is there",
            "Set address from `excluded.address`, with customer_id from `excluded.customer_id`. [",
        ),
        (
            upsert_of(Setting, "customer_id", {"customer_id": 1, "theme": "x"}, theme="y"),
            "This upsert sets settings.theme to a value that is in no row",
            "Put the value into the row, and set theme from `excluded.theme`. [",
        ),
        (
            upsert_of(Document, "id", {"id": 1, "customer_id": 1, "body": "x"}, customer_id=".customer_id"),
            "This upsert gives a row that is there another owner or key, and leaves its body",
            "Set body from `excluded.body`, with customer_id from `excluded.customer_id`, with company_id ",
        ),
    ],
    ids=["sole", "unsettled", "a value of its own", "left behind"],
)
def test_an_upsert_names_what_it_has_to_set(
    sqlite_engine: Engine, statement: Any, why: str, cure: str
) -> None:
    """Cause and cure name the columns that there are: a sole owner's rows have none for it."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session, envelope.server_mode(reason="test"):
        session.add_all([Customer(id=1), Vault()])
        session.commit()
    told = refused(sqlite_engine, lambda session: session.execute(statement))

    assert f"{why}" in told
    assert f"nothing was sent. {cure}" in told
    assert "  " not in told


@pytest.mark.parametrize("raiseload", [False, True])
def test_the_owners_column_is_deferred(shop: Engine, raiseload: bool) -> None:
    """`defer()` of the column that says whose a value is: it is loaded when it is needed, or with `raiseload`
    it is named, and so is what loads it."""
    query = select(Order).options(defer(Order.customer_id, raiseload=raiseload))
    with Session(shop) as session, envelope.server_mode(reason="test"):
        order = session.scalars(query).one()
        if raiseload:
            with pytest.raises(LockedError) as read:
                _ = order.address
            order.address = "y"
            with pytest.raises(StatementRefusedError) as written:
                session.flush()

            assert "Order.customer_id is not to be loaded by itself (raiseload)" in str(read.value)
            assert "Load them with it, `undefer(Order.customer_id)`, or read it anew" in str(read.value)
            assert "it says whose key encrypts Order.address" in str(written.value)
            session.rollback()
            session.refresh(order)
        assert order.address == "somewhere"
        order.address = "y"
        session.commit()
        assert order.address == "y"


def test_a_value_that_may_not_be_loaded_is_moved(shop: Engine) -> None:
    """A row that goes to another owner is encrypted anew: its value is named where `raiseload` keeps it from
    being loaded, and both cures work."""

    def move(session: Session, *options: Any, refresh: bool = False) -> Order:
        order = session.scalars(select(Order).options(*options)).one()
        if refresh:
            session.refresh(order, ["address"])
        order.customer_id = 3 - order.customer_id
        session.flush()
        return order

    with Session(shop) as session, envelope.server_mode(reason="test"):
        session.add(Customer(id=2))
        session.commit()
    forbidden = defer(Order.address, raiseload=True)
    told = refused(shop, lambda session: move(session, forbidden))

    assert "Order.address is not loaded, and may not be loaded by itself (raiseload): its row changes" in told
    assert "`undefer(Order.address)`, or before the flush, `session.refresh(instance, ['address'])`." in told
    with Session(shop) as session, envelope.server_mode(reason="test"):
        assert move(session, forbidden, refresh=True).address == "somewhere"
        session.commit()
        session.expunge_all()
        assert move(session, undefer(Order.address)).address == "somewhere"


@pytest.mark.parametrize(
    ("model", "row", "key", "cure"),
    [
        (
            Order,
            {"id": 1, "customer_id": 1, "address": "x"},
            "address",
            "with customer_id from `inserted.cust",
        ),
        (Customer, {"id": 1, "phone": "x"}, "phone", "Load the rows and change the objects. ["),
    ],
)
def test_an_upsert_of_mysql_has_names_of_its_own(model: Any, row: Any, key: str, cure: str) -> None:
    """MySQL calls the new row `inserted`, and names no key that the conflict is about."""
    configure_mappers()
    plan = plan_of_table(model.__table__)
    statement = mysql.insert(model.__table__).values(row)
    assert plan is not None
    with pytest.raises(StatementRefusedError) as caught:
        check_upsert(plan, statement.on_duplicate_key_update({key: statement.inserted[key]}))

    assert cure in str(caught.value)
