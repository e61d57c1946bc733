"""Users are found by an encrypted, unique email address before anybody is unlocked, as a log-in needs it."""

import pytest
from sqlalchemy import Engine, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from sqlalchemy_envelope import ConfigurationError, Envelope, KdfProfile, ServerKeyring, StatementRefusedError
from tests.orm.indexes.server_models import SECRET, Invitation, User, enroll, new_envelope


def found(session: Session, condition: object) -> tuple[int, ...]:
    return tuple(sorted(session.scalars(select(User.id).where(condition)).all()))  # type: ignore[arg-type]


def test_equal_values_are_found_while_everybody_is_locked(engine: Engine) -> None:
    """Each comparison for equality gives the rows that it would give on a plain column."""
    envelope = new_envelope()
    ada, ben = enroll(engine, envelope, "ada@example.org", "ben@example.org")
    with Session(engine) as session:
        envelope.attach(session)
        other = aliased(User)

        assert (ada,) == found(session, User.email == "ada@example.org")
        assert found(session, User.email == "eve@example.org") == ()
        assert (ben,) == found(session, User.email != "ada@example.org")
        assert (ada, ben) == found(session, User.email.in_(["ada@example.org", "ben@example.org"]))
        assert found(session, User.email.in_([])) == ()
        assert (ben,) == found(session, User.email.not_in(["ada@example.org"]))
        assert (ben,) == found(session, ~(User.email == "ada@example.org"))
        assert ben == session.query(User).filter_by(email="ben@example.org").one().id
        pairs = select(User.id, other.id).join(other, other.email == User.email).order_by(User.id)
        assert [(ada, ada), (ben, ben)] == [tuple(row) for row in session.execute(pairs)]


def test_the_index_follows_each_write(engine: Engine) -> None:
    """A changed value is found, the value before it is not, and None has no tag."""
    envelope = new_envelope()
    (ada,) = enroll(engine, envelope, "ada@example.org")
    with Session(engine) as session:
        user = session.get_one(User, ada)
        with envelope.unlock(session, user, secret=SECRET) as unlocked:
            user.email = "new@example.org"
            session.commit()
            assert found(session, User.email == "ada@example.org") == ()
            assert (ada,) == found(session, User.email == "new@example.org")
            with unlocked.using(user):
                session.execute(update(User).where(User.id == ada).values(email="core@example.org"))
            assert (ada,) == found(session, User.email == "core@example.org")
            user.email = None
            session.commit()
            assert user.email_index is None
            assert (ada,) == found(session, User.email.is_(None))


def test_a_second_row_with_the_value_is_refused_without_showing_it(engine: Engine) -> None:
    """A unique index refuses an equal value, and the error shows no value."""
    envelope = new_envelope()
    enroll(engine, envelope, "ada@example.org")
    with Session(engine) as session, pytest.raises(IntegrityError) as raised:
        envelope.enroll(session, User(email="ada@example.org"), secret=SECRET)

    assert "ada@" not in str(raised.value)


def test_a_process_without_the_server_keys_finds_and_writes_nothing(engine: Engine) -> None:
    """Without the index key a look-up is an error, and not an empty result."""
    enroll(engine, new_envelope(), "ada@example.org")
    without = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with Session(engine) as session:
        without.attach(session)
        with pytest.raises(ConfigurationError, match="server_keys"):
            found(session, User.email == "ada@example.org")


def test_an_unlocked_session_says_whose_index_keys_they_are(sqlite_engine: Engine) -> None:
    """Of several envelopes in a process, that of the unlocked session around finds and writes."""
    envelope, other = new_envelope(), Envelope(server_keys=ServerKeyring([bytes(32)]))
    (ada,) = enroll(sqlite_engine, envelope, "ada@example.org")
    with envelope.server_mode(reason="test"), Session(sqlite_engine) as session:
        session.add(User(email="ben@example.org"))
        session.flush()

        assert (ada,) == found(session, User.email == "ada@example.org")
    with Session(sqlite_engine) as session, pytest.raises(ConfigurationError, match="attach"):
        found(session, User.email == "ada@example.org")
    del other


def test_what_an_index_does_not_answer_is_refused(sqlite_engine: Engine) -> None:
    """Every other comparison is refused where the statement is built, and a tag is written by nobody else."""
    enroll(sqlite_engine, new_envelope())
    for make in (
        lambda: User.email < "b",
        lambda: User.email.like("a%"),
        lambda: User.email.desc(),
        lambda: User.email == select(User.id).scalar_subquery(),
        lambda: User.email.in_(select(User.id)),
        lambda: User.email.in_([select(User.id).scalar_subquery()]),
        lambda: User.email.in_("ada@example.org"),
    ):
        with pytest.raises(StatementRefusedError):
            make()
    with Session(sqlite_engine) as session, pytest.raises(StatementRefusedError):
        session.execute(update(User).values(email_index=b"x" * 16))


def test_null_is_compared_as_sql_compares_it(engine: Engine) -> None:
    """A row without a value is neither equal nor unequal; it is outside of the empty list alone. The same
    holds before the first value is written."""
    envelope = new_envelope()
    (none,) = enroll(engine, envelope, None)
    with Session(engine) as session:
        envelope.attach(session)

        def negated() -> list[tuple[int, ...]]:
            conditions = (
                User.email != "ada@example.org",
                User.email.not_in(["ada@example.org"]),
                ~User.email.in_(["ada@example.org"]),
                User.email.not_in(["eve@example.org", None]),
                ~User.email.in_([None]),
                User.email.not_in([]),
            )
            return [found(session, one) for one in conditions]

        before = negated()
        envelope.enroll(session, User(email="ada@example.org"), secret=SECRET)
        ada = found(session, User.email == "ada@example.org")[0]

        assert before == [(), (), (), (), (), (none,)]
        assert negated() == [(), (), (), (), (), (none, ada)]


def test_columns_of_two_tables_are_not_compared(sqlite_engine: Engine) -> None:
    """Each table has index keys of its own, so equal values have other tags: refused, and not empty."""
    envelope = new_envelope()
    enroll(sqlite_engine, envelope, "ada@example.org")
    with Session(sqlite_engine) as session:
        envelope.attach(session)
        with pytest.raises(StatementRefusedError):
            session.execute(select(User.id).join(Invitation, Invitation.email == User.email))
