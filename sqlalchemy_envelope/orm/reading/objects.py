"""Reading entities: a value that could not be opened with its row is put aside until the attribute is read.
Reading the attribute opens the value if its key has been unlocked meanwhile, and raises if not.

A locked value never sits in `__dict__`, where Mutable, pydantic and merge would meet it: it waits in
`state.info`. The attribute's own `impl.get()`, which runs only for a key that is missing in `__dict__`, finds
it there. Reading an open value costs nothing extra.

A stored value that is not what was written there (foreign bytes, cut short, altered, moved) is put aside like
a locked value, with its error. Its row and all other rows load, and a flush leaves its bytes alone. Reading
the attribute raises the error, which names the column and the row.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import CALLABLES_OK, INIT_OK, NO_VALUE, PASSIVE_NO_RESULT, PASSIVE_OFF, SQL_OK

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import empty_frames, emptying
from sqlalchemy_envelope.exceptions import DecryptionError, FormatError, LockedError, PlaintextRefusedError
from sqlalchemy_envelope.orm.columns.attribute_marks import (
    Mark,
    Marks,
    forget,
    known_marks,
    marks_of,
)
from sqlalchemy_envelope.orm.columns.dual_attributes import dual_attributes
from sqlalchemy_envelope.orm.columns.mixed_classes import mix_in
from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, plan_of_mapper
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.columns.state import current_key, is_row_of, owner_of_row
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.reading import destroyed, two_columns
from sqlalchemy_envelope.orm.reading.locked_attributes import (
    cannot_wait,
    locked_attribute,
    not_followed,
    owner_not_loaded,
    shredded_attribute,
)
from sqlalchemy_envelope.orm.reading.opener import LOCKED, moved, open_stored
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy.orm import InstanceState, Mapper, Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owner_paths import LinkedPath


_NEW: Any = object()
"""Says that the object was just made, so that it has no marks yet."""


def load_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """Return a mapper's `refresh` listener; its `load` listener too if a value may stand in two columns."""
    listener = _load_listener(mapper)
    duals = dual_attributes(mapper)
    return two_columns.load_listener(listener, duals) if duals else listener


def _load_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    plan = plan_of_mapper(mapper)
    keys = tuple(attribute.key for attribute in plan)

    def on_load(state: InstanceState[Any], query_context: Any, read: Any = _NEW) -> None:
        instance = state.obj()
        if instance is None:
            return
        values = instance.__dict__
        try:
            put_aside(state, values, query_context, plan)
        except BaseException as error:
            empty_frames(error)
            del instance, values
            raise
        if read is not _NEW and "info" in state.__dict__:
            forget(state, [key for key in keys if key in values and (read is None or key in read)])

    return on_load


def put_aside(
    state: InstanceState[Any], values: dict[str, Any], query_context: Any, plan: Iterable[EncryptedAttribute]
) -> None:
    """Open values that came without their row, now that the object tells the row; put the others aside."""
    sealed_type = Sealed
    found = [one for one in plan if one.key in values and type(values[one.key]) is sealed_type]
    if not found:
        return
    session = query_context.session if query_context is not None else state.session
    here = context.unlocked_sessions(session)
    for unlocked in here:
        unlocked.saw(session)
    marks = None
    for attribute in found:
        sealed = values.pop(attribute.key)
        if sealed.is_shredded:
            marks = marks_of(state) if marks is None else marks
            marks[attribute.key] = sealed
            continue
        try:
            opened = _open(state, attribute, sealed, session) if here else _locked(attribute, sealed)
        except (DecryptionError, FormatError) as error:
            opened, sealed = LOCKED, sealed.unreadable(error)
        if opened is LOCKED:
            marks = marks_of(state) if marks is None else marks
            marks[attribute.key] = sealed
        else:
            values[attribute.key] = opened


def _open(
    state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed, session: Session | None
) -> Any:
    """Open a value in its row; return `LOCKED` if its key is locked or its row does not tell its owner.

    Raises:
        FormatError, TruncatedError, DecryptionError: the value does not belong there.
    """
    if sealed.why is not None:
        raise sealed.error()
    owner = _owner(state, attribute, sealed, session)
    if owner is None:
        return _locked(attribute, sealed)
    return open_stored(session, attribute.type.format, sealed.blob, owner, _reference(state, attribute))


