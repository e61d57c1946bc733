"""Flushes: what mapper events note about the rows that are about to be written.

They never touch a value (the statement hook encrypts), so that a failed flush has nothing to restore. They
make client-side defaults now, see to it that a row moved to another owner is encrypted anew, and remember
which row belongs to which object, for statements that do not name the owner.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakKeyDictionary

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    LockedError,
    NotEnrolledError,
    PlaintextRefusedError,
)
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper, plan_of_table
from sqlalchemy_envelope.orm.columns.previous import policy_of_column
from sqlalchemy_envelope.orm.columns.state import current_key, waits, written
from sqlalchemy_envelope.orm.current.context import server_hint
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths, referred, referring
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.writing.missing_owner import not_loaded
from sqlalchemy_envelope.orm.writing.object_copies import open_carried
from sqlalchemy_envelope.orm.writing.orphans import refuse_orphan
from sqlalchemy_envelope.orm.writing.owner_columns import has_python_default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from sqlalchemy import Column, Connection, Table
    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    Key = tuple[Any, ...]

_ENROLLING = "sqlalchemy_envelope.enrolling"
_UNWRITTEN = "sqlalchemy_envelope.enrolling_unwritten"
_NAMED = "sqlalchemy_envelope.enrolling_named"
ENROLLING_OWNER = b"enrolling"
"""The keyring's name for an owner whose primary key is not known yet."""


@dataclass(frozen=True, eq=False)
class Enrolling:
    """An owner whose first flush is under way: its keys are there, its primary key may not be."""

    state: InstanceState[Any]
    owner_class: OwnerClass
    keyring: Keyring

    def owner_id(self) -> OwnerId | None:
        """The owner's own name, from the moment its row is written: rows that hang on it
        follow in the same flush."""
        key = current_key(self.state)
        if None in key or self.state.session is None:
            return None
        return Names(self.state.session).owner(self.owner_class, key)

    def is_row(self, row: Mapping[str, Any], names: Mapping[str, str]) -> bool:
        """Whether an INSERT's parameters are this owner's: the very objects that it holds."""
        return all(row.get(column) is self.state.dict.get(key) for column, key in names.items())


@contextmanager
def enrolling(session: Session, one: Enrolling) -> Iterator[None]:
    """Inside, a flush of the owner's own encrypted columns finds its new keys."""
    note_enrolling(session, one)
    try:
        yield
    finally:
        enrolling_in(session).pop(one.state, None)


def note_enrolling(session: Session, one: Enrolling) -> None:
    """This owner's keys are to be used in the flush that comes."""
    session.info.setdefault(_ENROLLING, {})[one.state] = one


def enrolling_in(session: Session | None) -> dict[InstanceState[Any], Enrolling]:
    """The owners that are being enrolled in this session, in the order of their INSERTs."""
    if session is None:
        return {}
    found: dict[InstanceState[Any], Enrolling] = session.info.get(_ENROLLING, {})
    return found


def enrolling_row(
    session: Session | None, owner_class: OwnerClass, row: Mapping[str, Any], names: Mapping[str, str]
) -> Enrolling | None:
    """The owner that an INSERT's parameters are for. Rows come in the order of their objects; the first that
    fits and has not been written yet is the one."""
    waiting = enrolling_in(session)
    if session is None or not waiting:
        return None
    unwritten: dict[OwnerClass, list[Enrolling]] = session.info.setdefault(_UNWRITTEN, {})
    if owner_class not in unwritten:
        unwritten[owner_class] = [one for one in waiting.values() if one.owner_class is owner_class]
    mine = unwritten[owner_class]
    if len(waiting) == 1 and len(mine) <= 1:
        return mine[0] if mine else None
    found = next((one for one in mine if one.is_row(row, names)), None)
    if found is not None:
        mine.remove(found)  # the first, as a rule
    return found


def enrolling_owner(session: Session | None, owner: OwnerId) -> Enrolling | None:
    """The owner of this name, if it is being enrolled and its row has been written."""
    waiting = enrolling_in(session)
    if session is None or not waiting:
        return None
    # Named once each; an owner whose row is not written yet has no name to be asked for.
    named: dict[OwnerId, Enrolling] = session.info.setdefault(_NAMED, {})
    if owner not in named:
        named.update({name: one for one in waiting.values() if (name := one.owner_id()) is not None})
    found = named.get(owner)
    return found if found is not None and found.state in waiting else None


