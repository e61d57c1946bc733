"""Trust on first use, by an outside key.

Anybody can make a slot that is sealed to an outside key, and without server keys nothing else shows its
origin. While the outside key has adopted none of an owner's root keys, it takes the first root key for
genuine, as a recipient does with a first grant. It also takes each later root key with a proof that its maker
held an earlier root key. A trusted root key is adopted: it is wrapped under the outside key. From then on, a
root key without a proof is replaced.

Without this rule, an owner with a slot that was made where only the public half of the key is would start a
needless epoch at the first write with the other half. That epoch would shut nobody out: an attacker who could
plant the first root key could also plant the slots and grants of the next epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.hierarchy import check_generations, is_proven
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.sharing.roots import OpenedRoot, active_root_among, open_with_kek
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


def trusting_first_use(found: OpenedRoot, keys: Iterable[StoredKey]) -> OpenedRoot:
    """Trust the root key behind a provider's slot if the owner has no other root key, or if it is proven.

    Otherwise the older root keys vouch for the root key that replaces it, to holders who know them.
    """
    if found.trusted or found.vouching:
        return found
    is_first = sum(key.purpose is Purpose.ROOT for key in keys) == 1
    return found._replace(trusted=is_first or is_proven(found.root.stored, found.older), vouching=found.older)


def open_held(
    policy: Policy,
    rows: Iterable[OwnedKey],
    slots: Mapping[KeyId, Sequence[StoredSlot]],
    kek_of: Callable[[StoredSlot], KeyBytes],
) -> OpenedRoot | None:
    """Open an owner's active root key through a slot of a provider; None if it has no such slot.

    Args:
        rows: every key of the owner.
        slots: the provider's slots, by root key.
        kek_of: gives the KEK of a slot.

    Raises:
        EnvelopeError: the rows are not as the application wrote them, or the KEK does not open the slot.
    """
    keys = [row.stored for row in usable(rows)]
    check_generations(keys)
    root = active_root_among(keys)
    slot = next(iter(slots.get(root.key_id, ())), None) if root is not None else None
    if root is None or slot is None:
        return None
    mine = [one for key in keys for one in slots.get(key.key_id, ())]
    return trusting_first_use(open_with_kek(policy, keys, root, slot, mine, kek_of(slot)), keys)
