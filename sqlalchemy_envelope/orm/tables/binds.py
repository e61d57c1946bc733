"""The engine of this library's statements: the one that the session uses for the owner, or for the granting
row, to which the key rows belong.

A session may choose its engine by mapped class, by table, or by the kind of statement (`binds=`, a `get_bind`
of the application's own). An application names its own classes there and not those of this library. So the
session is asked as if the statement were on the owner's table.
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
    """The `bind_arguments` for a statement on the key rows or grants of this mapper's rows.

    Args:
        statement: what will be sent; if it is left out, a write.
        locks: whether the statement is a SELECT FOR UPDATE.

    Raises:
        ConfigurationError: the session spreads the rows of one class over several databases.
    """
    _refuse_shards(session)
    known: dict[bool, dict[str, Any]] = records_of_mapper(mapper).setdefault(_BINDS, {})
    writes = locks or statement is None or not isinstance(statement, SelectBase)
    if writes not in known:
        # An UPDATE stands for all writes: by it a session that reads from replicas recognises a write.
        table: Any = mapper.local_table
        clause: Any = update(table) if writes else select(table)
        known[writes] = {"mapper": mapper, "clause": clause}
    return known[writes]


def _refuse_shards(session: Session) -> None:
    # An application with such a session has imported its module; no other application has to.
    module: Any = sys.modules.get("sqlalchemy.ext.horizontal_shard")
    if module is not None and isinstance(session, module.ShardedSession):
        raise ConfigurationError(
            "A ShardedSession is not supported: the keys of an owner have to be in the owner's own database, "
            "and owners of different shards can have the same primary key. Open one Session for each shard, "
            "`Session(engine_of_the_shard)`."
        )
