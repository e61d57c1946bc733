"""What a statement may copy inside the database. INSERT .. FROM SELECT and upserts move ciphertext that is
not opened on the way, so it must belong to the row that it arrives in."""

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
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan


def check_from_select(plan: TablePlan, statement: Any) -> None:
    """Refuse an INSERT .. FROM SELECT, unless it copies into an encrypted column NULL or the values of a
    column of the same label.

    Raises:
        StatementRefusedError: it copies anything else.
    """
    if statement.select is None:
        return
    names: list[str] = list(statement._select_names or ())
    for part in parts_of(statement.select):
        sources = list(part.selected_columns)
        if len(names) != len(sources):  # a textual select without `columns()`: nobody can say what goes where
            raise StatementRefusedError(
                f"INSERT .. FROM SELECT into {plan.table.name}, which has encrypted columns: it "
                f"names {counted(len(names), 'column')}, and its SELECT has {len(sources):,}."
            )
        copied = dict(zip(names, sources, strict=True))
        _check_previous(plan, copied)
        for name in copied:
            _check_copy(plan, name, copied, is_text=isinstance(part, TextualSelect))


def _check_previous(plan: TablePlan, copied: Mapping[str, Any]) -> None:
    """Refuse to copy one column of a value that is being moved, without the other."""
    for key, (previous, _) in plan.dual.items():
        if (key in copied) is not (previous in copied):
            raise StatementRefusedError(
                f"This copies rows into {plan.table.name}.{key}, whose values are being moved: copy "
                f"{plan.table.c[previous].name} with it, or load the rows and add them as objects."
            )


def _check_copy(plan: TablePlan, name: str, copied: Mapping[str, Any], *, is_text: bool) -> None:
    """Refuse to copy anything into a column that does not belong there.

    Args:
        is_text: whether the SELECT is text, whose columns cannot be followed to their tables.
    """
    source = copied[name]
    target = next((column for column in plan.columns if column.key == name), None)
    if target is None:
        # For a name that is no column SQLAlchemy has an error of its own.
        if name in plan.table.columns and holds_ciphertext(source):
            raise _into_the_clear(f"{plan.table.name}.{name}")
        return
    if is_null(source):
        return
    if is_text or target.row_bound or not _copies_owner(target, source, copied):
        owner = " and ".join(target.path.keys)
        raise StatementRefusedError(
            f"{plan.table.name}.{name} is encrypted: an INSERT can take it from a SELECT only if that "
            f"names a column of the same label, and {owner}, the row's owner, of one table or alias. "
            "Load the rows and add them as objects, or pin one label on both columns."
        )


def check_plain_target(statement: Any) -> None:
    """Refuse an INSERT .. FROM SELECT that copies ciphertext into a table without encrypted columns.

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
    """Refuse a CREATE TABLE AS or a materialized view that copies ciphertext. Another view copies nothing.

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
    """Whether a value is ciphertext of an encrypted column, whatever type it has here."""
    if isinstance(source, ScalarSelect):
        return any(
            holds_ciphertext(output) for part in parts_of(source.element) for output in part.selected_columns
        )
    if isinstance(source, (Label, Grouping)):
        return holds_ciphertext(source.element)
    if not isinstance(source, ColumnElement):
        return False
    if isinstance(source, TypeCoerce):  # it has a type of its own, and still the value of its clause
        return holds_ciphertext(source.clause)
    return any(isinstance(column.type, EncryptedType) for column in (source, *source.base_columns))


def check_upsert(plan: TablePlan, statement: Any) -> None:
    """Refuse an upsert that sets an encrypted column to anything but `excluded.<same column>`, or that leaves
    open whose row it changes.

    Raises:
        StatementRefusedError: the value would not belong to the row that exists.
    """
    pairs = assigned_by_upsert(statement)
    if not pairs:
        return
    upsert = _Upsert(plan, statement, pairs)
    upsert.refuse_copies_into_the_clear()
    for column in plan.columns:
        upsert.check(column)


