"""Moves of owners beside other transactions, and rows on the way that are found by something other than a
foreign key."""

import threading
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, Text, insert, select, table, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, foreign, mapped_column, relationship

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
)
from tests.orm.writing.moving_shop import Base, Item, Order, Shop, User

pytestmark = pytest.mark.both_lines
ISOLATION = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


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
