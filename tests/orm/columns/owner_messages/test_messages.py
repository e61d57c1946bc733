"""What errors advise about owners: the application's own classes and columns, and what works in its place."""

from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text, bindparam, create_engine, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    mapped_column,
    relationship,
    selectinload,
    sessionmaker,
)

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    EnrollmentError,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    OwnerColumn,
    ServerKeyring,
    StatementRefusedError,
    enforce_foreign_keys,
)
from tests.orm.columns.owner_messages.shop_models import (
    Base,
    Company,
    Customer,
    Document,
    Line,
    Order,
    Remark,
    Setting,
    refused,
)

pytestmark = pytest.mark.any_database
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))


def told(*, owner: Any = None, sole: bool = False, many: bool = True, linked: bool = False) -> str:
    """The error about a declaration of `entries.body`."""

    class Base(DeclarativeBase):
        pass

    if sole:

        class Vault(KeyOwner, Base, sole=True):
            __tablename__ = "vaults"
            id: Mapped[int] = mapped_column(primary_key=True)

    if many:

        class Shop(KeyOwner, Base):
            __tablename__ = "shops"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Company(KeyOwner, Base):
            __tablename__ = "companies"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Branch(KeyOwner, Base):
            __tablename__ = "branches"
            code: Mapped[str] = mapped_column(Text, primary_key=True)

    if linked:

        class Document(Base):
            __tablename__ = "documents"
            id: Mapped[int] = mapped_column(primary_key=True)
            shop_id: Mapped[int | None] = mapped_column(ForeignKey("shops.id"))
            company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id"))

    class Entry(Base):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int]
        body: Mapped[str] = mapped_column(EncryptedType(Text, owner=owner))
        if linked:
            document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
            document: Mapped[Any] = relationship("Document")

    with pytest.raises(ConfigurationError) as refused:
        Base.registry.configure()
    return str(refused.value)


def test_the_written_column_is_advised() -> None:
    """A column without a foreign key is named again, with the classes whose key it can hold."""
    advice = told(owner="user_id")

    assert (
        "'user_id' has no foreign key. Write `owner=OwnerColumn('user_id', of=...)` with the one of "
        in advice
    )
    assert "Company, Shop whose primary key it holds" in advice
    assert "Branch" not in advice


def test_no_class_is_picked() -> None:
    """Without `owner=` and without foreign keys every class is offered."""
    advice = told()

    assert "Refer to the Branch or Company or Shop of each row" in advice
    assert "`shop_id = mapped_column(ForeignKey('shops.id', ondelete='CASCADE'))`" in advice
    assert "`owner=OwnerColumn(..., of=...)` with one of Branch, Company, Shop." in advice


@pytest.mark.parametrize("many", [False, True])
def test_a_sole_class_comes_first(many: bool) -> None:
    """`owner=` of the class with one row is the first line of the advice."""
    advice = told(sole=True, many=many)

    assert "no foreign key to a KeyOwner. Possible here: `owner=Vault` (the sole Vault). " in advice
    assert ("Refer to the Branch or Company or Shop" in advice) == many
    assert "vault_id" not in advice


def test_either_or_is_advised_through_a_link() -> None:
    """Two references that may be left out are offered as alternatives, and so declared they work."""
    advice = told(linked=True)

    assert "`owner='document.shop_id'` (Shop), `owner='document.company_id'` (Company), " in advice
    assert (
        "`owner=OneOf('document.shop_id', 'document.company_id')` (if each row is one or the other's)"
        in advice
    )


def test_a_where_does_not_count(shop: Engine) -> None:
    """An UPDATE is told that its WHERE names nobody; both cures work, and are named as this mode has them."""
    statement = update(Order).where(Order.customer_id == 1)
    advice = refused(shop, lambda session: session.execute(statement.values(address="x")))
    bulk = refused(shop, lambda session: session.execute(update(Order), [{"id": 1, "address": "x"}]))

    assert "Run it inside `with server.using(owner): session.execute(...)`" in advice
    assert "`server` is what `envelope.server_mode(...)` returned" in advice
    assert "A WHERE does not count" in bulk
    with Session(shop) as session, envelope.server_mode(reason="test") as server:
        with server.using(session.get_one(Customer, 1)):
            session.execute(statement.values(address="by using"))
        assert session.scalar(select(Order.address)) == "by using"
        session.execute(statement.values(address="by value", customer_id=1))
        assert session.scalar(select(Order.address)) == "by value"


def test_outside_server_mode_it_is_the_unlocked_session(shop: Engine) -> None:
    """Without a server there is no `server` to write."""
    with Session(shop) as session, pytest.raises(StatementRefusedError) as caught:
        session.execute(update(Order).values(address="x"))

    assert "`with unlocked.using(owner): session.execute(...)`" in str(caught.value)


