"""Keys do not cross a fork, and nothing that the library owns holds one after the unlocked session is left.

What is scanned is what Python can show: every object the collector knows, and, in a process of its own,
that process's whole memory. CPython and OpenSSL make copies that nobody can wipe; the last tests say which of
them were found.
"""

import gc
import json
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError, SessionForkedError, SessionLeftError, UnlockError
from sqlalchemy_envelope.crypto.aead import ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import Purpose
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, Page, User, envelope, unlock

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


_of_others: list[object] = []


@pytest.fixture(autouse=True)
def nothing_of_others() -> Iterator[None]:
    """Other test modules of this process have keys among their constants; those are not looked at."""
    _of_others[:] = [one for one in gc.get_objects() if type(one) in (KeyBytes, ValueCipher)]
    yield
    _of_others.clear()


def live_keys() -> list[KeyBytes]:
    """Every key in this process that came with the test and has not been wiped."""
    return [one for one in _new_objects() if type(one) is KeyBytes and any(one.buffer)]


def live_ciphers() -> list[ValueCipher]:
    return [one for one in _new_objects() if type(one) is ValueCipher]


def living() -> tuple[int, int, int]:
    """How many keys that hold something, ciphers, and keyrings with anything in them; in one look, for the
    collection before it is what takes time."""
    new = _new_objects()
    return (
        sum(type(one) is KeyBytes and any(one.buffer) for one in new),
        sum(type(one) is ValueCipher for one in new),
        sum(type(one) is Keyring and len(one) > 0 for one in new),
    )


def _new_objects() -> list[object]:
    gc.collect()
    before = {id(one) for one in _of_others}
    return [one for one in gc.get_objects() if id(one) not in before]


