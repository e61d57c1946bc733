"""Grants to owners whose keys a provider holds. A server reads by them what the provider holds no key of."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sessions.by_session import BySession
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.ways_from_provider import ways_from_provider

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.kept_keys import KeptKeys
    from sqlalchemy_envelope.orm.sharing.granted import Opening
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    Held = Sequence[tuple[OwnedKey, OwnedKey, StoredSlot]]
    TakeIn = Callable[[Desk, OwnerClass, Held], None]
    """Takes in keys that were loaded with the root key and the slot that lead to them."""


class ProviderGrants:
    """The grants to the owners of one provider."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._closed: BySession[tuple[object, set[bytes]]] = BySession()

    def follow(
        self,
        desk: Desk,
        kept: KeptKeys,
        owner_class: OwnerClass,
        headers: Sequence[bytes],
        take_in: TakeIn,
    ) -> tuple[set[KeyId], Mapping[str, int]]:
        """Open the keys of these values that are still closed. Gives the ids of all keys that their owners
        have, and how many owners were opened, by the name of their class."""
        closed = self._closed_in(desk.session)
        asked = [header for header in headers if header not in closed and not kept.is_ready(header)]
        if not asked:
            return set(), {}
        rows = desk.keys(owner_class).load_around([UUID(bytes=header[1:]) for header in asked])
        opened = self._open(desk, kept, owner_class, rows, take_in)
        closed.update(header for header in asked if not kept.is_ready(header))
        return {row.stored.key_id for row in rows}, opened

    def _open(
        self, desk: Desk, kept: KeptKeys, owner_class: OwnerClass, rows: Sequence[OwnedKey], take_in: TakeIn
    ) -> Mapping[str, int]:
        ways = ways_from_provider(desk, self._provider, owner_class, rows)
        names, starts = Names(desk.session), []
        for of, keys in ways.starts.items():
            take_in(desk, of, desk.keys(of).load_held_of(list(keys)))
            starts += [names.place(of, key) for key in keys]
        if not starts:
            return {}
        found = follow_grants(desk, kept.keyring, starts, ways.between, rows=rows)
        beyond = {place.owner for place in starts}
        return kept.take_granted([one for one in _places(found, names) if one.owner not in beyond])

    def forget(self) -> None:
        """A forked child looks for itself."""
        self._closed.clear()

    def _closed_in(self, session: Session) -> set[bytes]:
        """The values' keys that no grant leads to, as the session's transaction sees it."""
        look, found = looked_at(session), self._closed.get(session)
        if found is None or found[0] is not look:
            found = look, set()
            self._closed.put(session, found)
        return found[1]


def _places(found: Opening, names: Names) -> list[Place]:
    """The owners whom grants led to, those of whom a scope was granted included."""
    scoped = [names.place(of, key) for of, keys in found.scoped.items() for key in keys]
    return [*found.places.values(), *scoped]
