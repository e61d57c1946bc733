"""Token indexes and twins: another `Table` object that changes a text would leave the tags as they were.

A new row that a twin inserts has no tags: it is pending, and nothing of it is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import tokenized_of_table
from sqlalchemy_envelope.orm.tables.default_schema import schema_of
from sqlalchemy_envelope.orm.tables.raw_tables import is_raw
from sqlalchemy_envelope.orm.writing.forms import changed_by, column_key, target_of
from sqlalchemy_envelope.orm.writing.namesakes import namesakes_of
from sqlalchemy_envelope.orm.writing.stored_columns import holds_encrypted, stores_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn


def refuse_stale_tokens(
    connection: Connection, statement: Any, written: Iterable[str], options: Mapping[str, Any]
) -> None:
    """Refuse a statement that changes a text through a twin, and so leaves its tags as they were.

    Args:
        written: the names of the columns that it writes.

    Raises:
        StatementRefusedError: it does.
    """
    target, names = target_of(statement), set(written)
    if is_raw(target):
        return  # it encrypts a text under another key, or fills the tags afterwards
    if isinstance(statement, Insert):
        names &= {str(column_key(one)).lower() for one in changed_by(statement)}
    for table in namesakes_of(connection, target, options) if names else ():
        for index in tokenized_of_table(table):
            name = index.text.name.lower()
            # Other models of the process may have a table of this name.
            is_here = name in names and _has_tags(connection, target, index, options)
            if is_here and holds_encrypted(connection, target, name, options):
                raise StatementRefusedError(
                    f"A statement writes {table.name}.{index.text.name} through another Table object than "
                    f"the model's, and would leave the tags of its token index {index.key} as they were. "
                    "Write through the model or its own table."
                )


def _has_tags(
    connection: Connection, target: Any, index: TokenizedColumn, options: Mapping[str, Any]
) -> bool:
    """Whether the table of an index's tags is where the statement finds its own table."""
    return stores_values(connection, index.table.c.tag, schema_of(connection, target, options))
