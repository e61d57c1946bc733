"""Take the tags out of an index, chunk by chunk, and its keys out of the table of index keys.

The models may no longer know the index. So the column is found in the database.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, delete, func, inspect, null, select, tuple_, update
from sqlalchemy import column as bare_column
from sqlalchemy import table as bare_table
from sqlalchemy.orm import Session

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.running.reports import Progress
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TAG_COLUMN
from sqlalchemy_envelope.orm.tables.bases import metadata_of
from sqlalchemy_envelope.orm.tables.python_types import python_type_of
from sqlalchemy_envelope.orm.writing.marks import mark

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Table

    from sqlalchemy_envelope.migration.running.setting import Setting

_CHUNK = 1000


class EmptiedIndex:
    """A column of tags that is emptied.

    Raises:
        ConfigurationError: the database has no such column of bytes, or it is no index.
    """

    def __init__(self, setting: Setting, base: Any, name: str) -> None:
        self._setting, self._name = setting, name
        table, _, column = name.rpartition(".")
        found = [one for metadata in metadata_of(base) for one in metadata.tables.values()]
        tables = [one for one in found if table in (one.name, one.key)]
        if len(tables) != 1:
            raise ConfigurationError(f"{name!r}: the models have {len(tables)} tables {table!r}.")
        self._table: Table = tables[0]
        with setting.engine.connect() as connection:
            self._columns = self._found(connection, column)
            self._keys = self._key_table(connection)

    def _found(self, connection: Connection, name: str) -> list[Any]:
        """The column of tags, and that of its guard, as the database has them."""
        there = inspect(connection).get_columns(self._table.name, self._table.schema)
        bytes_ = {one["name"] for one in there if python_type_of(one["type"]) is bytes}
        if name not in bytes_:
            self._refuse_tokens(connection, name)
            raise ConfigurationError(f"The database has no column of bytes {self._name!r}.")
        if len(name) > 0 and self._holds_ciphertext(name):
            raise ConfigurationError(f"{self._name} is an encrypted column, and no blind index.")
        names = [name, *[one for one in (f"{name}_guard",) if one in bytes_]]
        return [bare_column(one, LargeBinary()) for one in names]

    def _refuse_tokens(self, connection: Connection, name: str) -> None:
        tags, schema, inspector = f"{self._table.name}_{name}", self._table.schema, inspect(connection)
        if not inspector.has_table(tags, schema):
            return
        if TAG_COLUMN in [one["name"] for one in inspector.get_columns(tags, schema)]:
            raise ConfigurationError(
                f"{self._name} is a token index. Its tags are in the table {tags}: remove the token_index "
                "from the models, deploy that, and drop the table in a revision of Alembic. Of an index with "
                f"the scope 'server', delete the keys too: the rows of {self._table.name}_indexkey with its "
                "label."
            )

    def _holds_ciphertext(self, name: str) -> bool:
        column = next((one for one in self._table.columns if one.name == name), None)
        return column is not None and getattr(column.type, "field", None) is not None

    def _key_table(self, connection: Connection) -> Any:
        name = f"{self._table.name}_indexkey"
        if not inspect(connection).has_table(name, self._table.schema):
            return None
        return bare_table(name, bare_column("label"), schema=self._table.schema)

    def run(
        self,
        label: str,
        *,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[int, bool]:
        """Empty it: how many rows, and whether none is left. The keys go last."""
        keys = [bare_column(one.name, one.type) for one in self._table.primary_key]
        table = bare_table(self._table.name, *keys, *self._columns, schema=self._table.schema)
        key: Any = table.c[keys[0].name] if len(keys) == 1 else tuple_(*(table.c[one.name] for one in keys))
        tags = [table.c[one.name] for one in self._columns]
        left = tags[0].is_not(None) if len(tags) == 1 else tags[0].is_not(None) | tags[1].is_not(None)
        some = select(*(table.c[one.name] for one in keys)).where(left).limit(_CHUNK)
        done, began = 0, time.monotonic()
        with Session(self._setting.engine) as session:
            total = int(session.execute(select(func.count()).select_from(table).where(left)).scalar_one())
            while not stop():
                found = [tuple(row) for row in session.execute(some)]
                if not found:
                    self._forget_keys(session, label)
                    return done, True
                values = [row[0] for row in found] if len(keys) == 1 else found
                statement = update(table).where(key.in_(values)).values({one.name: null() for one in tags})
                session.execute(mark(statement))
                session.commit()
                done += len(found)
                if progress is not None:
                    rate = done / max(time.monotonic() - began, 1e-6)
                    rest = max(total - done, 0) / rate
                    progress(Progress(self._name, "index drop", done, max(total, done), rate, rest))
        return done, False

    def _forget_keys(self, session: Session, label: str) -> None:
        if self._keys is not None:
            session.execute(delete(self._keys).where(self._keys.c.label == label))
        session.commit()
