"""Objects with values in two columns: the encrypted column and, while values are moved, the previous column.

Both columns count only if the same statement read them: between two statements, the migration may have moved
the value. So the previous attribute only passes through here and never stays in an object. There it could
become stale beside the encrypted attribute, or be merged back into the database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import attributes
from sqlalchemy.orm.base import PASSIVE_NO_RESULT, SQL_OK

from sqlalchemy_envelope.exceptions import PlaintextRefusedError
from sqlalchemy_envelope.orm.columns.attribute_marks import (
    Mark,
    forget,
    is_from_previous,
    is_sealed,
    is_unreadable,
    marks_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.dual_attributes import DualAttribute

_MISSING = object()


def load_listener(inner: Callable[..., None], duals: Sequence[DualAttribute]) -> Callable[..., None]:
    """Return the `load` and `refresh` listener of a mapper with previous columns.

    It wraps `inner`, the listener of the mapper's encrypted columns.
    """

    def on_load(state: InstanceState[Any], query_context: Any, read: Any = None) -> None:
        inner(state, query_context, read)
        if query_context is None:
            return  # no row was read: a value that was locked has been opened
        unread = []
        for dual in duals:
            if (read is None or dual.key in read) and not _settle(state, dual):
                unread += [dual.key, dual.previous]
            if dual.previous not in state.committed_state:
                state.dict.pop(dual.previous, None)
        if unread:
            state.expired_attributes.update(unread)
            # If a single row was asked for, as by `refresh` or a deferred attribute, read it now, while SQL
            # can be sent. Of many rows, each is read when its attribute is read.
            if query_context.refresh_state is state:
                with query_context.session.no_autoflush:
                    query_context.session.refresh(state.obj(), unread)

    return on_load


def seen_again(state: InstanceState[Any], duals: Sequence[DualAttribute]) -> None:
    """Settle an object again that a row fills for a second place in that row.

    The row puts back the previous values that were left out of the object at the first place.
    """
    for dual in duals:
        if dual.previous not in state.dict and dual.key not in state.dict:
            continue
        # The object holds the previous value already, so that there is nothing to settle.
        if not is_from_previous(state, dual.key):
            _settle(state, dual)
        if dual.previous not in state.committed_state:
            state.dict.pop(dual.previous, None)


def _settle(state: InstanceState[Any], dual: DualAttribute) -> bool:
    """Choose the attribute's value between the two columns, after its encrypted column was read.

    Returns:
        False if the previous column has to be read with the encrypted column first.
    """
    key, previous, policy = dual
    values = state.dict
    value = values.get(key, _MISSING)
    if value is _MISSING and is_unreadable(state, key):
        forget(state, (previous,))
        return True  # never the previous value: an attacker may have altered this one so that it is read
    locked = value is _MISSING and is_sealed(state, key)
    if value is _MISSING and not locked:
        return True  # it was not read
    if value is not None and not (locked and policy == "both"):
        if not locked:
            forget(state, (key,))
        forget(state, (previous,))
        return True
    previous_locked = is_sealed(state, previous)
    before = values.get(previous, _MISSING)
    if before is _MISSING and not previous_locked:
        values.pop(key, None)
        forget(state, (key,))
        return False
    if locked and (previous_locked or before is None):
        forget(state, (previous,))
        return True  # locked, wherever it stands
    forget(state, (key,))
    if before is None:
        values[key] = None
    elif policy == "refuse" or previous_locked:
        values.pop(key, None)
        marks_of(state)[key] = dual
    else:
        values[key] = before
        marks_of(state)[key] = Mark.FROM_PREVIOUS
    return True


def read_waiting(state: InstanceState[Any], dual: DualAttribute, passive: Any) -> Any:
    """Return a value that stands in the previous column alone and was held back when its row was read.

    Raises:
        PlaintextRefusedError: the policy refuses a value in the previous column.
        LockedError: the previous column is encrypted, and the value's key is locked.
    """
    if dual.policy == "refuse":
        if not passive & SQL_OK:
            return PASSIVE_NO_RESULT
        raise refused_plaintext(f"{state.class_.__name__}.{dual.key}")
    value = state.manager[dual.previous].impl.get(state, state.dict, passive)
    if value is PASSIVE_NO_RESULT:
        return value
    instance: Any = state.obj()
    attributes.set_committed_value(instance, dual.key, value)
    state.dict.pop(dual.previous, None)
    forget(state, (dual.key, dual.previous))
    # Lets Mutable wrap the value, as after a load.
    state.manager.dispatch.refresh(state, None, (dual.key,))
    return state.dict[dual.key]


def refused_plaintext(what: str) -> PlaintextRefusedError:
    """Return the error for a value that stands in the previous column alone."""
    return PlaintextRefusedError(
        f"{what} stands in the previous column alone, and the column's policy is 'refuse'. Encrypt what is "
        "left, `migrate run`, or go back to the policy 'read'."
    )


def expire_listener(duals: Iterable[DualAttribute]) -> Callable[..., None]:
    """Return the `expire` listener of a mapper: if either column is read again, both are read."""
    pairs = tuple((one.key, one.previous) for one in duals)

    def on_expire(state: InstanceState[Any], keys: Any) -> None:
        for key, previous in pairs:
            if keys is None or key in keys:
                state.dict.pop(previous, None)
                state.expired_attributes.add(previous)

    return on_expire
