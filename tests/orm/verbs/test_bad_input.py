"""What can be done wrong is a specific error with a code and a sentence that says what to do, and leaves
nothing half-made: the session goes on, and no row is left behind."""

import warnings
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, make_transient, sessionmaker

from sqlalchemy_envelope import (
    AlreadyEnrolledError,
    AsyncEnvelope,
    ConfigurationError,
    EnrollmentError,
    EnvelopeError,
    LockedError,
    LockReason,
    NotEnrolledError,
    SecretError,
    SessionLeftError,
    StatementRefusedError,
    UnlockError,
    ValueEncodingError,
    ValueTooLargeError,
    enforce_foreign_keys,
)
from tests.orm.conftest import Started
from tests.orm.helpful import assert_helpful
from tests.orm.models import SECRET, Base, Note, Page, User, envelope, statements_sent, stored, unlock

pytestmark = pytest.mark.any_database
MIB = 1024 * 1024


def counts(session: Session) -> tuple[int, ...]:
    """How many users, keys and slots there are."""
    tables = Base.metadata.tables
    return tuple(
        session.scalar(select(func.count()).select_from(tables[name])) or 0
        for name in ("users", "users_key", "users_keyslot")
    )


# Secrets


BAD_SECRETS: list[tuple[Any, str]] = [
    ("", "empty"),
    (b"", "empty"),
    ("x" * (10 * MIB), "longer"),
    (b"x" * (10 * MIB), "longer"),
    ("\u00e4" * 600, "longer"),
    ("p1ain\ud800text", "surrogate"),
    ("p1ain\ntext", "control"),
    ("p1ain\x00text", "control"),
    (12345678, "int"),
]


@pytest.mark.parametrize(("secret", "says"), BAD_SECRETS, ids=lambda one: repr(one)[:20])
def test_secrets_that_cannot_be_used(started: Started, secret: Any, says: str) -> None:
    """Neither enrolling nor unlocking nor changing takes such a secret; nothing was written, and the
    session goes on."""
    session = started.session
    before = counts(session)
    eve = User(email="eve@example.org")
    attempts = (
        lambda: envelope.enroll(session, eve, secret=secret),
        lambda: envelope.unlock(session, started.ada, secret=secret),
        lambda: envelope.change_secret(session, started.ada, old=SECRET, new=secret),
        lambda: envelope.change_secret(session, started.ada, old=secret, new="another secret"),
    )
    for attempt in attempts:
        with pytest.raises(SecretError) as caught:
            attempt()
        assert_helpful(caught.value, says=says, hides="p1ain")
    assert eve not in session
    session.commit()

    assert counts(session) == before
    with unlock(session, started.ada):
        pass


