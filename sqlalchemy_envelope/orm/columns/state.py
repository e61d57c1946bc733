"""Questions about an object and the row behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import NO_VALUE

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.orm.columns.attribute_marks import Marks, known_marks
from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, plan_of_mapper
from sqlalchemy_envelope.orm.current.names import Names, reference_in

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


def owner_of_row(
    state: InstanceState[Any], attribute: EncryptedAttribute, names: Names | None = None
) -> OwnerId | None:
    """The owner of an object's row in the database, if the owner's columns are loaded and the object has a
    session. A change in memory does not count."""
    values = _owner_values(state, attribute)
    if values is None or (names is None and state.session is None):
        return None
    return (names or Names(state.session)).of(attribute.encrypted.path, values)


def is_row_of(state: InstanceState[Any], attribute: EncryptedAttribute, owner: OwnerId | None) -> bool:
    """Whether a row belongs to this owner, as far as the object says. For an object without a session only
    class and primary key are compared."""
    values = _owner_values(state, attribute)
    if values is None:
        return True
    path = attribute.encrypted.path
    if state.session is None:
        if not path.is_direct or any(value is None for value in values):
            return True
        return owner is not None and reference_in(owner) == path.owner_class.reference_of(tuple(values))
    named = Names(state.session).of(path, values)
    return named is None or named == owner


def _owner_values(state: InstanceState[Any], attribute: EncryptedAttribute) -> list[Any] | None:
    """The owner's values in the object's row; None if they are not loaded."""
    if len(attribute.owner_keys) != len(attribute.encrypted.path.columns):
        return None  # a mapped subquery leaves one out
    values = [state.committed_state.get(key, state.dict.get(key, NO_VALUE)) for key in attribute.owner_keys]
    return None if any(value is NO_VALUE for value in values) else values


def closed_values(session: Session) -> dict[OwnerClass, dict[bytes, int]]:
    """The stored values that the objects of a session hold locked: how many under each header, by the
    classes that their owner may have."""
    found: dict[OwnerClass, dict[bytes, int]] = {}
    for state in session.identity_map.all_states():
        marks = known_marks(state)
        for attribute in plan_of_mapper(state.mapper) if marks else ():
            held = None if marks is None else marks.sealed(attribute.key)
            if held is not None and held.why is None:
                header = bytes(held.blob[:HEADER_SIZE])
                for owner_class in attribute.encrypted.path.owner_classes:
                    headers = found.setdefault(owner_class, {})
                    headers[header] = headers.get(header, 0) + 1
    return found


def unflushed(
    session: Session, is_lost: Callable[[InstanceState[Any], EncryptedAttribute], bool]
) -> list[str]:
    """Encrypted attributes with values that wait for a flush."""
    waiting = []
    for instance in [*session.new, *session.dirty]:
        state = attributes.instance_state(instance)
        for attribute in plan_of_mapper(state.mapper):
            if state.dict.get(attribute.key) is None:
                continue
            if waits(state, attribute) and is_lost(state, attribute):
                waiting.append(f"{state.class_.__name__}.{attribute.key}")
    return waiting


def waits(state: InstanceState[Any], attribute: EncryptedAttribute) -> bool:
    """Tell whether a flush would write this value. A value that was set to an equal value needs no flush."""
    if state.key is None:
        return True
    if attribute.key not in state.committed_state:
        return False
    before = state.committed_state[attribute.key]
    return before is NO_VALUE or not attribute.type.compare_values(before, state.dict[attribute.key])


def current_key(state: InstanceState[Any]) -> tuple[Any, ...]:
    mapper = state.mapper
    return tuple(state.dict.get(mapper.get_property_by_column(column).key) for column in mapper.primary_key)


def owner_values(state: InstanceState[Any], path: OwnerPath, column_key: str) -> tuple[Any, ...] | None:
    """The owner's values that an object holds now for one of its columns; None if it has no such column."""
    for attribute in plan_of_mapper(state.mapper):
        if attribute.encrypted.path.identity == path.identity and attribute.encrypted.key == column_key:
            if len(attribute.owner_keys) != len(path.columns):
                return None
            return tuple(state.dict.get(key) for key in attribute.owner_keys)
    return None


def holds_nothing(state: InstanceState[Any], column_key: str) -> bool:
    """Whether an object's value of an encrypted column is NULL, so that nothing has to be encrypted anew."""
    for attribute in plan_of_mapper(state.mapper):
        if attribute.encrypted.key == column_key:
            marks, key = known_marks(state) or Marks(), attribute.key
            held = marks.sealed(key) is not None or marks.waiting(key) is not None
            return attribute.is_nothing(state.dict.get(attribute.key)) and not held
    # A column of a sibling class in the same table: rows of this one have nothing in it.
    others = state.mapper.base_mapper.self_and_descendants
    return any(a.encrypted.key == column_key for one in others for a in plan_of_mapper(one))


def stays(state: InstanceState[Any], path: OwnerPath, column_key: str, values: Sequence[Any]) -> bool:
    """Tell whether these values of the owner's columns name the owner that the object's row has in the
    database."""
    for attribute in plan_of_mapper(state.mapper):
        if attribute.encrypted.path.identity == path.identity and attribute.encrypted.key == column_key:
            before = _owner_values(state, attribute)
            return before is not None and tuple(before) == tuple(values)
    return False
