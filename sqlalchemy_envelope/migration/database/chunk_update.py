"""An UPDATE for the rows of a chunk: each row changes only if it is still as it was read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, cast, func, update
from sqlalchemy import column as bare_column
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TEXT

from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.engine import Dialect


@dataclass(frozen=True)
class ChunkUpdate:
    """An UPDATE of a column, for rows of a key, the value that was read, and the value to store.

    Attributes:
        keys: the columns by which a row is found, each with whether it may be NULL.
        still: the condition that a row is still as it was read.
        kept: columns that are set to themselves.
    """

    table: Any
    target: Any
    target_type: Any
    keys: Sequence[tuple[Any, bool]]
    still: Callable[[Any], ColumnElement[bool]]
    seen_type: Any
    kept: Mapping[str, Any]

    @property
    def _names(self) -> list[str]:
        return [f"key_{number}" for number in range(len(self.keys))]

    def _where(self, sent: Any) -> list[ColumnElement[bool]]:
        return [
            key.is_not_distinct_from(sent[name]) if may_be_null else key == sent[name]
            for (key, may_be_null), name in zip(self.keys, self._names, strict=True)
        ]

    def run(self, connection: Connection, rows: Sequence[Any]) -> int:
        """Update these rows, and return how many were still as they were read."""
        dialect, names = connection.dialect, self._names
        sent = {
            name: bindparam(name, type_=key.type) for name, (key, _) in zip(names, self.keys, strict=True)
        }
        statement = (
            update(self.table)
            .where(*self._where(sent), self.still(bindparam("seen", type_=self.seen_type)))
            .values({self.target.name: bindparam("made", type_=self.target_type), **self.kept})
        )
        # The values were encrypted here, and the tags are made with them.
        statement = mark(statement)
        if dialect.paramstyle not in ("qmark", "format") or self._sends_expressions():
            parameters = [
                {**dict(zip(names, key, strict=True)), "seen": seen, "made": made} for key, seen, made in rows
            ]
            return connection.execute(statement, parameters).rowcount
        # Convert parameters by column: Connection.execute converts by row, and that takes longer than the
        # database does.
        types = [*(key.type for key, _ in self.keys), self.seen_type, self.target_type]
        flat = zip(*((*key, seen, made) for key, seen, made in rows), strict=True)
        bound = {
            name: _bound(dialect, type_, values)
            for name, type_, values in zip([*names, "seen", "made"], types, flat, strict=True)
        }
        compiled: Any = statement.compile(dialect=dialect)
        by_place = zip(*(bound[name] for name in compiled.positiontup), strict=True)
        return connection.exec_driver_sql(str(compiled), list(by_place)).rowcount

    def _sends_expressions(self) -> bool:
        """Whether the database has to call a function on the values to store."""
        return bool(self.target_type._has_bind_expression)

    def run_as_document(self, connection: Connection, rows: Sequence[Any]) -> int:
        """Update the whole chunk in a single statement: PostgreSQL joins the table with a JSON document.

        A driver takes less time for a document than for arrays, or for a statement for each row.
        """
        dialect, names = connection.dialect, self._names
        types = dict(zip(names, (key.type for key, _ in self.keys), strict=True))
        sent = (
            func.json_to_recordset(cast(bindparam("sent", type_=TEXT()), postgresql.JSON()))
            .table_valued(
                *(
                    bare_column(name, type_)
                    for name, type_ in (types | {"seen": self.seen_type, "made": postgresql.BYTEA()}).items()
                ),
                name="sent",
            )
            .render_derived(with_types=True)
        )
        found: Any = sent.c
        statement = update(self.table).where(*self._where(found), self.still(found.seen))
        # The values were encrypted here. The statement hook could not tell that of a document.
        statement = mark(statement.values({self.target.name: found.made}))
        processors = [key.type.dialect_impl(dialect).bind_processor(dialect) for key, _ in self.keys]
        process = [one or _as_it_is for one in processors]
        document = [
            {
                **{name: _in_json(do(part)) for name, do, part in zip(names, process, key, strict=True)},
                "seen": _in_json(seen),
                "made": None if made is None else "\\x" + made.hex(),
            }
            for key, seen, made in rows
        ]
        return connection.execute(statement, {"sent": json.dumps(document)}).rowcount


def _bound(dialect: Dialect, type_: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The values of a parameter as the driver takes them."""
    process = type_.dialect_impl(dialect).bind_processor(dialect)
    return values if process is None else list(map(process, values))


def _as_it_is(value: Any) -> Any:
    return value


def _in_json(value: Any) -> Any:
    """A key or an exact value as PostgreSQL reads it from JSON."""
    # Drivers wrap bytes: psycopg's has them as `obj`, psycopg2's as `adapted`.
    if not isinstance(value, memoryview):
        value = getattr(value, "obj", getattr(value, "adapted", value))
    if isinstance(value, (str, int)) or value is None:
        return value
    return "\\x" + value.hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)
