"""The Python type of a column's values, as far as its SQLAlchemy type says."""

from __future__ import annotations

from typing import Any

from sqlalchemy import TypeDecorator


def python_type_of(type_: Any) -> type[Any] | None:
    """The type of a column's Python values; None where an application's own type does not say."""
    try:
        found: type[Any] = type_.python_type
    except NotImplementedError:  # SQLAlchemy's answer for a type that does not say
        return None
    # SQLAlchemy 2.1 answers `object` for a decorator that does not say.
    return None if found is object and isinstance(type_, TypeDecorator) else found
