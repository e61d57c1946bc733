"""Obstacles on SQLite, found in its schema table and its pragmas."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

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
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ReflectedColumn

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn

# The most rows to count in a table without statistics.
_COUNTED = 100_000


def find(connection: Connection, column: MigratingColumn, previous: ReflectedColumn) -> list[Finding]:
    """All findings that come from SQLite's own catalog alone."""
    return _Search(connection, column, previous).all()


class _Search:
    def __init__(self, connection: Connection, column: MigratingColumn, previous: ReflectedColumn) -> None:
        self._connection, self._column = connection, column
        self._table, self._name = column.table.name, column.from_column.name
        self._quote = connection.dialect.identifier_preparer.quote
        self._schema = column.table.schema or "main"
        sql = f"SELECT type, name, tbl_name, sql FROM {self._quote(self._schema)}.sqlite_master"  # noqa: S608 - quoted
        self._objects = connection.execute(text(sql)).all()
        self._create = next(
            one.sql
            for one in self._objects
            if one.type == "table" and one.name.lower() == self._table.lower()
        )

    def all(self) -> list[Finding]:
        return [
            *self._indexes(),
            *self._checks(),
            *self._triggers(),
            *self._views(),
            *self._generated(),
            *self._null_keys(),
            *self._journal(),
            self._rows(),
        ]

    def _pragma(self, name: str, argument: str | None = None) -> list[Any]:
        call = f"({self._quote(argument)})" if argument is not None else ""
        return list(
            self._connection.exec_driver_sql(f"PRAGMA {self._quote(self._schema)}.{name}{call}").all()
        )

    def _indexes(self) -> list[Finding]:
        found = []
        for row in self._pragma("index_list", self._table):
            name, unique, origin, partial = row[1], row[2], row[3], row[4]
            members = [one[2] for one in self._pragma("index_info", name)]
            sql = next((one.sql for one in self._objects if one.type == "index" and one.name == name), None)
            if origin == "pk":
                continue
            if self._name in members:
                if origin == "u":
                    found.append(unique_over(f"UNIQUE ({', '.join(members)})", "unique-constraint"))
                else:
                    found.append(unique_over(name, "unique-index") if unique else index_over(name))
            elif None in members and mentions(_after_on(sql), self._name):
                found.append(
                    index_over(name, "expression-index", "It finds rows by an expression over the value")
                )
            elif partial and mentions(_after_on(sql), self._name):
                found.append(
                    index_over(
                        name, "partial-index", "Which rows are in it depends on the previous column's value"
                    )
                )
        return found

    def _checks(self) -> list[Finding]:
        return [
            check_over(name or f"CHECK ({expression})", expression)
            for name, expression in _checks_in(self._create)
            if mentions(expression, self._name)
        ]

    def _triggers(self) -> list[Finding]:
        found = []
        for one in self._objects:
            if one.type != "trigger" or ours(one.name):
                continue
            if one.tbl_name.lower() == self._table.lower():
                reads = mentions(one.sql, self._name)
                if reads or _fires(one.sql, self._column.encrypted.name):
                    found.append(trigger_over(one.name, reads=reads))
            elif mentions(one.sql, self._table) and mentions(one.sql, self._name):
                found.append(trigger_over(one.name, reads=True))
        return found

    def _views(self) -> list[Finding]:
        found = []
        for one in self._objects:
            if one.type == "view" and mentions(one.sql, self._table):
                if mentions(one.sql, self._name):
                    found.append(view_over(one.name, drop_fails=True))
                elif "*" in one.sql:
                    found.append(view_over(one.name, drop_fails=False))
            elif (
                one.type == "table"
                and re.match(r"create\s+virtual\s+table", one.sql or "", re.IGNORECASE)
                and mentions(one.sql, self._table)
                and mentions(one.sql, self._name)
            ):
                what = "It is a full-text index of the column, and holds its words as plaintext"
                found.append(index_over(one.name, "full-text-index", what))
        return found

    def _generated(self) -> list[Finding]:
        return [
            Finding(
                "generated-column",
                "breaks",
                row[1],
                "The database may compute this column from the previous one (its definition mentions it): "
                "it becomes NULL with the policy 'read', and a stored one holds plaintext. Compute it in "
                "Python, and drop it before `contract`.",
            )
            for row in self._pragma("table_xinfo", self._table)
            if row[6] in (2, 3)
            and mentions(_definition(self._create, row[1]), self._name)
            and row[1] != self._name
        ]

    def _null_keys(self) -> list[Finding]:
        keys = [(row[1], row[2], row[3]) for row in self._pragma("table_info", self._table) if row[5]]
        if len(keys) == 1 and keys[0][1].upper() == "INTEGER":
            return []
        loose = [name for name, _, not_null in keys if not not_null]
        if not loose:
            return []
        condition = " OR ".join(f"{self._quote(name)} IS NULL" for name in loose)
        count = self._count(condition, 1_000)
        if count:
            message = (
                f"Give a primary key to {counted(count, 'row')}{' or more' if count == 1_000 else ''} first: "
                "SQLite let the key be NULL, and no statement can name such a row."
            )
            return [Finding("nullable-primary-key", "stops", ", ".join(loose), message)]
        message = (
            "SQLite takes NULL for this primary key, which was not declared NOT NULL. No row has it now; "
            "one that gets it is not migrated."
        )
        return [Finding("nullable-primary-key", "note", ", ".join(loose), message)]

    def _journal(self) -> list[Finding]:
        mode = str(self._pragma("journal_mode")[0][0])
        if mode.lower() in ("wal", "memory", "off"):
            return []
        message = (
            f"The journal mode is {mode}, and not WAL: while a chunk is written, readers wait or get "
            "`database is locked`. `PRAGMA journal_mode=WAL`, once, lets them read on."
        )
        return [Finding("journal-mode", "note", "the database file", message)]

    def _rows(self) -> Finding:
        if any(one.name == "sqlite_stat1" for one in self._objects):
            sql = (
                f"SELECT stat FROM {self._quote(self._schema)}.sqlite_stat1 "  # noqa: S608
                "WHERE lower(tbl) = lower(:name) LIMIT 1"
            )
            stat = self._connection.scalar(text(sql), {"name": self._table})
            if stat is not None:
                return rows(self._table, int(str(stat).split()[0]))
        count = self._count("1", _COUNTED)
        return rows(self._table, None if count == _COUNTED else count, exact=True)

    def _count(self, condition: str, limit: int) -> int:
        source = f"{self._quote(self._schema)}.{self._quote(self._table)}"
        counted = f"SELECT count(*) FROM (SELECT 1 FROM {source} WHERE {condition} LIMIT {limit})"  # noqa: S608
        return self._connection.scalar(text(counted)) or 0


