"""Server mode reads what was granted to owners whom the server can open, through groups of groups and scopes,
and opens nothing else.
"""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, EnrollmentError, Envelope, KdfProfile, LockedError, ServerKeyring
from tests.orm.models import statements_sent
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Club,
    ClubMembership,
    Group,
    Membership,
    Minute,
    Organisation,
    Post,
    ProfileShare,
    User,
)

REASON = "a test"


class Shared:
    """Two users in a group: the server can open Ada, and Bob is held by his secret alone."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.events = engine, list[AuditEvent]()
        self.envelope = Envelope(
            kdf_profile=KdfProfile.unsafe_for_tests(),
            server_keys=ServerKeyring([b"\x07" * 32]),
            audit=self.events.append,
        )
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            ada, bob = User(id=1, email="ada"), User(id=2, email="bob")
            self.envelope.enroll(session, ada, secret="ada", provider="server")
            self.envelope.enroll(session, bob, secret="bob")
            session.commit()

    def unlocked(self, session: Session, name: str) -> Any:
        user = session.scalars(select(User).where(User.email == name)).one()
        return self.envelope.unlock(session, user, secret=name)

    def found(self, session: Session, group_id: int, *user_ids: int) -> None:
        """A group of these users with one post; whoever founds it is unlocked."""
        self.envelope.enroll(session, Group(id=group_id, name=f"group {group_id}"))
        session.flush()
        session.add_all([Membership(group_id=group_id, user_id=one) for one in user_ids])
        session.flush()
        session.add(Post(id=group_id, group_id=group_id, text=f"post {group_id}"))

    def read(self, post_id: int) -> str | None:
        with Session(self.engine) as session, self.envelope.server_mode(reason=REASON):
            return session.get_one(Post, post_id).text


@pytest.fixture
def shared(engine: Engine) -> Iterator[Shared]:
    return Shared(engine)


def test_a_group_is_read_through_a_member_whom_the_server_can_open(shared: Shared) -> None:
    """The group has no slot of the server, nor has Bob, who founded it: Ada's grant leads to it."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2, 1)
        shared.found(session, 2, 2)
        session.commit()

    assert shared.read(1) == "post 1"
    assert [(event.name, event.owner_class, event.count) for event in shared.events[-2:]] == [
        ("server_opened", "User", 1),
        ("server_opened", "Group", 1),
    ]
    with pytest.raises(LockedError):
        shared.read(2)


def test_what_is_two_grants_away_is_read(shared: Shared) -> None:
    """An organisation's value, through a group of Ada's; and a scope of Bob's that he shares with it."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        session.get_one(User, 2).display_name = "Bob"
        session.get_one(User, 2).diary = "dear diary"
        shared.found(session, 1, 2, 1)
        shared.envelope.enroll(session, Organisation(id=1, name="the union"))
        session.flush()
        session.add_all([Affiliation(organisation_id=1, group_id=1), ProfileShare(user_id=2, group_id=1)])
        session.commit()
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        organisation, bob = session.get_one(Organisation, 1), session.get_one(User, 2)

        assert (organisation.name, bob.display_name) == ("the union", "Bob")
        with pytest.raises(LockedError):
            _ = bob.diary


def test_an_older_epoch_is_read_and_a_former_member_leads_nowhere(shared: Shared) -> None:
    """Ada reads what was written before an epoch changed; once her row is gone, a server that starts then
    reads nothing of the group."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        session.add(User(id=3, email="carol"))
        shared.envelope.enroll(session, session.get_one(User, 3), secret="carol")
        shared.found(session, 1, 2, 1, 3)
        session.commit()
        session.execute(delete(Membership).where(Membership.user_id == 3))
        session.commit()
        session.add(Post(id=10, group_id=1, text="after"))
        session.commit()

    assert (shared.read(1), shared.read(10)) == ("post 1", "after")
    with shared.engine.begin() as connection:
        connection.execute(delete(Membership).where(Membership.user_id == 1))
    with pytest.raises(LockedError):
        shared.read(10)