def in_child(work: Callable[[], None]) -> str:
    """Run something in a forked child; what it says went wrong, or nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            work()
        except BaseException:  # noqa: BLE001 - the child must not go on into pytest
            said = traceback.format_exc()
        finally:
            os.write(write, said.encode()[:60_000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def filled(lite: Started) -> Started:
    """Ada has a note and a page, nothing is loaded and nobody is unlocked."""
    with unlock(lite.session, lite.ada):
        lite.session.add_all([Note(user_id=1, body="hers", tags=["a"]), Page(user_id=1, text="page")])
        lite.session.commit()
    lite.session.expunge_all()
    return lite


def test_a_forked_child_has_no_keys_and_the_parent_goes_on(filled: Started) -> None:
    """In the child every use says that keys do not cross a fork; the parent reads and writes as before."""
    with filled.fresh() as session:
        user = session.get_one(User, 1)
        with unlock(session, user) as unlocked:
            loaded = session.scalars(select(Note)).one()
            session.expire(loaded)
            sealed_type = Note.__table__.c.body.type
            assert loaded.body == "hers"
            session.expire(loaded, ["body"])

            def child() -> None:
                assert live_keys() == []
                assert live_ciphers() == []
                assert not unlocked.is_open
                for use in (unlocked.__enter__, unlocked.lock, lambda: unlocked.using(user).__enter__()):
                    with pytest.raises(SessionForkedError):
                        use()
                assert sealed_type is not None
                # A connection of its own: one that crossed the fork is not the child's to use.
                filled.engine.dispose(close=False)
                with Session(filled.engine) as own:
                    note = own.scalars(select(Note)).one()
                    with pytest.raises(SessionForkedError):
                        note.body  # noqa: B018
                    own.add(Note(user_id=1, body="from the child"))
                    with pytest.raises(SessionForkedError):
                        own.flush()
                    own.rollback()
                    with unlock(own, own.get_one(User, 1)):
                        assert own.scalars(select(Note)).one().body == "hers"
                assert live_keys() == []

            assert in_child(child) == ""
            assert unlocked.is_open
            assert loaded.body == "hers"
            loaded.body = "changed after the fork"
            session.commit()
    with filled.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert session.scalars(select(Note)).one().body == "changed after the fork"


def test_leaving_in_the_child_does_not_lock_the_parent(filled: Started) -> None:
    """A child that runs off the end of the `with` raises nothing more and changes nothing in the parent."""
    with filled.fresh() as session, unlock(session, session.get_one(User, 1)) as unlocked:
        assert in_child(lambda: unlocked.__exit__(None, None, None)) == ""
        assert session.scalars(select(Note)).one().body == "hers"


def test_a_grandchild_is_locked_too(filled: Started) -> None:
    """A fork of a fork, and an unlocked session made in the child does not cross either."""
    with filled.fresh() as session, unlock(session, session.get_one(User, 1)) as outer:

        def child() -> None:
            filled.engine.dispose(close=False)
            with Session(filled.engine) as own, unlock(own, own.get_one(User, 1)) as inner:

                def grandchild() -> None:
                    assert live_keys() == []
                    assert not inner.is_open
                    assert not outer.is_open

                assert in_child(grandchild) == ""
                assert inner.is_open
                assert own.scalars(select(Note)).one().body == "hers"

        assert in_child(child) == ""


def test_nested_unlocks_are_all_closed_by_a_fork(filled: Started) -> None:
    """The outer one and the inner one."""
    with (
        filled.fresh() as session,
        unlock(session, session.get_one(User, 1)),
        unlock(session, session.get_one(User, 2)),
    ):
        assert len(live_keys()) >= 2

        def child() -> None:
            assert live_keys() == []
            assert live_ciphers() == []

        assert in_child(child) == ""


def test_nonces_of_a_parent_and_its_child_differ(filled: Started) -> None:
    """No pool of nonces crosses a fork: parent and child encrypt the same value under the same key and
    never alike."""
    from sqlalchemy_envelope.crypto.aead import fresh_nonces

    drawn = fresh_nonces(1000)
    next(drawn)
    read, write = os.pipe()

    def child() -> None:
        fresh = fresh_nonces(1000)
        os.write(write, b"".join(next(fresh) for _ in range(300)))

    assert in_child(child) == ""
    of_child = os.read(read, 300 * 12)
    os.close(read), os.close(write)
    fresh = fresh_nonces(1000)
    of_parent = [next(fresh) for _ in range(300)]

    assert {of_child[at : at + 12] for at in range(0, 3600, 12)}.isdisjoint(of_parent)


def _enroll(started: Started) -> None:
    with envelope.enroll(started.session, User(email="c@example.org", phone="1"), secret=SECRET):
        started.session.commit()


def _enroll_without_entering(started: Started) -> None:
    unlocked = envelope.enroll(started.session, User(email="c@example.org"), secret=SECRET)
    started.session.commit()
    with unlocked:
        pass


def _failing_enroll(started: Started) -> None:
    with pytest.raises(Exception, match="UNIQUE"):
        envelope.enroll(started.session, User(email="ada@example.org", phone="1"), secret=SECRET)
    started.session.rollback()


def _read_and_write(started: Started) -> None:
    with unlock(started.session, started.ada):
        started.session.add(Note(user_id=1, body="b", size=3, tags=["x"]))
        started.session.commit()
        assert started.session.scalars(select(Note)).one().body == "b"


def _wrong_secret(started: Started) -> None:
    with pytest.raises(UnlockError):
        envelope.unlock(started.session, started.ada, secret="wrong secret")


def _change_secret(started: Started) -> None:
    envelope.change_secret(started.session, started.ada, old=SECRET, new="another secret")
    started.session.commit()


def _rebind(started: Started) -> None:
    envelope.rebind(started.session, started.ada, secret=SECRET)
    started.session.commit()


def _nested(started: Started) -> None:
    with unlock(started.session, started.ada), unlock(started.session, started.ben):
        started.session.add_all([Note(user_id=1, body="b"), Note(user_id=2, body="c")])
        started.session.commit()


def _left_by_an_error(started: Started) -> None:
    def fail() -> None:
        with unlock(started.session, started.ada):
            started.session.add(Note(user_id=1, body="b"))
            started.session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    started.session.rollback()


def _locked_early(started: Started) -> None:
    with unlock(started.session, started.ada) as unlocked:
        started.session.add(Note(user_id=1, body="b"))
        started.session.flush()
        unlocked.lock()


def _enrolment_rolled_back(started: Started) -> None:
    with envelope.enroll(started.session, User(email="c@example.org"), secret=SECRET):
        started.session.rollback()


WAYS = [
    _enroll,
    _enroll_without_entering,
    _failing_enroll,
    _read_and_write,
    _wrong_secret,
    _change_secret,
    _rebind,
    _nested,
    _left_by_an_error,
    _locked_early,
    _enrolment_rolled_back,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_no_key_is_reachable_afterwards(lite: Started, way: Callable[[Started], None]) -> None:
    """Whatever was done and however it ended: no unwiped key, no cipher, no keyring with anything in it."""
    keys, ciphers, _ = living()

    way(lite)

    assert (keys, ciphers, 0) == living()


def test_an_unlocked_session_that_is_never_entered_is_wiped_when_forgotten(lite: Started) -> None:
    """`enroll` or `unlock` without `with`: nobody leaves it, and its keys are zeroed all the same."""
    unlocked = unlock(lite.session, lite.ada)
    opened = list(unlocked._keyring._opened.values())
    assert {one.stored.purpose for one in opened} == {Purpose.ROOT, Purpose.DATA}
    assert all(any(one.key.buffer) for one in opened)

    del unlocked
    gc.collect()

    assert not any(any(one.key.buffer) for one in opened)


def test_nothing_but_the_owner_s_keys_is_kept_while_it_is_unlocked(
    lite: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The root key stays, for what its owner grants and was granted, and the data key: what the secret was
    stretched to is zeroed when the verb returns."""
    made: list[KeyBytes] = []
    genuine = KeyBytes.__init__

    def noted(self: KeyBytes, data: bytes) -> None:
        genuine(self, data)
        made.append(self)

    monkeypatch.setattr(KeyBytes, "__init__", noted)
    with unlock(lite.session, lite.ada) as unlocked:
        of_the_keyring = [opened.key for opened in unlocked._keyring._opened.values()]
        kept = [key for key in made if any(key.buffer)]
        # Subkeys that were used up are wiped by nobody, and are reachable from here alone.
        reachable = [key for key in kept if sys.getrefcount(key) > 4]

        assert len(of_the_keyring) == 2
        assert all(key in made for key in of_the_keyring)
        assert {id(key) for key in reachable} == {id(key) for key in of_the_keyring}


