"""The triggers that keep both columns of a migration true to each other, as SQL of each database.

`track`: a write that changes the previous column and leaves the encrypted column as it was makes the row
pending: the trigger sets the encrypted value to NULL. So a program that knows nothing of the migration may go
on writing, and its rows are found. `guard`, for the moment of the contract: such a write is refused. A write
of anything but ciphertext to the encrypted column is refused too, as by the column's CHECK if it has a CHECK.

Values are compared as bytes, not by the column's collation: "Ada" for "ada" is a change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.triggers.mysql import MySqlTriggers
from sqlalchemy_envelope.migration.database.triggers.postgresql import PostgresqlTriggers
from sqlalchemy_envelope.migration.database.triggers.sqlite import SqliteTriggers
from sqlalchemy_envelope.migration.database.triggers.tracked import Tracked, quoter

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.migration.database.triggers.common import Triggers

__all__ = ["Tracked", "quoter", "triggers_for"]

_KINDS: dict[str, type[Triggers]] = {
    "postgresql": PostgresqlTriggers,
    "sqlite": SqliteTriggers,
    "mysql": MySqlTriggers,
    "mariadb": MySqlTriggers,
}


def triggers_for(dialect: Dialect, columns: Tracked) -> Triggers:
    """The triggers of two columns, on this kind of database.

    Raises:
        ConfigurationError: there are no triggers for this kind of database.
    """
    kind = _KINDS.get(dialect.name)
    if kind is None:
        raise ConfigurationError(
            f"Columns cannot be tracked on {dialect.name}: PostgreSQL, SQLite, MySQL and MariaDB can."
        )
    return kind(dialect, columns)
