"""Grants that are sealed become wraps under their recipients' own root keys, where they may be trusted."""

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
    """Wrap what was sealed under the recipients' own root keys; tells whose active root key is not to be
    trusted, with the newest one that is."""
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
            # With row seals nobody else can have made it.
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
    """Which root keys that were sealed may be adopted, where no row seals say who made them.

    Attributes:
        unproven: whose active root key may not, with the newest one that is known to be genuine.
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
        """Whether a key of this owner may be adopted: the first root key may, one that was adopted before,
        and one whose maker proves to have held the newest of these."""
        if key.stored.purpose is not Purpose.ROOT:
            return True
        if owner not in self._known:
            self._known[owner] = _opened(self._keyring, self._adopted.get(owner, ()))
        known = self._known[owner]
        is_known = not known or any(one.stored.key_id == key.stored.key_id for one in known)
        # By the newest alone: an older one is known to those who were removed since.
        newest = max(known, key=lambda one: one.stored.epoch, default=key)
        if is_known or is_proven(key.stored, [newest]):
            known.append(key)
            return True
        if key.stored.state is KeyState.ACTIVE:
            self.unproven[owner] = key.stored.key_id, newest
        return False


def _opened(keyring: Keyring, adopted: Iterable[StoredGrant]) -> list[OpenedKey]:
    """The root keys in grants that were adopted at an earlier unlock. Nobody but their recipient can have
    wrapped them so; what is sealed, anybody can have made."""
    opened = []
    for grant in adopted:
        stored = keyring.stored(grant.key_id)
        if stored is None:
            continue
        try:
            # Through this very grant: what another way opens says nothing about who wrote this row.
            way, parent = way_through(grant, stored), keyring.open(grant.recipient_key_id)
            if way is not None and parent is not None:
                opened.append(open_wrap(stored, way, parent))
        except EnvelopeError:
            continue
    return opened
