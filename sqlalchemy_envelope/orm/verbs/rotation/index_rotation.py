"""Rotation of the index key of a server: every row of a blind index gets its tag under a new key, while the
application runs.

The states of the new key, and what processes do that know of them:

    next       look for the tags of both keys; write the old key's to the index, the new key's to the guard
    ready      the same; an upsert looks for its row in the guard
    moving     look for both; write the new key's to the index and the guard; an upsert looks in the guard
    active     look for both, as the old key is retired; write the new key's to the index and the guard
    active     the old key is destroyed: look for the new key's, write them to the index alone

A process goes on with what it read for some seconds. So before each step the run waits for longer than that:
no two processes are ever more than one step apart. A transaction may last longer. So each step is taken under
a lock, after every transaction that wrote to the table has ended. Before it is ready, each row has a guard;
before the old key retires, each index is its guard; before another rotation begins, no guard is left.

Why no two rows with one value come to be: until it is moving, all write the old key's tag into the index, and
that is unique. From then on all write the new key's tag into the guard, and every row has one: that is unique
too. From then on that no index has the old key's tag, all write the new key's into the index.

Each turn does one batch, and finds out by the rows how far the rotation is. So it may be killed anywhere, and
several runs may go on side by side.
"""

from __future__ import annotations

import datetime as dt
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from sqlalchemy import select, update
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.index_keys import (
    FRESH_SECONDS,
    IndexKeyState,
    check_row,
    check_states,
    make_index_key,
    progress_of,
    row_seal,
)
from sqlalchemy_envelope.orm.current import policy as policies
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.current.locks import require_no_locks
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn, indexes_of_table
from sqlalchemy_envelope.orm.indexes.server_keys import (
    insert_key,
    keys_change,
    load_keys_of,
)
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn, as_indexed
from sqlalchemy_envelope.orm.tables.conflict_errors import should_retry
from sqlalchemy_envelope.orm.tables.index_key_table import index_key_table_of
from sqlalchemy_envelope.orm.tables.slot_rows import in_utc
from sqlalchemy_envelope.orm.verbs.steps import Pause
from sqlalchemy_envelope.orm.writing.guard_rows import GuardRows
from sqlalchemy_envelope.orm.writing.tokens.moved import MovedTokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.index_keys import StoredIndexKey
    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.keyset import Position
    from sqlalchemy_envelope.orm.verbs.steps import Steps
    from sqlalchemy_envelope.orm.writing.moved_rows import Batch, MovedRows

A_STATEMENT = 5.0
"""The seconds that a statement may take from its tags to the database."""
_LATELY = dt.timedelta(hours=1)
_NAP = 1.0
"""The longest pause of one turn: the caller may want to stop."""
_ACTIVE, _NEXT = IndexKeyState.ACTIVE, IndexKeyState.NEXT
_READY, _MOVING = IndexKeyState.READY, IndexKeyState.MOVING
_RETIRED, _DESTROYED = IndexKeyState.RETIRED, IndexKeyState.DESTROYED


@dataclass(frozen=True)
class IndexRotation:
    """The progress of `rotate_index`, over all turns so far.

    Attributes:
        index: the label of the index.
        step: "next" while rows get their guard, "ready" until all know that they have it, "moving" while they
            are moved, "settling" until the old key is destroyed, "clearing" while guards are emptied, "done"
            at the end.
        filled: the number of rows that got the new key's tag into their guard here. A token index has none.
        moved: the number of rows whose index got the new key's tag here.
        pending: the number of rows that keep both keys: no key here opened their values. Their owners' next
            write moves them, or a run where their owners are open. None while that is not known.
        waits: the seconds that the run waits, for processes to learn of the last step.
    """

    index: str
    step: str = "next"
    filled: int = 0
    moved: int = 0
    pending: int | None = None
    waits: float = 0.0

    @property
    def is_done(self) -> bool:
        """Whether the old key is destroyed, and the new key alone is left."""
        return self.step == "done"


@dataclass
class IndexJob:
    """A run of `rotate_index`.

    Attributes:
        size: the most rows in a turn.
        alone: whether no other process uses the database.
        target: the generation that it rotates to.
        after: the position of the present pass over the rows.
        done: the number of rows that this pass did.
        seen: when each progress of the keys was first seen committed.
        until: the time before which the next turn does nothing.
        transaction: the transaction of the last turn.
        ended: whether there is nothing more to do here.
    """

    index: IndexedColumn
    keys: Table
    size: int
    alone: bool
    target: int | None = None
    after: Position | None = None
    done: int = 0
    seen: dict[int, float] = field(default_factory=dict)
    until: float = 0.0
    transaction: Any = field(default=None, repr=False)
    ended: bool = False


