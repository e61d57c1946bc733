"""Whether each row of a table has the tag of its value, in the indexes of the server's scope."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers


def out_of_step(session: Session, model: Any) -> list[Any]:
    """The primary keys of rows whose tag is not the tag of their value. The values' owners are unlocked."""
    table = sa.inspect(model).local_table
    found: list[Any] = []
    for index in indexes_of_table(table):
        if index.scope != "server":
            continue
        columns = [getattr(model, source.key) for source in index.sources]
        tag = sa.type_coerce(table.c[index.key], sa.LargeBinary)
        rows = session.execute(sa.select(*table.primary_key, *columns, tag)).all()
        hashers = server_hashers(session.connection(), index)
        for key, *values, stored in rows:
            data = index.kind.data(values)
            wanted = None if data is None or hashers.writes is None else hashers.writes.tag(data)
            if wanted != (None if stored is None else bytes(stored)):
                found.append(key)
    return found
