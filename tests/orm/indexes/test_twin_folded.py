"""Normalised, prefix and slow indexes find what a plaintext twin with the normalised text finds."""

import random
import zlib
from typing import Any

import pytest
from sqlalchemy import Engine, Text

from sqlalchemy_envelope import BlindIndex, KdfProfile
from sqlalchemy_envelope.orm.indexes.normalizers import normalizer_named
from tests.orm.indexes.twin import TwinKind, World, equality

NAMES = ["Ada", "ADA", "ada l", "Adam", "ad", "", "a_a", "a%ab", "Jos\u00e9", "JOSE\u0301", "jose", None]
EMAILS = [
    "Ada@Example.org",
    "ada@example.org ",
    "ada@EXAMPLE.ORG.",
    "eve@example.org",
    "e@b\u00fccher.example",
]


def names(chosen: random.Random) -> Any:
    return chosen.choice(NAMES)


def emails(chosen: random.Random) -> Any:
    return chosen.choice([*EMAILS, None])


def pins(chosen: random.Random) -> Any:
    return chosen.choice(["1234", "0000", "", None])


def normalised(name: str, values: Any) -> TwinKind:
    normalizer = normalizer_named(name)
    return TwinKind(
        f"normalised {name}",
        Text(),
        lambda: BlindIndex("secret", scope="server", normalize=name),
        values,
        equality(values, normalizer),
        stored=normalizer,
    )


def beginnings(shortest: int, longest: int) -> Any:
    """Conditions on beginnings of a length from the one to the other."""
    fold = normalizer_named("case-v1")

    def leaf(chosen: random.Random, entity: Any) -> Any:
        texts = [one for one in NAMES if one is not None and len(fold(one)) >= shortest]
        start = fold(chosen.choice(texts))[: chosen.randint(shortest, longest)]
        return chosen.choice(
            [
                (
                    entity.secret.startswith(start.upper(), autoescape=True),
                    entity.twin.startswith(start, autoescape=True),
                ),
                (
                    entity.secret.like(like(start.upper()), escape="/"),
                    entity.twin.like(like(start), escape="/"),
                ),
                (
                    entity.secret.ilike(like(start) + "%", escape="/"),
                    entity.twin.like(like(start), escape="/"),
                ),
            ]
        )

    return leaf


def like(start: str) -> str:
    return start.replace("%", "/%").replace("_", "/_") + "%"


def prefix(name: str, shortest: int, longest: int) -> TwinKind:
    return TwinKind(
        name,
        Text(),
        lambda: BlindIndex("secret", scope="server", normalize="case-v1", prefix=2),
        names,
        beginnings(shortest, longest),
        stored=normalizer_named("case-v1"),
        exact=longest == 2,
        joins=False,
        unlocked=longest > 2,
    )


KINDS = [
    normalised("diacritics-v1", names),
    normalised("email-v1", emails),
    prefix("prefix", 2, 2),
    prefix("longer prefix", 2, 4),
    TwinKind(
        "slow",
        Text(),
        lambda: BlindIndex("secret", scope="server", slow=KdfProfile.unsafe_for_tests()),
        pins,
        equality(pins, lambda value: value),
    ),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_index_finds_what_its_twin_finds(
    engine: Engine, kind: TwinKind, pytestconfig: pytest.Config
) -> None:
    """Random queries, while rows are written in every way: the same rows, pages and counts."""
    world = World(engine, kind, seed=zlib.crc32(kind.name.encode()))
    world.check(1_000 if pytestconfig.getoption("all") else 60)
