"""The checks of `losses` as a part of a SQL script, which runs without this library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.alembic.impl.losses import ALONE, PENDING, UNVERIFIED, filled_in, names_in_state
from sqlalchemy_envelope.alembic.impl.shared import execute
from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database.state import MigrationState, Phase

if TYPE_CHECKING:
    from alembic.operations import Operations

    from sqlalchemy_envelope.alembic import ops
    from sqlalchemy_envelope.migration.database.triggers import Tracked


def check_contract(operations: Operations, columns: Tracked, op: ops.ContractOp) -> None:
    """Write the checks of `losses.refuse_contract` into the script.

    Raises:
        MigrationRefusedError: this database cannot express the checks in SQL.
    """
    if operations.impl.dialect.name != "postgresql" and not op.unverified:
        raise MigrationRefusedError(
            f"Whether all of {columns.table}.{columns.previous} is encrypted can only be checked with a "
            "connection; a script for this database needs unverified=True, and is to be run after the check."
        )
    _check(operations, columns, "previous", "encrypted", PENDING)
    if op.unverified:
        return
    quoted = ", ".join(_literal(one) for one in names_in_state(columns, op.name))
    phases = ", ".join(_literal(one.value) for one in (Phase.CUT_OVER, Phase.GUARDED))
    sample = "" if op.accept_sample else "verified_sample IS NULL AND "
    clean = (
        f"SELECT 1 FROM {MigrationState.__tablename__} WHERE name IN ({quoted}) AND "  # noqa: S608 - quoted
        f"phase IN ({phases}) AND verified_at IS NOT NULL AND COALESCE(mismatches, 0) = 0 AND "
        f"{sample}COALESCE(locked, 0) <= {op.accept_locked:d}"
    )
    text_ = filled_in(UNVERIFIED, columns)
    execute(operations, [_raise_if(f"NOT EXISTS ({clean})", text_)])


def check_alone(operations: Operations, columns: Tracked) -> None:
    """Write the check of `losses.refuse_alone` into the script.

    Raises:
        MigrationRefusedError: this database cannot express the check in SQL.
    """
    _check(operations, columns, "encrypted", "previous", ALONE)


def _check(operations: Operations, columns: Tracked, there: str, not_there: str, why: str) -> None:
    """Write the check into the script on PostgreSQL; elsewhere write a comment that it was not made."""
    names = {"previous": columns.previous, "encrypted": columns.encrypted}
    dialect = operations.impl.dialect
    quote = dialect.identifier_preparer.quote
    table = f"{quote(columns.schema)}.{quote(columns.table)}" if columns.schema else quote(columns.table)
    rows = (
        f"SELECT 1 FROM {table} WHERE {quote(names[there])} IS NOT NULL "  # noqa: S608 - names, quoted
        f"AND {quote(names[not_there])} IS NULL"
    )
    reason = filled_in(why, columns)
    if dialect.name == "postgresql":
        execute(operations, [_raise_if(f"EXISTS ({rows})", f"Some rows {reason}")])
    elif not_there == "previous":
        raise MigrationRefusedError(
            f"Whether {columns.table}.{columns.encrypted} can go can only be checked with a connection: "
            "run this downgrade without --sql."
        )
    else:
        impl: Any = operations.impl
        impl.static_output(f"-- Not checked: this must find no row: {rows}\n")


def _raise_if(condition: str, text_: str) -> str:
    return (
        f"DO $$ BEGIN IF {condition} THEN RAISE EXCEPTION USING MESSAGE = {_literal(text_)}; END IF; END $$"
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
