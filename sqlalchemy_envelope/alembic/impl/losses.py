"""Losses that a revision would cause: rows with a value in a single column, values that were not verified."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnClause, func, literal, select
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table

from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database.record import Record, standings
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_envelope.alembic import ops
    from sqlalchemy_envelope.migration.database.triggers import Tracked

ALONE = (
    "of {table} would lose the value, which is in the encrypted column alone: move the values back with "
    "`sqlalchemy-envelope migrate reverse` before."
)
PENDING = (
    "of {table} would lose the value in {previous}, which is not encrypted yet: `sqlalchemy-envelope migrate "
    "run` and `migrate verify` before."
)
UNVERIFIED = (
    "{table}.{previous} was not verified and cut over, or not to the end: `sqlalchemy-envelope migrate "
    "verify` and `migrate cutover` before, or unverified=True."
)


def filled_in(reason: str, columns: Tracked) -> str:
    """A reason of this module, filled in for two columns. ALONE and PENDING follow a number of rows."""
    return reason.format(table=columns.table, previous=columns.previous)


def refuse_alone(connection: Connection, columns: Tracked) -> None:
    """Refuse to drop the encrypted column while a row has an encrypted value alone.

    Raises:
        MigrationRefusedError: such rows exist.
    """
    alone = _count(connection, columns, "encrypted", "previous")
    if alone:
        raise MigrationRefusedError(f"{counted(alone, 'row')} {filled_in(ALONE, columns)}")


def refuse_contract(connection: Connection, columns: Tracked, op: ops.ContractOp) -> None:
    """Refuse to drop the previous column while it alone holds values, or values were not verified.

    Raises:
        MigrationRefusedError: rows are pending, or the verification does not suffice.
    """
    pending = _count(connection, columns, "previous", "encrypted")
    if pending:
        raise MigrationRefusedError(f"{counted(pending, 'row')} {filled_in(PENDING, columns)}")
    if op.unverified or _is_empty(connection, columns):
        return
    record = record_of(connection, columns, op.name)
    now = None if record is None else record.read()
    if record is None or now is None or not now.is_clean or now.phase not in (Phase.CUT_OVER, Phase.GUARDED):
        raise MigrationRefusedError(filled_in(UNVERIFIED, columns) + _other_names(connection, columns))
    if now.sample is not None and not op.accept_sample:
        raise MigrationRefusedError(
            f"Of {record.name} a sample of {now.sample:.2%} was verified. Verify all, or accept the sample: "
            "accept_sample=True."
        )
    if (now.locked or 0) > op.accept_locked:
        raise MigrationRefusedError(
            f"{counted(now.locked or 0, 'value')} of {record.name} could not be verified: only the owners "
            f"hold the keys. Accept that many, if that is as it should be: accept_locked={now.locked}."
        )


def names_in_state(columns: Tracked, name: str | None = None) -> list[str]:
    """The names that the migration may have. The attribute mostly has the previous column's name."""
    if name is not None:
        return [name]
    return [f"{columns.table}.{columns.previous}", f"{columns.table}.{columns.encrypted}"]


def record_of(connection: Connection, columns: Tracked, name: str | None = None) -> Record | None:
    """The record of the migration of two columns; None if there is no record."""
    return Record.find(connection, names_in_state(columns, name))


def _other_names(connection: Connection, columns: Tracked) -> str:
    known = standings(connection)
    if any(name in known for name in names_in_state(columns)):
        return ""
    names = ", ".join(repr(name) for name in sorted(known) if name.startswith(f"{columns.table}."))
    return f" If it is one of {names}, say so: name=..." if names else ""


def _count(connection: Connection, columns: Tracked, there: str, not_there: str) -> int:
    """Count the rows with a value in the column `there` and NULL in the column `not_there`."""
    names = {"previous": columns.previous, "encrypted": columns.encrypted}
    one: ColumnClause[Any] = bare_column(names[there])
    other: ColumnClause[Any] = bare_column(names[not_there])
    rows = bare_table(columns.table, one, other, schema=columns.schema)
    query = select(func.count()).select_from(rows).where(one.is_not(None), other.is_(None))
    return int(connection.execute(query).scalar_one())


def _is_empty(connection: Connection, columns: Tracked) -> bool:
    """Whether the table has no row to verify, as in a new database, which runs every revision."""
    key: ColumnClause[Any] = bare_column(columns.previous)
    rows = bare_table(columns.table, key, schema=columns.schema)
    return connection.execute(select(literal(1)).select_from(rows).limit(1)).first() is None
