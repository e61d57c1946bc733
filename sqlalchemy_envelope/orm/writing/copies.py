"""What a statement may copy inside the database: INSERT .. FROM SELECT and upserts move ciphertext that
nobody opens on the way, so that it must belong where it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Column, Label, Table, TypeCoerce, schema
from sqlalchemy.sql.elements import ColumnClause, ColumnElement, Grouping
from sqlalchemy.sql.selectable import ScalarSelect, TextualSelect

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.writing.forms import (
    assigned_by_upsert,
    column_key,
    is_null,
    is_proposed,
    parts_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan


def check_from_select(plan: TablePlan, statement: Any) -> None:
    """INSERT .. FROM SELECT may copy ciphertext between columns of one label, or NULL, and nothing else."""
    if statement.select is None:
        return
    names: list[str] = list(statement._select_names or ())
    for part in parts_of(statement.select):
        sources = list(part.selected_columns)
        if len(names) != len(sources):  # a textual select without `columns()`: what goes where cannot be told
            raise StatementRefusedError(
                f"INSERT .. FROM SELECT into {plan.table.name}, which has encrypted columns: its "
                f"{len(names)} columns are not matched by {len(sources)} of the select."
            )
        copied = dict(zip(names, sources, strict=True))
        _check_copies(plan, copied, typed=isinstance(part, TextualSelect))


def _check_copies(plan: TablePlan, copied: Mapping[str, Any], *, typed: bool) -> None:
    for key, (previous, _) in plan.dual.items():
        if (key in copied) is not (previous in copied):
            raise StatementRefusedError(
                f"This copies rows into {plan.table.name}.{key}, whose values are being moved: copy "
                f"{plan.table.c[previous].name} with it, or load the rows and add them as objects."
            )
    for name, source in copied.items():
        target = next((one for one in plan.columns if one.key == name), None)
        if target is None:
            # SQLAlchemy knows no other name, and says so.
            if name in plan.table.columns and holds_ciphertext(source):
                raise _into_the_clear(f"{plan.table.name}.{name}")
        elif is_null(source):
            continue
        elif typed or target.row_bound or not _copies_owner(target, source, copied):
            owner = " and ".join(target.path.keys)
            raise StatementRefusedError(
                f"{plan.table.name}.{name} is encrypted: an INSERT can take it from a SELECT only if that "
                f"names a column of the same label, and {owner}, the row's owner, of one table or alias. "
                "Load the rows and add them as objects, or pin one label on both columns."
            )


def check_plain_target(statement: Any) -> None:
    """INSERT .. FROM SELECT into a table without encrypted columns may not copy ciphertext.

    Raises:
        StatementRefusedError: it does.
    """
    if statement.select is None:
        return
    names = [getattr(name, "key", name) for name in statement._select_names or ()]
    for part in parts_of(statement.select):
        for position, source in enumerate(part.selected_columns):
            if holds_ciphertext(source):
                name = names[position] if position < len(names) else "?"
                raise _into_the_clear(f"{getattr(statement.table, 'name', '?')}.{name}")


# SQLAlchemy 2.1
_MADE_BY_SELECT = tuple(
    getattr(schema, name) for name in ("CreateTableAs", "CreateView") if hasattr(schema, name)
)


def check_made_by_select(element: Any) -> None:
    """CREATE TABLE AS may not copy ciphertext, nor may a materialized view: another one copies nothing.

    Raises:
        StatementRefusedError: it does.
    """
    if not isinstance(element, _MADE_BY_SELECT) or not getattr(element, "materialized", True):
        return
    for part in parts_of(element.selectable):
        for source in part.selected_columns:
            if holds_ciphertext(source):
                name = getattr(source, "key", "?")
                raise _into_the_clear(f"{element.table_name}.{name}")


def holds_ciphertext(source: Any) -> bool:
    """Whether a value is what an encrypted column holds, by whatever type it goes."""
    if isinstance(source, ScalarSelect):
        return any(
            holds_ciphertext(one) for part in parts_of(source.element) for one in part.selected_columns
        )
    if isinstance(source, (Label, Grouping)):
        return holds_ciphertext(source.element)
    if not isinstance(source, ColumnElement):
        return False
    if isinstance(source, TypeCoerce):  # has a type of its own, and what it is made of none the less
        return holds_ciphertext(source.clause)
    return any(isinstance(one.type, EncryptedType) for one in (source, *source.base_columns))


def check_upsert(plan: TablePlan, statement: Any) -> None:
    """An upsert may set `excluded.<same column>` only, and only where the row's owner is settled too."""
    pairs = assigned_by_upsert(statement)
    if not pairs:
        return
    clause = statement._post_values_clause
    sets = {column_key(key): value for key, value in pairs.items()}
    named = getattr(clause, "inferred_target_elements", None) or ()
    targets = {_key_of_target(plan, one) for one in named}
    row_key = {key.key for key in plan.table.primary_key}
    for name, value in sets.items():
        if name not in plan.keys and holds_ciphertext(value):
            raise _into_the_clear(f"{plan.table.name}.{name}")
    for path, columns in plan.groups:
        moves = not path.is_self and not sets.keys().isdisjoint(path.keys)
        settled = all(key in targets or _is_proposed(statement, sets.get(key), key) for key in path.keys)
        for column in columns:
            rekeys = column.row_bound and not sets.keys().isdisjoint(row_key)
            if column.key not in sets and not moves and not rekeys:
                continue
            proposed = _is_proposed(statement, sets.get(column.key), column.key)
            if not proposed or not settled or (column.row_bound and targets != row_key):
                sets_it = None if column.key not in sets else proposed
                raise _upsert_refusal(plan, statement, column, sets_it, targets, settled=settled)


