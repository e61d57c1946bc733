"""What a granting row gives at this moment, as the rows alone tell it: for an administrator's page, without a
key.

A row of a `KeyGrant` is the right; the wraps beside it are what it takes to use it. A wrap counts while it is
what the row says: for another recipient, or without its row seal, it is none. Of those that count, the wrap
of the active key decides.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, inspect, select

from sqlalchemy_envelope.exceptions import ConfigurationError, EnvelopeError
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import is_waiting
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant, grant_class_of
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, chunks, matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId, StoredGrant
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass

    PrimaryKey = tuple[Any, ...]
    ActiveKeys = Mapping[tuple[OwnerClass, PrimaryKey, str | None], "ActiveKey"]


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


class GrantStanding(StrEnum):
    """Where a granting row stands."""

    GRANTED = "granted"
    """The recipient can open the key, with the next unlock at the latest."""
    PENDING = "pending"
    """The row is a right, and the key waits to be sealed by somebody who holds it."""
    VOID = "void"
    """No flush added the row, it named somebody else then, or the owner has no keys; it grants nothing."""


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


class Wrap(NamedTuple):
    """One wrap beside a granting row, as it counts."""

    key_id: KeyId
    recipient_key_id: KeyId | None
    is_pending: bool
    since: dt.datetime


class Right(NamedTuple):
    """A granting row with the wraps that it has now, those that count."""

    grant: GrantClass
    row: PrimaryKey
    of: PrimaryKey
    to: PrimaryKey
    wraps: tuple[Wrap, ...]


class ActiveKey(NamedTuple):
    """The key that a grant of an owner is of, and the root key that leads to it."""

    key_id: KeyId
    root_id: KeyId
    since: dt.datetime


class RightStore(GrantStore):
    """Granting rows of one class, each with the wraps beside it. One query for some thousands of rows."""

    def load_all(self) -> list[Right]:
        """Every row, in the order of the primary key."""
        return self._rights(self._joined().order_by(*self._grant.row_key))

    def load_rows(self, rows: Sequence[PrimaryKey]) -> list[Right]:
        """The rows with these primary keys."""
        return self._matching(self._grant.row_key, rows)

    def load_rights(self, recipients: Sequence[PrimaryKey]) -> list[Right]:
        """The rows that grant something to these owners."""
        return self._matching(self._grant.to.columns, recipients)

    def _matching(self, columns: Sequence[Any], keys: Sequence[PrimaryKey]) -> list[Right]:
        found: list[Right] = []
        for some in chunks(keys):
            found += self._rights(self._joined().where(matches(columns, some)))
        return found

    def _joined(self) -> Any:
        grant, table = self._grant, self._grant.table
        to_class, c = grant.to.owner_class, self._table.c
        to_keys = to_class.key_class.__table__.alias()
        on = and_(*(a == b for a, b in zip(grant.row_columns, grant.row_key, strict=True)))
        joined = table.outerjoin(self._table, on).outerjoin(to_keys, to_keys.c.key_id == c.recipient_key_id)
        return select(
            *grant.row_key,
            *grant.of.columns,
            *grant.to.columns,
            *(to_keys.c[column.key] for column in to_class.owner_columns),
            c.created_at,
            c.changed_at,
            *self._columns(),
        ).select_from(joined)

    def _rights(self, query: Any) -> list[Right]:
        grant = self._grant
        ends = [0]
        for columns in (grant.row_key, grant.of.columns, grant.to.columns, grant.to.columns):
            ends.append(ends[-1] + len(columns))
        found: dict[PrimaryKey, Right] = {}
        for row in self._rows(query):
            key, of, to, sealed_to = (tuple(row[start:end]) for start, end in pairwise(ends))
            right = found.setdefault(key, Right(grant, key, of, to, ()))
            created, changed, *stored = row[ends[-1] :]
            if stored[0] is not None:
                wrap, error = self._stored(stored, grant.to.owner_class.reference_of(to))
                is_pending = wrap.state is GrantState.PENDING
                if error is None and (sealed_to == to or (is_pending and wrap.recipient_key_id is None)):
                    found[key] = right._replace(wraps=(*right.wraps, _wrap(wrap, changed or created)))
        return list(found.values())


def _wrap(stored: StoredGrant, since: dt.datetime) -> Wrap:
    is_pending = stored.state is GrantState.PENDING
    return Wrap(stored.key_id, stored.recipient_key_id, is_pending, _aware(since))


def _aware(moment: dt.datetime) -> dt.datetime:
    """With its time zone, which SQLite and MariaDB do not keep."""
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


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
    active = _active_keys(session, policy, rights)
    found = [(right, *_standing(right, active.get(_granted_key(right)))) for right in rights]
    pending = [right for right, standing, _ in found if standing is GrantStanding.PENDING]
    holders, providers = _holders(session, policy, pending, active)
    enrolled = _enrolled(session, policy, pending)

    def told(right: Right, standing: GrantStanding, since: dt.datetime | None) -> GrantStatus:
        grant, key = right.grant, _granted_key(right)
        of, to = (
            OwnerName(grant.of.owner_class.name, right.of),
            OwnerName(grant.to.owner_class.name, right.to),
        )
        status = GrantStatus(grant.mapper.class_.__name__, right.row, of, to, grant.scope, standing, since)
        if standing is not GrantStanding.PENDING:
            return status
        has_keys = (grant.to.owner_class, right.to) in enrolled
        return replace(status, holders=holders[key], providers=providers[key], is_enrolled=has_keys)

    return [told(*one) for one in found]


def _granted_key(right: Right) -> tuple[OwnerClass, PrimaryKey, str | None]:
    return right.grant.of.owner_class, right.of, right.grant.scope


def _standing(right: Right, active: ActiveKey | None) -> tuple[GrantStanding, dt.datetime | None]:
    if active is None or not right.wraps:
        return GrantStanding.VOID, None
    here = next((one for one in right.wraps if one.key_id == active.key_id), None)
    if here is None:
        # It was left out when the present epoch started, and a holder puts it in.
        return GrantStanding.PENDING, active.since
    # The older keys of a scope hang on none that is granted; older root keys hang on the active one.
    due = [here] if right.grant.scope is None else right.wraps
    pending = [one.since for one in due if one.is_pending]
    return (GrantStanding.PENDING, min(pending)) if pending else (GrantStanding.GRANTED, here.since)


def _active_keys(session: Session, policy: Policy, rights: Iterable[Right]) -> ActiveKeys:
    """The active keys that these rows grant. One query for each class of owners."""
    wanted: dict[OwnerClass, dict[PrimaryKey, None]] = {}
    for right in rights:
        if None not in right.of:
            wanted.setdefault(right.grant.of.owner_class, {})[right.of] = None
    found: dict[tuple[OwnerClass, PrimaryKey, str | None], ActiveKey] = {}
    for owner_class, owners in wanted.items():
        for primary_key, rows in KindStore(session, owner_class, policy.seals).load_kinds(owners).items():
            root = rows.get(None)
            for scope, (key_id, since) in rows.items():
                if root is not None:
                    found[owner_class, primary_key, scope] = ActiveKey(key_id, root[0], since)
    return found


class KindStore(KeyStore):
    """The active keys of owners, without what they are wrapped in."""

    def load_kinds(
        self, owners: Iterable[PrimaryKey]
    ) -> dict[PrimaryKey, dict[str | None, tuple[KeyId, dt.datetime]]]:
        """By owner and scope, None for the root key: the id of the active key, and since when it is."""
        c, columns = self._keys.c, self._class.owner_columns
        found: dict[PrimaryKey, dict[str | None, tuple[KeyId, dt.datetime]]] = {}
        for some in chunks(list(owners)):
            query = select(c.key_id, c.purpose, c.scope, c.created_at, *columns)
            query = query.where(matches(columns, some), c.state == KeyState.ACTIVE)
            for key_id, purpose, scope, created, *owner in self._rows(query):
                if purpose in (Purpose.ROOT, Purpose.DATA):
                    kind = None if purpose == Purpose.ROOT else scope
                    found.setdefault(tuple(owner), {})[kind] = key_id, _aware(created)
        return found

    def is_stored(self, key_id: KeyId) -> bool:
        """Whether any owner of the class has this key."""
        return bool(self._rows(select(self._keys.c.key_id).where(self._keys.c.key_id == key_id)))


def _holders(
    session: Session, policy: Policy, pending: Sequence[Right], active: ActiveKeys
) -> tuple[dict[Any, tuple[OwnerName, ...]], dict[Any, tuple[str, ...]]]:
    """Who can fulfil what is pending: who holds the key, or the root key that leads to it. For each class of
    owners a query for the slots, and one for each class of grants of theirs."""
    holders: dict[Any, dict[OwnerName, None]] = {_granted_key(one): {} for one in pending}
    providers: dict[Any, dict[str, None]] = {_granted_key(one): {} for one in pending}
    for owner_class in {one[0] for one in holders}:
        mine = {one: active[one] for one in holders if one[0] is owner_class}
        by_key: dict[KeyId, list[Any]] = {}
        for one, key in mine.items():
            for key_id in {key.key_id, key.root_id}:
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
