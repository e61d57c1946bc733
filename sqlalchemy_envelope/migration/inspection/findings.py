"""The findings of `plan`, each about an object in the database; and whether a piece of SQL names a column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sqlalchemy_envelope.words import counted

Severity = Literal["stops", "breaks", "note"]
"""How much a finding hurts:

- `stops`: deal with it before the migration is started; values would be lost or left
  behind, or it cannot run.
- `breaks`: the migration runs, but an object that used the previous column ceases to work on the way.
- `note`: good to know.
"""
# The order in which findings are shown.
SEVERITIES: tuple[Severity, ...] = ("stops", "breaks", "note")


@dataclass(frozen=True)
class Finding:
    """An object or fact that will hurt when ciphertext replaces the previous column.

    Attributes:
        code: the kind of finding; it does not change between releases.
        severity: "stops", "breaks" or "note".
        object: the name of the index, view, trigger, ...
        message: the problem, and what to do about it.
        count: the number of rows or owners concerned, where they were counted.
    """

    code: str
    severity: Severity
    object: str
    message: str
    count: int | None = None


def mentions(sql: str | None, name: str) -> bool:
    """Whether a piece of SQL contains this name as a word. The word may name another object."""
    return (
        sql is not None
        and re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", sql, re.IGNORECASE) is not None
    )


def ours(name: str) -> bool:
    """Whether a trigger belongs to this library."""
    return "envelope_" in name


# The same finding has the same words on every database.


def unique_over(name: str, code: str) -> Finding:
    """A unique index or constraint that will no longer hold for the values."""
    return Finding(
        code,
        "breaks",
        name,
        "It keeps the values of the previous column unique. Ciphertexts of equal values differ, so nothing "
        "in the database will: check it in the application, and drop this before `contract`.",
    )


def index_over(name: str, code: str = "index", what: str = "It finds rows by the value") -> Finding:
    """An index on the column, of no use after the migration."""
    return Finding(
        code,
        "breaks",
        name,
        f"{what}; ciphertext cannot be searched by value or order. Find the queries that use it, load the "
        "rows of one owner instead, and drop it before `contract`.",
    )


def check_over(name: str, sql: str) -> Finding:
    """A check constraint that mentions the column."""
    if re.search(r"\bis\s+not\s+null\b", sql, re.IGNORECASE):
        message = (
            "It may refuse NULL in the previous column, which the policy 'read' writes there. Drop it "
            "before that policy is deployed, and check the values in Python."
        )
    else:
        message = (
            "It checks the previous column, and cannot check ciphertext. Check the values in Python "
            "(`@validates`), and drop it before `contract`."
        )
    return Finding("check-constraint", "breaks", name, message)


def referenced_by(name: str, other: str) -> Finding:
    """A foreign key of another table to the column."""
    return Finding(
        "referenced-by-foreign-key",
        "stops",
        name,
        f"{other} refers to the column by its value: it cannot be set to NULL while it is referred to. Let "
        "that reference go by the primary key first.",
    )


def trigger_over(name: str, *, reads: bool) -> Finding:
    """A trigger that the user made."""
    if reads:
        return Finding(
            "trigger-reads-column",
            "breaks",
            name,
            "This trigger mentions the previous column: from the policy 'read' on it sees NULL there, and "
            "it may have copied plaintext elsewhere. Change it before that policy is deployed, and clean "
            "up what it wrote.",
        )
    return Finding(
        "trigger-on-update",
        "note",
        name,
        "This trigger fires for every row that is backfilled. If it copies whole rows (an audit table), "
        "plaintext goes there; if it sets a time of change, all rows get the present one. Disable it for "
        "the backfill, or let it pass over updates that change none of its columns.",
    )


def view_over(name: str, *, drop_fails: bool) -> Finding:
    """A view that shows the column."""
    end = "`contract` fails while it is there" if drop_fails else "after `contract` it gives an error"
    return Finding(
        "view",
        "breaks",
        name,
        f"This view shows the previous column: NULL from the policy 'read' on, and {end}. Make it anew "
        "without the column; what needs the value reads it through the mapped class.",
    )


def rows(table: str, count: int | None, *, exact: bool = False) -> Finding:
    """How many rows there are."""
    if count is None:
        return Finding(
            "rows", "note", table, "The database has no estimate of its rows. ANALYZE the table to get one."
        )
    return Finding("rows", "note", table, f"{'' if exact else 'About '}{counted(count, 'row')}.", count)


def speed(table: str, rate: float, count: int | None) -> Finding:
    """How fast rows are written, and how long all of them take."""
    message = f"Measured here, now: {rate:,.0f} rows a second are read and written back."
    if count is not None:
        message += (
            f" All rows take {_duration(count / rate)} at best, with one worker that does not rest. "
            "Encryption and the keys of new owners come on top."
        )
    return Finding("speed", "note", table, message, round(rate))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"about {counted(minutes, 'minute')}"
    return f"about {round(seconds / 3600):,} hours"
