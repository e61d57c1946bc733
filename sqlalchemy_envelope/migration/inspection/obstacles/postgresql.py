"""Obstacles on PostgreSQL: `pg_depend` lists the objects that use a column, other catalogs the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, text

from sqlalchemy_envelope.migration.inspection.findings import (
    Finding,
    check_over,
    index_over,
    mentions,
    ours,
    referenced_by,
    rows,
    trigger_over,
    unique_over,
    view_over,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn

_INDEXES = """
SELECT i.relname AS name, x.indisunique AS is_unique, x.indexprs IS NOT NULL AS expressions,
       x.indpred IS NOT NULL AS partial, CAST(:number AS int2) = ANY (CAST(x.indkey AS int2[])) AS member,
       con.conname AS constraint_name, con.contype AS constraint_type, pg_get_indexdef(i.oid) AS definition,
       COALESCE(pg_get_expr(x.indexprs, x.indrelid), '') AS expression
FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid
LEFT JOIN pg_constraint con
  ON con.conindid = i.oid AND con.conrelid = x.indrelid AND con.contype IN ('p', 'u', 'x')
WHERE x.indrelid = :table AND NOT x.indisprimary AND EXISTS (
  SELECT FROM pg_depend d WHERE d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = x.indrelid
  AND d.refobjsubid = :number AND d.objid IN (i.oid, con.oid))
"""
_CHECKS = """
SELECT conname AS name, pg_get_constraintdef(oid) AS definition FROM pg_constraint
WHERE conrelid = :table AND contype = 'c' AND CAST(:number AS int2) = ANY (conkey)
"""
_TRIGGERS = """
SELECT t.tgname AS name, pg_get_triggerdef(t.oid) AS definition, p.prosrc AS body,
       (CAST(t.tgtype AS int) & 16) <> 0 AS on_update,
       CAST(t.tgattr AS text) = '' OR CAST(:encrypted AS int2) = ANY (CAST(t.tgattr AS int2[])) AS fires
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = :table AND NOT t.tgisinternal AND t.tgenabled <> 'D'
"""
_RULES = """
SELECT DISTINCT r.rulename AS rule, r.ev_type, c.relname AS name, c.relkind, c.oid = :table AS own
FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid JOIN pg_class c ON c.oid = r.ev_class
WHERE d.classid = CAST('pg_rewrite' AS regclass) AND d.refclassid = CAST('pg_class' AS regclass)
  AND d.refobjid = :table AND d.refobjsubid = :number
"""
_GENERATED = """
SELECT a.attname AS name FROM pg_depend d
JOIN pg_attrdef f ON d.classid = CAST('pg_attrdef' AS regclass) AND f.oid = d.objid AND f.adrelid = :table
JOIN pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
WHERE d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = :table AND d.refobjsubid = :number
  AND a.attnum <> :number
UNION
SELECT a.attname FROM pg_depend d
JOIN pg_attribute a ON a.attrelid = :table AND a.attnum = d.objsubid AND a.attgenerated <> ''
WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = :table AND a.attnum <> :number
  AND d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = :table AND d.refobjsubid = :number
"""
_POLICIES = """
SELECT DISTINCT p.polname AS name FROM pg_depend d JOIN pg_policy p ON p.oid = d.objid
WHERE d.classid = CAST('pg_policy' AS regclass) AND d.refclassid = CAST('pg_class' AS regclass)
  AND d.refobjid = :table AND d.refobjsubid = :number
"""
_STATISTICS = """
SELECT DISTINCT s.stxname AS name FROM pg_statistic_ext s
WHERE s.stxrelid = :table AND (CAST(:number AS int2) = ANY (CAST(s.stxkeys AS int2[])) OR EXISTS (
  SELECT FROM pg_depend d WHERE d.classid = CAST('pg_statistic_ext' AS regclass) AND d.objid = s.oid
  AND d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = :table AND d.refobjsubid = :number))
