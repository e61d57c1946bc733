"""UPDATEs under `using(owner)`: the application says whose rows they write, and not the statement. So the
database is asked before the values are encrypted: in another owner's row they could never be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import literal_column, not_, or_, select, tuple_
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import AliasedReturnsRows

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.plans import key_in_base
from sqlalchemy_envelope.orm.tables.owner_paths import SolePath, among
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.forms import conditions, elements_in, equalities

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Table

    from sqlalchemy_envelope.orm.columns.plans import TablePlan
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import Place

    Row = Mapping[str, Any]


def of_owner(
    connection: Connection,
    statement: Any,
    rows: Sequence[Row],
    plan: TablePlan,
    paths: Iterable[OwnerPath],
    owner: Place,
) -> Any:
    """The UPDATE with a condition that takes this owner's rows alone, even if a row moves at this moment.

    Raises:
        StatementRefusedError: its own WHERE takes rows of others.
    """
    for path in paths:
        belongs = _belongs(plan, path, owner, statement)
        if belongs is None:
            continue
        if _takes_others(connection, statement, rows, plan.table, belongs):
            name, where = owner.owner_class.name, plan.table.name
            raise StatementRefusedError(
                f"`using` names the {name} whose rows an UPDATE of {where} writes, and its WHERE takes rows "
                "of others as well: the values could not be read there. Let the WHERE take rows of this "
                f"{name} alone, or load the objects and change them."
            )
        statement = statement.where(belongs)
    return statement


def _belongs(plan: TablePlan, path: OwnerPath, owner: Place, statement: Any) -> ColumnElement[bool] | None:
    """The condition that a row of the table, or of the UPDATE's alias of it, is the owner's; None if every
    row is."""
    if isinstance(path, SolePath):
        return None
    if plan.has(path):
        return path.belongs(_as_in(statement, path.columns), owner.owner_class, owner.primary_key)
    belongs = path.belongs(path.columns, owner.owner_class, owner.primary_key)
    own, same = _as_in(statement, plan.table.primary_key), key_in_base(plan.table, path)
    only: Any = own[0] if len(own) == 1 else tuple_(*own)
    whole: ColumnElement[bool] = only.in_(select(*same).where(belongs))
    return whole


def _as_in(statement: Any, columns: Iterable[Any]) -> list[Any]:
    """These columns as an UPDATE names them: its table may be an alias."""
    source = statement.table
    is_alias = isinstance(source, AliasedReturnsRows)
    return [source.c[column.key] if is_alias else column for column in columns]


def _takes_others(
    connection: Connection, statement: Any, rows: Sequence[Row], table: Table, belongs: ColumnElement[bool]
) -> bool:
    if any(isinstance(element, UpdateBase) for element in elements_in(*statement._where_criteria)):
        return False  # to ask would write; the UPDATE has the condition all the same
    key, own = list(table.primary_key), _as_in(statement, table.primary_key)
    source = statement.table if isinstance(statement.table, AliasedReturnsRows) else table
    others = or_(belongs.is_(None), not_(belongs))
    query: Any = select(literal_column("1")).select_from(source).where(others).limit(1)
    by_key = [tuple(dict(equalities(statement, table, row)).get(column) for column in key) for row in rows]
    if len(list(conditions(statement))) == len(key) and all([None not in pinned for pinned in by_key]):  # noqa: C419
        asked: Iterable[Any] = ((query.where(among(own, keys)), {}) for keys in chunks(by_key))
    else:
        asked = ((query.where(*statement._where_criteria), row) for row in rows)
    return any(connection.execute(question, row).first() is not None for question, row in asked)