def test_writing_for_such_a_group_is_refused_and_it_is_read_still(shared: Shared) -> None:
    """A grant lets the server read: a value for the group is refused, and what was read is read again."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2, 1)
        session.commit()
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        assert session.get_one(Post, 1).text == "post 1"
        session.add(Post(id=11, group_id=1, text="no"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()

        assert session.get_one(Post, 1).text == "post 1"


def test_many_groups_cost_as_many_statements_as_one(shared: Shared) -> None:
    """A page of the posts of 1 group and of 20, each in a server session that knows nothing yet; a second
    page sends its own statement alone, also where some groups stay locked."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        for number in range(1, 21):
            shared.found(session, number, 2, 1)
        shared.found(session, 21, 2)
        session.commit()
    sent = []
    for last in (1, 20):
        query = select(Post).where(Post.id <= last)
        with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
            with statements_sent(shared.engine) as statements:
                posts = session.scalars(query).all()
            sent.append(len(statements))
            assert [f"post {post.id}" for post in posts] == [post.text for post in posts]
            session.scalars(select(Post)).all()
            with statements_sent(shared.engine) as again:
                session.scalars(select(Post)).all()

            assert len(again) == 1  # its own: the keys of the group that stays locked were looked for

    assert sent[0] == sent[1]
    assert sent[0] <= 9


def test_a_pending_grant_is_fulfilled_with_the_next_value(shared: Shared) -> None:
    """Bob joins a group of the server's while nobody has its key: the next value that server mode writes for
    the group grants it to him."""
    envelope = shared.envelope
    with Session(shared.engine) as session, envelope.server_mode(reason=REASON):
        session.add_all([Group(id=1), Post(id=1, group_id=1, text="before")])
        session.commit()
    with Session(shared.engine) as session:
        envelope.attach(session)
        session.add(Membership(group_id=1, user_id=2))
        session.commit()
        with shared.unlocked(session, "bob"), pytest.raises(LockedError):
            _ = session.get_one(Post, 1).text
        session.rollback()
    with Session(shared.engine) as session, envelope.server_mode(reason=REASON):
        session.add(Post(id=2, group_id=1, text="after"))
        session.commit()
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        posts = session.scalars(select(Post).order_by(Post.id)).all()

        assert [post.text for post in posts] == ["before", "after"]


def test_values_older_than_the_slot_are_read(shared: Shared) -> None:
    """Bob writes, lets the server in, out and in again: server mode reads what is older than the slot."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        bob = session.get_one(User, 2)
        bob.diary = "first"
        session.commit()
        shared.envelope.add_provider(session, bob, provider="server")
        shared.envelope.remove_provider(session, bob, provider="server")
        shared.envelope.add_provider(session, bob, provider="server")
        session.commit()
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        assert session.get_one(User, 2).diary == "first"


def test_a_provider_that_was_removed_reads_nothing_new(shared: Shared) -> None:
    """In the very process that serves: after its slot is removed, what Ada writes then is locked for it."""
    envelope = shared.envelope
    server = envelope.server_mode(reason=REASON).everywhere()
    try:
        with Session(shared.engine) as session, shared.unlocked(session, "ada"):
            ada = session.get_one(User, 1)
            ada.diary = "before"
            session.commit()
        with Session(shared.engine) as session:
            assert session.get_one(User, 1).diary == "before"
        with Session(shared.engine) as session, shared.unlocked(session, "ada"):
            envelope.remove_provider(session, session.get_one(User, 1), provider="server")
            session.commit()
            session.get_one(User, 1).diary = "after"
            session.commit()
        with Session(shared.engine) as session, pytest.raises(LockedError):
            _ = session.get_one(User, 1).diary
    finally:
        server.stop()


def test_the_only_way_in_is_not_removed(shared: Shared) -> None:
    """An owner whom the server alone holds keeps its slot: the commit that takes it away is refused, and one
    that brings another way in is not."""
    envelope = shared.envelope
    with Session(shared.engine) as session:
        carol = User(id=3, email="carol", diary="hers")
        with envelope.enroll(session, carol, provider="server"):
            session.commit()
    with Session(shared.engine) as session:
        carol = session.get_one(User, 3)
        with envelope.unlock(session, carol, provider="server", reason=REASON):
            envelope.remove_provider(session, carol, provider="server")
            with pytest.raises(EnrollmentError, match="only key slots"):
                session.commit()
            session.rollback()
        with envelope.unlock(session, carol, provider="server", reason=REASON):
            envelope.remove_provider(session, carol, provider="server")
            envelope.add_secret(session, carol, secret="carol")
            session.commit()
        with envelope.unlock(session, carol, secret="carol"):
            assert carol.diary == "hers"


def test_the_last_holder_stays_while_the_others_wait(shared: Shared) -> None:
    """Bob alone holds a group, and Ada's grant is pending: the commit that deletes Bob's row is refused, and
    nobody stands in the way of a last member who leaves nobody behind."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2)
        shared.found(session, 2, 2)
        session.commit()
    with Session(shared.engine) as session:
        shared.envelope.attach(session)
        session.add(Membership(group_id=1, user_id=1))
        session.commit()
        session.delete(session.get_one(Membership, (1, 2)))
        with pytest.raises(EnrollmentError, match="are pending"):
            session.commit()
        session.rollback()
        session.delete(session.get_one(Membership, (2, 2)))
        session.commit()
    with Session(shared.engine) as session, shared.unlocked(session, "bob") as unlocked:
        unlocked.settle()
        session.delete(session.get_one(Membership, (1, 2)))
        session.commit()
    with Session(shared.engine) as session, shared.unlocked(session, "ada"):
        assert session.get_one(Post, 1).text == "post 1"


