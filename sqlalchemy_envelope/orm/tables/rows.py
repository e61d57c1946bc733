"""Statements on the tables of keys and grants, in the caller's transaction, and the parts of them."""

from __future__ import annotations

import json
import uuid
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Text, bindparam, cast, func, select, tuple_, update
from sqlalchemy import column as bare_column
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import TamperedKeyError
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.missing_tables import missing_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy import Dialect, Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.row_seals import RowSeals

    PrimaryKey = tuple[Any, ...]

CHUNK = 4000
"""Most values of one `IN`: every supported database takes so many parameters."""
_MANY = 50
"""PostgreSQL's drivers take longer for more parameters than this than for a document."""


class Rows:
    """Statements on the tables of one class, through the session's own connection."""

    def __init__(self, session: Session, mapper: Any, seals: RowSeals) -> None:
        self._session = session
        self._mapper = mapper
        self._seals = seals

    @cached_property
    def _realm(self) -> str:
        """The name of these tables' database, for row seals."""
        return self._seals.realm_of(bind_of(self._session, self._mapper).engine)

    def _execute(self, statement: Any, *rows: Any, locks: bool = False) -> Any:
        bind = bind_for(self._session, self._mapper, statement, locks=locks)
        # No autoflush: values may be waiting for the very key that is being unlocked.
        try:
            with self._session.no_autoflush:
                return self._session.execute(statement, *rows, bind_arguments=bind)
        except DBAPIError as error:
            missing = missing_tables(error, statement)
            if missing is None:
                raise
            raise missing from error.orig

    def _rows(self, query: Any, *values: Any, locks: bool = False) -> Sequence[Any]:
        result = self._execute(query, *values, locks=locks)
        try:
            rows: Sequence[Any] = result.all()
            return rows
        except (TypeError, ValueError, AttributeError):
            # SQLite stores anything in any column: what SQLAlchemy's own types choke on comes here.
            pass
        except DBAPIError as error:
            if "Could not decode to UTF-8" not in str(error.orig):
                raise
            # Of text that is none, sqlite3 shows the bytes. Raised below, the error does not lead to them.
        raise TamperedKeyError("A stored key or slot holds what its columns cannot hold.")

    def _free(self, column: Any, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Those of these rows that are there and no other transaction holds: they are this one's from now on.
        Where the database cannot pass over the others, or locks the whole of itself to write, all of them."""
        if not ids or not skips_locked(self.dialect):
            return set(ids)
        found: set[uuid.UUID] = set()
        for some in chunks(ids):
            query, values = select(column).where(column.in_(some)), []
            if len(some) > _MANY and self.dialect.name == "postgresql":
                sent = _document([column])
                query = select(column).join(sent, sent.c.value_0 == column)
                values = [{"sent": _in_json(["value_0"], [(one,) for one in some])}]
            # As an UPDATE locks that leaves the key alone: whoever refers to the row is not in the way.
            query = query.with_for_update(of=column.table, skip_locked=True, key_share=True)
            found.update(row[0] for row in self._rows(query, *values, locks=True))
        return found

    def update_each(
        self,
        table: Table,
        still: Sequence[Any],
        targets: Sequence[Any],
        rows: Sequence[tuple[Any, ...]],
        kept: Sequence[Any] = (),
    ) -> int:
        """Write rows, each if it is still as it was read; how many were.

        Args:
            still: the columns that find a row, with the values that were read in it.
            targets: the columns that are written.
            rows: for each row the values of `still`, and then the new values of `targets`.
            kept: columns that stay as they are, although they note each change.
        """
        if not rows:
            return 0
        columns = [*still, *targets]
        names = [f"value_{number}" for number in range(len(columns))]
        in_one = self.dialect.name == "postgresql"
        if in_one:
            values = list(_document(columns).c)
        else:
            values = [bindparam(name, type_=one.type) for name, one in zip(names, columns, strict=True)]
        found = [column == value for column, value in zip(still, values, strict=False)]
        changed = dict(zip(targets, values[len(still) :], strict=True)) | {column: column for column in kept}
        statement = update(table).where(*found).values(changed)
        if in_one:
            return int(self._execute(statement, {"sent": _in_json(names, rows)}).rowcount)
        return int(self._execute(statement, [dict(zip(names, row, strict=True)) for row in rows]).rowcount)

    @property
    def dialect(self) -> Dialect:
        """The dialect of the database that these tables are in."""
        return self._session.connection(bind_arguments=bind_for(self._session, self._mapper)).dialect


def _document(columns: Sequence[Any]) -> Any:
    """Rows of these columns that come as a JSON document: PostgreSQL takes longer for a statement than for a
    row, and its drivers longer for arrays."""
    named = [bare_column(f"value_{number}", one.type) for number, one in enumerate(columns)]
    document = cast(bindparam("sent", type_=Text()), JSON())
    rows = func.json_to_recordset(document).table_valued(*named, name="sent")
    return rows.render_derived(with_types=True)


def _in_json(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> str:
    return json.dumps([dict(zip(names, map(_json_value, row), strict=True)) for row in rows])


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    return value if value is None or isinstance(value, (str, int)) else str(value)


def shows_others_when_locked(dialect: Dialect) -> bool:
    """Whether a locking read alone shows what others committed after the transaction's first read."""
    return dialect.name in ("mysql", "mariadb")


def insert_unless_there(dialect: str, table: Table, id_column: Any) -> Any:
    """An INSERT that leaves out what a unique constraint stands against, and nothing else."""
    # The engine's own dialect, imported already: another one takes a quarter of a second to import.
    dialects = import_module(f"sqlalchemy.dialects.{'mysql' if dialect == 'mariadb' else dialect}")
    statement = dialects.insert(table)
    if dialect in ("mysql", "mariadb"):
        # Not INSERT IGNORE, which passes over a missing owner and cuts off what is too long.
        return statement.on_duplicate_key_update({id_column.key: id_column})
    return statement.on_conflict_do_nothing()


def skips_locked(dialect: Dialect) -> bool:
    """Whether a locking read can pass over the rows that others hold."""
    if dialect.name in ("mysql", "mariadb"):
        version = dialect.server_version_info or ()
        return version >= ((10, 6) if getattr(dialect, "is_mariadb", False) else (8, 0, 1))
    return dialect.name == "postgresql"


def chunks(values: Sequence[Any], size: int = CHUNK) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def matches(columns: Sequence[Any], keys: Sequence[PrimaryKey]) -> Any:
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    # Not one condition for each: SQLite takes some hundreds of those.
    return tuple_(*columns).in_([tuple(key) for key in keys])


def made_once(selects: dict[Any, Any], name: object, make: Callable[[], Any]) -> Any:
    """A statement that was made before, if it was: to make one takes as long as sending it."""
    found = selects.get(name)
    if found is None:
        found = selects[name] = make()
    return found


def given(columns: Sequence[Any], name: str) -> Any:
    """As `matches`, of a statement that is made once: the keys come with it, as `values_of` makes them."""
    keys: Any = bindparam(name, expanding=True)
    return columns[0].in_(keys) if len(columns) == 1 else tuple_(*columns).in_(keys)


def values_of(columns: Sequence[Any], keys: Iterable[PrimaryKey]) -> list[Any]:
    """What `given` takes for these keys."""
    return [key[0] for key in keys] if len(columns) == 1 else [tuple(key) for key in keys]


def pairs(some: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    """Conditions that these columns are equal, two by two."""
    return [a == b for a, b in zip(some, others, strict=True)]
