"""A class whose rows name two owners, by two foreign keys: a grant, or an emergency access."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import ArgumentError, InvalidRequestError

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owner_paths import path_through

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath

Names = str | tuple[str, ...]
"""The attribute, or the attributes, of a foreign key."""


def paths_to_two(mapper: Mapper[Any], of: Names, to: Names) -> tuple[OwnerPath, OwnerPath] | None:
    """The paths to the two owners; None while one of them is not declared yet."""
    try:
        paths = path_through(_columns(mapper, of)), path_through(_columns(mapper, to))
    except (InvalidRequestError, ArgumentError, KeyError):
        return None  # a foreign key to a table that is not declared yet
    if paths[0] is None or paths[1] is None:
        return None
    if any(path.owner_class.key_class is None for path in (paths[0], paths[1])):
        return None
    return paths[0], paths[1]


def names_no_owners(mapper: Mapper[Any], of: Names, to: Names) -> ConfigurationError:
    """The error for a class whose owners are not there when mappers are configured."""
    return ConfigurationError(
        f"{mapper.class_.__name__}: of={of!r} and to={to!r} must each name the foreign key to the primary "
        "key of a KeyOwner that has key tables."
    )


def _columns(mapper: Mapper[Any], names: Names) -> tuple[Column[Any], ...]:
    return tuple(mapper.columns[name] for name in ((names,) if isinstance(names, str) else names))
