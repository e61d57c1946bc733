"""What a granting row gives at this moment, as the rows alone tell it: for an administrator's page, without a
key.

Where a row stands is said by `sharing.rights`; here it is told, with names and who can help.
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
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant, grant_class_of
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.current.policy import Policy
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
    """What one granting row gives at this moment. Holds no key, and nothing that leads to one.

    Attributes:
        grant: the class of the row.
        row: its primary key.
        of: whose key it grants.
        to: the recipient.
        scope: the scope that it grants; None for the whole key.
        standing: pending, granted or void.
        since: since when it is pending or granted.
        holders: of a pending one, who can fulfil it: each of these owners, once unlocked.
        providers: of a pending one, the providers that hold a slot of the owner, and can fulfil it too.
        is_enrolled: whether the recipient has keys; a grant to an owner without any waits for that first.
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
        return f"{said}{since}, for {by or 'nobody who is left'} to fulfil"


def grant_states(session: Session, policy: Policy, grants: type[Any] | Iterable[object]) -> list[GrantStatus]:
    """What these granting rows give: of a whole class, or of some objects of any classes, in their order."""
    if isinstance(grants, type):
        return statuses_of(session, policy, RightStore(session, _class_of(grants), policy.seals).load_all())
    asked = [_row_of(one) for one in grants]
    rights: dict[tuple[GrantClass, PrimaryKey], Right] = {}
    for grant in dict.fromkeys(grant for grant, _ in asked):
        rows = [row for other, row in asked if other is grant]
        found = RightStore(session, grant, policy.seals).load_rows(rows)
        rights.update(((grant, one.row), one) for one in found)
    return statuses_of(session, policy, [rights[one] for one in asked if one in rights])


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


def statuses_of(session: Session, policy: Policy, rights: Sequence[Right]) -> list[GrantStatus]:
    """What these granting rows give. A number of queries that depends on the classes, and not on the rows."""
    due = keys_due(session, policy.seals, rights)
    found = [(right, *standing(right, due.get(granted_kind(right)), policy.seals)) for right in rights]
    pending = [right for right, where, _ in found if where is GrantStanding.PENDING]
    holders, providers = _holders(session, policy, pending, due)
    enrolled = _enrolled(session, policy, pending)

    def told(right: Right, where: GrantStanding, since: dt.datetime | None) -> GrantStatus:
        grant, key = right.grant, granted_kind(right)
        of, to = (
            OwnerName(grant.of.owner_class.name, right.of),
            OwnerName(grant.to.owner_class.name, right.to),
        )
        status = GrantStatus(grant.mapper.class_.__name__, right.row, of, to, grant.scope, where, since)
        if where is not GrantStanding.PENDING:
            return status
        has_keys = (grant.to.owner_class, right.to) in enrolled
        return replace(status, holders=holders[key], providers=providers[key], is_enrolled=has_keys)

    return [told(*one) for one in found]


def _holders(
    session: Session, policy: Policy, pending: Sequence[Right], due: KeysDue
) -> tuple[dict[Any, tuple[OwnerName, ...]], dict[Any, tuple[str, ...]]]:
    """Who can fulfil what is pending: who holds the key, or the root key that leads to it. For each class of
    owners a query for the slots, and one for each class of grants of theirs."""
    holders: dict[Any, dict[OwnerName, None]] = {granted_kind(one): {} for one in pending}
    providers: dict[Any, dict[str, None]] = {granted_kind(one): {} for one in pending}
    for owner_class in {one[0] for one in holders}:
        mine = {one: due[one] for one in holders if one[0] is owner_class}
        by_key: dict[KeyId, list[Any]] = {}
        for one, key in mine.items():
            for key_id in {key.active.key_id, key.root_id}:
                by_key.setdefault(key_id, []).append(one)
        roots = {key.root_id for key in mine.values()}
        for slot in _slots(session, policy, owner_class, roots):
            for one in by_key[slot.key_id]:
                if slot.kind is SlotKind.SECRET and not is_waiting(slot):
                    holders[one][OwnerName(owner_class.name, one[1])] = None
                elif slot.kind is SlotKind.PROVIDER:
                    providers[one][(slot.provider_ref or "").partition(" ")[0]] = None
        for grant in owner_class.grants_of:
            for wrap, _, recipient in GrantStore(session, grant, policy.seals).load_of(by_key):
                if wrap.state is not GrantState.PENDING:
                    for one in by_key[wrap.key_id]:
                        holders[one][OwnerName(grant.to.owner_class.name, recipient)] = None
    in_order = {one: tuple(sorted(found, key=_place_in_list)) for one, found in holders.items()}
    return in_order, {one: tuple(sorted(found)) for one, found in providers.items()}


def _place_in_list(name: OwnerName) -> tuple[str, list[str]]:
    """By class and key, 2 before 10. Keys of two classes of one name may be of types that do not compare."""
    return name.class_name, [str(part).rjust(20) for part in name.primary_key]


def _slots(session: Session, policy: Policy, owner_class: OwnerClass, roots: Iterable[KeyId]) -> Any:
    try:
        return KeyStore(session, owner_class, policy.seals).load_slots(roots)
    except EnvelopeError:
        return ()  # altered: who relies on one is told when it is opened


def _enrolled(
    session: Session, policy: Policy, pending: Sequence[Right]
) -> set[tuple[OwnerClass, PrimaryKey]]:
    """Which recipients have keys. One query for each class of them."""
    wanted: dict[OwnerClass, dict[PrimaryKey, None]] = {}
    for right in pending:
        wanted.setdefault(right.grant.to.owner_class, {})[right.to] = None
    return {
        (owner_class, primary_key)
        for owner_class, owners in wanted.items()
        for primary_key in KindStore(session, owner_class, policy.seals).load_kinds(owners)
    }
