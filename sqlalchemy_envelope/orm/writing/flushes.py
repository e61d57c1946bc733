"""Flushes: what happens to an object before the flush writes its row.

The listeners here encrypt nothing (the statement hook does), so a failed flush has nothing to restore. They
evaluate Python defaults, mark the values of a row that moves to another owner for encryption, and note which
object each row belongs to, for statements that do not name the owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sqlalchemy_envelope.exceptions import LockedError, PlaintextRefusedError
from sqlalchemy_envelope.orm.columns.attribute_marks import written
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper, plan_of_table
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths, referred, referring
from sqlalchemy_envelope.orm.writing.defaults import client_default, has_python_default
from sqlalchemy_envelope.orm.writing.flush_notes import deletes_nothing, note_deletes_nothing, notes_for
from sqlalchemy_envelope.orm.writing.index_values import Compounds
from sqlalchemy_envelope.orm.writing.missing_owner import not_loaded
from sqlalchemy_envelope.orm.writing.newcomers import require_enrolling
from sqlalchemy_envelope.orm.writing.object_copies import open_carried
from sqlalchemy_envelope.orm.writing.orphans import refuse_orphan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath

    Links = Sequence[tuple[LinkedPath, tuple[str, ...]]]


def insert_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """The `before_insert` listener of one mapper."""
    return _Inserts(mapper).before_insert


def update_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """The `before_update` listener of one mapper."""
    return _Updates(mapper).before_update


class _Writes:
    """What both listeners know of their mapper. It is found once, when the mapper is configured.

    Attributes:
        plan: the encrypted attributes.
        in_base: the attributes whose owner is named in the table that a joined subclass extends.
        links: the paths through other rows, each with the attributes at which it begins.
    """

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self.plan = plan_of_mapper(mapper)
        self.in_base = [attribute for attribute in self.plan if not _names_owner(attribute.encrypted)]
        self.links = _links(self.plan)

    def note_links(self, connection: Connection, state: InstanceState[Any]) -> None:
        """Note whose row this is, where the objects between it and its owner are all in memory."""
        for path, keys in self.links:
            values = tuple(state.dict.get(key) for key in keys)
            owner = owner_through_objects(state, path, values)
            if owner is not None:
                notes_for(connection).links[path.identity, values] = owner


class _Inserts(_Writes):
    """Prepares the new objects of one mapper."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        super().__init__(mapper)
        encrypted = [attribute.encrypted for attribute in self.plan]
        self._row_bound = any(each.row_bound for each in encrypted)
        self._is_owner = any(each.path.is_self for each in encrypted)
        self._tables = {each.column.table for each in encrypted}
        self._elsewhere = {attribute.encrypted.column.table for attribute in self.in_base}
        self._defaults = [each for each in self.plan if each.encrypted.column.default is not None]
        self._owner_defaults = [
            (attribute, key, column)
            for attribute in self.plan
            if not attribute.encrypted.path.is_self
            for key, column in zip(attribute.owner_keys, attribute.encrypted.path.columns, strict=False)
            if has_python_default(column)
        ]

    def before_insert(self, _: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        """Prepare a new object, whose row the flush writes next."""
        open_carried(state, self.plan)
        self._make_defaults(state)
        if self._is_owner:
            require_enrolling(state)
        replaced = None if deletes_nothing(state.session_id) else _replaced(self.mapper, state)
        if replaced is not None:
            self._note_replaced(connection, state, replaced)
        for table in self._elsewhere:
            notes_for(connection).inserting(table, state)
        self.note_links(connection, state)

    def _make_defaults(self, state: InstanceState[Any]) -> None:
        """Evaluate the Python defaults of the values, of their owner's columns, and of a row-bound primary
        key."""
        instance: Any = state.obj()
        for attribute in self._defaults:
            if attribute.key not in state.dict:
                attributes.set_attribute(instance, attribute.key, client_default(attribute.encrypted.column))
        for attribute, key, column in self._owner_defaults:
            has_value = not attribute.is_nothing(state.dict.get(attribute.key))
            if has_value and state.dict.get(key) is None:
                attributes.set_attribute(instance, key, client_default(column))
        if self._row_bound:
            _make_primary_key(self.mapper, state, instance)

    def _note_replaced(
        self, connection: Connection, state: InstanceState[Any], replaced: InstanceState[Any]
    ) -> None:
        """Note that a new object takes over the row of a deleted one."""
        notes, identity = notes_for(connection), current_key(state)
        notes.replacing[replaced] = state
        for table in self._tables:
            notes.updating(table, replaced)
        for attribute in self.in_base:
            _take_owner_over(state, replaced, attribute)
            if attribute.key in state.dict:
                notes.rewriting(state, attribute, identity)


class _Updates(_Writes):
    """Prepares the changed objects of one mapper."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        super().__init__(mapper)
        self._key_names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        self._compounds = Compounds(mapper)

    def before_update(self, _: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        """Prepare a changed object, whose row the flush writes next."""
        changed = state.committed_state
        identity_key: Any = state.key  # it has one: the row is in the database
        identity, notes = tuple(identity_key[1]), notes_for(connection)
        # Compared, because `merge` sets the key to what it was.
        has_new_key = any(name in changed for name in self._key_names) and current_key(state) != identity
        for attribute in self.plan:
            _encrypt_anew(state, attribute, has_new_key=has_new_key)
            if attribute.key in changed:
                written(state, attribute.key)
                # Expired or deferred: loaded now, because the statement hook must not emit SQL.
                for key in attribute.owner_keys:
                    _loaded(state, key, attribute)
            notes.updating(attribute.encrypted.column.table, state)
            if attribute.key in changed and attribute in self.in_base:
                notes.rewriting(state, attribute, identity)
        self._compounds.note(notes, changed, identity)
        self.note_links(connection, state)


def _encrypt_anew(state: InstanceState[Any], attribute: EncryptedAttribute, *, has_new_key: bool) -> None:
    """Let the flush write a value again if its row gets another owner, or another key that the value is bound
    to.

    Raises:
        LockedError: the value cannot be opened.
        StatementRefusedError: the row gets no owner.
    """
    instance: Any = state.obj()
    moved = not attribute.encrypted.path.is_self and any(
        _moved(instance, state, key) for key in attribute.owner_keys
    )
    if moved:
        refuse_orphan(state, attribute)
    stale = moved or (attribute.encrypted.row_bound and has_new_key)
    if stale and not attribute.is_nothing(_loaded(state, attribute.key, attribute)):
        attributes.flag_modified(instance, attribute.key)


def owner_through_objects(
    state: InstanceState[Any], path: LinkedPath, values: tuple[Any, ...]
) -> tuple[Any, ...] | None:
    """The owner's values at the end of the path. None if an object on the way is not loaded, or is not the
    object that the row refers to."""
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


def _links(plan: Iterable[EncryptedAttribute]) -> Links:
    """The paths through other rows, each with the attributes that it begins at."""
    links = {}
    for attribute in plan:
        path, keys = attribute.encrypted.path, attribute.owner_keys
        by_column = dict(zip(path.columns, keys, strict=True)) if len(keys) == len(path.columns) else {}
        for linked in linked_paths(path):
            if all(column in by_column for column in linked.columns):
                links[linked.identity] = linked, tuple(by_column[column] for column in linked.columns)
    return list(links.values())


def _replaced(mapper: Mapper[Any], state: InstanceState[Any]) -> InstanceState[Any] | None:
    """The deleted object whose row a new object takes over, if there is one. SQLAlchemy makes one UPDATE
    of the DELETE and the INSERT, and that UPDATE leaves the columns that the new object does not set."""
    session = state.session
    if session is None:
        return None
    if not session.deleted:
        note_deletes_nothing(session)
        return None
    other = session.identity_map.get(mapper.identity_key_from_instance(state.obj()))
    if other is None or other not in session.deleted:
        return None
    for attribute in plan_of_mapper(mapper):
        try:
            getattr(other, attribute.key)  # loaded now, because the statement hook must not emit SQL
        except (LockedError, PlaintextRefusedError):
            pass  # it holds a value, then
    return attributes.instance_state(other)


def _take_owner_over(
    state: InstanceState[Any], replaced: InstanceState[Any], attribute: EncryptedAttribute
) -> None:
    """Give a new object the owner of the row that it takes over, where it sets none itself."""
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
        defaults = [column for column in prop.columns if getattr(column, "default", None) is not None]
        if state.dict.get(prop.key) is None and defaults:
            attributes.set_attribute(instance, prop.key, client_default(defaults[0]))


def _loaded(state: InstanceState[Any], key: str, attribute: EncryptedAttribute) -> Any:
    """The value of an encrypted attribute, or of an attribute that names its owner, loaded if it was not.

    Raises:
        LockedError: it cannot be opened.
        StatementRefusedError: the application forbids to load it.
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
