"""`among` makes what `in_` makes, on both lines of SQLAlchemy: it says so itself, and saves the detour."""

from typing import Any

import pytest
from sqlalchemy import LargeBinary, bindparam, column, create_engine, inspect, literal, not_, select
from sqlalchemy.dialects import mysql, postgresql, sqlite

from sqlalchemy_envelope.orm.indexes.among import among

pytestmark = pytest.mark.both_lines


def parameter(values: list[bytes]) -> Any:
    return bindparam("sought", callable_=lambda: values, expanding=True, type_=LargeBinary())


@pytest.mark.parametrize("negated", [False, True])
def test_it_is_in_(negated: bool) -> None:
    """The same text, the same cache key, the same negation, the same type."""
    tags: Any = column("tags", LargeBinary)
    ours = among(tags, parameter([b"1"]), negated=negated)
    theirs = tags.not_in(parameter([b"1"])) if negated else tags.in_(parameter([b"1"]))

    assert theirs._generate_cache_key() == ours._generate_cache_key()
    for dialect in (sqlite.dialect(), postgresql.dialect(), mysql.dialect()):
        for one, other in ((theirs, ours), (not_(theirs), not_(ours)), (~~theirs, ~~ours)):
            options = {"render_postcompile": True}
            assert str(one.compile(dialect=dialect, compile_kwargs=options)) == str(
                other.compile(dialect=dialect, compile_kwargs=options)
            )
    assert type(theirs.type) is type(ours.type)
    assert {k: v for k, v in vars(theirs).items() if k in ("modifiers", "negate", "operator")} == {
        k: v for k, v in vars(ours).items() if k in ("modifiers", "negate", "operator")
    }
    assert inspect(ours) is ours


@pytest.mark.parametrize("values", [[], [b"1"], [b"1", b"2"]])
def test_it_finds_what_in_finds(values: list[bytes]) -> None:
    """Also with an empty list."""
    tags: Any = literal(b"1", LargeBinary)
    query = select(among(tags, parameter(values)), among(tags, parameter(values), negated=True))
    with create_engine("sqlite://").connect() as connection:
        found = tuple(map(bool, connection.execute(query).one()))

    assert found == (bool(values), not values)
