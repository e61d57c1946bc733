"""Plaintext of a column that remains in PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.migration.inspection.residue.places import Place, Residue
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator


def find(place: Place) -> Iterator[Residue]:
    """Every place where this kind of database may keep values of the column."""
    table = place.one("SELECT CAST(CAST(:name AS regclass) AS oid) AS oid", name=place.sql_table).oid
    yield _table(place, table)
    if place.name is not None:
        yield _statistics(place, table)
        yield from _extended_statistics(place, table)
        yield from _copies_of_column(place, table)
    else:
        yield _statistics_file()
    yield _wal(place)
    yield from _copies(place)
    yield _log(place)
    if place.all("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        yield Residue(
            "pg_stat_statements",
            "may hold plaintext",
            "It normalises SELECT and DML, and keeps utility statements as they were written.",
            "SELECT pg_stat_statements_reset();",
        )


def _table(place: Place, table: int) -> Residue:
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
            f" {counted(row.dropped, 'dropped column')}: rows written before keep the "
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


def _statistics(place: Place, table: int) -> Residue:
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
        return Residue(
            "planner statistics",
            "holds plaintext",
            f"pg_stats has {' and '.join(words[part] for part in dict.fromkeys(parts))} of {place.name}.",
            f"ANALYZE {place.sql_table}; once the column is NULL everywhere (dropping it removes them too). "
            "Then VACUUM FULL pg_catalog.pg_statistic; as a superuser: the old statistics lie in its file.",
        )
    return _statistics_file()


def _extended_statistics(place: Place, table: int) -> Iterator[Residue]:
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


def _copies_of_column(place: Place, table: int) -> Iterator[Residue]:
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


def _statistics_file() -> Residue:
    return Residue(
        "planner statistics",
        "may hold plaintext",
        "None are kept for the column now; earlier ones lie in the file of pg_statistic until it is "
        "written anew.",
        "VACUUM FULL pg_catalog.pg_statistic; as a superuser.",
    )


def _wal(place: Place) -> Residue:
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
        "`SELECT pg_reload_conf();`, a second later `SELECT pg_switch_wal(); CHECKPOINT;` twice: old files "
        "are deleted rather than reused. Set it back afterwards."
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


def _copies(place: Place) -> Iterator[Residue]:
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


def _log(place: Place) -> Residue:
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
