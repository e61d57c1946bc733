"""The interleaving machine: one request is stopped before each of its statements, while another runs whole.

Each request runs in a thread and on an engine of its own, with an unlocked session of its own, and is run
again where the database, or the library, says that it lost a race. A request that is waited for by the other
one is let go on after a moment. What must hold afterwards is asked by `check`.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound, SAWarning
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from sqlalchemy_envelope import (
    EnvelopeError,
    LockedError,
    NotEnrolledError,
    enforce_foreign_keys,
    should_retry,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import KeyId, KeyState, OpenedKey
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.invariants import violations
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from tests.orm.sharing_models import (
    Base,
    Group,
    Membership,
    Organisation,
    Post,
    User,
    add_user,
    envelope,
    found_group,
    is_readable,
    read_here,
    unlock,
)

PATIENCE = 0.3
"""After so many seconds, who has not finished waits for the other one."""
NAMES = ["founder", "member", "first", "second", "leaver", "quitter", "moved", "shifted", "away", "absent"]
FOUNDER, MEMBER, FIRST, SECOND, LEAVER, QUITTER, MOVED, SHIFTED, AWAY, ABSENT = range(1, 11)
GROUP = 1
OWNERS = [require_owner_class(model()) for model in (User, Group, Organisation)]


def build(engine: Engine) -> None:
    """Ten users, six of them in a group, all settled."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in NAMES:
            add_user(session, name)
        assert found_group(session, "founder", "member", "leaver", "quitter", "moved", "shifted") == GROUP
    for name in ("founder", "member", "leaver", "quitter", "moved", "shifted"):
        with Session(engine) as session, unlock(session, name) as unlocked:
            unlocked.settle()
            session.commit()


# Requests: each takes an engine, and whether it is the one that is stopped


def unlocks(engine: Engine, stopped: bool) -> None:
    """A log-in that reads."""
    with Session(engine) as session, unlock(session, "member"):
        read_here(session)
        session.commit()


def settles(engine: Engine, stopped: bool) -> None:
    """A log-in that settles."""
    with Session(engine) as session, unlock(session, "member" if stopped else "founder") as unlocked:
        unlocked.settle()
        session.commit()


def adds(engine: Engine, stopped: bool) -> None:
    """A member adds somebody."""
    with Session(engine) as session, unlock(session, "founder"):
        session.add(Membership(group_id=GROUP, user_id=FIRST if stopped else SECOND))
        session.commit()


def adds_locked(engine: Engine, stopped: bool) -> None:
    """An administrator, who holds no key, adds somebody."""
    with Session(engine) as session:
        envelope.attach(session)
        session.add(Membership(group_id=GROUP, user_id=FIRST if stopped else SECOND))
        session.commit()


def removes(engine: Engine, stopped: bool) -> None:
    """A member removes another by the unit of work."""
    with Session(engine) as session, unlock(session, "founder"):
        membership = session.get(Membership, (GROUP, LEAVER if stopped else QUITTER))
        if membership is not None:
            session.delete(membership)
        session.commit()


def removes_by_sql(engine: Engine, stopped: bool) -> None:
    """A console deletes a row."""
    rows = Membership.__table__
    with engine.begin() as connection:
        connection.execute(sa.delete(rows).where(rows.c.user_id == (LEAVER if stopped else QUITTER)))  # type: ignore[arg-type]


def moves(engine: Engine, stopped: bool) -> None:
    """A console points a row at somebody else."""
    before, after = (MOVED, AWAY) if stopped else (SHIFTED, ABSENT)
    rows = Membership.__table__
    with engine.begin() as connection:
        connection.execute(sa.update(rows).where(rows.c.user_id == before).values(user_id=after))  # type: ignore[arg-type]


def writes(engine: Engine, stopped: bool) -> None:
    """A member writes."""
    writes_as(engine, "member", GROUP)