def test_one_grant_does_not_hide_another_way(shared: Shared) -> None:
    """Bob's profile is reached through a group, and his diary's keys through nobody: a scope that is granted
    straight to an owner of the server's hides neither the longer way nor opens more."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        session.get_one(User, 2).display_name = "Bob"
        shared.found(session, 1, 2, 1)
        shared.envelope.enroll(session, Group(id=2), provider="server")
        session.flush()
        session.add(ProfileShare(user_id=2, group_id=1))
        shared.envelope.enroll(session, Organisation(id=1, name="the union"))
        session.flush()
        session.add(Affiliation(organisation_id=1, group_id=1))
        session.add(Affiliation(organisation_id=1, group_id=2))
        session.commit()
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        assert session.get_one(Organisation, 1).name == "the union"
        assert session.get_one(User, 2).display_name == "Bob"


def test_readers_are_not_disturbed_while_other_groups_are_deleted(shared: Shared) -> None:
    """Three threads read the posts of forty groups, again and again, while a fourth makes and deletes groups
    that have nothing to do with them: every read finds every post, and none is said to be forged."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        for number in range(1, 41):
            shared.found(session, number, 2, 1)
        session.commit()
    texts = [f"post {number}" for number in range(1, 41)]
    stops = time.monotonic() + 1.5

    def read() -> int:
        rounds = 0
        while time.monotonic() < stops:
            with Session(shared.engine) as session:
                assert [post.text for post in session.scalars(select(Post).order_by(Post.id))] == texts
            rounds += 1
        return rounds

    def disturb() -> int:
        rounds = 0
        while time.monotonic() < stops:
            with Session(shared.engine) as session:
                session.add(Group(id=1000 + rounds, name="another"))
                session.commit()
                session.execute(delete(Group).where(Group.id == 1000 + rounds))
                session.commit()
            rounds += 1
        return rounds

    before, serving = sys.getswitchinterval(), shared.envelope.server_mode(reason=REASON).everywhere()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            rounds = [one.result() for one in [pool.submit(work) for work in (read, read, read, disturb)]]
    finally:
        sys.setswitchinterval(before)
        serving.stop()

    assert min(rounds) > 1


