"""Write grants: a key is sealed to each recipient with keys, and pending for the other recipients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.keys.grants import pending_grant, sealed_grant
from sqlalchemy_envelope.keys.model import GrantState, KeyState
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.sharing.recipients import Recipient, roots_of
from sqlalchemy_envelope.orm.sharing.rights import gives

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredGrant, StoredKey
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Roots
    from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
    from sqlalchemy_envelope.orm.tables.owners import GrantClass

    PrimaryKey = tuple[Any, ...]
    NewGrant = tuple[GrantClass, PrimaryKey, StoredGrant]
    PendingGrant = tuple[StoredGrant, PrimaryKey, PrimaryKey]
    """As `GrantStore.load_of` returns: a grant, the primary key of its row, and that of the recipient."""


def sealed_to(key: OpenedKey, to: Sequence[Recipient], roots: Roots) -> list[NewGrant]:
    """Seal a key to the recipients with a given root key. The other grants are pending."""
    made: list[NewGrant] = []
    for one in to:
        root = None if one.waits else roots.get((one.grant_class.to.owner_class, one.primary_key))
        row = one.grant_class.granting_row(one.row_key)
        grant = pending_grant(key.stored.key_id, row) if root is None else sealed_grant(key, row, root)
        made.append(_grant_for(one, grant))
    return made


def pending_for(key_id: KeyId, to: Sequence[Recipient]) -> list[NewGrant]:
    """Pending grants of a key, for a key that nobody here holds."""
    return [_grant_for(one, pending_grant(key_id, one.grant_class.granting_row(one.row_key))) for one in to]


def _grant_for(one: Recipient, grant: StoredGrant) -> NewGrant:
    reference = one.grant_class.to.owner_class.reference_of(one.primary_key)
    return one.grant_class, one.row_key, replace(grant, recipient=reference)


def seal_to(desk: Desk, key: OpenedKey, to: Sequence[Recipient], *, strict: bool = False) -> list[NewGrant]:
    """As `sealed_to`, with the stored root keys. One query for each class of grants."""
    return sealed_to(key, to, roots_of(desk, to, strict=strict))


def insert_grants(desk: Desk, grants: Sequence[NewGrant]) -> None:
    """Write new grants: one statement for each class."""
    for grant_class in dict.fromkeys(grant_class for grant_class, _, _ in grants):
        mine = [(row_key, grant) for of, row_key, grant in grants if of is grant_class]
        desk.grants(grant_class).insert(mine)
        sealed = sum(grant.state is GrantState.SEALED for _, grant in mine)
        events: dict[EventName, int] = {"grant_sealed": sealed, "grant_pending": len(mine) - sealed}
        for event, count in events.items():
            if count:
                desk.emit(AuditEvent(event, grant_class.of.owner_class.name, count=count))


def grant_to(
    desk: Desk, store: KeyStore, key: OpenedKey, to: Sequence[Recipient], *, strict: bool = True
) -> StoredKey:
    """Grant a key to these recipients.

    A grant is pending for a recipient without keys, and, unless `strict`, for a recipient with altered keys.

    Returns:
        The key's row as it is now.
    """
    grants = seal_to(desk, key, [one._replace(waits=False) for one in to], strict=strict)
    insert_grants(desk, grants)
    store.add_granted([(key.stored.key_id, len(grants))])
    return replace(key.stored, granted=key.stored.granted + len(grants))


def granted_keys(keyring: Keyring, grant_class: GrantClass, owner: OwnerId) -> list[OpenedKey]:
    """The keys that a grant of this class gives.

    For root keys this is the active root key, because the older root keys are reached through it. For a scope
    it is every data key of the scope, because no granted key leads to the older ones.
    """
    keys = [key for key in keyring.keys_of(owner) if gives(grant_class, key)]
    if grant_class.scope is None:
        keys = [key for key in keys if key.state is KeyState.ACTIVE]
    opened = [keyring.open(key.key_id) for key in keys]
    return [one for one in opened if one is not None]


def recipients_in(grant_class: GrantClass, pending: Sequence[PendingGrant]) -> list[Recipient]:
    """The recipients of these pending grants."""
    return [Recipient(grant_class, row_key, recipient) for _, row_key, recipient in pending]


def fulfil(
    desk: Desk, grant_class: GrantClass, keys: Mapping[KeyId, OpenedKey], pending: Sequence[PendingGrant]
) -> list[StoredGrant]:
    """Fulfil the pending grants of recipients that have keys by now.

    A grant that another transaction holds is left to that transaction.
    """
    store, sealed = desk.grants(grant_class), []
    roots = roots_of(desk, recipients_in(grant_class, pending), strict=False)
    free = store.free([grant.grant_id for grant, _, _ in pending])
    for grant, _, recipient in pending:
        root = roots.get((grant_class.to.owner_class, recipient))
        if root is not None and grant.grant_id in free:
            made = sealed_grant(keys[grant.key_id], grant.granting_row, root, grant.grant_id)
            sealed.append(replace(made, recipient=grant.recipient))
    store.replace(sealed)
    if sealed:
        desk.emit(AuditEvent("grant_sealed", grant_class.of.owner_class.name, count=len(sealed)))
    return sealed
