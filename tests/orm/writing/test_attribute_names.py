"""An attribute may have the name of another column. A statement of a mapped class names attributes and one of
its table names columns: each value is written where SQLAlchemy writes it, encrypted for the row's owner."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    String,
    Text,
    bindparam,
    insert,
    lambda_stmt,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, synonym

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.writing.copies import check_upsert
from tests.prepared import prepared

pytestmark = pytest.mark.both_lines

SECRET = "s3cret"
SHOWN = "***12"
OWNER, OTHER = 1, 2


class Base(DeclarativeBase):
    pass


class Holder(KeyOwner, Base):
    __tablename__ = "card_holders"
    id: Mapped[int] = mapped_column(primary_key=True)


class Swapped:
    """Two pairs of attributes, each with the name of the other's column."""

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="card")
    holder_id: Mapped[int] = mapped_column("maker_id", ForeignKey("card_holders.id"))
    maker_id: Mapped[int | None] = mapped_column("holder_id")
    phone_full: Mapped[str | None] = mapped_column("phone", EncryptedType(String, owner="holder_id"))
    phone: Mapped[str | None] = mapped_column("phone_full", String)


class Card(Swapped, Base):
    __tablename__ = "cards"
    mobile: Mapped[str | None] = synonym("phone_full")
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "card"}


class Slip(Swapped, Base):
    __tablename__ = "card_slips"


class Badge(Card):
    """A column that is plain has the name of one that is encrypted in the table of the base class."""

    __tablename__ = "badges"
    id: Mapped[int] = mapped_column(ForeignKey("cards.id"), primary_key=True)
    number: Mapped[str | None] = mapped_column("phone", String)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="holder_id"))
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "badge"}


class Memo(Base):
    """The keys of columns are the names of others."""

    __tablename__ = "card_memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    holder_id: Mapped[int] = mapped_column(ForeignKey("card_holders.id"))
    title: Mapped[str | None] = mapped_column("body", EncryptedType(String), key="title")
    body: Mapped[str | None] = mapped_column("content", String, key="body_shown")


CARDS: Any = Card.__table__
SLIPS: Any = Slip.__table__
MEMOS: Any = Memo.__table__
BY_ATTRIBUTE = {"holder_id": OWNER, "maker_id": OTHER, "phone_full": SECRET, "phone": SHOWN}
BY_COLUMN = {"maker_id": OWNER, "holder_id": OTHER, "phone": SECRET, "phone_full": SHOWN}
NEW = {"kind": "card"}


@pytest.fixture
def session(sqlite_engine: Engine) -> Iterator[Session]:
    """Two owners, unlocked."""
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))

    def make() -> None:
        Base.metadata.create_all(sqlite_engine)
        with Session(sqlite_engine) as first, envelope.server_mode(first, reason="test"):
            first.add_all([Holder(id=OWNER), Holder(id=OTHER)])
            first.commit()

    prepared(sqlite_engine, "cards", make)
    with Session(sqlite_engine) as session, envelope.server_mode(session, reason="test"):
        yield session


