"""Columns, and not objects, read through a `Session` while their values are moved: `select(User.phone)`.

The previous column is read beside each encrypted one, and both come out as one value under the same name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Label, Select, inspect
from sqlalchemy.orm import Bundle, undefer
from sqlalchemy.sql.elements import Grouping

from sqlalchemy_envelope.orm.columns.previous import is_moving, policy_of_column, previous_of
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.reading.two_columns import dual_attributes, refused_plaintext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import ORMExecuteState


class DualBundle(Bundle[Any]):
    """An encrypted column and its previous one, which come out of each row as one value."""

    inherit_cache = True

    def create_row_processor(
        self, query: Any, procs: Sequence[Any], labels: Sequence[str]
    ) -> Callable[[Any], Any]:
        """What makes one value of the two."""
        encrypted: Any = self.exprs[0]
        policy = policy_of_column(encrypted)
        read, read_previous = procs
        where = str(encrypted)

        def merge(row: Any) -> Any:
            value = read(row)
            if isinstance(value, Sealed) and value.why is not None:
                raise value.error()  # the previous value beside it may be what whoever altered it wanted
            if value is not None and not (policy == "both" and isinstance(value, Sealed)):
                return value
            previous = read_previous(row)
            if previous is not None and policy == "refuse":
                del row, previous
                raise refused_plaintext(where)
            both_locked = isinstance(value, Sealed) and isinstance(previous, Sealed)
            return value if previous is None or both_locked else previous

        return merge


def do_orm_execute(state: ORMExecuteState) -> None:
    """Read the previous column with each encrypted one that is selected by itself."""
    statement: Any = state.statement
    if not isinstance(statement, Select) or state.is_relationship_load or state.is_column_load:
        return
    columns = statement._raw_columns
    duals = [_dual(one) for one in columns]
    if any(one is not None for one in duals):
        new = [one if dual is None else dual for one, dual in zip(columns, duals, strict=True)]
        statement = state.statement = statement.with_only_columns(*new)
    if getattr(statement, "_with_options", ()):
        # `load_only` would leave the previous column out.
        options = [undefer(one) for one in _previous_attributes(statement)]
        if options:
            state.statement = statement.options(*options)


def _dual(output: Any) -> DualBundle | None:
    """The two columns in place of an encrypted one that has a previous one."""
    name: Any = getattr(output, "_annotations", {}).get("proxy_key")
    column: Any = output
    while isinstance(column, (Label, Grouping)):
        name = column.name if isinstance(column, Label) else name
        column = column.element
    if not is_moving(column) or "parententity" not in column._annotations:
        return None
    previous = previous_of(column)
    if previous is None:
        return None
    return DualBundle(name or column.key, column, previous)


def _previous_attributes(statement: Any) -> list[Any]:
    found = []
    for described in statement.column_descriptions:
        entity = described["entity"]
        if entity is not None and described["expr"] is entity:
            found += [getattr(entity, one.previous) for one in dual_attributes(inspect(entity).mapper)]
    return found
