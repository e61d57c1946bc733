"""A member or the last holder of a group is shredded."""

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ErasureError, KeyShreddedError, LockedError
from tests.orm.verbs.shredding.erasable_models import (
    Group,
    Membership,
    Nesting,
    Post,
    eraser,
    found_group,
    opened,
    person,
    shred,
    start,
    told,
)
from tests.prepared import prepared


@pytest.fixture
def begun(engine: Engine) -> Engine:
    prepared(engine, "erasable", lambda: start(engine))
    told.clear()
    return engine


def posts(session: Session) -> list[str | None]:
    session.expire_all()
    return [one.text for one in session.scalars(select(Post).order_by(Post.id))]


def test_a_member_leaves_its_groups(begun: Engine) -> None:
    """The other member writes on under a new epoch; nothing is wrapped for the erased one."""
    with Session(begun) as session:
        found_group(session, "choir", "ada", "ben")
        report = eraser.erasure_report(session, person(session, "ada"))
    receipt = shred(begun, "ada")
    companion, keys = Membership.__grant_class__.__table__, Group.__key_class__
    with opened(begun, "ben") as session:
        session.add(Post(group_id=1, text="after"))
        session.commit()
        wraps = session.scalars(select(companion.c.row_person_id)).all()
        roots = session.scalars(select(keys.epoch).where(keys.purpose == "root").order_by(keys.epoch)).all()

        assert posts(session) == ["the first post of choir", "after"]
    assert {2} == set(wraps)
    assert roots == [1, 2, 3]  # at the shredding, and by the first holder who writes
    assert ([str(one) for one in report.groups], report.lost_groups) == (["Group 1"], ())
    assert len(receipt.key_ids) == 2
    assert "epoch_started" in [one.name for one in told]


def test_the_last_holder_is_refused(begun: Engine) -> None:
    """Whoever alone holds a group's data is not shredded, and nothing is done; unless the group goes too."""
    with Session(begun) as session:
        found_group(session, "solo", "ada")
        report = eraser.erasure_report(session, person(session, "ada"))
        with pytest.raises(ErasureError, match="last holder of 1 Group with 1 value"):
            eraser.shred(session, person(session, "ada"), reason="asked")
        session.rollback()
    with opened(begun, "ada") as session:
        assert posts(session) == ["the first post of solo"]
    receipt = shred(begun, "ada", also_groups=True)
    with opened(begun, "ben") as session:
        post = session.scalars(select(Post)).one()
        with pytest.raises(KeyShreddedError):
            _ = post.text
    assert [(str(one.group), one.values, one.waiting) for one in report.lost_groups] == [("Group 1", 1, 0)]
    assert len(receipt.key_ids) == 4
    assert sorted(one.owner_class for one in told if one.name == "shredded") == ["Group", "Person"]


def test_a_group_of_a_lost_group_is_lost(begun: Engine) -> None:
    """A group that only a lost group holds is named, and goes with it."""
    with Session(begun) as session:
        inner = found_group(session, "inner", "ada")
        found_group(session, "outer", "ada", inner=inner)
        report = eraser.erasure_report(session, person(session, "ada"))
        with pytest.raises(ErasureError, match="2 Group with 2 values"):
            eraser.shred(session, person(session, "ada"), reason="asked")
        session.rollback()
    receipt = shred(begun, "ada", also_groups=True)

    assert sorted(str(one.group) for one in report.lost_groups) == ["Group 1", "Group 2"]
    assert len(receipt.key_ids) == 6


def test_a_member_who_waits_counts(begun: Engine) -> None:
    """A group without values is not given up while somebody waits for its key."""
    with opened(begun, "ada") as session:
        group = Group(title="new")
        eraser.enroll(session, group)
        session.add(Membership(group_id=group.id, person_id=1))
        session.commit()
    with Session(begun) as session:
        eraser.attach(session)
        session.add(Membership(group_id=1, person_id=2))  # nobody with the key is here: it waits
        session.commit()
        report = eraser.erasure_report(session, person(session, "ada"))
        with pytest.raises(ErasureError, match="0 values"):
            eraser.shred(session, person(session, "ada"), reason="asked")

    assert [(one.values, one.waiting) for one in report.lost_groups] == [(0, 1)]


def test_an_empty_group_is_left(begun: Engine) -> None:
    """A group without values and without other members stops nobody."""
    with opened(begun, "ada") as session:
        group = Group(title="empty")
        eraser.enroll(session, group)
        session.add(Membership(group_id=group.id, person_id=1))
        session.commit()
    receipt = shred(begun, "ada")

    assert len(receipt.key_ids) == 2


def test_a_group_is_shredded_for_its_members(begun: Engine) -> None:
    """A shredded group reads as shredded for each member, who keeps everything else."""
    with Session(begun) as session:
        group = found_group(session, "choir", "ada", "ben")
        report = eraser.erasure_report(session, group)
        eraser.shred(session, group, reason="dissolved")
        session.commit()
    with opened(begun, "ben") as session:
        post = session.scalars(select(Post)).one()
        with pytest.raises(KeyShreddedError):
            _ = post.text
        session.add(Post(group_id=1, text="more"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()
        assert person(session, "ben").diary == "the diary of ben"
    assert [str(one) for one in report.readers] == ["Person 1", "Person 2"]


def test_an_erased_member_enrolled_again_is_no_member(begun: Engine) -> None:
    """The granting row of an erased member grants nothing to whoever gets new keys under its primary key."""
    with Session(begun) as session:
        found_group(session, "choir", "ada", "ben")
    shred(begun, "ada")
    with Session(begun) as session, eraser.enroll(session, person(session, "ada"), secret="another secret"):
        session.commit()
    with opened(begun, "ben") as session:
        session.add(Post(group_id=1, text="after"))
        session.commit()
        eraser.settle(session)
        session.commit()
    with Session(begun) as session, eraser.unlock(session, person(session, "ada"), secret="another secret"):
        post = session.scalars(select(Post).limit(1)).one()
        with pytest.raises(LockedError):
            _ = post.text


def test_nested_groups_start_new_epochs(begun: Engine) -> None:
    """Whoever was shredded had the keys of the groups beyond, too: the next write is under new ones."""
    with Session(begun) as session:
        inner = found_group(session, "inner", "ada", "ben")
        found_group(session, "outer", "ada", inner=inner)
    shred(begun, "ada")
    with opened(begun, "ben") as session:
        session.add(Post(group_id=2, text="after"))
        session.commit()
        keys = Group.__key_class__
        roots = session.scalars(select(keys.owner_id).where(keys.purpose == "root")).all()

        assert min(roots.count(1), roots.count(2)) > 1
        assert posts(session) == ["the first post of inner", "the first post of outer", "after"]
        assert len(session.scalars(select(Nesting)).all()) == 1
