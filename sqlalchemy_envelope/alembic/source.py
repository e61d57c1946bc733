"""`KeySource`: what a migration that encrypts is given in `env.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, Table
from sqlalchemy.orm import configure_mappers, registry

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from alembic.operations import Operations

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.envelope import Envelope


@dataclass(frozen=True, repr=False)
class KeySource:
    """Whose keys encrypt, and who opens them, while a migration runs.

    Attributes:
        envelope: the application's.
        base: the declarative base, or registry, of its models: it knows the owners and their key tables.
        provider: the provider that holds owners' keys; owners without keys get keys under it.
    """

    envelope: Envelope
    base: Any
    provider: str = "server"

    def __post_init__(self) -> None:
        if not isinstance(self._registry, registry):
            raise ConfigurationError(
                f"KeySource(base={self.base!r}) is neither a declarative base nor a registry: give the class "
                "that your models derive from."
            )
        self.envelope.policy.require_providers().named(self.provider)

    @property
    def _registry(self) -> Any:
        return self.base if isinstance(self.base, registry) else getattr(self.base, "registry", None)

    def table(self, name: str, schema: str | None) -> Table | None:
        """The table of the models that is called so now."""
        metadata: MetaData = self._registry.metadata
        return metadata.tables.get(f"{schema}.{name}" if schema else name)

    def owner_classes(self) -> dict[tuple[str | None, str], OwnerClass]:
        """The classes of owners, by schema and name of their tables."""
        configure_mappers()
        found: dict[tuple[str | None, str], OwnerClass] = {}
        for mapper in self._registry.mappers:
            owner_class = owner_class_of(mapper.local_table)
            if owner_class is not None:
                table = owner_class.primary_key[0].table
                found[table.schema, table.name] = owner_class
        return found


def key_source(operations: Operations) -> KeySource:
    """What `env.py` gave.

    Raises:
        ConfigurationError: nothing.
    """
    source = operations.migration_context.opts.get("envelope")
    if isinstance(source, KeySource):
        return source
    raise ConfigurationError(
        "This migration encrypts or decrypts values, and has no keys. In env.py write "
        "`context.configure(..., envelope=KeySource(envelope, Base, provider='server'))`, with "
        "`from sqlalchemy_envelope.alembic import KeySource`."
    )
