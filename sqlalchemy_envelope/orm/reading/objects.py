"""Reading entities: row-bound values are opened where the row is known, locked ones are put where touching
them raises, and what was decrypted is forgotten when its unlocked session is left.

A locked value never sits in `__dict__`, where Mutable, pydantic and merge would meet it: it waits in
`state.info`, and the attribute's own `impl.get()`, which runs only for what is not in `__dict__`, finds it
there. Reading an open value costs nothing extra.

The rule for a stored value that is not what was written there (foreign bytes, cut short, altered, moved): it
is put beside the locked ones, with the error. Its row and all others load, a flush leaves its bytes alone,
and whoever touches the attribute gets the error, which names column and row. The exception is a column-bound
value that does open, in a row of another owner than its key's: that would be read as the row owner's, so the
load fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import CALLABLES_OK, INIT_OK, NO_VALUE, PASSIVE_NO_RESULT, PASSIVE_OFF, SQL_OK

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, MAX_STORED_SIZE, altered, check_value, row_tail
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import empty_frames, emptying
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    DecryptionError,
    FormatError,
    LockedError,
    PlaintextRefusedError,
)
from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, plan_of_mapper
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.columns.state import (
    REPLACED,
    SEALED,
    WAITING,
    WIPED,
    forget,
    is_row_of,
    owner_of_row,
)
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.reading import two_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sqlalchemy.orm import InstanceState, Mapper, Session


_COLUMN_TAIL = row_tail(b"")
_NAMES = "sqlalchemy_envelope.names"
_HEADER, _NONCE, _BODY = slice(HEADER_SIZE), slice(HEADER_SIZE, 29), slice(29, None)


def load_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    """The listener for `load` and `refresh` of one mapper. It runs for every row: what
    is asked first is cheap."""
    listener = _load_listener(mapper)
    duals = two_columns.dual_attributes(mapper)
    return two_columns.load_listener(listener, duals, forget) if duals else listener


def _load_listener(mapper: Mapper[Any]) -> Callable[..., None]:
    plan = plan_of_mapper(mapper)
    current = context.CURRENT.get
    openings = tuple((attribute, *attribute.opening) for attribute in plan)
    paths = {(attribute.encrypted.path.owner_class, attribute.owner_keys) for attribute in plan}
    owner_class, owner_keys = next(iter(paths))
    watched = context.WATCHED
    column_bound = any(not attribute.row_bound for attribute in plan)

    def on_load(state: InstanceState[Any], query_context: Any, read: Any = None) -> None:
        checked: list[str] | None = [] if column_bound else None
        try:
            _settle(state, query_context, openings, checked)
            if checked is not None and current().is_open and query_context is not None:
                _check_owner(state, plan, read, checked)
        except BaseException as error:  # not by `emptying`, which would cost a call for each row
            empty_frames(error)
            raise

    direct = all(attribute.encrypted.path.is_direct for attribute in plan)
    if not direct or len(paths) > 1 or len(owner_keys) != 1 or any(a.row_bound for a in plan):
        return on_load
    (owner_key,) = owner_keys

    def on_column_bound_load(state: InstanceState[Any], query_context: Any, read: Any = None) -> None:
        unlocked = current()
        if unlocked.only_class is None and read is None and not unlocked.handed_sealed and watched[0]:
            return  # several owners are unlocked, and each row was compared with its own when it was fetched
        here = query_context is not None and query_context.session is unlocked.home
        if here and unlocked.only_class is owner_class and not unlocked.handed_sealed:
            # One owner is unlocked, every value read so far opened, and this row is that
            # owner's: nothing to do.
            instance = state.obj()
            if instance is not None and instance.__dict__.get(owner_key) == unlocked.only_key:
                return
            del instance
        on_load(state, query_context, read)

    return on_column_bound_load


def _settle(
    state: InstanceState[Any], query_context: Any, openings: Iterable[Any], checked: list[str] | None
) -> None:
    """Open what can be opened now that the row is known, compared with its owner; put the rest aside.

    Notes in `checked` the attributes that were looked at, if it is given. The hot path of row-bound columns.
    """
    values = state.dict
    current = context.CURRENT.get()
    readers = (current if current.is_open else _holder(state, query_context)).readers
    unchanged = not state.committed_state
    marked = "info" in state.__dict__
    tail = None
    for attribute, key, slot, decode_bytes, owner_key, row_bound in openings:
        sealed = values.get(key)
        if type(sealed) is not Sealed:
            continue
        if checked is not None:
            checked.append(key)
        if tail is None:
            tail = row_tail(encode_reference(state.key[1])) if state.key is not None else _COLUMN_TAIL
        blob = sealed.blob
        try:
            open_, prefix, owner, where = readers[slot][blob[_HEADER]]
            here = _names(state, query_context).where(attribute.encrypted.path.owner_class)
            if unchanged and values[owner_key] == owner and where == here and len(blob) <= MAX_STORED_SIZE:
                aad = prefix + (tail if row_bound else _COLUMN_TAIL)
                values[key] = decode_bytes(open_(blob[_NONCE], blob[_BODY], aad))
                if marked:
                    forget(state, (key,))
                continue
        except Exception:  # noqa: BLE001, S110 - the first of its key, locked or wrong: told apart below
            pass
        _settle_one(state, query_context, attribute, sealed)


def _names(state: InstanceState[Any], query_context: Any) -> Names:
    """The names of owners, as the session has them that reads these rows; found once for a query."""
    if query_context is None:
        return Names(state.session)
    known: Names | None = query_context.attributes.get(_NAMES)
    if known is None:
        known = query_context.attributes[_NAMES] = Names(query_context.session)
    return known


def _holder(state: InstanceState[Any], query_context: Any) -> context.OpenKeys | context.NothingUnlocked:
    """The unlocked session whose readers serve this row."""
    current = context.CURRENT.get()
    if current.is_open:
        return current
    session = query_context.session if query_context is not None else state.session
    return next(iter(context.unlocked_sessions(session)), current)


def _settle_one(
    state: InstanceState[Any], query_context: Any, attribute: EncryptedAttribute, sealed: Sealed
) -> None:
    session = query_context.session if query_context is not None else state.session
    for unlocked in context.unlocked_sessions(session):
        unlocked.saw(session)
    try:
        opened = _open(state, attribute, sealed, session)
    except (DecryptionError, FormatError) as error:
        opened, sealed = None, sealed.unreadable(error)
    if opened is None:
        del state.dict[attribute.key]
        state.info.setdefault(SEALED, {})[attribute.key] = sealed
    else:
        forget(state, (attribute.key,))
        state.dict[attribute.key] = opened[0]


def _open(
    state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed, session: Session | None
) -> tuple[Any] | None:
    """The value in its row, or None if its key is locked.

    Raises:
        FormatError, TruncatedError, DecryptionError: it does not belong there.
    """
    if sealed.why is not None:
        raise sealed.error()
    check_value(sealed.blob, attribute.type.field.label)
    blob = bytes(sealed.blob)
    header, field = blob[:HEADER_SIZE], attribute.type.field
    cipher = context.find_reader(session, header, field)
    if cipher is None:
        return None
    if not is_row_of(state, attribute, context.owner_of(session, header)):
        raise altered(field)
    reference = encode_reference(state.key[1]) if field.row_bound and state.key is not None else b""
    opened = (attribute.type.format.decode(cipher.decrypt(blob, reference)),)
    direct = attribute.encrypted.path.is_direct and len(attribute.owner_keys) == 1
    known = direct and state.dict.get(attribute.owner_keys[0]) is not None
    if known and state.session is not None:
        # What `_settle` needs to open the next one under this key without coming here.
        where = Names(state.session).where(attribute.encrypted.path.owner_class)
        entry = (cipher.open, cipher.row_aad, state.dict.get(attribute.owner_keys[0]), where)
        _holder(state, None).remember(attribute.slot, header, cipher, entry)
    return opened


def _check_owner(
    state: InstanceState[Any], plan: Iterable[EncryptedAttribute], read: Any, checked: Collection[str]
) -> None:
    """Refuse a value that opened before its row was known, and whose row is another owner's.

    With several owners unlocked, rows were compared as they were fetched (`fetching`), but for those that
    came without their owner's column: a deferred attribute, say, of a row that is known already.
    """
    current = context.CURRENT.get()
    names = Names(state.session)
    for attribute in plan:
        with_owner = read is None or not read.isdisjoint(attribute.owner_keys)
        key = attribute.key
        if current.only_class is None and (with_owner or not attribute.encrypted.path.columns):
            loaded = read is None or key in read
            if loaded and not context.WATCHED[0] and state.dict.get(key) is not None:
                raise ConfigurationError(
                    "Rows cannot be compared with their owners as they are fetched: this version of "
                    "SQLAlchemy is not supported while several owners are unlocked."
                )
            continue
        value = state.dict.get(key)
        if (
            value is None
            or attribute.is_null(value)
            or key in checked
            or key in state.committed_state
            or (read is not None and key not in read)
        ):
            continue  # nothing, compared already, set by the application, or read before
        owner = owner_of_row(state, attribute, names)
        if owner is not None and not current.came_from(value, owner):
            error = DecryptionError(
                f"A value of {attribute.type.label!r} is under the key of another owner than its row's: it "
                "was moved here."
            )
            raise _in_row(error, state, attribute)


def _in_row(
    error: DecryptionError | FormatError, state: InstanceState[Any], attribute: EncryptedAttribute
) -> DecryptionError | FormatError:
    """The same error, which says where to look: label and value are told before the row is known."""
    if state.key is None:
        return error
    column = attribute.encrypted.column
    names = (one.name for one in state.mapper.primary_key)
    row = ", ".join(f"{name}={value!r}" for name, value in zip(names, state.key[1], strict=True))
    return type(error)(f"{error.args[0]} It is in {column.table.name}.{column.name} of the row with {row}.")


class _LockedAware:
    """Mixed into an attribute's own implementation class: `get` runs only on a `__dict__` miss.

    Who may not load, gets nothing, as from a deferred attribute; and no error, since nothing is asked for.
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
            if passive & INIT_OK or not state.info.get(REPLACED):
                raise
        return NO_VALUE

    def _get(self, state: InstanceState[Any], dict_: Any, passive: Any) -> Any:
        if "info" in state.__dict__:
            sealed = state.info.get(SEALED, {}).get(self.key)
            if sealed is not None:
                return _open_late(state, self.key, sealed, passive)
            waiting = state.info.get(WAITING, {}).get(self.key)
            if waiting is not None:
                return two_columns.read_waiting(state, waiting, passive, forget)
            if self.key in state.info.get(WIPED, ()) and passive & SQL_OK and not _may_open(state, self.key):
                # No SQL: under asyncio there is no greenlet here to run it in.
                raise _locked(state, self.key)
        try:
            return super().get(state, dict_, passive)  # type: ignore[misc]  # of the class it is mixed into
        except KeyError:
            sealed = state.info.get(SEALED, {}).get(self.key)
            waiting = state.info.get(WAITING, {}).get(self.key)
        # The refresh that `get` ran found a locked value, or one in the previous column alone.
        if waiting is not None:
            return two_columns.read_waiting(state, waiting, passive, forget)
        if sealed is None:
            raise KeyError(self.key)
        return _open_late(state, self.key, sealed, passive)

    def set(self, state: InstanceState[Any], dict_: Any, value: Any, *arguments: Any, **named: Any) -> None:
        if not self.active_history or self.key in dict_:
            super().set(state, dict_, value, *arguments, **named)  # type: ignore[misc]  # as above
            return
        # The history of the attribute asks for the old value, and goes without one that is locked here:
        # `write_only` replaces what it cannot read.
        around = state.info.get(REPLACED, 0)  # a listener may set it once more
        state.info[REPLACED] = around + 1
        try:
            super().set(state, dict_, value, *arguments, **named)  # type: ignore[misc]  # as above
        finally:
            state.info[REPLACED] = around

    @emptying
    def delete(self, state: InstanceState[Any], dict_: Any) -> None:
        sealed = state.info.get(SEALED, {}).get(self.key) if self.key not in dict_ else None
        if sealed is not None:
            _open_late(state, self.key, sealed, PASSIVE_OFF)
        elif self.key not in dict_ and self.key in state.info.get(WAITING, ()):
            self.get(state, dict_)
        super().delete(state, dict_)  # type: ignore[misc]  # of the class it is mixed into