def index_job(index: Any, size: int, *, alone: bool) -> IndexJob:
    """Check the arguments of `rotate_index`.

    Raises:
        ConfigurationError: this is no blind index whose key the server holds, or an empty batch.
    """
    found = as_indexed(index) if isinstance(index, TokenizedColumn) else _blind_index(index)
    keys = None if found is None else index_key_table_of(found.column.table)
    if found is None or keys is None:
        raise ConfigurationError(
            "rotate_index() takes a blind index with the scope 'server': "
            "rotate_index(session, User.email_index). The index keys of an owner rotate with the owner's "
            "root key: `envelope.rotate(session, user, root=True)`."
        )
    if not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"batch={size!r} rows at a time cannot be rotated; give at least 1.")
    return IndexJob(found, keys, size, alone)


def _blind_index(index: Any) -> IndexedColumn | None:
    """The blind index of the server's scope that was given, as a mapped attribute or a column."""
    if isinstance(index, IndexedColumn):
        index = index.column
    clause = index.__clause_element__() if hasattr(index, "__clause_element__") else index
    table = getattr(clause, "table", None)
    known = () if table is None or not hasattr(table, "metadata") else indexes_of_table(table)
    found = next((one for one in known if one.key == getattr(clause, "key", None)), None)
    return found if found is not None and found.guard is not None else None


def index_steps(desk: Desk, job: IndexJob, so_far: IndexRotation) -> Steps[IndexRotation | None]:
    """The steps of one turn; None after the last one.

    Raises:
        ConfigurationError: the turn before was not committed; or the session reads a snapshot.
        TamperedKeyError: the row of a key was altered.
        ProviderError: a provider failed.
    """
    if job.ended:
        return None
    session = desk.session
    if job.transaction is not None and session.get_transaction() is job.transaction:
        raise ConfigurationError(
            "rotate_index(): commit at each turn of the loop, so that others see each step before the next."
        )
    left = job.until - monotonic()
    if left > 0:
        yield Pause(min(left, _NAP))
        if left > _NAP:
            return replace(so_far, waits=left - _NAP)
    note_policy(session, desk.policy)
    for one in policies.ENVELOPES if job.alone else [desk.policy]:
        one.index_keys.forget_all()
    turn = _Turn(desk, job, replace(so_far, waits=0.0))
    after = yield from turn.steps()
    job.transaction = session.get_transaction()
    return after


