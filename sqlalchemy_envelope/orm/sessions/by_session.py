"""What a server session has for each `Session` that it serves; it goes with the `Session`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

T = TypeVar("T")


class BySession(Generic[T]):
    """One thing for each session."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Session, T] = WeakKeyDictionary()

    def get(self, session: Session | None) -> T | None:
        """What there is for a session."""
        return None if session is None else self._found.get(session)

    def put(self, session: Session, value: T) -> None:
        """This is a session's from now on."""
        self._found[session] = value

    def all(self) -> list[T]:
        """What there is for any session."""
        # By references: `values()` fails when another thread's session comes in meanwhile.
        sessions = [reference() for reference in self._found.keyrefs()]
        found = [self._found.get(session) for session in sessions if session is not None]
        return [one for one in found if one is not None]

    def clear(self) -> None:
        """Forget all of it."""
        self._found.clear()
