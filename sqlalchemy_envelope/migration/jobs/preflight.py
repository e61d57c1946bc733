"""Previous values that another library encrypted: check that they can be read, before anything is written.

With a wrong key, an authenticated cipher refuses every value, while a cipher without authentication makes
something of a few values. So the first rows and some random rows are read through their type. A single value
that cannot be read stops the migration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.types import TypeDecorator

from sqlalchemy_envelope.exceptions import EnvelopeError, PreviousValueError
from sqlalchemy_envelope.migration.foreign_types import check_of, is_decrypted_by_database
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.conflict_errors import sql_state

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.orm.tables.keyset import Position

FIRST_ROWS = 200
RANDOM_ROWS = 800
_NOT_WHAT_IS_STORED = "what it was read as does not encrypt to what is stored"


def check_sample(connection: Connection, rows: Rows) -> None:
    """Read the first previous values and some at random, unless they are plain or this library's own.

    Raises:
        PreviousValueError: a value cannot be read, or the encrypted type does not take it.
    """
    type_ = rows.column.from_column.type
    if not isinstance(type_, TypeDecorator) or isinstance(type_, EncryptedType):
        return
    there = rows.previous.is_not(None)
    total = rows.count(connection, there)
    keys = select(*rows.keys).where(there)
    chosen = list(connection.execute(keys.order_by(*rows.keys).limit(FIRST_ROWS)))
    if total > FIRST_ROWS:
        some = keys.where(_lottery(rows.dialect.name, min(1.0, RANDOM_ROWS / total)))
        chosen += connection.execute(some.limit(2 * RANDOM_ROWS))
    failed = find_unreadable(connection, rows, (tuple(row) for row in chosen))
    if failed is not None:
        raise unreadable(rows, *failed)


def _lottery(dialect: str, share: float) -> Any:
    if dialect == "sqlite":
        return func.abs(func.random() % 1_000_000) < int(share * 1_000_000) + 1
    return (func.rand() if dialect in ("mysql", "mariadb") else func.random()) < share


def find_unreadable(
    connection: Connection, rows: Rows, positions: Iterable[Position]
) -> tuple[Position, str] | None:
    """The first of these rows with an unreadable previous value, and the reason."""
    encode, check = rows.column.plan.type.codec.encode, check_of(rows.column.from_column.type)
    for position in positions:
        try:
            found = connection.execute(rows.previous_at(position)).first()
            if found is None or found.exact is None:
                continue
            if check is not None and not check(found.exact):
                return position, _NOT_WHAT_IS_STORED
        except EnvelopeError:
            raise
        except Exception as error:
            if not is_of_the_value(rows, error):
                raise
            return position, f"{type(error).__name__} was raised"
        try:
            encode(found.typed)
        except Exception:  # noqa: BLE001 - the error may hold the value, so it is not shown
            wanted = rows.column.plan.type.codec.tag
            return position, f"it is a {type(found.typed).__name__} where {wanted!r} is wanted"
    return None


def is_of_the_value(rows: Rows, error: Exception) -> bool:
    """Whether the error is about a value that cannot be read, not a failure of the database or machine."""
    if isinstance(error, DBAPIError):
        by_database = is_decrypted_by_database(rows.column.from_column.type)
        # pgcrypto's errors, and bytes that are no text in the database's encoding.
        return by_database and (sql_state(error) or "").startswith(("39", "22"))
    return not isinstance(error, (SQLAlchemyError, MemoryError, Warning))


def check_read(rows: Rows, parts: Sequence[Any]) -> None:
    """Check that values of a cipher without authentication were read as what was encrypted.

    The check finds no more than `check_of` can tell.

    Raises:
        PreviousValueError: a value was not.
    """
    check = check_of(rows.column.from_column.type)
    if check is None:
        return
    for position, _, _, exact, _ in parts:
        try:
            same = check(exact)
        except Exception:  # noqa: BLE001 - the error may show the value
            same = False
        if not same:
            raise unreadable(rows, position, _NOT_WHAT_IS_STORED)


def unreadable(rows: Rows, position: Position | None, why: str) -> PreviousValueError:
    """The error for a value that its type cannot read.

    Raise it outside of `except`: an error of the type may hold the value that the type tried to read.
    """
    column = rows.column.from_column
    row = "a row" if position is None else f"the row {position!r}"
    return PreviousValueError(
        f"{column.table.name}.{column.name}: the value of {row} cannot be read by the type that its "
        f"PreviousColumn names, {type(column.type).__name__}: {why}. It was written with another key or "
        "another type, was altered, or was never encrypted. It is not taken for plaintext, and is left as it "
        "is."
    )
