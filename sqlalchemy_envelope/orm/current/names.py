"""Names of owners, as a session or a connection reaches them.

Every keyring, cache and comparison takes the name of an owner from here: it holds database, schema, class and
primary key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect
from sqlalchemy.orm.base import NO_VALUE

from sqlalchemy_envelope.orm.current.context import realm_of, unlocked_sessions
from sqlalchemy_envelope.orm.current.sole_rows import known_in
from sqlalchemy_envelope.orm.tables.location import location_of, location_on
from sqlalchemy_envelope.orm.tables.owner_paths import referred, referring
from sqlalchemy_envelope.orm.tables.owners import LOCATION_SIZE, Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath, OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass


class Names:
    """The names of owners, for one statement or one look at a session's objects.

    The location of each class is looked up once.

    Args:
        session: the session whose tables are meant.
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
        """The location of the owners of a class."""
        location = self._where.get(owner_class)
        if location is None:
            realm = realm_of(self._session)
            if self._connection is not None:
                location = location_on(self._connection, owner_class.mapper, realm, self._options)
            else:
                assert self._session is not None  # noqa: S101 - session or connection is given
                location = location_of(self._session, owner_class.mapper, realm)
            self._where[owner_class] = location
        return location

    def of(self, path: OwnerPath, values: Sequence[Any]) -> OwnerId | None:
        """The owner that a row leads to by these values; None if they lead to none, as far as is known
        here."""
        found = path.find(values, self)
        return None if found is None else self.owner(*found)

    def linked(self, path: LinkedPath, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The values by which the row at the end of the path names its owner; None if the session has not
        loaded the way."""
        session = self._session
        for at, step in enumerate(path.steps):
            mapper, names = step.mapper, path.remote if at == 0 else referred(step)
            keys = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
            if session is None or sorted(names) != sorted(keys):
                return None
            by_name = dict(zip(names, values, strict=True))
            identity = mapper.identity_key_from_primary_key(tuple(by_name[key] for key in keys))
            instance = session.identity_map.get(identity)
            onward = referring(path.steps[at + 1]) if at + 1 < len(path.steps) else path.last
            held = {} if instance is None else inspect(instance).dict
            if any(key not in held for key in onward):
                return None
            values = tuple(inspect(instance).committed_state.get(key, held[key]) for key in onward)
            if NO_VALUE in values:  # an attribute was changed before it was loaded
                return None
            if at + 1 < len(path.steps) and None in values:
                return None
        return values if path.leads(values) else None

    def sole(self, owner_class: OwnerClass) -> tuple[Any, ...] | None:
        """The sole owner, if the transaction found it, or if the keys of a single such owner are open here.

        Reading needs no more than this. Writing looks in the database.
        """
        where = self.where(owner_class)
        if self._session is not None and (known := known_in(self._session).get((owner_class, where))):
            return known
        opened = {key for keys in unlocked_sessions(self._session) for key in keys.sole(owner_class, where)}
        return opened.pop() if len(opened) == 1 else None

    def place(self, owner_class: OwnerClass, primary_key: tuple[Any, ...]) -> Place:
        """The owner with this primary key."""
        return Place(owner_class, primary_key, self.where(owner_class))

    def owner(self, owner_class: OwnerClass, primary_key: tuple[Any, ...]) -> OwnerId:
        """The name of the owner with this primary key."""
        return owner_class.owner_id(self.where(owner_class), primary_key)


def reference_in(owner: OwnerId) -> bytes:
    """An owner's name without its location: for an object that belongs to no session."""
    return owner[LOCATION_SIZE:]
