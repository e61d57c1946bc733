"""Rows between an encrypted value and its owner: what may not be written to them.

A value is encrypted for the owner that its row leads to. Who makes a row on the way lead elsewhere would
leave the values behind it under the former owner's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, Update, event
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute

_LINKS = "links"


def watch_links(plan: Sequence[EncryptedAttribute]) -> None:
    """Watch the rows between these encrypted columns and their owners."""
    for attribute in plan:
        for path in linked_paths(attribute.encrypted.path):
            for mapper, keys in path.links():
                table: Any = mapper.local_table
                watched = records_of_table(table).setdefault(_LINKS, [])
                entry = (path, mapper, keys, attribute.encrypted.column)
                if not any(one[0].identity == path.identity and one[3] is entry[3] for one in watched):
                    watched.append(entry)
                    event.listen(mapper, "before_update", _before_update(entry), raw=True, propagate=True)


def _before_update(entry: Any) -> Any:
    path, mapper, keys, column = entry

    def before_update(_: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        instance: Any = state.obj()
        moved = [
            key
            for key in keys
            if key in state.committed_state
            and attributes.get_history(instance, key, PASSIVE_NO_INITIALIZE).has_changes()
        ]
        identity: Any = state.key
        if moved and connection.execute(path.dependents(mapper, identity[1], column)).first() is not None:
            raise _refusal(f"{state.class_.__name__}.{moved[0]}", column)

    return before_update


def check_links(connection: Connection, statement: Any, target: Any, multiparams: Any, params: Any) -> None:
    """Refuse an UPDATE that moves rows to another owner from the middle of a path. A flush is looked at
    object by object.

    Raises:
        StatementRefusedError: it does.
    """
    watched = records_of_table(target).get(_LINKS) if isinstance(target, Table) else None
    if watched is None or not isinstance(statement, Update):
        return
    session = session_of(connection)
    if session is not None and session._flushing:
        return
    for _, mapper, keys, column in watched:
        names = {mapper.get_property(key).columns[0].key for key in keys} | set(keys)
        written = {getattr(key, "key", key) for key in statement._values or ()}
        for row in multiparams or (params,):
            written |= row.keys()
        if written & names:
            raise _refusal(f"{target.name}.{min(written & names)}", column, is_statement=True)


def _refusal(what: str, column: Any, *, is_statement: bool = False) -> StatementRefusedError:
    where = f"{column.table.name}.{column.key}"
    # A statement is refused unseen; of an object it is asked what hangs on it.
    objects = (
        " Or change the objects in a session, which allows it where no such value hangs on the row."
        if is_statement
        else ""
    )
    return StatementRefusedError(
        f"{what} leads to the owner of encrypted values in {where}, and moving it would leave them "
        f"under the former "
        f"owner's key. Give the rows of {column.table.name} another parent, or empty {where} first "
        f"and write it anew.{objects}"
    )
