"""The time of a retirement is that of its commit: until then, other sessions see the key as active.

A key gets its time when its row is written. Where the commit comes much later, the time is written once more,
right before it. The commit of a connection that a session was given, as its outer transaction, is not seen.
"""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import update

from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.tables.session_notes import WithinTransaction, known_page, page_within, take_page

if TYPE_CHECKING:
    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId

LATE_SECONDS = 60.0
"""How much later than the retirement a commit may be. Nobody needs a time that is more exact."""
_ROUNDED = dt.timedelta(seconds=1)
"""MySQL stores whole seconds."""


@dataclass
class _Retired(WithinTransaction):
    """What this transaction retired: for each table the mapper, the keys and the first time."""

    tables: dict[Table, tuple[Any, set[KeyId], dt.datetime]] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)


def note_retired(session: Session, mapper: Any, table: Table, key_ids: set[KeyId], now: dt.datetime) -> None:
    """Note that this transaction retires keys, or writes to keys that were retired before."""
    if key_ids:
        page = page_within(session, _Retired, session.get_transaction())
        page.tables.setdefault(table, (mapper, set(), now))[1].update(key_ids)


def before_commit(session: Session) -> None:
    """Write the time of retirements again, if the first one was long ago."""
    page = known_page(session, _Retired)
    if page is None or session.in_nested_transaction():
        return
    take_page(session, _Retired)
    late = time.monotonic() - page.since >= LATE_SECONDS
    if not late or page.transaction() is not session.get_transaction():
        return
    for table, (mapper, key_ids, noted) in page.tables.items():
        c = table.c
        # Not of keys that another transaction retired before, nor of a savepoint that was rolled back.
        mine = c.state == KeyState.RETIRED.value, c.retired_at >= noted - _ROUNDED
        for some in chunks(list(key_ids)):
            statement = update(table).where(c.key_id.in_(some), *mine)
            statement = statement.values(retired_at=dt.datetime.now(dt.UTC))
            with session.no_autoflush:
                session.execute(statement, bind_arguments=bind_for(session, mapper, statement))
