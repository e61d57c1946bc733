"""Every query finds by a normalised, a truncated, a prefix or a bucketed index what it finds by its twin."""

import random
import zlib
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, Text

from sqlalchemy_envelope import BlindIndex, Buckets
from tests.orm.indexes.test_twin import EXACT_TEXT
from tests.orm.indexes.twin import Pair, TwinKind, World, equality


def one_of(*values: Any) -> Any:
    return lambda chosen: chosen.choice([None, *values])


def normalised(name: str, values: Any, stored: Any) -> TwinKind:
    return TwinKind(
        name,
        Text(),
        lambda: BlindIndex("secret", scope="server", normalize=name),
        values,
        equality(values, stored),
        stored,
        EXACT_TEXT,
    )


def digits(value: str) -> str:
    return "".join(one for one in value if one.isdigit())


def candidates(name: str, inner: Any, values: Any, leaf: Any, **options: Any) -> TwinKind:
    """A kind whose tags give candidates, which are compared when they are decrypted."""
    return TwinKind(
        name,
        inner,
        lambda: BlindIndex("secret", scope="server", **options),
        values,
        leaf,
        twin_inner=EXACT_TEXT if isinstance(inner, Text) else None,
        exact=False,
        joins=False,
        unlocked=True,
    )


def beginnings(chosen: random.Random, entity: Any) -> Pair:
    start = chosen.choice(["ab", "abc", "ab%", "a_", "abcd", "zz", "ab\\"])
    return entity.secret.startswith(start, autoescape=True), entity.twin.startswith(start, autoescape=True)


def ranges(chosen: random.Random, entity: Any) -> Pair:
    low, high = sorted(chosen.randint(-15, 45) for _ in range(2))
    secret, twin = entity.secret, entity.twin
    return chosen.choice(
        [
            (secret < low, twin < low),
            (secret <= low, twin <= low),
            (secret > high, twin > high),
            (secret >= high, twin >= high),
            (secret.between(low, high), twin.between(low, high)),
            (secret == low, twin == low),
        ]
    )


LETTERS = one_of("a", "b", "c", "ab", "abc", "x")


def among(chosen: random.Random, entity: Any) -> Pair:
    some = [LETTERS(chosen) for _ in range(chosen.randint(0, 3))]
    one = LETTERS(chosen)
    return chosen.choice(
        [(entity.secret == one, entity.twin == one), (entity.secret.in_(some), entity.twin.in_(some))]
    )


def owned(name: str, exact: bool, values: Any, leaf: Any, **options: Any) -> TwinKind:
    """An index under the owners' keys."""
    return TwinKind(
        f"owned {name}",
        Text(),
        lambda: BlindIndex("secret", scope="owner", **options),
        values,
        leaf,
        twin_inner=EXACT_TEXT,
        exact=exact,
        joins=False,
        unlocked=True,
        owned=True,
    )


KINDS = [
    owned("text", True, LETTERS, equality(LETTERS, lambda value: value)),
    owned("few bits", False, LETTERS, among, bits=2),
    normalised("case-v1", one_of("Ada", "ADA", "ada", "ben", "", "Ben "), str.lower),
    normalised("email-v1", one_of("Ada@x.org", "ada@X.org", "ben@x.org"), str.lower),
    normalised("digits-v1", one_of("12 3", "123", "1-2-3", "45"), digits),
    candidates(
        "prefix",
        Text(),
        one_of("abc", "ab%d", "a_b", "abcd", "b", "", "ab\\x", "zz"),
        beginnings,
        prefix=2,
    ),
    candidates("buckets", Integer(), one_of(*range(-12, 40, 3)), ranges, bucket=Buckets(10, -10, 30)),
    candidates("few bits", Text(), LETTERS, among, bits=2),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_index_finds_what_its_twin_finds(
    engine: Engine, kind: TwinKind, pytestconfig: pytest.Config
) -> None:
    """Random queries, while rows are written in every way: the same rows."""
    world = World(engine, kind, seed=zlib.crc32(kind.name.encode()))
    world.check(1_000 if pytestconfig.getoption("all") else 60)
