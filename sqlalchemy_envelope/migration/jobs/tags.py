"""The tags of the values that a job encrypts or reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.exc import IntegrityError

from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.index_keys import IndexHashers
    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.keyset import Position


class Tagged(NamedTuple):
    """A row with its tags.

    Attributes:
        key: its primary key.
        stored: the ciphertext that the tags are of.
        tag: the tag for the index; None for none.
        guard: the tag under the next key, during a rotation; else None.
        writes_guard: whether the guard is written.
    """

    key: Position
    stored: bytes
    tag: bytes | None
    guard: bytes | None
    writes_guard: bool


def write_tags(
    session: Session, rows: Rows, typed: Mapping[Position, Any], written: Sequence[tuple[Position, bytes]]
) -> None:
    """Store the tags of values that were encrypted a moment ago, in the same transaction. Where a tag cannot
    be made or stored, there is none: the row is pending, and `index fill` tells why.

    Args:
        typed: the values, by the primary keys of their rows.
        written: the primary keys and the ciphertexts.
    """
    for index in rows.column.indexes:
        hashers = writing_hashers(session, index) if len(index.sources) == 1 else None
        tagged = [
            tagged_by(hashers, key, stored, None if hashers is None else hashed_of(index, [typed[key]]))
            for key, stored in written
        ]
        _, refused = store_tags(session, rows, index, tagged)
        # A tag that is there may be that of an earlier value.
        store_tags(
            session,
            rows,
            index,
            [tagged_by(None, key, stored, None) for key, stored in written if key in refused],
        )


def writing_hashers(session: Session, index: IndexedColumn) -> IndexHashers | None:
    """What makes the tags that are written; None of an index whose keys are its owners'."""
    if index.scope != "server":
        return None
    return server_hashers(session.connection(), index, makes=True)


def hashed_of(index: IndexedColumn, values: Sequence[Any]) -> bytes | None:
    """What is hashed of a row's values; None if they have no tag, or the index does not take them."""
    try:
        return index.kind.data(converted(index, values))
    except Exception:  # noqa: BLE001 - the error may show the value
        return None


def converted(index: IndexedColumn, values: Sequence[Any]) -> list[Any]:
    """Decrypted values of a row, as their inner types convert them to be encrypted."""
    return [
        value if source.convert is None or value is None else source.convert(value)
        for source, value in zip(index.sources, values, strict=True)
    ]


def tagged_by(hashers: IndexHashers | None, key: Position, stored: bytes, data: bytes | None) -> Tagged:
    """A row with the tags of what is hashed of its values; without hashers it has none."""
    writes, guards = (None, None) if hashers is None else (hashers.writes, hashers.guards)
    return Tagged(
        key,
        stored,
        None if writes is None or data is None else writes.tag(data),
        None if guards is None or data is None else guards.tag(data),
        hashers is None or guards is not None,
    )


def store_tags(
    session: Session, rows: Rows, index: IndexedColumn, tagged: Sequence[Tagged]
) -> tuple[int, list[Position]]:
    """Store tags: how many rows were written, and the primary keys of rows that a unique index refused,
    since another row has an equal value."""
    if not tagged:
        return 0, []
    try:
        with session.begin_nested():
            return _store(session, rows, index, tagged), []
    except IntegrityError:
        pass
    written, refused = 0, []
    for one in tagged:
        try:
            with session.begin_nested():
                written += _store(session, rows, index, [one])
        except IntegrityError:
            refused.append(one.key)
    return written, refused


def _store(session: Session, rows: Rows, index: IndexedColumn, tagged: Sequence[Tagged]) -> int:
    connection, guard = session.connection(), getattr(index, "guard", None)
    if guard is not None:
        guarded = [(one.key, one.stored, one.guard) for one in tagged if one.writes_guard]
        rows.write_tags(connection, guard.name, guarded)
    return rows.write_tags(connection, index.column.name, [(one.key, one.stored, one.tag) for one in tagged])
