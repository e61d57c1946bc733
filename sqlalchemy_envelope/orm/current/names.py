"""Names of owners, as a session or a connection reaches them.

Every keyring, cache and comparison takes an owner's name from here: it says database, schema, class and
primary key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.current.context import realm_of
from sqlalchemy_envelope.orm.tables.location import LOCATION_SIZE, location_of, location_on
from sqlalchemy_envelope.orm.tables.owners import Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.location import Location
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, OwnerPath


class Names:
    """The names of owners for one statement, or for one look at a session's objects: where each class lies is
    found once.

    Args:
        session: whose tables are meant.
        connection: the connection of a statement, which knows best where the statement goes.
        options: the statement's execution options.
    """

    __slots__ = ("_connection", "_options", "_session", "_where")

    def __init__(
        self,
        session: Session | None,
        connection: Connection | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = session
        self._connection = connection
        self._options = options
        self._where: dict[OwnerClass, Location] = {}

    def where(self, owner_class: OwnerClass) -> Location:
        """Where the owners of a class lie."""
        found = self._where.get(owner_class)
        if found is None:
            realm = realm_of(self._session)
            if self._connection is not None:
                found = location_on(self._connection, owner_class.mapper, realm, self._options)
            else:
                assert self._session is not None  # noqa: S101 - one of the two is given
                found = location_of(self._session, owner_class.mapper, realm)
            self._where[owner_class] = found
        return found

    def of(self, path: OwnerPath, values: Sequence[Any]) -> OwnerId | None:
        """The owner that a row names by these values, or None if one of them is missing."""
        return path.owner_id(self.where(path.owner_class), values)

    def place(self, owner_class: OwnerClass, primary_key: tuple[Any, ...]) -> Place:
        """The owner with this primary key."""
        return Place(owner_class, primary_key, self.where(owner_class))

    def owner(self, owner_class: OwnerClass, primary_key: tuple[Any, ...]) -> OwnerId:
        """The name of the owner with this primary key."""
        return owner_class.owner_id(self.where(owner_class), primary_key)


def reference_in(owner: OwnerId) -> bytes:
    """An owner's name without its location: for an object that belongs to no session."""
    return owner[LOCATION_SIZE:]
