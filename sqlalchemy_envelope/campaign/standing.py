"""The standing of owners in a campaign, as conditions on their key rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, not_, or_, select

from sqlalchemy_envelope.crypto.peppering import WAITING_SIZE
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


class Standing:
    """Conditions on the key rows of a class that tell the standing of their owner in a campaign."""

    def __init__(self, owner_class: OwnerClass, provider: str) -> None:
        keys, slots = owner_class.key_class.__table__, owner_class.slot_class.__table__
        all_keys = keys.alias()
        of_owner = and_(*(all_keys.c[one.key] == one for one in owner_class.owner_columns))
        c, mine = slots.c, slots.c.key_id == keys.c.key_id
        claimed = c.claimed_from.startswith(f"{provider} ", autoescape=True)
        anywhere = slots.join(all_keys, all_keys.c.key_id == c.key_id)
        is_secret = c.kind == SlotKind.SECRET
        grants = [one.companion for one in owner_class.grants_of if one.scope is None]
        self.is_active = and_(keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.ACTIVE)
        waits = func.length(c.wrapped).in_([0, WAITING_SIZE])  # of the latter size is a slot under a pepper
        self.has_secret = _any(slots, mine, is_secret, not_(waits))
        self.waits = _any(slots, mine, is_secret, waits)
        self.is_provisional = _any(slots, mine, held_by(slots, provider))
        self.is_anywhere = _any(anywhere, of_owner, held_by(slots, provider))
        self.was_claimed = _any(anywhere, of_owner, is_secret, claimed)
        self.is_as_claimed = _any(slots, mine, is_secret, claimed)
        self.is_shared = or_(
            *(_any(one, one.c.key_id == keys.c.key_id, one.c.state != GrantState.PENDING) for one in grants),
            keys.c.key_id.is_(None),
        )


def _any(table: Any, *conditions: Any) -> Any:
    return exists(select(1).select_from(table).where(*conditions))


def held_by(slots: Any, provider: str) -> Any:
    """The condition for slots of a provider."""
    return and_(
        slots.c.kind == SlotKind.PROVIDER, slots.c.provider_ref.startswith(f"{provider} ", autoescape=True)
    )
