"""Where plaintext of a column still lies, as far as the database tells, and what to do about each place.

A value that was set to NULL or dropped is gone from every query at once and from the disc much later. This
module asks the catalogs; what was found in the bytes themselves is in
docs/explanation/plaintext-that-remains.md. It counts and asks for sizes. It never reads a value: not from the
table, and not from statistics, which hold some.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Table, inspect, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.migration.database.columns import MigratingColumn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

State = Literal["holds plaintext", "may hold plaintext", "clean", "unknown"]

# Rows that still have a value are counted up to here.
_COUNTED = 100_000


@dataclass(frozen=True)
class Residue:
    """One place where plaintext lies or may lie.

    Attributes:
        place: what it is.
        state: whether it holds plaintext, as far as the database tells.
        known: the figures behind that.
        cure: the statement to run, or what else to do; empty if there is nothing to do.
    """

    place: str
    state: State
    known: str
    cure: str


def where_plaintext_remains(connection: Connection, column: MigratingColumn | Table) -> list[Residue]:
    """Every place where plaintext of a column's previous values lies or may lie.

    Args:
        column: the column; or, after the contract, its table: no model knows the previous column then.

    Raises:
        sqlalchemy.exc.NoSuchTableError: the database has no such table.
    """
    if isinstance(column, Table):
        table, name = column, None
    else:
        table, name = column.table, None if column.previous is None else column.previous.name
    columns = inspect(connection).get_columns(table.name, schema=table.schema)
    if name not in {one["name"] for one in columns}:
        name = None
    place = _Place(connection, table, name)
    search = {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mysql, "mariadb": _mysql}.get(
        connection.dialect.name
    )
    found = [_rows(place), *(search(place) if search is not None else ()), *_outside()]
    return [one for one in found if one is not None]


class _Place:
    """A table, the previous column's name if it is still there, and ways to ask about them."""

    def __init__(self, connection: Connection, table: Table, name: str | None) -> None:
        self.connection, self.table, self.name = connection, table, name
        preparer = connection.dialect.identifier_preparer
        self.sql_table = preparer.format_table(table)
        self.sql_name = preparer.quote(name) if name is not None else None

    def all(self, sql: str, **parameters: Any) -> list[Any]:
        return list(self.connection.execute(text(sql), parameters).all())

    def one(self, sql: str, **parameters: Any) -> Any:
        return self.connection.execute(text(sql), parameters).one()

    def allowed(self, sql: str) -> list[Any] | None:
        """What MySQL or SQLite answers, or None if it has no such thing or this user may not ask."""
        try:
            return list(self.connection.exec_driver_sql(sql).all())
        except DBAPIError:
            return None


def _rows(place: _Place) -> Residue:
    if place.name is None:
        return Residue("rows", "clean", "The column is dropped: no query gives its values.", "")
    counted = place.one(
        f"SELECT count(*) FROM (SELECT 1 AS one FROM {place.sql_table} "  # noqa: S608 - quoted
        f"WHERE {place.sql_name} IS NOT NULL LIMIT {_COUNTED}) AS counted"
    )[0]
    if not counted:
        return Residue("rows", "clean", f"{place.name} is NULL in every row.", "")
    shown = f"{counted:,}" if counted < _COUNTED else f"{_COUNTED:,} or more"
    return Residue(
        "rows",
        "holds plaintext",
        f"{shown} rows have a value in {place.name}.",
        "`sqlalchemy-envelope migrate cutover`, then `contract`.",
    )


def _outside() -> Iterator[Residue]:
    yield Residue(
        "backups",
        "unknown",
        "Every backup, snapshot and dump made before the contract holds the whole column.",
        "Make a new backup after the clean-up, then delete the older ones; until then your retention time is "
        "how long the plaintext lives.",
    )
    yield Residue(
        "freed blocks of the disc",
        "unknown",
        "Files that a database deletes or rewrites leave their bytes on the disc until they are overwritten.",
        "Encrypt the volume. To be sure at once: move the database to a new volume and discard the old one's "
        "key.",
    )


# --- PostgreSQL


