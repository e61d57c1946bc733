"""A statement with a `schema_translate_map` of its own: its rows and their keys would come from two schemas.

Keys are looked up in the schema of the session's connection. This also happens later, when an attribute is
read and the statement is gone. So such a statement may read no encrypted column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.sql.compiler import SQLCompiler

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.encrypted_type import format_in

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MAP = "schema_translate_map"


def check(connection: Connection, sql: str, compiled: Any, execution: Any) -> None:
    """Refuse a statement that reads encrypted columns with a map of its own.

    Raises:
        ConfigurationError: the statement reads encrypted columns with such a map.
    """
    mine, its = connection.get_execution_options().get(_MAP), execution.execution_options.get(_MAP)
    if its is mine or its == mine:
        return
    labels = labels_read(compiled)
    if labels:
        raise ConfigurationError(
            f"A statement reads {', '.join(labels)} with a {_MAP} of its own, and the keys of its rows would "
            f"be looked for in another schema. Set it on the engine, "
            f"`engine.execution_options({_MAP}=...)`, or on the connection, "
            f"`session.connection(execution_options={{'{_MAP}': ...}})`."
        )


def labels_read(compiled: Any) -> list[str]:
    """Return the labels of the encrypted columns that a compiled statement reads."""
    entries = compiled._result_columns if isinstance(compiled, SQLCompiler) else ()
    formats = [format_in(entry.type) for entry in entries]
    return sorted({str(one.label) for one in formats if one is not None})
