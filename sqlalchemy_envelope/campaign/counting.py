"""Count owners by their standing in a campaign."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from sqlalchemy_envelope.campaign.owner_rows import OwnerRows
from sqlalchemy_envelope.campaign.report import CampaignStatus
from sqlalchemy_envelope.campaign.standing import Standing

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.campaign.setting import Setting
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


def status_of(setting: Setting, session: Session, owner_class: OwnerClass) -> CampaignStatus:
    """Count the owners of a class by their standing in the campaign."""
    found = OwnerRows(setting, session, owner_class)
    owners = select(func.count()).select_from(owner_class.primary_key[0].table)
    total: int = found.rows(owners)[0][0]
    at = Standing(owner_class, setting.provider)
    standing = select(
        at.has_secret.label("secret"),
        at.waits.label("waits"),
        at.is_provisional.label("provisional"),
        at.was_claimed.label("claimed"),
        at.is_as_claimed.label("as_claimed"),
        at.is_shared.label("shared"),
    ).where(at.is_active)
    each = standing.subquery()
    query = select(*each.c, func.count()).group_by(*each.c)
    counts = dict.fromkeys((f.name for f in fields(CampaignStatus)), 0)
    for secret, waits, provisional, claimed, as_claimed, shared, count in found.rows(query):
        if secret:
            counts["claimed" if claimed else "enrolled"] += count
            counts["hardened"] += count if claimed and not as_claimed else 0
        elif shared:
            counts["shared"] += count
        elif provisional:
            counts["waiting" if waits else "unclaimed"] += count
        else:
            counts["other"] += count
    with_keys = sum(counts.values()) - counts["hardened"]
    return CampaignStatus(**{**counts, "owners": total, "unprovided": total - with_keys})
