"""A small world of people, crews, fleets of crews, and watches whose past is not for who joins; and a plain
model of who may read what in it, which knows nothing of keys.

In the model each value has a moment at which it was written, and each granting row one at which it was added.
`ever` has what each person had a right to at any moment since it was written: nobody reads more, with
whatever they kept. A right is *sure* where somebody who surely holds the key gave it or settled since: what
it leads to opens at the next unlock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqlalchemy_envelope import EncryptedType, KeyGrant, KeyOwner
from sqlalchemy_envelope.orm.tables.owners import require_owner_class


class WorldBase(DeclarativeBase):
    pass


class Person(KeyOwner, WorldBase):
    __tablename__ = "world_persons"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Crew(KeyOwner, WorldBase):
    """People; who joins reads the past."""

    __tablename__ = "world_crews"

    id: Mapped[int] = mapped_column(primary_key=True)
    seats: Mapped[list[CrewSeat]] = relationship(
        back_populates="crew", cascade="all, delete-orphan", passive_deletes=True
    )


class Fleet(KeyOwner, WorldBase):
    """Crews, and so their people."""

    __tablename__ = "world_fleets"

    id: Mapped[int] = mapped_column(primary_key=True)


class Watch(KeyOwner, WorldBase):
    """People and crews; who joins reads what is written from then on."""

    __tablename__ = "world_watches"

    id: Mapped[int] = mapped_column(primary_key=True)


class CrewSeat(KeyGrant, WorldBase, of="of_id", to="to_id"):
    __tablename__ = "world_crew_seats"

    of_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"), primary_key=True)
    to_id: Mapped[int] = mapped_column(ForeignKey("world_persons.id", ondelete="CASCADE"), primary_key=True)
    crew: Mapped[Crew] = relationship(back_populates="seats")


class FleetPlace(KeyGrant, WorldBase, of="of_id", to="to_id"):
    """A group in a group. Its primary key is known after the flush."""

    __tablename__ = "world_fleet_places"
    __table_args__ = (UniqueConstraint("of_id", "to_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    of_id: Mapped[int] = mapped_column(ForeignKey("world_fleets.id", ondelete="CASCADE"))
    to_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"))


class WatchSeat(KeyGrant, WorldBase, of="of_id", to="to_id", history="from_join"):
    __tablename__ = "world_watch_seats"

    of_id: Mapped[int] = mapped_column(ForeignKey("world_watches.id", ondelete="CASCADE"), primary_key=True)
    to_id: Mapped[int] = mapped_column(ForeignKey("world_persons.id", ondelete="CASCADE"), primary_key=True)


class WatchGuest(KeyGrant, WorldBase, of="of_id", to="to_id", history="from_join"):
    """A crew in a watch."""

    __tablename__ = "world_watch_guests"

    of_id: Mapped[int] = mapped_column(ForeignKey("world_watches.id", ondelete="CASCADE"), primary_key=True)
    to_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"), primary_key=True)


class ProfileShown(KeyGrant, WorldBase, of="of_id", to="to_id", scope="profile"):
    """What people show a crew of theirs, or another one."""

    __tablename__ = "world_profiles_shown"
    __table_args__ = (UniqueConstraint("of_id", "to_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    of_id: Mapped[int] = mapped_column(ForeignKey("world_persons.id", ondelete="CASCADE"))
    to_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"))


class BerthShown(KeyGrant, WorldBase, of="of_id", to="to_id", scope="berth", history="from_join"):
    """The same of where they are, from now on."""

    __tablename__ = "world_berths_shown"

    of_id: Mapped[int] = mapped_column(ForeignKey("world_persons.id", ondelete="CASCADE"), primary_key=True)
    to_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"), primary_key=True)


class Card(WorldBase):
    """What people write of themselves: in two scopes, and in none."""

    __tablename__ = "world_cards"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("world_persons.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    profile: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))
    berth: Mapped[str | None] = mapped_column(EncryptedType(String, scope="berth"))
    owner: Mapped[Person] = relationship()


class CrewLog(WorldBase):
    __tablename__ = "world_crew_logs"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("world_crews.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(EncryptedType(String))
    owner: Mapped[Crew] = relationship()


class FleetOrder(WorldBase):
    __tablename__ = "world_fleet_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("world_fleets.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(EncryptedType(String))
    owner: Mapped[Fleet] = relationship()


class WatchNote(WorldBase):
    __tablename__ = "world_watch_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("world_watches.id", ondelete="CASCADE"))
    text: Mapped[str] = mapped_column(EncryptedType(String))
    owner: Mapped[Watch] = relationship()


PAGES: dict[type[Any], type[Any]] = {Person: Card, Crew: CrewLog, Fleet: FleetOrder, Watch: WatchNote}
"""Where the values of each class of owners are."""
COLUMNS: dict[type[Any], tuple[str, ...]] = {
    Person: ("text", "profile", "berth"),
    Crew: ("text",),
    Fleet: ("text",),
    Watch: ("text",),
}
GRANTS: dict[type[Any], tuple[type[Any], type[Any]]] = {
    CrewSeat: (Crew, Person),
    FleetPlace: (Fleet, Crew),
    WatchSeat: (Watch, Person),
    WatchGuest: (Watch, Crew),
    ProfileShown: (Person, Crew),
    BerthShown: (Person, Crew),
}
"""Whose key each class grants, and to whom."""
WORLD_OWNERS = [require_owner_class(model()) for model in PAGES]


@dataclass(eq=False)
class Owner:
    """Somebody with keys, or who may get some."""

    kind: type[Any]
    id: int
    name: str
    is_enrolled: bool = True
    has_provider: bool = False

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))


@dataclass(eq=False)
class Right:
    """A granting row.

    Attributes:
        sure: from which moment on it surely leads to what is written; None, if nobody may have granted yet.
        made: whose key it granted, and to whom, when the grant was made.
    """

    grant: type[Any]
    of: Owner
    to: Owner
    joined: int
    sure: int | None
    made: tuple[Owner, Owner]

    @property
    def is_void(self) -> bool:
        """Whether it says something else now than when the grant was made: it gives nobody anything."""
        return (self.of, self.to) != self.made

    @property
    def scope(self) -> str | None:
        """Which of the owner's keys it grants; None, if all of them."""
        return {ProfileShown: "profile", BerthShown: "berth"}.get(self.grant)

    @property
    def has_past(self) -> bool:
        """Whether what was written before it is read."""
        return self.grant not in (WatchSeat, WatchGuest, BerthShown)

    def __repr__(self) -> str:
        return f"{self.grant.__name__}({self.of}, {self.to})"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(repr(self))


