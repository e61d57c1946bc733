"""What an INSERT or UPDATE itself sets: the values and parameters that stand in the statement, and not in the
rows beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, insert, update
from sqlalchemy.sql.elements import BindParameter, Null
from sqlalchemy.types import NullType
from sqlalchemy.util import immutabledict

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.writing.forms import assigned_by, changed_by, column_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_envelope.orm.columns.plans import TablePlan


class Assignments:
    """The assignments of one statement, by the keys of its table's columns.

    Attributes:
        clauses: what the statement sets each column to.
        parameters: for `values(body=bindparam("other"))`, the name of the parameter.
        changed: the columns that an UPDATE sets to something else than they hold.
    """

    __slots__ = ("_named", "_plan", "changed", "clauses", "parameters")

    def __init__(self, plan: TablePlan, statement: Any) -> None:
        assigned = assigned_by(statement)
        self._plan = plan
        self._named = {column_key(named): named for named in assigned}
        self.clauses: dict[str, Any] = {column_key(named): clause for named, clause in assigned.items()}
        self.parameters: dict[str, str] = {
            key: clause.key for key, clause in self.clauses.items() if is_placeholder(clause)
        }
        changed = () if isinstance(statement, Insert) else changed_by(statement)
        self.changed = {column_key(named) for named in changed}
        self._require_untyped_parameters()

    def _require_untyped_parameters(self) -> None:
        """Refuse a parameter with a type of its own for an encrypted column: that type would bind the value,
        and not the column's, which refuses plaintext."""
        for key in self.parameters.keys() & self._plan.keys:
            if not isinstance(self.clauses[key].type, (EncryptedType, NullType)):
                raise StatementRefusedError(
                    f"{self._plan.table.name}.{key} is encrypted: give its bindparam() neither a type nor a "
                    "default."
                )

    def literals(self) -> dict[str, Any]:
        """The values in the statement itself.

        Raises:
            StatementRefusedError: an expression is assigned to an encrypted column.
        """
        literals = {}
        for key, clause in self.clauses.items():
            if isinstance(clause, BindParameter) and key not in self.parameters:
                literals[key] = clause.effective_value
            elif key in self._plan.keys and not isinstance(clause, (BindParameter, Null)):
                raise StatementRefusedError(
                    f"An SQL expression is assigned to the encrypted column {self._plan.table.name}.{key}; "
                    "the database cannot compute on ciphertext. Compute the value in Python and assign that."
                )
        return literals

    def refuse_beside_rows(self, literals: Mapping[str, Any]) -> None:
        """Refuse a literal for an encrypted column in a statement with a list of rows.

        Raises:
            StatementRefusedError: there is one.
        """
        if self._plan.keys & literals.keys():
            raise StatementRefusedError(
                f"A literal for an encrypted column of {self._plan.table.name} beside a list of rows: "
                "put the value into each row instead."
            )

    def new_literals(
        self, literals: Iterable[str], row: Mapping[str, Any], encrypted: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The literals that have to be assigned anew: ciphertexts, tags, and NULLs of another type than the
        column's.

        Args:
            row: the literals, and the parameters beside them.
            encrypted: the row that was made of it.
        """
        return {
            key: encrypted[key]
            for key in literals
            if encrypted[key] is not row[key] or self._is_untyped_null(key, encrypted[key])
        }

    def with_values(self, statement: Any, values: Mapping[str, Any]) -> Any:
        """The statement with these values, in its own order and under the keys that it uses."""
        copy = statement._clone()
        # Columns: an INSERT of a mapped class looks for their table.
        columns: Any = self._plan.table.columns
        new = {self._named.get(key, columns.get(key, key)): value for key, value in values.items()}
        make: Any = insert if isinstance(statement, Insert) else update
        made = make(self._plan.table).values(new)._values
        if getattr(copy, "_ordered_values", None):
            copy._ordered_values = list({**dict(copy._ordered_values), **made}.items())
        else:
            copy._values = immutabledict({**(copy._values or {}), **made})
        return copy

    def _is_untyped_null(self, key: str, value: Any) -> bool:
        """Whether a NULL has to be assigned anew: its column is being moved, or a type of the NULL's own came
        with it, as with a lambda's variable."""
        if value is not None or key not in self._plan.keys:
            return False
        if key in self._plan.dual or key in self._plan.converting:
            return True
        return not isinstance(self.clauses[key].type, EncryptedType)


def is_placeholder(clause: Any) -> bool:
    """Whether a clause is a parameter that gets its value with the rows. A value in the statement itself is a
    parameter too, but a unique one; `bindparam("name", "default")` is not unique."""
    return isinstance(clause, BindParameter) and (clause.required or not clause.unique)


def literal_value(value: Any) -> Any:
    """The Python value of a literal; a placeholder or an expression stays as it is."""
    if isinstance(value, Null):
        return None
    return value.effective_value if isinstance(value, BindParameter) and not is_placeholder(value) else value
