"""`python -m benchmarks.designs`: the cost of the shape of the tables, and of each holder of the keys.

It prints the two tables of docs/how-to/choose-a-design.md. The counts of statements and rows are the same in
each run, and a test compares the page with `counts()`. The processor time differs from run to run.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

from sqlalchemy import Engine, ForeignKey, Text, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import StaticPool

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    ServerKeyring,
    enforce_foreign_keys,
)

FEW, MANY, MEMBERS, ROUNDS = 10, 100, 3, 5
SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    """The tables of both designs."""


class User(KeyOwner, Base):
    """A member."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Group(KeyOwner, Base):
    """A group whose members read the things."""

    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    """The grant of the group's key to a user."""

    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Column(Base):
    """A thing as a row with a column under the group's key."""

    __tablename__ = "columns"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), index=True)
    content: Mapped[str] = mapped_column(EncryptedType(Text))


class Asset(KeyOwner, Base):
    """A thing as an owner."""

    __tablename__ = "assets"
    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[str] = mapped_column(EncryptedType(Text))


class Share(KeyGrant, Base, of="asset_id", to="group_id"):
    """The grant of a thing's key to a group."""

    __tablename__ = "shares"
    asset_id: Mapped[int] = mapped_column(ForeignKey("assets.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Cost(NamedTuple):
    """The cost of a step: its statements, the rows of the key tables that it added, and milliseconds of
    processor time."""

    statements: int
    rows: int
    milliseconds: float


KEY_TABLES = [table for name, table in Base.metadata.tables.items() if "_key" in name]


def main() -> None:
    """Print both tables."""
    columns = [
        _median_of(ROUNDS, lambda make=make, things=things: shape(make, things))  # type: ignore[misc]
        for make in (as_column, as_owner)
        for things in (FEW, MANY)
    ]
    heads = [f"column: {FEW} things", f"{MANY} things", "", f"owner: {FEW} things", f"{MANY} things", ""]
    print(f"| statements, key rows | {' | '.join(heads)} |")
    print("|---|---|---|---|---|---|---|")
    for at, step in enumerate(STEPS):
        few, many, few_owners, many_owners = (column[at] for column in columns)
        cells = [_counted(few), _counted(many), f"{many.milliseconds:.0f} ms"]
        cells += [_counted(few_owners), _counted(many_owners), f"{many_owners.milliseconds:.0f} ms"]
        print(f"| {step} | {' | '.join(cells)} |")
    print()
    print("| one request that reads one value | statements | processor time |")
    print("|---|---|---|")
    for name, derivation, cost in _by_holder():
        print(f"| {name} | {cost.statements} | {cost.milliseconds:.0f} ms{derivation} |")


def counts() -> dict[str, tuple[str, str]]:
    """The counts for few things in both designs, by step."""
    shapes = (shape(as_column, FEW), shape(as_owner, FEW))
    return {step: (_counted(one), _counted(other)) for step, one, other in zip(STEPS, *shapes, strict=True)}


def _counted(cost: Cost) -> str:
    return f"{cost.statements:,}, {cost.rows:+,}"


STEPS = (
    "make them",
    "a member unlocks and reads all",
    "a member leaves",
    "another member settles, and writes each anew",
)


def as_column(group: Group, things: int) -> list[Any]:
    """The things as rows of `Column`."""
    return [Column(group_id=group.id, content="x" * 20) for _ in range(things)]


def as_owner(group: Group, things: int) -> list[Any]:
    """The things as owners."""
    return [Asset(content="x" * 20) for _ in range(things)]


def shape(make: Callable[[Group, int], list[Any]], count: int) -> list[Cost]:
    """The cost of each step, on a database of its own."""
    engine, envelope = _database(), Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    thing = Column if make is as_column else Asset
    costs: list[Cost] = []
    with Session(engine) as session:
        users = [User(id=number) for number in range(1, MEMBERS + 1)]
        envelope.enroll(session, users, secret=dict.fromkeys(users, SECRET))
        with envelope.unlock(session, users[0], secret=SECRET):
            group = Group(id=1)
            envelope.enroll(session, group)
            session.add_all([Membership(group_id=1, user_id=user.id) for user in users])
            session.commit()
            with _measured(session, costs):
                things = make(group, count)
                if thing is Asset:
                    envelope.enroll(session, things)
                    things += [Share(asset_id=one.id, group_id=1) for one in things]
                session.add_all(things)
                session.commit()
    with _as_member(engine, envelope, []) as session:
        envelope.settle(session)  # the first log-in since the group was shared
        session.commit()
    with _as_member(engine, envelope, costs) as session:
        assert all(one.content for one in session.scalars(select(thing)))
    with Session(engine) as session, _measured(session, costs):
        envelope.attach(session)  # nobody is unlocked in it
        session.delete(session.get_one(Membership, (1, 3)))
        session.commit()
    with _as_member(engine, envelope, costs) as session:
        envelope.settle(session)
        for one in session.scalars(select(thing)):
            one.content = "y" * 20
        session.commit()
    engine.dispose()
    return costs


@contextmanager
def _as_member(engine: Engine, envelope: Envelope, costs: list[Cost]) -> Iterator[Session]:
    """A measured session in which the second member is unlocked."""
    with (
        Session(engine) as session,
        _measured(session, costs),
        envelope.unlock(session, session.get_one(User, 2), secret=SECRET),
    ):
        yield session


def _by_holder() -> Iterator[tuple[str, str, Cost]]:
    """One request, without the key derivation: find the user, open the user, read one value.

    The key derivation costs what it is set to cost: `python -m benchmarks --only unlock` measures it.
    """
    server_keys = ServerKeyring.from_text(ServerKeyring.generate_key())
    engine = _database()
    envelope = Envelope(server_keys=server_keys, kdf_profile=KdfProfile.unsafe_for_tests())
    with Session(engine) as session:
        envelope.enroll(session, User(id=1, note="x" * 20), secret=SECRET, provider="server")
        session.commit()

    def by_secret(session: Session) -> None:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, secret=SECRET):
            assert user.note

    def by_provider(session: Session) -> None:
        user = session.get_one(User, 1)
        with envelope.unlock(session, user, provider="server", reason="benchmark"):
            assert user.note

    def in_server_mode(session: Session) -> None:
        with envelope.server_mode(session, reason="benchmark"):
            assert session.get_one(User, 1).note

    for name, derivation, request in (
        ("user-held: `unlock(secret=...)`", " and a key derivation", by_secret),
        ("mixed: `unlock(provider=...)`", "", by_provider),
        ("server-held: server mode", "", in_server_mode),
    ):
        cost = _median_of(ROUNDS * 2, lambda request=request: _request(engine, request))[0]  # type: ignore[misc]
        yield name, derivation, cost
    engine.dispose()


def _request(engine: Engine, request: Callable[[Session], None]) -> list[Cost]:
    costs: list[Cost] = []
    with Session(engine) as session, _measured(session, costs):
        request(session)
    return costs


def _database() -> Engine:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    return engine


def _median_of(rounds: int, measure: Callable[[], Any]) -> list[Cost]:
    """The counts, and the median of the times."""
    measure()  # caches are filled
    runs = [list(measure()) for _ in range(rounds)]
    return [
        one._replace(milliseconds=median(run[at].milliseconds for run in runs))
        for at, one in enumerate(runs[0])
    ]


@contextmanager
def _measured(session: Session, costs: list[Cost]) -> Iterator[None]:
    engine: Any = session.get_bind()
    sent: list[str] = []

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    before = _key_rows(engine)
    event.listen(engine, "before_cursor_execute", note)
    gc.collect()
    gc.disable()
    start = time.process_time()
    try:
        yield
        took = time.process_time() - start
    finally:
        gc.enable()
        event.remove(engine, "before_cursor_execute", note)
    session.rollback()
    costs.append(Cost(len(sent), _key_rows(engine) - before, 1000 * took))


def _key_rows(engine: Engine) -> int:
    with Session(engine) as session:
        return sum(session.scalar(select(func.count()).select_from(table)) or 0 for table in KEY_TABLES)


if __name__ == "__main__":
    main()
