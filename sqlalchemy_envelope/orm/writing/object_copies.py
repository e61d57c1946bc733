"""Objects that become another row than they were read from: by `make_transient`, by a pickle, or by `merge`
where their row does not exist.

A locked value is not in the object's `__dict__`: SQLAlchemy would store NULL for it and say nothing. So the
value is opened before the INSERT, or the flush is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import attributes

from sqlalchemy_envelope.exceptions import (
    DecryptionError,
    KeyShreddedError,
    LockedError,
    LockReason,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm.columns.attribute_marks import Mark, known_marks, marks_of
from sqlalchemy_envelope.orm.columns.mixed_classes import mix_in

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute


_STORED_WITHOUT = "it would be stored without this value. Read it before, or set it."


def open_carried(state: InstanceState[Any], plan: Iterable[EncryptedAttribute]) -> None:
    """Open the values that a new row's object carries locked.

    Raises:
        LockedError: a key is not open here, or a value was not kept.
        StatementRefusedError: a value is bound to the row that the object was read from.
    """
    marks = known_marks(state)
    if not marks:
        return
    for attribute in plan:
        key = attribute.key
        if key in state.dict:
            continue
        if marks.is_wiped(key):
            raise LockedError(
                f"{_name(state, key)} was closed when its unlocked session was left, and its object becomes "
                f"another row: {_STORED_WITHOUT}"
            ).because(LockReason.LEFT)
        sealed = marks.sealed(key)
        if sealed is not None and sealed.is_shredded:
            raise KeyShreddedError(
                f"The key of {_name(state, key)} was destroyed, and its object becomes another row: it would "
                "be stored without this value. Set it before."
            )
        if sealed is not None or marks.waiting(key) is not None:
            _open(state, attribute)


def _open(state: InstanceState[Any], attribute: EncryptedAttribute) -> None:
    instance: Any = state.obj()
    try:
        getattr(instance, attribute.key)
    except LockedError as error:
        told = type(error)(f"{error.args[0]} The object becomes another row: {_STORED_WITHOUT}")
        raise told.because(error.reason) from None
    except DecryptionError:
        if not attribute.row_bound:
            raise
        raise StatementRefusedError(
            f"{_name(state, attribute.key)} is bound to the row that it was read from, and its object "
            f"becomes another row: {_STORED_WITHOUT}"
        ) from None
    attributes.flag_modified(instance, attribute.key)


def _name(state: InstanceState[Any], key: str) -> str:
    return f"{state.class_.__name__}.{key}"


class _Carrying:
    """Mixed into the class of a mapped column: a new object that `Session.merge` makes carries the values
    that are locked in its source."""

    __slots__ = ()
    key: str

    def merge(
        self,
        session: Any,
        source_state: InstanceState[Any],
        source_dict: Any,
        dest_state: InstanceState[Any],
        *arguments: Any,
        **named: Any,
    ) -> None:
        super().merge(session, source_state, source_dict, dest_state, *arguments, **named)  # type: ignore[misc]  # of the class it is mixed into
        if self.key in source_dict or dest_state.has_identity:
            return
        marks = known_marks(source_state)
        mark = None if marks is None else marks.get(self.key)
        if mark is not None and mark is not Mark.FROM_PREVIOUS:
            marks_of(dest_state)[self.key] = mark


def make_carrying(prop: Any) -> None:
    """Let `merge` carry the locked values of one mapped column."""
    mix_in(_Carrying, prop, "Encrypted" + type(prop).__name__, inherit_cache=True)
