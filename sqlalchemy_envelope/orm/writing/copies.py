"""What a statement may copy inside the database: INSERT .. FROM SELECT and upserts move ciphertext that
nobody opens on the way, so that it must belong where it arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan


def check_from_select(plan: TablePlan, statement: Any, name_of: Callable[[Any], str]) -> None:
    """INSERT .. FROM SELECT may copy ciphertext between columns of one label, and nothing else."""
    if statement.select is None:
        return
    names = [name_of(name) for name in statement._select_names or ()]
    sources = list(statement.select.selected_columns)
    if len(names) != len(sources):  # a textual select without `columns()`: what goes where cannot be told
        raise StatementRefusedError(
            f"INSERT .. FROM SELECT into {plan.table.name}, which has encrypted columns: its "
            f"{len(names)} columns are not matched by {len(sources)} of the select."
        )
    copied = dict(zip(names, sources, strict=True))
    for key, (previous, _) in plan.dual.items():
        if (key in copied) is not (previous in copied):
            raise StatementRefusedError(
                f"This copies rows into {plan.table.name}.{key}, whose values are being moved: copy "
                f"{plan.table.c[previous].name} with it, or load the rows and add them as objects."
            )
    for name, source in copied.items():
        target = next((one for one in plan.columns if one.key == name), None)
        if target is None:
            if isinstance(source.type, EncryptedType):
                raise _into_the_clear(plan, name)
            continue
        # Of the column itself: `type_coerce(plain, encrypted type)` has the type, and plaintext in it.
        same = all(
            isinstance(base, Column)
            and isinstance(base.type, EncryptedType)
            and base.type.field == target.type.field
            for base in source.base_columns
        )
        if not same or target.row_bound or not _copies_owner(target, source, copied):
            raise StatementRefusedError(
                f"INSERT .. FROM SELECT into {plan.table.name}.{name}: only a column of the same "
                "label can be copied inside the database, and its row's owner with it. Load the rows and "
                "add them as objects, or pin one label on both columns."
            )


def check_upsert(plan: TablePlan, statement: Any, name_of: Callable[[Any], str]) -> None:
    """An upsert may set `excluded.<same column>` only, and only where the row's owner is settled too."""
    clause = getattr(statement, "_post_values_clause", None)
    updates = getattr(clause, "update_values_to_set", None) or getattr(clause, "update", None)
    if not updates:
        return
    pairs = dict(updates.items() if hasattr(updates, "items") else updates)
    sets = {name_of(key): value for key, value in pairs.items()}
    targets = {name_of(one) for one in getattr(clause, "inferred_target_elements", None) or ()}
    row_key = {key.key for key in plan.table.primary_key}
    for name, value in sets.items():
        if name not in plan.keys and isinstance(getattr(value, "type", None), EncryptedType):
            raise _into_the_clear(plan, name)
    for path, columns in plan.groups:
        moves = not path.is_self and not sets.keys().isdisjoint(path.keys)
        settled = all(key in targets or _is_proposed(sets.get(key), key) for key in path.keys)
        for column in columns:
            rekeys = column.row_bound and not sets.keys().isdisjoint(row_key)
            if column.key not in sets and not moves and not rekeys:
                continue
            proposed = _is_proposed(sets.get(column.key), column.key)
            if not proposed or not settled or (column.row_bound and targets != row_key):
                raise StatementRefusedError(
                    f"This upsert sets {plan.table.name}.{column.key} or its row's owner, and a "
                    "value is encrypted for the row that was to be inserted. Set it from "
                    f"`excluded.{column.key}` and {', '.join(path.keys)} with it"
                    + (", on the primary key alone." if column.row_bound else ".")
                )


def upsert_previous(plan: TablePlan, statement: Any, name_of: Callable[[Any], str]) -> Any:
    """The upsert, setting the previous column from the proposed row wherever it sets the encrypted one."""
    clause = getattr(statement, "_post_values_clause", None)
    attribute = "update_values_to_set" if hasattr(clause, "update_values_to_set") else "update"
    updates = getattr(clause, attribute, None)
    if not updates:
        return statement
    pairs = dict(updates.items() if hasattr(updates, "items") else updates)
    names = {name_of(key) for key in pairs}
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


def _copies_owner(target: EncryptedColumn, source: Any, sources: Mapping[str, Any]) -> bool:
    """Whether an INSERT .. FROM SELECT takes the row's owner from the very row it takes the value from."""
    base = next(iter(source.base_columns))
    plan = plan_of_table(base.table)
    origin = next((one for one in plan.columns if one.column is base), None) if plan is not None else None
    if origin is None or origin.path.owner_class is not target.path.owner_class:
        return False
    return all(
        key in sources and column in sources[key].base_columns and _from_of(sources[key]) is _from_of(source)
        for key, column in zip(target.path.keys, origin.path.columns, strict=True)
    )


def _from_of(column: Any) -> Any:
    return getattr(getattr(column, "element", column), "table", None)


def _into_the_clear(plan: TablePlan, name: str) -> StatementRefusedError:
    return StatementRefusedError(
        f"A statement copies an encrypted column into {plan.table.name}.{name}, which is not encrypted and "
        "would hold ciphertext. Load the rows and copy the decrypted values."
    )


def _is_proposed(value: Any, key: str) -> bool:
    """Whether an upsert's value is this column of the row that was to be inserted."""
    source = getattr(value, "table", None)
    named = (
        getattr(source, "name", None) in ("excluded", "new")
        or getattr(source, "description", None) == "inserted"
    )
    return named and getattr(value, "key", None) == key
