"""Leaving an unlocked session: no plaintext stays in the objects of a `Session`.

An attribute goes back to its state before it was opened: a stored value that waits for its key. For this, the
value is encrypted anew while the key is still open, because the ciphertext was not kept beside its plaintext.
So a second unlock opens it without SQL, also under asyncio. All other data from an encrypted column is
expired: expressions, and dictionaries with plaintext keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import NO_VALUE

from sqlalchemy_envelope.crypto.aead import NO_ROW, Batch, row_tail, row_tails
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.orm.columns.attribute_marks import (
    Mark,
    has_from_previous,
    is_from_previous,
    marks_of,
)
from sqlalchemy_envelope.orm.columns.encrypted_type import format_in
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import policy_of_column, previous_of
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.columns.state import owner_of_row, waits
from sqlalchemy_envelope.orm.current.context import note_left
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.records import records_of_mapper
from sqlalchemy_envelope.orm.tables.session_notes import page_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute

    Writer = Callable[[OwnerId, EncryptedAttribute], ValueCipher | None]

_CHUNK = 256
"""Objects that are closed at a time. A chunk is held twice until it is encrypted."""
_ABSENT: Any = object()
_DERIVED = "derived_attributes"


@dataclass(slots=True)
class SeenPlaintext:
    """A page of `SessionNotes`: places of plaintext that the identity map and the mappers do not show.

    Attributes:
        deleted: objects whose deletion was flushed.
        expressions: the attributes that `with_expression` filled from an encrypted column, by class.
    """

    deleted: WeakSet[InstanceState[Any]] = field(default_factory=WeakSet)
    expressions: set[tuple[type, str]] = field(default_factory=set)


def note_deleted(session: Session, instance: object) -> None:
    """Remember an object whose deletion was flushed. It is no longer in the identity map, and a rollback
    brings it back."""
    state: InstanceState[Any] = attributes.instance_state(instance)
    if plan_of_mapper(state.mapper) or derived_attributes(state.mapper)[0]:
        page_of(session, SeenPlaintext).deleted.add(state)


def note_expressions(session: Session, options: Iterable[Any]) -> None:
    """Remember the attributes that `with_expression` fills from an encrypted column: their mapping does
    not name that column."""
    for option in options:
        for element in getattr(option, "context", ()):
            fills = ("query_expression", True) in (element.strategy or ())
            criteria = element._extra_criteria if fills else ()
            if any(format_in(one.type) for one in criteria):
                prop = element.path.path[-1]
                page_of(session, SeenPlaintext).expressions.add((prop.parent.class_, prop.key))


def forget_plaintext(
    session: Session, stays_open: Callable[[OwnerId | None], bool], writer: Writer | None = None
) -> None:
    """Close every decrypted attribute in a session, except attributes that wait for a flush and attributes of
    owners who are still unlocked.

    Args:
        writer: gives the cipher for an owner's values; without it, values are expired.
    """
    note_left(session)
    failed: BaseException | None = None
    leaving = _Leaving(session, stays_open, writer)
    states = [*session.identity_map.all_states(), *page_of(session, SeenPlaintext).deleted]
    for step in (leaving.close, leaving.drop_dictionaries):
        for start in range(0, len(states), _CHUNK):
            chunk = states[start : start + _CHUNK]
            try:
                step(chunk)
            except BaseException as error:  # noqa: BLE001 - raised below, when nothing is left
                leaving.writer = None
                failed = failed or error
                for state in chunk:
                    try:
                        step([state])  # interrupted in the middle, by a signal perhaps
                    except BaseException:  # noqa: BLE001, S110 - as above
                        pass
    if failed is not None:
        raise failed


@dataclass(frozen=True, eq=False)
class _MapperPlan:
    """The attributes to look at in the objects of a mapper.

    Attributes:
        owner_keys: the attributes that name the owner of all encrypted attributes; None if this needs other
            objects too.
        relations: the relationships whose collection may be a dictionary with plaintext keys.
    """

    attributes: tuple[EncryptedAttribute, ...]
    owner_keys: tuple[str, ...] | None
    expressions: tuple[str, ...]
    relations: tuple[str, ...]


class _Closing:
    """The attributes to close in similar objects: objects of one mapper and one owner."""

    __slots__ = ("attributes", "expressions")

    def __init__(
        self, attributes: list[tuple[EncryptedAttribute, OwnerId | None]], expressions: tuple[str, ...]
    ) -> None:
        self.attributes = attributes
        self.expressions = expressions


class _Leaving:
    def __init__(
        self, session: Session, stays_open: Callable[[OwnerId | None], bool], writer: Writer | None
    ) -> None:
        self.session = session
        self.writer = writer
        self._stays_open = stays_open
        self._filled = page_of(session, SeenPlaintext).expressions
        self._names = Names(session)
        self._batch = Batch(_CHUNK)
        self._plans: dict[Mapper[Any], _MapperPlan] = {}
        self._alike: dict[tuple[Any, ...], _Closing] = {}
        self._known: dict[Any, tuple[OwnerId | None, bool]] = {}

    def close(self, states: Sequence[InstanceState[Any]]) -> None:
        """Close the attributes of some objects."""
        found: dict[_Closing, list[InstanceState[Any]]] = {}
        for state in states:
            plan = self._plan(state.mapper)
            if plan.attributes or plan.expressions:
                found.setdefault(self._closing(state, plan), []).append(state)
        for closing, alike in found.items():
            self._close(closing, alike)
        for state in states:
            if state.committed_state:
                self._forget_history(state)

    def _forget_history(self, state: InstanceState[Any]) -> None:
        """Forget the decrypted value that an attribute had before its change. The change itself waits for a
        flush, which then writes it without a comparison."""
        for attribute in plan_of_mapper(state.mapper):
            before = state.committed_state.get(attribute.key)
            if not isinstance(before, (Sealed, type(None))) and not self._owner(state, attribute)[1]:
                state.committed_state[attribute.key] = NO_VALUE

    def _close(self, closing: _Closing, states: list[InstanceState[Any]]) -> None:
        rows = [state.dict for state in states]
        closed: list[dict[str, Sealed]] = [{} for _ in states]
        wiped: dict[int, list[str]] = {}
        tails = _tails(states) if any(one.row_bound for one, _ in closing.attributes) else []
        for attribute, owner in closing.attributes:
            key, form = attribute.key, attribute.type.format
            nothing = None if attribute.encrypted.convert is None else _ABSENT  # see `is_nothing`
            here = [at for at, values in enumerate(rows) if values.get(key, nothing) is not nothing]
            held = [rows[at][key] for at in here]
            ends = [tails[at] for at in here] if attribute.row_bound else []
            stored = self._encrypt(attribute, owner, held, ends)
            for at, blob in zip(here, stored, strict=True):
                if blob is not None:
                    closed[at][key] = Sealed(blob, form)
                else:
                    wiped.setdefault(at, []).append(key)
        for at, state in enumerate(states):
            if at in wiped:
                self._wipe(state, rows[at], wiped[at])
            if closed[at]:
                _expire(state, rows[at], list(closed[at]))
                marks_of(state).update(closed[at])
            if closing.expressions:
                self._expire_filled(state, closing.expressions)

    def _wipe(self, state: InstanceState[Any], values: dict[str, Any], keys: list[str]) -> None:
        """Close attributes whose stored value is not kept."""
        _expire(state, values, keys)
        # Locked, it may still be read from the previous column otherwise.
        by_key = {attribute.key: attribute.encrypted.column for attribute in plan_of_mapper(state.mapper)}
        marks = marks_of(state)
        for key in keys:
            readable = policy_of_column(by_key[key]) == "both"
            marks[key] = Mark.WIPED_READABLE if readable else Mark.WIPED

    def _expire_filled(self, state: InstanceState[Any], expressions: tuple[str, ...]) -> None:
        values, instance = state.dict, state.obj()
        keys = [key for key in expressions if not isinstance(values.get(key), (Sealed, type(None)))]
        if keys and instance is not None:
            self.session.expire(instance, keys)

    def _plan(self, mapper: Mapper[Any]) -> _MapperPlan:
        plan = self._plans.get(mapper)
        if plan is None:
            attributes, (expressions, relations) = plan_of_mapper(mapper), derived_attributes(mapper)
            filled = [key for cls, key in self._filled if issubclass(mapper.class_, cls)]
            direct = all(attribute.encrypted.path.is_direct for attribute in attributes)
            keys = tuple(dict.fromkeys([key for one in attributes for key in one.owner_keys]))
            plan = _MapperPlan(attributes, keys if direct else None, (*expressions, *filled), relations)
            self._plans[mapper] = plan
        return plan

    def _closing(self, state: InstanceState[Any], plan: _MapperPlan) -> _Closing:
        """Return the attributes to close in an object."""
        if state.committed_state or plan.owner_keys is None or has_from_previous(state):
            to_close = [one for one in plan.attributes if self._is_left(state, one)]
            return _Closing([(one, self._owner(state, one)[0]) for one in to_close], plan.expressions)
        # One lookup for all objects of an owner: the owner's name costs more than all the rest.
        values = state.dict
        named = (plan, *[values.get(key) for key in plan.owner_keys])
        closing = self._alike.get(named)
        if closing is None:
            owners = [(one, *self._owner(state, one)) for one in plan.attributes]
            closing = _Closing([(one, owner) for one, owner, stays in owners if not stays], plan.expressions)
            self._alike[named] = closing
        return closing

    def _is_left(self, state: InstanceState[Any], attribute: EncryptedAttribute) -> bool:
        """Tell whether a changed attribute is closed nevertheless."""
        if attribute.key not in state.dict or is_from_previous(state, attribute.key):
            return False
        return not self._owner(state, attribute)[1] and not waits(state, attribute)

    def drop_dictionaries(self, states: Iterable[InstanceState[Any]]) -> None:
        """Expire collections whose keys are plaintext of closed values."""
        for state in states:
            relations = self._plan(state.mapper).relations
            if relations:
                self._drop_dictionaries(state, relations)

    def _drop_dictionaries(self, state: InstanceState[Any], relations: tuple[str, ...]) -> None:
        for key in relations:
            held = state.dict.get(key)
            if not isinstance(held, dict) or not held or key in state.committed_state:
                continue
            members = [attributes.instance_state(one) for one in _flat(held.values())]
            if all(self._is_open(one) for one in members):
                continue
            plain = {value for one in members for value in _plain_values(one)}
            instance = state.obj()
            if instance is not None and not all(_is_plain(one, plain) for one in held):
                self.session.expire(instance, [key])

    def _owner(self, state: InstanceState[Any], attribute: EncryptedAttribute) -> tuple[OwnerId | None, bool]:
        values = state.dict
        named = None
        if not state.committed_state and attribute.encrypted.path.is_direct:
            named = (attribute.encrypted.path, *[values.get(key) for key in attribute.owner_keys])
            if named in self._known:
                return self._known[named]
        owner = owner_of_row(state, attribute, self._names)
        found = owner, self._stays_open(owner)
        if named is not None:
            self._known[named] = found
        return found

    def _is_open(self, state: InstanceState[Any]) -> bool:
        return all(self._owner(state, attribute)[1] for attribute in plan_of_mapper(state.mapper))

    def _encrypt(
        self, attribute: EncryptedAttribute, owner: OwnerId | None, values: list[Any], tails: list[bytes]
    ) -> list[bytes | None]:
        """The values as they would be stored; None for a value that has to be read again."""
        encrypted = attribute.encrypted
        nothing: list[bytes | None] = [None] * len(values)
        if not values or self.writer is None or owner is None or previous_of(encrypted.column) is not None:
            return nothing
        if not values:
            return nothing  # asking for the cipher of an owner with altered rows would raise
        cipher = self.writer(owner, attribute)
        if cipher is None:
            return nothing
        bound = cipher.bind(attribute.key, encrypted.encode, None)
        stored = self._batch.encrypt_column(values, bound, tails)
        if stored is not None and None not in stored:
            return stored
        ends = tails or repeat(NO_ROW)
        return [_encrypt_alone(cipher, encrypted.encode, *one) for one in zip(values, ends, strict=False)]


def _tails(states: list[InstanceState[Any]]) -> list[bytes]:
    keys: list[tuple[Any, ...]] = [state.key[1] if state.key else () for state in states]
    if all([len(key) == 1 for key in keys]):  # noqa: C419 - less than a generator costs
        return row_tails([key[0] for key in keys])
    return [row_tail(encode_reference(key)) for key in keys]


def _encrypt_alone(
    cipher: ValueCipher, encode: Callable[[Any], bytes], value: Any, tail: bytes
) -> bytes | None:
    try:
        return cipher.encrypt(encode(value), tail[4:])  # the reference itself
    except Exception:  # noqa: BLE001 - a value that was changed in place to one that cannot be stored
        return None


def _expire(state: InstanceState[Any], values: dict[str, Any], keys: list[str]) -> None:
    """Expire attributes that hold values. `session.expire` does the same, and more for all other kinds."""
    state.expired_attributes.update(keys)  # first: interrupted after it, they are read again
    for key in keys:
        values.pop(key, None)
        state.committed_state.pop(key, None)
    state.manager.dispatch.expire(state, keys)


def derived_attributes(mapper: Mapper[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Attributes over expressions of an encrypted type; and relationships to classes with encrypted
    columns, whose collection may be a dictionary by the values of these columns."""
    records = records_of_mapper(mapper)
    known: tuple[tuple[str, ...], tuple[str, ...]] | None = records.get(_DERIVED)
    if known is None:
        planned = {attribute.key for attribute in plan_of_mapper(mapper)}
        expressions = tuple(
            prop.key
            for prop in mapper.column_attrs
            if prop.key not in planned and any(format_in(column.type) for column in prop.columns)
        )
        relations = tuple(
            prop.key
            for prop in mapper.relationships
            if prop.uselist and any(plan_of_mapper(one) for one in prop.mapper.self_and_descendants)
        )
        known = records[_DERIVED] = (expressions, relations)
    return known


def _flat(members: Iterable[Any]) -> Iterable[Any]:
    """The objects in a dictionary; a dictionary of an application's own kind may have lists of them."""
    for one in members:
        if isinstance(one, (list, set, tuple)):
            yield from one
        else:
            yield one


def _plain_values(state: InstanceState[Any]) -> Iterable[Any]:
    encrypted = {attribute.key for attribute in plan_of_mapper(state.mapper)}
    for prop in state.mapper.column_attrs:
        value = state.dict.get(prop.key)
        if prop.key not in encrypted and getattr(value, "__hash__", None) is not None:
            yield value


def _is_plain(key: Any, plain: set[Any]) -> bool:
    try:
        return key in plain or (isinstance(key, tuple) and all(one in plain for one in key))
    except TypeError:
        return False
