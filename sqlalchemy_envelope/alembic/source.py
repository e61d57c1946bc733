"""`KeySource`: the keys and models that `env.py` gives to a migration that encrypts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import configure_mappers

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.bases import mappers_of, metadata_of, require_registries
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from alembic.operations import Operations
    from sqlalchemy import Table

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@dataclass(frozen=True, repr=False)
class KeySource:
    """The source of owners' keys, and the provider that opens them, while a migration runs.

    Attributes:
        envelope: the application's `Envelope`.
        base: the declarative base, or registry, of the models, with the owners and their key tables.
        provider: the provider that holds owners' keys; owners without keys get keys under it.
    """

    envelope: Envelope
    base: Any
    provider: str = "server"

    def __post_init__(self) -> None:
        require_registries(self.base)
        self.envelope.policy.require_providers().named(self.provider)

    def table(self, name: str, schema: str | None) -> Table | None:
        """The table of the models that has this name now."""
        key = f"{schema}.{name}" if schema else name
        return next((one.tables[key] for one in metadata_of(self.base) if key in one.tables), None)

    def owner_classes(self) -> dict[tuple[str | None, str], OwnerClass]:
        """The classes of owners, by schema and name of their tables."""
        configure_mappers()
        found: dict[tuple[str | None, str], OwnerClass] = {}
        for mapper in mappers_of(self.base):
            owner_class = owner_class_of(mapper.local_table)
            if owner_class is not None:
                table = owner_class.primary_key[0].table
                found.setdefault((table.schema, table.name), owner_class)
        return found


def key_source(operations: Operations) -> KeySource:
    """The `KeySource` that `env.py` gave.

    Raises:
        ConfigurationError: `env.py` gave no `KeySource`.
    """
    source = operations.migration_context.opts.get("envelope")
    if isinstance(source, KeySource):
        return source
    raise ConfigurationError(
        "This migration encrypts or decrypts values, and has no keys. In env.py write "
        "`context.configure(..., envelope=KeySource(envelope, Base, provider='server'))`, with "
        "`from sqlalchemy_envelope.alembic import KeySource`."
    )
