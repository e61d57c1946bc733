"""Fill a blind index with the tags of the values that are there, and compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_

from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import DecryptionError, FormatError, MigrationRefusedError
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import headers_of
from sqlalchemy_envelope.migration.jobs.tags import converted, store_tags, tagged_by, writing_hashers
from sqlalchemy_envelope.migration.jobs.work import Work
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.index_columns import IndexRows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position


@dataclass(frozen=True)
class _Read:
    """What is known of the values of a row.

    Attributes:
        data: what is hashed of them; None if they have no tag.
        is_locked: no key here opens them.
        is_bad: they do not authenticate, or the index does not take them.
    """

    data: bytes | None = None
    is_locked: bool = False
    is_bad: bool = False


class _Values:
    """The values of a chunk's rows."""

    def __init__(self, session: Session, rows: IndexRows, parts: Sequence[Any]) -> None:
        self._index = rows.column.index
        self._keys = OwnerCiphers(session, rows.column)
        self._keys.prepare_read(headers_of(one for part in parts for one in part[5]))

    def read(self, part: Any) -> _Read:
        """Decrypt the values of a row."""
        position, owner, _, _, _, stored, _ = part
        values: list[Any] = []
        for source, blob in zip(self._index.sources, stored, strict=True):
            if blob is None:
                values.append(None)
                continue
            reference = encode_reference(position) if source.row_bound else b""
            try:
                plaintext = self._keys.open(source.type.field, blob, owner, reference)
            except (DecryptionError, FormatError):
                return _Read(is_bad=True)
            if plaintext is None:
                return _Read(is_locked=True)
            values.append(source.type.codec.decode(plaintext))
        try:
            return _Read(self._index.kind.data(converted(self._index, values)))
        except Exception:  # noqa: BLE001 - the error may show the value
            return _Read(is_bad=True)


class IndexFill(Work):
    """Give tags to the values that have none.

    A value that no key here opens counts as locked. A value counts as bad if it does not authenticate, if the
    index does not take it, or if a unique index has its tag already.
    """

    job = Job.INDEX_FILL

    def due(self, rows: Any) -> ColumnElement[bool]:
        """Rows with a value and without a tag."""
        return and_(rows.has_value, rows.tag.is_(None))

    def work(self, session: Session, rows: Any, parts: list[Any], step: Step) -> None:
        """Write the tags of a chunk."""
        index: Any = rows.column.index
        hashers = writing_hashers(session, index)
        if hashers is None or hashers.writes is None:
            raise MigrationRefusedError(_not_here(rows))
        values, tagged = _Values(session, rows, parts), []
        emptied: list[Position] = []
        bad: list[Position] = []
        for part in parts:
            position, stored, tag = part[0], part[4], part[6]
            found = values.read(part)
            wanted = None if found.data is None else hashers.writes.tag(found.data)
            if found.is_locked:
                step.locked += 1
            elif found.is_bad:
                bad.append(position)
            elif wanted != tag and all(one is None for one in part[5]):
                emptied.append(position)
            elif wanted != tag:
                tagged.append(tagged_by(hashers, position, stored, found.data))
        written, refused = store_tags(session, rows, index, tagged)
        step.rows = written + rows.empty_tags(session.connection(), emptied)
        bad += refused
        step.bad, step.examples = len(bad), tuple(bad[:5])


class IndexRefill(IndexFill):
    """Make every tag anew: it mends tags that are not those of their values, as after raw SQL that changed a
    value, or under a normaliser of another version."""

    job = Job.INDEX_REFILL

    def due(self, rows: Any) -> ColumnElement[bool]:
        """Rows with a value or a tag."""
        return or_(rows.has_value, rows.tag.is_not(None))


class IndexVerify(Work):
    """Compare each tag with the value beside it. `Step.shredded` counts the values without a tag."""

    job = Job.INDEX_VERIFY

    def due(self, rows: Any) -> ColumnElement[bool]:
        """Rows with a value or a tag."""
        return or_(rows.has_value, rows.tag.is_not(None))

    def work(self, session: Session, rows: Any, parts: list[Any], step: Step) -> None:
        """Compare a chunk."""
        index: Any = rows.column.index
        if index.scope != "server":
            raise MigrationRefusedError(_not_here(rows))
        hashers = server_hashers(session.connection(), index).seeks
        values = _Values(session, rows, parts)
        bad: list[Position] = []
        for part in parts:
            found, tag = values.read(part), part[6]
            known = () if found.data is None else [hasher.tag(found.data) for hasher in hashers]
            if found.is_locked:
                step.locked += 1
            elif tag is None:
                step.shredded += found.data is not None
            elif found.is_bad or bytes(tag) not in known:
                bad.append(part[0])
            step.rows += 1
        step.bad, step.examples = len(bad), tuple(bad[:5])


def _not_here(rows: Any) -> str:
    index = rows.column.index
    return (
        f"The keys of {index.label!r} are its owners' (scope {index.scope!r}): its rows are filled when "
        "their owner is next unlocked and writes, or by `unlocked.settle()`."
    )
