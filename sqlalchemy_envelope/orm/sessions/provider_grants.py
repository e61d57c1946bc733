"""The ways from a provider's slots to keys without a slot of it: a newer root key of the same owner, and
grants to owners that the provider can open."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sessions.by_session import BySession
from sqlalchemy_envelope.orm.sharing.granted import follow_grants
from sqlalchemy_envelope.orm.sharing.membership import looked_at
from sqlalchemy_envelope.orm.sharing.ways_from_provider import ways_from_provider
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.kept_keys import KeptKeys
    from sqlalchemy_envelope.orm.sharing.granted import Opening
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    Held = Sequence[tuple[OwnedKey, OwnedKey, StoredSlot]]
    TakeIn = Callable[[Desk, OwnerClass, Held], set[OwnerId]]
    """Takes in keys that were loaded with the root key and the slot that lead to them; tells their owners."""


class Followed(NamedTuple):
    """The result of a search for the keys of locked values."""

    key_ids: set[KeyId]
    """All keys of the owners of the values."""
    owners: set[OwnerId]
    """The owners that were reached."""
    opened: Mapping[str, int]
    """The number of owners opened through grants, by the name of their class."""


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
        led: set[OwnerId],
        take_in: TakeIn,
    ) -> Followed:
        """Open the keys of these values that are still closed.

        Args:
            led: the owners whose own slots were found.
        """
        closed = self._closed_in(desk.session)
        # Another thread may have opened some of them since, and may distrust or drop any owner at any moment.
        ready = {header: kept.keyring.owner_of(header) for header in headers if kept.is_ready(header)}
        found = {owner for owner in ready.values() if owner is not None}
        key_ids = {UUID(bytes=header[1:]) for header in ready}
        asked = [header for header in headers if header not in closed and header not in ready]
        if not asked:
            return Followed(key_ids, found, {})
        rows = desk.keys(owner_class).load_around([UUID(bytes=header[1:]) for header in asked])
        found |= self._open_older(desk, kept, owner_class, rows, take_in)
        opened: Mapping[str, int] = {}
        if owner_class.grants_of and not all(kept.is_ready(header) for header in asked):
            opened, granted = self._open(desk, kept, owner_class, rows, led | found, take_in)
            found |= granted
        owners = {row.stored.key_id: row.owner for row in rows}
        for header in asked:
            owner = owners.get(UUID(bytes=header[1:]))
            was_dropped = owner in found and owner not in kept.keyring
            if not was_dropped and not kept.leads_to(header):
                closed.add(header)
        return Followed(key_ids | set(owners), found, opened)

    def _open_older(
        self, desk: Desk, kept: KeptKeys, owner_class: OwnerClass, rows: Sequence[OwnedKey], take_in: TakeIn
    ) -> set[OwnerId]:
        """Open keys that are older than the provider's slot: the active root key leads back to them."""
        held = desk.keys(owner_class).load_held_of(list({row.primary_key: None for row in rows}))
        found = take_in(desk, owner_class, held)
        for owner in found:
            keys = [row.stored for row in rows if row.owner == owner]
            try:
                usable(row for row in rows if row.owner == owner)
                check_generations(keys)
                kept.keyring.add_stored(owner, keys)
            except EnvelopeError as error:
                kept.refuse(owner, keys, error)
        return found

    def _open(
        self,
        desk: Desk,
        kept: KeptKeys,
        owner_class: OwnerClass,
        rows: Sequence[OwnedKey],
        led: set[OwnerId],
        take_in: TakeIn,
    ) -> tuple[Mapping[str, int], set[OwnerId]]:
        ways = ways_from_provider(desk, self._provider, owner_class, rows)
        names, starts = Names(desk.session), []
        for of, keys in ways.starts.items():
            take_in(desk, of, desk.keys(of).load_held_of(list(keys)))
            starts += [names.place(of, key) for key in keys]
        if not starts:
            return {}, set()
        found = follow_grants(desk, kept.keyring, starts, ways.between, rows=rows)
        _close_others(kept, found, led)
        beyond = {place.owner for place in starts}
        granted = [place for place in _places(found, names) if place.owner not in beyond]
        return kept.take_granted(granted), {place.owner for place in granted}

    def forget(self) -> None:
        """Forget all closed keys, so that a forked child looks for itself."""
        self._closed.clear()

    def _closed_in(self, session: Session) -> set[bytes]:
        """Return the headers of keys that no grant leads to, as the session's transaction sees the rows."""
        look, found = looked_at(session), self._closed.get(session)
        if found is None or found[0] is not look:
            found = look, set()
            self._closed.put(session, found)
        return found[1]


def _close_others(kept: KeptKeys, found: Opening, led: set[OwnerId]) -> None:
    """Forget the keys outside the granted scopes, for stale owners of whom only scopes are granted now."""
    granted: dict[OwnerId, set[KeyId]] = {}
    for grant_class, grant in found.grants:
        if grant_class.scope is not None:
            granted.setdefault(kept.keyring.owner_of_key(grant.key_id), set()).add(grant.key_id)
    for owner, key_ids in granted.items():
        if owner in kept.owners.stale and owner not in led and owner not in found.places:
            others = [key.key_id for key in kept.keyring.keys_of(owner) if key.key_id not in key_ids]
            kept.keyring.take_back(owner, others, ())


def _places(found: Opening, names: Names) -> list[Place]:
    """Return the owners reached through grants, including owners of whom only a scope was granted."""
    scoped = [names.place(of, key) for of, keys in found.scoped.items() for key in keys]
    return [*found.places.values(), *scoped]
