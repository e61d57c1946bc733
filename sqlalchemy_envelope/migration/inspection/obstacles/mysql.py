"""Obstacles on MySQL and MariaDB, found in `information_schema`, mostly in the text of definitions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, text

from sqlalchemy_envelope.migration.inspection.findings import (
    Finding,
    check_over,
    index_over,
    mentions,
    ours,
    rows,
    trigger_over,
    unique_over,
    view_over,
)

if TYPE_CHECKING:
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn

OVERHEAD = 45
"""The bytes that a ciphertext is longer than its plaintext: docs/reference/wire-format.md, section 6."""
_HERE = "table_schema = COALESCE(:schema, database()) AND table_name = :table"
_COLUMNS = f"""
SELECT column_name AS name, data_type AS type, column_type AS full_type, character_maximum_length AS letters,
       character_octet_length AS octets, character_set_name AS charset, extra AS extra,
       generation_expression AS expression
FROM information_schema.columns WHERE {_HERE}
"""  # noqa: S608 - a constant
_INDEXES = f"""
SELECT index_name AS name, MIN(non_unique) AS non_unique, MIN(index_type) AS type
FROM information_schema.statistics WHERE {_HERE} AND column_name = :name AND index_name <> 'PRIMARY'
GROUP BY index_name
"""  # noqa: S608
_EXPRESSIONS = f"""
SELECT index_name AS name, MIN(non_unique) AS non_unique, GROUP_CONCAT(expression) AS expression
FROM information_schema.statistics WHERE {_HERE} AND expression IS NOT NULL GROUP BY index_name
"""  # noqa: S608
_CHECKS_MARIADB = """
SELECT constraint_name AS name, check_clause AS clause FROM information_schema.check_constraints
WHERE constraint_schema = COALESCE(:schema, database()) AND table_name = :table
"""
_CHECKS_MYSQL = """
SELECT c.constraint_name AS name, c.check_clause AS clause FROM information_schema.check_constraints c
JOIN information_schema.table_constraints t
  ON t.constraint_schema = c.constraint_schema AND t.constraint_name = c.constraint_name
WHERE t.table_schema = COALESCE(:schema, database()) AND t.table_name = :table AND t.constraint_type = 'CHECK'
"""
_TRIGGERS = """
SELECT trigger_name AS name, event_object_table AS on_table, event_manipulation AS event,
       action_statement AS body
