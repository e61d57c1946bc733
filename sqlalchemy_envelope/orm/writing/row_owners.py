"""Owners of the rows that a statement writes.

A row's owner is named by the row itself, by the object behind it, by the rows that lead to the owner, or,
where none of these does, by `using(owner)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.attributes import instance_state

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.state import owner_values
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.tables.owner_paths import SolePath
from sqlalchemy_envelope.orm.writing.missing_owner import new_owner, not_set, unnamed_owner
from sqlalchemy_envelope.orm.writing.newcomers import enrolling_owner
from sqlalchemy_envelope.orm.writing.owner_columns import default_beside, why_unknown
from sqlalchemy_envelope.orm.writing.owner_seek import OwnerSeek

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]
    Values = tuple[Any, ...]


class RowOwners:
    """The owners of one statement's rows.

    Attributes:
        under_using: the paths of an UPDATE whose owner `using` alone names.
    """

    __slots__ = ("_counted", "_rows", "_seek", "under_using")

    def __init__(self, rows: WrittenRows, options: Mapping[str, Any]) -> None:
        self._rows = rows
        links = rows.notes.links if rows.notes is not None else None
        self._seek = OwnerSeek(rows.session, rows.connection, options, links)
        self._counted = False
        self.under_using: set[OwnerPath] = set()

    def find_all(self, rows: Sequence[Row]) -> None:
        """Find the owners of all rows with one query for each path. Sessions that fetch or make keys get
        all of these owners at once."""
        self._counted = True
        here = context.unlocked_sessions(self._rows.session)
        on_demand = [unlocked for unlocked in here if unlocked.on_demand or unlocked.follows]
        for path, columns in self._rows.plan.groups:
            if path.is_self and self._rows.inserts:
                continue
            if not self._rows.plan.has(path):
                self._load_bases(path, rows)
            if not on_demand and path.is_direct:
                continue
            owners = self._find(path, columns, rows)
            count = len(rows) * len(columns)
            for unlocked in on_demand:
                for owner_class, keys in owners.items():
                    unlocked.prepare_write(self._rows.session, owner_class, keys, count)

    def _load_bases(self, path: OwnerPath, rows: Sequence[Row]) -> None:
        """Look up the rows of a joined subclass in the table that it extends."""
        keys = {self._rows.identity(row) for row in rows if self._rows.object_of(row) is None}
        self._seek.load_bases(self._rows.plan.table, path, [key for key in keys if None not in key])

    def _find(
        self, path: OwnerPath, columns: Sequence[EncryptedColumn], rows: Sequence[Row]
    ) -> dict[OwnerClass, set[Values]]:
        """The primary keys of the rows' owners, by class, without the owners that are being enrolled."""
        named = {
            values
            for values in self._named(path, columns, rows)
            if values is not None and path.mistyped(values) is None
        }
        if not path.is_direct:
            self._seek.load(path, named)
        owners: dict[OwnerClass, set[Values]] = {}
        for values in named:
            owner = path.find(values, self._seek)
            if owner is not None and enrolling_owner(self._rows.session, self.name(*owner)) is None:
                owner_class, key = owner
                owners.setdefault(owner_class, set()).add(key)
        return owners

    def _named(
        self, path: OwnerPath, columns: Sequence[EncryptedColumn], rows: Sequence[Row]
    ) -> set[Values | None]:
        """The owners that the rows with something to encrypt name, each once."""
        names = [self._rows.parameter(column.key) for column in columns]
        if len(names) == 1:
            (only,) = names
            rows = [row for row in rows if row.get(only) is not None]
        else:
            rows = [row for row in rows if any([row.get(name) is not None for name in names])]  # noqa: C419
        is_single = len(path.keys) == 1 and path.is_direct and path.keys[0] not in self._rows.literals
        if is_single and self._rows.plan.has(path):
            name = self._rows.parameter(path.keys[0])
            return {(row.get(name),) for row in rows}
        return {self._said(path, columns[0], row) for row in rows}

    def _said(self, path: OwnerPath, column: EncryptedColumn, row: Row) -> Values | None:
        """The owner's values as a row, or the object behind it, gives them; None if neither does."""
        if not path.keys:
            return ()
        in_row = self._rows.plan.has(path)
        if in_row:
            given = self._rows.given(path, row)
            if why_unknown(path, given, inserts=self._rows.inserts) is not None:
                return None
            values = tuple([given.get(key) for key in path.keys])
            # A column that an INSERT does not name is NULL: defaults are in the row by now. An UPDATE leaves
            # such a column as it is.
            is_whole = self._rows.inserts or len(given) == len(path.keys)
            if None not in values or (is_whole and not path.is_direct):
                return values
        state = self._rows.object_of(row)
        if state is not None:
            return owner_values(self._rows.new_object_of(state), path, column.key)
        return None if in_row else self._seek.in_base(self._rows.plan.table, path, self._rows.identity(row))

    def owner(self, row: Row, path: OwnerPath, column: EncryptedColumn) -> tuple[OwnerClass, Values]:
        """Class and primary key of a row's owner.

        Raises:
            StatementRefusedError: the row's owner is not known.
            NotEnrolledError: the sole owner has no row.
            ConfigurationError: the sole owner has several rows, or the owner is in another database.
        """
        values = self._said(path, column, row)
        wrong = None if values is None else path.mistyped(values)
        if wrong is not None:
            where = f"{self._rows.plan.table.name}.{column.key}"
            raise StatementRefusedError(f"{where}: the row's owner is not known, because {wrong}.")
        owner = None if values is None else path.find(values, self._seek)
        if owner is None:
            owner = self._owner_by_using(row, path)
        if owner is None:
            raise self._no_owner(row, path, column, values)
        return owner

    def _owner_by_using(self, row: Row, path: OwnerPath) -> tuple[OwnerClass, Values] | None:
        """The owner that `using` names, if nothing else says whose the row is."""
        using = None if self._is_decided(row, path) else context.USING.get()
        if using is None or self._rows.object_of(row) is not None:
            return None
        if using.owner_class not in path.owner_classes or using.where != self._seek.where(using.owner_class):
            return None
        if not self._rows.inserts:
            self.under_using.add(path)
        return using.owner_class, using.primary_key

    def _is_decided(self, row: Row, path: OwnerPath) -> bool:
        """Whether the statement itself gives the row its owner, so that `using` does not name one. An
        INSERT always does: `using` writes no column, and the row would be stored without an owner."""
        return self._rows.plan.has(path) and (self._rows.inserts or bool(self._rows.given(path, row)))

    def _no_owner(
        self, row: Row, path: OwnerPath, column: EncryptedColumn, values: Values | None
    ) -> Exception:
        where = f"{self._rows.plan.table.name}.{column.key}"
        if isinstance(path, SolePath):
            return context.no_sole(where, path.owner_class.name, self._rows.session)
        if values is not None and not path.is_direct:
            why = path.why_none(values) + (default_beside(path) if self._rows.inserts else "")
            return StatementRefusedError(f"{where}: the row leads to no owner: {why}.")
        if self._rows.plan.has(path):
            unknown = why_unknown(path, self._rows.given(path, row), inserts=self._rows.inserts)
            if unknown is not None:
                return StatementRefusedError(f"{where}: the row's owner is not known, because {unknown}.")
        return self._unnamed_owner(row, path, column)

    def _unnamed_owner(self, row: Row, path: OwnerPath, column: EncryptedColumn) -> StatementRefusedError:
        inserts = self._rows.inserts
        if path.is_self and inserts:
            return new_owner(column)
        new = self._new_object() if inserts else None
        if new is not None:
            return not_set(new, path, column)
        here = context.unlocked_sessions(self._rows.session)
        verb = "unlock"
        if any(unlocked.makes_keys for unlocked in here):
            verb = "server_mode"
        elif any(unlocked.on_demand for unlocked in here):
            verb = "write_only"
        using = None if self._is_decided(row, path) else verb
        return unnamed_owner(path, column, inserts=inserts, using=using)

    def _new_object(self) -> InstanceState[Any] | None:
        """An object whose row a flush inserts with this statement."""
        session, table = self._rows.session, self._rows.plan.table
        if session is None or not session._flushing:
            return None
        states = map(instance_state, session.new)
        return next((state for state in states if table in state.mapper.tables), None)

    def name(self, owner_class: OwnerClass, key: Values) -> OwnerId:
        """The keyring's name for an owner."""
        return self._seek.owner(owner_class, key)

    def prepare_write(self, owner_class: OwnerClass, key: Values, count: int) -> None:
        """Tell the unlocked sessions that values of this owner are encrypted next: a session may have to
        fetch keys, make keys, or start an epoch first.

        Args:
            count: how many values. It is ignored after `find_all`, which has counted them.
        """
        for unlocked in context.unlocked_sessions(self._rows.session):
            unlocked.prepare_write(self._rows.session, owner_class, [key], 0 if self._counted else count)

    def key_states(self, owner_class: OwnerClass, key: Values) -> set[str]:
        """The states of an owner's keys in the database, each once: asked for an error alone."""
        return self._seek.key_states(owner_class, key)

    def is_there(self, owner_class: OwnerClass, key: Values) -> bool:
        """Whether an owner's row is in the database: asked for an error alone."""
        return self._seek.is_there(owner_class, key)

    def require_here(self, owner_classes: Iterable[OwnerClass]) -> None:
        """Refuse classes whose rows are in another database than those that the statement writes.

        Raises:
            ConfigurationError: one has its rows elsewhere.
        """
        for owner_class in owner_classes:
            self._seek.require_here(owner_class.mapper)
