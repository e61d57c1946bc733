"""Classes with one row: the sole owner of rows that name no other owner.

Its primary key is the same in every process, so that two processes that make the row at one moment cannot
make two rows.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

from sqlalchemy_envelope.exceptions import ConfigurationError, EnrollmentError
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

_SOLE_KEYS: dict[type[Any], Any] = {
    int: 1,
    str: "1",
    uuid.UUID: uuid.UUID(int=1),
    bytes: b"1",
    dt.date: dt.date(1, 1, 1),
}


def sole_key(column: Any) -> Any:
    """The value of a sole row's primary key column."""
    python_type = python_type_of(column.type)
    if python_type not in _SOLE_KEYS:
        raise ConfigurationError(
            f"{column.table.name}.{column.name}: a sole owner's primary key is made of int, str, UUID, bytes "
            "or date columns."
        )
    return _SOLE_KEYS[python_type]


def second_row(name: str) -> EnrollmentError:
    """The error for a second row of a class with one row."""
    return EnrollmentError(
        f"{name} is declared sole=True and has its row already: load it, "
        f"`session.scalars(select({name})).one()`."
    )


def two_at_once(name: str) -> EnrollmentError:
    """The error for several new rows of such a class in one flush or statement."""
    return EnrollmentError(f"{name} is declared sole=True: it has a single row, and several are being added.")


def may_be_several(name: str) -> EnrollmentError:
    """The error for rows of such a class that a SELECT gives."""
    return EnrollmentError(
        f"{name} is declared sole=True: it has a single row, and how many a SELECT gives is not known. Add "
        f"it by itself: `session.add({name}())`."
    )


def several_rows(name: str) -> ConfigurationError:
    """The error for a class of this kind that has several rows already."""
    return ConfigurationError(
        f"{name} is declared sole=True and has several rows: whose key encrypts is not clear. Delete all but "
        "the row whose keys are in use."
    )