class _Turn:
    """One turn: the state of the keys, as it is now, and the one thing that is to be done."""

    def __init__(self, desk: Desk, job: IndexJob, so_far: IndexRotation) -> None:
        self._desk, self._job, self._so_far = desk, job, so_far
        index: Any = job.index
        tokens = isinstance(index, TokenizedColumn)
        self._rows: MovedRows = (MovedTokens if tokens else GuardRows)(desk.session, index)
        self._connection = self._rows.connection
        if self._connection.dialect.name == "postgresql" and self._connection.get_isolation_level() in (
            "REPEATABLE READ",
            "SERIALIZABLE",
        ):
            raise ConfigurationError(
                "rotate_index has to see what others have just committed: use a session with the isolation "
                "level READ COMMITTED."
            )
        self._stored = load_keys_of(self._connection, job.keys, job.index)
        self._keys = [row for row in self._stored if row.state is not _DESTROYED]

    def steps(self) -> Steps[IndexRotation | None]:
        """Do it; or wait, if it is too early for it."""
        try:
            return (yield from self._now())
        except _NotYetError:
            self._job.until = monotonic() + _NAP
            return self._progress(waits=_NAP)

    def _now(self) -> Steps[IndexRotation | None]:
        job = self._job
        if not self._keys:
            return None  # nothing was ever written
        check_states(job.index.label, self._keys)
        newest = self._keys[0]
        is_whole = newest.state is _ACTIVE and len(self._keys) == 1
        if job.target is None:
            job.target = newest.epoch + (is_whole and not self._rows.any(self._rows.guarded))
        job.seen.setdefault(progress_of(self._keys), monotonic())
        if is_whole:
            return (yield from self._clear(newest))
        opened = {}
        for row in self._keys:
            opened[row.state] = yield from self._opened(row)
        old = opened[_ACTIVE] if newest.state is _MOVING else None
        self._rows.know(None if old is None else job.index.hasher(old))
        if newest.state is _NEXT:
            return self._fill(opened[_NEXT], newest, _READY)
        if newest.state is _READY:
            return self._fill(opened[_READY], newest, _MOVING)
        if newest.state is _MOVING:
            return self._move(job.index.hasher(opened[_MOVING]), newest, opened)
        return self._settle(self._keys[1])

    def _progress(self, **changed: Any) -> IndexRotation:
        return replace(self._so_far, **changed)

    def _opened(self, row: StoredIndexKey) -> Steps[KeyBytes]:
        policy = self._desk.policy
        calls = policy.require_providers().named(row.provider_name)
        if policy.index_keys.is_open(row) or calls.local:
            key = policy.index_keys.key(row, calls)
        else:
            key = yield self._outside(calls, partial(policy.index_keys.key, row, calls))
        check_row(key, row)
        return key

    def _outside(self, calls: ProviderCalls, call: Any) -> Outside:
        require_no_locks(self._desk.session, calls.name)
        return Outside(call)

    def _clear(self, active: StoredIndexKey) -> Steps[IndexRotation | None]:
        """Empty guards. Then nobody writes another, and the rotation is done, or the next begins."""
        rows, job = self._rows, self._job
        if rows.any(rows.guarded):
            with self._first_to_write():
                rows.clear(None, job.size)
            return self._progress(step="clearing")
        waits = self._waits("clearing") if self._was_destroyed_lately() else None
        if waits:
            return waits
        made = None
        if active.epoch < (job.target or 0):
            made = yield from self._made()
        # It touches the row of the active key: a transaction with an earlier snapshot, which would not see
        # a new row, may not write by it any more.
        # No guard was ever written, before the first rotation.
        forbidden = rows.guarded if len(self._stored) > 1 else None
        step = "done" if made is None else "next"
        found = self._step([(active, _ACTIVE, {})], forbidden, step, made)
        job.ended = found.is_done
        return found

    def _was_destroyed_lately(self) -> bool:
        """Whether a process may still write guards of the rotation before. Clocks differ by less than the
        hour."""
        times = [in_utc(row.changed_at) for row in self._stored if row.state is _DESTROYED]
        now = dt.datetime.now(dt.UTC)
        return any(abs(now - at) < _LATELY for at in times if at is not None)

    def _made(self) -> Steps[StoredIndexKey]:
        """The next key."""
        policy, epoch = self._desk.policy, self._stored[0].epoch + 1
        calls = policy.require_providers().named(policy.index_provider)
        make = partial(make_index_key, calls, self._job.index.label, epoch, _NEXT)
        made: StoredIndexKey = make() if calls.local else (yield self._outside(calls, make))
        return made

    def _write(self, row: StoredIndexKey, state: IndexKeyState, values: dict[str, Any]) -> bool:
        """Put a key into another state, unless somebody else did."""
        c = self._job.keys.c
        changed = update(self._job.keys).where(c.key_id == row.key_id, c.state == row.state.value)
        now = dt.datetime.now(dt.UTC)
        keys_change(self._connection)
        found = self._connection.execute(changed.values(state=state.value, changed_at=now, **values))
        return found.rowcount == 1

    def _fill(self, key: KeyBytes, newest: StoredIndexKey, then: IndexKeyState) -> IndexRotation:
        after = self._filled(self._job.index.hasher(key), newest.state.value)
        if after is not None:
            return after
        changes = [(newest, then, {"seal": row_seal(key, newest, then)})]
        return self._step(changes, self._rows.pending, then.value)

    def _move(
        self, hasher: IndexHasher, newest: StoredIndexKey, opened: dict[IndexKeyState, KeyBytes]
    ) -> IndexRotation:
        if self._job.after is None and self._rows.any(self._rows.unmoved):
            with self._first_to_write():
                batch = self._rows.move(None, self._job.size)
            return self._progress(step="moving", moved=self._so_far.moved + batch.rows)
        after = self._filled(hasher, "moving")  # rows whose tag was copied, past the library's writes
        if after is not None:
            return after
        active = self._keys[1]
        changes = [
            (active, _RETIRED, {"seal": row_seal(opened[_ACTIVE], active, _RETIRED)}),
            (newest, _ACTIVE, {"seal": row_seal(opened[_MOVING], newest, _ACTIVE)}),
        ]
        found = self._step(changes, self._rows.left, "settling")
        if found.step == "settling":
            name, key_id = self._job.index.path.owner_class.name, newest.key_id.hex[:8]
            self._desk.emit(AuditEvent("index_rotated", name, found.moved, key_id=key_id))
        return found

    def _settle(self, retired: StoredIndexKey) -> IndexRotation:
        """Destroy the key before, once nobody writes guards that others have to compare."""
        waits = self._waits("settling")
        if waits:
            return waits
        changes = [(retired, _DESTROYED, {"wrapped": b"", "seal": b""})]
        found = self._step(changes, self._rows.unmoved, "clearing")
        if found.step == "clearing":
            name, key_id = self._job.index.path.owner_class.name, retired.key_id.hex[:8]
            self._desk.emit(AuditEvent("index_key_destroyed", name, key_id=key_id))
        return found

    def _filled(self, hasher: IndexHasher, step: str) -> IndexRotation | None:
        """Fill a batch of guards, or wait; None if all rows have guards, and all processes know the state."""
        job = self._job
        with self._first_to_write():
            batch: Batch = self._rows.fill(hasher, job.after, job.size)
        job.after, job.done = batch.last, job.done + batch.rows
        if batch.last is not None:
            name = "moved" if self._rows.moves_at_once else "filled"
            return self._progress(step=step, **{name: getattr(self._so_far, name) + batch.rows})
        done, job.done = job.done, 0
        waits = self._waits(step)
        if waits or not self._rows.any(self._rows.pending):
            return waits
        if done:
            return self._progress(step=step)  # once more from the start: others write
        job.ended = True
        return self._progress(step=step, pending=self._rows.count(self._rows.pending))

    def _waits(self, step: str) -> IndexRotation | None:
        """The progress of a run that waits until every process knows the present state; None if all do."""
        job = self._job
        if job.alone:
            return None
        remote = any(not self._calls(row).local for row in self._keys)
        until = max(job.seen.values()) + FRESH_SECONDS * (1 + remote) + A_STATEMENT
        left = until - monotonic()
        if left <= 0:
            return None
        job.until = until
        return self._progress(step=step, waits=left)

    def _calls(self, row: StoredIndexKey) -> ProviderCalls:
        return self._desk.policy.require_providers().named(row.provider_name)

    def _step(
        self, changes: list[tuple[Any, ...]], forbidden: Any, step: str, made: StoredIndexKey | None = None
    ) -> IndexRotation:
        """Take a step, if no row stands in its way: neither a committed one, nor one of a transaction that
        goes on.

        Args:
            changes: the rows of keys, with their new states and values.
            forbidden: the condition for rows that stand in its way; None if none does.
            step: its name.
            made: a key to store.
        """
        rows = self._rows
        with rows.undoing(), self._first_to_write():
            if forbidden is not None:
                if not rows.lock():
                    raise _NotYetError
                self._hold([row for row, *_ in changes])
            # The write first: after it, SQLite lets nobody else write.
            if not all([self._write(*change) for change in changes]):  # noqa: C419
                raise _NotYetError
            if forbidden is not None and rows.any(forbidden, locks=rows.reads_with_locks):
                raise _NotYetError
            if made is not None:
                insert_key(self._connection, self._job.keys, made)
        return self._progress(step=step, pending=None if step == "next" else 0)

    def _hold(self, keys: list[StoredIndexKey]) -> None:
        """Lock rows of keys, while the table is locked, without waiting for them.

        A writer with a snapshot locks the rows of the keys first, and the table with its first row; one that
        has written before locks them the other way round. So there is no order that never leads in a circle.
        Whoever waits for nothing is in none, and each writer goes on.

        Raises:
            DBAPIError: a writer has them (SQLSTATE 55P03).
        """
        if self._connection.dialect.name == "postgresql":
            c = self._job.keys.c
            held = select(c.key_id).where(c.key_id.in_([one.key_id for one in keys]))
            self._connection.execute(held.with_for_update(nowait=True))

    @contextmanager
    def _first_to_write(self) -> Iterator[None]:
        """A block that is undone, and done again at a later turn, if another transaction comes first. MySQL
        ends the whole transaction then, and SQLite may: there the error is the caller's."""
        if self._connection.dialect.name != "postgresql":
            yield
            return
        try:
            with self._rows.undoing():
                yield
        except DBAPIError as error:
            if should_retry(error):
                raise _NotYetError from None
            raise


class _NotYetError(Exception):
    """It is too early for a step."""
