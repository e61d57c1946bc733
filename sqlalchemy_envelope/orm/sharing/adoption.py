"""Sealed grants become wraps under the recipients' own root keys, where the sealed keys may be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.grants import adopted_grant, way_through
from sqlalchemy_envelope.keys.hierarchy import is_proven, open_wrap
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.refusing import refusing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredGrant
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import GrantClass

    Grants = list[tuple[GrantClass, StoredGrant]]
    Unproven = dict[OwnerId, tuple[KeyId, OpenedKey]]


def adopt_grants(desk: Desk, keyring: Keyring, grants: Grants) -> Unproven:
    """Wrap sealed keys under the recipients' own root keys.

    Returns:
        Each owner with an active root key that may not be trusted: the id of that key, and the owner's newest
        trusted root key.
    """
    trust = _Trust(keyring, grants)
    adopted: dict[GrantClass, list[StoredGrant]] = {}
    sealed = [one for one in grants if one[1].state is GrantState.SEALED]
    # The older first: each epoch vouches for the next.
    for grant_class, grant in sorted(sealed, key=lambda one: keyring.epoch_of(one[1].key_id)):
        owner, name = keyring.owner_of_key(grant.key_id), grant_class.of.owner_class.name
        event = AuditEvent("grant_refused", name, key_id=grant.key_id.hex[:8])
        with refusing(desk, keyring, owner, event):
            key, recipient = keyring.open(grant.key_id), keyring.open(grant.recipient_key_id)
            if key is None or recipient is None:
                continue
            # With row seals, only the application can have written this row.
            if desk.policy.seals.is_on or trust.allows(owner, key):
                adopted.setdefault(grant_class, []).append(adopted_grant(grant, key, recipient))
    _store(desk, adopted)
    return trust.unproven


def _store(desk: Desk, adopted: Mapping[GrantClass, list[StoredGrant]]) -> None:
    for grant_class, grants in adopted.items():
        store = desk.grants(grant_class)
        free = store.free([one.grant_id for one in grants])
        mine = [one for one in grants if one.grant_id in free]
        store.replace(mine)
        if mine:
            desk.emit(AuditEvent("grant_adopted", grant_class.of.owner_class.name, count=len(mine)))


class _Trust:
    """Which sealed root keys may be adopted, where no row seals show that the application wrote them.

    Attributes:
        unproven: each owner with an active root key that may not be adopted: the id of that key, and the
            newest root key that is known to be genuine.
    """

    def __init__(self, keyring: Keyring, grants: Grants) -> None:
        self.unproven: Unproven = {}
        self._keyring = keyring
        self._known: dict[OwnerId, list[OpenedKey]] = {}
        self._adopted: dict[OwnerId, list[StoredGrant]] = {}
        for grant_class, grant in grants:
            if grant_class.scope is None and grant.state is GrantState.ADOPTED:
                self._adopted.setdefault(keyring.owner_of_key(grant.key_id), []).append(grant)

    def allows(self, owner: OwnerId, key: OpenedKey) -> bool:
        """Whether a key of this owner may be adopted.

        Any key but a root key may. A root key may if no root key of this owner is known yet, if this very key
        was adopted before, or if its maker proves to have held the newest known root key.
        """
        if key.stored.purpose is not Purpose.ROOT:
            return True
        if owner not in self._known:
            self._known[owner] = _opened(self._keyring, self._adopted.get(owner, ()))
        known = self._known[owner]
        is_known = not known or any(one.stored.key_id == key.stored.key_id for one in known)
        # Only the newest root key can prove it: removed members still know the older ones.
        newest = max(known, key=lambda one: one.stored.epoch, default=key)
        if is_known or is_proven(key.stored, [newest]):
            known.append(key)
            return True
        if key.stored.state is KeyState.ACTIVE:
            self.unproven[owner] = key.stored.key_id, newest
        return False


def _opened(keyring: Keyring, adopted: Iterable[StoredGrant]) -> list[OpenedKey]:
    """Open the root keys in grants that were adopted earlier.

    Only the recipient can have wrapped these keys. A sealed key can come from anybody.
    """
    opened = []
    for grant in adopted:
        stored = keyring.stored(grant.key_id)
        if stored is None:
            continue
        try:
            # Through this very grant: a key that opens in another way does not show who wrote this row.
            way, parent = way_through(grant, stored), keyring.open(grant.recipient_key_id)
            if way is not None and parent is not None:
                opened.append(open_wrap(stored, way, parent))
        except EnvelopeError:
            continue
    return opened