INSERTS: dict[str, Callable[[Session], Any]] = {
    "object": lambda s: (s.add(Card(**BY_ATTRIBUTE)), s.flush()),
    "objects": lambda s: (s.add_all([Card(**BY_ATTRIBUTE) for _ in range(6)]), s.flush()),
    "values": lambda s: s.execute(insert(Card).values(**NEW, **BY_ATTRIBUTE)),
    "synonym": lambda s: s.execute(
        insert(Card).values(**NEW, holder_id=OWNER, maker_id=OTHER, mobile=SECRET, phone=SHOWN)
    ),
    "attributes": lambda s: s.execute(
        insert(Card).values(
            {
                Card.kind: "card",
                Card.holder_id: OWNER,
                Card.maker_id: OTHER,
                Card.phone_full: SECRET,
                Card.phone: SHOWN,
            }
        )
    ),
    "multi-values": lambda s: s.execute(insert(Card).values([{**NEW, **BY_ATTRIBUTE}] * 2)),
    "multi-values with parameters": lambda s: s.execute(
        insert(Card).values([{**NEW, **BY_ATTRIBUTE}]), {"unused": SHOWN}
    ),
    "lambda": lambda s: s.execute(in_a_lambda(**BY_ATTRIBUTE)),
    "rows": lambda s: s.execute(insert(Card), [BY_ATTRIBUTE] * 2),
    "bulk": lambda s: s.bulk_insert_mappings(Card, [dict(BY_ATTRIBUTE)]),  # type: ignore[arg-type]
    "table: values": lambda s: s.execute(insert(CARDS).values(**NEW, **BY_COLUMN)),
    "table: multi-values": lambda s: s.execute(insert(CARDS).values([{**NEW, **BY_COLUMN}] * 2)),
    "table: tuples": lambda s: s.execute(insert(CARDS).values([(9, "card", OWNER, OTHER, SECRET, SHOWN)])),
    "table: rows": lambda s: s.execute(insert(CARDS), [BY_COLUMN] * 2),
    "table: a parameter": lambda s: s.execute(
        insert(CARDS).values({**NEW, **BY_COLUMN, "phone": bindparam("given")}), {"given": SECRET}
    ),
    "class on a connection": lambda s: s.connection().execute(insert(Card), [BY_COLUMN] * 2),
}
UPDATES: dict[str, Callable[[Session], Any]] = {
    "object": lambda s: [setattr(s.get_one(Card, 1), *pair) for pair in BY_ATTRIBUTE.items()],
    "values": lambda s: s.execute(update(Card).values(**BY_ATTRIBUTE)),
    "ordered values": lambda s: s.execute(update(Card).ordered_values(*BY_ATTRIBUTE.items())),
    "by primary key": lambda s: s.execute(update(Card), [{"id": 1, **BY_ATTRIBUTE}]),
    "a parameter": lambda s: s.execute(
        update(Card).values({**BY_ATTRIBUTE, "phone_full": bindparam("given")}), {"given": SECRET}
    ),
    "table: values": lambda s: s.execute(update(CARDS).values(**BY_COLUMN)),
    "table: ordered values": lambda s: s.execute(update(CARDS).ordered_values(*BY_COLUMN.items())),
    "table: parameters": lambda s: s.execute(update(CARDS), BY_COLUMN),
}


def in_a_lambda(holder_id: int, maker_id: int, phone_full: str, phone: str) -> Any:
    """An INSERT of a card in a lambda."""
    return lambda_stmt(
        lambda: insert(Card).values(
            kind="card", holder_id=holder_id, maker_id=maker_id, phone_full=phone_full, phone=phone
        )
    )


def check_cards(session: Session, model: Any = Card) -> None:
    """Each card has its secret, encrypted for its owner, and nothing of it elsewhere."""
    session.commit()
    for card in session.scalars(select(model)):
        assert (card.holder_id, card.maker_id) == (OWNER, OTHER)
        assert (card.phone_full, card.phone) == (SECRET, SHOWN)
    for maker, holder, phone, shown in session.execute(
        text(f"SELECT maker_id, holder_id, phone, phone_full FROM {model.__tablename__}")
    ):
        assert (OWNER, OTHER, bytes, SHOWN) == (maker, holder, type(phone), shown)


@pytest.mark.parametrize("form", INSERTS)
def test_an_insert(session: Session, form: str) -> None:
    """Each form of INSERT puts each value into its own column."""
    INSERTS[form](session)

    assert session.scalar(select(Card.id)) is not None
    check_cards(session)


@pytest.mark.parametrize("form", UPDATES)
def test_an_update(session: Session, form: str) -> None:
    """Each form of UPDATE puts each value into its own column."""
    session.add(Card(id=1, holder_id=OWNER, maker_id=OTHER, phone_full="before", phone="before"))
    session.commit()
    UPDATES[form](session)

    check_cards(session)


@pytest.mark.parametrize(
    "statement",
    [
        insert(Card).values(**NEW, holder_id=OWNER, phone=SHOWN),
        insert(Card).values([{**NEW, "holder_id": OWNER, "phone": SHOWN}]),
        insert(CARDS).values(**NEW, maker_id=OWNER, phone_full=SHOWN),
        update(Card).values(phone=SHOWN),
        update(Card).values(maker_id=OTHER),
        update(CARDS).values(holder_id=OTHER),
    ],
)
def test_only_plain_columns(session: Session, statement: Any) -> None:
    """A statement that leaves the encrypted column and its owner alone needs no key and is not refused."""
    session.add(Card(id=1, holder_id=OWNER, phone_full=SECRET))
    session.commit()
    session.execute(statement)
    session.commit()

    assert session.get_one(Card, 1).phone_full == SECRET


