"""One of the two databases is lost, set back, altered, unreachable or slow: a clear error, and nothing
corrupted."""

import datetime as dt
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, func, insert, select, update
from sqlalchemy.exc import OperationalError

from sqlalchemy_envelope import KeyShareError, UnlockError
from tests.orm.two_databases.conftest import Two
from tests.orm.two_databases.split_models import (
    NEW,
    SECRET,
    Key,
    Share,
    Slot,
    User,
    envelope,
    new_user,
    sessions_on,
)


def rows_of(engine: Engine) -> list[dict[str, Any]]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(select(Share.__table__)).mappings()]


def file_of(engine: Engine) -> Path:
    return Path(engine.url.database or "")


@pytest.fixture
def set_back(tmp_path: Path) -> Callable[[Engine], Callable[[], None]]:
    """Keeps an SQLite file as it is now, and gives what sets it back."""

    def keep(engine: Engine) -> Callable[[], None]:
        engine.dispose()
        kept = tmp_path / f"{file_of(engine).name}.kept"
        shutil.copy(file_of(engine), kept)

        def back() -> None:
            engine.dispose()
            shutil.copy(kept, file_of(engine))

        return back

    return keep


def test_without_the_share_no_secret_is_judged(two: Two) -> None:
    """The right secret and a wrong one meet the same error, which is no failed log-in and names the
    table; what is unlocked already goes on, and the rows put back heal all."""
    with two.sessions() as session:
        ada = new_user(session)
        kept = rows_of(two.second)
        with envelope.unlock(session, ada, secret=SECRET):
            with two.second.begin() as connection:
                connection.execute(delete(Share))
            for secret in (SECRET, NEW):
                with pytest.raises(KeyShareError, match="users_keyshare") as refused:
                    envelope.unlock(session, ada, secret=secret)
                assert not isinstance(refused.value, UnlockError)
            ada.phone = "1234"
            session.commit()
        with pytest.raises(KeyShareError):
            envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        key = ada.id
    with two.second.begin() as connection:
        connection.execute(insert(Share), kept)

    assert two.opens(key, SECRET) == "1234"


@pytest.mark.parametrize("share", [b"\x00" * 32, b"\x01" * 31, b""], ids=["another", "cut", "empty"])
def test_an_altered_share_is_told_from_a_wrong_secret(lite_two: Two, share: bytes) -> None:
    """A share proves its id: other bytes under the id are found out, whatever the secret is."""
    with lite_two.sessions() as session:
        key = new_user(session).id
    with lite_two.second.begin() as connection:
        connection.execute(update(Share).values(share=share))
    with lite_two.sessions() as session:
        ada = session.get_one(User, key)
        for secret in (SECRET, NEW):
            with pytest.raises(KeyShareError, match="was altered"):
                envelope.unlock(session, ada, secret=secret)


def test_exchanged_shares_are_found_out(lite_two: Two) -> None:
    """The shares of two owners, exchanged, open nobody and are no wrong secrets."""
    with lite_two.sessions() as session:
        keys = [new_user(session, name).id for name in ("ada", "ben")]
    (ada, ben) = rows_of(lite_two.second)
    with lite_two.second.begin() as connection:
        for one, other in ((ada, ben), (ben, ada)):
            connection.execute(
                update(Share).where(Share.share_id == one["share_id"]).values(share=other["share"])
            )

    assert [lite_two.opens(key, SECRET) for key in keys] == ["KeyShareError"] * 2


def test_a_slot_that_names_another_share_or_none_does_not_open(lite_two: Two) -> None:
    """The id is under the wrap: a slot that was pointed at another owner's share, or at none, is altered."""
    with lite_two.sessions() as session:
        ada, ben = new_user(session), new_user(session, "ben")
        slots = dict(
            session.execute(select(Key.owner_id, Slot.kdf).join(Slot, Slot.key_id == Key.key_id)).all()
        )
        parts = [slots[one.id].split("$") for one in (ada, ben)]
        theirs = "$".join([*parts[0][:3], parts[1][3], parts[0][4]])
        none = "$".join([*parts[0][:3], parts[0][3].partition(",share=")[0], parts[0][4]])
        for kdf in (theirs, none):
            session.execute(update(Slot).where(Slot.kdf == slots[ada.id]).values(kdf=kdf))
            session.commit()

            assert lite_two.opens(ada.id, SECRET) == "UnlockError"

            session.execute(update(Slot).where(Slot.kdf == kdf).values(kdf=slots[ada.id]))
            session.commit()

        assert lite_two.opens(ada.id, SECRET) == "of ada"


