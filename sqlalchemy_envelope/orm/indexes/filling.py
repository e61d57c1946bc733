"""Pending rows of blind indexes get their tags, when their owner settles.

A new index key leaves the tags where they are, under the key before it: a search asks for both. Not so in a
unique index, which would not see an equal value: its tags are taken away, and made anew.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.indexes.owned import unique_sets
from sqlalchemy_envelope.orm.indexes.pending import (
    OwnTags,
    converted,
    indexes_of,
    select_pending,
    update_tag,
)
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.tables.attempts import attempt
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.newer_rows import refuse_newer
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED, is_there
from sqlalchemy_envelope.orm.tables.rows import skips_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Column, Connection, Select
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.owners import Place

    Hasher = Callable[[Place, IndexedColumn], IndexHasher | None]
    IsStored = Callable[[Connection, Column[Any]], bool]

MOST_ROWS = 10_000
"""The most rows of an index of one owner that get their tags in a transaction: it is that of a flush, as a
rule. The others follow with the next."""
_MOST_SLOW = 20
"""The same, of a slow index."""
_CHUNK = 500


def fill_pending(
    session: Session,
    places: Iterable[Place],
    hasher_of: Hasher,
    is_stored: IsStored | None = None,
    most: float = MOST_ROWS,
) -> int:
    """Give the pending rows of these owners their tags, in the session's transaction; how many got one.

    A row that another transaction holds stays pending, and so does a row whose value does not open, or whose
    tag another row of a unique index has.

    Args:
        hasher_of: what makes the tags of an owner in an index under the owners' keys; None for no key.
        is_stored: whether the database has a column, which may be declared and not there yet.
        most: the most rows of an index of one owner.
    """
    filled = 0
    with session.no_autoflush:
        for place in places:
            for index in indexes_of(place.owner_class):
                filled += _Filling(session, index, hasher_of, is_stored).fill(place, most)
    return filled


def renew_unique_tags(session: Session, place: Place, keyring: Keyring | None) -> None:
    """An owner has new index keys: take the tags of its unique indexes away, and make them anew.

    Without the keyring, or where values do not open here, rows stay pending until the owner settles.
    """
    unique = [one for one in indexes_of(place.owner_class) if one.scope != "server" and is_unique(one)]
    for index in unique:
        forget_tags(session, place, index)
    if unique and keyring is not None:
        fill_pending(
            session,
            [place],
            lambda place, index: keyring.index_writer(place.owner, index.data_scope, index),
            most=inf,
        )


def forget_tags(session: Session, place: Place, index: IndexedColumn) -> None:
    """Take the tags of an owner's rows away. One statement, and two more by an older snapshot.

    All of them, or none: a tag that stays under an earlier key meets no equal value, and one under the
    server's key still answers guesses. So the owner's keys are changed before, for which others who write
    are waited for; and a transaction that does not see what they wrote goes no further.

    Raises:
        TransactionConflictError: a row is newer than the snapshot of this transaction.
        ConfigurationError: see `refuse_newer`.
    """
    mapper = mapper_of_table(index.column.table) or place.owner_class.mapper
    connection = session.connection(bind_arguments=bind_for(session, mapper))
    if is_there(connection, index.column.table):
        tags = OwnTags(index, place)
        refuse_newer(connection, tags.keys, tags.are_there)
        connection.execute(tags.update_to_none(), execution_options=UNCACHED)


def is_unique(index: IndexedColumn) -> bool:
    """Whether equal tags are refused, alone or together with other columns."""
    return next(unique_sets(index.column), None) is not None


class _Filling:
    """Gives rows of one index their tags."""

    def __init__(
        self, session: Session, index: IndexedColumn, hasher_of: Hasher, is_stored: IsStored | None
    ) -> None:
        self._session = session
        self._index = index
        self._hasher_of = hasher_of
        self._is_stored = is_stored
        self._mapper = mapper_of_table(index.column.table) or index.path.owner_class.mapper
        self._key_count = len(index.column.table.primary_key.columns)
        self._is_unique = is_unique(index)

    def fill(self, place: Place, most: float) -> int:
        """Give an owner's rows their tags."""
        if self._index.type.slow is not None and most is not inf:
            most = _MOST_SLOW
        bind = bind_for(self._session, self._mapper)
        connection = self._session.connection(bind_arguments=bind)
        query = select_pending(self._index, place)
        if not self._is_any(connection, query):
            return 0
        hasher = self._hasher(connection, place)
        if hasher is None:
            return 0
        # Locked: a tag of a value that is overwritten at this moment must not be stored.
        chunk = int(min(_CHUNK, most))
        query = query.limit(chunk).with_for_update(
            of=self._index.column.table, skip_locked=skips_locked(connection.dialect), key_share=True
        )
        filled = passed = 0
        while filled + passed < most:
            rows: Sequence[Any] = ()
            try:
                with attempt(self._session, self._mapper):
                    rows = self._session.execute(query.offset(passed), bind_arguments=bind).all()
            except EnvelopeError:
                break  # a value was altered: whoever reads it is told
            done = self._write(rows, hasher)
            filled, passed = filled + done, passed + len(rows) - done
            if len(rows) < chunk:
                break
        return filled

    def _is_any(self, connection: Connection, query: Select[Any]) -> bool:
        """Whether a row is pending: one query, which locks nothing, and is all that most owners need."""
        column = self._index.column
        if self._is_stored is not None and not self._is_stored(connection, column):
            return False
        keys = tuple(column.table.primary_key.columns)
        return connection.execute(query.with_only_columns(*keys).order_by(None).limit(1)).first() is not None

    def _hasher(self, connection: Connection, place: Place) -> IndexHasher | None:
        if self._index.scope != "server":
            return self._hasher_of(place, self._index)
        try:
            found = server_hashers(connection, self._index, makes=True)
        except EnvelopeError:
            return None  # the server's key is not at hand here
        return found.writes if found.guards is None else None  # a rotation is under way: later

    def _write(self, rows: Sequence[Any], hasher: IndexHasher) -> int:
        try:
            tags = hasher.tags([self._data(row) for row in rows])
        except EnvelopeError:
            return 0  # a slow index waits for too many others
        made = [
            {**{f"key_{at}": value for at, value in enumerate(row[: self._key_count])}, "tag": tag}
            for row, tag in zip(rows, tags, strict=True)
            if tag is not None
        ]
        if not made:
            return 0
        if not self._is_unique:
            return self._send(made)
        return sum(self._send([one]) for one in made)

    def _data(self, row: Any) -> bytes | None:
        """What is hashed of a row's values; None if they do not open, or have no tag."""
        values = row[self._key_count : self._key_count + len(self._index.sources)]
        if any(isinstance(one, Sealed) for one in values):
            return None
        try:
            return self._index.kind.data(list(converted(self._index, values)))
        except Exception:  # noqa: BLE001 - it may hold the value; the row stays pending
            return None

    def _send(self, parameters: list[dict[str, Any]]) -> int:
        statement, bind = update_tag(self._index), bind_for(self._session, self._mapper)
        done = 0
        try:
            with attempt(self._session, self._mapper):
                connection = self._session.connection(bind_arguments=bind)
                connection.execute(statement, parameters, execution_options=UNCACHED)
                done = len(parameters)
        except IntegrityError:
            pass  # SQLite has no savepoint here: the statement alone was undone
        return done
