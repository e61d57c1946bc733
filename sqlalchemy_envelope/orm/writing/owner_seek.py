"""Whose rows a statement writes, where the rows do not say it themselves.

What lies between a row and its owner is looked for in the database, with one query for all rows of a
statement: a loaded object may be older than its row, and an UPDATE of the same flush was sent before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.current.context import unlocked_sessions
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.key_rows import chunks
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath, LinkedPath, among, linked_paths
from sqlalchemy_envelope.orm.tables.sole import sole_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    Values = tuple[Any, ...]
    Links = Mapping[tuple[tuple[Any, ...], Values], Values]


class OwnerSeek(Names):
    """Finds the owners of one statement's rows.

    Args:
        links: what the objects of a flush say: by path and values, the owner's primary key.
    """

    __slots__ = ("_bases", "_found", "_links", "_sole", "_writes")

    def __init__(
        self,
        session: Session | None,
        connection: Connection,
        options: Mapping[str, Any] | None = None,
        links: Links | None = None,
    ) -> None:
        super().__init__(session, connection, options)
        self._writes = connection
        self._links: Links = links or {}
        self._found: dict[tuple[Any, Values], Values | None] = {}
        self._bases: dict[tuple[Any, Values], Values] = {}
        self._sole: dict[OwnerClass, Values | None] = {}

    def load(self, path: OwnerPath, rows: Iterable[Values]) -> None:
        """Look up the owners of all these rows together."""
        for linked in linked_paths(path):
            wanted = set()
            for values in rows:
                mine = _part(path, linked, values)
                if mine is not None and (linked.identity, mine) not in self._found:
                    wanted.add(mine)
            self._load(linked, list(wanted))

    def linked(self, path: LinkedPath, values: Values) -> Values | None:
        """The owner behind the row that these values refer to, as the database says. A row that is not there
        yet is taken from the objects of the flush."""
        at = (path.identity, values)
        if at not in self._found:
            self._load(path, [values])
        return self._found[at] or self._links.get(at)

    def _load(self, path: LinkedPath, wanted: list[Values]) -> None:
        width = len(path.remote)
        for some in chunks(wanted):
            self._found.update(dict.fromkeys(((path.identity, values) for values in some), None))
            for row in self._writes.execute(path.query(some)):
                owner = tuple(row[width:])
                if None not in owner:
                    self._found[path.identity, tuple(row[:width])] = owner

    def load_bases(self, table: Table, path: OwnerPath, keys: Iterable[Values]) -> None:
        """Look up together what rows of a joined subclass say of their owners in the table that it extends.
        The rows there are locked as those between a row and its owner are."""
        mapper, bases = mapper_of_table(table), {column.table for column in path.columns}
        if mapper is None or len(bases) != 1:
            return
        (base,) = bases
        own = table.primary_key
        same = [c for one in own for c in mapper.get_property_by_column(one).columns if c.table is base]
        if len(same) != len(own):
            return
        for some in chunks(list(keys)):
            query: Any = select(*same, *path.columns).where(among(same, some))
            for row in self._writes.execute(query.with_for_update(read=True, key_share=True, of=base)):
                self._bases[path.identity, tuple(row[: len(same)])] = tuple(row[len(same) :])

    def in_base(self, table: Table, path: OwnerPath, key: Values) -> Values | None:
        """What a row of a joined subclass says of its owner in the table that it extends."""
        at = (path.identity, key)
        if at not in self._bases and None not in key:
            self.load_bases(table, path, [key])
        return self._bases.get(at)

    def sole(self, owner_class: OwnerClass) -> Values | None:
        """The one row of a class; in server mode it is made where there is none.

        Raises:
            ConfigurationError: it has several.
        """
        if owner_class not in self._sole:
            found = super().sole(owner_class) or self._stored(owner_class)
            if found is None and any(one.makes_keys for one in unlocked_sessions(self._session)):
                self._make(owner_class)
                found = self._stored(owner_class)
            self._sole[owner_class] = found
        return self._sole[owner_class]

    def _stored(self, owner_class: OwnerClass) -> Values | None:
        rows = self._writes.execute(select(*owner_class.primary_key).limit(2)).all()
        if len(rows) > 1:
            raise ConfigurationError(
                f"{owner_class.name} is declared sole=True and has several rows: whose key encrypts "
                f"is not clear. "
                "Delete all rows but the one whose keys are in use."
            )
        return tuple(rows[0]) if rows else None

    def _make(self, owner_class: OwnerClass) -> None:
        """Insert the sole row. Another process may do so at the same moment: both choose one primary key."""
        keys = {column.key: sole_key(column) for column in owner_class.primary_key}
        statement = insert(owner_class.primary_key[0].table).values(keys)
        try:
            with self._writes.begin_nested():
                self._writes.execute(statement)
        except IntegrityError as error:
            if self._stored(owner_class) is None:
                raise ConfigurationError(
                    f"There is no {owner_class.name} yet, and one with default values cannot be made: "
                    f"add it yourself, "
                    "`session.add(...)`, before the first encrypted value is written."
                ) from error


def _part(path: OwnerPath, linked: LinkedPath, values: Values) -> Values | None:
    """What a row says for one of its paths; None if it does not go that way."""
    if path is linked:
        return values if all(value is not None for value in values) else None
    assert isinstance(path, ChosenPath)  # noqa: S101 - other paths lead through no rows
    return next((mine for one, mine in path.parts(values) if one is linked), None)
