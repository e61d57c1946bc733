"""The search for a row's owner, where the row does not name it.

The rows between a row and its owner are looked for in the database, with one query for all rows of a
statement: a loaded object may be older than its row, and an UPDATE of the same flush may have been sent
already.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, UnboundExecutionError

from sqlalchemy_envelope.exceptions import ConfigurationError, TransactionConflictError
from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.columns.plans import key_in_base
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.current.context import realm_of, unlocked_sessions
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.sole_rows import known_in
from sqlalchemy_envelope.orm.tables.databases import database_name
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath, LinkedPath, among, linked_paths
from sqlalchemy_envelope.orm.tables.rows import chunks, insert_unless_there, shows_others_when_locked
from sqlalchemy_envelope.orm.tables.sole import sole_key
from sqlalchemy_envelope.orm.writing.newcomers import enrolling_in
from sqlalchemy_envelope.orm.writing.sole_owners import give_sole_key, sole_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection, Table
    from sqlalchemy.orm import Mapper, Session

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    Values = tuple[Any, ...]
    Links = Mapping[tuple[tuple[Any, ...], Values], Values]


class OwnerSeek(Names):
    """Finds the owners of one statement's rows.

    Args:
        links: by path and a row's values for it: the owner's values at the end of the path, as the objects of
            a flush have them.
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
            parts = {_part(path, linked, values) for values in rows}
            wanted = [part for part in parts if part is not None]
            self._load(linked, [part for part in wanted if (linked.identity, part) not in self._found])

    def linked(self, path: LinkedPath, values: Values) -> Values | None:
        """The owner's values at the end of the path, as the database has them. If that row does not exist
        yet, the flush's objects give them."""
        at = (path.identity, values)
        if at not in self._found:
            self._load(path, [values])
        return self._found[at] or self._links.get(at)

    def _load(self, path: LinkedPath, wanted: list[Values]) -> None:
        for step in path.steps:
            self.require_here(step.mapper)
        width = len(path.remote)
        for chunk in chunks(wanted):
            self._found.update(dict.fromkeys(((path.identity, values) for values in chunk), None))
            for row in self._writes.execute(path.query(chunk, locks=True)):
                last = tuple(row[width:])
                if path.leads(last):
                    self._found[path.identity, tuple(row[:width])] = last

    def load_bases(self, table: Table, path: OwnerPath, keys: Iterable[Values]) -> None:
        """Look up together the owner's values of a joined subclass's rows in the table that it extends.
        Those rows are locked, as the rows between a row and its owner are."""
        same = key_in_base(table, path)
        if not same:
            return
        base = same[0].table
        for chunk in chunks(list(keys)):
            query: Any = select(*same, *path.columns).where(among(same, chunk))
            for row in self._writes.execute(query.with_for_update(read=True, key_share=True, of=base)):
                self._bases[path.identity, tuple(row[: len(same)])] = tuple(row[len(same) :])

    def in_base(self, table: Table, path: OwnerPath, key: Values) -> Values | None:
        """The owner's values of a joined subclass's row in the table that it extends."""
        at = (path.identity, key)
        if at not in self._bases and None not in key:
            self.load_bases(table, path, [key])
        return self._bases.get(at)

    def sole(self, owner_class: OwnerClass) -> Values | None:
        """The one row of a class: the new row of this flush, else the row in the database. In server mode a
        missing row is made.

        Raises:
            ConfigurationError: the class has several rows.
        """
        if owner_class not in self._sole:
            self._sole[owner_class] = self._new_in_flush(owner_class) or self._in_database(owner_class)
        return self._sole[owner_class]

    def key_states(self, owner_class: OwnerClass, key: Values) -> set[str]:
        """The states of an owner's keys in the database, each once: asked for an error alone."""
        keys = owner_class.key_class
        if keys is None:
            return {KeyState.ACTIVE.value}
        state = keys.__table__.c.state
        query: Any = select(state).where(among(owner_class.owner_columns, [key])).distinct()
        return set(self._writes.execute(query).scalars())

    def is_there(self, owner_class: OwnerClass, key: Values) -> bool:
        """Whether an owner's row is in the database: asked for an error alone."""
        keys = owner_class.primary_key
        return self._writes.execute(select(*keys).where(among(keys, [key])).limit(1)).first() is not None

    def require_here(self, mapper: Mapper[Any]) -> None:
        """Refuse a class whose rows the session has in another database than the rows that the statement
        writes.

        Raises:
            ConfigurationError: it has them elsewhere.
        """
        if self._session is None:
            return
        try:
            there = bind_of(self._session, mapper).engine
        except UnboundExecutionError:
            return
        realm = realm_of(self._session)
        if database_name(there, realm) != database_name(self._writes.engine, realm):
            name = mapper.class_.__name__
            raise ConfigurationError(
                f"This session has {name} in another database than the rows that a statement encrypts, and "
                "a row, its owner and what lies between them are looked for in one database. Put both behind "
                f"one engine (`binds=`), or encrypt the rows for an owner of their own database: an `owner=` "
                f"that does not lead to {name}."
            )

    def _new_in_flush(self, owner_class: OwnerClass) -> Values | None:
        """The sole owner that is being enrolled: its row may be written after rows that it owns."""
        for newcomer in enrolling_in(self._session).values():
            if newcomer.owner_class is owner_class:
                give_sole_key(newcomer.state)
                return current_key(newcomer.state)
        return None

    def _in_database(self, owner_class: OwnerClass) -> Values | None:
        # Asked although a key is open here: the row may have been deleted since, and another row made.
        session, where = self._session, self.where(owner_class)
        known = {} if session is None else known_in(session)
        if (owner_class, where) in known:
            return known[owner_class, where]
        self.require_here(owner_class.mapper)
        connection = self._writes
        key = sole_row(connection, owner_class)
        if key is None and any(unlocked.makes_keys for unlocked in unlocked_sessions(session)):
            key = _make(connection, owner_class)
        if session is not None and key is not None:
            known_in(session)[owner_class, where] = key
        return key


def _make(connection: Connection, owner_class: OwnerClass) -> Values:
    """Insert the sole row. Another process may do so at the same moment, and chooses the same primary key.

    Raises:
        DBAPIError: the other process committed after this transaction's snapshot was taken (SQLSTATE 40001).
        TransactionConflictError: the row is gone again.
        ConfigurationError: no row can be made with default values.
    """
    name = owner_class.name
    table: Any = owner_class.primary_key[0].table
    keys = {column.key: sole_key(column) for column in owner_class.primary_key}
    statement = insert_unless_there(connection.dialect.name, table, owner_class.primary_key[0]).values(keys)
    try:
        with connection.begin_nested():
            connection.execute(statement)
    except IntegrityError as error:
        raise ConfigurationError(
            f"There is no {name} yet, and none can be made with default values: add it yourself, "
            "`session.add(...)`, before the first encrypted value is written."
        ) from error
    key = sole_row(connection, owner_class, for_update=shows_others_when_locked(connection.dialect))
    if key is None:
        raise TransactionConflictError(
            f"The row of {name} was made, and this transaction does not see it: others delete it at this "
            "moment, or a row policy of the database hides it. Run the transaction again."
        )
    return key


def _part(path: OwnerPath, linked: LinkedPath, values: Values) -> Values | None:
    """A row's values for one of its paths; None if the row does not use that path."""
    if path is linked:
        return values if all(value is not None for value in values) else None
    assert isinstance(path, ChosenPath)  # noqa: S101 - other paths lead through no rows
    return next((part for own, part in path.parts(values) if own is linked), None)
