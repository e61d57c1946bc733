"""The ways from a provider's slots to keys without a slot of it: a newer root key of the same owner, and
grants to owners that the provider can open."""

from __future__ import annotations

from typing import TYPE_CHECKING
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
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.fetched_keys import FetchedKeys
    from sqlalchemy_envelope.orm.sharing.granted import Opening
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


class ProviderGrants:
    """The grants to the owners of one provider."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._closed: BySession[tuple[object, dict[OwnerClass, set[bytes]]]] = BySession()

    def not_closed(
        self, desk: Desk, fetched: FetchedKeys, owner_class: OwnerClass, headers: Iterable[bytes]
    ) -> list[bytes]:
        """Leave out the headers of keys that this transaction has looked for in vain, for this class."""
        closed = self._closed_in(desk.session, owner_class)
        asked = []
        for header in headers:
            if header in closed:
                fetched.key_ids.add(UUID(bytes=header[1:]))
            else:
                asked.append(header)
        return asked

    def follow(
        self, desk: Desk, fetched: FetchedKeys, owner_class: OwnerClass, headers: Iterable[bytes]
    ) -> None:
        """Open the keys of these values that are still closed."""
        asked = [one for one in headers if not fetched.leads_to(one)]
        if not asked:
            return
        rows = desk.keys(owner_class).load_around([UUID(bytes=header[1:]) for header in asked])
        fetched.key_ids.update(row.stored.key_id for row in rows)
        self._open_older(desk, fetched, owner_class, rows)
        if owner_class.grants_of and not all(fetched.leads_to(header) for header in asked):
            self._open(desk, fetched, owner_class, rows)
        closed = self._closed_in(desk.session, owner_class)
        closed.update(header for header in asked if not fetched.leads_to(header))

    def _open_older(
        self, desk: Desk, fetched: FetchedKeys, owner_class: OwnerClass, rows: Sequence[OwnedKey]
    ) -> None:
        """Open keys that are older than the provider's slot: the active root key leads back to them."""
        held = desk.keys(owner_class).load_held_of(list({row.primary_key: None for row in rows}))
        fetched.take_in(desk, owner_class, held)
        _take_in_older(fetched, [row for row in rows if row.owner in fetched.by_slot])

    def _open(
        self, desk: Desk, fetched: FetchedKeys, owner_class: OwnerClass, rows: Sequence[OwnedKey]
    ) -> None:
        """Open the owners of these key rows through grants to owners that the provider can open."""
        ways = ways_from_provider(desk, self._provider, owner_class, rows)
        names, starts = Names(desk.session), []
        for of, keys in ways.starts.items():
            store = desk.keys(of)
            held = store.load_held_of(list(keys))
            fetched.take_in(desk, of, held)
            starts += [names.place(of, key) for key in keys]
            # A grant may be sealed to an older root key of the recipient.
            if renewed := [data.primary_key for data, root, _ in held if root.stored.epoch > 1]:
                _take_in_older(fetched, store.load(renewed))
        if not starts:
            return
        found = follow_grants(desk, fetched.keyring, starts, ways.between, rows=rows)
        beyond = {place.owner for place in starts}
        fetched.take_granted(place for place in _places(found, names) if place.owner not in beyond)

    def forget(self) -> None:
        """Forget all closed keys, so that a forked child looks for itself."""
        self._closed.clear()

    def _closed_in(self, session: Session, owner_class: OwnerClass) -> set[bytes]:
        """Return the headers of keys of a class that nothing leads to, as the transaction sees the rows."""
        look, found = looked_at(session), self._closed.get(session)
        if found is None or found[0] is not look:
            found = look, {}
            self._closed.put(session, found)
        return found[1].setdefault(owner_class, set())


def _take_in_older(fetched: FetchedKeys, rows: Sequence[OwnedKey]) -> None:
    """Take in every key of owners that a slot of the provider leads to. The active root key leads to them."""
    by_owner: dict[OwnerId, list[OwnedKey]] = {}
    for row in rows:
        by_owner.setdefault(row.owner, []).append(row)
    for owner, some in by_owner.items():
        keys = [row.stored for row in some]
        try:
            usable(some)
            check_generations(keys)
            fetched.keyring.add_stored(owner, keys)
        except EnvelopeError as error:
            fetched.refuse(owner, keys, error)


def _places(found: Opening, names: Names) -> list[Place]:
    """Return the owners reached through grants, including owners of whom only a scope was granted."""
    scoped = [names.place(of, key) for of, keys in found.scoped.items() for key in keys]
    return [*found.places.values(), *scoped]
