"""Which rows a statement writes, by primary key: the tags of their texts are stored by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.selectable import AliasedReturnsRows

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.assignments import literal_value
from sqlalchemy_envelope.orm.writing.defaults import client_default, has_python_default
from sqlalchemy_envelope.orm.writing.forms import conditions, equalities
from sqlalchemy_envelope.orm.writing.tokens.upserts import TokenUpsert

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Key = tuple[Any, ...]
    Row = dict[str, Any]


def targets_of(rows: WrittenRows) -> InsertedRows | UpdatedRows:
    """The rows that a statement writes."""
    return InsertedRows(rows) if rows.inserts else UpdatedRows(rows)


class InsertedRows:
    """The rows of an INSERT.

    Attributes:
        are_new: whether none of them was there before.
    """

    __slots__ = ("_defaults", "_fills", "_indexed", "_keys", "_rows", "_upsert", "are_new")

    def __init__(self, rows: WrittenRows) -> None:
        statement: Any = rows.statement
        self._rows = rows
        self._upsert = TokenUpsert(rows) if rows.upserts or statement._prefixes else None
        self._keys: list[Key | None] = []
        self._defaults = [one for one in rows.plan.table.primary_key if has_python_default(one)]
        # Of these statements SQLAlchemy does not tell the keys that it makes.
        self._fills = bool(statement._multi_values or statement._returning)
        self._indexed: Sequence[str] = ()
        self.are_new = self._upsert is None

    def add(self, rows: Sequence[Row]) -> None:
        """Note rows of the statement."""
        for row in rows:
            if self._fills or self._upsert is not None:
                for column in self._defaults:
                    if self._rows.value(column.key, row) is None:
                        row[column.key] = client_default(column)
            self._keys.append(self._key(row))
            if self._upsert is not None:
                self._upsert.add(row)

    def _key(self, row: Row) -> Key | None:
        key = tuple(literal_value(self._rows.value(c.key, row)) for c in self._rows.plan.table.primary_key)
        return None if any(one is None or isinstance(one, ClauseElement) for one in key) else key

    def told_by(self, statement: Any, indexed: Sequence[str]) -> Any:
        """The statement, so that its result tells which rows it wrote, if nothing else does.

        Raises:
            StatementRefusedError: nothing would tell.
        """
        is_known = None not in self._keys
        if self._upsert is not None:
            self._upsert.check()
            self._indexed = indexed
            return statement
        if is_known or statement._return_defaults:
            return statement
        if self._fills:
            raise self._untold()
        is_one = len(self._keys) == 1
        if is_one or len(self._defaults) == len(self._rows.plan.table.primary_key):
            return statement
        if not self._rows.connection.dialect.insert_executemany_returning_sort_by_parameter_order:
            raise self._untold()
        return statement.return_defaults(*self._rows.plan.table.primary_key, sort_by_parameter_order=True)

    def _untold(self) -> StatementRefusedError:
        table = self._rows.plan.table
        names = " and ".join(column.key for column in table.primary_key)
        return StatementRefusedError(
            f"{table.name} has a token index, and this INSERT does not tell which {names} its rows get; "
            f"nothing was sent. Give each row its {names}, or add objects: `session.add_all([...])`."
        )

    def written(self, result: Any) -> dict[Key, int]:
        """The rows that were written, each with its place in the statement.

        Raises:
            StatementRefusedError: the database does not tell.
        """
        if self._upsert is not None:
            return self._upsert.find(self._indexed)
        keys: Sequence[Any] = self._keys
        if None in keys:
            keys = result.context.inserted_primary_key_rows or ()
            if len(keys) != len(self._keys) or any(key is None or None in key for key in keys):
                raise self._untold()
        return {tuple(key): at for at, key in enumerate(keys)}


class UpdatedRows:
    """The rows of an UPDATE."""

    are_new = False

    __slots__ = ("_by_key", "_count", "_is_exact", "_is_told", "_rows", "_where")

    def __init__(self, rows: WrittenRows) -> None:
        self._rows = rows
        self._where: list[Row] = []
        self._by_key: dict[Key, int] = {}
        self._is_told = False
        self._is_exact = False

    def add(self, rows: Sequence[Row]) -> None:
        """Note rows of the statement, without what is encrypted in them."""
        hidden = {self._rows.parameter(key) for key in self._rows.plan.keys}
        self._where += [{name: one for name, one in row.items() if name not in hidden} for row in rows]

    def told_by(self, statement: Any, indexed: Sequence[str]) -> Any:
        """The statement as it is. Its rows are looked for before it is sent, if it does not name them by
        primary key.

        Raises:
            StatementRefusedError: nothing would tell.
        """
        key = list(self._rows.plan.table.primary_key)
        named = [dict(equalities(statement, self._rows.plan.table, row)) for row in self._where]
        keys = [tuple(one.get(column) for column in key) for one in named]
        self._is_exact = len(list(conditions(statement))) == len(key)
        # A flush checks by itself whether a row has the version that it expects.
        self._is_told = all(None not in one for one in keys) and (
            self._is_exact or self._rows.notes is not None
        )
        if not self._is_told:
            keys_at = [
                (one, at) for at, row in enumerate(self._where) for one in self._matching(statement, row)
            ]
        else:
            keys_at = [(one, at) for at, one in enumerate(keys)]
        self._by_key = {self._key_after(one, self._where[at]): at for one, at in keys_at}
        return statement

    def _key_after(self, key: Key, row: Row) -> Key:
        """The primary key that a row has after the UPDATE."""
        after = []
        for column, before in zip(self._rows.plan.table.primary_key, key, strict=True):
            name = self._rows.parameter(column.key)
            clause = self._rows.assignments.clauses.get(column.key)
            if name not in row and clause is None:
                after.append(before)
                continue
            value = literal_value(row.get(name, clause))
            if isinstance(value, ClauseElement):
                raise StatementRefusedError(
                    f"An UPDATE computes {self._rows.plan.table.name}.{column.key}, and writes a text with a "
                    "token index. Send it as two statements."
                )
            after.append(value)
        return tuple(after)

    def _matching(self, statement: Any, row: Row) -> list[Key]:
        """The rows that the WHERE of the UPDATE takes, locked until the transaction ends."""
        columns = self._columns(statement)
        query: Any = select(*columns).where(*statement._where_criteria).with_for_update(of=columns[0].table)
        query = query.options(*statement._with_options)
        found = self._rows.connection.execute(query, row)
        return list({tuple(one) for one in found})

    def _columns(self, statement: Any) -> list[Any]:
        """The primary key, as the UPDATE names its table: by an alias, or by a mapped class, which may have
        conditions of its own."""
        table = self._rows.plan.table
        if isinstance(statement.table, AliasedReturnsRows):
            return [statement.table.c[column.key] for column in table.primary_key]
        subject = statement.table._annotations.get("parententity")
        if subject is None:
            return list(table.primary_key)
        mapper = subject.mapper
        return [
            getattr(subject.entity, mapper.get_property_by_column(column).key).__clause_element__()
            for column in table.primary_key
        ]

    def written(self, result: Any) -> dict[Key, int]:
        """The rows that were written, each with its place in the statement.

        Raises:
            StatementRefusedError: the statement wrote other rows than were found before.
        """
        count = self._counted(result)
        if self._is_told:
            if count == len(self._where):
                return self._by_key
            return self._there() if self._is_exact else {}
        if count not in (None, len(self._by_key)):
            raise StatementRefusedError(
                f"An UPDATE of {self._rows.plan.table.name}, which has a token index, wrote other rows than "
                "its WHERE found a moment before: another transaction wrote there. Run the transaction again."
            )
        return self._by_key

    def _counted(self, result: Any) -> int | None:
        """How many rows the database says that the UPDATE wrote; None if it does not say."""
        connection = self._rows.connection
        if connection.dialect.name == "sqlite" and result.returns_rows:
            return None  # the driver counts them as they are fetched
        return None if result.rowcount < 0 else int(result.rowcount)

    def _there(self) -> dict[Key, int]:
        """Those of the rows that are there."""
        key, found = list(self._rows.plan.table.primary_key), set()
        for keys in chunks(list(self._by_key)):
            rows = self._rows.connection.execute(select(*key).where(among(key, keys)))
            found |= {tuple(row) for row in rows}
        return {one: at for one, at in self._by_key.items() if one in found}