def _postgresql(place: _Place) -> Iterator[Residue]:
    table = place.one("SELECT CAST(CAST(:name AS regclass) AS oid) AS oid", name=place.sql_table).oid
    yield _pg_table(place, table)
    if place.name is not None:
        yield from _pg_column(place, table)
    else:
        yield _pg_statistics_file()
    yield _pg_wal(place)
    yield from _pg_copies(place)
    yield _pg_log(place)
    if place.all("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        yield Residue(
            "pg_stat_statements",
            "may hold plaintext",
            "It normalises SELECT and DML, and keeps utility statements as they were written.",
            "SELECT pg_stat_statements_reset();",
        )


def _pg_table(place: _Place, table: int) -> Residue:
    row = place.one(
        "SELECT pg_table_size(CAST(:table AS oid)) AS size, pg_indexes_size(CAST(:table AS oid)) AS indexes, "
        "COALESCE(s.n_dead_tup, 0) AS dead, "
        "CAST(GREATEST(s.last_vacuum, s.last_autovacuum) AS text) AS vacuumed, "
        "(SELECT count(*) FROM pg_attribute WHERE attrelid = :table AND attisdropped) AS dropped "
        "FROM (SELECT 1) AS one LEFT JOIN pg_stat_all_tables s ON s.relid = :table",
        table=table,
    )
    known = (
        f"{row.size:,} bytes and {row.indexes:,} of indexes; {row.dead:,} dead rows; last vacuum: "
        f"{row.vacuumed or 'never'}."
    )
    if row.dropped:
        known += (
            f" {row.dropped} dropped column{'s' if row.dropped > 1 else ''}: rows written before keep the "
            "bytes until the table is rewritten, and the catalog does not tell whether it was."
        )
    else:
        known += " VACUUM frees the place of an old row and does not wipe it."
    return Residue(
        "the table's files",
        "may hold plaintext" if row.size else "clean",
        known,
        f"VACUUM (FULL, ANALYZE) {place.sql_table}; writes the table and its indexes anew and locks it "
        "meanwhile (pg_repack does it without the long lock). Then CHECKPOINT;",
    )


def _pg_column(place: _Place, table: int) -> Iterator[Residue]:
    gathered = place.all(
        "SELECT s.most_common_vals IS NOT NULL AS common, s.histogram_bounds IS NOT NULL AS histogram "
        "FROM pg_stats s JOIN pg_class c ON c.relname = s.tablename "
        "JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = s.schemaname "
        "WHERE c.oid = :table AND s.attname = :name",
        table=table,
        name=place.name,
    )
    parts = [part for one in gathered for part in ("common", "histogram") if getattr(one, part)]
    if parts:
        words = {"common": "most common values", "histogram": "a histogram of values"}
        yield Residue(
            "planner statistics",
            "holds plaintext",
            f"pg_stats has {' and '.join(words[part] for part in dict.fromkeys(parts))} of {place.name}.",
            f"ANALYZE {place.sql_table}; once the column is NULL everywhere (dropping it removes them too). "
            "Then VACUUM FULL pg_catalog.pg_statistic; as a superuser: the old statistics lie in its file.",
        )
    else:
        yield _pg_statistics_file()
    extended = [
        one.name
        for one in place.all(
            "SELECT s.stxname AS name FROM pg_statistic_ext s JOIN pg_attribute a "
            "ON a.attrelid = s.stxrelid AND a.attname = :name AND a.attnum = ANY (CAST(s.stxkeys AS int2[])) "
            "WHERE s.stxrelid = :table",
            table=table,
            name=place.name,
        )
    ]
    if extended:
        yield Residue(
            "extended statistics",
            "may hold plaintext",
            f"{', '.join(extended)} may keep most common values.",
            f"DROP STATISTICS {', '.join(extended)}; then VACUUM FULL pg_catalog.pg_statistic_ext_data; as a "
            "superuser.",
        )
    users = [
        f"{one.kind} {one.name}"
        for one in place.all(
            "SELECT DISTINCT CASE c.relkind WHEN 'm' THEN 'materialised view' WHEN 'i' THEN 'index' END AS "
            "kind, c.relname AS name FROM pg_depend d LEFT JOIN pg_rewrite r ON d.classid = "
            "CAST('pg_rewrite' AS regclass) AND r.oid = d.objid LEFT JOIN pg_constraint k ON d.classid = "
            "CAST('pg_constraint' AS regclass) AND k.oid = d.objid JOIN pg_class c ON c.oid IN "
            "(r.ev_class, k.conindid) OR (d.classid = CAST('pg_class' AS regclass) AND c.oid = d.objid) "
            "WHERE d.refclassid = CAST('pg_class' AS regclass) AND d.refobjid = :table AND c.relkind IN "
            "('m', 'i') AND d.refobjsubid = (SELECT attnum FROM pg_attribute WHERE attrelid = :table AND "
            "attname = :name)",
            table=table,
            name=place.name,
        )
    ]
    if users:
        yield Residue(
            "indexes and materialised views",
            "may hold plaintext",
            f"{', '.join(sorted(users))}: copies of the column.",
            "Drop them; indexes go with the column, and their files with them.",
        )