def test_who_left_and_came_back_lends_the_server_only_what_is_granted_now(shared: Shared) -> None:
    """Ada, through whom the server reads a club, leaves it and joins again; a club does not show its past to
    who joins. Once its keys are loaded anew, the process reads what a process that starts now reads."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.envelope.enroll(session, [Club(id=1), Club(id=2)])
        session.flush()
        session.add_all([ClubMembership(club_id=1, user_id=one) for one in (1, 2)])
        session.add(ClubMembership(club_id=2, user_id=2))
        session.flush()
        session.add(Minute(id=1, club_id=1, text="before"))
        session.commit()
    serving = shared.envelope.server_mode(reason=REASON).everywhere()
    try:
        with Session(shared.engine) as session:
            assert session.get_one(Minute, 1).text == "before"
        with shared.engine.begin() as connection:
            connection.execute(delete(ClubMembership).where(ClubMembership.user_id == 1))
        with Session(shared.engine) as session, shared.unlocked(session, "bob"):
            session.add(Minute(id=2, club_id=1, text="between"))
            session.commit()
            session.add(ClubMembership(club_id=1, user_id=1))
            session.commit()
            session.add(Minute(id=3, club_id=1, text="after"))
            session.execute(delete(Club).where(Club.id == 2))  # now the server loads keys of clubs anew
            session.commit()
        with Session(shared.engine) as session:
            assert session.get_one(Minute, 3).text == "after"
            for number in (1, 2):
                with pytest.raises(LockedError):
                    _ = session.get_one(Minute, number).text
    finally:
        serving.stop()


def test_a_grant_to_an_older_key_of_a_recipient_is_followed(shared: Shared) -> None:
    """Ada takes the server's slot away and gives it another one: her keys are new since, and the group's key
    is still sealed to her old one."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2, 1)
        session.commit()
    with Session(shared.engine) as session, shared.unlocked(session, "ada"):
        ada = session.get_one(User, 1)
        shared.envelope.remove_provider(session, ada, provider="server")
        session.commit()
        shared.envelope.add_provider(session, ada, provider="server")
        session.commit()

    assert shared.read(1) == "post 1"


def test_a_deletion_by_the_unit_of_work_leaves_the_keys_of_others_alone(shared: Shared) -> None:
    """The unit of work says which group it deletes: a post of another group is read without a look for keys.
    A DELETE by a statement may delete any group, and the keys are looked for."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        for number in (1, 2, 3):
            shared.found(session, number, 2, 1)
        session.commit()
    counts = []
    with shared.envelope.server_mode(reason=REASON):
        for way in (None, "unit of work", "statement"):
            with Session(shared.engine) as session:
                if way == "unit of work":
                    session.delete(session.get_one(Group, 2))
                elif way == "statement":
                    session.execute(delete(Group).where(Group.id == 3))
                session.commit()
            with statements_sent(shared.engine) as sent, Session(shared.engine) as session:
                assert session.get_one(Post, 1).text == "post 1"
            counts.append(len(sent))

    assert counts[1] == 1 < counts[2]


def test_what_stays_locked_is_looked_for_once_in_a_transaction(shared: Shared) -> None:
    """An attribute that no slot and no grant opens is touched three times: the keys are looked for at first
    alone; the next transaction looks again."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2)
        session.commit()
    loading, touching = [], []
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        for _ in range(2):
            with statements_sent(shared.engine) as sent:
                post = session.get_one(Post, 1)
            loading.append(len(sent))
            with statements_sent(shared.engine) as sent:
                for _ in range(3):
                    with pytest.raises(LockedError):
                        _ = post.text
            touching.append(len(sent))
            session.commit()

    assert touching == [0, 0]
    assert loading[0] == loading[1] > 1


def test_a_slot_of_this_transaction_is_found_at_once(shared: Shared) -> None:
    """A value that was locked in a transaction is read in it once its owner has a slot of the provider."""
    with Session(shared.engine) as session, shared.unlocked(session, "bob"):
        shared.found(session, 1, 2)
        session.commit()
    with Session(shared.engine) as session, shared.envelope.server_mode(reason=REASON):
        post = session.get_one(Post, 1)
        with pytest.raises(LockedError):
            _ = post.text
        with shared.unlocked(session, "bob"):
            shared.envelope.add_provider(session, session.get_one(Group, 1), provider="server")
            session.flush()
        session.expire(post)

        assert post.text == "post 1"
