"""A campaign: keys for every owner now, though most are away; claimed as they come back, and then closed."""

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
    from sqlalchemy_envelope.orm.verbs.envelope import Envelope


@emptying_class
class Campaign:
    """Keys for owners who are away, from `provide` over their claims to `close`.

    Args:
        engine: an engine, or what makes sessions.
        envelope: the application's, with the campaign's provider among its `providers`.
        base: the declarative base of the models, or a registry.
        provider: the campaign's, by its name.

    Raises:
        ConfigurationError: there is no such provider, or it is not one of a campaign's.
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
        """Make keys for every owner who has none, of these classes or of all; how many.

        Each batch is a transaction of its own. Run again, it goes on, and finds who came meanwhile. Of owners
        that are shared, as groups are, the keys are granted to whoever the rows of their `KeyGrant` name.

        Args:
            classes: of whom; left out, of every `KeyOwner` of the base.
            batch: how many owners a transaction.
            progress: called after each with the name of the class and how many of it were made.

        Raises:
            MigrationStoppedError: others go on making keys for the same owners at the same moments.
            ProviderError: the provider failed.
        """
        known = self.setting.classes
        wanted = [class_named(known, one) for one in classes] or known
        # Who is granted something needs keys that it is sealed to.
        in_order = sorted(wanted, key=lambda one: bool(one.grants_of))
        return sum(self._providing.provide(one, batch, progress) for one in in_order)

    # ------------------------------------------------------------ where it stands

    def status(self) -> dict[str, CampaignStatus]:
        """How many owners of each class stand where."""
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
        """Hand their keys to owners who chose a secret and wait; where the private half of the offline key
        is. Never commits.

        Args:
            session: whose transaction it is.
            owners: whom; left out, all who wait.
            unsafe_without_row_seals: do it though nothing tells a secret that was chosen through the
                application from one that somebody with access to the database put there to be given the keys.

        Raises:
            MigrationRefusedError: there are no server keys, and so no row seals.
            ConfigurationError: the private half is not here.
            TransactionConflictError: one of them chose another secret at the same moment.
        """
        if not self.policy.seals.is_on and not unsafe_without_row_seals:
            raise MigrationRefusedError(
                "Without row seals whoever can write to the database can have put a secret of their own "
                "among those that wait, and would be given the keys: configure server_keys, or look at each "
                "owner and pass unsafe_without_row_seals=True."
            )
        self.setting.require_opening()
        return release(self.setting, session, owners)

    # ------------------------------------------------------------ the end

    def close(
        self, policy: str = "refuse", *, confirm: int | None = None, batch: int = 500
    ) -> CampaignReport:
        """Take the campaign's last slots away and destroy its key. Can be run again.

        Before, take the campaign's provider out of every other process: what one of them would still enrol
        under it is lost with the key.

        Args:
            policy: what becomes of those who have not claimed their keys. "refuse": do not close. "keep":
                they keep their slots, and the key is not destroyed. "provider:NAME": their keys are put under
                that provider. "shred": nobody will ever open their data again.
            confirm: for "shred", how many owners that is.
            batch: how many owners a transaction.

        Raises:
            MigrationRefusedError: some are unclaimed, or other slots than expected are left.
            ConfigurationError: there is no such policy.
            ProviderError: the provider failed; what was done stays done.
        """
        closing = Closing(self.setting, policy, batch)
        return closing.close(self.status(), confirm)

    def __repr__(self) -> str:
        return f"<Campaign {self.provider!r}>"
