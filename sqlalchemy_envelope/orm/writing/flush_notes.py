"""What a flush notes on its connection: which object each row belongs to, for statements that do not name the
owner of their rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy_envelope.orm.columns.state import current_key, waits
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.writing.newcomers import forget_lookups
from sqlalchemy_envelope.orm.writing.unwritten_parts import UnwrittenParts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Column, Connection, Table
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute, EncryptedColumn

    Key = tuple[Any, ...]


class FlushNotes:
    """Which objects a connection's flush writes, by table and primary key."""

    def __init__(self) -> None:
        self.links: dict[tuple[Any, Key], Key] = {}
        """By path and a row's values for it: the owner's values at the end of the path, where objects in
        memory know them."""
        self.to_rewrite: dict[Column[Any], set[Key]] = {}
        """By encrypted column of a joined subclass: the primary keys of the rows whose new value is not sent
        yet."""
        self.replacing: dict[InstanceState[Any], InstanceState[Any]] = {}
        """By deleted object: the new object that takes over its row."""
        self.parts = UnwrittenParts()
        """What the flush reads of its rows, for indexes over several attributes."""
        self._updated: dict[tuple[Table, Key], InstanceState[Any]] = {}
        self._inserted: dict[Table, list[InstanceState[Any]]] = {}

    def inserting(self, table: Table, state: InstanceState[Any]) -> None:
        """Note a new row. Its primary key may come with the statement before its own."""
        self._inserted.setdefault(table, []).append(state)

    def updating(self, table: Table, state: InstanceState[Any]) -> None:
        """Note a changed row."""
        if state.key is not None:
            self._updated[table, tuple(state.key[1])] = state

    def rewriting(self, state: InstanceState[Any], attribute: EncryptedAttribute, key: Key) -> None:
        """Note that the object's row gets a new value. A value that is equal to the stored one is not
        noted, because SQLAlchemy does not write it."""
        if waits(state, attribute):
            self.to_rewrite.setdefault(attribute.encrypted.column, set()).add(key)

    def sent(self, columns: Iterable[EncryptedColumn], keys: Iterable[Key]) -> None:
        """Note that these rows got their values. A statement that moves such a row now leaves the values
        behind."""
        for column in columns:
            self.to_rewrite.get(column.column, set()).difference_update(keys)

    def find(self, table: Table, primary_key: Key) -> InstanceState[Any] | None:
        """The object whose row this is."""
        state = self._updated.get((table, primary_key))
        if state is not None:
            return state
        for inserted in self._inserted.pop(table, ()):
            self._updated[table, current_key(inserted)] = inserted
        return self._updated.get((table, primary_key))


_notes: WeakKeyDictionary[Connection, FlushNotes] = WeakKeyDictionary()
_only_adding: set[Any] = set()


def notes_of(connection: Connection) -> FlushNotes | None:
    """The notes of the flush on this connection, if there are any."""
    return _notes.get(connection)


def notes_for(connection: Connection) -> FlushNotes:
    """The notes of the flush on this connection, to add to."""
    notes = _notes.get(connection)
    if notes is None:
        notes = _notes[connection] = FlushNotes()
    return notes


def deletes_nothing(session_id: int | None) -> bool:
    """Whether it was noted that this session's flush deletes no object."""
    return session_id in _only_adding


def note_deletes_nothing(session: Session) -> None:
    """Note that the session's flush deletes no object. This is asked for its first row, and holds for all
    rows."""
    _only_adding.add(session.hash_key)


def clear_notes(session: Session, *_: object) -> None:
    """Forget the notes of a flush that is over or was rolled back."""
    _only_adding.discard(session.hash_key)
    forget_lookups(session)
    if _notes:
        # As references: other threads add connections while this thread looks through them.
        for reference in _notes.keyrefs():
            connection = reference()
            if connection is not None and session_of(connection) in (session, None):
                _notes.pop(connection, None)
