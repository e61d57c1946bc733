"""Values are found as each kind of index compares them: normalised, by their beginning, several together."""

import datetime as dt
import logging
import traceback
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session, aliased, load_only
from sqlalchemy.sql import operators

from sqlalchemy_envelope import (
    LockedError,
    NormalizationError,
    StatementRefusedError,
    ValueEncodingError,
    matches,
)
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from tests.orm.indexes.people_models import SECRET, Person, enroll, new_envelope

TABLE: Any = Person.__table__
ADA, BORN = "Lovelace", dt.date(1815, 12, 10)


def found(session: Session, condition: object) -> tuple[int, ...]:
    return tuple(sorted(session.scalars(select(Person.id).where(condition)).all()))  # type: ignore[arg-type]


def test_normalised_values_are_equal(engine: Engine) -> None:
    """A comparison on the attribute compares what the normaliser makes of both sides."""
    envelope = new_envelope()
    ada, ben = enroll(
        engine,
        envelope,
        Person(email="Ada@Example.org", phone="044 668 18 00"),
        Person(email="ben@example.org", phone="+1 650-253-0000"),
    )
    with Session(engine) as session:
        envelope.attach(session)

        assert (ada,) == found(session, Person.email == " ada@EXAMPLE.org")
        assert (ada,) == found(session, Person.phone == "+41 44 668 18 00")
        assert (ben,) == found(session, Person.phone.in_(["0016502530000", "+41 44 668 18 01"]))
        assert (ben,) == found(session, Person.email != "ADA@example.org")
        assert (ada,) == found(session, matches(Person.email_index, "ADA@example.org"))
        assert found(session, Person.email == "no address") == ()
        assert found(session, Person.phone.in_(["", "12", "\u0663"])) == ()


def test_the_closest_index_answers(engine: Engine) -> None:
    """Of several indexes on a column, the exact one answers `==`; `matches` asks another."""
    envelope = new_envelope()
    one, other = enroll(engine, envelope, Person(last="Jos\u00e9"), Person(last="jose"))
    with Session(engine) as session:
        envelope.attach(session)

        assert (other,) == found(session, Person.last == "jose")
        assert (one, other) == found(session, matches(Person.last_folded, "JOSE"))
        assert (one, other) == found(session, ~matches(Person.last_folded, "Ada"))


def test_values_are_found_by_how_they_begin(engine: Engine) -> None:
    """An index of three characters answers `startswith` and LIKE of three characters, without case."""
    envelope = new_envelope()
    names = ["Lovelace", "LOVE", "lo", "l_v%", "Jos\u00e9", "Josef", None]
    ids = enroll(engine, envelope, *[Person(last=name) for name in names])
    love, shout, _, wild, accent, josef, _ = ids
    with Session(engine) as session:
        envelope.attach(session)
        other = aliased(Person)

        assert (love, shout) == found(session, Person.last.startswith("Lov"))
        assert (love, shout) == found(session, Person.last.like("lov%"))
        assert (love, shout) == found(session, Person.last.ilike("LOV%%"))
        assert (love, shout) == found(session, Person.last.istartswith("lov"))
        assert (wild,) == found(session, Person.last.startswith("l_v", autoescape=True))
        assert (wild,) == found(session, Person.last.like("l/_v%", escape="/"))
        assert (accent, josef) == found(session, Person.last.startswith("jos"))
        assert set(ids[:-1]) - {love, shout} == set(found(session, ~Person.last.startswith("Lov")))
        assert set(ids[:-1]) - {love, shout} == set(found(session, Person.last.not_like("Lov%")))
        assert found(session, Person.last.startswith("xyz")) == ()
        assert (love, shout) == tuple(
            sorted(session.scalars(select(other.id).where(other.last.startswith("LOV"))))
        )


