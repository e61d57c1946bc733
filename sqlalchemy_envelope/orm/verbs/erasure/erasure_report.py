"""The report before a shredding: what would be lost, for whom, and what would remain."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.keys.model import GrantState
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.verbs.erasure.counted_values import (
    PlaintextColumns,
    ValueCount,
    plaintext_beside,
)
from sqlalchemy_envelope.orm.verbs.erasure.erasure import Survey
from sqlalchemy_envelope.orm.verbs.erasure.remains import Remaining, remaining
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled
from sqlalchemy_envelope.orm.verbs.status.grant_status import OwnerName
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place
    from sqlalchemy_envelope.orm.verbs.erasure.erasure import Holdings, Lost


@dataclass(frozen=True)
class KeyToLose:
    """A key that a shredding would destroy."""

    purpose: str
    scope: str
    epoch: int
    state: str


@dataclass(frozen=True)
class LostGroup:
    """A group whose data nobody could read any more, since its last holder would be gone.

    Attributes:
        values: the number of its encrypted values.
        waiting: the number of members who were never given the key, and could not get it any more.
    """

    group: OwnerName
    values: int
    waiting: int


@dataclass(frozen=True)
class ErasureReport:
    """What the shredding of an owner would destroy, and what would remain. Holds no key and no value.

    Attributes:
        values: the number of encrypted values in each column.
        keys: the keys that would be destroyed.
        slots: the number of slots of each kind; a slot counts once, in however many epochs it is.
        tickets: the number of tickets, and of whatever else stands beside the keys.
        readers: the owners who can read until now, by a grant.
        groups: the owners whose keys were granted to this one. It leaves them, and they start a new epoch.
        lost_groups: the groups that it is the last holder of: `also_groups=True` shreds them too.
        plaintext: the columns that are not encrypted, which a shredding leaves as they are.
        copies: the places that may hold the wrapped keys afterwards, and until when.
    """

    owner: OwnerName
    values: tuple[ValueCount, ...]
    keys: tuple[KeyToLose, ...]
    slots: dict[str, int]
    tickets: int
    readers: tuple[OwnerName, ...]
    groups: tuple[OwnerName, ...]
    lost_groups: tuple[LostGroup, ...]
    plaintext: tuple[PlaintextColumns, ...]
    copies: tuple[Remaining, ...]

    @property
    def value_count(self) -> int:
        """The number of encrypted values under the owner's own keys."""
        return sum(one.values for one in self.values)

    def to_json(self) -> str:
        """The report as JSON. It names owners by their primary keys."""
        whole = {
            **asdict(self),
            "owner": _named(self.owner),
            "values": {one.column: one.values for one in self.values},
            "readers": [_named(one) for one in self.readers],
            "groups": [_named(one) for one in self.groups],
            "lost_groups": [{**asdict(one), "group": _named(one.group)} for one in self.lost_groups],
            "plaintext": {one.name: one.columns for one in self.plaintext},
        }
        return json.dumps(whole, default=str, indent=2)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _named(owner: OwnerName) -> dict[str, Any]:
    return {"class": owner.class_name, "primary_key": list(owner.primary_key)}


def _lines(report: ErasureReport) -> list[str]:
    values = ", ".join(f"{one.column} {one.values:,}" for one in report.values) or "none"
    slots = ", ".join(f"{count} {kind}" for kind, count in sorted(report.slots.items())) or "none"
    lines = [
        f"{report.owner}: {counted(report.value_count, 'encrypted value')} would be lost ({values})",
        f"  keys: {len(report.keys)}; slots: {slots}; tickets: {report.tickets}",
        f"  could read until now: {', '.join(map(str, report.readers)) or 'nobody else'}",
        f"  leaves: {', '.join(map(str, report.groups)) or 'no group'}",
    ]
    for lost in report.lost_groups:
        waiting = f", and {counted(lost.waiting, 'member waits', 'members wait')} for its key"
        lines.append(
            f"  LOST WITH IT: {lost.group}, {counted(lost.values, 'value')}{waiting if lost.waiting else ''}"
        )
    lines += [f"  stays readable: {one.name} ({', '.join(one.columns)})" for one in report.plaintext]
    for copy in report.copies:
        until = "" if copy.until is None else f", until {copy.until:%Y-%m-%d}"
        lines.append(f"  copies of the keys: {copy.place}{until}: {copy.known}")
    return lines


def erasure_report(desk: Desk, owner: object, backups_kept: dt.timedelta | None) -> ErasureReport:
    """Return what the shredding of an owner would take with it."""
    note_policy(desk.session, desk.policy)
    place, survey = locate_enrolled(desk, owner).place, Survey(desk)
    with desk.session.no_autoflush:
        mine = survey.holdings(place)
        lost = survey.lost_with(mine)
        groups = survey.groups([mine])
        copies = copies_of(desk, place, dt.datetime.now(dt.UTC), backups_kept)
    return ErasureReport(
        owner=_name(place),
        values=mine.values,
        keys=tuple(
            KeyToLose(one.stored.purpose.value, one.stored.scope, one.stored.epoch, one.stored.state.value)
            for one in mine.keys
        ),
        slots=mine.slots,
        tickets=tickets_among(mine),
        readers=tuple(sorted(_readers(mine))),
        groups=tuple(sorted(map(_name, groups), key=str)),
        lost_groups=tuple(_lost_group(one) for one in lost),
        plaintext=plaintext_beside(place.owner_class),
        copies=copies,
    )


def copies_of(
    desk: Desk, place: Place, now: dt.datetime, backups_kept: dt.timedelta | None
) -> tuple[Remaining, ...]:
    """Return the places that may hold an owner's key rows as they were."""
    session, owner_class = desk.session, place.owner_class
    connection = session.connection(bind_arguments=bind_for(session, owner_class.mapper))
    return remaining(connection, owner_class.key_class.__table__, now, backups_kept)


def tickets_among(holdings: Holdings) -> int:
    """Return the number of rows beside the keys that are no slots."""
    slots = holdings.place.owner_class.slot_class.__table__.name
    return sum(count for table, count in holdings.beside.items() if table != slots)


def _readers(mine: Holdings) -> set[OwnerName]:
    return {
        OwnerName(one.grant.to.owner_class.name, tuple(one.recipient))
        for one in mine.given
        if one.stored.state is not GrantState.PENDING
    }


def _lost_group(lost: Lost) -> LostGroup:
    return LostGroup(_name(lost.holdings.place), lost.holdings.value_count, lost.waiting)


def _name(place: Place) -> OwnerName:
    return OwnerName(place.owner_class.name, tuple(place.primary_key))