@dataclass(eq=False)
class Value:
    """What stands in an encrypted column.

    Attributes:
        is_sealed: written while its owner was locked: it is in no scope yet.
    """

    owner: Owner
    column: str
    row: int
    text: str
    at: int
    is_sealed: bool = False

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(f"{self.text} for {self.owner}")


@dataclass
class Plain:
    """Who may read what."""

    now: int = 0
    people: list[Owner] = field(default_factory=list)
    groups: list[Owner] = field(default_factory=list)
    rights: list[Right] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    ever: dict[Owner, set[str]] = field(default_factory=dict)

    def owners(self, kind: type[Any] | None = None) -> list[Owner]:
        """All of them, or those of a class."""
        return [one for one in (*self.people, *self.groups) if kind in (None, one.kind)]

    def came_to_pass(self) -> None:
        """Something was committed: note what each one has a right to now."""
        for person in self.people:
            ever = self.ever.setdefault(person, set())
            ever.update(one.text for one in self.values if self._has_right(person, one, surely=False))

    def must_read(self, person: Owner) -> set[str]:
        """What opens for somebody at the next unlock."""
        return {one.text for one in self.values if self._has_right(person, one, surely=True)}

    def holds(self, person: Owner, owner: Owner, *, surely: bool, column: str = "text") -> bool:
        """Whether somebody has a right to the key that new values of an owner are written under."""
        last = Value(owner, column, 0, "", self.now + 1)
        return self._has_right(person, last, surely=surely)

    def _has_right(self, person: Owner, value: Value, *, surely: bool) -> bool:
        if value.owner is person:
            return True
        return any(
            self._leads(one, person, surely)
            for one in self.rights
            if one.of is value.owner
            and (one.scope is None or (one.scope == value.column and not value.is_sealed))
            and (one.has_past or (one.joined if not surely or one.sure is None else one.sure) <= value.at)
        )

    def _leads(self, right: Right, person: Owner, surely: bool) -> bool:
        if surely and right.sure is None:
            return False
        # The grant of a row that SQL changed is void, unless there was none yet.
        if right.is_void and (surely or right.sure is not None):
            return False
        if right.to is person:
            return True
        return any(
            self._leads(one, person, surely)
            for one in self.rights
            if one.of is right.to and one.scope is None
        )

    def is_kept_by_somebody(self, without: list[Right], gone: Owner | None = None) -> bool:
        """Whether each group has somebody who surely holds its key once these rights are gone, and each key
        that a pending right waits for."""
        rest = Plain(self.now, self.people, self.groups, [one for one in self.rights if one not in without])
        return all(
            group is gone
            or group.has_provider
            or all(rest._is_held_since(group, moment) for moment in rest._moments(group))
            for group in self.groups
        )

    def _moments(self, group: Owner) -> list[int]:
        """When those joined who wait for this group's key, and the next moment."""
        return [self.now + 1, *(one.joined for one in self.rights if one.of is group and one.sure is None)]

    def _is_held_since(self, group: Owner, moment: int) -> bool:
        written = Value(group, "text", 0, "", moment)
        return any(self._has_right(one, written, surely=True) for one in self.people)

    def removable(self, rights: list[Right]) -> list[Right]:
        """Those of these that can go, and every group is still held by somebody."""
        return [one for one in rights if self.is_kept_by_somebody([one])]

    def is_there(self, grant: type[Any], of: Owner, to: Owner) -> bool:
        """Whether there is such a granting row."""
        return any((one.grant, one.of, one.to) == (grant, of, to) for one in self.rights)

    def settled_by(self, person: Owner) -> None:
        """Somebody settled: what they surely hold is granted to all who have keys."""
        for owner in [one for one in self.owners() if self.holds(person, one, surely=True)]:
            self.settled_of(owner)

    def settled_of(self, owner: Owner) -> None:
        """Somebody who holds this owner's key settled."""
        for one in self.rights:
            if one.of is owner and one.to.is_enrolled and not one.is_void and one.sure is None:
                one.sure = self.now

    def delete(self, owner: Owner) -> None:
        """A group is gone, with all that hangs on it."""
        self.groups.remove(owner)
        self.rights = [one for one in self.rights if owner not in (one.of, one.to)]
        self.values = [one for one in self.values if one.owner is not owner]