def test_what_a_prefix_does_not_tell_is_refused(sqlite_engine: Engine) -> None:
    """Every other pattern is refused where it is written, with what the index answers."""
    for make in (
        lambda: Person.last.startswith("lo"),
        lambda: Person.last.startswith(""),
        lambda: Person.last.startswith("l_ve"),
        lambda: Person.last.startswith("lov\\"),
        lambda: Person.last.like("lov"),
        lambda: Person.last.like("%lov%"),
        lambda: Person.last.like("l_v%"),
        lambda: Person.last.like("lov\\%%"),
        lambda: Person.last.endswith("ace"),
        lambda: Person.last.contains("ove"),
        lambda: ~Person.email.like("ada%"),
        lambda: Person.last.not_like("love%"),
    ):
        with pytest.raises(StatementRefusedError) as raised:
            make()
        assert "startswith()" in str(raised.value) or "email_index" in str(raised.value)


@pytest.mark.parametrize("start", ["love", "Lovelace"])
def test_a_longer_beginning_gives_candidates(start: str) -> None:
    """More characters than are indexed look for the indexed ones, and say what to check after decryption."""
    index = next(one for one in indexes_of_table(TABLE) if one.key == "last_start")
    wanted = index.kind.answer(operators.startswith_op, start, {})

    assert wanted is not None
    assert wanted.check is not None
    assert wanted.datas == (b"lov",)
    assert [wanted.check(one) for one in ("LOVELACE x", "lov", None)] == [True, False, False]


def test_a_whole_value_is_a_candidate_of_its_beginning() -> None:
    """Where only a prefix is indexed, `==` gives candidates: rows that begin alike."""
    index = next(one for one in indexes_of_table(TABLE) if one.key == "last_start")
    wanted = index.kind.answer(operators.eq, "Lovelace", {})

    assert wanted is not None
    assert wanted.check is not None
    assert wanted.datas == (b"lov",)
    assert [wanted.check(one) for one in ("Lovelace", "LOVELACE", "Love", None)] == [True, True, False, False]


def test_several_values_are_found_together(engine: Engine) -> None:
    """An index over two attributes finds rows that are equal in both, through `matches`."""
    envelope = new_envelope()
    later = BORN.replace(year=1816)
    ada, _, _, _ = enroll(
        engine,
        envelope,
        Person(last=ADA, born=BORN),
        Person(last=ADA, born=later),
        Person(last=ADA),
        Person(born=BORN),
    )
    with Session(engine) as session:
        envelope.attach(session)
        other = aliased(Person)

        assert (ada,) == found(session, matches(Person.name_index, last="LOVELACE", born=BORN))
        assert found(session, matches(Person.name_index, last=None, born=BORN)) == ()
        same = select(other.id).where(matches(other.name_index, born=BORN, last=ADA))
        assert [ada] == session.scalars(same).all()
        assert session.scalars(
            select(Person.name_index).where(Person.born.is_(None) | Person.last.is_(None))
        ).all() == [None, None]


def test_an_update_of_one_part_takes_the_others_from_the_row(engine: Engine) -> None:
    """A flush reads the other values of a row, loaded or not; a statement by itself is refused."""
    envelope = new_envelope()
    (ada,) = enroll(engine, envelope, Person(last=ADA, born=BORN))
    with Session(engine) as session:
        person = session.get_one(Person, ada)
        with envelope.unlock(session, person, secret=SECRET) as unlocked:
            person.last = "King"
            session.commit()
            assert (ada,) == found(session, matches(Person.name_index, last="King", born=BORN))
            session.expire_all()
            person.born = BORN.replace(year=1816)  # the other part is not loaded
            session.commit()
            assert (ada,) == found(session, matches(Person.name_index, last="king", born=person.born))
            assert found(session, matches(Person.name_index, last="King", born=BORN)) == ()
            with unlocked.using(person):
                with pytest.raises(StatementRefusedError, match=r"values\(last=..., born=...\)"):
                    session.execute(update(Person).where(Person.id == ada).values(last="Byron"))
                with pytest.raises(StatementRefusedError, match="last alone"):
                    session.execute(update(Person), [{"id": ada, "last": "Byron"}])
                session.execute(update(Person).where(Person.id == ada).values(last="Byron", born=BORN))
                assert (ada,) == found(session, matches(Person.name_index, last="Byron", born=BORN))
                session.execute(update(Person).where(Person.id == ada).values(last=None))
            assert found(session, matches(Person.name_index, last="Byron", born=BORN)) == ()
            assert (ada,) == found(session, Person.name_index.is_(None))


