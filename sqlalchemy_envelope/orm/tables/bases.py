"""What a declarative base knows: its mappers and its MetaData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, inspect
from sqlalchemy.orm import Mapper, registry

from sqlalchemy_envelope.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


def require_registries(base: Any) -> list[registry]:
    """The registries of a declarative base, or a registry alone.

    A base need not show its own registry. SQLModel's base does not: each class that derives from it has one.

    Raises:
        ConfigurationError: it is neither, and no mapped class derives from it.
    """
    own = base if isinstance(base, registry) else getattr(base, "registry", None)
    registries = {own: None} if isinstance(own, registry) else {}
    registries |= {mapper.registry: None for mapper in _derived(base)}
    if not registries:
        raise ConfigurationError(
            f"{base!r} is neither a declarative base nor a registry, or no model derives from it yet: give "
            "the class that your models derive from, after they are imported."
        )
    return list(registries)


def mappers_of(base: Any) -> list[Mapper[Any]]:
    """The mappers of a declarative base or a registry. Those of its own MetaData come first.

    Raises:
        ConfigurationError: it is neither.
    """
    mappers = [mapper for known in require_registries(base) for mapper in known.mappers]
    own = getattr(base, "metadata", None)
    return sorted(mappers, key=lambda mapper: getattr(mapper.local_table, "metadata", None) is not own)


def metadata_of(base: Any) -> list[MetaData]:
    """Every MetaData of a declarative base or a registry. Its own comes first.

    Raises:
        ConfigurationError: it is neither.
    """
    known = [getattr(base, "metadata", None)]
    known += [getattr(mapper.local_table, "metadata", None) for mapper in mappers_of(base)]
    known += [each.metadata for each in require_registries(base)]
    return list(dict.fromkeys(metadata for metadata in known if isinstance(metadata, MetaData)))


def _derived(base: Any) -> Iterator[Mapper[Any]]:
    """The mappers of a class and of all that derive from it."""
    waiting, seen = [base] if isinstance(base, type) else [], set()
    while waiting:
        cls = waiting.pop()
        if cls not in seen:
            seen.add(cls)
            waiting += type.__subclasses__(cls)
            mapper: object = inspect(cls, raiseerr=False)
            if isinstance(mapper, Mapper):
                yield mapper
