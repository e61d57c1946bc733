"""Who is in no row reads nothing that is written later, however the row went, and however far the key
reaches: into an organisation that the group is a member of, into what is shared with the group."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope.orm.sharing.invariants import violations
from tests.orm.interleavings import OWNERS, Kept
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Group,
    Membership,
    Nesting,
    Organisation,
    ProfileShare,
    User,
    add_user,
    calls_sent,
    envelope,
    epochs,
    found_group,
    is_readable,
    read,
    unlock,
)
from tests.prepared import prepared

ADA, BOB, CLEO, DAN = 1, 2, 3, 4
NEAR, FAR, INNER = 1, 2, 3
"""The group that Bob is in; another of the same organisation; one within Bob's, that Dan is in."""
OUTER = 1
MEMBERSHIPS = Membership.__table__


@pytest.fixture
def scene(sqlite_engine: Engine) -> Engine:
    """Ada writes for an organisation of two groups, and is a member of neither Bob's nor Dan's."""

    def make() -> None:
        Base.metadata.create_all(sqlite_engine)
        with Session(sqlite_engine) as session:
            for name in ("ada", "bob", "cleo", "dan"):
                add_user(session, name)
            assert found_group(session, "cleo", "bob") == NEAR
            assert found_group(session, "ada") == FAR
            assert found_group(session, "cleo", "dan") == INNER
            with unlock(session, "cleo"):
                session.add(Nesting(outer_id=NEAR, inner_id=INNER))
                session.commit()
            with unlock(session, "ada"):
                organisation = Organisation(name="theirs")
                envelope.enroll(session, organisation)
                session.flush()
                session.add_all(Affiliation(organisation_id=OUTER, group_id=one) for one in (NEAR, FAR))
                session.add(ProfileShare(user_id=ADA, group_id=NEAR))
                session.commit()
        for name in ("ada", "bob", "cleo", "dan"):
            read(sqlite_engine, name)

    prepared(sqlite_engine, "closure", make)
    return sqlite_engine


def by_sql(engine: Engine, group: int, user: int) -> None:
    """From a console."""
    with engine.begin() as connection:
        connection.execute(sa.text(f"DELETE FROM memberships WHERE group_id = {group} AND user_id = {user}"))


def in_bulk(engine: Engine, group: int, user: int) -> None:
    """By a bulk delete of a session."""
    with Session(engine) as session:
        session.execute(sa.delete(Membership).where(Membership.group_id == group, Membership.user_id == user))
        session.commit()


def by_moving(engine: Engine, group: int, user: int) -> None:
    """The row is pointed at somebody else."""
    at = (MEMBERSHIPS.c.group_id == group) & (MEMBERSHIPS.c.user_id == user)
    with engine.begin() as connection:
        connection.execute(sa.update(MEMBERSHIPS).where(at).values(user_id=ADA))  # type: ignore[arg-type]


def to_another_group(engine: Engine, group: int, user: int) -> None:
    """The row is pointed at another group."""
    at = (MEMBERSHIPS.c.group_id == group) & (MEMBERSHIPS.c.user_id == user)
    with engine.begin() as connection:
        connection.execute(sa.update(MEMBERSHIPS).where(at).values(group_id=FAR))  # type: ignore[arg-type]


REMOVING = [by_sql, in_bulk, by_moving, to_another_group]
removing = pytest.mark.parametrize("removes", REMOVING, ids=lambda one: one.__name__)
who = pytest.mark.parametrize(("group", "user"), [(NEAR, BOB), (INNER, DAN)], ids=["direct", "nested"])


def organisation(engine: Engine) -> None:
    """Ada, who is in the other group, writes for the organisation."""
    with Session(engine) as session, unlock(session, "ada"):
        session.get_one(Organisation, OUTER).name = "new"
        session.commit()


def profile(engine: Engine) -> None:
    """Ada writes what she shares with the group."""
    with Session(engine) as session, unlock(session, "ada"):
        session.get_one(User, ADA).display_name = "new"
        session.commit()


def webhook(engine: Engine) -> None:
    """Nobody is unlocked, and a value is written for the organisation."""
    with Session(engine) as session, envelope.write_only(session):
        session.get_one(Organisation, OUTER).name = "new"
        session.commit()


WRITING: dict[Callable[[Engine], None], tuple[type[Any], int]] = {
    organisation: (Organisation, OUTER),
    profile: (User, ADA),
    webhook: (Organisation, OUTER),
}


@pytest.mark.parametrize("writes", WRITING, ids=lambda one: one.__name__)
@who
@removing
def test_what_is_written_later(
    scene: Engine,
    removes: Callable[[Engine, int, int], None],
    group: int,
    user: int,
    writes: Callable[[Engine], None],
) -> None:
    """The key that it is under opens to nobody who was removed before, with all that they kept and all that
    is in the tables; who stays reads it."""
    kept, owner = Kept(scene, [user]), WRITING[writes]
    with Session(scene) as session:
        before = kept.opens(session, user, owner)
    removes(scene, group, user)
    writes(scene)
    with Session(scene) as session:
        after = kept.opens(session, user, (Group, NEAR), (Group, INNER), owner)
    with Session(scene) as session, unlock(session, "cleo"):
        is_read = is_readable(session.get_one(Organisation, OUTER), "name")

    assert before
    assert after <= _of_groups(scene)
    assert is_read


def _of_groups(engine: Engine) -> set[Any]:
    """Active keys of groups that nobody was removed from."""
    keys = Base.metadata.tables["groups_key"]
    with engine.connect() as connection:
        return set(connection.scalars(select(keys.c.key_id).where(keys.c.owner_id == INNER)))