def test_decrypted_attributes_are_gone_from_their_objects(filled: Started) -> None:
    """After leaving, no loaded object holds its plaintext; touching it says why."""
    with filled.fresh() as session:
        with unlock(session, session.get_one(User, 1)):
            note, page = session.scalars(select(Note)).one(), session.scalars(select(Page)).one()
            assert (note.body, page.text) == ("hers", "page")

        assert not {"body", "tags"} & note.__dict__.keys()
        assert "text" not in page.__dict__
        with pytest.raises(LockedError):
            note.body  # noqa: B018


def test_a_left_session_is_of_no_use(lite: Started) -> None:
    """Each door of it says that it was left."""
    with unlock(lite.session, lite.ada) as unlocked:
        pass

    for use in (unlocked.__enter__, unlocked.lock, lambda: unlocked.using(lite.ada).__enter__()):
        with pytest.raises(SessionLeftError):
            use()


SCAN = """
    import gc, hashlib, json, mmap, re, sys
    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import Session
    from sqlalchemy_envelope import enforce_foreign_keys
    from tests.orm.models import Base, Note, User, envelope

    def digest(data):
        return hashlib.sha256(data).digest()

    def count(needles):
        # By a short prefix and then by digest, so that the search holds no copy of what it looks for.
        found = dict.fromkeys(needles, 0)
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
            for line in maps:
                span, mode, *_, = line.split()
                if "rw" not in mode or "[v" in line:
                    continue
                start, end = (int(part, 16) for part in span.split("-"))
                # In memory of its own, given back at once: a copy left on the heap would be found as the
                # library's.
                block = mmap.mmap(-1, end - start)
                try:
                    memory.seek(start)
                    memory.readinto(block)
                except (OSError, ValueError, OverflowError):
                    continue
                for name, (prefix, whole) in needles.items():
                    for match in re.finditer(re.escape(prefix), block):
                        window = memoryview(block)[match.start():match.start() + 32]
                        found[name] += digest(window) == whole
                        window.release()
                        del match
                block.close()
        return found

    engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        user = User(email="x")
        envelope.enroll(session, user, secret="a secret to look for")
        session.commit()
        unlocked = envelope.unlock(session, user, secret="a secret to look for")
        with unlocked:
            session.add(Note(user_id=user.id, body="b"))
            session.commit()
            session.scalars(select(Note)).one().body
            # Five bytes are too few to be a key and enough to look for one.
            needles = {
                one.stored.purpose.value: (bytes(one.key.buffer[:5]), digest(one.key.buffer))
                for one in unlocked._keyring._opened.values()
            }
            if sys.argv[1] == "during":
                print(json.dumps(count(needles)))
    gc.collect()
    if sys.argv[1] == "after":
        print(json.dumps(count(needles)))
"""


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs /proc")
def test_the_keys_are_gone_from_the_memory_of_the_process(
    record_property: Callable[[str, object], None],
) -> None:
    """Root key and data key are found while unlocked, so that the search is known to work, and not once after
    leaving.

    This is said of their own bytes in writable memory, and of no subkey, no plaintext and no secret.
    """
    found = {}
    for moment in ("during", "after"):
        # A process for each: a search leaves traces that the next one would find.
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCAN), moment],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found[moment] = json.loads(done.stdout)
    record_property("found", found)
    print(found)

    assert set(found["during"]) == {"root", "data"}
    assert min(found["during"].values()) >= 1
    assert found["after"] == {"root": 0, "data": 0}
