"""The engine of our statements: that of the owner, or of the granting row, that their rows belong to.

A session may choose it by mapped class, by table, or by the kind of statement (`binds=`, a `get_bind` of the
application's). The application names its own classes there and not ours, so we ask as if the statement were
on the owner's table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import SelectBase, select, update

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.records import records_of_mapper

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper, Session

_BINDS = "bind_arguments"


def bind_for(
    session: Session, mapper: Mapper[Any], statement: object = None, *, locks: bool = False
) -> dict[str, Any]:
    """The `bind_arguments` for a statement on the rows beside those of this mapper.

    Args:
        statement: one that writes where it is left out.
        locks: whether the statement is a SELECT FOR UPDATE.

    Raises:
        ConfigurationError: the session spreads the rows of one class over several databases.
    """
    _refuse_shards(session)
    known: dict[bool, dict[str, Any]] = records_of_mapper(mapper).setdefault(_BINDS, {})
    writes = locks or statement is None or not isinstance(statement, SelectBase)
    if writes not in known:
        # Of writes the UPDATE: a session that reads from replicas tells by it, whatever else it asks for.
        table: Any = mapper.local_table
        clause: Any = update(table) if writes else select(table)
        known[writes] = {"mapper": mapper, "clause": clause}
    return known[writes]


def _refuse_shards(session: Session) -> None:
    # Whoever has such a session has imported its module; nobody else has to.
    module: Any = sys.modules.get("sqlalchemy.ext.horizontal_shard")
    if module is not None and isinstance(session, module.ShardedSession):
        raise ConfigurationError(
            "A ShardedSession is not supported: the keys of an owner have to be in the owner's own database, "
            "and owners of different shards can have the same primary key. Open one Session for each shard, "
            "`Session(engine_of_the_shard)`."
        )