def test_write_only_is_named_too(shop: Engine) -> None:
    """Inside `write_only` its own result has `using`."""
    with (
        Session(shop) as session,
        envelope.write_only(session),
        pytest.raises(
            StatementRefusedError, match=r"`writing` is what `envelope\.write_only\(\.\.\.\)` returned"
        ),
    ):
        session.execute(update(Order).values(address="x"))


def test_a_new_object_without_owner(shop: Engine) -> None:
    """It is told which of its attributes is not set, and not about statements."""

    def write(session: Session) -> None:
        session.add(Order(address="x"))
        session.scalars(select(Order)).all()

    assert (
        "Order.customer_id is not set, and Order.address is encrypted with the key of its Customer. Set "
        "Order.customer or Order.customer_id before the Order is flushed; a query flushes too"
    ) in refused(shop, write)


def test_an_owner_that_is_not_there(shop: Engine) -> None:
    """Rows for an owner who does not exist are told so by name, alone and in bulk; nothing is stored."""
    one = refused(shop, lambda s: (s.add(Setting(customer_id=77, theme="x")), s.flush()), EnrollmentError)
    rows = [{"customer_id": 1, "theme": "x"}, {"customer_id": 78, "theme": "x"}]
    bulk = refused(shop, lambda s: s.execute(insert(Setting), rows), EnrollmentError)

    assert "no Customer has the key 77. Insert the Customer before its rows." in one
    assert "no Customer has the key 78" in bulk
    with Session(shop) as session:
        assert session.scalar(select(func.count()).select_from(Setting)) == 0


def test_another_constraint_is_the_databases_own(shop: Engine) -> None:
    """Where the key table refuses for a reason of its own, the owner is not said to be missing."""
    with shop.begin() as connection:
        connection.execute(text("DELETE FROM customers_key"))
        connection.execute(text("ALTER TABLE customers_key ADD COLUMN more INTEGER CHECK (more IS NOT NULL)"))
    wrong = refused(shop, lambda s: (s.add(Setting(customer_id=1, theme="x")), s.flush()), IntegrityError)

    assert "has the key" not in wrong


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.execute(insert(Customer), [{"id": 8, "phone": "1"}, {"id": 9, "phone": "2"}]),
        lambda session: session.execute(insert(Customer), [{"phone": "1"}, {"phone": "2"}]),
        lambda session: session.execute(insert(Customer).values(id=8, phone="1")),
        lambda session: session.bulk_insert_mappings(Customer, [{"id": 8, "phone": "1"}, {"id": 9}]),
        lambda session: session.bulk_save_objects([Customer(phone="1")]),
    ],
    ids=["rows with keys", "rows", "values", "mappings", "objects"],
)
def test_new_owners_in_bulk(shop: Engine, write: Any) -> None:
    """Owners with encrypted values of their own are refused alike, with and without primary keys."""
    advice = refused(shop, write)

    assert "bulk operations and Core statements make no keys" in advice
    assert "`session.add_all([Customer(...), ...])`" in advice


def test_autoflush_between_two_owners(shop: Engine) -> None:
    """A row between two owners that a query flushed is told about autoflush, in whole sentences."""

    def move(session: Session) -> None:
        document = session.get_one(Document, 1)
        document.customer_id = None
        document.company_id = session.scalars(select(Company)).one().id

    with Session(shop) as session, envelope.server_mode(reason="test"):
        session.add_all([Document(id=1, customer_id=1, body="x"), Company(id=1)])
        session.commit()
    advice = refused(shop, move)

    assert "Document.customer_id and company_id are set to NULL, and Document.body is encrypted" in advice
    assert "`with session.no_autoflush:`" in advice
    with Session(shop) as session, envelope.server_mode(reason="test"):
        with session.no_autoflush:
            move(session)
        session.commit()
        assert session.scalar(select(Document.body)) == "x"


