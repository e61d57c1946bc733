"""Fill a blind index with the tags of the values that are there, and compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_

from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import DecryptionError, FormatError
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.index_hashers import RowHashers
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import headers_of
from sqlalchemy_envelope.migration.jobs.tags import converted, store_tags, tagged_by
from sqlalchemy_envelope.migration.jobs.work import Work

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
        self.keys = OwnerCiphers(session, rows.column)
        self.keys.prepare_read(headers_of(one for part in parts for one in part[5]))

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
                plaintext = self.keys.open(source.type.field, blob, owner, reference)
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
        values, tagged = _Values(session, rows, parts), []
        makers = RowHashers(session, index, values.keys, {part[1] for part in parts}, makes=True)
        emptied: list[Position] = []
        bad: list[Position] = []
        for part in parts:
            position, stored, tag = part[0], part[4], part[6]
            found, hashers = values.read(part), makers.of(part[1])
            writes = None if hashers is None else hashers.writes
            wanted = None if found.data is None or writes is None else writes.tag(found.data)
            if found.is_locked or (writes is None and found.data is not None):
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
        values = _Values(session, rows, parts)
        makers = RowHashers(session, index, values.keys, {part[1] for part in parts}, makes=False)
        bad: list[Position] = []
        for part in parts:
            found, tag, hashers = values.read(part), part[6], makers.of(part[1])
            seeks = () if hashers is None else hashers.seeks
            known = () if found.data is None else [hasher.tag(found.data) for hasher in seeks]
            if found.is_locked or (hashers is None and tag is not None):
                step.locked += 1
            elif tag is None:
                step.shredded += found.data is not None
            elif found.is_bad or bytes(tag) not in known:
                bad.append(part[0])
            step.rows += 1
        step.bad, step.examples = len(bad), tuple(bad[:5])
