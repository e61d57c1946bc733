"""What the destruction of an owner's keys takes with it, found from the rows alone.

An owner holds keys of its own, and keys of groups that were granted to it. If it is the last holder of a
group's key, the group's data is lost with it. If that group is itself the last holder of another group's key,
that group is lost too, and so on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.keys.slots import is_waiting
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.rights import RightStore
from sqlalchemy_envelope.orm.tables.shredded_rows import ShreddedRows
from sqlalchemy_envelope.orm.verbs.erasure.counted_values import ValueCount, count_values

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.rights import Right
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, Place
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]


class Given(NamedTuple):
    """A key of an owner that was granted to somebody."""

    grant: GrantClass
    stored: StoredGrant
    recipient: PrimaryKey


@dataclass
class Holdings:
    """The keys of an owner, and what leads to them and from them.

    Attributes:
        keys: the keys that are not destroyed yet.
        slots: the number of slots of each kind; a slot counts once, in however many epochs it is.
        beside: the number of rows of slots, tickets and the like, by the name of the table.
        given: the grants of these keys.
        received: the granting rows that give the owner keys of others.
        values: the encrypted values under these keys.
    """

    place: Place
    keys: list[OwnedKey]
    slots: dict[str, int] = field(default_factory=dict)
    beside: dict[str, int] = field(default_factory=dict)
    given: list[Given] = field(default_factory=list)
    received: list[Right] = field(default_factory=list)
    values: tuple[ValueCount, ...] = ()

    @property
    def key_ids(self) -> list[KeyId]:
        """The ids of the keys."""
        return [one.stored.key_id for one in self.keys]

    @property
    def value_count(self) -> int:
        """The number of encrypted values."""
        return sum(one.values for one in self.values)


class Lost(NamedTuple):
    """A group whose last holders are to be shredded.

    Attributes:
        waiting: the number of members who were never given the key, and wait for a holder.
    """

    holdings: Holdings
    waiting: int

    @property
    def matters(self) -> bool:
        """Whether anything is lost with the group: values, or the hope of a member."""
        return bool(self.holdings.value_count or self.waiting)


class Survey:
    """Finds the holdings of owners, and the groups that would be lost. Sends only SELECTs.

    Args:
        locked: whether the owners are locked, and read as they are now.
    """

    def __init__(self, desk: Desk, *, locked: bool = False) -> None:
        self._desk = desk
        self._locked = locked
        self._names = Names(desk.session)

    def rows(self, place: Place) -> ShreddedRows:
        """The store of an owner's key rows."""
        return ShreddedRows(self._desk.session, place.owner_class, self._desk.policy.seals)

    def holdings(self, place: Place) -> Holdings:
        """Return the holdings of an owner. Altered rows count, too."""
        store = self.rows(place)
        for_update = self._locked and store.shows_others_when_locked
        stored = store.load([place.primary_key], for_update=for_update)
        found = Holdings(place, [one for one in stored if one.stored.state is not KeyState.DESTROYED])
        found.received = list(self._received(place))
        if not found.keys:
            return found
        found.slots, found.beside = store.count_slots(found.key_ids), store.count_beside(found.key_ids)
        found.given = [
            Given(grant, wrap, recipient)
            for grant in place.owner_class.grants_of
            for wrap, _, recipient in self._desk.grants(grant).load_of(found.key_ids)
        ]
        found.values = count_values(self._desk.session, place, found.key_ids)
        return found

    def _received(self, place: Place) -> Iterator[Right]:
        for grant in place.owner_class.grants_to:
            store = RightStore(self._desk.session, grant, self._desk.policy.seals)
            yield from store.load_rights([place.primary_key])

    def groups(self, some: Sequence[Holdings]) -> dict[Place, set[str | None]]:
        """Return the owners of whose keys these owners were granted any, with the granted scopes."""
        found: dict[Place, set[str | None]] = {}
        for right in (right for one in some for right in one.received):
            if right.wraps or right.void:
                place = self._names.place(right.grant.of.owner_class, right.of)
                found.setdefault(place, set()).add(right.grant.scope)
        return found

    def lost_with(self, owner: Holdings) -> list[Lost]:
        """Return the groups that nobody holds any more if this owner is shredded."""
        found: dict[Place, Lost] = {}
        while True:
            shredded = [owner, *(one.holdings for one in found.values())]
            gone = {one.place for one in shredded}
            whole = [place for place, scopes in self.groups(shredded).items() if None in scopes]
            new = [lost for one in whole if one not in gone and (lost := self._lost(one, gone)) is not None]
            if not new:
                return list(found.values())
            found.update((one.holdings.place, one) for one in new)

    def _lost(self, group: Place, gone: Collection[Place]) -> Lost | None:
        """Tell whether somebody else holds each root key of a group that no newer root key leads to."""
        holdings = self.holdings(group)
        roots = {
            one.stored.key_id
            for one in holdings.keys
            if one.stored.purpose is Purpose.ROOT and one.stored.wrapping_key_id is None
        }
        held, waiting = self._with_slots(group, roots), 0
        for given in holdings.given:
            place = self._names.place(given.grant.to.owner_class, given.recipient)
            if given.stored.key_id not in roots or place in gone:
                continue
            if given.stored.state is GrantState.PENDING:
                waiting += 1
            else:
                held.add(given.stored.key_id)
        return None if not roots or roots <= held else Lost(holdings, waiting)

    def _with_slots(self, group: Place, roots: Collection[KeyId]) -> set[KeyId]:
        try:
            slots = self._desk.keys(group.owner_class).load_slots(roots)
        except EnvelopeError:
            return set()  # an altered slot: nobody can tell that it opens
        return {slot.key_id for slot in slots if not is_waiting(slot)}
