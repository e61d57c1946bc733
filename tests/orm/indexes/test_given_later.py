"""Values that are given when a statement is sent: parameters with a name, and the variables of lambdas."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import (
    ColumnElement,
    DateTime,
    Engine,
    String,
    bindparam,
    create_engine,
    delete,
    lambda_stmt,
    select,
    union_all,
)
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session, with_loader_criteria
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import Boolean

from sqlalchemy_envelope import StatementRefusedError, enforce_foreign_keys
from tests.orm.indexes.server_models import Base, User, new_envelope

ADA, BEN, NULL = 1, 2, 3


class Uncached(ColumnElement[bool]):
    """A condition that is always true, and that keeps its statement out of the cache."""

    __visit_name__ = "true"
    inherit_cache = False
    type = Boolean()


@pytest.fixture(scope="module")
def users() -> Iterator[Engine]:
    """Two users with an address, and one without."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    envelope = new_envelope()
    with Session(engine) as session:
        for email in ("ada@x.org", "ben@x.org", None):
            envelope.enroll(session, User(email=email), secret="a secret that is long enough")
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def session(users: Engine) -> Iterator[Session]:
    with Session(users) as session:
        new_envelope().attach(session)
        yield session


def found(session: Session, statement: Any, params: dict[str, Any] | None = None) -> list[int]:
    return sorted(session.scalars(statement, params or {}))


def test_a_parameter_with_a_name(session: Session) -> None:
    """One statement finds another row with each value; None finds none, as on a plain column."""
    statement = select(User.id).where(User.email == bindparam("email"))

    assert found(session, statement, {"email": "ada@x.org"}) == [ADA]
    assert found(session, statement, {"email": "ben@x.org"}) == [BEN]
    assert found(session, statement, {"email": None}) == []
    assert found(session, statement.params(email="ben@x.org")) == [BEN]
    assert found(session, select(User.id).where(User.id.in_(statement.params(email="ben@x.org")))) == [BEN]


@pytest.mark.parametrize("also", [(), (Uncached(),)])
def test_a_parameter_with_a_default(session: Session, also: tuple[Any, ...]) -> None:
    """The default counts unless the statement is sent with another value."""
    statement = select(User.id).where(User.email == bindparam("email", "ada@x.org"), *also)

    assert found(session, statement) == [ADA]
    assert found(session, statement.params(email="ben@x.org")) == [BEN]
    assert found(session, statement, {"email": "ben@x.org"}) == [BEN]


def test_lists_and_negations(session: Session) -> None:
    """A list may be a parameter or have parameters in it."""
    some = bindparam("some", expanding=True)
    both = ["ada@x.org", "ben@x.org"]

    assert found(session, select(User.id).where(User.email.in_(some)), {"some": both}) == [ADA, BEN]
    assert found(session, select(User.id).where(User.email.not_in(some)), {"some": both[:1]}) == [BEN]
    assert found(session, select(User.id).where(User.email.not_in(some)), {"some": []}) == [ADA, BEN, NULL]
    one = select(User.id).where(User.email.in_([bindparam("one"), "ben@x.org"]))
    assert found(session, one, {"one": "ada@x.org"}) == [ADA, BEN]
    assert found(session, select(User.id).where(User.email != bindparam("e")), {"e": both[0]}) == [BEN]
    two = [select(User.id).where(User.email == bindparam(name)) for name in ("a", "b")]
    assert found(session, union_all(*two), {"a": both[0], "b": both[1]}) == [ADA, BEN]


@pytest.mark.parametrize("also", [(), (Uncached(),)])
def test_the_variables_of_a_lambda(session: Session, also: tuple[Any, ...]) -> None:
    """A lambda is called once, and finds another row with each value of its variables."""

    def equal(email: str | None) -> Any:
        return select(User.id).where(lambda: User.email == email, *also)

    def among(first: str, second: str) -> Any:
        return select(User.id).where(lambda: User.email.in_([first, second]), *also)

    def listed(emails: list[str]) -> Any:
        return select(User.id).where(lambda: User.email.in_(emails), *also)

    for email, wanted in (("ada@x.org", [ADA]), ("ben@x.org", [BEN]), ("eve@x.org", []), (None, [])):
        assert wanted == found(session, equal(email))
    assert found(session, among("ada@x.org", "ben@x.org")) == [ADA, BEN]
    assert found(session, among("ada@x.org", "eve@x.org")) == [ADA]
    assert found(session, listed(["ada@x.org", "ben@x.org"])) == [ADA, BEN]
    assert found(session, listed([])) == []


def test_a_statement_of_lambdas(session: Session) -> None:
    """`lambda_stmt`, in several steps."""

    def statement(email: str) -> Any:
        made = lambda_stmt(lambda: select(User.id))
        made += lambda one: one.where(User.email == email)
        return made

    assert [found(session, statement(one)) for one in ("ada@x.org", "ben@x.org")] == [[ADA], [BEN]]


def test_loader_criteria(session: Session) -> None:
    """`with_loader_criteria`, with a condition and with a lambda."""

    def by_lambda(email: str) -> Any:
        return with_loader_criteria(User, lambda cls: cls.email == email)

    def by_condition(email: str) -> Any:
        return with_loader_criteria(User, User.email == email)

    makers: tuple[Callable[[str], Any], ...] = (by_lambda, by_condition)
    for make in makers:
        for email, wanted in (("ada@x.org", [ADA]), ("ben@x.org", [BEN])):
            assert wanted == [one.id for one in session.scalars(select(User).options(make(email)))]


def test_what_is_deleted_with_a_parameter(session: Session) -> None:
    """DELETE asks the database which objects it deleted."""
    ben = session.get_one(User, BEN)
    session.execute(delete(User).where(User.email == bindparam("e")), {"e": "ben@x.org"})

    assert ben not in session
    session.rollback()
    assert found(session, select(User.id)) == [ADA, BEN, NULL]


@pytest.mark.parametrize("params", [{}, {"email": 5}, {"email": ["ada@x.org"]}, {"e": "ada@x.org"}])
def test_a_value_that_is_missing_or_wrong(session: Session, params: dict[str, Any]) -> None:
    """No value, or one of another type: an error that shows no value, and nothing is sent."""
    with pytest.raises(StatementRefusedError) as raised:
        found(session, select(User.id).where(User.email == bindparam("email")), params)

    assert "ada@" not in str(raised.value)


@pytest.mark.parametrize("rest", [{}, {"at": "no time"}])
def test_an_error_of_another_parameter(session: Session, rest: dict[str, Any]) -> None:
    """SQLAlchemy's errors show the parameters that a statement was sent with: not the value that is looked
    for."""
    at = bindparam("at", type_=DateTime())
    statement = select(User.id).where(User.email == bindparam("email"), at == at)
    with pytest.raises(StatementError) as raised:
        found(session, statement, {"email": "ada@x.org"} | rest)

    assert "ada@" not in str(raised.value)
    assert "a value that is looked for" in str(raised.value)


def test_a_parameter_that_stands_elsewhere_too(session: Session) -> None:
    """A value that is looked for and selected as well is sent as it is."""
    email = bindparam("email", type_=String())
    rows = session.execute(select(User.id, email).where(User.email == email), {"email": "ada@x.org"}).all()

    assert [tuple(row) for row in rows] == [(ADA, "ada@x.org")]


def test_tags_outside_of_an_execution(session: Session) -> None:
    """After a statement was sent, its tags are shown to nobody."""
    condition = User.email == "ada@x.org"
    found(session, select(User.id).where(condition))
    with pytest.raises(StatementRefusedError, match="none to show"):
        _ = condition.compile().params