FROM information_schema.triggers WHERE trigger_schema = COALESCE(:schema, database())
"""
_VIEWS = """
SELECT table_name AS name, view_definition AS definition FROM information_schema.views
WHERE table_schema = COALESCE(:schema, database())
"""
_ROUTINES = """
SELECT routine_name AS name, routine_definition AS body FROM information_schema.routines
WHERE routine_schema = COALESCE(:schema, database())
UNION ALL
SELECT event_name, event_definition FROM information_schema.events
WHERE event_schema = COALESCE(:schema, database())
"""
_TABLE = f"SELECT engine AS engine, table_rows AS row_count FROM information_schema.tables WHERE {_HERE}"  # noqa: S608
_PARTITIONS = f"""
SELECT CONCAT_WS(' ', partition_expression, subpartition_expression) AS expression
FROM information_schema.partitions WHERE {_HERE} AND partition_name IS NOT NULL LIMIT 1
"""  # noqa: S608
# Bytes that a binary column holds; VARBINARY and BINARY say it themselves.
_BLOBS = {"TINYBLOB": 255, "BLOB": 65_535, "MEDIUMBLOB": 16_777_215, "LONGBLOB": 4_294_967_295}
# Bytes that a letter of a character set can take in UTF-8: the encryption encodes text as UTF-8.
_ONE_BYTE = ("ascii", "binary")
_FOUR_BYTES = ("utf8mb4", "utf16", "utf16le", "utf32", "gb18030")


def find(connection: Connection, column: MigratingColumn) -> list[Finding]:
    """All findings that come from the catalogs of MySQL and MariaDB alone."""
    return _Search(connection, column).all()


class _Search:
    def __init__(self, connection: Connection, column: MigratingColumn) -> None:
        self._connection, self._column = connection, column
        self._mariadb = bool(getattr(connection.dialect, "is_mariadb", False))
        self._table, self._name = column.table.name, column.from_column.name
        self._parameters = {"schema": column.table.schema, "table": self._table, "name": self._name}
        self._columns = {one.name: one for one in self._rows(_COLUMNS)}

    def all(self) -> list[Finding]:
        return [
            *self._indexes(),
            *self._checks(),
            *self._triggers(),
            *self._views(),
            *self._computed(),
            *self._size_of_column(),
            *self._settings(),
            *self._table_itself(),
        ]

    def _rows(self, sql: str) -> list[Row[Any]]:
        statement = text(sql)
        named = statement.compile().params
        return list(
            self._connection.execute(statement, {name: self._parameters[name] for name in named}).all()
        )

    def _indexes(self) -> list[Finding]:
        found = []
        for one in self._rows(_INDEXES):
            if one.type == "FULLTEXT":
                found.append(index_over(one.name, "full-text-index", "It finds rows by words of the value"))
            else:
                found.append(
                    index_over(one.name) if one.non_unique else unique_over(one.name, "unique-index")
                )
        if not self._mariadb:
            for one in self._rows(_EXPRESSIONS):
                if not mentions(one.expression, self._name):
                    continue
                what = "It finds rows by an expression over the value"
                if one.non_unique:
                    found.append(index_over(one.name, "expression-index", what))
                else:
                    found.append(unique_over(one.name, "unique-index"))
        return found

    def _checks(self) -> list[Finding]:
        # MariaDB checks that a JSON column holds JSON; that check is dropped with the column.
        json = re.compile(rf"json_valid\(`?{re.escape(self._name)}`?\)", re.IGNORECASE)
        return [
            check_over(one.name, one.clause)
            for one in self._rows(_CHECKS_MARIADB if self._mariadb else _CHECKS_MYSQL)
            if mentions(one.clause, self._name) and not json.fullmatch(one.clause.strip())
        ]

    def _triggers(self) -> list[Finding]:
        found = []
        for one in self._rows(_TRIGGERS):
            if ours(one.name):
                continue
            here = one.on_table == self._table
            reads = mentions(one.body, self._name) and (here or mentions(one.body, self._table))
            if reads or (here and one.event == "UPDATE"):
                found.append(trigger_over(one.name, reads=reads))
        return found

    def _views(self) -> list[Finding]:
        found = [
            view_over(one.name, drop_fails=False)
            for one in self._rows(_VIEWS)
            if mentions(one.definition, self._table) and mentions(one.definition, self._name)
        ]
        message = (
            "This routine or event mentions the table and the column: look whether it needs the plaintext."
        )
        found += [
            Finding("routine", "note", one.name, message)
            for one in self._rows(_ROUTINES)
            if mentions(one.body, self._table) and mentions(one.body, self._name)
        ]
        return found

    def _computed(self) -> list[Finding]:
        found = []
        for one in self._columns.values():
            if one.name != self._name and mentions(one.expression, self._name):
                message = (
                    "The database computes this column from the previous one: it becomes NULL with the "
                    "policy 'read', and a stored one holds plaintext. Compute it in Python, and drop it "
                    "before `contract`, which fails else."
                )
                found.append(Finding("generated-column", "breaks", one.name, message))
            if "on update" in (one.extra or "").lower():
                message = (
                    "ON UPDATE CURRENT_TIMESTAMP: every row that is backfilled gets the present time here. "
                    "If the time matters, take that clause away for as long as the backfill runs."
                )
                found.append(Finding("on-update-timestamp", "breaks", one.name, message))
        return found

    def _size_of_column(self) -> list[Finding]:
        previous, encrypted = self._columns[self._name], self._columns.get(self._column.encrypted.name)
        kind, size = self._capacity(encrypted)
        needed = _bytes_of(previous)
        if size is None or needed is None or needed + OVERHEAD <= size:
            return []
        message = (
            f"{kind} holds {size:,} bytes; a value of the previous column ({previous.full_type}) can need "
            f"{needed + OVERHEAD:,} encrypted ({needed:,} + {OVERHEAD}). "
        )
        if kind == "BLOB" and previous.type in ("text", "mediumtext", "longtext", "json"):
            message += (
                f"If a value may be longer than {size - OVERHEAD:,} bytes, make it a MEDIUMBLOB or LONGBLOB."
            )
            return [Finding("column-too-small", "breaks", self._column.encrypted.name, message)]
        message += (
            "Make it larger first: what does not fit is refused in strict mode, and cut off without it."
        )
        return [Finding("column-too-small", "stops", self._column.encrypted.name, message)]

    def _capacity(self, encrypted: Row[Any] | None) -> tuple[str, int | None]:
        """The binary type of the encrypted column, as it is or will be, and the bytes that it holds."""
        if encrypted is not None:
            kind = str(encrypted.type).upper()
            return (
                (kind, _BLOBS[kind])
                if kind in _BLOBS
                else (str(encrypted.full_type).upper(), encrypted.octets)
            )
        kind = self._column.encrypted.type.compile(self._connection.dialect).upper()
        declared = re.search(r"\((\d+)\)", kind)
        return kind, int(declared[1]) if declared else _BLOBS.get(kind)

    def _settings(self) -> list[Finding]:
        found = []
        mode = str(self._connection.exec_driver_sql("SELECT @@SESSION.sql_mode").scalar() or "")
        if "STRICT_TRANS_TABLES" not in mode and "STRICT_ALL_TABLES" not in mode:
            message = (
                "The connection is not in strict mode: a ciphertext that does not fit is cut off, without "
                "an error, and is lost. `SET GLOBAL sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')` "
                "first."
            )
            found.append(Finding("non-strict-sql-mode", "stops", mode or "sql_mode is empty", message))
        level = self._isolation()
        if level in ("REPEATABLE-READ", "SERIALIZABLE"):
            message = (
                f"Transactions begin with {level}: an UPDATE by ranges also locks the gaps between rows, and "
                "others' inserts wait. The migration keeps its transactions short; `READ COMMITTED` for its "
                "engine (`isolation_level=`) avoids the wait."
            )
            found.append(Finding("isolation-level", "note", "this engine", message))
        return found

    def _isolation(self) -> str:
        # The session's setting, not that of the present transaction. The variable's name differs.
        for row in self._connection.exec_driver_sql(
            "SHOW SESSION VARIABLES WHERE Variable_name IN ('tx_isolation', 'transaction_isolation')"
        ):
            return str(row[1]).upper()
        return ""

    def _table_itself(self) -> list[Finding]:
        table = self._rows(_TABLE)[0]
        found = [rows(self._table, None if table.row_count is None else int(table.row_count))]
        if table.engine not in ("InnoDB", "XPAND", "ROCKSDB", "ndbcluster"):
            message = (
                f"The storage engine {table.engine} has no transactions: a chunk and its checkpoint cannot "
                "be written together. `ALTER TABLE ... ENGINE=InnoDB` first."
            )
            found.append(Finding("storage-engine", "stops", self._table, message))
        for one in self._rows(_PARTITIONS):
            if mentions(one.expression, self._name):
                message = "Rows are divided among partitions by the column: it cannot be dropped."
                found.append(Finding("partition-key", "stops", self._table, message))
            else:
                message = "Partitioned: `OPTIMIZE TABLE` for the clean-up rewrites all partitions."
                found.append(Finding("partitioned", "note", self._table, message))
        return found


def _bytes_of(column: Row[Any]) -> int | None:
    """The most bytes that a value takes in UTF-8; None if its type does not tell."""
    if column.letters is None or column.octets is None:
        return None
    if column.charset is None or column.charset in _ONE_BYTE:
        return int(column.octets)
    each = 4 if column.charset in _FOUR_BYTES else 3
    if column.type in ("char", "varchar"):
        return int(column.letters) * each
    # A TEXT is limited in bytes. A letter of a single byte there may take three bytes in UTF-8.
    return int(column.octets) * (1 if column.charset.startswith("utf8") else 3)
