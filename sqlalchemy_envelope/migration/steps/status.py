"""The state of a column's migration, counted in its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.record import Record
from sqlalchemy_envelope.migration.database.state import Job, Phase
from sqlalchemy_envelope.migration.running.ranges import Ranges
from sqlalchemy_envelope.migration.running.reports import ColumnStatus

if TYPE_CHECKING:
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.running.setting import Setting


def status_of(setting: Setting, column: MigratingColumn) -> ColumnStatus:
    """The state of a column's migration."""
    done = late = pending = both = alone = unowned = 0
    with Session(setting.engine) as session:
        connection, names = session.connection(), schema.tracked(column)
        now = Record(connection, column.name).read()
        rows = setting.rows(connection, column)
        if not schema.has_column(connection, names, names.encrypted):
            pending = rows.count(connection, rows.previous.is_not(None))
        else:
            if not schema.has_column(connection, names, names.previous):
                # The column was contracted, while this program's models still declare it.
                alone = rows.count(connection, rows.encrypted.is_not(None))
            else:
                pending = rows.count(connection, rows.pending)
                both = rows.count(connection, rows.previous.is_not(None) & rows.encrypted.is_not(None))
                alone = rows.count(connection, rows.encrypted_alone)
                unowned = rows.count(connection, rows.pending & ~rows.owned) if pending else 0
            ranges = Ranges(rows, column.name, Job.BACKFILL)
            if now.phase is not Phase.NEW and ranges.exist(session):
                count = ranges.count(session)
                done, late = count.rows, count.late
    return ColumnStatus(
        column.name,
        now.phase,
        column.policy,
        pending,
        both,
        alone,
        unowned,
        done,
        late,
        now.verified_at,
        now.mismatches,
        now.locked,
        now.sample,
    )
