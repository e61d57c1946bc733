"""The mapped attribute of a blind index: what an object holds of it is what the database has.

The library writes the column, and SQLAlchemy does not know that. So the attribute is expired with each write
of what is indexed, and read again when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import set_committed_value

from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.tables.session_notes import page_of, take_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState


class _Written:
    """A page of `SessionNotes`: the objects whose indexes a flush writes, with the attributes."""

    def __init__(self) -> None:
        self.objects: list[tuple[Any, list[str]]] = []


def watch_indexes(mapper: Mapper[Any]) -> None:
    """Keep the attributes of a class's indexes in step with their columns."""
    indexes = _attributes_of(mapper)
    if not indexes:
        return
    event.listen(mapper, "before_update", _update_listener(indexes), raw=True)
    event.listen(mapper, "before_insert", _new_listener(list(indexes)), raw=True)
    event.listen(mapper, "after_insert", _insert_listener(list(indexes)), raw=True)
    event.listen(mapper.class_, "refresh", _refresh_listener(indexes), raw=True)
    if not event.contains(Session, "after_flush_postexec", _after_flush):
        event.listen(Session, "after_flush_postexec", _after_flush)
        event.listen(Session, "after_soft_rollback", _forget)


def _attributes_of(mapper: Mapper[Any]) -> dict[str, frozenset[str]]:
    """The attributes of indexes, each with the attributes that it indexes."""
    return {
        attribute.key: frozenset(_attribute_named(mapper, attribute.columns[0], name) for name in type_.of)
        for attribute in mapper.column_attrs
        if isinstance(type_ := attribute.columns[0].type, BlindIndex)
    }


def _attribute_named(mapper: Mapper[Any], index: Any, name: str) -> str:
    """The attribute that an index names by its own name, or by that of its column."""
    column = None if name in mapper.column_attrs else index.table.columns.get(name)
    return name if column is None else mapper.get_property_by_column(column).key


def _new_listener(keys: list[str]) -> Any:
    def before_insert(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        """Take back the tags that a new object holds. It is a copy, by `make_transient()`, or by
        `session.merge()` of an object whose row is gone."""
        for key in keys:
            if state.dict.get(key) is not None:
                set_committed_value(state.obj(), key, None)

    return before_insert


def _insert_listener(keys: list[str]) -> Any:
    def after_insert(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        _note(state, keys)

    return after_insert


def _update_listener(indexes: Mapping[str, frozenset[str]]) -> Any:
    def before_update(mapper: Mapper[Any], connection: Connection, state: InstanceState[Any]) -> None:
        keys = [key for key in indexes if _is_written(state, key, indexes[key])]
        if keys:
            _note(state, keys)

    return before_update


def _is_written(state: InstanceState[Any], key: str, sources: frozenset[str]) -> bool:
    """Whether a flush writes an index. What was assigned to the index itself is taken back: by the
    application, or by `session.merge()` of an object that is older than its row."""
    instance = state.obj()
    if key in state.committed_state and instance is not None:
        set_committed_value(instance, key, None)
        return True
    return not sources.isdisjoint(state.committed_state)


def _refresh_listener(indexes: Mapping[str, frozenset[str]]) -> Any:
    def refresh(state: InstanceState[Any], context: Any, names: Iterable[str] | None) -> None:
        """`update(Model)` tells so what it set in an object. It loads nothing, and has no context."""
        if context is not None or names is None:
            return
        written = set(names)
        stale = [key for key, sources in indexes.items() if not sources.isdisjoint(written)]
        instance, session = state.obj(), state.session
        if stale and instance is not None and session is not None:
            session.expire(instance, stale)

    return refresh


def _note(state: InstanceState[Any], keys: list[str]) -> None:
    session = state.session
    if session is not None:
        page_of(session, _Written).objects.append((state.obj(), keys))


def _after_flush(session: Session, *_: Any) -> None:
    written = take_page(session, _Written)
    for instance, keys in () if written is None else written.objects:
        if instance in session:
            session.expire(instance, keys)


def _forget(session: Session, *_: Any) -> None:
    take_page(session, _Written)