def test_the_first_database_set_back_opens_with_the_secret_of_then(
    lite_two: Two, set_back: Callable[[Engine], Callable[[], None]]
) -> None:
    """The share of a changed secret is kept for a while, so that an older state of the first database opens.
    Once the sweep has deleted it, neither a copy from then nor its secret opens anything."""
    with lite_two.sessions() as session:
        ada = new_user(session)
        key = ada.id
        session.close()
        back = set_back(lite_two.first)
    with lite_two.sessions() as session:
        envelope.change_secret(session, session.get_one(User, key), old=SECRET, new=NEW)
        session.commit()
        envelope.sweep_shares(session, User)
    back()

    assert [lite_two.opens(key, one) for one in (SECRET, NEW)] == ["of ada", "UnlockError"]

    with lite_two.sessions() as session:
        envelope.change_secret(session, session.get_one(User, key), old=SECRET, new=NEW)
        session.commit()
        for _ in range(2):
            envelope.sweep_shares(session, User)
            with lite_two.second.begin() as connection:
                noted = update(Share).where(Share.unused_since.is_not(None))
                connection.execute(noted.values(unused_since=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
    back()

    assert [lite_two.opens(key, one) for one in (SECRET, NEW)] == ["KeyShareError"] * 2


def test_the_second_database_set_back_lacks_shares_and_says_so(
    lite_two: Two, set_back: Callable[[Engine], Callable[[], None]]
) -> None:
    """Owners whose secret changed since are told apart from the others and counted, and the newer rows
    added to the older state open all."""
    with lite_two.sessions() as session:
        ada, ben = new_user(session).id, new_user(session, "ben").id
        session.close()
        back = set_back(lite_two.second)
    with lite_two.sessions() as session:
        envelope.change_secret(session, session.get_one(User, ada), old=SECRET, new=NEW)
        session.commit()
    newer = rows_of(lite_two.second)
    back()

    assert [lite_two.opens(ada, one) for one in (SECRET, NEW)] == ["KeyShareError"] * 2
    assert lite_two.opens(ben, SECRET) == "of ben"
    with lite_two.sessions() as session:
        found = envelope.sweep_shares(session, User)
    assert (found.shares, found.unused, found.deleted) == (2, 1, 0)
    assert (found.slots_without_share, found.owners_locked_out, found.locked_out) == (1, 1, ((ada,),))
    older = {row["share_id"] for row in rows_of(lite_two.second)}
    with lite_two.second.begin() as connection:
        connection.execute(insert(Share), [row for row in newer if row["share_id"] not in older])
    assert lite_two.opens(ada, NEW) == "of ada"


def unreachable(lite_two: Two, tmp_path: Path) -> Any:
    away = create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'second.db'}")
    return sessions_on(lite_two.first, away)


def test_while_the_second_database_is_away_nothing_is_written(lite_two: Two, tmp_path: Path) -> None:
    """An unreachable second database is the driver's own error; whoever commits in spite of it has changed
    nothing, and all goes on when it is back."""
    with lite_two.sessions() as session:
        key = new_user(session).id
    with unreachable(lite_two, tmp_path)() as session:
        ada = session.get_one(User, key)
        ben = User(email="ben@example.org", phone="of ben")
        for attempt in (
            lambda: envelope.unlock(session, ada, secret=SECRET),
            lambda: envelope.change_secret(session, ada, old=SECRET, new=NEW),
            lambda: envelope.enroll(session, ben, secret=SECRET),
        ):
            with pytest.raises(OperationalError):
                attempt()
            session.commit()

        assert session.scalar(select(func.count()).select_from(Key)) == 2
        assert session.scalar(select(func.count()).select_from(User)) == 1

    assert lite_two.opens(key, SECRET) == "of ada"


def test_a_recovery_code_opens_without_the_second_database(lite_two: Two, tmp_path: Path) -> None:
    """A code has no share: it opens an owner whose share is lost. A reset while the second database is
    away uses no code up, and gives the owner a secret with a new share when it is back."""
    with lite_two.sessions() as session:
        ada = new_user(session)
        key = ada.id
        with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            code = str(unlocked.add_recovery_code(ada))
            session.commit()
        session.execute(delete(Share))
        session.commit()
    with unreachable(lite_two, tmp_path)() as session:
        ada = session.get_one(User, key)
        with envelope.unlock(session, ada, recovery_code=code):
            assert ada.phone == "of ada"
        with pytest.raises(OperationalError):
            envelope.reset_secret(session, ada, recovery_code=code, new=NEW)
        session.commit()
    with lite_two.sessions() as session:
        envelope.reset_secret(session, session.get_one(User, key), recovery_code=code, new=NEW)
        session.commit()

    assert [lite_two.opens(key, one) for one in (SECRET, NEW)] == ["UnlockError", "of ada"]


def test_a_second_database_that_falls_away_leaves_the_secret_as_it_was(
    lite_two: Two,
) -> None:
    """It falls away between the read of the old share and the write of the new one: the old secret opens."""
    with lite_two.sessions() as session:
        ada = new_user(session)
        with lite_two.second.begin() as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full BEFORE INSERT ON users_keyshare BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        with pytest.raises(Exception, match="full"):
            envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()

        assert [lite_two.opens(ada.id, one) for one in (SECRET, NEW)] == ["of ada", "UnlockError"]


def test_a_slow_second_database_is_waited_for_and_then_given_up(lite_two: Two) -> None:
    """While another writer holds it, a change of the secret waits as long as the driver says, and fails
    whole."""
    engine = create_engine(lite_two.second.url, connect_args={"timeout": 0.05})
    with lite_two.sessions() as session:
        key = new_user(session).id
    holder = sqlite3.connect(file_of(lite_two.second), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with sessions_on(lite_two.first, engine)() as session:
        ada = session.get_one(User, key)
        with pytest.raises(OperationalError, match="locked"):
            envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
    holder.execute("ROLLBACK")
    holder.close()
    engine.dispose()

    assert [lite_two.opens(key, one) for one in (SECRET, NEW)] == ["of ada", "UnlockError"]
