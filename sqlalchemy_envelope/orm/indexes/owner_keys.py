"""Index keys of owners: those that are open here make the tags that a comparison looks for.

A comparison finds the rows of every owner whose index key is open, through any grant. The rows of all other
owners are as if they were not there. If nobody is open, it is an error. A comparison with other values, `!=`
and `not_in`, takes what it does not find: it needs every index key of an owner, the earlier ones too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import LockedError, StatementRefusedError
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.connections import session_of

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.owners import Place

MOST_TAGS = 20_000
"""The most tags of one comparison: a statement of PostgreSQL has at most 65,535 parameters."""


def owner_hashers(
    connection: Connection, index: IndexedColumn, *, whole: bool = False
) -> dict[Place, list[IndexHasher]]:
    """What makes the tags of an index, for each owner whose index key is open here.

    Args:
        whole: only for owners whose earlier index keys are all open, too. A search for other values than
            these needs that: a tag does not say its key, and one under a key that is not open is no other.

    Raises:
        LockedError: nobody is.
        EnvelopeError: a key, or the way to it, was altered.
    """
    session = session_of(connection)
    names = Names(session, connection)
    wheres = {owner_class: names.where(owner_class) for owner_class in index.path.owner_classes}
    found: dict[Place, list[IndexHasher]] = {}
    for unlocked in context.unlocked_sessions(session):
        seekers = unlocked.index_seekers(session, wheres, index.data_scope, index, whole=whole)
        for place, hashers in seekers.items():
            found.setdefault(place, []).extend(hashers)
    if not found and whole and owner_hashers(connection, index):
        raise LockedError(
            f"The blind index {index.label!r} has tags under earlier index keys that are not open here: rows "
            "under them would count as rows with other values. Somebody who has those keys has to share "
            "them first: `envelope.settle(session)`, where that member is unlocked."
        )
    if not found:
        raise _locked(session, index)
    return found


def require_few(index: IndexedColumn, count: int) -> None:
    """Refuse a comparison with more tags than a statement takes.

    Raises:
        StatementRefusedError: there are more.
    """
    if count > MOST_TAGS:
        raise StatementRefusedError(
            f"{index.label!r} would be searched for {count:,} tags: one for each value under each index key "
            f"that is open here. At most {MOST_TAGS:,} go into a statement: compare with fewer values, or "
            "use BlindIndex(..., scope='server')."
        )


def _locked(session: Session | None, index: IndexedColumn) -> LockedError:
    what = f"The blind index {index.label!r}, which is under its owners' keys,"
    here, name = context.unlocked_sessions(session), index.path.owner_class.name
    if any(one.provider is not None for one in here):
        return LockedError(
            f"{what} is locked: server mode opens an owner with the owner's rows, and a search has none yet. "
            f"Say whose rows are looked for, `with server.using({name.lower()}):`; or declare the index with "
            "scope='server'."
        )
    if _has_no_key(here, index):
        return LockedError(
            f"{what} has no key yet: the index is newer than the keys of the {name} that is open here. The "
            "first write makes the key, and gives the rows their tags; or `envelope.settle(session)` does."
        )
    owner_class = index.path.owner_class if len(index.path.owner_classes) == 1 else None
    return context.locked(what, session, owner_class)


def _has_no_key(here: Any, index: IndexedColumn) -> bool:
    """Whether an owner is open here who got keys before there was this index."""
    return any(
        place.owner_class in index.path.owner_classes
        and one.keyring.current(place.owner, Purpose.INDEX, index.data_scope) is None
        for innermost in here
        for one in innermost.outward()
        for place in list(one.places.values())
    )
