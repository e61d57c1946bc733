"""The gate: no compiled statement writes to an encrypted column unless the statement hook has seen it.

The hook knows statements by their form, and no list of forms is ever complete. So each INSERT and UPDATE in a
compiled statement, outermost or nested, is looked at again before it is sent, and refused if it does not
carry the hook's mark. A DELETE writes no value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Update
from sqlalchemy.sql.elements import BindParameter, ClauseElement, Null
from sqlalchemy.types import NullType

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.writing.copies import check_made_by_select, check_plain_target
from sqlalchemy_envelope.orm.writing.forms import (
    WRITE_IN_CTES,
    assigned_by,
    beside,
    column_key,
    rows_of,
    table_of,
    target_of,
)
from sqlalchemy_envelope.orm.writing.marks import is_marked
from sqlalchemy_envelope.orm.writing.moves import may_move, may_move_beside, unseen_move
from sqlalchemy_envelope.orm.writing.namesakes import unknown_columns
from sqlalchemy_envelope.orm.writing.twins import refuse_beside, refuse_defaults, refuse_twin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.columns.plans import TablePlan


def statements_of(compiled: Any) -> list[Any]:
    """The statements that a compiled form was made from. A construct of another library may not show its
    elements; SQLAlchemy's compiler has noted here the statements that it met in it."""
    states = (getattr(compiled, "compile_state", None), getattr(compiled, "dml_compile_state", None))
    roots = [getattr(state, "statement", None) for state in states]
    roots += (getattr(compiled, "statement", None), *(getattr(compiled, "ctes", None) or ()))
    return [root for root in roots if isinstance(root, ClauseElement)]


def check_writes(
    connection: Connection, compiled: Any, elements: Iterable[Any], options: Mapping[str, Any]
) -> bool:
    """Refuse a statement that went past the hook; tells whether to check it again at its next execution.

    Args:
        options: the execution options: they may send the same compiled form to another schema.

    Raises:
        StatementRefusedError: an encrypted column would get a value that is not encrypted.
    """
    again = False
    for element in elements:
        if isinstance(element, (Insert, Update)):
            again |= _check_write(connection, compiled, element, options)
        else:
            check_made_by_select(element)
    return again


def _check_write(
    connection: Connection, compiled: Any, statement: Insert | Update, options: Mapping[str, Any]
) -> bool:
    target, keys = target_of(statement), compiled.column_keys
    plan = plan_of_table(target)
    again = False
    if plan is not None:
        _check_marked(connection, plan, statement)
    if unknown_columns(target):
        # The same compiled form may be sent to another database.
        again |= refuse_defaults(connection, statement, keys or (), options)
        if plan is not None or not is_marked(statement):  # its values were not looked at
            refuse_twin(connection, statement, keys, options)
            again = True
    if plan is None:
        again |= _check_unseen_moves(connection, statement, target, keys or (), options)
        if isinstance(statement, Insert):
            check_plain_target(statement)
    if isinstance(statement, Update):
        again |= _check_beside(connection, statement, options)
    return again


def _check_unseen_moves(
    connection: Connection, statement: Any, target: Any, keys: Iterable[str], options: Mapping[str, Any]
) -> bool:
    """Refuse a statement without a mark that moves encrypted values of another table; tells whether it may
    move some in another database."""
    moves = False if is_marked(statement) else may_move(connection, statement, target, keys, options)
    if moves:
        raise unseen_move(target)
    return moves is None


def _check_beside(connection: Connection, statement: Update, options: Mapping[str, Any]) -> bool:
    """Refuse an UPDATE of two tables that writes an encrypted column of the second table, or a column that
    decides whose key encrypts such values; tells whether the second table is a twin."""
    is_twin = False
    for column in beside(statement):
        table = table_of(column)
        if isinstance(column.type, (EncryptedType, BlindIndex)):
            what = "is encrypted" if isinstance(column.type, EncryptedType) else "is a blind index"
            raise _two_tables(statement, f"{column}, which {what}")
        plan = plan_of_table(table)
        decides = plan is not None and any(
            deciding.key == column.key for each in plan.columns for deciding in plan.decided_by(each)
        )
        if decides or may_move_beside(connection, column, options):
            raise _two_tables(statement, f"{column}, which decides whose key encrypts values")
        if unknown_columns(table):
            refuse_beside(connection, column, options)
            is_twin = True
    return is_twin


def _two_tables(statement: Update, written: str) -> StatementRefusedError:
    return StatementRefusedError(
        f"An UPDATE of {target_of(statement).name} writes a column of another table, {written}; nothing was "
        "sent. Update each table by a statement of its own."
    )


def check_compiled(connection: Connection, compiled: Any, options: Mapping[str, Any]) -> None:
    """Refuse a statement that the application compiled: its parameters go past the hook.

    Raises:
        StatementRefusedError: it writes to a table with encrypted columns.
    """
    for statement in statements_of(compiled):
        if not isinstance(statement, (Insert, Update)):
            continue
        if may_move(connection, statement, target_of(statement), compiled.column_keys or (), options):
            raise unseen_move(target_of(statement))
        if plan_of_table(target_of(statement)) is not None:
            raise StatementRefusedError(
                f"A compiled statement writes to {target_of(statement).name}, which has encrypted columns, "
                "and its values can no longer be encrypted. Execute the statement itself; SQLAlchemy keeps "
                "its compiled form."
            )


def _check_marked(connection: Connection, plan: TablePlan, statement: Any) -> None:
    if not is_marked(statement):
        raise _unseen(plan, statement, connection.dialect.name in WRITE_IN_CTES)
    rows = rows_of(statement) if getattr(statement, "_multi_values", None) else []
    for row in (assigned_by(statement), *rows):
        for key, value in row.items():
            name = column_key(key)
            if name in plan.keys and not _is_guarded(value):
                raise StatementRefusedError(
                    f"A value for the encrypted column {plan.table.name}.{name} would reach the database "
                    "unencrypted; nothing was sent. Write through the ORM, or a plain insert() or update()."
                )


def _is_guarded(value: Any) -> bool:
    """Whether only ciphertext can reach the database by this value: the column's type takes nothing else, and
    SQLAlchemy gives that type to every parameter that has none of its own."""
    if isinstance(value, BindParameter):
        return isinstance(value.type, (EncryptedType, NullType))
    return isinstance(value, Null) or not isinstance(value, ClauseElement)


def _unseen(plan: TablePlan, statement: Any, in_ctes: bool) -> StatementRefusedError:
    written = [name for name in map(column_key, assigned_by(statement)) if name in plan.keys]
    where = f"{plan.table.name}.{written[0]}" if written else plan.table.name
    verb = "INSERT" if isinstance(statement, Insert) else "UPDATE"
    cte = f", or as a CTE: `statement.add_cte({verb.lower()}(...).returning(...).cte())`" if in_ctes else ""
    return StatementRefusedError(
        f"A statement has an {verb} of {where}, which is encrypted, in a place where its values cannot be "
        f"encrypted; nothing was sent. Run the two one after the other: "
        f"`session.execute({verb.lower()}(...))`{cte}."
    )