def _locked(state: InstanceState[Any], key: str) -> LockedError:
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    encrypted = attribute.encrypted
    name = f"{state.class_.__name__}.{key}"
    return context.locked(name, state.session, encrypted.path.owner_class, encrypted.scope)


def _may_open(state: InstanceState[Any], key: str) -> bool:
    unlocked = context.unlocked_sessions(state.session)
    if not unlocked:
        return False
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    owner = owner_of_row(state, attribute)
    return owner is None or any(owner in one for one in unlocked)


def _open_late(state: InstanceState[Any], key: str, sealed: Sealed, passive: Any) -> Any:
    """A value that was locked when its row was loaded: open it now, without SQL, if its key has come.

    Raises:
        FormatError, TruncatedError, DecryptionError: it does not belong there, or is none of ours.
        LockedError: its key has not come.
    """
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    failed = None
    try:
        opened = _open(state, attribute, sealed, state.session)
    except (DecryptionError, FormatError) as error:
        failed, opened = _in_row(error, state, attribute), None
    if failed is not None and passive & SQL_OK:
        raise failed
    if opened is None:
        if not passive & SQL_OK:
            return PASSIVE_NO_RESULT
        raise _locked(state, key)
    instance: Any = state.obj()
    for unlocked in context.unlocked_sessions(state.session):
        unlocked.saw(state.session)
    attributes.set_committed_value(instance, key, opened[0])
    forget(state, (key,))
    # Lets Mutable wrap it; set_committed_value() alone would leave a plain dict whose changes go unseen.
    state.manager.dispatch.refresh(state, None, (key,))
    return state.dict[key]


_locked_aware: dict[type, type] = {}


def make_locked_aware(implementation: Any) -> None:
    """Let one attribute's implementation find locked values. Fails closed: without
    it a read is a KeyError."""
    base = type(implementation)
    if not issubclass(base, _LockedAware):
        if base not in _locked_aware:
            _locked_aware[base] = type(
                "Encrypted" + base.__name__.strip("_"), (_LockedAware, base), {"__slots__": ()}
            )
        implementation.__class__ = _locked_aware[base]
