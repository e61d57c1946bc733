"""Fill a blind index with the tags of the values that are there, and compare the two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, or_

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
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

    from sqlalchemy_envelope.keys.index_keys import IndexHashers
    from sqlalchemy_envelope.migration.database.index_columns import IndexRows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position


class _State(Enum):
    """What is known of the values of a row."""

    OPEN = auto()
    """They are decrypted: `_Read.data` is what is hashed of them."""
    EMPTY = auto()
    """One of them is NULL: they have no tag."""
    LOCKED = auto()
    """No key here opens them."""
    BAD = auto()
    """They do not authenticate, or the index does not take them."""
    SHREDDED = auto()
    """Their key is destroyed: their tag went with it."""


@dataclass(frozen=True)
class _Read:
    """The values of a row.

    Attributes:
        data: what is hashed of them; None if they have no tag, or were not decrypted.
    """

    state: _State
    data: bytes | None = None

    @property
    def needs_tag(self) -> bool:
        """Whether there must be a tag beside these values. No key is needed to say so of locked ones."""
        return self.state is _State.LOCKED or self.data is not None


class _Values:
    """The values of a chunk's rows."""

    def __init__(self, session: Session, rows: IndexRows, parts: Sequence[Any]) -> None:
        self._index = rows.column.index
        self.keys = OwnerCiphers(session, rows.column)
        self._headers = headers_of(one for part in parts for one in part[5])
        self.keys.prepare_read(self._headers)

    @cached_property
    def _destroyed(self) -> set[bytes]:
        return self.keys.destroyed(self._headers)

    def read(self, part: Any) -> _Read:
        """Decrypt the values of a row."""
        position, owner, _, _, _, stored, _ = part
        if any(blob is None for blob in stored):
            return _Read(_State.EMPTY)
        values: list[Any] = []
        for source, blob in zip(self._index.sources, stored, strict=True):
            reference = encode_reference(position) if source.row_bound else b""
            try:
                plaintext = self.keys.open(source.type.field, blob, owner, reference)
            except (DecryptionError, FormatError):
                return _Read(_State.BAD)
            if plaintext is None:
                is_gone = bytes(blob[:HEADER_SIZE]) in self._destroyed
                return _Read(_State.SHREDDED if is_gone else _State.LOCKED)
            values.append(source.type.codec.decode(plaintext))
        try:
            return _Read(_State.OPEN, self._index.kind.data(converted(self._index, values)))
        except Exception:  # noqa: BLE001 - the error may show the value
            return _Read(_State.BAD)


class IndexFill(Work):
    """Give tags to the values that have none.

    A value that no key here opens counts as locked; without a tag it counts in `Step.shredded` too. A value
    counts as bad if it does not authenticate, if the index does not take it, or if a unique index has its tag
    already.
    """

    job = Job.INDEX_FILL

    def due(self, rows: Any) -> ColumnElement[bool]:
        """Rows with values and without a tag."""
        return and_(rows.has_values, rows.tag.is_(None))

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
            if found.state is _State.LOCKED or (writes is None and found.data is not None):
                step.locked += 1
                step.shredded += tag is None
            elif found.state is _State.BAD:
                bad.append(position)
            elif found.state is _State.SHREDDED:
                pass
            elif found.state is _State.EMPTY:
                emptied += [position] if tag is not None else []
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
        """Rows with values or a tag."""
        return or_(rows.has_values, rows.tag.is_not(None))


class IndexVerify(Work):
    """Compare each tag with the value beside it. `Step.shredded` counts the values without a tag."""

    job = Job.INDEX_VERIFY

    def due(self, rows: Any) -> ColumnElement[bool]:
        """Rows with values or a tag."""
        return or_(rows.has_values, rows.tag.is_not(None))

    def work(self, session: Session, rows: Any, parts: list[Any], step: Step) -> None:
        """Compare a chunk."""
        index: Any = rows.column.index
        values = _Values(session, rows, parts)
        makers = RowHashers(session, index, values.keys, {part[1] for part in parts}, makes=False)
        bad: list[Position] = []
        for part in parts:
            found, tag, hashers = values.read(part), part[6], makers.of(part[1])
            if tag is None:
                is_pending, is_bad = found.needs_tag, found.state is _State.BAD
                step.shredded += is_pending
            else:
                is_pending, is_bad = False, self._differs(found, tag, hashers)
            if is_bad:
                bad.append(part[0])
            is_locked = found.state is _State.LOCKED or (found.data is not None and hashers is None)
            step.locked += is_locked
            step.rows += not is_locked and found.state is not _State.SHREDDED
        step.bad, step.examples = len(bad), tuple(bad[:5])

    @staticmethod
    def _differs(found: _Read, tag: Any, hashers: IndexHashers | None) -> bool:
        """Whether a tag is not that of its value, as far as the keys here tell."""
        if found.state in (_State.LOCKED, _State.SHREDDED):
            return False
        if found.data is None:
            return True
        if hashers is None:
            return False
        is_bytes = isinstance(tag, (bytes, bytearray, memoryview))
        return not is_bytes or bytes(tag) not in [hasher.tag(found.data) for hasher in hashers.seeks]
