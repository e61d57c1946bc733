"""The two columns of a migration by name, and their names as SQL."""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.engine import Dialect


@dataclass(frozen=True)
class Tracked:
    """The two columns of a table, by name.

    Attributes:
        keys: the columns of the primary key. SQLite's trigger finds the row by them, or by its rowid.
        bound: the columns that a ciphertext depends on: the columns that name the owner, and the primary key
            if values are bound to their rows. A write that changes such a column alone makes the row pending
            too.
        check: the name of the encrypted column's CHECK; None for no CHECK.
    """

    table: str
    previous: str
    encrypted: str
    schema: str | None = None
    keys: Sequence[str] = ()
    bound: Sequence[str] = ()
    check: str | None = None

    def trigger(self, kind: str) -> str:
        """The name of a trigger. PostgreSQL runs triggers in the order of their names: ours come last."""
        digest = hashlib.sha256(f"{self.table}\0{self.previous}\0{self.encrypted}".encode()).hexdigest()[:8]
        # PostgreSQL cuts names after 63 bytes, and two long names could become the same name.
        table = self.table.encode()[:24].decode(errors="ignore")
        return f"zz_envelope_{kind}_{table}_{digest}"


def quoter(dialect: Dialect) -> Callable[[str], str]:
    """A function that quotes names for a statement without parameters: a `%` in a name is not doubled."""
    preparer = copy(dialect.identifier_preparer)
    preparer._double_percents, preparer._strings = False, {}  # the second is a cache of quoted names
    quote: Callable[[str], str] = preparer.quote
    return quote