def writes_as(engine: Engine, name: str, group: int) -> None:
    """Somebody writes in a group."""
    with Session(engine) as session, unlock(session, name):
        session.add(Post(group_id=group, text="written later"))
        session.commit()


def reads(engine: Engine, stopped: bool) -> None:
    """A member reads in a transaction that goes on, and adds something that is not encrypted."""
    with Session(engine) as session, unlock(session, "member"):
        read_here(session)
        session.get_one(User, MEMBER).email = "member"
        read_here(session)
        session.commit()


def leaves(engine: Engine, stopped: bool) -> None:
    """An unlocked session is left, and its transaction goes on."""
    with Session(engine) as session:
        with unlock(session, "member"):
            posts = session.scalars(select(Post)).all()
        assert not any(is_readable(post, "text") for post in posts)
        session.commit()


def enrolls(engine: Engine, stopped: bool) -> None:
    """A member founds another group."""
    with Session(engine) as session, unlock(session, "founder"):
        group = Group(name="another")
        envelope.enroll(session, group)
        session.add_all(Membership(group=group, user=session.get_one(User, one)) for one in (FOUNDER, MEMBER))
        session.commit()


def deletes(engine: Engine, stopped: bool) -> None:
    """The group is deleted."""
    with Session(engine) as session:
        group = session.get(Group, GROUP)
        if group is not None:
            session.delete(group)
        session.commit()


REQUESTS: list[Callable[[Engine, bool], None]] = [
    unlocks, settles, adds, adds_locked, removes, removes_by_sql, moves, writes, reads, leaves, enrolls,
    deletes,
]  # fmt: skip


# The machine


GONE = (NoResultFound, IntegrityError, StaleDataError, SAWarning, LockedError, NotEnrolledError)
"""What a request is told whose group was deleted meanwhile; that a row is gone, SQLAlchemy only warns."""


@dataclass
class Outcome:
    """What became of interleavings."""

    interleavings: int = 0
    again: int = 0
    waited: int = 0
    failures: list[str] = field(default_factory=list)


class _Run(threading.Thread):
    """A request, run until it goes through."""

    def __init__(self, request: Callable[[Engine, bool], None], engine: Engine, stopped: bool) -> None:
        super().__init__(daemon=True)
        self.request, self.engine, self.stopped = request, engine, stopped
        self.again, self.error = 0, None  # type: int, BaseException | None

    def run(self) -> None:
        for _ in range(8):
            try:
                self.request(self.engine, self.stopped)
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                if should_retry(error):
                    self.again += 1
                    continue
                self.error = error
            return
        self.error = AssertionError(f"{self.request.__name__} was told to run again 8 times")


@contextmanager
def engines(url: sa.URL, level: str | None) -> Iterator[tuple[Engine, Engine]]:
    """An engine for each of two requests."""
    options: dict[str, Any] = {"isolation_level": level} if level else {"connect_args": {"timeout": 3}}
    pair = create_engine(url, **options), create_engine(url, **options)
    for one in pair if level is None else ():
        enforce_foreign_keys(one)
    yield pair
    for one in pair:
        one.dispose()


def interleave(
    url: sa.URL,
    level: str | None,
    first: Callable[[Engine, bool], None],
    second: Callable[[Engine, bool], None],
    at: int,
    outcome: Outcome,
) -> bool:
    """Stop the first before its statement of this number, or its commit, while the second runs whole; false,
    if it has fewer."""
    reached, go, count = threading.Event(), threading.Event(), [0]

    def stop(*_: object) -> None:
        count[0] += 1
        if count[0] == at + 1:
            reached.set()
            go.wait(20)

    with engines(url, level) as (one, other):
        event.listen(one, "before_cursor_execute", stop)
        event.listen(one, "commit", stop)
        stopped, whole = _Run(first, one, True), _Run(second, other, False)
        stopped.start()
        while not reached.wait(0.002) and stopped.is_alive():
            pass
        if not reached.is_set():
            stopped.join()
            return False
        whole.start()
        whole.join(PATIENCE)
        outcome.waited += whole.is_alive()
        go.set()
        stopped.join(20)
        whole.join(20)
        if stopped.is_alive() or whole.is_alive():
            outcome.failures.append("they wait for each other")
    outcome.interleavings += 1
    outcome.again += stopped.again + whole.again
    gone = deletes in (first, second)
    for run in (stopped, whole):
        if run.error is not None and not (gone and isinstance(run.error, GONE)):
            outcome.failures.append(f"{run.request.__name__}: {type(run.error).__name__}: {run.error}"[:300])
    return True