def _pg_statistics_file() -> Residue:
    return Residue(
        "planner statistics",
        "may hold plaintext",
        "None are kept for the column now; earlier ones lie in the file of pg_statistic until it is "
        "written anew.",
        "VACUUM FULL pg_catalog.pg_statistic; as a superuser.",
    )


def _pg_wal(place: _Place) -> Residue:
    row = place.one(
        "SELECT has_function_privilege('pg_ls_waldir()', 'EXECUTE') AS may_ask, "
        "current_setting('archive_mode') AS archived, current_setting('wal_recycle') AS recycled, "
        "(SELECT count(*) FROM pg_replication_slots) AS slots"
    )
    size = (
        place.one("SELECT sum(size) AS size, count(*) AS files FROM pg_ls_waldir()") if row.may_ask else None
    )
    known = f"{int(size.size):,} bytes in {size.files} files" if size is not None else "its size is not told"
    cure = (
        "WAL files are reused under new names without being wiped. `ALTER SYSTEM SET wal_recycle = off;`, "
        "`SELECT pg_reload_conf();`, then `SELECT pg_switch_wal(); CHECKPOINT;` twice: old files are deleted "
        "rather than reused. Set it back afterwards."
    )
    if row.archived != "off":
        cure += " Then delete what was archived before."
    return Residue(
        "write-ahead log",
        "may hold plaintext",
        f"pg_wal: {known}; archive_mode {row.archived}, wal_recycle {row.recycled}, {row.slots} replication "
        "slots.",
        cure,
    )


def _pg_copies(place: _Place) -> Iterator[Residue]:
    row = place.one(
        "SELECT (SELECT count(*) FROM pg_stat_replication) AS replicas, "
        "(SELECT count(*) FROM pg_replication_slots) AS slots, "
        "(SELECT count(*) FROM pg_prepared_xacts) AS prepared, "
        "(SELECT count(*) FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() "
        "AND xact_start < now() - interval '1 minute') AS old, pg_is_in_recovery() AS replica"
    )
    copied = row.replicas + row.slots > 0 or row.replica
    yield Residue(
        "replicas",
        "may hold plaintext" if copied else "unknown",
        f"{row.replicas} connected, {row.slots} replication "
        f"slots{', and this server is one' if row.replica else ''}.",
        "A physical replica follows the table's clean-up by itself; clean its WAL and its log too. On a "
        "logical subscriber the whole clean-up has to be done again.",
    )
    if row.prepared or row.old:
        yield Residue(
            "open transactions",
            "may hold plaintext",
            f"{row.prepared} prepared, {row.old} open for longer than a minute: VACUUM keeps what they may "
            "still see.",
            "COMMIT PREPARED or ROLLBACK PREPARED, and end the others, before the clean-up.",
        )


def _pg_log(place: _Place) -> Residue:
    names = (
        "log_statement",
        "log_min_duration_statement",
        "log_min_duration_sample",
        "log_parameter_max_length",
        "log_parameter_max_length_on_error",
        "log_min_error_statement",
    )
    settings = {one.name: one.setting for one in place.all("SELECT name, setting FROM pg_settings")}
    writes = (
        settings["log_statement"] not in ("none", "ddl")
        or settings["log_min_duration_statement"] != "-1"
        or settings["log_min_duration_sample"] != "-1"
        or settings["log_parameter_max_length_on_error"] != "0"
    )
    return Residue(
        "server log",
        "may hold plaintext" if writes else "unknown",
        ", ".join(f"{name}={settings[name]}" for name in names if name in settings)
        + ". Statements that fail or are slow are logged with their literals, and with their parameters "
        "if so set.",
        "Delete logs from before the contract, wherever they are shipped to. Keep log_statement=none and "
        "both log_parameter_max_length settings at 0.",
    )


# --- SQLite


