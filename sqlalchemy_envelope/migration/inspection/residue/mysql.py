"""Plaintext of a column that remains in MySQL and MariaDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.migration.inspection.residue.places import Place, Residue
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def find(place: Place) -> Iterator[Residue]:
    """Every place where this kind of database may keep values of the column."""
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
    yield _table(place, variables)
    yield _undo(place, variables)
    yield _statistics(place)
    yield _binlog(place, variables)
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


def _table(place: Place, variables: Mapping[str, str]) -> Residue:
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


def _undo(place: Place, variables: Mapping[str, str]) -> Residue:
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


def _statistics(place: Place) -> Residue:
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


def _binlog(place: Place, variables: Mapping[str, str]) -> Residue:
    if variables.get("log_bin", "OFF") != "ON":
        return Residue("binary log", "unknown", "log_bin=OFF now.", "Delete files of an earlier one.")
    files = place.allowed("SHOW BINARY LOGS")
    size = (
        f"{sum(int(row[1]) for row in files):,} bytes in {counted(len(files), 'file')}"
        if files
        else "size not told"
    )
    return Residue(
        "binary log",
        "may hold plaintext",
        f"{size}; binlog_format={variables.get('binlog_format', '?')}, "
        f"binlog_row_image={variables.get('binlog_row_image', '?')}: a full row image holds the old value "
        "too.",
        "FLUSH BINARY LOGS; then PURGE BINARY LOGS BEFORE NOW(); once every replica and backup has what it "
        "needs.",
    )
