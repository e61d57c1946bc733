"""What is kept between two calls: where it lies, that it is listed, and that it goes along as it should."""

import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
import sqlalchemy as sa
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session

import sqlalchemy_envelope
from sqlalchemy_envelope import (
    AuditEvent,
    ConfigurationError,
    Envelope,
    KdfProfile,
    ServerKeyring,
)
from sqlalchemy_envelope.orm.columns.attribute_marks import MARKS, Mark, Marks
from sqlalchemy_envelope.orm.current.context import bound_to
from sqlalchemy_envelope.orm.current.policy import ENVELOPES, noted_policy
from sqlalchemy_envelope.orm.tables.session_notes import NOTES
from tests.orm import sharing_models as sharing
from tests.orm.sharing_models import Group, Membership, Post, User

PACKAGE = Path(sqlalchemy_envelope.__file__).parent
LIST = next(one for folder in Path(__file__).parents if (one := folder / "docs" / "state.md").exists())
SECRET = "a secret of ten words"
PROFILE = KdfProfile.unsafe_for_tests()
KEPT_IN_INFO = {"session_notes", "context", "attribute_marks", "column_notes", "default_schema"}
NEVER_CHANGE = {
    "keys.keyring._NONE",
    "keys.keyring._NO_CIPHERS",
    "orm.reading.rows._NO_READERS",
}
KINDS = (
    r"(?:Weak\w+|count|ContextVar|lru_cache|R?Lock|local|OrderedDict|Counter|deque|(?:dict|set|list)(?=\(\)))"
)
CHANGING = re.compile(
    rf"^(\w+)(?:: .*)? = \(?\s*(?:\[\]|\{{\}}|(?:\w+\.)*{KINDS}(?:\[.*\])?\()"
    r"|^@(?:functools\.)?(?:lru_cache|cache)\b.*\ndef (\w+)|^ +global (\w+)",
    re.MULTILINE,
)
"""Globals that begin empty or keep something, functions whose results are kept, `global` statements."""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No envelope of another test is in this process."""
    monkeypatch.setattr(ENVELOPES, "policies", WeakSet())


def modules() -> Iterator[tuple[str, str]]:
    """Each module of the package, with its source."""
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), path.read_text("utf-8")


def test_what_changes_is_listed() -> None:
    """Each global of the package that changes, and each page of `SessionNotes`, is in docs/state.md, and
    nothing else is."""
    found = {"orm.current.context.NOTHING", "orm.current.policy.ENVELOPES", "orm.current.policy.Policy"}
    for module, source in modules():
        found |= {f"{module}.{''.join(names)}" for names in CHANGING.findall(source)}
        pages = re.findall(r'^class (\w+).*:\n    """A page of `SessionNotes`', source, re.MULTILINE)
        found |= {f"{module}.{name}" for name in pages}
    listed = LIST.read_text("utf-8").partition("The pages of")[2]
    pages_listed, _, globals_listed = listed.partition("In the process:")
    named = {f"orm.{one}" for one in re.findall(r"^\| `([\w.]+)`", pages_listed, re.MULTILINE) if "." in one}
    named |= set(re.findall(r"`([\w.]+\.\w+)`", globals_listed.rpartition("\n\n")[0]))

    assert (sorted(found - NEVER_CHANGE - named), sorted(named - found)) == ([], [])


def test_one_object_under_one_key() -> None:
    """No other module than those of the four objects touches an `info`."""
    touching = {
        module.rpartition(".")[2]
        for module, source in modules()
        if re.search(r"\binfo(\[|\.(get|setdefault|pop|update)\(| = \w+\.info\b)", source)
    }

    assert touching == KEPT_IN_INFO


def test_what_a_session_and_an_object_show(sqlite_engine: sa.Engine, alone: None) -> None:
    """After an enrolment, grants, a removal and a leave there is one key in each `info`."""
    envelope = Envelope(kdf_profile=PROFILE)
    sharing.Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        ada, ben = User(email="ada"), User(email="ben")
        envelope.enroll(session, [ada, ben], secret={ada: SECRET, ben: SECRET})
        with envelope.unlock(session, ada, secret=SECRET):
            group = Group()
            envelope.enroll(session, group)
            session.add_all([Membership(group_id=group.id, user_id=one.id) for one in (ada, ben)])
            session.add(Post(group_id=group.id, text="secret"))
            session.flush()
            session.delete(session.get_one(Membership, (group.id, ben.id)))
            session.commit()
            post = session.scalars(select(Post)).one()
            assert post.text == "secret"

        assert list(session.info) == [NOTES]
        assert list(inspect(post).info) == [MARKS]
        assert bound_to(session) is None


