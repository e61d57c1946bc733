"""The state of an object's encrypted attributes besides their values: a `Marks` in `InstanceState.info`.

An attribute has at most one mark. Without a mark, its value is in the object's `__dict__`, or was never read.
SQLAlchemy pickles and copies the marks with the object.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.columns.dual_attributes import DualAttribute
from sqlalchemy_envelope.orm.columns.sealed import Sealed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import InstanceState

MARKS = "sqlalchemy_envelope"
"""The key in `InstanceState.info`."""


class Mark(Enum):
    """The state of an attribute's value, if the state needs no further data."""

    WIPED = "wiped"
    """The value was decrypted once and forgotten on leaving, and no stored value is kept. Reading it again
    from the database needs a key."""
    WIPED_READABLE = "wiped, readable"
    """As `WIPED`, but no key is needed: the previous column may be read too."""
    FROM_PREVIOUS = "from previous"
    """The value is from the previous column: leaving an unlocked session takes no key from it."""


class Marks(dict[str, Sealed | DualAttribute | Mark]):
    """The marks of an object by attribute.

    A mark is a `Sealed` for a stored value that is locked, or unreadable (`Sealed.why`); a `DualAttribute`
    for a refused or locked value in the previous column alone; or a `Mark`.

    Attributes:
        replacing: the number of running sets of attributes with an active history, which ask for the old
            value. Unset before the first time.
    """

    __slots__ = ("replacing",)
    replacing: int

    def sealed(self, key: str) -> Sealed | None:
        """Return the stored value of an attribute, if it waits for its key or is unreadable."""
        mark = self.get(key)
        return mark if type(mark) is Sealed else None

    def waiting(self, key: str) -> DualAttribute | None:
        """Return the two columns of an attribute, if its value is in the previous column alone."""
        mark = self.get(key)
        return mark if type(mark) is DualAttribute else None

    def is_wiped(self, key: str) -> bool:
        """Tell whether the value of an attribute was closed, and no stored value is kept."""
        mark = self.get(key)
        return mark is Mark.WIPED or mark is Mark.WIPED_READABLE

    def __reduce__(self) -> tuple[Any, ...]:
        return Marks, (dict(self),)


def marks_of(state: InstanceState[Any]) -> Marks:
    """Return the marks of an object, to add a mark."""
    marks: Marks | None = state.info.get(MARKS)
    if marks is None:
        marks = state.info[MARKS] = Marks()
    return marks


def known_marks(state: InstanceState[Any]) -> Marks | None:
    """Return the marks of an object; None if it never had a mark.

    Reading `InstanceState.info` would make a dictionary.
    """
    marks: Marks | None = state.info.get(MARKS) if "info" in state.__dict__ else None
    return marks


def forget(state: InstanceState[Any], keys: Iterable[str] | None) -> None:
    """Drop the marks of attributes that are read or set anew; without names, drop all marks."""
    marks = known_marks(state)
    if not marks:
        return
    for key in list(marks) if keys is None else keys:
        marks.pop(key, None)


def is_sealed(state: InstanceState[Any], key: str) -> bool:
    """Tell whether an attribute has a stored value that is locked or unreadable."""
    marks = known_marks(state)
    return marks is not None and marks.sealed(key) is not None


def is_unreadable(state: InstanceState[Any], key: str) -> bool:
    """Tell whether an attribute has a stored value that no key would open."""
    marks = known_marks(state)
    sealed = None if marks is None else marks.sealed(key)
    return sealed is not None and sealed.why is not None


def is_from_previous(state: InstanceState[Any], key: str) -> bool:
    """Tell whether an attribute has the value of its previous column."""
    marks = known_marks(state)
    return marks is not None and marks.get(key) is Mark.FROM_PREVIOUS


def has_from_previous(state: InstanceState[Any]) -> bool:
    """Tell whether any attribute has the value of its previous column."""
    marks = known_marks(state)
    return marks is not None and any(mark is Mark.FROM_PREVIOUS for mark in marks.values())


def written(state: InstanceState[Any], key: str) -> None:
    """Note that an attribute is about to be encrypted: from now on its value needs a key."""
    if "info" in state.__dict__ and is_from_previous(state, key):
        forget(state, (key,))


def was_closed(state: InstanceState[Any], key: str) -> bool:
    """Tell whether an attribute was open, and was closed when its unlocked session was left."""
    marks = known_marks(state)
    if marks is None:
        return False
    return marks.is_wiped(key) or (marks.sealed(key) is not None and key in state.expired_attributes)


def on_pickle(state: InstanceState[Any], pickled: dict[str, Any]) -> None:
    """Leave out values that were closed on leaving, when an object is pickled.

    They are read again in the process that unpickles the object. The type beside a stored value would be
    pickled too, and may list the possible values, as the type of an Enum does.
    """
    info = pickled.get("info", {})
    marks: Marks = info.get(MARKS, Marks())
    closed = {key for key in marks if marks.sealed(key) is not None and key in state.expired_attributes}
    if closed:
        pickled["info"] = {**info, MARKS: Marks({**marks, **dict.fromkeys(closed, Mark.WIPED)})}
