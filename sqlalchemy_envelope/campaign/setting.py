"""The setting of a campaign: its database, the classes of owners, and the campaign's provider."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import configure_mappers

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.tables.bases import mappers_of, require_registries
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.current.providers import Providers
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


@dataclass(frozen=True, eq=False, repr=False)
class Setting:
    """The settings that all parts of a campaign share.

    Attributes:
        sessions: makes sessions on the database.
        policy: the settings of the envelope.
        provider: the name of the campaign's provider.
        classes: the classes of owners of the application.
    """

    sessions: Callable[[], Session]
    policy: Policy
    provider: str
    classes: Sequence[OwnerClass]

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session in a transaction of its own, which is committed at the end."""
        with self.sessions() as session, session.begin():
            yield session

    @property
    def providers(self) -> Providers:
        """All providers of the application."""
        return self.policy.require_providers()

    @property
    def calls(self) -> ProviderCalls:
        """The campaign's provider."""
        return self.providers.named(self.provider)

    def require_own_key(self) -> None:
        """Check that the key to destroy at the end protects nothing but the campaign.

        Raises:
            ConfigurationError: the provider is not made for a campaign, or another provider uses the same
                key.
        """
        if not self.calls.is_campaign:
            raise ConfigurationError(
                f"Provider {self.provider!r} is no campaign's key. A campaign destroys its key at the end, "
                "so give it a key that nothing else is under: CampaignKeyFile, OfflinePublicKey, or "
                "CampaignKey(AwsKms(...))."
            )
        for name, calls in self.providers.calls.items():
            if name != self.provider and calls.reference == self.calls.reference:
                raise ConfigurationError(
                    f"Provider {name!r} is under the same key as campaign {self.provider!r}, and would be "
                    "destroyed with it: make a key for the campaign."
                )

    def require_opening(self) -> None:
        """Check that the campaign's provider can open slots here.

        Raises:
            ConfigurationError: the provider is the public half of an offline key.
        """
        if not self.calls.can_open:
            raise ConfigurationError(
                f"Provider {self.provider!r} is the public half of an offline key. Run this where its "
                "custodians configure OfflineKey(...) under the same name."
            )

    def new_kek(self, provider: str) -> ProviderKek:
        """A KEK under a provider, for new slots."""
        ready = self.providers.ready_for_new(provider)
        if ready is None or self.providers.needs_new(provider):
            return self.providers.wrap_new(provider)
        return ready

    def tell(self, event: EventName, owner_class: str, count: int) -> None:
        """Emit an audit event to the application."""
        self.policy.emit(AuditEvent(event, owner_class, count=count, provider=self.provider))


def owner_classes_of(base: Any) -> list[OwnerClass]:
    """The classes of owners of a declarative base, or of a registry, in the order of their names.

    Raises:
        ConfigurationError: `base` is neither.
    """
    require_registries(base)
    configure_mappers()
    classes = {owner_class_of(mapper.local_table) for mapper in mappers_of(base)}
    known = [
        one for one in classes if one is not None and one.key_class is not None and one.slot_class is not None
    ]
    return sorted(known, key=lambda one: one.name)


def class_named(classes: Sequence[OwnerClass], wanted: type[Any]) -> OwnerClass:
    """The class of owners among these that belongs to a mapped class.

    Raises:
        ConfigurationError: the mapped class has none among these.
    """
    found = owner_class_of(getattr(wanted, "__table__", None))
    if found is None or found not in classes:
        raise ConfigurationError(f"{wanted!r} is no class of key owners of this base.")
    return found