@pytest.mark.parametrize("wrong", ["wrong", SECRET + " ", SECRET.upper(), SECRET.encode() + b"\x00"])
def test_a_wrong_secret(started: Started, wrong: Any) -> None:
    """A wrong secret is `UnlockError`, one message for all; nothing is open after it, and the right one
    still works."""
    messages = set()
    for attempt in (
        lambda: envelope.unlock(started.session, started.ada, secret=wrong),
        lambda: envelope.change_secret(started.session, started.ada, old=wrong, new="another secret"),
    ):
        with pytest.raises(UnlockError) as caught:
            attempt()
        messages.add(str(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None or SECRET not in repr(caught.value.__context__)

    assert len(messages) == 1
    with unlock(started.session, started.ada):
        pass


# Values


@pytest.mark.parametrize("kind", ["text", "json"])
def test_values_over_16_mib(lite: Started, kind: str) -> None:
    """A value over 16 MiB is refused; one of exactly that is stored."""
    big = "x" * (16 * MIB)
    with unlock(lite.session, lite.ada):
        values = {"body": big + "p1aintext"} if kind == "text" else {"tags": [big]}
        lite.session.add(Note(user_id=1, **values))
        with pytest.raises(ValueTooLargeError) as caught:
            lite.session.flush()
        lite.session.rollback()
        assert_helpful(caught.value, says="16,777,216", hides="p1aintext")
        assert isinstance(caught.value, ValueEncodingError)
        assert lite.session.scalar(select(func.count()).select_from(Note)) == 0
        if kind == "text":
            lite.session.add(Note(user_id=1, body=big))
            lite.session.commit()
            assert lite.session.scalars(select(Note)).one().body == big


def test_a_lone_surrogate(started: Started) -> None:
    """Text that cannot be encoded is refused by type; its characters are nowhere in the error."""
    with unlock(started.session, started.ada):
        started.session.add(Note(user_id=1, body="p1aintext\ud800"))
        with pytest.raises(ValueEncodingError) as caught:
            started.session.flush()
        started.session.rollback()
        assert_helpful(caught.value, says="notes.body", hides="p1aintext")
        assert caught.value.__context__ is None
        started.session.add(Note(user_id=1, body="fine"))
        started.session.commit()


def test_one_bad_row_among_many(started: Started) -> None:
    """One value that does not fit refuses the whole statement before it is sent."""
    with unlock(started.session, started.ada):
        started.session.connection()
        rows: list[Any] = [{"user_id": 1, "body": "fine"}, {"user_id": 1, "body": 5}]
        with statements_sent(started.engine) as sent, pytest.raises(ValueEncodingError):
            started.session.execute(sa.insert(Note), rows)
        assert sent == []
        started.session.commit()
        assert started.session.scalar(select(func.count()).select_from(Note)) == 0


# Owners


def test_an_owner_that_was_not_enrolled(started: Started) -> None:
    """A persistent owner without keys can be added and loaded; using its keys says to enroll it."""
    session = started.session
    eve = User(email="eve@example.org")
    session.add(eve)
    session.commit()
    for attempt in (
        lambda: unlock(session, eve),
        lambda: envelope.change_secret(session, eve, old=SECRET, new="another secret"),
        lambda: envelope.rebind(session, eve, secret=SECRET),
    ):
        with pytest.raises(NotEnrolledError) as caught:
            attempt()
        assert_helpful(caught.value, says="enroll")
    session.add(Note(user=eve, body="p1aintext"))
    with pytest.raises(LockedError) as locked:
        session.flush()
    assert_helpful(locked.value, says="its User has no keys yet", hides="p1aintext")
    assert locked.value.reason is LockReason.NOT_ENROLLED
    session.rollback()
    eve.phone = "p1aintext"
    with pytest.raises(LockedError):
        session.flush()
    session.rollback()
    with envelope.enroll(session, eve, secret=SECRET):
        eve.phone = "1"
        session.commit()
        assert eve.phone == "1"


def test_enrolling_twice(started: Started) -> None:
    """A second enrolment is refused before anything is written, in the same session and in another."""
    before = counts(started.session)
    with pytest.raises(AlreadyEnrolledError) as caught:
        envelope.enroll(started.session, started.ada, secret="another secret")
    assert_helpful(caught.value, says="unlock")
    with started.fresh() as other, pytest.raises(AlreadyEnrolledError):
        envelope.enroll(other, other.get_one(User, 1), secret="another secret")
    started.session.commit()

    assert counts(started.session) == before
    with unlock(started.session, started.ada):
        pass


def test_enrolling_twice_in_one_transaction(started: Started) -> None:
    """The same before the first enrolment was committed."""
    eve = User(email="eve@example.org")
    envelope.enroll(started.session, eve, secret=SECRET)
    with pytest.raises(AlreadyEnrolledError):
        envelope.enroll(started.session, eve, secret=SECRET)
    started.session.commit()
    with unlock(started.session, eve):
        pass


def test_an_enrolment_whose_row_cannot_be_written(started: Started) -> None:
    """A constraint failure of the owner's own row leaves no key behind, and the session goes on after a
    rollback."""
    before = counts(started.session)
    with pytest.raises(sa.exc.IntegrityError) as caught:
        envelope.enroll(started.session, User(email="ada@example.org", phone="p1aintext"), secret=SECRET)
    assert "p1aintext" not in str(caught.value)
    started.session.rollback()

    assert counts(started.session) == before
    with envelope.enroll(started.session, User(email="eve@example.org"), secret=SECRET):
        started.session.commit()


def test_transient_and_deleted_owners(started: Started) -> None:
    """An owner that is not in the database, or not any more, cannot be unlocked or enrolled by mistake."""
    session = started.session
    with pytest.raises(NotEnrolledError) as caught:
        unlock(session, User(email="eve@example.org"))
    assert_helpful(caught.value, says="enroll")
    pending = User(email="eve@example.org")
    session.add(pending)
    with pytest.raises(NotEnrolledError):
        unlock(session, pending)
    session.rollback()
    session.delete(started.ben)
    for attempt in (
        lambda: unlock(session, started.ben),
        lambda: envelope.enroll(session, started.ben, secret=SECRET),
    ):
        with pytest.raises(EnrollmentError) as deleted:
            attempt()
        assert_helpful(deleted.value, says="deleted")
    session.flush()
    with pytest.raises(EnrollmentError):
        unlock(session, started.ben)
    session.commit()
    with pytest.raises(EnvelopeError):
        unlock(session, started.ben)
    with pytest.raises(EnvelopeError):
        envelope.enroll(session, started.ben, secret=SECRET)
    session.rollback()

    assert counts(session) == (1, 2, 1)


def test_an_owner_deleted_by_somebody_else(started: Started) -> None:
    """An owner whose row was deleted behind the session has no keys; enrolling it writes none."""
    with started.engine.begin() as connection:
        connection.execute(sa.delete(User).where(User.id == 2))
    with pytest.raises(NotEnrolledError):
        unlock(started.session, started.ben)


def test_an_owner_of_another_session(lite: Started) -> None:
    """An owner that is detached, or in another session, is unlocked all the same: its identity is what
    counts."""
    with lite.fresh() as other, unlock(other, lite.ada):
        other.add(Note(user_id=1, body="x"))
        other.commit()
    lite.session.expunge(lite.ada)
    with unlock(lite.session, lite.ada):
        assert lite.session.scalars(select(Note)).one().body == "x"


def test_an_owner_made_transient(lite: Started) -> None:
    """An object that was made transient is no owner any more."""
    make_transient(lite.ada)
    with pytest.raises(NotEnrolledError):
        unlock(lite.session, lite.ada)


@pytest.mark.parametrize("thing", [object(), None, User, "user", 1, Note()])
def test_things_that_own_no_keys(lite: Started, thing: Any) -> None:
    """What is no key owner is told so, and how to make it one."""
    for attempt in (
        lambda: envelope.enroll(lite.session, thing, secret=SECRET),
        lambda: unlock(lite.session, thing),
    ):
        with pytest.raises((ConfigurationError, EnrollmentError)) as caught:
            attempt()
        assert_helpful(caught.value, says="KeyOwner" if thing is not None else "unlock_unknown")


async def test_the_wrong_kind_of_session_for_the_envelope(lite: Started) -> None:
    """An AsyncSession given to `Envelope`, and a Session to `AsyncEnvelope`, are told which one to use."""
    with pytest.raises(ConfigurationError) as caught:
        envelope.unlock(AsyncSession(), lite.ada, secret=SECRET)  # type: ignore[arg-type]
    assert_helpful(caught.value, says="AsyncEnvelope")

    with pytest.raises(ConfigurationError) as caught:
        await AsyncEnvelope(envelope).unlock(lite.session, lite.ada, secret=SECRET)  # type: ignore[arg-type]
    assert_helpful(caught.value, says="use Envelope")


def test_an_enrolment_that_is_not_awaited(lite: Started) -> None:
    """A forgotten `await` would store nobody; it warns, as a coroutine does."""
    forgotten = AsyncEnvelope(envelope).enroll(AsyncSession(), lite.ada, secret=SECRET)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del forgotten


async def test_the_wrong_kind_of_with(lite: Started) -> None:
    """`with` where `async with` belongs, and the other way about, are told which of the two it is; nothing is
    opened and nothing warned."""
    asynchronous = AsyncEnvelope(envelope)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for call in (asynchronous.unlock, asynchronous.enroll):
            with pytest.raises(ConfigurationError) as caught, call(AsyncSession(), lite.ada, secret=SECRET):  # type: ignore[attr-defined]
                pass
            assert_helpful(caught.value, says="`async with`, and not `with`")
        for plain in (envelope.write_only(lite.session), asynchronous.write_only(AsyncSession())):
            with pytest.raises(ConfigurationError) as caught:
                async with plain:  # type: ignore[attr-defined]
                    pass
            assert_helpful(caught.value, says="`with`, and not `async with`")


@pytest.mark.parametrize("thing", ["x", None, 1, b"bytes", object(), Note()])
def test_decrypting_what_is_not_sealed(lite: Started, thing: Any) -> None:
    """`decrypt` takes what a select of columns gave, and tells the type of anything else, not the value."""
    with unlock(lite.session, lite.ada) as unlocked, pytest.raises(ConfigurationError) as caught:
        unlocked.decrypt(thing)
    assert_helpful(caught.value, says=type(thing).__name__, hides="b'bytes'")


# Using and leaving


def test_using_for_an_owner_that_is_not_unlocked(started: Started) -> None:
    """`using` takes an owner that is unlocked here, and says so for any other."""
    with unlock(started.session, started.ada) as unlocked:
        for owner in (started.ben, User(email="eve@example.org")):
            with pytest.raises(LockedError) as caught, unlocked.using(owner):
                pass
            assert_helpful(caught.value, says="unlock")
        with pytest.raises(ConfigurationError), unlocked.using(Note()):
            pass


def test_an_unlocked_session_after_it_was_left(started: Started) -> None:
    """Every use of one that was left is `SessionLeftError`; the keys are gone from it."""
    with unlock(started.session, started.ada) as unlocked:
        started.session.add(Note(user_id=1, body="p1aintext"))
        started.session.commit()
        started.session.expunge_all()
    ada = started.session.get_one(User, 1)
    sealed: Any = started.session.scalar(select(Note.body))
    attempts = (
        unlocked.__enter__,
        unlocked.lock,
        lambda: unlocked.decrypt(sealed),
        lambda: unlocked.using(ada).__enter__(),
    )
    for attempt in attempts:
        with pytest.raises(SessionLeftError) as caught:
            attempt()
        assert_helpful(caught.value, says="unlock again")
    with pytest.raises(LockedError):
        _ = started.session.scalars(select(Note)).one().body
    with unlock(started.session, ada):
        assert started.session.scalars(select(Note)).one().body == "p1aintext"


def test_entering_twice(lite: Started) -> None:
    """One unlocked session is entered once at a time."""
    with unlock(lite.session, lite.ada) as unlocked:
        with pytest.raises(ConfigurationError) as caught:
            unlocked.__enter__()
        assert_helpful(caught.value, says="unlock again")
        lite.session.add(Note(user_id=1, body="x"))
        lite.session.commit()


def test_an_unlocked_session_that_was_never_entered(lite: Started) -> None:
    """`unlock` without `with` opens nothing."""
    unlocked = unlock(lite.session, lite.ada)
    lite.session.add(Note(user_id=1, body="x"))
    with pytest.raises(LockedError):
        lite.session.flush()
    lite.session.rollback()
    unlocked.lock()
    with pytest.raises(SessionLeftError):
        unlocked.__enter__()


# Engines


def test_sqlite_without_foreign_keys(tmp_path: Any) -> None:
    """An engine on which deleting an owner would leave its keys is refused before anything is written, with
    the cure."""
    engine = create_engine(f"sqlite:///{tmp_path / 'loose.db'}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        eve = User(email="eve@example.org")
        with pytest.raises(ConfigurationError) as caught:
            envelope.enroll(session, eve, secret=SECRET)
        assert_helpful(caught.value, says="enforce_foreign_keys(engine)")
        assert eve not in session
        assert counts(session) == (0, 0, 0)
        session.add(eve)
        session.flush()
        with pytest.raises(ConfigurationError):
            unlock(session, eve)
    engine.dispose()


def test_tables_that_were_not_created(engine: Engine) -> None:
    """Key tables that a migration forgot are named, with what makes them, and nothing is enrolled."""
    User.__table__.create(engine)  # type: ignore[attr-defined]
    with Session(engine) as session:
        with pytest.raises(ConfigurationError) as caught:
            envelope.enroll(session, User(email="eve@example.org"), secret=SECRET)
        assert_helpful(caught.value, says="no table users_key, which holds keys")
        assert "users_key" in str(caught.value.__cause__)
        session.rollback()
        assert session.scalar(select(func.count()).select_from(User)) == 0


@pytest.mark.parametrize("column", ["used_at", "unacknowledged_since"])
def test_columns_that_a_later_release_brought(engine: Engine, column: str) -> None:
    """A column of keys that the schema lacks is named, for whoever reads and for whoever writes; a column of
    the application's own is not ours to explain."""
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        envelope.enroll(session, eve := User(email="eve@example.org"), secret=SECRET)
        session.commit()
        session.execute(text(f"ALTER TABLE users_keyslot DROP COLUMN {column}"))
        session.commit()
        dan = User(email="dan@example.org")
        for verb in (lambda: unlock(session, eve), lambda: envelope.enroll(session, dan, secret=SECRET)):
            with pytest.raises(ConfigurationError) as caught:
                verb()
            assert_helpful(caught.value, says=f"no column users_keyslot.{column}. A later release")
            assert column in str(caught.value.__cause__)
            session.rollback()
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT no_such_column FROM users"))


@pytest.mark.parametrize("wrong", ["sqlite://", sessionmaker(), None])
def test_what_is_no_engine(wrong: Any) -> None:
    """Foreign keys are enforced on an engine, and nothing else is taken for one."""
    with pytest.raises(ConfigurationError) as caught:
        enforce_foreign_keys(wrong)
    assert_helpful(caught.value, says="takes the engine that create_engine()")


def test_the_session_goes_on_after_a_refused_statement(started: Started) -> None:
    """A refusal of ours costs the statement and nothing else: what was flushed before it can still be
    committed."""
    session = started.session
    with unlock(session, started.ada):
        note = Note(user_id=1, body="kept")
        session.add(note)
        session.flush()
        for refused in (select(Note).order_by(Note.body), sa.insert(Note).values(body="x")):
            with pytest.raises(StatementRefusedError):
                session.execute(refused)
        session.commit()
        note_id = note.id

    assert stored(started.engine, Note.__table__.c.body, note_id) is not None  # type: ignore[attr-defined]


def test_a_locked_enrolment_does_not_take_the_transaction_along(started: Started) -> None:
    """`enroll` beside another new owner with values of its own is refused before the flush, and can be done
    in order."""
    session = started.session
    other = User(email="other@example.org", phone="1")
    session.add(other)
    eve = User(email="eve@example.org", phone="2")
    with pytest.raises(NotEnrolledError) as caught:
        envelope.enroll(session, eve, secret=SECRET)
    assert_helpful(caught.value, says="enroll")
    session.expunge(other)
    with envelope.enroll(session, eve, secret=SECRET), envelope.enroll(session, other, secret=SECRET):
        session.commit()
        assert (eve.phone, other.phone) == ("2", "1")


def test_errors_are_never_statement_errors(started: Started) -> None:
    """Errors of ours reach the caller as themselves: SQLAlchemy's wrapper would print the parameters."""
    session = started.session
    for attempt in (
        lambda: session.execute(sa.insert(Note).values(user_id=1, body="p1aintext")),
        lambda: session.execute(sa.insert(Note), [{"user_id": 1, "body": "p1aintext"}]),
        lambda: session.execute(sa.insert(Page), [{"user_id": 1, "text": "p1aintext"}]),
        lambda: session.connection().execute(Note.__table__.insert(), [{"user_id": 1, "body": "p1aintext"}]),  # type: ignore[attr-defined]
    ):
        with pytest.raises(EnvelopeError) as caught:
            attempt()
        assert "p1aintext" not in str(caught.value)
        session.rollback()