"""
_PUBLICATIONS = """
SELECT p.pubname AS name, COALESCE(CAST(:number AS int2) = ANY (CAST(r.prattrs AS int2[])), false) AS listed,
       r.prattrs IS NOT NULL AS has_list,
       r.prqual IS NOT NULL AND pg_get_expr(r.prqual, r.prrelid) ~ :word AS filters
FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = :table
UNION ALL
SELECT p.pubname, false, false, false FROM pg_publication p WHERE p.puballtables
UNION ALL
SELECT p.pubname, false, false, false FROM pg_publication_namespace n
JOIN pg_publication p ON p.oid = n.pnpubid JOIN pg_class c ON c.relnamespace = n.pnnspid WHERE c.oid = :table
"""
_TABLE = """
SELECT c.relkind, c.relreplident, c.relpersistence, c.reltuples,
       (SELECT sum(GREATEST(k.reltuples, 0)) FROM pg_partition_tree(c.oid) t
        JOIN pg_class k ON k.oid = t.relid WHERE t.isleaf) AS leaf_rows,
       EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid) AS has_children,
       EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid) AS is_child,
       EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisreplident
               AND CAST(:number AS int2) = ANY (CAST(x.indkey AS int2[]))) AS identifies,
       EXISTS (SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisprimary) AS has_key,
       COALESCE((SELECT CAST(:number AS int2) = ANY (CAST(p.partattrs AS int2[])) OR EXISTS (
                   SELECT FROM pg_depend d WHERE d.classid = CAST('pg_class' AS regclass) AND d.objid = c.oid
                   AND d.objsubid = :number AND d.refclassid = CAST('pg_class' AS regclass)
                   AND d.refobjid = c.oid AND d.refobjsubid = 0)
                 FROM pg_partitioned_table p WHERE p.partrelid = c.oid), false) AS partitions,
       current_setting('wal_level') AS wal_level
FROM pg_class c WHERE c.oid = :table
"""
_COLUMN = """
SELECT a.attacl IS NOT NULL AS granted, t.typtype = 'd' AND t.typnotnull AS domain_not_null, t.typname AS type
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = :table AND a.attnum = :number
"""
_ROUTINES = """
SELECT p.proname AS name FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prosrc ~* :table_word AND p.prosrc ~* :word
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = CAST('pg_proc' AS regclass) AND d.objid = p.oid
                  AND d.deptype = 'e')
"""
_REFERENCES = """
SELECT k.conname AS name, CAST(CAST(k.conrelid AS regclass) AS text) AS table_name FROM pg_constraint k
JOIN pg_class c ON c.oid = k.conrelid JOIN pg_class r ON r.oid = k.confrelid
WHERE k.contype = 'f' AND k.confrelid = :table AND c.relnamespace <> r.relnamespace
  AND CAST(:number AS int2) = ANY (k.confkey)
"""
_SLOTS = "SELECT slot_name AS name, slot_type, active FROM pg_replication_slots"


def find(connection: Connection, column: MigratingColumn) -> list[Finding]:
    """All findings that come from PostgreSQL's own catalogs alone."""
    return _Search(connection, column).all()


