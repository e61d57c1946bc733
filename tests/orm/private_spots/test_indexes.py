"""Canaries of the private spots of SQLAlchemy that blind indexes lean on."""

import pytest
import sqlalchemy as sa
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.lambdas import PyWrapper

from sqlalchemy_envelope.orm.indexes.given import SoughtParameter, given

USERS = sa.table("users", sa.column("id"), sa.column("email"))


def test_the_variable_of_a_lambda() -> None:
    """A lambda is run with wrappers in place of its variables. `_sa__py_wrapper_literal` makes the parameter
    of one; without it the statement is refused."""
    seen = []

    def note(value: object) -> sa.ColumnElement[bool]:
        seen.append(value)
        return USERS.c.email == value

    def statement(email: str) -> sa.sql.lambdas.StatementLambdaElement:
        return sa.lambda_stmt(lambda: sa.select(USERS.c.id).where(note(email)))

    statement("ada")

    assert {type(one) for one in seen} == {PyWrapper}
    assert isinstance(seen[0]._sa__py_wrapper_literal(), BindParameter)  # type: ignore[attr-defined]
    assert given(seen[0]) is not None


def test_a_cache_key_has_the_parameters() -> None:
    """`_generate_cache_key` lists the parameters of a statement, with the values that they have now."""
    statement = sa.select(USERS.c.id).where(USERS.c.email == sa.bindparam("email", "ada"))
    key = statement._generate_cache_key()

    assert key is not None
    assert [(one.key, one.value) for one in key.bindparams] == [("email", "ada")]


@pytest.mark.parametrize("cached", [True, False])
def test_the_values_of_params(cached: bool) -> None:
    """`.params()` changes the parameters on SQLAlchemy 2.0; on 2.1 they are in `_params`, and in the cache
    key."""
    statement = sa.select(USERS.c.id).where(USERS.c.email == sa.bindparam("email", "ada")).params(email="ben")
    key = statement._generate_cache_key()
    assert key is not None
    apart = (getattr(key, "params", None) or {}) if cached else getattr(statement, "_params", {})

    assert {one.key: one.value for one in key.bindparams} | apart == {"email": "ben"}


def test_a_parameter_inside_another() -> None:
    """`_traverse_internals` names what belongs to an element: a copy of it has a copy of that."""
    sought = SoughtParameter(None, unique=True)
    sought.given = (sa.bindparam("email"),)
    copied = sa.sql.visitors.cloned_traverse(sought, {"maintain_key": True}, {})

    assert [one.key for one in copied.given] == ["email"]
    assert copied.given[0] is not sought.given[0]
    assert [one.key for one in sa.sql.visitors.iterate(sought) if one is not sought] == ["email"]