class FlushNotes:
    """Which objects a connection's flush writes, by table and primary key."""

    def __init__(self) -> None:
        self.links: dict[tuple[Any, tuple[Any, ...]], tuple[Any, ...]] = {}
        """By path and what a row says, what the end of the path says of its owner, where objects know it."""
        self.to_rewrite: dict[Column[Any], set[tuple[Any, ...]]] = {}
        """By encrypted column of a joined subclass, the primary keys of the rows whose new value is still to
        be sent."""
        self.replacing: dict[InstanceState[Any], InstanceState[Any]] = {}
        """By deleted object, the new one that takes its row over."""
        self._updated: dict[tuple[Table, tuple[Any, ...]], InstanceState[Any]] = {}
        self._inserted: dict[Table, list[InstanceState[Any]]] = {}

    def inserting(self, table: Table, state: InstanceState[Any]) -> None:
        """Note a new row; its primary key may come with the statement before this one."""
        self._inserted.setdefault(table, []).append(state)

    def updating(self, table: Table, state: InstanceState[Any]) -> None:
        """Note a changed row."""
        if state.key is not None:
            self._updated[table, tuple(state.key[1])] = state

    def rewriting(self, state: InstanceState[Any], attribute: EncryptedAttribute, key: Key) -> None:
        """Note that the object's row gets a new value, if it does: SQLAlchemy leaves out what is equal."""
        if waits(state, attribute):
            self.to_rewrite.setdefault(attribute.encrypted.column, set()).add(key)

    def sent(self, columns: Iterable[EncryptedColumn], keys: Iterable[Key]) -> None:
        """Note that these rows got their values: what moves them from here on leaves the values behind."""
        for column in columns:
            self.to_rewrite.get(column.column, set()).difference_update(keys)

    def find(self, table: Table, primary_key: tuple[Any, ...]) -> InstanceState[Any] | None:
        """The object whose row this is."""
        found = self._updated.get((table, primary_key))
        if found is not None:
            return found
        for state in self._inserted.pop(table, ()):
            self._updated[table, current_key(state)] = state
        return self._updated.get((table, primary_key))


_notes: WeakKeyDictionary[Connection, FlushNotes] = WeakKeyDictionary()
_only_adding: set[Any] = set()
"""The sessions (`state.session_id`) whose flush deletes nothing: asked once for all its rows."""


def notes_of(connection: Connection) -> FlushNotes | None:
    """What the flush on this connection has noted."""
    return _notes.get(connection)


def clear_notes(session: Session, *_: object) -> None:
    """The flush is over, or was rolled back."""
    _only_adding.discard(session.hash_key)
    session.info.pop(_UNWRITTEN, None)
    session.info.pop(_NAMED, None)
    if _notes:
        # As references: other threads add connections while this one looks through them.
        for reference in _notes.keyrefs():
            connection = reference()
            if connection is not None and session_of(connection) in (session, None):
                _notes.pop(connection, None)


def client_default(column: Any) -> Any:
    """The value of a Python-side default; evaluated before the statement hook, where nothing
    would encrypt it later."""
    default = column.default
    return default.arg(_NoContext()) if default.is_callable else default.arg


class _NoContext:
    """What a default gets for the context of a statement that does not exist yet."""

    def __getattr__(self, name: str) -> NoReturn:
        raise ConfigurationError(
            "A default of an encrypted column, of its owner's column, or of a row-bound one's primary key "
            "reads the statement's context, which does not exist yet when values are encrypted. Use a "
            "default= function without arguments, or give the value."
        )