def _locked(attribute: EncryptedAttribute, sealed: Sealed) -> Any:
    """Return `LOCKED`: no key of a possible owner is unlocked.

    Raises:
        FormatError, TruncatedError, DecryptionError: the value is not ours, or was found to be unreadable.
    """
    if sealed.why is not None:
        raise sealed.error()
    check_value(sealed.blob, attribute.type.field.label)
    return LOCKED


def _reference(state: InstanceState[Any], attribute: EncryptedAttribute) -> bytes:
    """Return the reference of the row that a value is bound to; for a new object, of its future row."""
    if not attribute.row_bound:
        return b""
    key = state.key[1] if state.key is not None else current_key(state)
    return b"" if None in key else encode_reference(key)


def _owner(
    state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed, session: Session | None
) -> OwnerId | None:
    """Return the owner of the value's row.

    If the row does not tell its owner, only a sole unlocked owner can be meant. If other rows tell the owner,
    `_find_owner` looks for them when the attribute is read.
    """
    if session is not None:
        named = owner_of_row(state, attribute, Names(session))
        if named is None and any(state.committed_state.get(key) is NO_VALUE for key in attribute.owner_keys):
            # The application gave the row another owner before the former owner was loaded. The value is
            # about to be encrypted for the new owner, in a session that holds the key of the stored value.
            return context.owner_of(session, bytes(sealed.blob[:HEADER_SIZE]))
        if named is not None or not attribute.encrypted.path.is_direct:
            return named
        return context.only_owner(context.unlocked_sessions(session))
    holder = context.owner_of(None, bytes(sealed.blob[:HEADER_SIZE]))
    if holder is not None and not is_row_of(state, attribute, holder):
        raise moved(attribute.type.field)
    return holder


def _in_row(
    error: DecryptionError | FormatError, state: InstanceState[Any], attribute: EncryptedAttribute
) -> DecryptionError | FormatError:
    """Return the same error with column and row, which were not known yet when the error was made."""
    if state.key is None:
        return error
    column = attribute.encrypted.column
    names = (one.name for one in state.mapper.primary_key)
    row = ", ".join(f"{name}={value!r}" for name, value in zip(names, state.key[1], strict=True))
    return type(error)(f"{error.args[0]} It is in {column.table.name}.{column.name} of the row with {row}.")


