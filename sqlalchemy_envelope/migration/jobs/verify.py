"""Decrypt stored values and compare them with the previous values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, func

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.own_previous import open_previous
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import Verdict, compare, headers_of
from sqlalchemy_envelope.migration.jobs.work import Work

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position


class Verify(Work):
    """Decrypt each stored value and compare it with the previous value, to the byte and type.

    Args:
        sample: the share of rows to check; None for all.
    """

    job = Job.VERIFY

    def __init__(self, sample: float | None = None) -> None:
        self.sample = sample
        self.sampled = sample is not None

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value."""
        where: ColumnElement[bool] = rows.encrypted.is_not(None)
        if self.sample is None:
            return where
        name = rows.dialect.name
        if name == "sqlite":
            return and_(where, func.abs(func.random() % 1_000_000) < int(self.sample * 1_000_000))
        return and_(where, (func.rand() if name in ("mysql", "mariadb") else func.random()) < self.sample)

    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Compare a chunk."""
        parts = open_previous(session, rows, parts)
        keys = OwnerCiphers(session, rows.column)
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        examples: list[Position] = []
        locked: list[tuple[Position, bytes, tuple[Any, ...]]] = []
        for part in parts:
            position, owner, typed, _, stored = part
            verdict, _ = compare(rows.column, keys, part)
            if verdict is Verdict.NO_KEY:
                locked.append((position, bytes(stored[:HEADER_SIZE]), owner))
            elif verdict is Verdict.PREVIOUS_LOCKED:
                step.locked += 1
            elif verdict is Verdict.BROKEN or (verdict is Verdict.DIFFERS and typed is not None):
                step.bad += 1
                examples.append(position)
            step.rows += 1
        # A value counts as locked only if its key still exists. An owner that was deleted and created again
        # has lost the key, so the value counts as bad.
        for (position, *_), lost in zip(locked, keys.strangers([one[1:] for one in locked]), strict=True):
            step.bad, step.locked = step.bad + lost, step.locked + (not lost)
            if lost:
                examples.append(position)
        step.examples = tuple(examples[:5])
