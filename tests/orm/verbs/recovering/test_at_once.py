"""Two processes use one recovery code at the same moment: one resets the secret, the other is refused, and
nothing is half made."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    Envelope,
    KdfProfile,
    RecoveryCode,
    ServerKeyring,
    TransactionConflictError,
    UnlockError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.orm.models import SECRET, User
from tests.orm.verbs.recovering.conftest import Forgetful

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


class Process:
    """A process of its own, which waits for the other one once it has derived the key of its new secret."""

    def __init__(self, engine: Engine, isolation: str | None, together: threading.Barrier) -> None:
        options: dict[str, Any] = {} if isolation is None else {"isolation_level": isolation}
        self.engine = create_engine(engine.url, **options)
        if engine.dialect.name == "sqlite":
            enforce_foreign_keys(self.engine)
        profile = KdfProfile.unsafe_for_tests()
        self.envelope = Envelope(kdf_profile=profile, server_keys=ServerKeyring([b"\x05" * 32]))
        perform = self.envelope.perform

        def derived(work: Any) -> Any:
            made = perform(work)
            if isinstance(work, Derivation):
                together.wait(30)
            return made

        self.envelope.perform = derived  # type: ignore[method-assign]

    def reset(self, user: int, code: RecoveryCode, new: str) -> RecoveryCode | Exception:
        try:
            with Session(self.engine) as session:
                owner = session.get_one(User, user)
                made = self.envelope.reset_secret(session, owner, recovery_code=code, new=new)
                session.commit()
                return made
        except (UnlockError, TransactionConflictError) as refused:
            return refused
        finally:
            self.engine.dispose()


def both(forgetful: Forgetful, codes: list[RecoveryCode], isolation: str | None) -> list[Any]:
    together = threading.Barrier(2)
    processes = [Process(forgetful.engine, isolation, together) for _ in codes]
    with ThreadPoolExecutor(2) as threads:
        running = [
            threads.submit(one.reset, forgetful.user, code, f"of the process {number}")
            for number, (one, code) in enumerate(zip(processes, codes, strict=True))
        ]
        return [one.result(60) for one in running]


def assert_one_won(forgetful: Forgetful, answers: list[Any]) -> None:
    (won,) = [number for number, one in enumerate(answers) if isinstance(one, RecoveryCode)]

    assert isinstance(answers[1 - won], (UnlockError, TransactionConflictError))
    assert forgetful.bodies(recovery_code=answers[won]) == ["of ada"]
    assert forgetful.bodies(secret=f"of the process {won}") == ["of ada"]
    for secret in (SECRET, f"of the process {1 - won}"):
        with pytest.raises(UnlockError):
            forgetful.bodies(secret=secret)
    assert forgetful.slots() == [("recovery", "in the safe"), ("secret", None)]


def test_one_code_in_two_processes_on_sqlite(lite: Forgetful) -> None:
    """Both have found the code good before either has written anything."""
    answers = both(lite, [lite.code, lite.code], None)

    assert_one_won(lite, answers)
    with pytest.raises(UnlockError):
        lite.bodies(recovery_code=lite.code)


@pytest.mark.parametrize("isolation", LEVELS)
def test_one_code_in_two_processes(postgres_engine: Engine, isolation: str) -> None:
    """The same on PostgreSQL, in every isolation level."""
    forgetful = Forgetful(postgres_engine)
    answers = both(forgetful, [forgetful.code, forgetful.code], isolation)

    assert_one_won(forgetful, answers)
    with pytest.raises(UnlockError):
        forgetful.bodies(recovery_code=forgetful.code)