@pytest.mark.parametrize("in_server_mode", [True, False])
def test_an_owner_in_another_database(in_server_mode: bool) -> None:
    """A session that has the owner elsewhere is told of `binds=`, and not to unlock."""

    class Logs(DeclarativeBase):
        pass

    class Log(Logs):
        __tablename__ = "logs"
        id: Mapped[int] = mapped_column(primary_key=True)
        customer_id: Mapped[int]
        line: Mapped[str] = mapped_column(EncryptedType(Text, owner=OwnerColumn("customer_id", of=Customer)))

    one, two = create_engine("sqlite://"), create_engine("sqlite://")
    for engine, base in ((one, Base), (two, Logs)):
        enforce_foreign_keys(engine)
        base.metadata.create_all(engine)
    with sessionmaker(binds={Base: one, Logs: two})() as session:
        customer = Customer(id=1)
        serving = envelope.server_mode(reason="test")
        with envelope.enroll(session, customer, secret="a secret of ada", provider="server"):
            session.commit()
            if in_server_mode:
                serving.__enter__()
            session.add(Log(customer_id=1, line="x"))
            with pytest.raises(ConfigurationError) as caught:
                session.flush()
            session.rollback()
            if in_server_mode:
                serving.__exit__(None, None, None)
    one.dispose()
    two.dispose()

    assert "This session has Customer in another database" in str(caught.value)
    assert "`binds=`" in str(caught.value)


@pytest.mark.parametrize("others", [False, True])
def test_a_class_without_key_owner_is_named_first(others: bool) -> None:
    """Where `KeyOwner` was forgotten on the very class, that is the first cure, and not a reference of the
    table to itself."""

    class Base(DeclarativeBase):
        pass

    if others:

        class Group(KeyOwner, Base):
            __tablename__ = "groups"
            id: Mapped[int] = mapped_column(primary_key=True)

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        phone: Mapped[str] = mapped_column(EncryptedType(Text))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    Base.registry.dispose()
    words = str(caught.value)

    assert (
        "no foreign key to a KeyOwner. If each User has a key of its own, declare "
        "`class User(KeyOwner, Base)`. " in words
    )
    assert "users.id" not in words
    assert others == ("ForeignKey('groups.id'" in words)


def test_a_class_that_is_referred_to_is_named() -> None:
    """Where `KeyOwner` was forgotten on the class that the row belongs to, the error names that."""

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
        body: Mapped[str] = mapped_column(EncryptedType(Text))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    Base.registry.dispose()

    assert "whose rows own the values: `class User(KeyOwner, Base)`." in str(caught.value)


@pytest.mark.parametrize(
    ("model", "loads", "forbidden"),
    [
        (Line, selectinload(Line.order), "Line.order"),
        (Remark, selectinload(Remark.line).selectinload(Line.order), "Line.order"),
    ],
    ids=["one step", "two steps"],
)
def test_a_way_to_the_owner_that_may_not_be_loaded(
    sqlite_engine: Engine, model: Any, loads: Any, forbidden: str
) -> None:
    """A value that was loaded locked, behind a relationship with `raiseload`, names that, and how to load the
    way: both cures open it."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session, envelope.server_mode(reason="test"):
        order = Order(id=1, customer=Customer(id=1))
        line = Line(id=1, order=order, text="x")
        session.add(line if model is Line else Remark(id=1, line=line, text="x"))
        session.commit()
    with Session(sqlite_engine) as session:
        one = session.get_one(model, 1)
        with envelope.server_mode(reason="test"):
            with pytest.raises(LockedError) as caught:
                _ = one.text
            session.refresh(one)

            assert one.text == "x"

    way = "".join(f"selectinload({step})." for step in ("Remark.line", "Line.order")[model is Line :])[:-1]
    assert f"and {forbidden} is not to be loaded by itself (raiseload). Load them with it, `{way}`" in str(
        caught.value
    )
    with Session(sqlite_engine) as session:
        one = session.get_one(model, 1, options=[loads])
        with envelope.server_mode(reason="test"):
            assert one.text == "x"


def test_an_owner_in_a_parameter_inside_of_values(shop: Engine) -> None:
    """A parameter in a list of `values()` has its value too late, though it is given: told, and the two ways
    that work are named."""
    listed = insert(Order).values([{"customer_id": bindparam("who"), "address": "x"}])
    advice = refused(shop, lambda session: session.execute(listed, {"who": 1}))

    assert "customer_id is the parameter 'who', which has no value when the row is encrypted" in advice
    assert (
        "it stands inside of `values([...])`. Write the value itself in its place, or give the rows" in advice
    )
    with Session(shop) as session, envelope.server_mode(reason="test"):
        session.execute(insert(Order).values([{"customer_id": 1, "address": "y"}]))
        session.execute(insert(Order), [{"customer_id": 1, "address": "z"}])


def test_a_value_in_a_parameter_inside_of_values(shop: Engine) -> None:
    """So has an encrypted value that is a parameter there."""
    listed = insert(Order).values([{"customer_id": 1, "address": bindparam("secret")}])

    assert (
        "orders.address is encrypted, and its value is the parameter 'secret' inside of `values([...])`"
        in (refused(shop, lambda session: session.execute(listed, {"secret": "x"})))
    )
