"""Columns, and not objects, read through a `Session`: `select(User.phone)`.

What it takes to open a value is read beside it and comes out with it as one value under the same name: the
previous column while values are moved, and the row's owner where several are unlocked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Label, Select, inspect
from sqlalchemy.orm import Bundle, undefer
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.elements import Grouping

from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.leaving import note_expressions
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of, plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import is_moving, policy_of_column, previous_of
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current.context import only_owner, unlocked_sessions
from sqlalchemy_envelope.orm.reading.two_columns import dual_attributes, refused_plaintext

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import ORMExecuteState, Session


class DualBundle(Bundle[Any]):
    """An encrypted column and its previous one, which come out of each row as one value."""

    inherit_cache = True

    def create_row_processor(
        self, query: Any, procs: Sequence[Any], labels: Sequence[str]
    ) -> Callable[[Any], Any]:
        """What makes one value of the two."""
        encrypted: Any = self.exprs[0]
        policy = policy_of_column(encrypted)
        read, read_previous = procs[:2]
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


class OwnedBundle(Bundle[Any]):
    """An encrypted column and the columns that say whose row it is in: read beside it, and left out again."""

    inherit_cache = True

    def create_row_processor(
        self, query: Any, procs: Sequence[Any], labels: Sequence[str]
    ) -> Callable[[Any], Any]:
        """What gives the first of them."""
        first: Callable[[Any], Any] = procs[0]
        return first


def do_orm_execute(state: ORMExecuteState) -> None:
    """Read with each encrypted column that is selected by itself what it takes to open it: its previous
    column, and where several owners are unlocked its row's owner."""
    statement: Any = state.statement
    if not isinstance(statement, Select) or state.is_relationship_load or state.is_column_load:
        return
    columns = statement._raw_columns
    if any(isinstance(getattr(one, "type", None), EncryptedType) for one in columns):
        beside = _needs_owner(state.session, statement)
        new = [_with_more(one, columns, beside=beside) for one in columns]
        if any(one is not other for one, other in zip(new, columns, strict=True)):
            statement = state.statement = statement.with_only_columns(*new)
    if getattr(statement, "_with_options", ()):
        note_expressions(state.session, statement._with_options)
        # `load_only` would leave the previous column out, and the owner.
        options = [undefer(one) for one in _attributes_beside(statement)]
        if options:
            state.statement = statement.options(*options)


def _needs_owner(session: Session, statement: Any) -> bool:
    """Whether a value opens only in a row that says whose it is. A column more would change what DISTINCT and
    GROUP BY give."""
    here = unlocked_sessions(session)
    if not here or only_owner(here) is not None:
        return False
    return not (statement._distinct or statement._distinct_on or statement._group_by_clauses)


def _with_more(output: Any, columns: Sequence[Any], *, beside: bool) -> Any:
    """An output, or the columns that are read in its place."""
    name: Any = getattr(output, "_annotations", {}).get("proxy_key")
    column: Any = output
    while isinstance(column, (Label, Grouping)):
        name = column.name if isinstance(column, Label) else name
        column = column.element
    entity = getattr(column, "_annotations", {}).get("parententity")
    if entity is None or not isinstance(getattr(column, "type", None), EncryptedType):
        return output
    previous = previous_of(column) if is_moving(column) else None
    owners = _owners_beside(column, entity, columns) if beside else []
    if previous is not None:
        return DualBundle(name or column.key, column, previous, *owners)
    return OwnedBundle(name or column.key, column, *owners) if owners else output


def _owners_beside(column: Any, entity: Any, columns: Sequence[Any]) -> list[Any]:
    """The attributes that say whose row a column is in; none if they are selected already."""
    encrypted = encrypted_column_of(column)
    if encrypted is None:
        return []
    owners = [
        getattr(entity.entity, prop.key)
        for wanted in encrypted.path.columns
        if (prop := _property_of(entity.mapper, wanted)) is not None
    ]
    mine = [one for one in columns if getattr(one, "_annotations", {}).get("parententity") is entity]
    there = {hash(one) for one in mine}
    whole = any(not isinstance(one, ColumnElement) for one in mine)
    return [] if whole or all(hash(one.__clause_element__()) in there for one in owners) else owners


def _property_of(mapper: Any, column: Any) -> Any:
    try:
        return mapper.get_property_by_column(column)
    except UnmappedColumnError:
        return None


def _attributes_beside(statement: Any) -> list[Any]:
    found = []
    for described in statement.column_descriptions:
        entity = described["entity"]
        if entity is not None and described["expr"] is entity:
            mapper = inspect(entity).mapper
            keys = [one.previous for one in dual_attributes(mapper)]
            keys += [key for attribute in plan_of_mapper(mapper) for key in attribute.owner_keys]
            found += [getattr(entity, key) for key in dict.fromkeys(keys)]
    return found