def _after_on(sql: str | None) -> str | None:
    """The part of CREATE INDEX after the table's name. An index's own name may contain the column's name."""
    return None if sql is None else sql[sql.index("(") :]


def _fires(sql: str, encrypted: str) -> bool:
    """Whether a trigger runs when the encrypted column is written."""
    head = re.split(r"\bBEGIN\b", sql, maxsplit=1, flags=re.IGNORECASE)[0]
    named = re.search(r"\bUPDATE\s+OF\s+(.+?)\s+ON\b", head, re.IGNORECASE | re.DOTALL)
    if named is not None:
        return mentions(named[1], encrypted)
    return re.search(r"\bUPDATE\s+ON\b", head, re.IGNORECASE) is not None


def _checks_in(create: str) -> list[tuple[str | None, str]]:
    """The CHECK constraints of CREATE TABLE, with their names. SQLite stores them nowhere else."""
    pattern = re.compile(r"""(?:\bCONSTRAINT\s+["`\[]?(\w+)["`\]]?\s+)?\bCHECK\s*\(""", re.IGNORECASE)
    return [(match[1], _until_closed(create, match.end())) for match in pattern.finditer(create)]


def _definition(create: str, column: str) -> str:
    """The definition of a column, from its name to the end of the expression that generates it."""
    match = re.search(
        rf"(?<![\w$]){re.escape(column)}(?![\w$]).*?\bAS\s*\(", create, re.IGNORECASE | re.DOTALL
    )
    return "" if match is None else _until_closed(create, match.end())


def _until_closed(sql: str, start: int) -> str:
    depth, at, quote = 1, start, ""
    while at < len(sql) and depth:
        if quote:
            quote = "" if sql[at] == quote else quote
        elif sql[at] in "'\"`":
            quote = sql[at]
        else:
            depth += {"(": 1, ")": -1}.get(sql[at], 0)
        at += 1
    return sql[start : at - 1]
