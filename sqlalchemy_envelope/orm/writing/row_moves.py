"""Moves of a table's own rows: an UPDATE that gives a row another owner, or another key that its values are
bound to, is refused if it leaves a ciphertext behind.

`moves` does the same for columns of other tables that lead to the owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.state import holds_nothing, stays
from sqlalchemy_envelope.orm.writing.forms import equalities
from sqlalchemy_envelope.orm.writing.missing_owner import moved_late

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]


def check_row_moves(rows: WrittenRows, row: Row) -> None:
    """Refuse to give a row another owner or key while a ciphertext stays as it is.

    Raises:
        StatementRefusedError: the row moves and leaves a value behind.
    """
    for path, columns in rows.plan.groups:
        changes_owner = not path.is_self and _sets(rows, row, path.keys) and not _is_pinned(rows, row, path)
        for column in columns:
            by_key = _hangs_on_key(rows, row, column) and _sets(rows, row, _primary_key(rows))
            if changes_owner or by_key:
                _check_left(rows, row, column, changes_owner=changes_owner, by_key=by_key)


def _primary_key(rows: WrittenRows) -> tuple[str, ...]:
    return tuple(column.key for column in rows.plan.table.primary_key)


def _sets(rows: WrittenRows, row: Row, keys: Iterable[str]) -> bool:
    """Whether the UPDATE sets one of these columns."""
    return any(key in row or key in rows.assignments.changed for key in keys)


def _hangs_on_key(rows: WrittenRows, row: Row, column: EncryptedColumn) -> bool:
    """Whether a value is lost if its row gets another primary key. A joined subclass's key leads to the row
    that says whose it is; a flush moves both rows."""
    if column.row_bound:
        return True
    in_base = not (column.path.is_self or rows.plan.has(column.path))
    return in_base and rows.object_of(row) is None


def _check_left(
    rows: WrittenRows, row: Row, column: EncryptedColumn, *, changes_owner: bool, by_key: bool
) -> None:
    """Refuse the move if the row has a value in this column that is not written anew.

    Args:
        changes_owner: whether the row gets another owner.
        by_key: whether its new primary key alone makes the value unreadable.
    """
    name, path, table = rows.parameter(column.key), column.path, rows.plan.table
    if name in row or name in rows.literals:
        return
    state = rows.object_of(row)
    if state is None:
        raise _left_behind(table.name, column, changes_owner=changes_owner)
    if holds_nothing(state, column.key):
        return
    values = [rows.value(key, row) for key in path.keys]
    if by_key or not stays(state, path, column.key, values):
        raise moved_late(state, path.keys if changes_owner else _primary_key(rows), column.key)


def _left_behind(table: str, column: EncryptedColumn, *, changes_owner: bool) -> StatementRefusedError:
    cure = (
        f" If the rows stay with their owner, leave {', '.join(column.path.keys)} out of the values and say "
        "whose they are: `with unlocked.using(owner): ...`."
    )
    return StatementRefusedError(
        f"An UPDATE moves rows of {table} to another owner or key and leaves {column.key} encrypted for "
        f"the former owner or key. Load the objects and change them.{cure if changes_owner else ''}"
    )


def _is_pinned(rows: WrittenRows, row: Row, path: OwnerPath) -> bool:
    """Whether the WHERE takes only rows that have the very owner that the values name."""
    pinned = dict(equalities(rows.statement, rows.statement.table, row))
    return all(
        column in pinned and pinned[column] is not None and pinned[column] == rows.value(key, row)
        for key, column in zip(path.keys, path.columns, strict=True)
    )
