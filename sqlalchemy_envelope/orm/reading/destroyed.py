"""Which keys are destroyed, so that a value under one is shredded and not locked.

The rows of destroyed keys tell. An unlock reads those of its owner, and whoever follows grants reads those of
the owners on the way. For all other values that stay locked, one query asks, for all rows of a fetch and
once in a transaction; but only while something is unlocked, for whoever reads without a key is told that the
value is locked, and has asked for no more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, value_header
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet
from sqlalchemy_envelope.orm.tables.session_notes import (
    WithinTransaction,
    known_page,
    page_within,
    take_page,
)
from sqlalchemy_envelope.orm.tables.shredded_rows import ShreddedRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


@dataclass
class _Looked(WithinTransaction):
    """A page of `SessionNotes`: the keys that were looked up, by class and header.

    Attributes:
        asked: the keys that were looked up.
        found: the owners of those that are destroyed.
    """

    asked: set[tuple[OwnerClass, bytes]] = field(default_factory=set)
    found: dict[bytes, OwnerId] = field(default_factory=dict)


def owner_of(session: Session | None, header: bytes) -> OwnerId | None:
    """The owner of the key that a value names, if the key is known to be destroyed. Sends no query."""
    here: Any = context.unlocked_sessions(session)
    for innermost in here:
        for one in innermost.outward():
            owner: OwnerId | None = one.keyring.destroyed.get(header)
            if owner is not None:
                return owner
    page = None if session is None else known_page(session, _Looked)
    if session is None or page is None or page.transaction() is not session.get_transaction():
        return None
    return page.found.get(header)


def may_look(connection: Connection) -> bool:
    """Whether a query can be sent: under asyncio, only in a greenlet of SQLAlchemy."""
    return not connection.dialect.is_async or in_greenlet()


def look(session: Session, headers: Mapping[OwnerClass, Iterable[bytes]]) -> None:
    """Look up keys that no unlocked session holds, each once in a transaction. One query for each class."""
    here = context.unlocked_sessions(session)
    if not here:
        return
    page = page_within(session, _Looked, session.get_transaction())
    for owner_class, some in headers.items():
        new = {
            one
            for one in some
            if len(one) == HEADER_SIZE
            and (owner_class, one) not in page.asked
            and context.owner_of(session, one) is None
        }
        if not new:
            continue
        page.asked.update((owner_class, one) for one in new)
        store = ShreddedRows(session, owner_class, here[0].policy.seals)
        for one in store.load_destroyed(UUID(bytes=header[1:]) for header in new):
            page.found[value_header(one.stored.key_id.bytes)] = one.owner


def forget(session: Session, *_: object) -> None:
    """Look again: a savepoint that destroyed keys may have been rolled back."""
    take_page(session, _Looked)