def test_a_part_that_cannot_be_read_stops_the_flush(sqlite_engine: Engine) -> None:
    """The tag of a changed row is never made from half of its values."""
    envelope = new_envelope()
    (ada,) = enroll(sqlite_engine, envelope, Person(last=ADA, born=BORN))
    with Session(sqlite_engine) as session:
        person = session.scalars(select(Person).options(load_only(Person.last, raiseload=True))).one()
        with envelope.unlock(session, person, secret=SECRET):
            person.last = "King"
            session.commit()  # it is no load of the attribute
            assert (ada,) == found(session, matches(Person.name_index, last="king", born=BORN))
    with Session(sqlite_engine) as session:
        envelope.attach(session)
        session.get_one(Person, ada).last = "King"
        with pytest.raises(LockedError):
            session.flush()


def test_what_matches_does_not_take_is_refused(sqlite_engine: Engine) -> None:
    """The message shows the line to write."""
    for make in (
        lambda: matches(Person.name_index, last="a"),
        lambda: matches(Person.name_index, "a"),
        lambda: matches(Person.name_index, last="a", born=BORN, email="b"),
        lambda: matches(Person.email_index, email=Person.email),
        lambda: matches(Person.name_index, last=5, born=BORN),
        lambda: matches(Person.email, "a"),
        lambda: matches("email_index", "a"),
        lambda: Person.born == BORN,
    ):
        with pytest.raises(StatementRefusedError, match=r"matches\("):
            make()


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("email", "", NormalizationError),
        ("email", "no-address", NormalizationError),
        ("phone", "hidden 12", NormalizationError),
        ("email", 5, ValueEncodingError),
        ("last", "a\ud800", ValueEncodingError),
        ("email", "a\ud800@b", ValueEncodingError),
    ],
)
def test_what_has_no_tag_is_not_stored(
    sqlite_engine: Engine, name: str, value: object, error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """A value that cannot be indexed is refused before anything is sent, and not shown."""
    envelope = new_envelope()
    enroll(sqlite_engine, envelope)
    with caplog.at_level(logging.DEBUG), Session(sqlite_engine) as session:
        with pytest.raises(error) as raised:
            envelope.enroll(session, Person(**{name: value}), secret=SECRET)
        session.rollback()
        assert session.scalars(select(Person.id)).all() == []
    shown = "".join(traceback.format_exception(raised.value)) + str(raised.value.args) + caplog.text

    assert name in str(raised.value)
    for hidden in ("no-address", "hidden 12", "\ud800"):
        assert hidden not in shown


def test_a_value_of_ten_megabytes_is_found(sqlite_engine: Engine) -> None:
    """The size of a value makes no difference to its tag."""
    envelope = new_envelope()
    large = "E" * 10_000_000
    (one,) = enroll(sqlite_engine, envelope, Person(last=large))
    with Session(sqlite_engine) as session:
        envelope.attach(session)

        assert (one,) == found(session, Person.last == large)
        assert found(session, Person.last == large + "a") == ()
        assert (one,) == found(session, matches(Person.last_folded, large.lower()))


def test_equal_rows_have_equal_tags(engine: Engine) -> None:
    """An INSERT and an UPDATE store the same tags."""
    envelope = new_envelope()
    enroll(engine, envelope, Person(last="Nobody"))
    with Session(engine) as session:
        owners = [Person(last=ADA, born=BORN), Person()]
        for owner in owners:
            envelope.enroll(session, owner, secret=SECRET)
        first, second = owners
        with envelope.unlock(session, second, secret=SECRET):
            second.last, second.born = ADA, BORN
            session.flush()
            rows = session.execute(
                select(Person.name_index, Person.last_start, Person.last_exact).where(
                    Person.id.in_([first.id, second.id])
                )
            ).all()

    assert rows[0] == rows[1]
    assert None not in rows[0]


def test_no_value_leaves_with_a_statement(sqlite_engine: Engine) -> None:
    """Neither the text of a statement nor its parameters hold a value, whatever the kind."""
    for condition in (
        Person.last.startswith("Lov"),
        matches(Person.name_index, last=ADA, born=BORN),
        Person.email == "ada@example.org",
    ):
        assert "ada" not in str(condition.compile()).lower()
        assert "ada" not in repr(condition.compile().binds).lower()
