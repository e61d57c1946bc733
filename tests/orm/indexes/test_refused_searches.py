"""A search that is refused shows nothing of what was looked for, and its error has a chain that ends."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, Integer, String, Text, bindparam, delete, select, tuple_, update
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    EncryptedType,
    Envelope,
    EnvelopeError,
    Grams,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
    matches,
    token_index,
)
from tests.frames import chain, frames_of

NEEDLE = "zebra needle"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int | None] = mapped_column(EncryptedType(Integer))
    number_index: Mapped[bytes | None] = mapped_column(BlindIndex("number", scope="server"))
    email: Mapped[str | None] = mapped_column(EncryptedType(String))
    email_start: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server", prefix=3))
    both_index: Mapped[bytes | None] = mapped_column(BlindIndex(("email", "number"), scope="server"))
    about: Mapped[str | None] = mapped_column(EncryptedType(Text))
    about_words = token_index("about", scope="server")
    part: Mapped[str | None] = mapped_column(EncryptedType(String))
    part_grams = token_index("part", scope="server", tokens=Grams(3))


WRITTEN: dict[str, Callable[[], Any]] = {
    "==": lambda: User.number == NEEDLE,
    "reversed": lambda: NEEDLE == User.number,  # noqa: SIM300
    "<": lambda: User.number < NEEDLE,
    "in_": lambda: User.number.in_([1, NEEDLE]),
    "not_in": lambda: User.number.not_in([NEEDLE]),
    "between": lambda: User.number.between(NEEDLE, NEEDLE),
    "+": lambda: User.email + NEEDLE,
    "reversed +": lambda: NEEDLE + User.email,
    "istartswith": lambda: User.email.istartswith(NEEDLE),
    "endswith": lambda: User.email.endswith(NEEDLE),
    "contains": lambda: User.email.contains(NEEDLE),
    "like": lambda: User.email.like(f"%{NEEDLE}_"),
    "ilike": lambda: User.email.ilike(f"%{NEEDLE}_"),
    "regexp_match": lambda: User.email.regexp_match(NEEDLE),
    "op": lambda: User.email.op("~")(NEEDLE),
    "has_word": lambda: User.about.has_word(NEEDLE),
    "has_words": lambda: User.email.has_words(NEEDLE),
    "has_words of none": lambda: User.about.has_words("!!" + "\ud800" + NEEDLE),
    "has_word without an index": lambda: User.email.has_word(NEEDLE),
    "contains of grams": lambda: User.part.regexp_match(NEEDLE),
    "like of grams": lambda: User.part.like(f"_{NEEDLE}\ud800"),
    "matches": lambda: matches(User.number_index, NEEDLE),
    "matches of another": lambda: matches(User.number, NEEDLE),
    "matches of several": lambda: matches(User.both_index, email=NEEDLE),
    "matches of wrong types": lambda: matches(User.both_index, email=NEEDLE, number=NEEDLE),
}


def shown_in(error: BaseException) -> list[str]:
    """The variables of the library's frames that show the needle."""
    return [
        f"{frame.f_code.co_qualname}: {name}"
        for frame in frames_of(error)
        for name, value in frame.f_locals.items()
        if "zebra" in repr(value)
    ]


def ends(error: BaseException) -> bool:
    """Whether whoever walks from cause to cause, or from context to context, comes to an end."""
    for link in chain(error):
        for name in ("__cause__", "__context__"):
            seen: list[Any] = []
            at: Any = link
            while at is not None:
                if any(at is one for one in seen):
                    return False
                seen.append(at)
                at = getattr(at, name)
    return True


@pytest.mark.parametrize("name", WRITTEN)
def test_no_frame_keeps_what_was_looked_for(name: str) -> None:
    """Refused where it is written."""
    with pytest.raises(EnvelopeError) as caught:
        WRITTEN[name]()

    assert shown_in(caught.value) == []
    assert ends(caught.value)
    assert "zebra" not in str(caught.value)


SENT: dict[str, Any] = {
    "a wrong type": (User.number == bindparam("v"), {"v": NEEDLE}),
    "no value": (User.number == bindparam("v"), {}),
    "a word that is none": (User.about.has_word(bindparam("v")), {"v": NEEDLE}),
    "in a tuple": (tuple_(User.number, User.email).in_([(1, NEEDLE)]), {}),
}


@pytest.mark.parametrize("name", SENT)
def test_an_error_is_not_its_own_cause(sqlite_engine: Engine, name: str) -> None:
    """Refused when it is sent: SQLAlchemy raises such an error from itself."""
    Base.metadata.create_all(sqlite_engine)
    envelope = Envelope(server_keys=ServerKeyring([bytes(range(32))]))
    condition, parameters = SENT[name]
    with Session(sqlite_engine) as session:
        envelope.attach(session)
        with pytest.raises(EnvelopeError) as caught:
            session.scalars(select(User.id).where(condition), parameters).all()

    assert ends(caught.value)
    assert shown_in(caught.value) == []


@pytest.mark.parametrize(
    "statement",
    [
        delete(User).where(User.number == bindparam("v")),
        update(User).where(User.number == 1).values(id=bindparam("v")),
        update(User).where(User.about.has_word("one")).values(id=bindparam("v")),
    ],
    ids=["delete", "update", "token index"],
)
def test_a_statement_with_several_rows_looks_for_nothing(sqlite_engine: Engine, statement: Any) -> None:
    """It is refused with the line to write; what else SQLAlchemy refuses keeps its own words."""
    Base.metadata.create_all(sqlite_engine)
    envelope = Envelope(server_keys=ServerKeyring([bytes(range(32))]))
    with Session(sqlite_engine) as session, envelope.server_mode(session, reason="a test"):
        connection = session.connection()
        with pytest.raises(StatementRefusedError, match="for row in rows") as caught:
            connection.execute(statement, [{"v": 4711}, {"v": 4712}])
        with pytest.raises(StatementError, match="executemany"):
            connection.execute(
                delete(User).where(User.id.in_(bindparam("v", expanding=True))), [{"v": [1]}, {"v": [2]}]
            )

    assert ends(caught.value)
    assert "4711" not in str(caught.value)


def test_an_error_has_the_cause_that_it_is_given() -> None:
    """A cause that is another error stays."""
    cause = ValueError("why")
    with pytest.raises(StatementRefusedError) as caught:
        raise StatementRefusedError("what") from cause

    assert caught.value.__cause__ is cause
    caught.value.__cause__ = None
    assert caught.value.__cause__ is None
