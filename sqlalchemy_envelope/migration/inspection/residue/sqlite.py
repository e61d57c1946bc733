"""Plaintext of a column that remains in SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.migration.inspection.residue.places import Place, Residue

if TYPE_CHECKING:
    from collections.abc import Iterator


def find(place: Place) -> Iterator[Residue]:
    """Every place where this kind of database may keep values of the column."""
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
    yield _journal(mode, file)
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


def _journal(mode: str, file: str) -> Residue:
    beside = [Path(f"{file}{end}") for end in ("-wal", "-journal")] if file else []
    sizes = {path.name: path.stat().st_size for path in beside if path.exists()}
    shown = ", ".join(f"{name} {size:,} bytes" for name, size in sizes.items()) or "no such file"
    cures = {
        "wal": "PRAGMA wal_checkpoint(TRUNCATE); after VACUUM, with no reader open: empties the -wal file.",
        "persist": "PRAGMA journal_mode=DELETE; removes the file.",
        # A connection in the mode PERSIST left it. A connection already in the mode DELETE removes nothing.
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
