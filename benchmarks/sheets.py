"""Tables of figures without a layout, and the figures that may have limits."""

from __future__ import annotations

from dataclasses import dataclass

DATABASE_NAMES = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "postgresql-binary": "PostgreSQL, binary results",
    "postgresql-asyncpg": "PostgreSQL, asyncpg",
}


@dataclass(frozen=True)
class Sheet:
    """One table of figures."""

    title: str
    heads: list[str]
    lines: list[list[str]]


@dataclass(frozen=True)
class Finding:
    """The result of one benchmark on one database.

    Attributes:
        figures: by the name under which `goals.py` may set a limit.
    """

    benchmark: str
    database: str
    sheets: list[Sheet]
    figures: dict[str, float]
