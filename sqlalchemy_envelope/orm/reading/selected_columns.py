"""Columns, and not objects, read through a `Session`: `select(User.phone)`.

The columns that opening a value needs are read with it. While values are moved, this is the previous column:
both columns come out as a single value under the same name. If several owners are unlocked, it is also the
row's owner, which the result leaves out again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Label, Select, inspect
from sqlalchemy.orm import Bundle, undefer
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.sql.elements import Grouping

from sqlalchemy_envelope.orm.columns.dual_attributes import dual_attributes
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.leaving import note_expressions
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of, plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import is_moving, policy_of_column, previous_of
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current.context import only_owner, unlocked_sessions
from sqlalchemy_envelope.orm.reading.two_columns import refused_plaintext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Result
    from sqlalchemy.orm import ORMExecuteState, Session


class DualBundle(Bundle[Any]):
    """An encrypted column and its previous column, which come out of each row as a single value."""

    inherit_cache = True

    def create_row_processor(
        self, query: Any, procs: Sequence[Any], labels: Sequence[str]
    ) -> Callable[[Any], Any]:
        """Return the function that merges the two values of a row into one."""
        encrypted: Any = self.exprs[0]
        policy = policy_of_column(encrypted)
        read, read_previous = procs[:2]
        where = str(encrypted)

        def merge(row: Any) -> Any:
            value = read(row)
            if isinstance(value, Sealed) and value.is_shredded:
                return value
            if isinstance(value, Sealed) and value.why is not None:
                raise value.error()  # an attacker may have altered it so that the previous value is read
            if value is not None and not (policy == "both" and isinstance(value, Sealed)):
                return value
            previous = read_previous(row)
            if previous is not None and policy == "refuse":
                del row, previous
                raise refused_plaintext(where)
            both_locked = isinstance(value, Sealed) and isinstance(previous, Sealed)
            return value if previous is None or both_locked else previous

        return merge


def do_orm_execute(state: ORMExecuteState) -> Result[Any] | None:
    """Add the columns that opening each selected encrypted column needs.

    These are its previous column and, if several owners are unlocked, its row's owner.
    """
    statement: Any = state.statement
    if not isinstance(statement, Select) or state.is_relationship_load or state.is_column_load:
        return None
    if getattr(statement, "_with_options", ()):
        note_expressions(state.session, statement._with_options)
        # `load_only` would leave the previous column out, and the owner.
        options = [undefer(one) for one in _attributes_beside(statement)]
        if options:
            statement = state.statement = statement.options(*options)
    columns = statement._raw_columns
    for one in columns:  # most selects leave here: `any` would make a generator for each
        if isinstance(getattr(one, "type", None), EncryptedType):
            break
    else:
        return None
    owners = _owners_beside(columns) if _needs_owner(state.session, statement) else []
    new = [_with_previous(one) for one in columns]
    if any(one is not other for one, other in zip(new, columns, strict=True)):
        statement = state.statement = statement.with_only_columns(*new)
    if not owners:
        return None
    # The owners stand at the end and are left out again, so that the selected columns keep place and name.
    whole = state.invoke_statement(statement.add_columns(*owners))
    return whole.columns(*range(len(new)))


def _needs_owner(session: Session, statement: Any) -> bool:
    """Tell whether a value opens only in a row that tells its owner.

    False for DISTINCT and GROUP BY: a further column would change their result.
    """
    here = unlocked_sessions(session)
    if not here or only_owner(here) is not None:
        return False
    return not (statement._distinct or statement._distinct_on or statement._group_by_clauses)


def _with_previous(output: Any) -> Any:
    """Return an output, or in its place the two columns in which its value may stand."""
    found = _entity_and_column(output)
    previous = previous_of(found[1]) if found is not None and is_moving(found[1]) else None
    if found is None or previous is None:
        return output
    name = output.name if isinstance(output, Label) else output._annotations.get("proxy_key", found[1].key)
    return DualBundle(name, found[1], previous)


def _entity_and_column(output: Any) -> tuple[Any, Any] | None:
    """Return the entity and the encrypted column of an output, whatever its name; None for other outputs."""
    column: Any = output
    while isinstance(column, (Label, Grouping)):
        column = column.element
    entity = getattr(column, "_annotations", {}).get("parententity")
    if entity is None or not isinstance(getattr(column, "type", None), EncryptedType):
        return None
    return entity, column


def _owners_beside(columns: Sequence[Any]) -> list[Any]:
    """Return the attributes that tell the owner of each encrypted column's row and are not yet selected."""
    found = filter(None, map(_entity_and_column, columns))
    owners = {
        hash(owner.__clause_element__()): owner
        for entity, column in found
        if not any(_is_whole(one, entity) for one in columns)
        for owner in _owners_of(entity, column)
    }
    there = {hash(one) for one in columns}
    return [owner for key, owner in owners.items() if key not in there]


def _is_whole(output: Any, entity: Any) -> bool:
    """Tell whether an output is the whole entity."""
    mine = getattr(output, "_annotations", {}).get("parententity") is entity
    return mine and not isinstance(output, ColumnElement)


def _owners_of(entity: Any, column: Any) -> list[Any]:
    encrypted = encrypted_column_of(column)
    wanted = encrypted.path.columns if encrypted is not None else ()
    found = [_property_of(entity.mapper, one) for one in wanted]
    return [getattr(entity.entity, prop.key) for prop in found if prop is not None]


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
            owners = [key for attribute in plan_of_mapper(mapper) for key in attribute.owner_keys]
            # SQLAlchemy accepts no second option for an attribute. A deferred owner is loaded when needed.
            named = _named_by(statement._with_options) if owners else ()
            keys += [key for key in owners if mapper.attrs[key] not in named]
            found += [getattr(entity, key) for key in dict.fromkeys(keys)]
    return found


def _named_by(options: Iterable[Any]) -> set[Any]:
    """Return the properties that loader options name, as in `defer(Note.user_id)`."""
    elements = (element for option in options for element in getattr(option, "context", ()))
    return {getattr(getattr(one, "path", None), "prop", None) for one in elements}
