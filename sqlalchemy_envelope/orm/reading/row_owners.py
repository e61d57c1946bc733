"""The owners of the rows that a statement reads. If a row does not tell its owner, look among the objects
that the session has loaded, and then in the database, with one query for all rows of a fetch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath, LinkedPath, linked_paths
from sqlalchemy_envelope.orm.tables.rows import chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    Values = tuple[Any, ...]


class RowOwners(Names):
    """Finds the owners of the rows of one result."""

    __slots__ = ("_found", "_make_way", "_reads", "_sole")

    def __init__(
        self,
        session: Session | None,
        connection: Connection,
        options: Mapping[str, Any] | None = None,
        make_way: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(session, connection, options)
        self._reads = connection
        self._make_way = make_way
        self._found: dict[tuple[Any, Values], Values | None] = {}
        self._sole: dict[OwnerClass, Values | None] = {}

    def load(self, path: OwnerPath, rows: Iterable[Values]) -> None:
        """Look up the owners of all these rows together."""
        for linked in linked_paths(path):
            parts = {_part(path, linked, values) for values in rows} - {None}
            wanted = [
                one
                for one in parts
                if one is not None
                and (linked.identity, one) not in self._found
                and super(RowOwners, self).linked(linked, one) is None
            ]
            self._ask(linked, wanted)

    def ask_again(self, path: OwnerPath, values: Values) -> bool:
        """Ask the database for an owner that came from a loaded object, which may be stale.

        Returns:
            Whether the database names another owner.
        """
        otherwise = False
        for linked in linked_paths(path):
            part = _part(path, linked, values)
            if part is not None and (linked.identity, part) not in self._found:
                self._ask(linked, [part])
                otherwise |= self._found[linked.identity, part] != super().linked(linked, part)
        return otherwise

    def _ask(self, linked: LinkedPath, wanted: list[Values]) -> None:
        width = len(linked.remote)
        if wanted:
            self._make_way()
        for some in chunks(wanted):
            self._found.update(dict.fromkeys(((linked.identity, one) for one in some), None))
            for row in self._reads.execute(linked.query(some)):
                last = tuple(row[width:])
                if linked.leads(last):
                    self._found[linked.identity, tuple(row[:width])] = last

    def linked(self, path: LinkedPath, values: Values) -> Values | None:
        """Return the owner behind the row that these values refer to."""
        return self._found.get((path.identity, values)) or super().linked(path, values)

    def sole(self, owner_class: OwnerClass) -> Values | None:
        """Return the only row of a class; None if the class has no row, or several."""
        if owner_class not in self._sole:
            found = super().sole(owner_class)
            if found is None:
                self._make_way()
                rows = self._reads.execute(select(*owner_class.primary_key).limit(2)).all()
                found = tuple(rows[0]) if len(rows) == 1 else None
            self._sole[owner_class] = found
        return self._sole[owner_class]


def _part(path: OwnerPath, linked: LinkedPath, values: Values) -> Values | None:
    """Return a row's values for one of its paths; None if the row does not use that path."""
    if path is linked:
        return values if all(value is not None for value in values) else None
    assert isinstance(path, ChosenPath)  # noqa: S101 - other paths lead through no rows
    return next((mine for one, mine in path.parts(values) if one is linked), None)
