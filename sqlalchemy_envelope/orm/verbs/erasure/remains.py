"""Copies of destroyed keys that the database and its surroundings may still hold, and until when.

A shredding overwrites rows. Copies of the rows as they were stay in old row versions, logs, replicas and
backups. Whoever reads such a copy, and has the owner's secret or the provider's key, can still open it. Every
question is a SELECT, and none needs more rights than the application has.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.raw_tables import quoted_name
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Table


@dataclass(frozen=True)
class Remaining:
    """A place that may hold the wrapped keys after a shredding.

    Attributes:
        place: the name of the place.
        known: what the database tells about it.
        until: the time after which the place holds nothing any more; None if it is not known.
        cure: what empties the place sooner; empty if nothing does, or nothing has to.
    """

    place: str
    known: str
    until: dt.datetime | None
    cure: str


def remaining(
    connection: Connection, table: Table, now: dt.datetime, backups_kept: dt.timedelta | None
) -> tuple[Remaining, ...]:
    """Return the places that may hold rows of this table as they were.

    Args:
        backups_kept: how long the application keeps its backups, archived logs included.

    Raises:
        ConfigurationError: `backups_kept` is no time.
    """
    if not isinstance(backups_kept, (dt.timedelta, type(None))):
        raise ConfigurationError(
            f"backups_kept= takes a timedelta, not a {type(backups_kept).__name__}: `timedelta(days=30)`."
        )
    until = None if backups_kept is None else now + backups_kept
    search = _SEARCHES.get(connection.dialect.name)
    found = [] if search is None else list(search(connection, table, now, until))
    return (*found, _backups(backups_kept, until))


def _backups(backups_kept: dt.timedelta | None, until: dt.datetime | None) -> Remaining:
    kept = "for a time that was not told: `backups_kept=`"
    if backups_kept is not None:
        kept = f"for {counted(backups_kept.days, 'day')}"
    return Remaining(
        "backups",
        f"Backups, snapshots and dumps from before are kept {kept}. After a restore, shred again.",
        until,
        "Make a new backup, and delete the older ones.",
    )


def _of_postgresql(
    connection: Connection, table: Table, now: dt.datetime, until: dt.datetime | None
) -> Iterator[Remaining]:
    name = quoted_name(connection, table)
    row = _one(
        connection,
        "SELECT COALESCE(s.n_dead_tup, 0) AS dead, GREATEST(s.last_vacuum, s.last_autovacuum) AS vacuumed, "
        "current_setting('archive_mode') AS archived, "
        "(SELECT count(*) FROM pg_replication_slots) AS slots, "
        "(SELECT count(*) FROM pg_stat_replication) AS standbys, "
        "has_function_privilege('pg_ls_waldir()', 'EXECUTE') AS may_ask "
        "FROM (SELECT 1) AS one LEFT JOIN pg_stat_all_tables s "
        "ON s.relid = to_regclass(CAST(:name AS text))",
        name=name,
    )
    vacuumed = "never" if row.vacuumed is None else f"{row.vacuumed:%Y-%m-%d %H:%M}"
    yield Remaining(
        "old row versions",
        f"{row.dead:,} dead rows in {table.name}; last vacuum: {vacuumed}.",
        None,
        f"VACUUM (FULL) {name}; and of the tables of slots and grants. Then CHECKPOINT;",
    )
    known = "Its files are written anew in the course of work."
    if row.may_ask:
        wal = _one(connection, "SELECT sum(size) AS size, min(modification) AS oldest FROM pg_ls_waldir()")
        known = f"{int(wal.size or 0):,} bytes, the oldest of {wal.oldest:%Y-%m-%d %H:%M}."
    yield Remaining("write-ahead log", known, None, "CHECKPOINT; twice, with a pg_switch_wal() between.")
    if row.archived != "off":
        yield Remaining("archived log", f"archive_mode={row.archived}.", until, "As the backups.")
    if row.slots or row.standbys:
        yield Remaining(
            "replicas",
            f"{counted(row.standbys, 'standby', 'standbys')} connected, {counted(row.slots, 'slot')}. A "
            "replica has the change when it has caught up; its old row versions and log are its own matter.",
            None,
            "Look at the replay lag, and drop the slots of replicas that are gone.",
        )


def _of_sqlite(
    connection: Connection, table: Table, now: dt.datetime, until: dt.datetime | None
) -> Iterator[Remaining]:
    secure, free, mode = (
        _one(connection, f"SELECT * FROM pragma_{name}")[0]  # noqa: S608 - constants
        for name in ("secure_delete", "freelist_count", "journal_mode")
    )
    yield Remaining(
        "freed places of the file",
        f"secure_delete={secure} on this connection, {counted(int(free), 'free page')}.",
        now if secure else None,
        ""
        if secure
        else "`enforce_foreign_keys(engine)` switches secure_delete on; VACUUM; cleans the file.",
    )
    if str(mode).lower() == "wal":
        yield Remaining(
            "write-ahead log",
            "The -wal file holds earlier pages until it is emptied.",
            None,
            "PRAGMA wal_checkpoint(TRUNCATE); with no reader open.",
        )


def _of_mysql(
    connection: Connection, table: Table, now: dt.datetime, until: dt.datetime | None
) -> Iterator[Remaining]:
    yield Remaining(
        "undo and redo log",
        "Old row versions are purged, and the log is written anew, in the course of work.",
        None,
        f"OPTIMIZE TABLE {quoted_name(connection, table)}; and of the tables of slots and grants.",
    )
    seconds = "binlog_expire_logs_seconds"
    try:
        row = _one(connection, f"SELECT @@GLOBAL.log_bin AS log, @@GLOBAL.{seconds} AS kept")
    except DBAPIError:
        return  # MariaDB before 10.6 has no such variable
    if row.log:
        kept = int(row.kept or 0)
        yield Remaining(
            "binary log",
            f"{seconds}={kept}.",
            now + dt.timedelta(seconds=kept) if kept else None,
            "FLUSH BINARY LOGS; then PURGE BINARY LOGS BEFORE NOW(); once every replica has what it needs.",
        )


_SEARCHES = {
    "postgresql": _of_postgresql,
    "sqlite": _of_sqlite,
    "mysql": _of_mysql,
    "mariadb": _of_mysql,
}


def _one(connection: Connection, sql: str, **parameters: Any) -> Any:
    return connection.execute(text(sql), parameters).one()
