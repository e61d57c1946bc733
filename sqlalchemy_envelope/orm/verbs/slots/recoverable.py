"""What would be lost if an owner's secret were forgotten, and who could help: read without a key.

A key survives if a slot stays that opens it, if somebody else was granted it, or if it is wrapped under a key
that survives. An owner whose root key does not survive takes the groups along that no other member holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.beyond import MAX_LEVELS
from sqlalchemy_envelope.orm.tables.owners import places_by_class
from sqlalchemy_envelope.orm.verbs.owner_keys import load_keys, locate_enrolled
from sqlalchemy_envelope.orm.verbs.slots.slots import slots_of
from sqlalchemy_envelope.orm.verbs.status.grant_status import OwnerName
from sqlalchemy_envelope.orm.verbs.status.key_reach import active_roots, closure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sqlalchemy_envelope.keys.model import KeyId, StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot, KeySlots
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

_NOUNS = {
    "secret": "secret",
    "waiting": "secret that waits for a release",
    "recovery": "recovery code",
    "provider": "provider",
    "escrow": "escrow key",
    "emergency": "person for emergencies",
}


@dataclass(frozen=True)
class Loss:
    """Values of an owner that nobody could open again.

    Attributes:
        owner: whose they are: the owner itself, or a group of which it is the last member.
        columns: the encrypted columns, such as "Note.body".
        only_earlier: whether only values are meant that stand under keys of an earlier epoch.
    """

    owner: OwnerName
    columns: tuple[str, ...]
    only_earlier: bool = False

    def __str__(self) -> str:
        earlier = ", as far as it was written in an earlier epoch" if self.only_earlier else ""
        return f"{', '.join(self.columns)} of {self.owner}{earlier}"


@dataclass(frozen=True)
class Recoverability:
    """What opens an owner, and what would be lost without some of it. Holds no key.

    Attributes:
        owner: the owner.
        without: the kinds of slots that are taken for lost.
        ways: every slot that opens the owner's keys, and provider slots that reach it through grants.
        holders: the owners who hold the owner's root key, or the key of a scope, through a grant.
        lost: what nobody could open again. Empty if nothing would be lost.
    """

    owner: OwnerName
    without: frozenset[str]
    ways: KeySlots
    holders: tuple[OwnerName, ...]
    lost: tuple[Loss, ...]

    @property
    def remaining(self) -> tuple[KeySlot, ...]:
        """The slots that would still open the owner."""
        return tuple(way for way in self.ways if way.kind not in self.without and way.kind != "waiting")

    @property
    def helpers(self) -> tuple[str, ...]:
        """Who could help, in words."""
        found = [_helper(way) for way in self.remaining if not way.through and way.kind != "secret"]
        found += [f"provider {name!r}" for name in sorted(self.ways.providers)]
        return tuple(dict.fromkeys([*found, *map(str, self.holders)]))

    def __str__(self) -> str:
        kinds = " or ".join(sorted(_NOUNS.get(kind, kind) for kind in self.without))
        own = [way for kind in _NOUNS for way in self.ways if way.kind == kind and not way.through]
        has = "; ".join(dict.fromkeys(map(_told, own)))
        said = f"{self.owner} is opened by {has or 'nothing of its own'}."
        if self.helpers:
            said += f" Without a {kinds}, these could help: {', '.join(self.helpers)}."
        if not self.lost:
            return f"{said} Nothing would be lost."
        lost = "; ".join(map(str, self.lost))
        return f"{said} Without a {kinds}, this would be lost: {lost}. {self._cure}"

    @property
    def _cure(self) -> str:
        if "recovery" in self.without:
            return "A second secret, made while the owner is unlocked, would prevent that."
        return "A recovery code, made while the owner is unlocked, would prevent that."


def _told(way: KeySlot) -> str:
    if way.kind == "provider":
        return f"provider {way.provider!r}"
    label = f" {way.label!r}" if way.label else ""
    return f"{'an' if way.kind == 'escrow' else 'a'} {_NOUNS[way.kind]}{label}"


def _helper(way: KeySlot) -> str:
    if way.kind == "recovery":
        return (
            f"whoever keeps the recovery code {way.label!r}" if way.label else "whoever keeps a recovery code"
        )
    return _told(way)


def recoverable(desk: Desk, owner: object, without: Iterable[str]) -> Recoverability:
    """Return what opens an owner, and what would be lost without slots of these kinds."""
    gone = frozenset(without)
    located = locate_enrolled(desk, owner)
    note_policy(desk.session, desk.policy)
    keys = load_keys(located)
    search = _Search(desk, located.place, gone)
    search.look(located.place, keys)
    return Recoverability(
        _name(located.place), gone, slots_of(desk, owner), search.holders(located.place), search.losses()
    )


class _Held(NamedTuple):
    """The keys of an owner, with the ways to them.

    Attributes:
        keys: the keys, but destroyed ones.
        slots: the root keys that a slot opens for sure.
        granted: the keys that were granted, each with its recipient.
    """

    keys: list[StoredKey]
    slots: frozenset[KeyId]
    granted: list[tuple[KeyId, Place]]


class _Search:
    """Finds the owners whose keys do not survive, from one owner to the groups that it alone holds."""

    def __init__(self, desk: Desk, start: Place, without: frozenset[str]) -> None:
        self._desk, self._start, self._without = desk, start, without
        self._names = Names(desk.session)
        self._held: dict[Place, _Held] = {}
        self._lost: dict[Place, None] = {}

    def look(self, start: Place, keys: Sequence[StoredKey]) -> None:
        """Look at an owner, and at the owners that hang on it alone."""
        self._load(start.owner_class, {start: list(keys)})
        asked: set[Place] = set()
        for _ in range(MAX_LEVELS + 1):
            while new := [one for one in self._held if one not in self._lost and self._is_lost(one)]:
                self._lost.update(dict.fromkeys(new))
            further = [place for place in self._lost if place not in asked]
            asked.update(further)
            reached = [place for place in self._granted_to(further) if place not in self._held]
            if not reached:
                break
            for owner_class, some in places_by_class(reached).items():
                self._load(owner_class, self._keys(owner_class, some))

    def _keys(self, owner_class: OwnerClass, places: Sequence[Place]) -> dict[Place, list[StoredKey]]:
        found: dict[Place, list[StoredKey]] = {place: [] for place in places}
        by_owner = {place.owner: place for place in places}
        for row in self._desk.keys(owner_class).load([place.primary_key for place in places]):
            if row.error is None and row.owner in by_owner:
                found[by_owner[row.owner]].append(row.stored)
        return found

    def _load(self, owner_class: OwnerClass, keys: dict[Place, list[StoredKey]]) -> None:
        """Load the slots of some owners of a class, and the grants of their keys."""
        there = [key for some in keys.values() for key in some if key.state is not KeyState.DESTROYED]
        roots = {key.key_id for key in there if key.purpose is Purpose.ROOT}
        granted: dict[KeyId, list[Place]] = {}
        for grant in owner_class.grants_of:
            for one, _, recipient in self._desk.grants(grant).load_of([key.key_id for key in there]):
                if one.state is not GrantState.PENDING:
                    to = self._names.place(grant.to.owner_class, recipient)
                    granted.setdefault(one.key_id, []).append(to)
        slots = self._desk.keys(owner_class).load_slots(roots, closed_too=True)
        for place, some in keys.items():
            mine = [key for key in some if key.state is not KeyState.DESTROYED]
            open_roots = frozenset(slot.key_id for slot in slots if self._stays(place, slot))
            through = [(key.key_id, to) for key in mine for to in granted.get(key.key_id, ())]
            self._held[place] = _Held(mine, open_roots, through)

    def _stays(self, place: Place, slot: StoredSlot) -> bool:
        """Whether a slot goes on opening its root key: a slot of another owner does.

        A waiting slot opens nothing yet. An emergency slot opens only for a person who may be gone by then.
        """
        lasts = slot.kind is not SlotKind.EMERGENCY and not is_waiting(slot)
        return lasts and (place != self._start or slot.kind.value not in self._without)

    def _granted_to(self, places: Iterable[Place]) -> list[Place]:
        """The owners whose root key was granted to one of these owners."""
        found: dict[Place, None] = {}
        for owner_class, some in places_by_class(places).items():
            for grant in owner_class.grants_to:
                if grant.scope is not None:
                    continue  # the owner of a scope's key holds it as well
                rows = self._desk.grants(grant).load_to([place.primary_key for place in some])
                for one, error, key in rows:
                    if error is None and key.error is None and one.state is not GrantState.PENDING:
                        found[self._names.place(grant.of.owner_class, key.primary_key)] = None
        return list(found)

    def _surviving(self, place: Place) -> frozenset[KeyId]:
        held = self._held[place]
        opens = [key_id for key_id, to in held.granted if to not in self._lost]
        return closure(held.keys, [*held.slots, *opens])

    def _is_lost(self, place: Place) -> bool:
        """Whether nobody could open an owner's active root key."""
        return not self._surviving(place).issuperset(active_roots(self._held[place].keys))

    def holders(self, place: Place) -> tuple[OwnerName, ...]:
        """The owners who were granted a key of this owner."""
        return tuple(dict.fromkeys(_name(to) for _, to in self._held[place].granted))

    def losses(self) -> tuple[Loss, ...]:
        """What nobody could open again, the owner's own first."""
        found = []
        for place in dict.fromkeys([self._start, *self._lost]):
            surviving = self._surviving(place)
            values = [key for key in self._held[place].keys if key.purpose is not Purpose.ROOT]
            gone = [key for key in values if key.key_id not in surviving]
            now = {key.scope for key in gone if key.state is KeyState.ACTIVE}
            earlier = {key.scope for key in gone} - now
            for scopes, only_earlier in ((now, False), (earlier, True)):
                columns = _columns(place.owner_class, scopes)
                if columns:
                    found.append(Loss(_name(place), columns, only_earlier))
        return tuple(found)


def _columns(owner_class: OwnerClass, scopes: Collection[str]) -> tuple[str, ...]:
    """The encrypted columns of owners of this class, in these scopes."""
    found: dict[object, str] = {}
    mappers = sorted(owner_class.mapper.registry.mappers, key=lambda one: len(list(one.iterate_to_root())))
    for mapper in mappers if scopes else ():
        for attribute in plan_of_mapper(mapper):
            one = attribute.encrypted
            if owner_class in one.path.owner_classes and one.scope in scopes:
                found.setdefault(one.column, f"{mapper.class_.__name__}.{attribute.key}")
    return tuple(sorted(found.values()))


def _name(place: Place) -> OwnerName:
    return OwnerName(place.owner_class.name, place.primary_key)
