"""Rows that are newer than a transaction's snapshot: a statement that has to change all rows misses them.

At REPEATABLE READ and SERIALIZABLE, PostgreSQL shows a transaction the rows of its first statement. Whoever
takes the tags of an owner away waits for all who write for the owner, and holds the owner's keys from then
on. But a row that was committed before that, and after the snapshot, is in the way of no lock, and would keep
its tag. So another connection looks for it, which sees what is committed now.

MySQL's UPDATE and DELETE see the newest rows, and SQLite refuses to write by an old snapshot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, bindparam, func, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.exceptions import ConfigurationError, TransactionConflictError
from sqlalchemy_envelope.orm.tables.conflict_errors import sql_state
from sqlalchemy_envelope.orm.tables.own_transaction import ONE_CONNECTION
from sqlalchemy_envelope.orm.tables.raw_tables import UNCACHED
from sqlalchemy_envelope.orm.tables.rows import chunks, matches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement, Connection

_SNAPSHOTS = ("REPEATABLE READ", "SERIALIZABLE")
# A transaction number below that of the oldest that ran when the snapshot was taken is in the snapshot, also
# if it is that of a savepoint. `age` compares the two, for the numbers start again after four billion.
_MAY_BE_NEWER = "age(xmin) <= age(CAST(:oldest AS xid))"
_OLDEST = "SELECT txid_snapshot_xmin(txid_current_snapshot()) % 4294967296, current_setting('search_path')"
_NOT_SHOWN = ("42501", "42703")
"""SQLSTATE: a row policy is in the way; a view has no numbers of transactions."""


def refuse_newer(connection: Connection, keys: Sequence[Any], condition: ColumnElement[bool]) -> None:
    """Refuse to go on if a row is newer than this transaction's snapshot. Nobody else may write such rows any
    more when this is called.

    Args:
        keys: the columns that tell a row of one table.
        condition: which rows are to be changed.

    Raises:
        TransactionConflictError: there is such a row, or the transaction itself deleted a row lately that
            still looks so. Run again, it has a newer snapshot.
        DBAPIError: the same, of a row that was changed (SQLSTATE 40001).
        ConfigurationError: no other connection sees all rows.
    """
    if connection.dialect.name != "postgresql" or connection.get_isolation_level() not in _SNAPSHOTS:
        return
    for some in chunks(_committed_lately(connection, keys, condition)):
        # Locked: PostgreSQL refuses the lock if the row was changed after the snapshot.
        query = select(*keys).where(matches(keys, some)).with_for_update(key_share=True)
        if len(connection.execute(query, execution_options=UNCACHED).all()) < len(some):
            raise TransactionConflictError(
                f"Another transaction wrote a row of {keys[0].table.name} after the snapshot of this "
                "transaction was taken, so that this one does not see it. Run the transaction again."
            )


def _committed_lately(
    connection: Connection, keys: Sequence[Any], condition: ColumnElement[bool]
) -> list[tuple[Any, ...]]:
    """The rows that are committed now, of which some may be newer than the snapshot."""
    if isinstance(connection.engine.pool, ONE_CONNECTION):
        raise _cannot_see(connection)
    oldest, path = connection.execute(text(_OLDEST)).one()
    options: dict[str, Any] = {"isolation_level": "READ COMMITTED"}
    options["schema_translate_map"] = connection.get_execution_options().get("schema_translate_map")
    lately = text(_MAY_BE_NEWER).bindparams(bindparam("oldest", str(oldest), Text()))
    with connection.engine.connect() as other:
        other = other.execution_options(**options)
        with other.begin():
            other.execute(select(func.set_config("search_path", path, True)))
            # Rather an error than rows that a policy hides from a connection without the settings of this.
            other.execute(text("SET LOCAL row_security = off"))
            try:
                query = select(*keys).where(condition, lately)
                return [tuple(row) for row in other.execute(query, execution_options=UNCACHED)]
            except DBAPIError as error:
                if sql_state(error) not in _NOT_SHOWN:
                    raise
    raise _cannot_see(connection)


def _cannot_see(connection: Connection) -> ConfigurationError:
    return ConfigurationError(
        f"At {connection.get_isolation_level()} this transaction does not see rows that were committed after "
        "it began, and no other connection here can look for them: there is one only, or it is not shown "
        "every row. Use a session with the isolation level READ COMMITTED."
    )
