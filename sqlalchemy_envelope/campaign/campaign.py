"""A campaign: make keys for every owner now, let owners claim them as they come back, then close."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_envelope.campaign.closing import Closing
from sqlalchemy_envelope.campaign.counting import status_of
from sqlalchemy_envelope.campaign.providing import Providing
from sqlalchemy_envelope.campaign.releasing import release
from sqlalchemy_envelope.campaign.setting import Setting, class_named, owner_classes_of
from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import ConfigurationError, MigrationRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus, Released
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@emptying_class
class Campaign:
    """Keys for owners who are away, from `provide` over the owners' claims to `close`.

    Args:
        engine: an engine, or a maker of sessions.
        envelope: the application's envelope, with the campaign's provider among its `providers`.
        base: the declarative base of the models, or a registry.
        provider: the name of the campaign's provider.

    Raises:
        ConfigurationError: there is no such provider, or it is not made for a campaign.
    """

    def __init__(
        self,
        engine: Engine | Callable[[], Session],
        envelope: Envelope,
        base: Any,
        provider: str = "campaign",
    ) -> None:
        sessions: Callable[[], Session]
        if isinstance(engine, Engine):
            sessions = sessionmaker(engine)
        elif callable(engine):
            sessions = engine
        else:
            raise ConfigurationError(f"{engine!r} is neither an Engine nor a maker of sessions.")
        self.policy, self.provider = envelope.policy, provider
        self.setting = Setting(sessions, envelope.policy, provider, owner_classes_of(base))
        self.setting.require_own_key()
        self._providing = Providing(self.setting)

    # ------------------------------------------------------------ keys for everybody

    def provide(
        self, *classes: type[Any], batch: int = 500, progress: Callable[[str, int], None] | None = None
    ) -> int:
        """Make keys for every owner without keys.

        Each batch is a transaction of its own. A second run goes on, and also finds owners that were added
        meanwhile. The keys of a shared owner, such as a group, are granted to the recipients that the rows of
        its `KeyGrant` name.

        Args:
            classes: the classes of owners. Left out: every `KeyOwner` of the base.
            batch: the number of owners in a transaction.
            progress: called after each batch with the name of the class, and the number of its owners that
                got keys so far.

        Returns:
            The number of owners that got keys.

        Raises:
            MigrationStoppedError: other processes keep making keys for the same owners at the same moments.
            ProviderError: the provider failed.
        """
        known = self.setting.classes
        wanted = [class_named(known, one) for one in classes] or known
        # Recipients of grants first: a key is sealed to the recipient's keys.
        in_order = sorted(wanted, key=lambda one: bool(one.grants_of))
        return sum(self._providing.provide(one, batch, progress) for one in in_order)

    # ------------------------------------------------------------ where it stands

    def status(self) -> dict[str, CampaignStatus]:
        """Count the owners of each class by their standing in the campaign."""
        with self.setting.transaction() as session:
            return {one.name: status_of(self.setting, session, one) for one in self.setting.classes}

    # ------------------------------------------------------------ custodians

    def release(
        self,
        session: Session,
        owners: Iterable[object] | None = None,
        *,
        unsafe_without_row_seals: bool = False,
    ) -> Released:
        """Hand the keys to owners who chose a secret and wait. Never commits.

        Run this where the private half of the offline key is.

        Args:
            session: the session; the changes are part of its transaction.
            owners: the owners to release. Left out: all owners who wait.
            unsafe_without_row_seals: release without row seals. Then nothing distinguishes a secret that was
                chosen through the application from a secret that an attacker with access to the database put
                there to get the keys.

        Raises:
            MigrationRefusedError: there are no server keys, and so no row seals.
            ConfigurationError: the private half is not here.
            TransactionConflictError: an owner chose another secret at the same moment.
        """
        if not self.policy.seals.is_on and not unsafe_without_row_seals:
            raise MigrationRefusedError(
                "Configure server_keys, which give rows their seals; or check each owner, and pass "
                "unsafe_without_row_seals=True. Without row seals, anybody who can write to the database may "
                "have added a secret of their own, and would get the keys."
            )
        self.setting.require_opening()
        return release(self.setting, session, owners)

    # ------------------------------------------------------------ the end

    def close(
        self, policy: str = "refuse", *, confirm: int | None = None, batch: int = 500
    ) -> CampaignReport:
        """Delete the campaign's last slots and destroy its key. Can be run again.

        First remove the campaign's provider from every other process: owners that another process still
        enrols under it are lost with the key.

        Args:
            policy: the fate of owners who have not claimed their keys. "refuse": do not close. "keep": the
                owners keep their slots, and the key is not destroyed. "provider:NAME": put their keys under
                that provider. "shred": nobody will ever open their data again.
            confirm: for "shred", the number of these owners.
            batch: the number of owners in a transaction.

        Raises:
            MigrationRefusedError: some owners are unclaimed, or unexpected slots are left.
            ConfigurationError: there is no such policy.
            ProviderError: the provider failed. Finished steps stay done.
        """
        closing = Closing(self.setting, policy, batch)
        return closing.close(self.status(), confirm)

    def __repr__(self) -> str:
        return f"<Campaign {self.provider!r}>"
