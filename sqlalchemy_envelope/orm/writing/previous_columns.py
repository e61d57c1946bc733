"""Previous columns: while values are moved into an encrypted column, statements write the old column too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.elements import Null

from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, OVERHEAD
from sqlalchemy_envelope.orm.indexes.indexed import indexes_on
from sqlalchemy_envelope.orm.writing.forms import assigned_by_upsert, column_key, with_upserted
from sqlalchemy_envelope.orm.writing.unstorable import unstorable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows


def add_previous(rows: WrittenRows, row: dict[str, Any]) -> None:
    """Give the row's previous columns their values: the same value while both columns are written, else
    None."""
    for key, (previous, both) in rows.plan.dual.items():
        name, beside = rows.parameter(key), rows.parameter(previous)
        if name not in row and not isinstance(rows.assignments.clauses.get(key), Null):
            continue
        value = row.get(name)
        if value is None and row.get(beside) is not None:
            continue  # the statement writes it by itself, as a program without the encrypted column does
        row[beside] = value if both else None


def leave_pending(rows: WrittenRows, row: dict[str, Any], columns: Sequence[EncryptedColumn]) -> bool:
    """Take the values that the previous column holds as well out of a row, for the migration to encrypt
    later; tells whether there are any.

    Raises:
        ValueEncodingError, ValueTooLargeError: the migration could not encrypt a value.
    """
    is_pending = False
    for column in columns:
        _, both = rows.plan.dual.get(column.key, (None, False))
        name = rows.parameter(column.key)
        value = row.get(name)
        if not both or value is None:
            continue
        _require_storable(column, value)
        row[name] = None
        for index in indexes_on(column.column):  # the tag comes with the ciphertext
            guard = getattr(index, "guard", None)
            row |= {one.key: None for one in (index.column, guard) if one is not None and one.key in row}
        is_pending = True
    return is_pending


def _require_storable(column: EncryptedColumn, value: Any) -> None:
    try:
        size = len(column.encode_converted(value))
    except Exception:  # noqa: BLE001 - raised below, chained to nothing that holds the value
        size = -1
    if size < 0:
        raise unstorable(column, value, None)
    if size > MAX_VALUE_SIZE:
        raise unstorable(column, value, bytes(size + OVERHEAD))


def upsert_previous(plan: TablePlan, statement: Any) -> Any:
    """The upsert, which sets the previous column from the proposed row wherever it sets the encrypted one."""
    names = set(map(column_key, assigned_by_upsert(statement)))
    if not names:
        return statement
    proposed = getattr(statement, "excluded", None)
    proposed = statement.inserted if proposed is None else proposed
    added = {previous: proposed[previous] for key, (previous, _) in plan.dual.items() if key in names}
    return with_upserted(statement, added) if added else statement
