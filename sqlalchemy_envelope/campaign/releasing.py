"""Hand keys to owners who chose a secret and wait for the custodians of an offline key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_

from sqlalchemy_envelope.campaign.owner_rows import OwnerRows, parts, usable_keys, usable_slots
from sqlalchemy_envelope.campaign.report import Released
from sqlalchemy_envelope.campaign.standing import Standing
from sqlalchemy_envelope.exceptions import EnvelopeError, ProviderError, TransactionConflictError
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.verbs.log_in import claim
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.campaign.setting import Setting


def release(setting: Setting, session: Session, owners: Iterable[object] | None) -> Released:
    """Release these owners, or all owners who wait."""
    note_policy(session, setting.policy)
    places = None
    if owners is not None:
        places = [locate_enrolled(Desk(session, setting.policy), one).place for one in owners]
    released = refused = 0
    for owner_class in setting.classes:
        at, rows = Standing(owner_class, setting.provider), OwnerRows(setting, session, owner_class)
        wanted = None
        if places is not None:
            wanted = [one.primary_key for one in places if one.owner_class is owner_class]
        for some in parts(rows.owners(and_(at.is_active, at.waits), wanted)):
            done = 0
            for keys, slots in rows.loaded(some):
                try:
                    done += claim.release(
                        setting.policy, rows.store, usable_keys(keys), usable_slots(slots), setting.provider
                    )
                except (ProviderError, TransactionConflictError):
                    raise
                except EnvelopeError:
                    refused += 1
                    setting.tell("release_refused", owner_class.name, 1)
            released += done
            if done:
                setting.tell("claim_released", owner_class.name, done)
    return Released(released, refused)
