"""Indexes of groups: members find each other's rows, and who was removed learns no tag of later values."""

import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import LockedError
from sqlalchemy_envelope.keys.model import Purpose
from tests.orm.indexes.owner_models import (
    SECRET,
    Group,
    Membership,
    Post,
    User,
    apart,
    envelope,
    found,
    tags,
    two_users,
    unlock,
)


def new_group(session: Session, *members: int) -> int:
    """A group of these users, made by the first; its id."""
    with unlock(session, members[0]):
        group = Group()
        envelope.enroll(session, group)
        session.add_all(Membership(group_id=group.id, user_id=one) for one in members)
        session.commit()
        return group.id


def post(session: Session, user_id: int, group_id: int, text: str) -> int:
    """A post that a user writes; its id."""
    with unlock(session, user_id):
        written = Post(group_id=group_id, text=text)
        session.add(written)
        session.commit()
        return written.id


def index_keys(session: Session) -> list[tuple[int, str]]:
    keys = Group.metadata.tables["groups_key"].c
    rows = session.execute(select(keys.epoch, keys.state).where(keys.purpose == Purpose.INDEX))
    return sorted((row[0], row[1]) for row in rows)


def test_members_find_each_others_posts(engine: Engine) -> None:
    """Grants are followed by the search itself: a member finds what another wrote, also in several groups."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        first, second, third = new_group(session, ada, ben), new_group(session, ben), new_group(session, ada)
        by_ada, by_ben = post(session, ada, first, "x"), post(session, ben, second, "x")
        post(session, ada, third, "x")
    with Session(engine) as session, unlock(session, ben):
        assert [by_ada, by_ben] == found(session, Post.text == "x", Post.id)
        assert found(session, Post.text != "x", Post.id) == []


def test_a_removed_member_learns_no_tag_of_later_values(engine: Engine) -> None:
    """A member who kept the index key finds no later value by it; those who remain find earlier and later
    values."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        group = new_group(session, ada, ben)
        before = post(session, ada, group, "x")
        with unlock(session, ben) as unlocked:
            assert [before] == found(session, Post.text == "x", Post.id)
            index = next(iter(unlocked.keyring._hashers.values()))
            (kept,) = index.values()
        session.delete(session.get_one(Membership, (group, ben)))
        session.commit()
        after = post(session, ada, group, "x")
        stored = tags(session, Post.text_index)
        data = next(iter(index)).kind.data(["x"])  # type: ignore[attr-defined]

        assert stored[before] == kept.tag(data)
        assert stored[after] != kept.tag(data)
        assert index_keys(session)[0] == (1, "retired")
        with unlock(session, ada):
            assert [before, after] == found(session, Post.text == "x", Post.id)
            assert found(session, Post.text != "x", Post.id) == []
    with Session(engine) as session, unlock(session, ben), pytest.raises(LockedError):
        found(session, Post.text == "x", Post.id)


def test_a_new_member_finds_what_was_before(sqlite_engine: Engine) -> None:
    """Who joins reads, and finds, the values of earlier epochs."""
    ada, ben = two_users(sqlite_engine)
    with Session(sqlite_engine) as session:
        group = new_group(session, ada, ben)
        first = post(session, ada, group, "x")
        session.delete(session.get_one(Membership, (group, ben)))
        session.commit()
        second = post(session, ada, group, "x")
        with unlock(session, ada):
            session.add(Membership(group_id=group, user_id=ben))
            session.commit()
    with Session(sqlite_engine) as session, unlock(session, ben):
        assert [first, second] == found(session, Post.text == "x", Post.id)


def test_rows_under_an_earlier_index_key_that_is_not_open_are_no_other_values(engine: Engine) -> None:
    """A member whom nobody gave the keys before an epoch gets no row of that time by `!=`, and deletes none;
    rows of a group of which the member has every key are found."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        carl = User()
        envelope.enroll(session, carl, secret=SECRET)
        session.commit()
        group = new_group(session, ada, carl.id)
        before = post(session, ada, group, "x")
        session.add(Membership(group_id=group, user_id=ben))
        session.commit()
        session.delete(session.get_one(Membership, (group, carl.id)))
        session.commit()
    others = Post.text != "x"
    with Session(engine) as session, unlock(session, ben):
        assert found(session, Post.text == "x", Post.id) == []
        for refused in (select(Post.id).where(others), delete(Post).where(others)):
            with pytest.raises(LockedError, match="earlier index keys"):
                session.execute(refused)
        session.rollback()
    with Session(engine) as session:
        written = post(session, ben, new_group(session, ben), "y")
    with Session(engine) as session, unlock(session, ben):
        assert [written] == found(session, Post.text.not_in(["x"]), Post.id)
    with Session(engine) as session, unlock(session, ada) as unlocked:
        unlocked.settle()
        session.commit()
    with Session(engine) as session, unlock(session, ben):
        assert [before, written] == found(session, Post.text != "z", Post.id)


def test_what_a_locked_group_was_sent_is_found_after_a_member_settled(engine: Engine) -> None:
    """Posts written for a group while everybody is locked are pending; the first write of a member fills them
    in."""
    ada, ben = two_users(engine)
    with Session(engine) as session:
        group = new_group(session, ada, ben)
        with envelope.write_only(session):
            sent = Post(group_id=group, text="sent")
            session.add(sent)
            session.commit()
        assert list(envelope.pending_index_rows(session, session.get_one(Group, group))) == [
            ("Post.text_index", 1)
        ]
        assert list(envelope.pending_index_rows(session, Group)) == [("Post.text_index", 1)]
        assert list(envelope.pending_index_rows(session, session.get_one(User, ada))) == []
        post(session, ben, group, "other")
        assert list(envelope.pending_index_rows(session, Group)) == []
        with unlock(session, ada):
            assert [sent.id] == found(session, Post.text == "sent", Post.id)


def test_a_search_sees_an_epoch_that_another_session_started(engine: Engine) -> None:
    """Members who unlocked before the epoch find what was written after it, and who was removed is told."""
    ada, ben = two_users(engine)
    with Session(engine) as session, Session(engine) as removed, Session(engine) as setting:
        carl = User()
        envelope.enroll(setting, carl, secret=SECRET)
        setting.commit()
        group = new_group(setting, ada, ben, carl.id)
        before = post(setting, ada, group, "x")
        with apart(unlock(session, ben)), apart(unlock(removed, carl.id)):
            for one in (session, removed):
                assert [before] == found(one, Post.text == "x", Post.id)
                one.commit()
            setting.delete(setting.get_one(Membership, (group, carl.id)))
            setting.commit()
            after = post(setting, ada, group, "x")
            assert [before, after] == found(session, Post.text == "x", Post.id)
            with pytest.raises(LockedError):
                found(removed, Post.text == "x", Post.id)
