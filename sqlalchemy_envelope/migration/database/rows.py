"""The statements that a migration sends to its table: read a chunk, write rows that are still as they were
read, count the rows that are left.

The statements use bare columns, not the mapped columns: the application's own hooks must not encrypt or open
anything here, or note it as a change.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    LargeBinary,
    String,
    and_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    not_,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import BINARY, CHAR, NCHAR, TEXT, Enum, NullType, TypeDecorator

from sqlalchemy_envelope.migration.database.chunk_update import ChunkUpdate
from sqlalchemy_envelope.migration.foreign_types import check_of
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.tables.keyset import Position, beyond, up_to
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath
from sqlalchemy_envelope.orm.tables.stored_rows import RawBytes, raw
from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn


class Rows:
    """The table of a migrating column, on a database."""

    def __init__(self, column: MigratingColumn, dialect: Dialect, *, owners_checked: bool = False) -> None:
        self.column = column
        self.dialect = dialect
        self._name = dialect.name
        source = column.table
        self.table = bare_table(
            source.name,
            *(bare_column(one.name, one.type) for one in column.keys),
            bare_column(column.encrypted.name, LargeBinary()),
            *([] if column.previous is None else [bare_column(column.previous.name, NullType())]),
            *(bare_column(name, LargeBinary()) for name in tag_columns(column)),
            schema=source.schema,
        )
        self._tags = tag_columns(column)
        self.keys = [self.table.c[one.name] for one in column.keys]
        self.encrypted = self.table.c[column.encrypted.name]
        self.previous: Any = null()
        self._typed: Any = null()
        if column.previous is not None:
            name = column.previous.name
            self.previous = self.table.c[name]
            # Values of this library are handled as bytes here: `own_previous` has the keys of their owners.
            ours = isinstance(column.previous.type, EncryptedType)
            type_ = RawBytes() if ours else column.previous.type
            if column.policy != "none":  # else the type is no longer declared, and nobody reads the column
                self._typed = bare_column(name, type_, _selectable=self.table)
        self._owners_checked = owners_checked
        self.owners = [self._owner_column(one) for one in column.path.columns]

    def _owner_column(self, wanted: Any) -> Any:
        return bare_column(wanted.name, wanted.type, _selectable=self._owner_table(wanted.table))

    def _owner_table(self, table: Any) -> Any:
        if table is self.column.table:
            return self.table
        return bare_table(
            table.name, *(bare_column(one.name, one.type) for one in table.primary_key), schema=table.schema
        )

    @cached_property
    def _from(self) -> Any:
        """The table, joined with the table that names the owner if the two differ (joined inheritance)."""
        other = self.owners[0].table if self.owners else self.table
        if other is self.table:
            return self.table
        names = [one.name for one in self.column.path.columns[0].table.primary_key]
        on = and_(*(mine == other.c[name] for mine, name in zip(self.keys, names, strict=True)))
        return self.table.join(other, on)

    @cached_property
    def exact(self) -> Any:
        """The previous value as the database compares it to the byte, whatever its type and collation."""
        if self._name == "postgresql":
            # The "C" collation: a collation that ignores case would take "ada" for an unchanged "Ada".
            return self.previous if self._is_bytes else cast(self.previous, TEXT()).collate("C")
        if self._name == "sqlite":
            return self.previous
        return cast(self.previous, BINARY())

    @cached_property
    def _is_bytes(self) -> bool:
        type_: Any = self.column.from_column.type
        while isinstance(type_, TypeDecorator):
            type_ = type_.load_dialect_impl(self.dialect)
        return isinstance(type_, LargeBinary)

    @cached_property
    def exact_is_typed(self) -> bool:
        """Whether the value itself serves for the comparison, so that a single column is read, not two."""
        if self.column.previous is None:
            return True
        type_ = self._typed.type
        if self._name == "postgresql":
            # As text a CHAR(n) loses its blanks.
            others = (Enum, CHAR, NCHAR, postgresql.CITEXT)
            plain = isinstance(type_, String) and not isinstance(type_, others)
            return plain or isinstance(type_, (LargeBinary, RawBytes))
        return self._name == "sqlite" and isinstance(type_, String) and not isinstance(type_, Enum)

    @cached_property
    def seen(self) -> Any:
        """The expression that shows whether a row is still as it was read: the exact previous value. On
        PostgreSQL it is the row's version, so that no statement of ours sends plaintext, which a server's log
        may show. The exception is another library's ciphertext that `check_of` checks against the stored
        value."""
        if self._by_version:
            return cast(bare_column("xmin", _selectable=self.table), TEXT())
        return self.exact

    @cached_property
    def _by_version(self) -> bool:
        previous = self.column.previous
        return self._name == "postgresql" and (previous is None or check_of(previous.type) is None)

    @cached_property
    def _seen_is_typed(self) -> bool:
        return self.column.previous is None or (not self._by_version and self.exact_is_typed)

    @cached_property
    def _seen_type(self) -> Any:
        if self._name == "postgresql":
            return postgresql.BYTEA() if self._is_bytes and not self._by_version else TEXT()
        return NullType() if self._name == "sqlite" else mysql.VARBINARY()

    def _is_as_read(self, value: Any) -> ColumnElement[bool]:
        sqlite = self._name == "sqlite"
        same: ColumnElement[bool] = (
            self.previous.collate("BINARY").op("IS")(value) if sqlite else self.seen == value
        )
        return same

    @cached_property
    def owned(self) -> ColumnElement[bool]:
        """The row names an owner, and the owner exists."""
        path = self.column.path
        if path.is_self or not path.columns:
            return true()
        if isinstance(path, ChosenPath):
            return self._one_chosen(path)
        named: list[ColumnElement[bool]] = [one.is_not(None) for one in self.owners]
        if not self._owners_checked and path.is_direct:
            target = self.column.path.owner_class.primary_key
            there = bare_table(
                target[0].table.name,
                *(bare_column(one.name, one.type) for one in target),
                schema=target[0].table.schema,
            ).alias("envelope_owner")
            same = (there.c[one.name] == mine for one, mine in zip(target, self.owners, strict=True))
            named.append(
                exists(select(1).select_from(there).where(*same)).correlate(self.table, self.owners[0].table)
            )
        return and_(*named)

    def _one_chosen(self, path: ChosenPath) -> ColumnElement[bool]:
        """Exactly a single alternative is set."""
        at = dict(zip(path.columns, self.owners, strict=True))
        chosen = [and_(*(at[column].is_not(None) for column in one.columns)) for one in path.alternatives]
        return or_(*(and_(one, *(not_(other) for other in chosen if other is not one)) for one in chosen))

    @cached_property
    def pending(self) -> ColumnElement[bool]:
        """The row has a previous value and no encrypted value. JSON's own null does not count as a value: it
        reads as None, which is NULL in an encrypted column."""
        alone = and_(self.previous.is_not(None), self.encrypted.is_(None))
        if self.column.previous is None or not isinstance(self.column.previous.type, JSON):
            return alone
        return and_(alone, func.trim(self.exact) != "null")

    @cached_property
    def encrypted_alone(self) -> ColumnElement[bool]:
        """The row has an encrypted value and no previous value."""
        return and_(self.previous.is_(None), self.encrypted.is_not(None))

    skip_locked = False
    """Leave out rows that another transaction has locked: set after a chunk waited for them in vain."""

    @property
    def _locked(self) -> Any:
        return self.table if self._name == "postgresql" else None

    # ------------------------------------------------------------------ reading

    def read(
        self,
        connection: Connection,
        where: ColumnElement[bool],
        after: Position | None,
        upto: Position | None,
        size: int,
    ) -> list[Any]:
        """Read a chunk in the order of the key: key, owner, previous value, `seen`, and the stored encrypted
        value."""
        query = self.selected(where, after, upto).order_by(*self.keys).limit(size)
        if self.skip_locked:
            query = query.with_for_update(
                skip_locked=True, key_share=self._name == "postgresql", of=self._locked
            )
        return list(connection.execute(query).all())

    def positions(
        self,
        connection: Connection,
        where: ColumnElement[bool],
        after: Position | None,
        upto: Position | None,
        size: int,
    ) -> list[Position]:
        """The keys of the same chunk."""
        query = select(*self.keys).select_from(self._from).where(where, *self._between(after, upto))
        return [tuple(row) for row in connection.execute(query.order_by(*self.keys).limit(size))]

    def previous_at(self, position: Position) -> Any:
        """The query for a row's previous value and its exact form."""
        exact = self._typed if self.exact_is_typed else self.exact
        pairs = zip(self.keys, position, strict=True)
        here = (key == bindparam(None, part, type_=key.type) for key, part in pairs)
        return select(self._typed.label("typed"), exact.label("exact")).select_from(self.table).where(*here)

    def selected(self, where: ColumnElement[bool], after: Position | None, upto: Position | None) -> Any:
        """The query behind `read`."""
        typed = self._typed.label("typed")
        seen = null().label("seen") if self._seen_is_typed else self.seen.label("seen")
        query = select(*self.keys, *self.owners, typed, seen, self.as_stored(self.encrypted).label("stored"))
        return query.select_from(self._from).where(where, *self._between(after, upto))

    def as_stored(self, column: Any) -> Any:
        """The bytes of a column as they are stored. SQLite may hold a text there, which its driver cannot
        read if it is no UTF-8: it comes as bytes that are no value."""
        if self._name != "sqlite":
            return raw(column)
        return raw(case((func.typeof(column) == "text", literal(b"", LargeBinary())), else_=column))

    def _between(self, after: Position | None, upto: Position | None) -> list[ColumnElement[bool]]:
        bounds = []
        if after is not None:
            bounds.append(beyond(self.keys, after, self._name))
        if upto is not None:
            bounds.append(up_to(self.keys, upto, self._name))
        return bounds

    def split(self, row: Any) -> tuple[Position, tuple[Any, ...], Any, Any, Any]:
        """Split a row of `read` into its parts."""
        count, owners = len(self.keys), len(self.owners)
        typed, seen, stored = row[count + owners :]
        return (
            tuple(row[:count]),
            tuple(row[count : count + owners]),
            typed,
            typed if self._seen_is_typed else seen,
            stored,
        )

    def count(self, connection: Connection, where: ColumnElement[bool]) -> int:
        """Count the rows for which the condition holds."""
        query = select(func.count()).select_from(self._from).where(where)
        return int(connection.execute(query).scalar_one())

    def any(self, connection: Connection, where: ColumnElement[bool]) -> bool:
        """Whether the condition holds for any row."""
        query = select(1).select_from(self._from).where(where).limit(1)
        return connection.execute(query).first() is not None

    def average_size(self, connection: Connection) -> float:
        """The average size of a value in bytes, over the first few hundred rows."""
        value: Any = self.encrypted if self.column.previous is None else self.previous
        if self._name == "postgresql":
            size = func.octet_length(cast(value, TEXT()))
        else:
            size = func.length(cast(value, LargeBinary()) if self._name == "sqlite" else value)
        some = select(size.label("size")).select_from(self.table).where(value.is_not(None)).limit(500)
        return float(connection.execute(select(func.avg(some.subquery().c.size))).scalar() or 0.0)

    def boundaries(self, connection: Connection, size: int) -> list[Position]:
        """Every `size`-th key: the bounds of ranges to work on side by side."""
        number = func.row_number().over(order_by=self.keys)
        named = [key.label(f"key_{place}") for place, key in enumerate(self.keys)]
        numbered = select(*named, number.label("place")).subquery()
        keys = [numbered.c[one.name] for one in named]
        query = select(*keys).where(numbered.c.place % size == 0).order_by(numbered.c.place)
        return [tuple(row) for row in connection.execute(query)]

    # ------------------------------------------------------------------ writing

    def write_encrypted(
        self, connection: Connection, rows: Sequence[tuple[Position, tuple[Any, ...], Any, bytes]]
    ) -> int:
        """Store ciphertexts in rows with the previous value and owner as they were read, and no encrypted
        value yet. Return the number of rows that were written."""
        # The ciphertext depends on the owner, so the owner is compared. An owner that another table names is
        # left to `verify`.
        keys = {one.name for one in self.keys}
        mine = [
            place for place, one in enumerate(self.owners) if one.table is self.table and one.name not in keys
        ]
        return self._write(
            connection,
            self.encrypted,
            LargeBinary(),
            [((*key, *(owner[place] for place in mine)), seen, made) for key, owner, seen, made in rows],
            lambda seen: and_(self.encrypted.is_(None), self._is_as_read(seen)),
            self._seen_type,
            [*self.keys, *(self.owners[place] for place in mine)],
        )

    def write_previous(self, connection: Connection, rows: Sequence[tuple[Position, bytes, Any]]) -> int:
        """Store values in previous columns that are empty, if the encrypted value is still as it was read."""
        return self._write(
            connection,
            self._typed,
            self._typed.type,
            rows,
            lambda seen: and_(self.previous.is_(None), self.encrypted == seen),
            LargeBinary(),
        )

    def replace_encrypted(self, connection: Connection, rows: Sequence[tuple[Position, bytes, bytes]]) -> int:
        """Replace stored ciphertexts that are still as they were read."""
        return self._write(
            connection,
            self.encrypted,
            LargeBinary(),
            rows,
            lambda seen: self.encrypted == seen,
            LargeBinary(),
        )

    def write_tags(
        self, connection: Connection, index: str, rows: Sequence[tuple[Position, bytes, bytes | None]]
    ) -> int:
        """Store tags in rows whose ciphertext is still as it was read.

        Args:
            index: the name of the column of tags.
            rows: the keys, ciphertexts and tags.
        """
        return self._write(
            connection,
            self.table.c[index],
            LargeBinary(),
            rows,
            lambda seen: self.encrypted == seen,
            LargeBinary(),
        )

    def put_right(
        self, connection: Connection, key: Position, exact: Any, stored: bytes, made: bytes | None
    ) -> int:
        """Repair a row that is still as it was read. With a new ciphertext, store it and empty the previous
        column. Without a new ciphertext, empty the encrypted column."""
        values: dict[str, Any] = {self.encrypted.name: made}
        if made is not None:
            values[self.previous.name] = null()
        values |= dict.fromkeys(self._tags, null())  # `write_tags` makes them anew
        seen = bindparam(None, exact, type_=self._seen_type)
        mine = [
            one == bindparam(None, part, type_=one.type) for one, part in zip(self.keys, key, strict=True)
        ]
        statement = update(self.table).where(*mine, self._is_as_read(seen), self.encrypted == stored)
        return connection.execute(mark(statement.values({**values, **self._kept()}))).rowcount

    def _write(
        self,
        connection: Connection,
        target: Any,
        target_type: Any,
        rows: Sequence[Any],
        still: Any,
        seen_type: Any,
        keys: Sequence[Any] = (),
    ) -> int:
        if not rows:
            return 0
        keys = [(key, self._may_be_null(key)) for key in keys or self.keys]
        change = ChunkUpdate(self.table, target, target_type, keys, still, seen_type, self._kept())
        is_ours = target is self.encrypted or target.name in self._tags
        as_document = self._name == "postgresql" and is_ours
        return change.run_as_document(connection, rows) if as_document else change.run(connection, rows)

    def _may_be_null(self, key: Any) -> bool:
        """Whether a key is a column of alternative owners: only the chosen owner's columns are set."""
        return isinstance(self.column.path, ChosenPath) and any(key is one for one in self.owners)

    def _kept(self) -> dict[str, Any]:
        """Assignments that keep MySQL's columns with ON UPDATE as they are."""
        if self._name not in ("mysql", "mariadb"):
            return {}
        return {name: bare_column(name) for name in self.self_updating}

    self_updating: Sequence[str] = ()
    """Names of columns with ON UPDATE CURRENT_TIMESTAMP, set by a caller that has looked for them."""


def tag_columns(column: MigratingColumn) -> list[str]:
    """The names of the columns of tags of a column's values."""
    tags = [one.column for one in column.indexes]
    guards = [getattr(one, "guard", None) for one in column.indexes]
    return [one.name for one in (*tags, *guards) if one is not None]
