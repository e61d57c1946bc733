"""Rotation of an owner's own keys: a new data key, or a new root key and new data keys.

No value is touched. A value that was written before stays under the key that its header names, until it is
written again or the migration engine re-encrypts it (`Migrator.reencrypt`). A new root key is sealed to every
slot and to every member, whoever is there at the moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy_envelope.exceptions import ConfigurationError, EnrollmentError
from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch, start_scope_epoch
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.sharing.moving import move_under_newest_root
from sqlalchemy_envelope.orm.verbs.opened_owner import opened_root, settle_owner
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.settling.batches import AsyncBatches, Batches
from sqlalchemy_envelope.orm.verbs.tickets import revoke_tickets_of

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


P = TypeVar("P")


class Rotating(Batches[P]):
    """A run over many owners: a loop over it rotates a batch at each turn, and gets the progress."""

    undone = "nothing was rotated"


class AsyncRotating(AsyncBatches[P]):
    """As `Rotating`, for `async for`."""

    undone = Rotating.undone


@dataclass(frozen=True)
class RotatedKeys:
    """The result of a rotation.

    Attributes:
        made: the ids of the new keys, the root key first.
        retired: the ids of the keys that encrypt no more. `destroy_key` destroys each of them once nothing
            is under it.
    """

    made: tuple[uuid.UUID, ...]
    retired: tuple[uuid.UUID, ...]


def rotate_owner(desk: Desk, owner: object, *, root: bool, scope: str | None) -> RotatedKeys:
    """The work of `Envelope.rotate`."""
    if root and scope is not None:
        raise ConfigurationError("A root key has no scope: leave `scope` out, or rotate without root=True.")
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    settle_owner(located)
    keys = load_keys(located)
    opened_root(located, active_root(located, keys))
    known = {key.scope for key in keys if _is_active_data_key(key)}
    if scope is not None and scope not in known:
        raise ConfigurationError(
            f"This {located.name} has no data key of the scope {scope!r} (there is: "
            f"{', '.join(map(repr, sorted(known))) or 'none'})."
        )
    keyring = desk.keyring_for(located.place.owner)
    rotated = rotate_place(desk, located.place, keyring, root=root, scope=scope)
    if rotated is None:
        raise EnrollmentError(
            f"Nobody could open a new key of this {located.name}: it has no key slot with a public key, and "
            "its key is granted to nobody."
        )
    return rotated


def rotate_place(
    desk: Desk, place: Place, keyring: Keyring | None, *, root: bool, scope: str | None = None
) -> RotatedKeys | None:
    """Put new keys in the place of the active ones; None if nobody could open them."""
    before = _active(desk, place)
    if root:
        if not start_epoch(desk, place, keyring):
            return None
        if keyring is not None:
            move_under_newest_root(desk, place, keyring)
        revoke_tickets_of(desk, place)  # a ticket carries the keys before
    else:
        for one in sorted({key.scope for key in before if _is_active_data_key(key)}):
            if scope in (None, one):
                start_scope_epoch(desk, place, one, keyring)
    forget_looks(desk.session)  # this transaction may have looked for these keys
    after = {key.key_id: key for key in _active(desk, place)}
    was = {key.key_id for key in before}
    made = sorted((one for one in after.values() if one.key_id not in was), key=_root_first)
    retired = sorted((one for one in before if one.key_id not in after), key=_root_first)
    name, owner_id = place.owner_class.name, place.primary_key
    desk.emit(AuditEvent("rotated", name, len(made), owner_id=owner_id, key_id=made[0].key_id.hex[:8]))
    return RotatedKeys(_ids(made), _ids(retired))


def _active(desk: Desk, place: Place) -> list[StoredKey]:
    rows = desk.keys(place.owner_class).load([place.primary_key])
    return [row.stored for row in rows if row.stored.state is KeyState.ACTIVE]


def _is_active_data_key(key: StoredKey) -> bool:
    return key.purpose is Purpose.DATA and key.state is KeyState.ACTIVE


def _root_first(key: StoredKey) -> tuple[bool, str]:
    return key.purpose is not Purpose.ROOT, key.scope


def _ids(keys: Sequence[StoredKey]) -> tuple[uuid.UUID, ...]:
    return tuple(key.key_id for key in keys)