class Kept:
    """What users who may be removed kept in memory from before: all that they could open.

    Args:
        engine: where.
        numbers: the users, by primary key.
    """

    def __init__(self, engine: Engine, numbers: Sequence[int] = (LEAVER, QUITTER, MOVED, SHIFTED)) -> None:
        self._keys: dict[int, list[tuple[bytes, OpenedKey]]] = {}
        with Session(engine) as session:
            for number in numbers:
                unlocked = unlock(session, session.get_one(User, number).email, follow="all")
                keyring, mine = unlocked.keyring, []
                for owner in keyring:
                    for key in keyring.keys_of(owner):
                        opened = keyring.open(key.key_id)
                        if opened is not None:
                            mine.append((owner, OpenedKey(opened.stored, KeyBytes(opened.key.buffer))))
                self._keys[number] = mine

    def opens(self, session: Session, number: int, *owners: tuple[type[Any], int]) -> set[KeyId]:
        """The active keys of these owners that one of them opens, with what they kept and all that the tables
        hold."""
        keyring, policy, names, active = Keyring(), envelope.policy, Names(session), []
        for owner, key in self._keys[number]:
            keyring.add(owner, [OpenedKey(key.stored, KeyBytes(key.key.buffer))])
        for model, primary_key in owners:
            owner_class = require_owner_class(model())
            rows = KeyStore(session, owner_class, policy.seals).load([(primary_key,)])
            keyring.add_stored(names.owner(owner_class, (primary_key,)), [one.stored for one in rows])
            active += [one.stored.key_id for one in rows if one.stored.state is KeyState.ACTIVE]
        follow_grants(Desk(session, policy), keyring, [names.place(require_owner_class(User()), (number,))])
        found = {key_id for key_id in active if keyring.open(key_id) is not None}
        keyring.wipe()
        return found


def check(engine: Engine, kept: Kept) -> list[str]:
    """What does not hold after an interleaving, once a member has settled and written something later."""
    found: list[str] = []
    with Session(engine) as session, unlock(session, "founder") as unlocked:
        unlocked.settle()
        session.commit()
        there = session.get(Group, GROUP) is not None
        if there:
            session.add(Post(group_id=GROUP, text="written later"))
            session.commit()
    with Session(engine) as session:
        removed: set[KeyId] = set()
        members = session.scalars(select(Membership.user_id).where(Membership.group_id == GROUP)).all()
        for number in (LEAVER, QUITTER, MOVED, SHIFTED):
            if number not in members and there:
                removed |= kept.opens(session, number, (Group, GROUP))
        found += violations(session, OWNERS, removed=removed)
        posts = session.scalar(select(sa.func.count()).select_from(Post).where(Post.group_id == GROUP))
    for number in set(members) & {FOUNDER, MEMBER, FIRST, SECOND}:
        with Session(engine) as session, unlock(session, NAMES[number - 1]):
            texts = read_here(session, GROUP)
            if len(texts) != posts:
                found.append(f"{NAMES[number - 1]} reads {len(texts)} of {posts} posts")
    return found


def try_check(engine: Engine, kept: Kept) -> list[str]:
    """As `check`; an error is a finding too."""
    try:
        return check(engine, kept)
    except (EnvelopeError, DBAPIError) as error:
        return [f"{type(error).__name__}: {error}"[:300]]
