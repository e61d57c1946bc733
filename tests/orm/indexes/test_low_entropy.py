"""Columns of few values are indexed by nobody who does not say why."""

import enum
from typing import Any

import pytest
from sqlalchemy import Boolean, Date, Enum, Integer, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, configure_mappers, mapped_column

from sqlalchemy_envelope import BlindIndex, ConfigurationError, EncryptedType, KeyOwner


class Blood(enum.Enum):
    A = "a"
    B = "b"


class Yes(TypeDecorator[bool]):
    impl = Boolean
    cache_ok = True


def declare(inner: Any, name: str = "it", of: Any = None, **options: Any) -> None:
    """A class of its own with an indexed column of this type."""

    class Base(DeclarativeBase):
        pass

    columns = {
        "__tablename__": "people",
        "id": mapped_column(Integer, primary_key=True),
        name: mapped_column(EncryptedType(inner)),
        "email": mapped_column(EncryptedType(String)),
        "tags": mapped_column(BlindIndex(of or name, scope="server", **options)),
    }
    type("Person", (KeyOwner, Base), columns)
    configure_mappers()


@pytest.mark.parametrize(
    ("inner", "name"),
    [
        (Boolean, "it"),
        (Yes, "it"),
        (Enum(Blood), "it"),
        (Enum("m", "f", "x"), "it"),
        (String(1), "it"),
        (Integer, "year"),
        (Integer, "year_of_birth"),
        (Integer, "age"),
    ],
)
def test_few_values_are_refused_when_mappers_are_configured(inner: Any, name: str) -> None:
    """The error says why, and what to write instead; a reason is taken."""
    with pytest.raises(ConfigurationError, match=f"blind index of {name}.*allow_low_entropy"):
        declare(inner, name)

    declare(inner, name, allow_low_entropy="the column is public elsewhere")


@pytest.mark.parametrize(
    ("inner", "name"),
    [(String, "it"), (String(80), "year"), (Integer, "it"), (Date, "born")],
)
def test_many_values_are_not_refused(inner: Any, name: str) -> None:
    """A text, a number and a date are indexed; a name alone refuses whole numbers only."""
    declare(inner, name)


def test_an_enum_of_many_members_is_indexed() -> None:
    """A thousand codes are not few."""
    declare(Enum(*[f"c{number}" for number in range(1_000)]))


def test_together_with_many_values_it_is_indexed() -> None:
    """Of several columns, one with many values is enough."""
    declare(Boolean, of=("it", "email"))


@pytest.mark.parametrize("reason", ["", "  ", 7, True])
def test_a_reason_is_a_text(reason: Any) -> None:
    """A flag is no reason."""
    with pytest.raises(ConfigurationError, match="reason, in words"):
        BlindIndex("it", allow_low_entropy=reason)


def test_the_reason_is_part_of_the_type() -> None:
    """It shows in the type's text, and does not get lost with a label."""
    shown = repr(BlindIndex("it", allow_low_entropy="public").labelled("people.tags"))

    assert shown == "BlindIndex('it', scope='owner', label='people.tags', allow_low_entropy='public')"
