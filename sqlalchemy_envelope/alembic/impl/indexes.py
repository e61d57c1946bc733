"""Fill a blind index in a revision, or empty it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import Operations
from sqlalchemy import LargeBinary, null, update
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.orm import Session

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.alembic.impl.shared import hold, online
from sqlalchemy_envelope.alembic.source import KeySource, key_source
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.index_columns import IndexColumn, IndexRows, index_columns
from sqlalchemy_envelope.migration.jobs.index_work import IndexFill
from sqlalchemy_envelope.migration.jobs.owner_ciphers import keys_at_hand
from sqlalchemy_envelope.migration.jobs.work import Step
from sqlalchemy_envelope.orm.writing.marks import mark
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_envelope.alembic.ops import BlindIndexOp

_CHUNK = 1000


@Operations.implementation_for(ops.FillBlindIndexOp)
def _fill(operations: Operations, op: ops.FillBlindIndexOp) -> None:
    connection = online(operations)
    if connection is None:
        raise MigrationRefusedError(
            f"op.{op.tag}({op.table_name!r}, {op.column_name!r}) needs keys and values, and there are none "
            f"in a SQL script. Use `sqlalchemy-envelope index fill {op.table_name}.{op.column_name}`."
        )
    hold(connection, op.table_name, op.schema)
    if not _has_rows(connection, op):
        return  # on a fresh database a migration needs no keys
    source = key_source(operations)
    total = _fill_all(connection, source, _index(source, op))
    if total.bad:
        rows = ", ".join(map(repr, total.examples))
        raise MigrationRefusedError(
            f"{counted(total.bad, 'value')} of {op.table_name} got no tag in {op.column_name}, of the rows "
            f"{rows} among them: a value does not authenticate, the index does not take it, or a unique "
            "index has an equal value. Nothing was changed."
        )


@Operations.implementation_for(ops.EmptyBlindIndexOp)
def _empty(operations: Operations, op: ops.EmptyBlindIndexOp) -> None:
    tags: Any = bare_column(op.column_name, LargeBinary())
    table = bare_table(op.table_name, tags, schema=op.schema)
    operations.execute(mark(update(table).where(tags.is_not(None)).values({op.column_name: null()})))


def _has_rows(connection: Connection, op: BlindIndexOp) -> bool:
    table = bare_table(op.table_name, bare_column(op.column_name), schema=op.schema)
    return connection.execute(table.select().limit(1)).first() is not None


def _index(source: KeySource, op: BlindIndexOp) -> IndexColumn:
    for one in index_columns(source.base):
        names = one.table.name, one.index.column.name, one.table.schema
        if names == (op.table_name, op.column_name, op.schema):
            return one
    raise ConfigurationError(
        f"op.{op.tag}({op.table_name!r}, {op.column_name!r}): the models of the KeySource have no such "
        "BlindIndex. If they lost it since, delete this operation from the revision."
    )


@emptying
def _fill_all(connection: Connection, source: KeySource, index: IndexColumn) -> Step:
    """Go over all rows once, in the migration's own transaction, and return the totals."""
    rows, work, total = IndexRows(index, connection.dialect), IndexFill(), Step(None, full=False)
    rows.self_updating = schema.self_updating(connection, index.table)
    with (
        keys_at_hand(source.envelope, source.provider, "migration: fill_blind_index"),
        # Commit and rollback act on savepoints here: the migration goes on, or fails as a whole.
        Session(connection, join_transaction_mode="create_savepoint") as session,
    ):
        source.envelope.attach(session)
        step = work.step(session, rows, None, None, _CHUNK)
        while step.position is not None:
            session.commit()
            total.rows, total.bad, total.locked = (
                total.rows + step.rows,
                total.bad + step.bad,
                total.locked + step.locked,
            )
            total.examples = total.examples or step.examples
            if not step.full:
                break
            step = work.step(session, rows, step.position, None, _CHUNK)
    return total