def _upsert_refusal(
    plan: TablePlan,
    statement: Any,
    column: EncryptedColumn,
    sets_it: bool | None,
    targets: set[str],
    *,
    settled: bool,
) -> StatementRefusedError:
    """The error for an upsert whose value does not belong to the row that is there.

    Args:
        sets_it: whether it takes the value from the row that was to be inserted; None if it leaves it.
        targets: the columns whose conflict it is about, where the database has them named.
        settled: whether the rows get the owner for whom the value is encrypted.
    """
    name, path = f"{plan.table.name}.{column.key}", column.path
    row = "excluded" if hasattr(statement, "excluded") else "inserted"
    encrypted = f"{name} is encrypted for the row that was to be inserted"
    if sets_it is None:
        why = f"This upsert gives a row that is there another owner or key, and leaves its {column.key}"
    elif not sets_it:
        why = f"This upsert sets {name} to a value that is in no row, and values are encrypted for their rows"
    elif not settled:
        why = f"{encrypted}, and the row that is there may have another owner"
    else:
        why = f"{encrypted}, and the row that is there may have another primary key"
    put = "Set" if sets_it is not False else "Put the value into the row, and set"
    cure = f"{put} {column.key} from `{row}.{column.key}`"
    if column.row_bound or path.is_self:
        keys = " and ".join(one.key for one in plan.table.primary_key)
        cure += f", and let the conflict be about {keys} alone"
        if row == "inserted":  # MySQL does not say which key it is about
            cure = "Load the rows and change the objects"
    if not path.is_self and not (column.row_bound and row == "inserted"):
        cure += "".join(f", with {key} from `{row}.{key}`" for key in path.keys if key not in targets)
    return StatementRefusedError(f"{why}; nothing was sent. {cure}.")


def upsert_previous(plan: TablePlan, statement: Any) -> Any:
    """The upsert, setting the previous column from the proposed row wherever it sets the encrypted one."""
    clause = getattr(statement, "_post_values_clause", None)
    attribute = "update_values_to_set" if hasattr(clause, "update_values_to_set") else "update"
    updates = getattr(clause, attribute, None)
    if not updates:
        return statement
    pairs = dict(updates.items() if hasattr(updates, "items") else updates)
    names = set(map(column_key, assigned_by_upsert(statement)))
    proposed = getattr(statement, "excluded", None)
    proposed = statement.inserted if proposed is None else proposed
    added = {previous: proposed[previous] for key, (previous, _) in plan.dual.items() if key in names}
    if not added:
        return statement
    statement, clause = statement._clone(), clause._clone()  # type: ignore[union-attr]  # it has updates
    whole = pairs | added
    setattr(clause, attribute, whole if isinstance(updates, dict) else list(whole.items()))
    statement._post_values_clause = clause
    return statement


class _Source(NamedTuple):
    """A column of a table, and the way down to it: every FROM clause of which a row is read."""

    way: tuple[Any, ...]
    column: Column[Any]


def _copies_owner(target: EncryptedColumn, source: Any, sources: Mapping[str, Any]) -> bool:
    """Whether an INSERT .. FROM SELECT takes the row's owner from the very row it takes the value from."""
    values = _trace(source)
    owners = [_trace(sources[key]) if key in sources else [] for key in target.path.keys]
    if not values or any(len(one) != len(values) for one in owners):
        return False
    return all(_is_owned(target, *taken) for taken in zip(values, *owners, strict=True))


def _is_owned(target: EncryptedColumn, value: _Source | None, *owner: _Source | None) -> bool:
    if value is None or not isinstance(value.column.type, EncryptedType):
        return False
    plan = plan_of_table(value.column.table)
    origin = next((one for one in plan.columns if one.column is value.column), None) if plan else None
    if origin is None or origin.type.field != target.type.field:
        return False
    return origin.path.owner_class is target.path.owner_class and all(
        part is not None and part.way == value.way and part.column is column
        for part, column in zip(owner, origin.path.columns, strict=True)
    )


def _trace(column: Any, way: tuple[Any, ...] = ()) -> list[_Source | None]:
    """The columns of tables that an output is, one for each part of a UNION. None for whatever is computed on
    the way, or typed as text."""
    while isinstance(column, (Label, Grouping)):
        column = column.element
    table = getattr(column, "table", None)
    if not isinstance(column, ColumnClause) or table is None:
        return [None]
    way = (*way, hash(table))  # an annotated copy has the hash of what it copies
    if isinstance(table, Table):
        (base,) = column.base_columns
        return [_Source(way, base) if isinstance(base, Column) else None]
    if isinstance(getattr(table, "element", None), TextualSelect):
        return [None]
    proxies = getattr(column, "_proxies", ())
    return [one for proxy in proxies for one in _trace(proxy, way)] or [None]


def _into_the_clear(where: str) -> StatementRefusedError:
    return StatementRefusedError(
        f"A statement copies an encrypted column into {where}, which is not encrypted and "
        "would hold ciphertext. Load the rows and copy the decrypted values."
    )


def _key_of_target(plan: TablePlan, named: Any) -> str:
    """The key of a column that an upsert's conflict is about: text there is its name in the database."""
    if not isinstance(named, str):
        return column_key(named)
    return next((column.key for column in plan.table.columns if column.name == named), named)


def _is_proposed(statement: Any, value: Any, key: str) -> bool:
    """Whether an upsert's value is this column of the row that was to be inserted."""
    return is_proposed(statement.table, value) and value.key == key
