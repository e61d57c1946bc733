"""The plan for a column: its obstacles, how many owners need keys, and how fast the database writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.migration.inspection.costs import find_owners_without_keys, find_speed
from sqlalchemy_envelope.migration.inspection.obstacles import find_obstacles

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.inspection.findings import Finding


def plan_of(engine: Engine, column: MigratingColumn, provider: str | None) -> list[Finding]:
    """All findings about a column. If its table is missing, that is the only finding."""
    with engine.connect() as connection:
        found = find_obstacles(connection, column)
        if any(one.code in ("no-table", "no-previous-column") for one in found):
            return found
        found += find_owners_without_keys(connection, column, provider)
    counts = [one.count for one in found if one.code == "rows"]
    return found + find_speed(engine, column, counts[0] if counts else None)