class _LockedAware:
    """Mixed into an attribute's own implementation class: `get` runs only on a `__dict__` miss.

    A caller that may not load gets no value, as from a deferred attribute. It gets no error either, since it
    did not ask for the value.
    """

    __slots__ = ()
    key: str
    active_history: bool

    @emptying
    def get(self, state: InstanceState[Any], dict_: Any, passive: Any = PASSIVE_OFF) -> Any:
        if self.key in dict_ or not passive & CALLABLES_OK:
            return super().get(state, dict_, passive)  # type: ignore[misc]  # of the class it is mixed into
        try:
            return self._get(state, dict_, passive)
        except (LockedError, DecryptionError, FormatError, PlaintextRefusedError):
            if passive & INIT_OK or not getattr(known_marks(state), "replacing", 0):
                raise
        return NO_VALUE

    def _get(self, state: InstanceState[Any], dict_: Any, passive: Any) -> Any:
        marks = known_marks(state)
        if marks:
            sealed, waiting = marks.sealed(self.key), marks.waiting(self.key)
            if sealed is not None:
                return _open_late(state, self.key, sealed, passive)
            if waiting is not None:
                return two_columns.read_waiting(state, waiting, passive)
            if marks.get(self.key) is Mark.WIPED and passive & SQL_OK:
                if not _may_open(state, self.key):
                    raise locked_attribute(state, self.key)
                if state.session is not None and not _may_wait(state, state.session):
                    raise cannot_wait(state, self.key)
        try:
            return super().get(state, dict_, passive)  # type: ignore[misc]  # of the class it is mixed into
        except KeyError:
            marks = known_marks(state) or Marks()
            sealed, waiting = marks.sealed(self.key), marks.waiting(self.key)
        # The refresh that `get` ran found a locked value, or a value in the previous column alone.
        if waiting is not None:
            return two_columns.read_waiting(state, waiting, passive)
        if sealed is None:
            raise KeyError(self.key)
        return _open_late(state, self.key, sealed, passive)

    def set(self, state: InstanceState[Any], dict_: Any, value: Any, *arguments: Any, **named: Any) -> None:
        if not self.active_history or self.key in dict_:
            super().set(state, dict_, value, *arguments, **named)  # type: ignore[misc]  # as above
            self._was_set(state)
            return
        # The history of the attribute asks for the old value, and does without it if it is locked:
        # `write_only` replaces values that it cannot read.
        marks = marks_of(state)
        around = getattr(marks, "replacing", 0)  # a listener may set it once more
        marks.replacing = around + 1
        try:
            super().set(state, dict_, value, *arguments, **named)  # type: ignore[misc]  # as above
        finally:
            marks.replacing = around
        self._was_set(state)

    def _was_set(self, state: InstanceState[Any]) -> None:
        # Done here and not in a listener, which would cost each value five times as much.
        if "info" in state.__dict__:
            forget(state, (self.key,))
        # A session that was only written to counts too: leaving the unlocked session has to find the values
        # that wait in it. A session bound to its unlocked session is known there; tell the context's session.
        if state.session_id is not None:
            context.CURRENT.get().saw(state.session)

    @emptying
    def delete(self, state: InstanceState[Any], dict_: Any) -> None:
        marks = None if self.key in dict_ else known_marks(state)
        if marks and (sealed := marks.sealed(self.key)) is not None:
            _open_late(state, self.key, sealed, PASSIVE_OFF)
        elif marks and marks.waiting(self.key) is not None:
            self.get(state, dict_)
        super().delete(state, dict_)  # type: ignore[misc]  # of the class it is mixed into


def _is_replacement(state: InstanceState[Any], key: str, value: Any) -> bool:
    """Tell whether an attribute is set to the very value that it reads as, in place of a shredded value. That
    is no change: a form that is saved as it was shown stores nothing."""
    marks = known_marks(state)
    sealed = None if marks is None else marks.sealed(key)
    if sealed is None or not sealed.is_replaced:
        return False
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    return bool(attribute.type.compare_values(sealed.format.replacement(), value))


def _may_open(state: InstanceState[Any], key: str) -> bool:
    unlocked = context.unlocked_sessions(state.session)
    if not unlocked:
        return False
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    owner = owner_of_row(state, attribute)
    return owner is None or any(owner in one or one.follows for one in unlocked)


def _open_late(state: InstanceState[Any], key: str, sealed: Sealed, passive: Any) -> Any:
    """Open a value that was locked when its row was loaded, if its key is unlocked by now.

    Raises:
        FormatError, TruncatedError, DecryptionError: the value does not belong there, or is not ours.
        LockedError: its key is still locked.
    """
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    failed = None
    if passive & SQL_OK and not sealed.is_shredded:
        _fetch_key(state, attribute, sealed)
        sealed = _if_destroyed(state, attribute, sealed)
    if sealed.is_replaced:
        return sealed.format.replacement()
    if sealed.is_shredded:
        if not passive & SQL_OK:
            return PASSIVE_NO_RESULT
        raise shredded_attribute(state, key)
    try:
        opened = _open(state, attribute, sealed, state.session)
        if opened is LOCKED and passive & SQL_OK and _find_owner(state, attribute, sealed):
            opened = _open(state, attribute, sealed, state.session)
    except (DecryptionError, FormatError) as error:
        failed, opened = _in_row(error, state, attribute), LOCKED
    if failed is not None and passive & SQL_OK:
        raise failed
    if opened is LOCKED:
        if not passive & SQL_OK:
            return PASSIVE_NO_RESULT
        raise not_followed(state, attribute, sealed) or locked_attribute(state, key)
    instance: Any = state.obj()
    for unlocked in context.unlocked_sessions(state.session):
        unlocked.saw(state.session)
    attributes.set_committed_value(instance, key, opened)
    forget(state, (key,))
    # Lets Mutable wrap the value; set_committed_value() alone would leave a dict whose changes go unseen.
    state.manager.dispatch.refresh(state, None, (key,))
    return state.dict[key]


