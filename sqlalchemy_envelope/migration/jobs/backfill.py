"""Encrypt previous values for their rows' owners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_

from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, NO_ROW, OVERHEAD, Batch, row_tail
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import MigrationStoppedError
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.early_ciphertext import BESIDE, Advice, refuse_ciphertext
from sqlalchemy_envelope.migration.jobs.own_previous import LOCKED, open_previous
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.preflight import check_read
from sqlalchemy_envelope.migration.jobs.tags import write_tags
from sqlalchemy_envelope.migration.jobs.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position


class Backfill(Work):
    """Encrypt previous values for their rows' owners.

    Args:
        advice: the text of an error that says what to do about a previous value that is ciphertext already.
    """

    job = Job.BACKFILL

    def __init__(self, advice: Advice = BESIDE) -> None:
        self._advice = advice

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Pending rows that have an owner."""
        return and_(rows.pending, rows.owned)

    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Encrypt a chunk. Rows of owners without keys are passed over."""
        if rows.dialect.name == "sqlite":
            # A transaction that read first fails at once when it writes, if another program wrote in between.
            session.rollback()
        check_read(rows, parts)
        opened = [part for part in open_previous(session, rows, parts) if part[2] is not LOCKED]
        step.locked = len(parts) - len(opened)
        keys = OwnerCiphers(session, rows.column)
        refuse_ciphertext(rows.column, keys, opened, self._advice)
        ciphers = keys.writers({owner for _, owner, *_ in opened}, len(opened))
        made = encrypt_rows(rows.column, ciphers, opened)
        step.rows = rows.write_encrypted(session.connection(), made)
        typed = {part[0]: part[2] for part in opened} if rows.column.indexes else {}
        write_tags(session, rows, typed, [(position, stored) for position, *_, stored in made])


def encrypt_rows(
    column: MigratingColumn, ciphers: dict[tuple[Any, ...], ValueCipher], parts: Sequence[Any]
) -> list[tuple[Position, tuple[Any, ...], Any, bytes]]:
    """The ciphertexts for a chunk, each after the parts that were read: key, owner's key, previous value.

    Raises:
        MigrationStoppedError: a value does not fit the encrypted type.
    """
    encode, row_bound = column.plan.encode, column.plan.row_bound
    bound = {owner: [cipher.bind("value", encode, column)] for owner, cipher in ciphers.items()}
    batch, made = Batch(len(parts)), []
    for position, owner, typed, exact, _ in parts:
        cipher = bound.get(owner)
        if cipher is None:
            continue
        row = {"value": typed}
        failed = batch.encrypt(row, cipher, row_tail(encode_reference(position)) if row_bound else NO_ROW)
        if failed is not None:
            size = 0 if failed[2] is None else len(failed[2])
            raise MigrationStoppedError(
                f"{column.name}: the previous value of the row {position!r} has {size - OVERHEAD:,} bytes, "
                "over "
                f"{MAX_VALUE_SIZE:,}. Shorten it, or store it elsewhere, and run again."
                if size > MAX_VALUE_SIZE
                else f"{column.name}: the previous value of the row {position!r} is no "
                f"{column.plan.type.codec.tag!r} that "
                f"can be encrypted ({type(typed).__name__}). Correct the row, or the type of the column, "
                "and run again."
            )
        if row["value"] is not typed:
            made.append((position, owner, exact, row["value"][1]))
    return made
