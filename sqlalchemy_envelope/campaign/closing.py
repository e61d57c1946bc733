"""The end of a campaign: the fate of owners who are still away, and of the campaign's key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, or_

from sqlalchemy_envelope.campaign.owner_rows import OwnerRows, parts, usable_keys, usable_slots
from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus
from sqlalchemy_envelope.campaign.standing import Standing
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    MigrationRefusedError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.epochs import start_epoch
from sqlalchemy_envelope.orm.verbs.log_in import claim
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_envelope.campaign.setting import Setting
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


class Closing:
    """The closing of a campaign. Every step can be repeated.

    Args:
        setting: the campaign.
        unclaimed: the fate of owners who have not claimed their keys.
        batch: the number of owners in a transaction.

    Raises:
        ConfigurationError: `unclaimed` is not known, or cannot be carried out here.
    """

    def __init__(self, setting: Setting, unclaimed: str, batch: int) -> None:
        self._setting, self._unclaimed, self._batch = setting, unclaimed, batch
        self._to = self._target()

    def _target(self) -> str | None:
        """The name of the provider that takes the keys; None if no provider does."""
        kind, _, name = self._unclaimed.partition(":")
        if self._unclaimed not in ("refuse", "keep", "shred") and kind != "provider":
            raise ConfigurationError(
                f"{self._unclaimed!r} is none of 'refuse', 'keep', 'shred' and 'provider:NAME'."
            )
        if kind != "provider":
            return None
        self._setting.providers.named(name)
        if name == self._setting.provider:
            raise ConfigurationError("The keys are under this provider already; name another one.")
        self._setting.require_opening()
        return name

    def close(self, found: dict[str, CampaignStatus], confirm: int | None) -> CampaignReport:
        """Close the campaign, given the counts that were found. `confirm`: the number of owners to shred."""
        setting, total = self._setting, sum(found.values(), CampaignStatus())
        left = total.unclaimed + total.waiting
        waiting = counted(left, "owner has not claimed its", "owners have not claimed their")
        if self._unclaimed == "refuse" and left:
            raise MigrationRefusedError(
                f"{waiting} keys. Wait, or say what becomes of them: "
                'close("keep"), close("provider:NAME"), or close("shred", ...), after which nobody opens '
                "their data any more."
            )
        if self._unclaimed == "shred" and confirm != left:
            raise MigrationRefusedError(
                f"This makes the data of {counted(left, 'owner')} unreadable for ever, for everybody. If "
                f'that is meant, close("shred", confirm={left}).'
            )
        rewrapped = 0
        if self._to is not None:
            rewrapped = sum(self._rewrap(one, self._to) for one in setting.classes)
        for owner_class in setting.classes:
            self._let_go(owner_class)
        shredded = self._shred(left) if self._unclaimed == "shred" else 0
        kept = self._left()
        if kept and self._unclaimed != "keep":
            raise MigrationRefusedError(
                f"{counted(kept, 'owner still depends', 'owners still depend')} on the campaign's key, which "
                "was not destroyed. Look at status(), and close again: somebody came meanwhile, or rows were "
                "altered and do not open."
            )
        report = CampaignReport(
            setting.provider, setting.calls.reference, self._unclaimed, found, kept, rewrapped, shredded
        )
        report = report if kept else self._destroy(report)
        setting.tell("campaign_closed", "every class", total.claimed)
        return report

    def _rewrap(self, owner_class: OwnerClass, to: str) -> int:
        """Put keys that only the campaign opens under another provider, and count their owners."""
        setting, at = self._setting, Standing(owner_class, self._setting.provider)
        condition = and_(at.is_active, at.is_provisional, ~at.has_secret, ~at.is_shared)
        done = 0
        with setting.transaction() as session:
            owners = OwnerRows(setting, session, owner_class).owners(condition)
        for some in parts(owners, self._batch):
            kek = setting.new_kek(to)
            with setting.transaction() as session:
                rows = OwnerRows(setting, session, owner_class)
                for keys, slots in rows.loaded(some):
                    try:
                        claim.rewrap(
                            setting.policy,
                            rows.store,
                            usable_keys(keys),
                            usable_slots(slots),
                            setting.provider,
                            kek,
                        )
                        done += 1
                    except (ProviderError, TransactionConflictError):
                        raise
                    except EnvelopeError:
                        setting.tell("rewrap_refused", owner_class.name, 1)
        return done

    def _let_go(self, owner_class: OwnerClass) -> None:
        """Delete the campaign's slots of owners with another way to their keys. The other slots stay."""
        setting, at = self._setting, Standing(owner_class, self._setting.provider)
        others = or_(at.has_secret, at.is_shared)
        with setting.transaction() as session:
            rows = OwnerRows(setting, session, owner_class)
            owners = rows.owners(and_(at.is_active, at.is_anywhere, others))
            shared = set(rows.owners(and_(at.is_active, at.is_provisional, others)))
        for some in parts(owners, self._batch):
            with setting.transaction() as session:
                OwnerRows(setting, session, owner_class).delete_slots(some)
                for primary_key in some:
                    if setting.policy.harden_claims and primary_key in shared:
                        place = Names(session).place(owner_class, primary_key)
                        start_epoch(Desk(session, setting.policy), place, None)

    def _shred(self, expected: int) -> int:
        """Shred in a single transaction, and no more owners than the caller confirmed."""
        setting, count = self._setting, 0
        with setting.transaction() as session:
            for owner_class in setting.classes:
                rows = OwnerRows(setting, session, owner_class)
                owners = rows.owners(Standing(owner_class, setting.provider).is_anywhere)
                count += len(owners)
                for some in parts(owners):
                    rows.delete_slots(some)
            if count > expected:
                raise MigrationRefusedError(
                    f"{counted(count, 'owner')} would be shredded, and {expected:,} confirmed: more came "
                    "meanwhile. Nothing was done."
                )
        if count:
            setting.tell("campaign_shredded", "every class", count)
        return count

    def _left(self) -> int:
        """Count the owners that still have a slot of the campaign."""
        setting = self._setting
        with setting.transaction() as session:
            return sum(
                len(OwnerRows(setting, session, one).owners(Standing(one, setting.provider).is_anywhere))
                for one in setting.classes
            )

    def _destroy(self, report: CampaignReport) -> CampaignReport:
        setting = self._setting
        setting.providers.forget_provider(setting.provider)
        destroy: Callable[[], str | None] | None = getattr(setting.calls.provider, "destroy", None)
        remaining: str | None = f"Destroy {report.reference} where it is kept: nothing here can."
        if destroy is not None:
            try:
                remaining = destroy()
            except Exception as error:
                raise ProviderError(
                    f"The slots of campaign {setting.provider!r} are gone and its key is not: "
                    f"{type(error).__name__}. Close it again, or destroy the key by hand."
                ) from error
        return CampaignReport(**{**vars(report), "destroyed": destroy is not None, "by_hand": remaining})
