"""A store with a value for each `Session` that a server session serves. A value goes with its `Session`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


class BySession(Generic[T]):
    """One value for each session."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Session, T] = WeakKeyDictionary()

    def get(self, session: Session | None) -> T | None:
        """Return a session's value, or None."""
        return None if session is None else self._found.get(session)

    def put(self, session: Session, value: T) -> None:
        """Set a session's value."""
        self._found[session] = value

    def all(self) -> list[T]:
        """Return the values of all sessions."""
        # Go through references: `values()` fails if another thread adds a session meanwhile.
        sessions = [reference() for reference in self._found.keyrefs()]
        found = [self._found.get(session) for session in sessions if session is not None]
        return [one for one in found if one is not None]

    def clear(self) -> None:
        """Forget all values."""
        self._found.clear()
