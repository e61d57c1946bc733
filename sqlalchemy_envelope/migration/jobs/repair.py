"""Repair rows with two values that differ, or with an encrypted value that does not authenticate. Before the
cut-over the previous value counts. After it the encrypted value counts, where it authenticates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.own_previous import LOCKED, open_previous
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import Verdict, compare, encrypted_again, headers_of
from sqlalchemy_envelope.migration.jobs.tags import write_tags
from sqlalchemy_envelope.migration.jobs.work import Work

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step


class Repair(Work):
    """Repair the rows that a verification finds.

    Args:
        cut_over: whether the encrypted value counts. If not, the row becomes pending, and the next run
            encrypts its previous value.
    """

    job = Job.REPAIR

    def __init__(self, *, cut_over: bool) -> None:
        self._cut_over = cut_over

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with both values."""
        return and_(rows.previous.is_not(None), rows.encrypted.is_not(None))

    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Compare a chunk, and repair rows that differ. Rows that no key here opens stay as they are."""
        parts = open_previous(session, rows, parts)
        keys = OwnerCiphers(session, rows.column)
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        encode = rows.column.plan.type.codec.encode
        lost: dict[tuple[bytes, tuple[Any, ...]], bool] = {}
        for part in parts:
            position, owner, typed, exact, stored = part
            verdict, wanted = compare(rows.column, keys, part)
            if verdict is Verdict.SAME:
                continue
            if verdict is Verdict.NO_KEY:
                key = (bytes(stored[:HEADER_SIZE]), owner)
                if key not in lost:
                    (lost[key],) = keys.strangers([key])
            if verdict is Verdict.PREVIOUS_LOCKED or (verdict is Verdict.NO_KEY and not lost[key]):
                step.locked += 1
                continue
            if verdict is not Verdict.DIFFERS and typed is not LOCKED:
                wanted = encode(typed)  # the stored value is broken, or its key is gone
            made = None
            if self._cut_over:
                writer = keys.writers({owner}, 1).get(owner) if keys.names_owner(owner) else None
                if wanted is None or writer is None:
                    step.locked += 1
                    continue
                made = encrypted_again(rows.column, writer, position, wanted)
            step.rows += rows.put_right(session.connection(), position, exact, stored, made)
            if made is not None and wanted is not None:
                typed = {position: rows.column.plan.type.codec.decode(wanted)}
                write_tags(session, rows, typed, [(position, made)])