def _fetch_key(state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed) -> None:
    """Fetch the key of a value that was loaded before server mode began or its grants were followed.

    Under asyncio this happens only in a greenlet of SQLAlchemy.
    """
    session = state.session
    demanding = [one for one in context.unlocked_sessions(session) if one.on_demand or one.follows]
    if not demanding or (session is not None and not _may_wait(state, session)):
        return
    header = bytes(sealed.blob[:HEADER_SIZE])
    with nullcontext() if session is None else session.no_autoflush:
        if session is not None and owner_of_row(state, attribute) is None:
            for one in demanding:
                one.find_others(session)
        for owner_class in attribute.encrypted.path.owner_classes:
            for one in demanding:
                one.prepare_read(session, owner_class, {header: 1})


def _if_destroyed(state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed) -> Sealed:
    """Return a value as shredded, if its key is known to be destroyed."""
    session, header = state.session, bytes(sealed.blob[:HEADER_SIZE])
    owner = destroyed.owner_of(session, header)
    if owner is None or sealed.why is not None or not is_row_of(state, attribute, owner):
        return sealed
    shredded = marks_of(state)[attribute.key] = sealed.shredded()
    return shredded


def _may_wait(state: InstanceState[Any], session: Session) -> bool:
    """Tell whether a statement can be sent now: under asyncio, only in a greenlet of SQLAlchemy."""
    return not session.get_bind(state.mapper).dialect.is_async or in_greenlet()


def _find_owner(state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed) -> bool:
    """Load the rows that lead from this row to its owner, if only they are missing to open the value.

    Returns:
        Whether the owner was found.
    """
    session, path = state.session, attribute.encrypted.path
    if session is None or context.owner_of(session, bytes(sealed.blob[:HEADER_SIZE])) is None:
        return False
    if owner_of_row(state, attribute) is not None:
        return False
    missing = linked_paths(path) or [key for key in attribute.owner_keys if key not in state.dict]
    if missing and not _may_wait(state, session):
        raise owner_not_loaded(state, attribute, "an attribute cannot wait for them", "await ")
    refused = ""
    with session.no_autoflush:
        for keys in (*((key,) for key in attribute.owner_keys), *map(_steps, linked_paths(path))):
            refused = refused or _load_along(state.obj(), keys)
    if refused and owner_of_row(state, attribute) is None:
        raise owner_not_loaded(state, attribute, f"{refused} is not to be loaded by itself (raiseload)")
    return owner_of_row(state, attribute) is not None


def _steps(path: LinkedPath) -> tuple[str, ...]:
    return tuple(step.key for step in path.steps)


def _load_along(instance: Any, keys: Iterable[str]) -> str:
    """Load attributes along a path from an object; return the name of an attribute that forbids it, or ""."""
    for key in keys:
        if instance is None:
            break
        try:
            instance = getattr(instance, key)
        except InvalidRequestError:
            return f"{type(instance).__name__}.{key}"
    return ""


class _Replacing(_LockedAware):
    """Mixed in in its place, where a column declares what is read in place of a shredded value."""

    __slots__ = ()

    def set(self, state: InstanceState[Any], dict_: Any, value: Any, *arguments: Any, **named: Any) -> None:
        if "info" not in state.__dict__ or not _is_replacement(state, self.key, value):
            super().set(state, dict_, value, *arguments, **named)


def make_locked_aware(implementation: Any, *, replaces: bool = False) -> None:
    """Let an attribute's implementation find locked values. Fails closed: else a read is a KeyError.

    Args:
        replaces: whether the column declares what is read in place of a shredded value.
    """
    name = ("Replacing" if replaces else "Encrypted") + type(implementation).__name__.strip("_")
    mix_in(_Replacing if replaces else _LockedAware, implementation, name)
