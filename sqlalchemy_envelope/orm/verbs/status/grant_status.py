"""The status of a granting row at this moment, read from the rows without a key: for an administrator's page.

`sharing.rights` decides the standing of a row. This module adds names, and the owners and providers who can
fulfil a pending grant.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError
from sqlalchemy_envelope.keys.model import GrantState, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting
from sqlalchemy_envelope.orm.sharing.rights import (
    GrantStanding,
    KindStore,
    RightStore,
    granted_kind,
    keys_due,
    standing,
)
from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant, grant_class_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.rights import KeysDue, Right
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass

    PrimaryKey = tuple[Any, ...]


class OwnerName(NamedTuple):
    """An owner by its class and primary key.

    Attributes:
        class_name: the name of the class.
        primary_key: its primary key, a tuple always.
    """

    class_name: str
    primary_key: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.class_name} {', '.join(map(str, self.primary_key))}"


@dataclass(frozen=True)
class GrantStatus:
    """The status of a granting row at this moment. Holds no key, and nothing that leads to a key.

    Attributes:
        grant: the class of the row.
        row: its primary key.
        of: the owner whose key it grants.
        to: the recipient.
        scope: the scope that it grants; None for the whole key.
        standing: pending, granted or void.
        since: the time since when it is pending or granted.
        holders: for a pending grant, the owners who can fulfil it, each once unlocked.
        providers: for a pending grant, the providers that hold a slot of the owner and can fulfil it too.
        is_enrolled: whether the recipient has keys; a grant to an owner without keys waits for them first.
    """

    grant: str
    row: tuple[Any, ...]
    of: OwnerName
    to: OwnerName
    scope: str | None
    standing: GrantStanding
    since: dt.datetime | None = None
    holders: tuple[OwnerName, ...] = ()
    providers: tuple[str, ...] = ()
    is_enrolled: bool = True

    def __str__(self) -> str:
        what = f"the scope {self.scope!r} of {self.of}" if self.scope else f"{self.of}"
        said = f"{self.grant} {', '.join(map(str, self.row))}: {what} to {self.to}, {self.standing}"
        if self.standing is not GrantStanding.PENDING:
            return said
        since = "" if self.since is None else f" since {self.since:%Y-%m-%d %H:%M}"
        if not self.is_enrolled:
            return f"{said}{since}: {self.to} has no keys yet"
        by = ", ".join([*map(str, self.holders), *(f"provider {name!r}" for name in self.providers)])
        return f"{said}{since}, for {by} to fulfil" if by else f"{said}{since}, and nobody holds the key"


def grant_states(desk: Desk, grants: type[Any] | Iterable[object]) -> list[GrantStatus]:
    """Return the status of all rows of a class, or of some objects of any classes, in their order."""
    if isinstance(grants, type):
        return statuses_of(desk, RightStore(desk.session, _class_of(grants), desk.policy.seals).load_all())
    asked = [_row_of(one) for one in grants]
    rights: dict[tuple[GrantClass, PrimaryKey], Right] = {}
    for grant in dict.fromkeys(grant for grant, _ in asked):
        rows = [row for other, row in asked if other is grant]
        found = RightStore(desk.session, grant, desk.policy.seals).load_rows(rows)
        rights.update(((grant, one.row), one) for one in found)
    return statuses_of(desk, [rights[one] for one in asked if one in rights])


def _class_of(cls: type[Any]) -> GrantClass:
    mapper = getattr(cls, "__mapper__", None)
    found = grant_class_of(mapper) if mapper is not None and issubclass(cls, KeyGrant) else None
    if found is None:
        raise ConfigurationError(
            f"grant_states() takes a class of KeyGrant, or objects of such classes; {cls.__name__} is none."
        )
    return found


def _row_of(instance: object) -> tuple[GrantClass, PrimaryKey]:
    grant, state = _class_of(type(instance)), inspect(instance)
    if state is None or state.key is None:
        raise ConfigurationError(
            f"A {type(instance).__name__} that is not in the database grants nothing yet: flush it first."
        )
    return grant, tuple(state.key[1])


def statuses_of(desk: Desk, rights: Sequence[Right]) -> list[GrantStatus]:
    """Return the status of granting rows. The number of queries depends on the classes, not on the rows."""
    due = keys_due(desk.session, desk.policy.seals, rights)
    found = [(right, *standing(right, due.get(granted_kind(right)), desk.policy.seals)) for right in rights]
    pending = [right for right, where, _ in found if where is GrantStanding.PENDING]
    helpers = _Helpers(desk, pending, due)
    enrolled = _enrolled(desk, pending)

    def told(right: Right, where: GrantStanding, since: dt.datetime | None) -> GrantStatus:
        grant, key = right.grant, granted_kind(right)
        of = OwnerName(grant.of.owner_class.name, right.of)
        to = OwnerName(grant.to.owner_class.name, right.to)
        status = GrantStatus(grant.mapper.class_.__name__, right.row, of, to, grant.scope, where, since)
        if where is not GrantStanding.PENDING:
            return status
        has_keys = (grant.to.owner_class, right.to) in enrolled
        return replace(
            status, holders=helpers.holders(key), providers=helpers.providers(key), is_enrolled=has_keys
        )

    return [told(*one) for one in found]


class _Helpers:
    """The owners and providers who can fulfil pending grants: they hold the key, or its root key."""

    def __init__(self, desk: Desk, pending: Sequence[Right], due: KeysDue) -> None:
        """For each class of owners, send a query for the slots, and one for each of its classes of grants."""
        self._desk = desk
        kinds = {granted_kind(one): due[granted_kind(one)] for one in pending}
        self._holders: dict[Any, dict[OwnerName, None]] = {kind: {} for kind in kinds}
        self._providers: dict[Any, set[str]] = {kind: set() for kind in kinds}
        for owner_class in {kind[0] for kind in kinds}:
            mine = {kind: key for kind, key in kinds.items() if kind[0] is owner_class}
            by_key: dict[KeyId, list[Any]] = {}
            for kind, key in mine.items():
                for key_id in {key.active.key_id, key.root_id}:
                    by_key.setdefault(key_id, []).append(kind)
            self._note_slots(owner_class, {key.root_id for key in mine.values()}, by_key)
            self._note_grants(owner_class, by_key)

    def holders(self, kind: Any) -> tuple[OwnerName, ...]:
        """Return the owners who hold this kind of key."""
        return tuple(sorted(self._holders[kind], key=_place_in_list))

    def providers(self, kind: Any) -> tuple[str, ...]:
        """Return the providers that hold this kind of key."""
        return tuple(sorted(self._providers[kind]))

    def _note_slots(self, of: OwnerClass, roots: Iterable[KeyId], by_key: Mapping[KeyId, list[Any]]) -> None:
        for slot in _slots(self._desk, of, roots):
            for kind in by_key[slot.key_id]:
                if slot.kind is SlotKind.PROVIDER:
                    self._providers[kind].add(slot.provider_name)
                elif not is_waiting(slot):
                    self._holders[kind][OwnerName(of.name, kind[1])] = None

    def _note_grants(self, of: OwnerClass, by_key: Mapping[KeyId, list[Any]]) -> None:
        for grant in of.grants_of:
            for wrap, _, recipient in self._desk.grants(grant).load_of(by_key):
                kinds = () if wrap.state is GrantState.PENDING else by_key[wrap.key_id]
                for kind in kinds:
                    self._holders[kind][OwnerName(grant.to.owner_class.name, recipient)] = None


def _place_in_list(name: OwnerName) -> tuple[str, list[str]]:
    """Sort by class and key, 2 before 10: keys of two classes of the same name may be of different types."""
    return name.class_name, [str(part).rjust(20) for part in name.primary_key]


def _slots(desk: Desk, owner_class: OwnerClass, roots: Iterable[KeyId]) -> Any:
    try:
        return desk.keys(owner_class).load_slots(roots, closed_too=True)
    except EnvelopeError:
        return ()  # a slot was altered: opening it raises the error


def _enrolled(desk: Desk, pending: Sequence[Right]) -> set[tuple[OwnerClass, PrimaryKey]]:
    """Return the recipients with keys. One query for each class of recipients."""
    wanted: dict[OwnerClass, dict[PrimaryKey, None]] = {}
    for right in pending:
        wanted.setdefault(right.grant.to.owner_class, {})[right.to] = None
    return {
        (owner_class, primary_key)
        for owner_class, owners in wanted.items()
        for primary_key in KindStore(desk.session, owner_class, desk.policy.seals).load_kinds(owners)
    }