@pytest.mark.parametrize("target", [Card, CARDS])
def test_a_copy(session: Session, target: Any) -> None:
    """INSERT .. FROM SELECT names columns, of a mapped class too: it copies ciphertext from the same column
    of the same owner, and takes no text."""
    session.add(Card(id=1, holder_id=OWNER, maker_id=OTHER, phone_full=SECRET, phone=SHOWN))
    session.commit()
    names = ["kind", "maker_id", "holder_id", "phone", "phone_full"]
    session.execute(insert(target).from_select(names, select(*(CARDS.c[name] for name in names))))
    for columns in ({"phone": CARDS.c.phone_full}, {"phone_full": CARDS.c.phone}):
        with pytest.raises(StatementRefusedError):
            session.execute(
                insert(target).from_select(
                    ["maker_id", *columns], select(CARDS.c.maker_id, *columns.values())
                )
            )

    assert len(session.scalars(select(Card.id)).all()) == 2
    check_cards(session)


@pytest.mark.parametrize(("target", "values"), [(Slip, BY_ATTRIBUTE), (SLIPS, BY_COLUMN)])
def test_an_upsert(session: Session, target: Any, values: dict[str, Any]) -> None:
    """An upsert inserts and updates each column by its key."""
    statement = sqlite.insert(target).values(id=1, kind="slip", **values)
    proposed = {name: statement.excluded[name] for name in BY_COLUMN}
    for _ in range(2):
        session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=proposed))
        check_cards(session, Slip)
    for wrong in ({"phone_full": proposed["phone"]}, {"phone": proposed["phone_full"]}, {"phone": SECRET}):
        with pytest.raises(StatementRefusedError):
            session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=wrong))

    assert session.scalars(select(Slip.id)).all() == [1]


def test_an_upsert_that_names_a_column_by_its_name(session: Session) -> None:
    """SQLAlchemy takes text that is no key for the name of a column: so does the check."""
    statement = sqlite.insert(MEMOS).values(id=1, holder_id=OWNER, title="t")
    for value in (SECRET, MEMOS.c.body_shown):
        with pytest.raises(StatementRefusedError, match="upsert sets"):
            session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"body": value}))

    assert session.scalars(select(Memo.id)).all() == []


def test_an_upsert_of_mysql_that_names_attributes() -> None:
    """MySQL's `on_duplicate_key_update` keeps attributes as they are: they are taken for their columns."""
    plan: Any = plan_of_table(CARDS)
    plain = mysql.insert(Card).on_duplicate_key_update({Card.phone: SHOWN})
    encrypted = mysql.insert(Card).on_duplicate_key_update({Card.phone_full: SECRET})
    check_upsert(plan, plain)
    with pytest.raises(StatementRefusedError) as caught:
        check_upsert(plan, encrypted)

    assert "sets cards.phone to a value that is in no row" in str(caught.value)


def test_a_bulk_statement_on_a_joined_subclass(session: Session) -> None:
    """It is sent once for each table: what one of them gets is not looked for in the other."""
    session.execute(insert(Badge).values(number="7"), [{**BY_ATTRIBUTE, "note": SECRET}] * 2)
    session.execute(update(Badge), [{"id": 1, "number": "8", "note": SECRET}])
    session.commit()

    assert [(one.number, one.note) for one in session.scalars(select(Badge))] == [
        ("8", SECRET),
        ("7", SECRET),
    ]
    check_cards(session)


@pytest.mark.parametrize("entity", [Card, CARDS])
def test_a_move_by_the_columns_of_the_base(session: Session, entity: Any) -> None:
    """The value of the deciding column counts, and not that of the column with its attribute's name."""
    session.add(Badge(**{**BY_ATTRIBUTE, "maker_id": OWNER}, note=SECRET))
    session.commit()
    moved = {"holder_id": OTHER, "maker_id": OWNER, "phone_full": None}
    moved = moved if entity is Card else {"maker_id": OTHER, "holder_id": OWNER, "phone": None}
    for values in (moved, dict(reversed(moved.items()))):
        with pytest.raises(StatementRefusedError, match="leads to the owner"):
            session.execute(update(entity).values(values))

    assert session.scalars(select(Badge)).one().note == SECRET
