"""Every query finds by the index what it finds by a plaintext twin of the column."""

import datetime as dt
import random
import zlib
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    Date,
    DateTime,
    Engine,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Text,
)
from sqlalchemy.dialects import mysql

from sqlalchemy_envelope import BlindIndex
from tests.orm.indexes.twin import TwinKind, World, equality

WORDS = [
    "ada@example.org",
    "Ada@example.org",
    "",
    " ",
    "müller",
    "mu\u0308ller",
    "a'b\"c\\%_",
    "x" * 300,
    "\U0001f511",
]


def texts(chosen: random.Random) -> Any:
    return chosen.choice([*WORDS, None])


def numbers(chosen: random.Random) -> Any:
    return chosen.choice([None, 0, -1, 1, 127, 128, 255, 256, 2**31 - 1])


def amounts(chosen: random.Random) -> Any:
    return chosen.choice([None, *map(Decimal, ("0", "-0", "1", "1.0", "1.00", "-1", "10", "1E+1", "0.01"))])


def days(chosen: random.Random) -> Any:
    return chosen.choice([None, *(dt.date(1990, 1, day) for day in range(1, 7))])


def moments(chosen: random.Random) -> Any:
    return chosen.choice([None, *(dt.datetime(1990, 1, 1, hour, 30) for hour in range(6))])


def blobs(chosen: random.Random) -> Any:
    return chosen.choice([None, b"", b"\0", b"a", b"a\0", b"\xff" * 40])


EXACT_TEXT = Text().with_variant(mysql.LONGTEXT(collation="utf8mb4_nopad_bin"), "mysql", "mariadb")
"""Text that a database compares as Python does. MariaDB takes no notice of case and of spaces at the end."""


def exact(name: str, inner: Any, values: Any, twin_inner: Any = None) -> TwinKind:
    return TwinKind(
        f"exact {name}",
        inner,
        lambda: BlindIndex("secret", scope="server"),
        values,
        equality(values, lambda value: value),
        twin_inner=twin_inner,
    )


KINDS = [
    exact("text", Text(), texts, EXACT_TEXT),
    exact("amount", Numeric(12, 4), amounts),
]
"""One of each kind of index, at least."""
MORE = [
    exact("short text", String(400), texts, EXACT_TEXT),
    exact("number", Integer(), numbers),
    exact("day", Date(), days),
    exact("moment", DateTime(), moments),
    exact("bytes", LargeBinary(), blobs),
]
"""Other values of a kind that is among the first."""


@pytest.fixture(
    params=[*KINDS, *(pytest.param(one, marks=pytest.mark.thorough) for one in MORE)],
    ids=lambda kind: kind.name,
)
def kind(request: pytest.FixtureRequest) -> TwinKind:
    found: TwinKind = request.param
    return found


def test_the_index_finds_what_its_twin_finds(
    engine: Engine, kind: TwinKind, pytestconfig: pytest.Config
) -> None:
    """Random queries, while rows are written in every way: the same rows, pages and counts."""
    world = World(engine, kind, seed=zlib.crc32(kind.name.encode()))
    world.check(1_000 if pytestconfig.getoption("all") else 60)


def test_on_mariadb(mariadb_engine: Engine, kind: TwinKind, pytestconfig: pytest.Config) -> None:
    """The same on MariaDB."""
    world = World(mariadb_engine, kind, seed=zlib.crc32(kind.name.encode()))
    world.check(1_000 if pytestconfig.getoption("all") else 60)
