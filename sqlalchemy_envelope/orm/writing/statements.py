"""The statement hook: values are encrypted in `before_execute`, where a row's parameters are known.

It runs before the execution context is built: an error raised here reaches the caller as itself, and whatever
SQLAlchemy prints later holds ciphertext. It covers flushes, ORM bulk statements and Core alike. A statement
that it does not understand stays as it is and unmarked, and the gate refuses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Select, Update
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.compiler import Compiled

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.writing.assignments import literal_value
from sqlalchemy_envelope.orm.writing.copies import check_from_select, check_upsert
from sqlalchemy_envelope.orm.writing.forms import (
    WRITE_IN_CTES,
    column_key,
    in_from_statement,
    may_hold_ctes,
    plain,
    rows_of,
    target_of,
    with_ctes,
)
from sqlalchemy_envelope.orm.writing.gate import check_compiled
from sqlalchemy_envelope.orm.writing.guard_upserts import upsert_guards
from sqlalchemy_envelope.orm.writing.index_copies import check_copied_indexes, upsert_indexes
from sqlalchemy_envelope.orm.writing.marks import is_marked, mark, mark_lasting
from sqlalchemy_envelope.orm.writing.moves import check_moves
from sqlalchemy_envelope.orm.writing.namesakes import is_twin
from sqlalchemy_envelope.orm.writing.previous_columns import upsert_previous
from sqlalchemy_envelope.orm.writing.row_encryption import RowEncryption
from sqlalchemy_envelope.orm.writing.row_owners import RowOwners
from sqlalchemy_envelope.orm.writing.rows import WrittenRows
from sqlalchemy_envelope.orm.writing.sole_owners import check_sole
from sqlalchemy_envelope.orm.writing.tokens import token_rows
from sqlalchemy_envelope.orm.writing.twins import check_twin
from sqlalchemy_envelope.orm.writing.using_rows import of_owner

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.columns.plans import TablePlan

    Options = Mapping[str, Any]


def encrypt(
    connection: Connection, statement: Any, multiparams: Any, params: Any, options: Options
) -> tuple[Any, Any, Any]:
    """Encrypt what an INSERT or UPDATE writes into encrypted columns, and mark the statement."""
    if isinstance(statement, (Insert, Update)) and not may_hold_ctes(statement):  # the most frequent first
        return _encrypt_alone(connection, statement, multiparams, params, options)
    if isinstance(statement, Select) and connection.dialect.name not in WRITE_IN_CTES:
        return statement, multiparams, params
    if isinstance(statement, FromStatement):
        inner = plain(statement.element)
        inner, multiparams, params = encrypt(connection, inner, multiparams, params, options)
        if inner is not statement.element:
            statement = in_from_statement(statement, inner)
        return statement, multiparams, params
    if isinstance(statement, Compiled):
        check_compiled(connection, statement, options)
        return statement, multiparams, params
    if connection.dialect.name in WRITE_IN_CTES and may_hold_ctes(statement):
        # The values stand in the CTEs themselves, or in the parameters of the statement around them.
        def encrypt_inner(inner: Any) -> Any:
            nonlocal params
            token_rows.forget(connection)
            inner, _, params = _encrypt_alone(connection, inner, (), params, options, nested=True)
            token_rows.refuse_in_cte(connection)
            return inner

        statement = with_ctes(statement, encrypt_inner)
    if isinstance(statement, (Insert, Update)):
        return _encrypt_alone(connection, statement, multiparams, params, options)
    return statement, multiparams, params


def _encrypt_alone(
    connection: Connection,
    statement: Any,
    multiparams: Any,
    params: Any,
    options: Options,
    *,
    nested: bool = False,
) -> tuple[Any, Any, Any]:
    target = target_of(statement)
    check_sole(connection, statement, target, multiparams, params)
    moves = check_moves(connection, statement, target, multiparams, params, options)
    plan = plan_of_table(target)
    if plan is None:
        unseen = is_twin(target) and not is_marked(statement)  # the migration marks what it encrypted itself
        if unseen and check_twin(connection, target, statement, multiparams, params, options):
            statement = mark(statement)
        return mark_lasting(statement) if moves else statement, multiparams, params
    _check_schema(plan, connection, options)
    writer = _StatementWriter(plan, connection, statement, options, nested=nested)
    encrypted, multiparams, params = writer.write(multiparams, params)
    marked = mark_lasting(statement) if encrypted is statement else mark(encrypted)
    return marked, multiparams, params


def _check_schema(plan: TablePlan, connection: Connection, options: Options) -> None:
    """Refuse a statement that goes to another schema than its connection: keys are looked for where the
    connection looks for tables.

    Raises:
        StatementRefusedError: the statement has a schema_translate_map of its own.
    """
    name = "schema_translate_map"
    if options.get(name) != connection.get_execution_options().get(name):
        raise StatementRefusedError(
            f"A statement writes {plan.table.name} with a {name} of its own, and its rows' keys would be "
            f"looked for in another schema. Give the {name} to the engine or the connection: "
            f"`session.connection(execution_options={{'{name}': ...}})`."
        )


class _StatementWriter:
    """Encrypts the values of one statement.

    Args:
        nested: whether the statement stands in another, whose parameters it shares.
    """

    def __init__(
        self,
        plan: TablePlan,
        connection: Connection,
        statement: Insert | Update,
        options: Options,
        *,
        nested: bool = False,
    ) -> None:
        self._plan = plan
        self._nested = nested
        self._options = options
        self._statement: Any = statement
        self._rows = WrittenRows(plan, connection, statement)
        self._owners = RowOwners(self._rows, options)
        self._encryption = RowEncryption(self._rows, self._owners, options)

    def write(self, multiparams: Any, params: Any) -> tuple[Any, Any, Any]:
        """The statement and its parameters, encrypted."""
        if self._rows.inserts:
            check_from_select(self._plan, self._statement)
            check_copied_indexes(self._plan.table, self._statement)
            if self._plan.dual:
                self._statement = upsert_previous(self._plan, self._statement)
            check_upsert(self._plan, self._statement)
            self._statement = upsert_indexes(self._plan.table, self._statement)
            self._statement = self._with_guards()
            if self._statement._multi_values:
                return self._write_multiple_values(multiparams), multiparams, params
        statement, multiparams, params = self._write_rows(multiparams, params)
        using = context.USING.get()
        if self._owners.under_using and using is not None:
            rows, paths = multiparams or [params], self._owners.under_using
            statement = of_owner(self._rows.connection, statement, rows, self._plan, paths, using)
        return self._with_tokens(statement), multiparams, params

    def _with_tokens(self, statement: Any) -> Any:
        tokens = self._encryption.tokens
        return statement if tokens is None else tokens.sending(statement)

    def _with_guards(self) -> Any:
        return upsert_guards(self._rows.connection, self._plan.table, self._statement, self._options)

    def _write_rows(self, multiparams: Any, params: Any) -> tuple[Any, Any, Any]:
        statement, assignments = self._statement, self._rows.assignments
        literals = assignments.literals()
        if multiparams:
            assignments.refuse_beside_rows(literals)
            self._rows.literals = literals
            return statement, self._encryption.encrypted(multiparams), params
        if literals:
            before = {**literals, **params}
            (after,) = self._encryption.encrypted([before])
            made = {key: value for key, value in after.items() if key not in before}
            values = assignments.new_literals(literals, before, after) | made
            if values:
                statement = assignments.with_values(statement, values)
            return statement, multiparams, {key: after[key] for key in params}
        if params or assignments.clauses:
            before = params
            (params,) = self._encryption.encrypted([before])
            made = params.keys() - before.keys()
            if made and self._nested:  # its columns are those that it names itself
                statement = assignments.with_values(statement, {key: params.pop(key) for key in made})
        return statement, multiparams, params

    def _write_multiple_values(self, multiparams: Any) -> Any:
        rows = [
            {column_key(named): literal_value(value) for named, value in row.items()}
            for row in rows_of(self._statement)
        ]
        if multiparams:
            # SQLAlchemy refuses some of these, and its error prints the list.
            for row in rows:
                self._rows.assignments.refuse_beside_rows(row)
        statement = self._statement._clone()
        statement._multi_values = ()
        # Columns: of a mapped class, `values()` takes text for the names of attributes.
        columns: Any = self._plan.table.columns
        encrypted = self._encryption.encrypted(rows)
        rows = [{columns.get(key, key): value for key, value in row.items()} for row in encrypted]
        return self._with_tokens(statement).values(rows)
