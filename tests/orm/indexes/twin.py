"""A plaintext twin of an indexed column: what is found by the index has to be what is found by the twin.

A kind of index takes part by one `TwinKind`: what its values are, what the twin stores of them, and its
conditions, each on the encrypted column and on the twin. The harness puts the conditions into statements, and
writes between them in every way that it has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Engine,
    ForeignKey,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner
from tests.orm.indexes.server_models import SECRET, new_envelope

Pair = tuple[Any, Any]
"""A condition on the encrypted column, and the same on the twin."""


@dataclass(frozen=True)
class TwinKind:
    """One kind of index.

    Attributes:
        name: what tests are called by.
        inner: the type of the values.
        index: makes the index column of the attribute `secret`.
        values: gives a value that may be None; few enough that some are equal.
        leaf: gives a condition on `entity.secret`, and the same on `entity.twin`.
        stored: what the twin stores of a value. It is compared as the database compares it.
        twin_inner: the type of what the twin stores; that of the values if left out.
        exact: whether the index alone answers. If not, conditions stand alone or beside others at the top of
            a select of the entity.
        joins: whether two rows with equal values can be joined.
        unlocked: whether a look-up needs unlocked owners.
        owned: whether the index is under the owners' keys. Conditions then stand in no NOT and no CASE.
    """

    name: str
    inner: Any
    index: Callable[[], Any]
    values: Callable[[random.Random], Any]
    leaf: Callable[[random.Random, Any], Pair]
    stored: Callable[[Any], Any] = lambda value: value
    twin_inner: Any = None
    exact: bool = True
    joins: bool = True
    unlocked: bool = False
    owned: bool = False
    models: list[Any] = field(default_factory=list, compare=False)

    def model(self) -> Any:
        """The classes of this kind: owners, and rows that are theirs."""
        if not self.models:
            self.models.append(_models(self))
        return self.models[0]


def _models(kind: TwinKind) -> Any:
    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Row(Base):
        __tablename__ = "rows_of_users"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        number: Mapped[int]
        secret: Mapped[Any] = mapped_column(EncryptedType(kind.inner, owner="user_id"), nullable=True)
        secret_index: Mapped[Any] = mapped_column(kind.index(), index=True)
        twin: Mapped[Any] = mapped_column(kind.twin_inner or kind.inner, nullable=True)

    Row.User = User  # type: ignore[attr-defined]
    return Row


class World:
    """A database of rows with twins.

    Attributes:
        between: called between two queries; a step of a rotation, for example.
    """

    def __init__(self, engine: Engine, kind: TwinKind, seed: int) -> None:
        self.engine, self.kind = engine, kind
        self.between: Callable[[], None] = lambda: None
        self.random = random.Random(seed)
        self.envelope = new_envelope()
        self.row = kind.model()
        self.next = 0
        self.row.metadata.create_all(engine)
        with Session(engine) as session:
            users = [self.row.User() for _ in range(3)]
            self.envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
            for one in users:
                with self.envelope.unlock(session, one, secret=SECRET):
                    self.envelope.add_provider(session, one, provider="server")
            session.commit()
            self.users: list[int] = [one.id for one in users]
        for _ in range(4):
            self.write(_insert_many)

    def values(self, user: int) -> dict[str, Any]:
        """A new row."""
        value = self.kind.values(self.random)
        self.next += 1
        return {"user_id": user, "number": self.next, **self.both(value)}

    def both(self, value: Any) -> dict[str, Any]:
        """A value and its twin."""
        return {"secret": value, "twin": None if value is None else self.kind.stored(value)}

    def write(self, how: Callable[[World, Session, int], None]) -> None:
        """Write in one way, for one owner."""
        user = self.random.choice(self.users)
        with Session(self.engine) as session:
            owner = session.get_one(self.row.User, user)
            with self.envelope.unlock(session, owner, secret=SECRET):
                how(self, session, user)
                session.commit()

    def ids(self, session: Session, user: int) -> Sequence[int]:
        """Some rows of an owner."""
        found = session.scalars(select(self.row.id).filter_by(user_id=user).order_by(self.row.id)).all()
        return self.random.sample(found, min(3, len(found)))

    def check(self, count: int) -> None:
        """Compare so many queries; write after every few."""
        for at in range(count):
            if at % 5 == 4:
                self.write(self.random.choice(_WRITES))
            self.between()
            self._compare(at)

    def _compare(self, at: int) -> None:
        condition = self._condition(self.row)
        shapes = [one for one in _SHAPES if not (self.kind.owned and one is _having)]
        shape = self.random.choice(shapes if self.kind.exact else _CANDIDATES)
        with Session(self.engine) as session, ExitStack() as unlocked:
            self.envelope.attach(session)
            if self.kind.unlocked or self.random.random() < 0.3:  # else everybody is locked
                for one in self.users:
                    owner = session.get_one(self.row.User, one)
                    unlocked.enter_context(self.envelope.unlock(session, owner, secret=SECRET))
            found, wanted = (shape(self, session, one) for one in condition)

        assert wanted == found, f"query {at}, {shape.__name__}: {condition[1]}"

    def _condition(self, entity: Any, depth: int = 0) -> Pair:
        chance = self.random.random()
        if not self.kind.exact:
            leaves = [self.kind.leaf(self.random, entity)]
            if chance < 0.3:
                leaves.append((entity.number > 5,) * 2)
            return and_(*(one for one, _ in leaves)), and_(*(one for _, one in leaves))
        if depth > 1 or chance < 0.5:
            return self._leaf(entity)
        if chance < 0.6 and not self.kind.owned:
            one, twin = self._condition(entity, depth + 1)
            return not_(one), not_(twin)
        several = [self._condition(entity, depth + 1) for _ in range(2)]
        joined = and_ if chance < 0.8 else or_
        return joined(*(one for one, _ in several)), joined(*(one for _, one in several))

    def _leaf(self, entity: Any) -> Pair:
        chance = self.random.random()
        if chance < 0.1:
            return (entity.number % 2 == 0,) * 2
        if chance < 0.2:
            return entity.secret.is_(None), entity.twin.is_(None)
        if chance < 0.25:
            return entity.secret.is_not(None), entity.twin.is_not(None)
        if chance < 0.35 and self.kind.joins:
            other = aliased(self.row)
            return tuple(  # type: ignore[return-value]
                exists().where(getattr(other, name) == getattr(entity, name), other.id != entity.id)
                for name in ("secret", "twin")
            )
        return self.kind.leaf(self.random, entity)


# Statements


def _entities(world: World, session: Session, condition: Any) -> Any:
    return sorted(one.id for one in session.scalars(select(world.row).where(condition)))


def _keys(world: World, session: Session, condition: Any) -> Any:
    return sorted(session.scalars(select(world.row.id).where(condition)))


def _query(world: World, session: Session, condition: Any) -> Any:
    return sorted(one.id for one in session.query(world.row).filter(condition))


def _count(world: World, session: Session, condition: Any) -> Any:
    return session.scalar(select(func.count()).select_from(world.row).where(condition))


def _subquery(world: World, session: Session, condition: Any) -> Any:
    outer = aliased(world.row)
    inner = select(world.row.id).where(condition)
    return sorted(session.scalars(select(outer.id).where(outer.id.in_(inner))))


def _page(world: World, session: Session, condition: Any) -> Any:
    statement = select(world.row.id).where(condition).order_by(world.row.number).limit(3).offset(1)
    return session.scalars(statement).all()


def _by_owner(world: World, session: Session, condition: Any) -> Any:
    statement = select(world.row.user_id, func.count()).where(condition).group_by(world.row.user_id)
    return sorted(tuple(row) for row in session.execute(statement))


def _joined(world: World, session: Session, condition: Any) -> Any:
    user = world.row.User
    return sorted(
        session.scalars(select(world.row.id).join(user, user.id == world.row.user_id).where(condition))
    )


def _cte(world: World, session: Session, condition: Any) -> Any:
    found = select(world.row.id).where(condition).cte("found")
    return sorted(session.scalars(select(found.c.id)))


def _having(world: World, session: Session, condition: Any) -> Any:
    counted = func.sum(case((condition, 1), else_=0))
    return sorted(session.scalars(select(world.row.user_id).group_by(world.row.user_id).having(counted > 2)))


def _updated(world: World, session: Session, condition: Any) -> Any:
    session.execute(update(world.row).where(condition).values(number=-world.row.number))
    return sorted(_changed(session, session.scalars(select(world.row.id).where(world.row.number < 0)).all()))


def _deleted(world: World, session: Session, condition: Any) -> Any:
    session.execute(delete(world.row).where(condition))
    return _changed(session, sorted(session.scalars(select(world.row.id))))


def _changed(session: Session, seen: Any) -> Any:
    session.rollback()
    return seen


def _streamed(world: World, session: Session, condition: Any) -> Any:
    statement = select(world.row).where(condition).execution_options(yield_per=2)
    return sorted(one.id for one in session.scalars(statement))


_CANDIDATES = [_entities, _query, _streamed]
_SHAPES = [
    *_CANDIDATES,
    _keys,
    _count,
    _subquery,
    _page,
    _by_owner,
    _joined,
    _cte,
    _having,
    _updated,
    _deleted,
]


# Writes


def _insert(world: World, session: Session, user: int) -> None:
    session.add(world.row(**world.values(user)))


def _insert_many(world: World, session: Session, user: int) -> None:
    session.add_all([world.row(**world.values(user)) for _ in range(6)])


def _insert_core(world: World, session: Session, user: int) -> None:
    session.execute(insert(world.row), [world.values(user) for _ in range(3)])


def _change(world: World, session: Session, user: int) -> None:
    for one in world.ids(session, user):
        for name, value in world.both(world.kind.values(world.random)).items():
            setattr(session.get_one(world.row, one), name, value)


def _change_by_statement(world: World, session: Session, user: int) -> None:
    some = world.row.id.in_(world.ids(session, user))
    values = {"user_id": user, **world.both(world.kind.values(world.random))}
    session.execute(update(world.row).where(some).values(values))


def _change_many(world: World, session: Session, user: int) -> None:
    rows = [
        {"id": one, "user_id": user, **world.both(world.kind.values(world.random))}
        for one in world.ids(session, user)
    ]
    if rows:
        session.execute(update(world.row), rows)


def _merge(world: World, session: Session, user: int) -> None:
    for one in world.ids(session, user):
        session.merge(world.row(id=one, **world.values(user)))


def _empty(world: World, session: Session, user: int) -> None:
    for one in world.ids(session, user):
        for name, value in world.both(None).items():
            setattr(session.get_one(world.row, one), name, value)


def _delete(world: World, session: Session, user: int) -> None:
    for one in world.ids(session, user)[:1]:
        session.delete(session.get_one(world.row, one))


def _nothing_is_kept(world: World, session: Session, user: int) -> None:
    _change(world, session, user)
    session.flush()
    session.rollback()


_WRITES = [
    _insert,
    _insert_many,
    _insert_core,
    _change,
    _change_by_statement,
    _change_many,
    _merge,
    _empty,
    _delete,
    _nothing_is_kept,
]


def equality(values: Callable[[random.Random], Any], stored: Callable[[Any], Any]) -> Any:
    """The conditions of an index for equal values."""

    def leaf(chosen: random.Random, entity: Any) -> Pair:
        some = [values(chosen) for _ in range(chosen.randint(0, 4))]
        one, twins = chosen.choice([*some, values(chosen)]), [None if v is None else stored(v) for v in some]
        twin = None if one is None else stored(one)
        return chosen.choice(
            [
                (entity.secret == one, entity.twin == twin),
                (entity.secret != one, entity.twin != twin),
                (entity.secret.in_(some), entity.twin.in_(twins)),
                (entity.secret.not_in(some), entity.twin.not_in(twins)),
            ]
        )

    return leaf
