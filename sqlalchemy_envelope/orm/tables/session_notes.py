"""What the library notes on a `Session`: one `SessionNotes` in `Session.info`.

A module that notes something there has a page of its own: a class, by which the page is found. So each page
is typed by the room that writes it, and no room has to know what a room above it notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import ref

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.orm import Session, SessionTransaction

P = TypeVar("P")
W = TypeVar("W", bound="WithinTransaction")

NOTES = "sqlalchemy_envelope"
"""The key in `Session.info`."""


class SessionNotes:
    """What is noted on one session.

    Attributes:
        session: gives the session.
        bound: the unlocked session that is bound to it. No page, because each fetch asks for it.
        pages: all else, by the class of each page.
    """

    __slots__ = ("bound", "pages", "session")

    def __init__(self, session: Session, before: SessionNotes | None) -> None:
        self.session = ref(session)
        self.bound: Any = None if before is None else before.bound
        self.pages: dict[type[Any], Any] = {} if before is None else dict(before.pages)

    def __repr__(self) -> str:
        return f"<SessionNotes: {', '.join(sorted(kind.__name__ for kind in self.pages)) or 'none'}>"


class _NoNotes:
    pages: Mapping[type[Any], Any] = {}


_NO_NOTES = _NoNotes()


def _nothing() -> None:
    return None


@dataclass
class WithinTransaction:
    """A page that counts in one transaction alone.

    Attributes:
        transaction: gives the transaction, as long as it is there.
    """

    transaction: Callable[[], SessionTransaction | None] = _nothing


def notes_of(session: Session) -> SessionNotes:
    """The notes on a session, to be written in; with nothing in them at first."""
    notes: SessionNotes | None = session.info.get(NOTES)
    if notes is None or notes.session() is not session:
        # `Session(info=another.info)` begins with the notes of another session, and goes on with its own.
        notes = session.info[NOTES] = SessionNotes(session, notes)
    return notes


def page_of(session: Session, kind: type[P]) -> P:
    """The session's page of this kind; a new one if it has none."""
    pages = notes_of(session).pages
    page: P | None = pages.get(kind)
    if page is None:
        page = pages[kind] = kind()
    return page


def known_page(session: Session, kind: type[P]) -> P | None:
    """The session's page of this kind, if it has one."""
    page: P | None = session.info.get(NOTES, _NO_NOTES).pages.get(kind)
    return page


def put_page(session: Session, page: object) -> None:
    """Let this be the session's page of its kind."""
    notes_of(session).pages[type(page)] = page


def take_page(session: Session, kind: type[P]) -> P | None:
    """The session's page of this kind, which it has no longer."""
    return notes_of(session).pages.pop(kind, None) if NOTES in session.info else None


def page_within(session: Session, kind: type[W], transaction: SessionTransaction | None) -> W:
    """The session's page of this kind for a transaction; a new one if the last was for another."""
    page = known_page(session, kind)
    if page is None or transaction is None or page.transaction() is not transaction:
        page = notes_of(session).pages[kind] = kind()
        if transaction is not None:
            page.transaction = ref(transaction)
    return page
