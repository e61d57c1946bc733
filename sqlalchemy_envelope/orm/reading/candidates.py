"""Rows that a blind index gives as candidates: each is compared after its value is opened, and dropped if the
comparison is not true of it.

That gives the right rows where the database does nothing with a row but hand it over: for a comparison that
the WHERE of the outermost SELECT requires, with the value among its columns. In every other place candidates
would be counted, limited, joined or changed by the database, and the statement is refused.

What a statement looks for is known at each execution alone. Where it looks is examined once for each compiled
statement, which SQLAlchemy keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import CompoundSelect, Delete, Insert, Select, Update
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ColumnClause,
    FunctionFilter,
    Grouping,
    Over,
    TextClause,
    WithinGroup,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import FromClause, ScalarSelect, SelectBase

from sqlalchemy_envelope.exceptions import LockedError, StatementRefusedError, ValueEncodingError
from sqlalchemy_envelope.orm.columns.encrypted_type import format_in
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current.context import server_hint
from sqlalchemy_envelope.orm.indexes.candidates import names_of
from sqlalchemy_envelope.orm.indexes.sought import Sought
from sqlalchemy_envelope.orm.indexes.tokens.comparisons import looked_up
from sqlalchemy_envelope.orm.reading import schema_maps
from sqlalchemy_envelope.orm.reading.origins import origins_of, output_column, trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.reading.origins import Origin
    from sqlalchemy_envelope.orm.reading.statement_plan import StatementPlan

_SCALAR = frozenset({"lower", "upper", "length", "char_length", "coalesce", "concat", "now", "cast"})
"""Functions that compute one value of one row. Any other function may be an aggregate."""
_EXTENSIONS = ("_pre_columns_clause", "_post_select_clause", "_post_criteria_clause", "_post_body_clause")
"""Where SQLAlchemy 2.1 keeps what `Select.ext()` adds, such as DISTINCT ON."""
_NO_VALUE = "a SELECT without the value"


class SoughtPlace:
    """A parameter by which a compiled statement looks into a blind index.

    Attributes:
        parameter: the parameter.
        number: its place among the parameters that differ between executions; None if it is always the same.
        positions: the positions of the values that the index indexes, in each row.
        refusal: why candidates are not possible there; None if they are.
    """

    __slots__ = ("number", "parameter", "positions", "refusal")

    def __init__(
        self, parameter: Any, number: int | None, positions: tuple[int, ...], refusal: str | None
    ) -> None:
        self.parameter = parameter
        self.number = number
        self.positions = positions
        self.refusal = refusal

    def candidates(self, execution: Any) -> Sought | None:
        """What an execution of the statement looks for, if it gives candidates."""
        extracted = execution.extracted_parameters
        here = self.parameter if self.number is None or not extracted else extracted[self.number]
        # What is looked for may be given later, by a function, and is then told for certain.
        wanted = getattr(here.callable, "wanted", None)
        return None if getattr(wanted, "check", None) is None else here.callable


class RowFilter:
    """Drops the rows of a result that were candidates alone.

    Args:
        positions: the positions of the values that the index indexes.
        index: the index.
        check: tells of these values whether the comparison is true of them.
    """

    __slots__ = ("_check", "_index", "_positions")

    def __init__(self, positions: tuple[int, ...], index: IndexedColumn, check: Callable[..., bool]) -> None:
        self._positions = positions
        self._index = index
        self._check = check

    def kept(self, rows: Iterable[Any], bare: frozenset[int]) -> list[Any]:
        """The rows of which the comparison is true.

        Args:
            rows: opened rows.
            bare: the positions of values that are not in cells.

        Raises:
            LockedError: the owner of a candidate is locked.
            DecryptionError, FormatError: the value of a candidate is not what was written there.
        """
        positions = self._positions
        return [
            row
            for row in rows
            if self._is_true([row[at] if at in bare else row[at].cell_contents for at in positions])
        ]

    def _is_true(self, values: Sequence[Any]) -> bool:
        for value in values:
            if type(value) is Sealed:
                return self._is_sealed_true(value)
        if all(value is None for value in values):
            return False  # as a comparison with NULL
        try:
            return bool(self._check(*values))
        except Exception:  # noqa: BLE001 - raised below, chained to nothing that holds the value
            del values
        raise ValueEncodingError(
            f"A value of {self._index.sources[0].type.label!r} cannot be compared with what its blind index "
            f"{self._index.key!r} looks for: its normaliser or type takes it no longer."
        )

    def _is_sealed_true(self, sealed: Sealed) -> bool:
        if sealed.is_shredded:
            return False  # the value is gone, and equals nothing
        if sealed.why is not None or sealed.note is not None:
            raise sealed.error()
        if self._index.scope != "server":
            return False  # rows of a locked owner are not found, and this row has the tag by chance
        name, _, key = names_of(self._index)
        raise LockedError(
            f"A row may have the {name} that is looked for, and its owner is locked: the tags of "
            f"{self._index.key!r} give candidates, which are compared after decryption. Unlock the owner, or "
            f"look among the rows of open owners alone, `.where({key}.in_(...))`. Rows are found while their "
            f"owners are locked by an index of 128 bits.{server_hint()}"
        )


_plans: WeakKeyDictionary[Any, tuple[SoughtPlace, ...]] = WeakKeyDictionary()


def places_of(compiled: Any) -> tuple[SoughtPlace, ...]:
    """The parameters by which a compiled statement looks into blind indexes."""
    names = getattr(compiled, "bind_names", None)
    if not names:
        return ()
    known = _plans.get(compiled)
    if known is None:
        parameters = [one for one in names if isinstance(one.callable, Sought)]
        known = _plans[compiled] = tuple(_places(compiled, parameters)) if parameters else ()
    return known


def check(connection: Connection, sql: str, compiled: Any, execution: Any) -> None:
    """Refuse an execution that looks for candidates where they would give a wrong answer.

    Raises:
        StatementRefusedError: it does so.
        ConfigurationError: see `schema_maps.check`.
    """
    schema_maps.check(connection, sql, compiled, execution)
    for place in places_of(compiled):
        sought = place.candidates(execution)
        if sought is not None and place.refusal is not None:
            raise _refused(sought.index, place.refusal)


def filters_of(execution: Any, description: Sequence[Any], plan: StatementPlan) -> tuple[RowFilter, ...]:
    """The filters of the rows of a statement that was executed.

    Raises:
        StatementRefusedError: its rows cannot be compared.
    """
    filters = []
    for place in places_of(execution.compiled):
        sought = place.candidates(execution)
        if sought is not None:
            if not _has(execution, description, plan, place.positions):
                raise _refused(sought.index, "a result whose columns are found by their names")
            check: Any = sought.wanted.check
            filters.append(RowFilter(place.positions, sought.index, check))
    return tuple(filters)


def _has(execution: Any, description: Sequence[Any], plan: StatementPlan, positions: tuple[int, ...]) -> bool:
    """Whether values are opened at these positions of each row."""
    opened = {value.position for row in plan.rows for value in row.values}
    by_name = execution.execution_options.get("driver_column_names", False)
    ordered = not by_name and len(description) == len(execution.compiled._result_columns)
    return ordered and bool(positions) and opened.issuperset(positions)


def _refused(index: IndexedColumn, where: str) -> StatementRefusedError:
    name, entity, key = names_of(index)
    if where is _NO_VALUE:
        return StatementRefusedError(
            f"{name} is found by {index.key!r}, whose tags give candidates: they are compared after "
            f"decryption, and this SELECT leaves the value out. Select {name} too, or {entity}."
        )
    return StatementRefusedError(
        f"{name} is found by {index.key!r}, whose tags give candidates: they are compared after decryption, "
        f"and the database cannot do that in {where}. Find the rows first, in a SELECT of their own, "
        f"`rows = session.scalars(select({entity}).where({name} ...)).all()`, and use their primary keys "
        f"here: `{key}.in_([...])`."
    )


def _places(compiled: Any, parameters: Sequence[Any]) -> Iterator[SoughtPlace]:
    numbers = _numbers(compiled)
    root = getattr(compiled.compile_state, "statement", None)
    if root is None:
        root = compiled.statement
    whole = _refusal_of(root)
    conditions = {} if whole else _required(root)
    for parameter in parameters:
        number = next((numbers[one.key] for one in parameter._cloned_set if one.key in numbers), None)
        positions: tuple[int, ...] = ()
        refusal = whole
        if refusal is None and id(parameter) not in conditions:
            refusal = "a subquery, an OR, a NOT, the ON of a join, or a column"
        if refusal is None:
            positions = _positions(compiled, conditions[id(parameter)], parameter.callable.index)
            refusal = None if positions else _NO_VALUE
        yield SoughtPlace(parameter, number, positions, refusal)


def _numbers(compiled: Any) -> dict[str, int]:
    """The places of the parameters that differ between executions, by their keys, as SQLAlchemy has them."""
    cache_key = compiled.cache_key
    return {} if cache_key is None else {one.key: number for number, one in enumerate(cache_key[1])}


def _refusal_of(root: Any) -> str | None:
    """Why a statement can have no candidates anywhere; None if it can."""
    if not isinstance(root, Select):
        kinds = {Update: "an UPDATE", Delete: "a DELETE", Insert: "an INSERT", CompoundSelect: "a UNION"}
        return next((text for kind, text in kinds.items() if isinstance(root, kind)), "this statement")
    limits = (root._limit_clause, root._offset_clause, root._fetch_clause)
    if any(one is not None for one in limits):
        return "a SELECT with LIMIT or OFFSET, which count them (`Query.first()` sets a limit)"
    if root._group_by_clauses or root._having_criteria or root._distinct_on:
        return "a SELECT with GROUP BY, HAVING or DISTINCT ON"
    extended = any(getattr(root, name, None) is not None for name in _EXTENSIONS)
    if root._prefixes or root._suffixes or extended:
        return "a SELECT with a prefix, a suffix or an extension of its syntax"
    computed = next((one for output in root._raw_columns for one in _computed(output)), None)
    return None if computed is None else f"a SELECT with {computed}, which may count or sum them up"


def _computed(element: Any) -> Iterator[str]:
    """The names of what an output computes over several rows, as far as can be told."""
    is_function = isinstance(element, FunctionElement)
    if isinstance(element, (FromClause, SelectBase, ScalarSelect)) and not is_function:
        return
    if isinstance(element, (Over, WithinGroup, FunctionFilter)):
        yield "a window function or an aggregate"
    elif is_function and getattr(element, "name", "") not in _SCALAR:
        yield f"{getattr(element, 'name', 'a function')}()"
    elif isinstance(element, TextClause) or (isinstance(element, ColumnClause) and element.is_literal):
        yield "SQL text"
    elif not isinstance(element, ColumnClause):
        for child in element.get_children():
            yield from _computed(child)


def _required(root: Any) -> dict[int, Any]:
    """The tags that the WHERE of a SELECT compares with parameters, in conditions that each row has to meet,
    by the parameter. Parameters that stand elsewhere, too, are left out."""
    found: dict[int, Any] = {}
    others: list[Any] = []
    waiting = list(root._where_criteria)
    while waiting:
        one = waiting.pop()
        if isinstance(one, Grouping):
            waiting.append(one.element)
        elif isinstance(one, BooleanClauseList) and one.operator is operators.and_:
            waiting += one.clauses
        elif _looks_up(one) and id(one.right) not in found:
            found[id(one.right)] = one.left
        elif (in_tokens := looked_up(one)) is not None and id(in_tokens[0]) not in found:
            found[id(in_tokens[0])] = in_tokens[1]
        else:
            others.append(one)
    where = {id(one) for one in root._where_criteria}
    others += [one for one in root.get_children() if id(one) not in where]
    for parameter in _parameters_in(others):
        found.pop(id(parameter), None)
    return found


def _looks_up(condition: Any) -> bool:
    return (
        isinstance(condition, BinaryExpression)
        and condition.operator is operators.in_op
        and isinstance(condition.right, BindParameter)
        and isinstance(condition.right.callable, Sought)
    )


def _parameters_in(roots: Iterable[Any]) -> Iterator[Any]:
    seen: set[int] = set()
    waiting = list(roots)
    while waiting:
        element = waiting.pop()
        if id(element) in seen:
            continue
        seen.add(id(element))
        if isinstance(element, BindParameter):
            yield element
        waiting += element.get_children()


def _positions(compiled: Any, tags: Any, index: IndexedColumn) -> tuple[int, ...]:
    """The positions of the values of which a column has the tags; empty if a value is not selected."""
    there = trace(tags)
    if not there or any(hash(base) != hash(index.column) for _, base in there):
        return ()
    entries = compiled._result_columns
    columns = [output_column(entry) if format_in(entry.type) else None for entry in entries]
    origins = origins_of(compiled, columns)
    found = []
    for source in index.sources:
        wanted = [(way, hash(source.column)) for way, _ in there]
        at = next((at for at, one in enumerate(origins) if one and _named(one) == wanted), None)
        if at is None:
            return ()
        found.append(at)
    return tuple(found)


def _named(origins: Sequence[Origin]) -> list[tuple[Any, int]]:
    return [(way, hash(base)) for way, base in origins]