def test_marks_are_copied_and_pickled() -> None:
    """By every protocol, and without what counts for a moment."""
    marks = Marks(body=Mark.WIPED, title=Mark.FROM_PREVIOUS)
    marks.replacing = 1
    copies = [
        pickle.loads(pickle.dumps(marks, one))  # noqa: S301 - made here
        for one in range(pickle.HIGHEST_PROTOCOL + 1)
    ]
    copies += [copy.copy(marks), copy.deepcopy(marks)]

    assert [(Marks, marks)] * len(copies) == [(type(one), one) for one in copies]
    assert all(one["body"] is Mark.WIPED and not hasattr(one, "replacing") for one in copies)


def test_a_session_that_begins_with_the_notes_of_another(sqlite_engine: sa.Engine, alone: None) -> None:
    """`Session(info=another.info)`: what is unlocked in the one does not open anything in the other."""
    envelope = Envelope(kdf_profile=PROFILE)
    sharing.Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as first:
        envelope.enroll(first, user := User(email="x"), secret=SECRET)
        first.commit()
        with (
            Session(sqlite_engine, info=first.info) as second,
            envelope.unlock(second, second.get_one(User, user.id), secret=SECRET) as unlocked,
        ):
            bound = bound_to(first), bound_to(second)

    assert bound == (None, unlocked)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_whose_policy_counts_without_server_keys(alone: None, count: int) -> None:
    """The process's only envelope; of none or several, nobody's, whichever is the newest."""
    envelopes = [Envelope(kdf_profile=PROFILE, realm=f"realm {number}") for number in range(count)]
    with Session() as session:
        found = noted_policy(session)

    assert (envelopes[0].policy if count == 1 else None) == (found if found.seals.realm else None)


def test_whose_policy_counts_with_server_keys(alone: None) -> None:
    """The only envelope that has some, though another one is newer; of several, that which was attached."""
    keys = [ServerKeyring.from_text(ServerKeyring.generate_key()) for _ in range(2)]
    sealing = Envelope(kdf_profile=PROFILE, server_keys=keys[0])
    plain = Envelope(kdf_profile=PROFILE)
    with Session() as session:
        assert sealing.policy is noted_policy(session)
        plain.attach(session)
        assert plain.policy is noted_policy(session)
    another = Envelope(kdf_profile=PROFILE, server_keys=keys[1])
    with Session() as session:
        with pytest.raises(ConfigurationError, match=r"envelope\.attach\(session\)"):
            noted_policy(session)
        another.attach(session)
        assert another.policy is noted_policy(session)


def test_who_is_told_of_a_flush_that_nobody_opened(sqlite_engine: sa.Engine, alone: None) -> None:
    """The audit function of the only envelope; of two, that of the one that was attached."""
    told: list[list[AuditEvent]] = [[], []]
    first = Envelope(kdf_profile=PROFILE, audit=told[0].append)
    sharing.Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        users = [User(id=number, email=str(number)) for number in range(1, 5)]
        first.enroll(session, users, secret=dict.fromkeys(users, SECRET))
        with first.unlock(session, users[0], secret=SECRET):
            first.enroll(session, Group(id=1))
            session.add(Membership(group_id=1, user_id=1))
            session.commit()
    del session, users

    def pending(number: int, attached: Envelope | None = None) -> list[int]:
        before = [len(one) for one in told]
        with Session(sqlite_engine) as session:
            if attached is not None:
                attached.attach(session)
            session.add(Membership(group_id=1, user_id=number))
            session.commit()
        return [len(one) - many for one, many in zip(told, before, strict=True)]

    assert pending(2) == [1, 0]
    second = Envelope(kdf_profile=PROFILE, audit=told[1].append)
    assert pending(3) == [0, 0]
    assert pending(4, second) == [0, 1]
