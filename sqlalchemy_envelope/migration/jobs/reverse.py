"""Move values back to the previous column."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import DecryptionError, FormatError, MigrationStoppedError
from sqlalchemy_envelope.migration.database.faults import refuses_value, why_refused
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.own_previous import seal_previous
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import headers_of, open_stored
from sqlalchemy_envelope.migration.jobs.work import Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step
    from sqlalchemy_envelope.orm.tables.keyset import Position


class Reverse(Work):
    """Move values back: a row with an encrypted value alone gets the plaintext in its previous column."""

    job = Job.REVERSE

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value alone."""
        return rows.encrypted_alone

    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Decrypt a chunk. Values that no key here opens stay as they are."""
        keys = OwnerCiphers(session, rows.column)
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        decode, made = rows.column.plan.type.codec.decode, []
        for position, owner, _, _, stored in parts:
            try:
                plaintext = open_stored(rows.column, keys, position, stored, owner)
            except (DecryptionError, FormatError):
                step.bad += 1  # the value stays where it is, and is reported as left
                continue
            if plaintext is None:
                step.locked += 1
            else:
                made.append((position, owner, stored, decode(plaintext)))
        sealed = seal_previous(session, rows, made)
        step.locked += len(made) - len(sealed)
        step.rows = _write_back(session, rows, sealed)


def _write_back(session: Session, rows: Rows, parts: Sequence[tuple[Position, Any, Any]]) -> int:
    """Write values into the previous column, and return how many were written.

    Raises:
        MigrationStoppedError: the column refuses a value.
    """
    try:
        return rows.write_previous(session.connection(), parts)
    except Exception as error:
        if not refuses_value(error):
            raise
        why, row = why_refused(error), "a row"
    # Outside of `except`: the database's message may show the values of a row.
    session.rollback()
    for part in parts:
        try:
            rows.write_previous(session.connection(), [part])
        except Exception as error:
            if not refuses_value(error):
                raise
            why, row = why_refused(error), f"the row {part[0]!r}"
            break
    session.rollback()
    column = rows.column.from_column
    name, kind = f"{column.table.name}.{column.name}", column.type.compile(rows.dialect)
    cure = f"Change the value in the application, or alter {name}"
    if rows.dialect.name == "postgresql":
        cure += "; PostgreSQL alters it when you drop the triggers zz_envelope_... of the table before"
    raise MigrationStoppedError(
        f"{name}, which is {kind}, does not take the value of {row}: {why}. It was written while the "
        f"encrypted column counted alone, which takes it. {cure}. Then reverse again, which puts the "
        "triggers back. What is done stays done."
    )