def insert_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """The `before_insert` listener of one mapper."""
    plan = plan_of_mapper(mapper)
    row_bound = any(attribute.encrypted.row_bound for attribute in plan)
    is_owner = any(attribute.encrypted.path.is_self for attribute in plan)
    linked = _linked(plan)
    in_base = [attribute for attribute in plan if not _names_owner(attribute.encrypted)]
    elsewhere = {attribute.encrypted.column.table for attribute in in_base}
    defaults = [attribute for attribute in plan if attribute.encrypted.column.default is not None]
    owner_defaults = [
        (attribute, key, owner)
        for attribute in plan
        if not attribute.encrypted.path.is_self
        for key, owner in zip(attribute.owner_keys, attribute.encrypted.path.columns, strict=False)
        if has_python_default(owner)
    ]

    def before_insert(_: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        instance: Any = state.obj()
        open_carried(state, plan)
        for attribute in defaults:
            if attribute.key not in state.dict:
                attributes.set_attribute(instance, attribute.key, client_default(attribute.encrypted.column))
        for attribute, key, owner in owner_defaults:
            written = not attribute.is_nothing(state.dict.get(attribute.key))
            if written and state.dict.get(key) is None:
                attributes.set_attribute(instance, key, client_default(owner))
        if row_bound:
            _make_primary_key(mapper, state, instance)
        if is_owner:
            require_enrolling(state)
        replaced = None if state.session_id in _only_adding else _replaced(mapper, state, instance)
        if replaced is not None:
            notes, identity = _notes.setdefault(connection, FlushNotes()), current_key(state)
            notes.replacing[replaced] = state
            for table in {attribute.encrypted.column.table for attribute in plan}:
                notes.updating(table, replaced)
            for attribute in in_base:
                _take_owner_over(state, replaced, attribute)
                if attribute.key in state.dict:
                    notes.rewriting(state, attribute, identity)
        for table in elsewhere:
            _notes.setdefault(connection, FlushNotes()).inserting(table, state)
        _note_links(connection, state, linked)

    return before_insert


def _note_links(
    connection: Connection, state: InstanceState[Any], linked: Sequence[tuple[LinkedPath, tuple[str, ...]]]
) -> None:
    """Note whose row this is, where the objects between it and its owner are all in memory."""
    for path, keys in linked:
        values = tuple(state.dict.get(key) for key in keys)
        owner = owner_through_objects(state, path, values)
        if owner is not None:
            _notes.setdefault(connection, FlushNotes()).links[path.identity, values] = owner


def owner_through_objects(
    state: InstanceState[Any], path: LinkedPath, values: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """What the related object at the end of the path says of the owner; None where one on the way is not
    loaded, or is not the one that the row refers to."""
    here, wanted = state, values
    for at, step in enumerate(path.steps):
        other = here.dict.get(step.key)
        if other is None:
            return None
        there = attributes.instance_state(other)
        names = path.remote if at == 0 else referred(step)
        if tuple(there.dict.get(key) for key in names) != wanted or None in wanted:
            return None
        here = there
        onward = path.last if at + 1 == len(path.steps) else referring(path.steps[at + 1])
        wanted = tuple(there.dict.get(key) for key in onward)
    return wanted if path.leads(wanted) else None


def _linked(plan: Iterable[EncryptedAttribute]) -> list[tuple[LinkedPath, tuple[str, ...]]]:
    """The paths of a mapper's encrypted columns that go through other rows, with the attributes they begin
    at."""
    found = {}
    for attribute in plan:
        path, keys = attribute.encrypted.path, attribute.owner_keys
        by_column = dict(zip(path.columns, keys, strict=True)) if len(keys) == len(path.columns) else {}
        for one in linked_paths(path):
            if all(column in by_column for column in one.columns):
                found[one.identity] = one, tuple(by_column[column] for column in one.columns)
    return list(found.values())


def _replaced(mapper: Mapper[Any], state: InstanceState[Any], instance: Any) -> InstanceState[Any] | None:
    """The object that is deleted in this flush and whose row a new one takes over: SQLAlchemy makes an UPDATE
    of the two, which leaves what the new object does not set."""
    session = state.session
    if session is None:
        return None
    if not session.deleted:
        _only_adding.add(session.hash_key)
        return None
    other = session.identity_map.get(mapper.identity_key_from_instance(instance))
    if other is None or other not in session.deleted:
        return None
    for attribute in plan_of_mapper(mapper):
        try:
            getattr(other, attribute.key)  # loaded now, because the statement hook must not emit SQL
        except (LockedError, PlaintextRefusedError):
            pass  # it holds something, then
    return attributes.instance_state(other)


def _take_owner_over(
    state: InstanceState[Any], replaced: InstanceState[Any], attribute: EncryptedAttribute
) -> None:
    """Let a new object that takes a row over know what it leaves as it is in the owner's columns."""
    for key in attribute.owner_keys:
        if key not in state.dict:
            attributes.set_committed_value(state.obj(), key, getattr(replaced.obj(), key))


def _names_owner(encrypted: EncryptedColumn) -> bool:
    plan = plan_of_table(encrypted.column.table)
    return plan is not None and plan.has(encrypted.path)


def _make_primary_key(mapper: Mapper[Any], state: InstanceState[Any], instance: Any) -> None:
    for column in mapper.primary_key:
        prop = mapper.get_property_by_column(column)
        # Under joined inheritance the default stands on another of the columns that the property maps.
        default = next((one for one in prop.columns if getattr(one, "default", None) is not None), None)
        if state.dict.get(prop.key) is None and default is not None:
            attributes.set_attribute(instance, prop.key, client_default(default))


def require_enrolling(state: InstanceState[Any]) -> None:
    """A new owner with encrypted values of its own must be the one that is being enrolled.

    Raises:
        NotEnrolledError: it has no keys.
    """
    if state in enrolling_in(state.session):
        return
    if any(
        a.encrypted.path.is_self
        and state.dict.get(a.key) is not None
        and policy_of_column(a.encrypted.column) != "both"  # left for the migration, in the previous column
        for a in plan_of_mapper(state.mapper)
    ):
        owner_class = owner_class_of(state.mapper.local_table)
        grants = () if owner_class is None else [one for one in owner_class.grants_of if one.scope is None]
        if grants:
            # A group has no secret of its own, as a rule.
            rows = " or ".join(sorted({one.mapper.class_.__name__ for one in grants}))
            raise NotEnrolledError(
                f"A new {state.class_.__name__} has encrypted values and no keys. While a member-to-be is "
                "unlocked, call envelope.enroll(session, owner) in place of session.add(owner), and add the "
                f"{rows} that gives them its key in the same transaction.{server_hint(state.session)}"
            )
        raise NotEnrolledError(
            f"A new {state.class_.__name__} has encrypted values and no keys. Call envelope.enroll(session, "
            "owner, secret=...) in place of session.add(owner), for each new owner before the next is "
            f"added.{server_hint(state.session)}"
        )


def update_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """The `before_update` listener of one mapper."""
    plan = plan_of_mapper(mapper)
    key_names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    linked = _linked(plan)
    in_base = {attribute for attribute in plan if not _names_owner(attribute.encrypted)}

    def before_update(_: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        instance: Any = state.obj()
        changed = state.committed_state
        # `merge` sets it to what it was.
        identity: Any = state.key  # it has one: the row is in the database
        new_key = any(name in changed for name in key_names) and current_key(state) != tuple(identity[1])
        for attribute in plan:
            moved = not attribute.encrypted.path.is_self and any(
                _moved(instance, state, key) for key in attribute.owner_keys
            )
            if moved:
                refuse_orphan(state, attribute)
            stale = moved or (attribute.encrypted.row_bound and new_key)
            # Reading it raises LockedError if it cannot be opened.
            if stale and not attribute.is_nothing(_loaded(state, attribute.key, attribute)):
                attributes.flag_modified(instance, attribute.key)
            if attribute.key in changed:
                written(state, attribute.key)
                # Expired or deferred: loaded now, because the statement hook must not emit SQL.
                for key in attribute.owner_keys:
                    _loaded(state, key, attribute)
            notes = _notes.setdefault(connection, FlushNotes())
            notes.updating(attribute.encrypted.column.table, state)
            if attribute in in_base and attribute.key in changed:
                notes.rewriting(state, attribute, tuple(identity[1]))
        _note_links(connection, state, linked)

    return before_update


def _loaded(state: InstanceState[Any], key: str, attribute: EncryptedAttribute) -> Any:
    """The value of an encrypted attribute, or of one that tells its owner, loaded if it was not.

    Raises:
        LockedError: it cannot be opened.
        StatementRefusedError: the application forbade to load it.
    """
    try:
        return getattr(state.obj(), key)
    except InvalidRequestError:
        pass
    why = "its row changes its owner or its key, and the value is encrypted anew for that"
    if key != attribute.key:
        why = f"it says whose key encrypts {state.class_.__name__}.{attribute.key}"
    raise not_loaded(state, key, why)


def _moved(instance: Any, state: InstanceState[Any], key: str) -> bool:
    if key not in state.committed_state:
        return False
    return bool(attributes.get_history(instance, key, PASSIVE_NO_INITIALIZE).added)
