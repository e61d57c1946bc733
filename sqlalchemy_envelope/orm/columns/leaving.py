"""What an unlocked session leaves behind in the objects of a `Session`: no plaintext.

An attribute goes back to what it was before it was opened: a stored value that waits for its key. It is
encrypted anew for that, while the key is still here, since what was read was not kept beside its plaintext.
So a second unlock opens it without SQL, also under asyncio. Whatever else came out of an encrypted column is
expired: expressions, and dictionaries whose keys did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import attributes

from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.orm.columns.encrypted_type import format_in
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import policy_of_column, previous_of
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.columns.state import FROM_PREVIOUS, SEALED, WIPED, owner_of_row, waits
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.records import records_of_mapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute

    Writer = Callable[[OwnerId, EncryptedAttribute], ValueCipher | None]

_DERIVED = "derived_attributes"
_EXPRESSIONS = "sqlalchemy_envelope.expressions"


def note_expressions(session: Session, options: Iterable[Any]) -> None:
    """Remember the attributes that `with_expression` fills from an encrypted column: their mapping does not
    say so."""
    for option in options:
        for element in getattr(option, "context", ()):
            criteria = element._extra_criteria if ("query_expression", True) in element.strategy else ()
            if any(format_in(one.type) for one in criteria):
                prop = element.path.path[-1]
                session.info.setdefault(_EXPRESSIONS, set()).add((prop.parent.class_, prop.key))


def forget_plaintext(
    session: Session, stays_open: Callable[[OwnerId | None], bool], writer: Writer | None = None
) -> None:
    """Close every decrypted attribute in a session, but what waits for a flush and what is still unlocked.

    Args:
        writer: gives what encrypts a value for an owner; without it, values are expired.
    """
    failed: BaseException | None = None
    leaving = _Leaving(session, stays_open, writer)
    for step in (leaving.close, leaving.drop_dictionaries):
        for state in session.identity_map.all_states():
            try:
                step(state)
            except BaseException as error:  # noqa: BLE001 - raised below, when nothing is left
                leaving.writer = None
                failed = failed or error
                try:
                    step(state)  # interrupted in the middle, by a signal perhaps
                except BaseException:  # noqa: BLE001, S110 - as above
                    pass
    if failed is not None:
        raise failed


def on_pickle(state: InstanceState[Any], pickled: dict[str, Any]) -> None:
    """An object is pickled: what was closed on leaving stays behind, and is read again where it arrives. The
    type that goes along with a stored value may list what is in it, as that of an Enum does."""
    info = pickled.get("info", {})
    closed = {key for key in info.get(SEALED, ()) if key in state.expired_attributes}
    if closed:
        kept = {key: stored for key, stored in info[SEALED].items() if key not in closed}
        wiped = {**info.get(WIPED, {}), **dict.fromkeys(closed, True)}
        pickled["info"] = {**info, SEALED: kept, WIPED: wiped}


class _Leaving:
    def __init__(
        self, session: Session, stays_open: Callable[[OwnerId | None], bool], writer: Writer | None
    ) -> None:
        self.session = session
        self.writer = writer
        self._stays_open = stays_open
        self._filled: set[tuple[type, str]] = session.info.get(_EXPRESSIONS, set())
        self._names = Names(session)
        self._known: dict[Any, tuple[OwnerId | None, bool]] = {}

    def close(self, state: InstanceState[Any]) -> None:
        """Close the attributes of one object."""
        plan, (expressions, _) = plan_of_mapper(state.mapper), derived_attributes(state.mapper)
        if self._filled:
            filled = [key for cls, key in self._filled if issubclass(state.class_, cls)]
            expressions = (*expressions, *filled)
        if not plan and not expressions:
            return
        instance = state.obj()
        if instance is None:
            return
        values = state.dict
        keys = [key for key in expressions if not isinstance(values.get(key), (Sealed, type(None)))]
        sealed: dict[str, Sealed] = {}
        wiped: list[str] = []
        marked = state.info.get(FROM_PREVIOUS, ()) if "info" in state.__dict__ else ()
        for attribute in plan:
            key = attribute.key
            if key not in values or attribute.is_nothing(values[key]) or key in marked:
                continue
            owner, stays = self._owner(state, attribute)
            if stays or waits(state, attribute):
                continue
            keys.append(key)
            stored = self._seal(state, attribute, owner, values[key])
            if stored is not None:
                sealed[key] = stored
            elif policy_of_column(attribute.encrypted.column) != "both":
                wiped.append(key)  # locked, it may still be read from the previous column otherwise
        if not keys:
            return
        self.session.expire(instance, keys)
        if sealed:
            state.info.setdefault(SEALED, {}).update(sealed)
        if wiped:
            state.info.setdefault(WIPED, {}).update(dict.fromkeys(wiped, True))

    def drop_dictionaries(self, state: InstanceState[Any]) -> None:
        """Expire collections whose keys are plaintext of what was closed."""
        _, relations = derived_attributes(state.mapper)
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
        # Asked once for each owner and not for each value: its name costs more than all the rest.
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

    def _seal(
        self, state: InstanceState[Any], attribute: EncryptedAttribute, owner: OwnerId | None, value: Any
    ) -> Sealed | None:
        """The value as it would be stored; None where it has to be read again."""
        if self.writer is None or owner is None or previous_of(attribute.encrypted.column) is not None:
            return None
        try:
            cipher = self.writer(owner, attribute)
            if cipher is None:
                return None
            reference = encode_reference(state.key[1]) if attribute.row_bound and state.key else b""
            stored = cipher.encrypt(attribute.encrypted.encode(value), reference)
        except Exception:  # noqa: BLE001 - a value that was changed in place to one that cannot be stored
            return None
        return Sealed(stored, attribute.type.format)


def derived_attributes(mapper: Mapper[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Attributes over expressions of an encrypted type; and relationships to classes with encrypted columns,
    whose collection may be a dictionary with keys of theirs."""
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
    """The objects of a dictionary; of one of an application's own kind, of the lists in it."""
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
