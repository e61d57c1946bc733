"""Objects whose values stand in two columns: the encrypted one, and while it is moved the previous one.

Both are read in one statement or neither counts: between two, the migration may have moved the value. So the
previous attribute is only passed through here and never stays in an object, where it could grow old beside
the other, or be merged back into the database.
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
    """The `load` and `refresh` listener of a mapper with previous columns, around the one of its encrypted
    columns."""

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
            # The one row that was asked for, as by `refresh` or a deferred attribute: now, while SQL can be
            # sent. Of many rows, those whose attribute is touched will be read then.
            if query_context.refresh_state is state:
                with query_context.session.no_autoflush:
                    query_context.session.refresh(state.obj(), unread)

    return on_load


def seen_again(state: InstanceState[Any], duals: Sequence[DualAttribute]) -> None:
    """A row fills an object for another place that it has in it, once it was loaded: what was left out of it
    then is there again."""
    for dual in duals:
        if dual.previous not in state.dict and dual.key not in state.dict:
            continue
        # What stands in the object is the previous value, and nothing is to be said of it anew.
        if not is_from_previous(state, dual.key):
            _settle(state, dual)
        if dual.previous not in state.committed_state:
            state.dict.pop(dual.previous, None)


def _settle(state: InstanceState[Any], dual: DualAttribute) -> bool:
    """Say what the attribute's value is, now that its encrypted column was read; False if the previous column
    would have to be read with it."""
    key, previous, policy = dual
    values = state.dict
    value = values.get(key, _MISSING)
    if value is _MISSING and is_unreadable(state, key):
        forget(state, (previous,))
        return True  # and never the previous value for it, which whoever altered it may have wanted
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
    """The value of an attribute that stands in the previous column alone, which was not handed out when its
    row was read.

    Raises:
        PlaintextRefusedError: the policy refuses it there.
        LockedError: it is encrypted there, and its key is locked.
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
    # Lets Mutable wrap it, as after a load.
    state.manager.dispatch.refresh(state, None, (dual.key,))
    return state.dict[dual.key]


def refused_plaintext(what: str) -> PlaintextRefusedError:
    """The error for a value that stands in the previous column alone."""
    return PlaintextRefusedError(
        f"{what} stands in the previous column alone, and the column's policy is 'refuse'. Encrypt what is "
        "left, `migrate run`, or go back to the policy 'read'."
    )


def expire_listener(duals: Iterable[DualAttribute]) -> Callable[..., None]:
    """The `expire` listener of a mapper: who reads the one column again reads the other with it."""
    pairs = tuple((one.key, one.previous) for one in duals)

    def on_expire(state: InstanceState[Any], keys: Any) -> None:
        for key, previous in pairs:
            if keys is None or key in keys:
                state.dict.pop(previous, None)
                state.expired_attributes.add(previous)

    return on_expire