class _Upsert:
    """An upsert on a table with encrypted columns: what it sets in a row that exists.

    Attributes:
        sets: the new value of each column that it sets.
        targets: the columns of the key that two rows share, where the statement names them.
    """

    def __init__(self, plan: TablePlan, statement: Any, pairs: Mapping[Any, Any]) -> None:
        named = getattr(statement._post_values_clause, "inferred_target_elements", None) or ()
        self._plan = plan
        self._statement = statement
        self.sets = {column_key(key): value for key, value in pairs.items()}
        self.targets = {_key_of_target(plan, target) for target in named}
        self._row_key = {key.key for key in plan.table.primary_key}

    def refuse_copies_into_the_clear(self) -> None:
        """Refuse to copy ciphertext into a column that is not encrypted."""
        for name, value in self.sets.items():
            if name not in self._plan.keys and holds_ciphertext(value):
                raise _into_the_clear(f"{self._plan.table.name}.{name}")

    def check(self, column: EncryptedColumn) -> None:
        """Refuse the upsert if a row that exists would hold a value of another row in this column."""
        path = column.path
        moves = not path.is_self and not self.sets.keys().isdisjoint(path.keys)
        rekeys = column.row_bound and not self.sets.keys().isdisjoint(self._row_key)
        if column.key not in self.sets and not moves and not rekeys:
            return
        is_settled = all(key in self.targets or self._takes_proposed(key) for key in path.keys)
        is_bound_elsewhere = column.row_bound and self.targets != self._row_key
        if not self._takes_proposed(column.key) or not is_settled or is_bound_elsewhere:
            raise self._refusal(column, is_settled=is_settled)

    def _takes_proposed(self, key: str) -> bool:
        """Whether a column is set to its own value in the row that was to be inserted."""
        value: Any = self.sets.get(key)
        return is_proposed(self._statement.table, value) and value.key == key

    def _refusal(self, column: EncryptedColumn, *, is_settled: bool) -> StatementRefusedError:
        why = self._why(column, is_settled=is_settled)
        return StatementRefusedError(f"{why}; nothing was sent. {self._cure(column)}.")

    def _why(self, column: EncryptedColumn, *, is_settled: bool) -> str:
        """Why the value does not belong to the row.

        Args:
            is_settled: whether the rows get the owner for whom the value is encrypted.
        """
        name = f"{self._plan.table.name}.{column.key}"
        encrypted = f"{name} is encrypted for the row that was to be inserted"
        if column.key not in self.sets:
            return f"This upsert gives a row that is there another owner or key, and leaves its {column.key}"
        if not self._takes_proposed(column.key):
            why = "a value that is in no row, and values are encrypted for their rows"
            return f"This upsert sets {name} to {why}"
        if not is_settled:
            return f"{encrypted}, and the row that is there may have another owner"
        return f"{encrypted}, and the row that is there may have another primary key"

    def _cure(self, column: EncryptedColumn) -> str:
        path = column.path
        row = "excluded" if hasattr(self._statement, "excluded") else "inserted"
        is_set = column.key not in self.sets or self._takes_proposed(column.key)
        put = "Set" if is_set else "Put the value into the row, and set"
        cure = f"{put} {column.key} from `{row}.{column.key}`"
        if column.row_bound or path.is_self:
            keys = " and ".join(column.key for column in self._plan.table.primary_key)
            cure += f", and let the conflict be about {keys} alone"
            if row == "inserted":  # MySQL does not say which key it is about
                cure = "Load the rows and change the objects"
        if not path.is_self and not (column.row_bound and row == "inserted"):
            cure += "".join(
                f", with {key} from `{row}.{key}`" for key in path.keys if key not in self.targets
            )
        return cure


class Source(NamedTuple):
    """A column of a table, and the FROM clauses through which its row is read."""

    way: tuple[Any, ...]
    column: Column[Any]


def _copies_owner(target: EncryptedColumn, source: Any, sources: Mapping[str, Any]) -> bool:
    """Whether an INSERT .. FROM SELECT takes the row's owner from the same row as the value."""
    values = trace(source)
    owners = [trace(sources[key]) if key in sources else [] for key in target.path.keys]
    if not values or any(len(parts) != len(values) for parts in owners):
        return False
    return all(_is_owned(target, *taken) for taken in zip(values, *owners, strict=True))


def _is_owned(target: EncryptedColumn, value: Source | None, *owner: Source | None) -> bool:
    if value is None or not isinstance(value.column.type, EncryptedType):
        return False
    plan = plan_of_table(value.column.table)
    columns = () if plan is None else plan.columns
    origin = next((encrypted for encrypted in columns if encrypted.column is value.column), None)
    if origin is None or origin.type.field != target.type.field:
        return False
    return origin.path.owner_class is target.path.owner_class and all(
        part is not None and part.way == value.way and part.column is column
        for part, column in zip(owner, origin.path.columns, strict=True)
    )


def trace(column: Any, way: tuple[Any, ...] = ()) -> list[Source | None]:
    """The columns of tables that an output stands for: one for each part of a UNION. None stands for what is
    computed on the way, or typed as text."""
    while isinstance(column, (Label, Grouping)):
        column = column.element
    table = getattr(column, "table", None)
    if not isinstance(column, ColumnClause) or table is None:
        return [None]
    way = (*way, hash(table))  # an annotated copy has the hash of what it copies
    if isinstance(table, Table):
        (base,) = column.base_columns
        return [Source(way, base) if isinstance(base, Column) else None]
    if isinstance(getattr(table, "element", None), TextualSelect):
        return [None]
    proxies = getattr(column, "_proxies", ())
    return [part for proxy in proxies for part in trace(proxy, way)] or [None]


def _into_the_clear(where: str) -> StatementRefusedError:
    return StatementRefusedError(
        f"A statement copies an encrypted column into {where}, which is not encrypted and "
        "would hold ciphertext. Load the rows and copy the decrypted values."
    )


def _key_of_target(plan: TablePlan, named: Any) -> str:
    """The key of a column in the target of an upsert's conflict. Text is the column's name in the database
    there."""
    if not isinstance(named, str):
        return column_key(named)
    return next((column.key for column in plan.table.columns if column.name == named), named)