@removing
def test_a_row_that_names_somebody_else(scene: Engine, removes: Callable[[Engine, int, int], None]) -> None:
    """It gives nobody anything: neither whom it named, nor whom it names. One epoch starts, and no second
    one."""
    removes(scene, NEAR, BOB)
    for _ in range(2):
        read(scene, "cleo")
    with Session(scene) as session:
        found = violations(session, OWNERS)

    assert read(scene, "bob", NEAR) == []
    assert read(scene, "ada", NEAR) == []
    assert epochs(scene, Group, NEAR) == 2
    assert [one for one in found if "not name" in one] == []


def test_the_look_costs_one_statement_for_each_class_of_grants(scene: Engine) -> None:
    """A transaction that writes ten values for an organisation asks as often as one that writes one."""
    sizes = []
    with Session(scene) as session, unlock(session, "ada") as unlocked:
        unlocked.settle()
        session.get_one(Organisation, OUTER).name = "the first name"  # what leads there is followed once
        session.commit()
        for number in (1, 10):
            with calls_sent(scene) as sent:
                for turn in range(number):
                    session.get_one(Organisation, OUTER).name = f"name {number} {turn}"
                    session.flush()
                session.commit()
            sizes.append(len([one for one, _ in sent if "keygrant" in one]))

    assert sizes == [4, 4]


def test_a_group_that_nobody_is_in_any_more(scene: Engine) -> None:
    """Its last members were removed past the unit of work: the organisation shuts the empty group out too."""
    kept = Kept(scene, [BOB])
    for user in (BOB, CLEO):
        by_sql(scene, NEAR, user)
    with scene.begin() as connection:
        connection.execute(sa.delete(Nesting.__table__))  # type: ignore[arg-type]
    organisation(scene)
    with Session(scene) as session:
        after = kept.opens(session, BOB, (Group, NEAR), (Organisation, OUTER))
    with Session(scene) as session, unlock(session, "ada"):
        is_read = is_readable(session.get_one(Organisation, OUTER), "name")

    assert after == set()
    assert is_read


def _with_organisations(engine: Engine, many: int) -> list[int]:
    """So many more organisations of Bob's group."""
    with Session(engine) as session, unlock(session, "cleo"):
        new = [Organisation(name="before") for _ in range(many)]
        envelope.enroll(session, new)
        session.flush()
        session.add_all([Affiliation(organisation_id=one.id, group_id=NEAR) for one in new])
        session.commit()
        return [one.id for one in new]


@pytest.mark.parametrize("many", [2, 20])
def test_a_removal_costs_the_same_whatever_the_group_owns(scene: Engine, many: int) -> None:
    """The next log-in settles a group that somebody was removed from with as many statements for 20 that the
    group owns as for 2. Each of these has an epoch of its own with the next value that is written for it, and
    that value opens to nobody who was removed."""
    owned = _with_organisations(scene, many)
    read(scene, "cleo")  # as after any log-in
    kept = Kept(scene, [BOB])
    by_sql(scene, NEAR, BOB)
    with Session(scene) as session, unlock(session, "cleo") as unlocked:
        with calls_sent(scene) as sent:
            unlocked.settle()
        session.commit()
    before = [epochs(scene, Organisation, one) for one in owned]
    with Session(scene) as session, unlock(session, "cleo"):
        session.get_one(Organisation, owned[0]).name = "after"
        session.commit()
    with Session(scene) as session:
        opened = kept.opens(session, BOB, (Organisation, owned[0]))

    assert len(sent) == 52
    assert before == [1] * many
    assert [epochs(scene, Organisation, one) for one in owned] == [2] + [1] * (many - 1)
    assert opened == set()
    with Session(scene) as session, unlock(session, "cleo"):
        names = session.scalars(select(Organisation.name).where(Organisation.id.in_(owned))).all()

    assert sorted(names) == ["after"] + ["before"] * (many - 1)


def _roots(engine: Engine) -> dict[str, int]:
    """How many root keys each has had."""
    at = {"near": (Group, NEAR), "inner": (Group, INNER), "outer": (Organisation, OUTER)}
    return {name: epochs(engine, owner, key) for name, (owner, key) in at.items()}


@pytest.mark.parametrize("removed", [[(NEAR, BOB)], [(INNER, DAN)], [(NEAR, BOB), (INNER, DAN)]])
@pytest.mark.parametrize("is_shortened", [False, True])
def test_one_settling_starts_one_epoch_of_each(
    scene: Engine, removed: list[tuple[int, int]], is_shortened: bool
) -> None:
    """Two keys that the settling owner holds lead to one group, and one of the groups leads to the other, or
    to the organisation itself: the farthest has its epoch first, and none has two."""
    if is_shortened:
        with Session(scene) as session, unlock(session, "ada"):
            session.add(Affiliation(organisation_id=OUTER, group_id=INNER))
            session.commit()
    for group, user in removed:
        by_sql(scene, group, user)
    read(scene, "ada")
    settled = _roots(scene)
    organisation(scene)
    read(scene, "ada")

    inner = 2 if (INNER, DAN) in removed else 1
    assert {"near": 2, "inner": inner, "outer": 1} == settled
    assert {"near": 2, "inner": inner, "outer": 2} == _roots(scene)


def test_who_leaves_several_groups_costs_each_one_epoch(scene: Engine) -> None:
    """A user who is deleted was in a group and in one within it: the inner one has its epoch first, so that
    the other's new key is sealed to the inner one's."""
    with Session(scene) as session, unlock(session, "bob"):
        session.delete(session.get_one(User, CLEO))
        session.commit()
    counted = _roots(scene)
    read(scene, "bob")

    assert (counted["near"], counted["inner"]) == (2, 2)
    assert _roots(scene)["near"] == 2