def _sqlite(place: _Place) -> Iterator[Residue]:
    schema = place.table.schema or "main"
    quoted = place.connection.dialect.identifier_preparer.quote(schema)

    def pragma(name: str) -> Any:
        return place.connection.exec_driver_sql(f"PRAGMA {quoted}.{name}").scalar()

    secure, free, auto = pragma("secure_delete"), pragma("freelist_count"), pragma("auto_vacuum")
    yield Residue(
        "freed places of the database file",
        "may hold plaintext",
        f"secure_delete={secure} on this connection, {free:,} free pages, auto_vacuum={auto}. secure_delete "
        "is not stored in the file: a connection that had it off left what it deleted.",
        "VACUUM; writes the file anew without what was deleted. Keep PRAGMA secure_delete=ON on every "
        "connection.",
    )
    mode = str(pragma("journal_mode")).lower()
    file = next(
        (row[2] for row in place.connection.exec_driver_sql("PRAGMA database_list") if row[1] == schema), ""
    )
    yield _sqlite_journal(mode, file)
    objects = place.all(f"SELECT type, name, sql FROM {quoted}.sqlite_master")  # noqa: S608 - quoted
    sampled = sorted(one.name for one in objects if one.name in ("sqlite_stat3", "sqlite_stat4"))
    yield Residue(
        "planner statistics",
        "may hold plaintext" if sampled else "clean",
        f"{', '.join(sampled)} keep values of indexed columns." if sampled else "No table of samples.",
        "Drop the indexes over the column, then ANALYZE;, then VACUUM;" if sampled else "",
    )
    words = sorted(one.name for one in objects if one.sql and "using fts" in one.sql.lower())
    if words:
        yield Residue(
            "full-text indexes",
            "may hold plaintext",
            f"{', '.join(words)}: if one of them is over the column, it holds its words.",
            "Drop it, then VACUUM;",
        )


def _sqlite_journal(mode: str, file: str) -> Residue:
    beside = [Path(f"{file}{end}") for end in ("-wal", "-journal")] if file else []
    sizes = {path.name: path.stat().st_size for path in beside if path.exists()}
    shown = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()) or "no such file"
    cures = {
        "wal": "PRAGMA wal_checkpoint(TRUNCATE); after VACUUM, with no reader open: empties the -wal file.",
        "persist": "PRAGMA journal_mode=DELETE; removes the file.",
        # Left by a connection in the mode PERSIST; one that is in the mode DELETE already removes nothing.
        "delete": "PRAGMA journal_mode=PERSIST; then PRAGMA journal_mode=DELETE; removes the file.",
        "truncate": "PRAGMA journal_mode=PERSIST; then PRAGMA journal_mode=DELETE; removes the file.",
    }
    holds = any(sizes.values())
    emptied = "A journal is deleted or emptied at each commit; what its blocks held is the disc's matter."
    return Residue(
        "journal",
        "may hold plaintext" if holds else "clean",
        f"journal_mode={mode}; {shown}.",
        cures.get(mode, "") if holds else "" if mode == "wal" else emptied,
    )


# --- MySQL and MariaDB


def _mysql(place: _Place) -> Iterator[Residue]:
    variables = {
        str(row[0]): str(row[1])
        for row in place.connection.exec_driver_sql(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format', 'binlog_row_image', "
            "'expire_logs_days', 'binlog_expire_logs_seconds', 'innodb_log_file_size', "
            "'innodb_redo_log_capacity', 'innodb_flush_log_at_trx_commit', 'innodb_undo_log_truncate', "
            "'innodb_file_per_table', 'general_log', 'slow_query_log', 'log_output', 'use_stat_tables', "
            "'version')"
        )
    }
    yield _my_table(place, variables)
    yield _my_undo(place, variables)
    yield _my_statistics(place)
    yield _my_binlog(place, variables)
    logs = {name: variables.get(name, "OFF") for name in ("general_log", "slow_query_log")}
    yield Residue(
        "server logs",
        "may hold plaintext" if "ON" in logs.values() else "unknown",
        ", ".join(f"{name}={value}" for name, value in logs.items())
        + f", log_output={variables.get('log_output', '?')}. They hold statements with their literals.",
        "Delete those from before the contract (TRUNCATE mysql.general_log; mysql.slow_log; if they are "
        "tables).",
    )
    replicas = place.allowed("SHOW SLAVE HOSTS") or place.allowed("SHOW REPLICAS") or []
    yield Residue(
        "replicas",
        "may hold plaintext" if replicas else "unknown",
        f"{len(replicas)} registered.",
        "OPTIMIZE TABLE is replicated; the binary and relay logs of each replica are its own matter.",
    )