class _Search:
    def __init__(self, connection: Connection, column: MigratingColumn) -> None:
        self._connection, self._name, self._table = connection, column.from_column.name, column.table.name
        quoted = connection.dialect.identifier_preparer.format_table(column.table)
        table = connection.scalar(text("SELECT CAST(CAST(:name AS regclass) AS oid)"), {"name": quoted})
        number = (
            "SELECT attnum FROM pg_attribute WHERE attrelid = :table AND attname = :name AND NOT attisdropped"
        )
        self._parameters = {
            "table": table,
            "number": connection.scalar(text(number), {"table": table, "name": self._name}),
            "encrypted": connection.scalar(text(number), {"table": table, "name": column.encrypted.name})
            or 0,
            "word": _word(self._name),
            "table_word": _word(self._table),
        }

    def all(self) -> list[Finding]:
        table = self._rows(_TABLE)[0]
        return [
            *self._indexes(),
            *(check_over(one.name, one.definition) for one in self._rows(_CHECKS)),
            *(referenced_by(one.name, one.table_name) for one in self._rows(_REFERENCES)),
            *self._triggers(),
            *self._rules(),
            *self._generated(),
            *self._policies(),
            *self._statistics(),
            *self._replicated(table),
            *self._divided(table),
            *self._of_column(),
            *self._routines(),
            self._size(table),
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
            if one.constraint_type == "u":
                found.append(unique_over(one.constraint_name, "unique-constraint"))
            elif one.constraint_type == "x":
                what = "It excludes rows by the values of the column, as an exclusion constraint"
                found.append(index_over(one.constraint_name, "exclusion-constraint", what))
            elif one.is_unique and (one.member or mentions(one.expression, self._name)):
                found.append(unique_over(one.name, "unique-index"))
            elif "to_tsvector" in one.definition or "_trgm_ops" in one.definition:
                found.append(
                    index_over(one.name, "full-text-index", "It finds rows by words or parts of the value")
                )
            elif one.member:
                found.append(index_over(one.name))
            elif one.partial and not mentions(one.expression, self._name):
                what = "Which rows are in it depends on the previous column's value"
                found.append(index_over(one.name, "partial-index", what))
            else:
                found.append(
                    index_over(one.name, "expression-index", "It finds rows by an expression over the value")
                )
        return found

    def _triggers(self) -> list[Finding]:
        found = []
        for one in self._rows(_TRIGGERS):
            if ours(one.name):
                continue
            reads = mentions(one.definition, self._name) or mentions(one.body, self._name)
            if reads or (one.on_update and one.fires):
                found.append(trigger_over(one.name, reads=reads))
        return found

    def _rules(self) -> list[Finding]:
        found = []
        for one in self._rows(_RULES):
            if one.relkind == "m":
                message = (
                    "This materialised view holds a copy of the column's plaintext, and `contract` fails "
                    "while it is there. Drop it, or make it anew without the column."
                )
                found.append(Finding("materialized-view", "breaks", one.name, message))
            elif one.relkind == "v" and one.ev_type == "1":
                found.append(view_over(one.name, drop_fails=True))
            else:
                message = (
                    f"This rule on {one.name} mentions the previous column, and `contract` fails while it is "
                    "there. Rules are not run for what the migration writes as triggers are: replace it."
                )
                found.append(Finding("rule", "breaks", one.rule, message))
        return found

    def _generated(self) -> list[Finding]:
        message = (
            "The database computes this column from the previous one: it becomes NULL with the policy "
            "'read', and a stored one holds plaintext. Compute it in Python, and drop it before `contract`, "
            "which fails else."
        )
        return [Finding("generated-column", "breaks", one.name, message) for one in self._rows(_GENERATED)]

    def _policies(self) -> list[Finding]:
        message = (
            "This row security policy decides by the previous column: it sees NULL from the policy 'read' "
            "on, and `contract` fails while it is there. Let it decide by another column first."
        )
        return [Finding("row-security-policy", "breaks", one.name, message) for one in self._rows(_POLICIES)]

    def _statistics(self) -> list[Finding]:
        message = (
            "Extended statistics over the column hold some of its values as plaintext until they are "
            "gathered anew or dropped. They go with the column."
        )
        return [Finding("extended-statistics", "note", one.name, message) for one in self._rows(_STATISTICS)]

    def _replicated(self, table: Row[Any]) -> list[Finding]:
        publications = self._rows(_PUBLICATIONS)
        return [
            *_published(publications),
            *self._identified(table, is_published=bool(publications)),
            *self._decoded(table),
        ]

    def _identified(self, table: Row[Any], *, is_published: bool) -> Iterator[Finding]:
        if table.identifies:
            message = (
                "The index that identifies rows for replication has the column in it: identify them by the "
                "key."
            )
            yield Finding("replica-identity", "stops", self._table, message)
        elif is_published and (
            table.relreplident == "n" or (table.relreplident == "d" and not table.has_key)
        ):
            message = (
                "The table is published and nothing identifies its rows: PostgreSQL refuses every UPDATE. "
                "Give it a primary key, or `ALTER TABLE ... REPLICA IDENTITY`."
            )
            yield Finding("replica-identity", "stops", self._table, message)
        elif table.relreplident == "f":
            message = (
                "REPLICA IDENTITY FULL writes the whole old row of every update into the WAL, its plaintext "
                "included, and to subscribers. `REPLICA IDENTITY DEFAULT` writes the key alone."
            )
            yield Finding("replica-identity", "note", self._table, message)

    def _decoded(self, table: Row[Any]) -> Iterator[Finding]:
        for one in self._rows(_SLOTS):
            message = (
                f"A {one.slot_type} replication slot{'' if one.active else ', which nobody reads'}: WAL is "
                "kept until it is read, and the backfill writes a lot of it. "
                + ("Watch its lag." if one.active else "Drop the slot, or the disk fills.")
            )
            yield Finding("replication-slot", "note" if one.active else "breaks", one.name, message)
        if table.wal_level == "logical":
            message = (
                "Every backfilled row is written to the WAL for logical decoding too: expect more of it."
            )
            yield Finding("wal-level", "note", "wal_level=logical", message)

    def _divided(self, table: Row[Any]) -> list[Finding]:
        found = []
        if table.partitions:
            message = (
                "Rows are divided among partitions by the column: it cannot be NULL there, nor be dropped."
            )
            found.append(Finding("partition-key", "stops", self._table, message))
        elif table.relkind == "p":
            message = (
                "Partitioned: columns are added and dropped on the whole; the residue is cleaned up per "
                "partition."
            )
            found.append(Finding("partitioned", "note", self._table, message))
        elif table.has_children:
            message = (
                "Other tables inherit from it. An update here changes their rows too, and unique keys do "
                "not hold across them: a row is perhaps not alone under its key."
            )
            found.append(Finding("inheritance", "breaks", self._table, message))
        elif table.is_child:
            message = (
                "It is a partition or an heir of another table: columns are added and dropped there. Map "
                "that one."
            )
            found.append(Finding("inheritance", "stops", self._table, message))
        return found

    def _of_column(self) -> list[Finding]:
        found = []
        one = self._rows(_COLUMN)[0]
        if one.granted:
            message = (
                "Some roles have privileges on this very column. Grant them the same on the encrypted one."
            )
            found.append(Finding("column-privileges", "breaks", self._name, message))
        if one.domain_not_null:
            message = (
                f"Its domain {one.type} forbids NULL, which the policy 'read' writes. Change the column to "
                "the base type before `cutover`."
            )
            found.append(Finding("previous-not-null", "breaks", self._name, message))
        return found

    def _routines(self) -> list[Finding]:
        message = "This function mentions the table and the column: look whether it needs the plaintext."
        return [
            Finding("routine", "note", one.name, message)
            for one in self._rows(_ROUTINES)
            if not ours(one.name)
        ]

    def _size(self, table: Row[Any]) -> Finding:
        if table.relkind == "p":
            return rows(self._table, int(table.leaf_rows) if table.leaf_rows else None)
        return rows(self._table, None if table.reltuples < 0 else int(table.reltuples))


def _word(name: str) -> str:
    """A regular expression of PostgreSQL for a name as a whole word."""
    escaped = "".join(letter if letter.isalnum() or letter == "_" else f"\\{letter}" for letter in name)
    return rf"\m{escaped}\M"


def _published(publications: Sequence[Row[Any]]) -> Iterator[Finding]:
    for one in publications:
        if one.listed or one.filters:
            message = (
                "This publication names the previous column in its column list or row filter, and "
                "`contract` fails while it does. Add the encrypted column after `expand`, and take the "
                "previous one out before `contract`."
            )
            yield Finding("publication-column-list", "breaks", one.name, message)
        elif one.has_list:
            message = (
                "Its column list leaves the encrypted column out: add it after `expand`, if it is to travel."
            )
            yield Finding("publication", "note", one.name, message)
        else:
            message = (
                "Rows of this table travel to subscribers: add the encrypted column there before "
                "`expand`, or replication stops; drop the previous column there too, and clean up there "
                "as here."
            )
            yield Finding("publication", "breaks", one.name, message)
