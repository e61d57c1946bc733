"""A slot is changed while another transaction starts an epoch: what was committed opens, or the later one is
told to run again."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, EscrowKey, KdfProfile, OpenedEscrowKey, ServerKeyring, should_retry
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.orm.models import SECRET, Base, User
from tests.prepared import tables_of

NEW = "another secret altogether"
ESCROW = OpenedEscrowKey.generate()
envelope = Envelope(
    kdf_profile=KdfProfile.unsafe_for_tests(),
    server_keys=ServerKeyring([bytes(range(32))]),
    escrow=EscrowKey(ESCROW.public_key),
)

Ways = dict[str, Any]


def enrolled(engine: Engine) -> int:
    """A user with a secret and a recovery code; the code is kept in `CODES`."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        user = User(email="ada@example.org", phone="1234")
        with envelope.enroll(session, user, secret=SECRET) as unlocked:
            CODES["first"] = unlocked.add_recovery_code(user)
            session.commit()
            return user.id


CODES: dict[str, str] = {}


def change(session: Session, user: User) -> Ways:
    envelope.change_secret(session, user, old=SECRET, new=NEW)
    return {"secret": NEW}


def set_new(session: Session, user: User) -> Ways:
    with envelope.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.set_secret(user, NEW)
        session.flush()
    return {"secret": NEW}


def add(session: Session, user: User) -> Ways:
    with envelope.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.add_secret(user, NEW, label="phone")
    return {"secret": NEW}


def add_code(session: Session, user: User) -> Ways:
    with envelope.unlock(session, user, secret=SECRET) as unlocked:
        return {"recovery_code": unlocked.add_recovery_code(user)}


def add_provider(session: Session, user: User) -> Ways:
    with envelope.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.add_provider(user, "server")
    return {"provider": "server", "reason": "test"}


def add_escrow(session: Session, user: User) -> Ways:
    with envelope.unlock(session, user, secret=SECRET) as unlocked:
        unlocked.add_escrow(user)
    return {"escrow_key": ESCROW, "reason": "test"}


def reset(session: Session, user: User) -> Ways:
    envelope.reset_secret(session, user, recovery_code=CODES["first"], new=NEW)
    return {"secret": NEW}


VERBS = [change, set_new, add, add_code, add_provider, add_escrow, reset]


def opens(engine: Engine, key: int, ways: Ways) -> bool:
    with Session(engine) as session:
        user = session.get_one(User, key)
        with envelope.unlock(session, user, **ways):
            return user.phone == "1234"


def attempt(work: Callable[[], Any]) -> str:
    """Whether a transaction was done, or is to be run again."""
    try:
        work()
    except Exception as error:
        if not should_retry(error):
            raise
        return "again"
    return "done"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
def test_an_epoch_with_an_older_snapshot_is_told(postgres_engine: Engine, verb: Any) -> None:
    """At REPEATABLE READ, a root rotation whose snapshot is older than a new slot is run again, and what was
    confirmed opens."""
    key = enrolled(postgres_engine)
    older = postgres_engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(older) as session:
        user = session.get_one(User, key)
        with envelope.unlock(session, user, secret=SECRET) as unlocked:
            with Session(postgres_engine) as other:
                ways = verb(other, other.get_one(User, key))
                other.commit()

            def rotate() -> None:
                unlocked.rotate(user, root=True)
                session.commit()

            outcome = attempt(rotate)
            session.rollback()

    assert outcome == "again"
    assert opens(postgres_engine, key, ways)


def test_an_epoch_during_the_derivation_of_a_new_secret(engine: Engine) -> None:
    """A root rotation that commits while `change_secret` derives makes it run again: the old secret opens the
    owner until then, and the new one afterwards, never neither."""
    key = enrolled(engine)
    with Session(engine) as session:
        steps = envelope.change_secret_steps(session, session.get_one(User, key), SECRET, NEW)

        def run() -> None:
            work, derived = next(steps), 0
            while True:
                if isinstance(work, Derivation):
                    derived += 1
                answer = envelope.perform(work)
                if derived == 2:
                    with Session(engine) as other:
                        user = other.get_one(User, key)
                        with envelope.unlock(other, user, secret=SECRET) as unlocked:
                            unlocked.rotate(user, root=True)
                            other.commit()
                    derived = 3
                try:
                    work = steps.send(answer)
                except StopIteration:
                    break
            session.commit()

        outcome = attempt(run)
        session.rollback()
        before = opens(engine, key, {"secret": SECRET})
        envelope.change_secret(session, session.get_one(User, key), old=SECRET, new=NEW)
        session.commit()

    assert (outcome, before) == ("again", True)
    assert opens(engine, key, {"secret": NEW})


@pytest.mark.parametrize("verb", [add, add_provider, add_escrow], ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
def test_a_double_click_adds_one_slot(postgres_engine: Engine, verb: Any, level: str) -> None:
    """The same slot, added by two transactions of which the second began before the first committed, is there
    once."""
    key = enrolled(postgres_engine)
    second_engine = postgres_engine.execution_options(isolation_level=level)
    with Session(second_engine) as second:
        user = second.get_one(User, key)
        with Session(postgres_engine) as first:
            verb(first, first.get_one(User, key))
            first.commit()
        try:
            verb(second, user)
            second.commit()
        except Exception:  # noqa: BLE001 - a refusal or a conflict: the count tells
            second.rollback()
    with Session(postgres_engine) as session:
        slots = envelope.slots(session, session.get_one(User, key))

    assert len({(slot.kind, slot.label, slot.provider) for slot in slots}) == len(slots) == 3