def _my_table(place: _Place, variables: Mapping[str, str]) -> Residue:
    row = place.one(
        "SELECT engine AS engine, data_length AS used, index_length AS indexes, data_free AS free "
        "FROM information_schema.tables "
        "WHERE table_schema = COALESCE(:schema, database()) AND table_name = :table",
        schema=place.table.schema,
        table=place.table.name,
    )
    apart = variables.get("innodb_file_per_table", "ON")
    cure = f"OPTIMIZE TABLE {place.sql_table}; writes the table and its indexes anew."
    if apart != "ON":
        cure += (
            " With innodb_file_per_table=OFF the old pages stay in ibdata1: dump, and load into a new server."
        )
    return Residue(
        "the table's file",
        "may hold plaintext",
        f"{row.engine}: {row.used or 0:,} bytes, {row.indexes or 0:,} of indexes, {row.free or 0:,} free; "
        f"innodb_file_per_table={apart}. Freed places in pages are not wiped, and a column dropped with "
        "ALGORITHM=INSTANT stays in the rows.",
        cure,
    )


def _my_undo(place: _Place, variables: Mapping[str, str]) -> Residue:
    asked = place.allowed(
        "SELECT count FROM information_schema.innodb_metrics WHERE name = 'trx_rseg_history_len'"
    )
    history = f"{int(asked[0][0]):,}" if asked else "an untold number of"
    redo = variables.get("innodb_redo_log_capacity") or variables.get("innodb_log_file_size", "?")
    return Residue(
        "undo and redo log",
        "may hold plaintext",
        f"{history} old row versions to purge; redo log of {redo} bytes, innodb_undo_log_truncate="
        f"{variables.get('innodb_undo_log_truncate', '?')}, "
        f"innodb_flush_log_at_trx_commit={variables.get('innodb_flush_log_at_trx_commit', '?')}. The "
        "doublewrite buffer has copies of pages as well.",
        "Both are overwritten in the course of writing, and cannot be emptied while the server runs. For "
        "certainty: dump after the contract, and load into a new server.",
    )


def _my_statistics(place: _Place) -> Residue:
    if getattr(place.connection.dialect, "is_mariadb", False):
        source, cure = (
            "mysql.column_stats WHERE db_name = {} AND table_name = {}",
            ("DELETE FROM mysql.column_stats WHERE table_name = ...; FLUSH TABLES;"),
        )
    else:
        source, cure = (
            "information_schema.column_statistics WHERE schema_name = {} AND table_name = {}",
            (f"ANALYZE TABLE {place.sql_table} DROP HISTOGRAM ON ...;"),
        )
    schema = place.table.schema or place.connection.exec_driver_sql("SELECT database()").scalar()
    try:
        count = place.one(
            f"SELECT count(*) FROM {source.format(':schema', ':table')}"  # noqa: S608 - constants
            + (" AND column_name = :name" if place.name is not None else ""),
            schema=schema,
            table=place.table.name,
            **({"name": place.name} if place.name is not None else {}),
        )[0]
    except DBAPIError:
        return Residue("planner statistics", "unknown", "This user may not see them.", cure)
    if not count:
        return Residue("planner statistics", "clean", "None are kept for the column.", "")
    known = "Least and greatest values, and a histogram, are kept for the column."
    return Residue("planner statistics", "may hold plaintext", known, cure)


def _my_binlog(place: _Place, variables: Mapping[str, str]) -> Residue:
    if variables.get("log_bin", "OFF") != "ON":
        return Residue("binary log", "unknown", "log_bin=OFF now.", "Delete files of an earlier one.")
    files = place.allowed("SHOW BINARY LOGS")
    size = f"{sum(int(row[1]) for row in files):,} bytes in {len(files)} files" if files else "size not told"
    return Residue(
        "binary log",
        "may hold plaintext",
        f"{size}; binlog_format={variables.get('binlog_format', '?')}, "
        f"binlog_row_image={variables.get('binlog_row_image', '?')}: a full row image holds the old value "
        "too.",
        "FLUSH BINARY LOGS; then PURGE BINARY LOGS BEFORE NOW(); once every replica and backup has what it "
        "needs.",
    )
