"""What the state machine of sharing found, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

from tests.orm.sharing.sharing_world import (
    Crew,
    CrewSeat,
    Fleet,
    FleetPlace,
    Owner,
    ProfileShown,
    Right,
    WatchGuest,
    WatchSeat,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
from tests.orm.sharing.machine_world import World

NAMES = ("ann", "bob", "cat", "dan")
SERVER_KEY = b"\x05" * 32


@pytest.fixture(params=[False, True], ids=["unsealed", "sealed"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The world as each run of the machine begins it."""
    world = World(request.param)
    yield world
    world.end()


def test_who_joins_does_not_read_what_was_written_while_all_were_locked(world: World) -> None:
    """A write epoch of a watch is adopted under the key that it was sealed to: who joined before that has a
    newer one."""
    ann, _, cat, _ = world.plain.people
    _, _, watch = world.plain.groups
    world.write(watch, how="write_only")
    world.add(WatchSeat, watch, cat)
    world.look(ann, settle=True)

    world.look(ann)
    world.look(cat)
    world.spy(cat)


@pytest.mark.parametrize("is_late", [False, True], ids=["at once", "pending"])
@pytest.mark.parametrize("grant", [FleetPlace, ProfileShown])
def test_a_group_that_somebody_left_gets_a_new_key_before_it_is_given_others(
    world: World, grant: type[Any], is_late: bool
) -> None:
    """A console removes Bob from a crew, which is then let into a fleet, or is shown a profile: what was
    written there before is not his, though the crew's old key is."""
    ann, bob, cat, _ = world.plain.people
    crew, _, _ = world.plain.groups
    own = world.found(Crew, cat, CrewSeat, cat)
    assert own is not None
    owner = world.found(Fleet, cat, FleetPlace, own) if grant is FleetPlace else cat
    assert owner is not None
    world.write(owner, cat, column="profile" if owner is cat else "text")
    world.remove(_seat_of(world, bob), way="sql")
    world.add(grant, owner, crew, None if is_late else cat)
    world.look(cat, settle=True)

    world.spy(bob)
    world.look(ann)
    world.everybody_settles()


def test_an_epoch_is_not_sealed_to_a_group_that_waits_and_that_somebody_left(world: World) -> None:
    """A crew waits to be let into a fleet when a console removes Bob from it, and another crew goes: the
    fleet's new key is not sealed to the old key of the first."""
    ann, bob, cat, _ = world.plain.people
    crew, _, _ = world.plain.groups
    own, other = world.found(Crew, cat, CrewSeat, cat), world.found(Crew, cat, CrewSeat, cat)
    assert own is not None
    assert other is not None
    fleet = world.found(Fleet, cat, FleetPlace, own)
    assert fleet is not None
    world.add(FleetPlace, fleet, other, cat)
    world.write(fleet, cat)
    world.remove(_seat_of(world, bob), way="sql")
    world.add(FleetPlace, fleet, crew)
    world.remove(world.plain.rights[-2])
    world.look(cat, settle=True)

    world.spy(bob)
    world.look(ann)


@pytest.mark.parametrize("keep", [False, True], ids=["just unlocked", "kept"])
@pytest.mark.parametrize("way", ["object", "sql"])
def test_who_is_shown_a_profile_writes_in_it_for_who_is_there(world: World, way: str, keep: bool) -> None:
    """Who holds a scope of somebody and no more, and writes in it, writes under a key that nobody has who was
    removed from the crew since."""
    ann, bob, cat, _ = world.plain.people
    crew, _, _ = world.plain.groups
    world.add(ProfileShown, ann, crew, ann)
    world.add(CrewSeat, crew, cat, ann)
    world.keep(cat, settle=True)
    world.remove(_seat_of(world, bob), way=way)
    world.write(ann, cat, column="profile", keep=keep)

    assert len(world.plain.values) == 1
    world.spy(bob)
    world.look(ann)
    world.look(cat)
    world.everybody_settles()


def test_who_is_shown_a_profile_no_more_does_not_write_in_it(world: World) -> None:
    """With a key that they kept: nobody else would be shut out of it."""
    ann, bob, _, _ = world.plain.people
    crew, _, _ = world.plain.groups
    world.add(ProfileShown, ann, crew, ann)
    world.keep(bob, settle=True)
    (share,) = [one for one in world.plain.rights if one.grant is ProfileShown]
    world.remove(share, way="sql")
    world.write(ann, bob, column="profile", keep=True)

    assert world.plain.values == []


def test_who_gets_keys_late_reads_everything_since_they_joined(world: World) -> None:
    """Dan is put into a watch and has no keys yet; the watch has a newer key when he gets some. He reads what
    was written under both."""
    ann, bob, _, dan = world.plain.people
    _, _, watch = world.plain.groups
    world.write(watch, ann)
    world.add(WatchSeat, watch, dan, ann)
    world.write(watch, ann)
    world.add(WatchSeat, watch, bob, ann)
    world.write(watch, ann)
    world.enroll(dan)
    world.look(ann, settle=True)
    with Session(world.engine) as session, world.unlock(session, dan):
        found = world.read(session)
        session.commit()

    assert {one.text for one in world.plain.values[1:]} == found


@pytest.mark.parametrize("how", ["unlocked", "write_only"])
@pytest.mark.parametrize("grant", [WatchGuest, ProfileShown])
def test_a_removed_member_is_found_behind_a_key_that_was_replaced_since(
    world: World, grant: type[Any], how: str
) -> None:
    """Dan's removal gives the crew a new key, and the watch, or the profile, that the crew reads is still
    sealed to the old key. Then a console removes Cat. What Ann writes next is sealed to a key that Cat does
    not have."""
    ann, bob, cat, dan = world.plain.people
    crew, _, watch = world.plain.groups
    owner, column = (watch, "text") if grant is WatchGuest else (ann, "profile")
    world.enroll(dan)
    for person in (cat, dan):
        world.add(CrewSeat, crew, person, ann)
    world.add(grant, owner, crew, ann)
    world.remove(_seat_of(world, ann), bob)
    world.remove(_seat_of(world, dan), bob)
    world.remove(_seat_of(world, cat), way="sql")
    world.write(owner, ann if how == "unlocked" else None, column=column, how=how)

    world.spy(cat)
    world.spy(dan)
    world.look(bob)


def test_a_write_finds_every_stale_key_on_the_way_at_once(world: World) -> None:
    """The fleet is sealed to an old key of the crew, and the crew's newest key to an old key of Bob. A
    server writes for the fleet nevertheless: the epochs start at the far end."""
    ann, bob, cat, _ = world.plain.people
    crew, fleet, _ = world.plain.groups
    world.move(_seat_of(world, ann), crew, cat)
    world.everybody_settles()
    world.change_keys(bob)
    world.write(fleet, how="write_only")

    world.look(bob)
    world.look(cat)


def _seat_of(world: World, person: Owner) -> Right:
    return next(one for one in world.plain.rights if one.grant is CrewSeat and one.to is person)
