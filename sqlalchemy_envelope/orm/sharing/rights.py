"""The rights that granting rows give, by the rows alone.

Only this module decides which wraps count, and whether a row is granted, pending or void.

A row of a `KeyGrant` is the right. The wraps beside the row make the right usable. A wrap counts while it
matches the row: it is of the key that the class grants, of the owner that the row names, for the recipient
that the row names, and has its row seal. A row without a wrap that counts is void: no flush added the row, or
the row named somebody else when a flush did. A single wrap that counts gives a right to every key that is
due.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, or_, select

from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import chunks, matches

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId, StoredKey
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass

    PrimaryKey = tuple[Any, ...]
    KeysDue = Mapping[tuple["OwnerClass", PrimaryKey, "str | None"], "GrantedKey"]


class GrantStanding(StrEnum):
    """The standing of a granting row."""

    GRANTED = "granted"
    """The recipient can open the key, with the next unlock at the latest."""
    PENDING = "pending"
    """The row is a right, and a holder of the key still has to seal it."""
    VOID = "void"
    """The row grants nothing, as no flush added it, it named somebody else then, or the owner has no keys."""


class Wrap(NamedTuple):
    """A wrap beside a granting row.

    Attributes:
        is_empty: whether no key is wrapped in it, as in a pending wrap.
    """

    key_id: KeyId
    epoch: int
    recipient_key_id: KeyId | None
    is_pending: bool
    is_empty: bool
    since: dt.datetime


class Right(NamedTuple):
    """A granting row.

    Attributes:
        wraps: the wraps beside it that count.
        void: the wraps beside it that do not count.
    """

    grant: GrantClass
    row: PrimaryKey
    of: PrimaryKey
    to: PrimaryKey
    wraps: tuple[Wrap, ...]
    void: tuple[Wrap, ...] = ()


class DueKey(NamedTuple):
    """A key of the kind that a row grants, and the time since when it is there."""

    key_id: KeyId
    epoch: int
    since: dt.datetime


class GrantedKey(NamedTuple):
    """The key that a grant of an owner gives.

    Attributes:
        active: the key that encrypts new values, or wraps the keys that do.
        root_id: the root key that leads to it.
        older: older keys that still open values. Empty for a root key, because the active root key leads to
            the older root keys.
    """

    active: DueKey
    root_id: KeyId
    older: tuple[DueKey, ...] = ()


class Waiting(NamedTuple):
    """A key that a row gives a right to, and that the recipient cannot open yet.

    Attributes:
        is_missing: whether the key has no wrap beside the row, not even a pending wrap.
    """

    key: DueKey
    is_missing: bool
    since: dt.datetime


def is_due(grant: GrantClass, purpose: str, scope: str, state: str) -> bool:
    """Whether a right of this class calls for a wrap of a key of this kind.

    Older root keys need no wrap: they are reached through the active root key.
    """
    if grant.scope is None:
        return (purpose, state) == (Purpose.ROOT, KeyState.ACTIVE)
    if (purpose, scope) != (Purpose.DATA, grant.scope):
        return False
    return state == KeyState.ACTIVE or (state == KeyState.RETIRED and grant.history == "shared")


def gives(grant: GrantClass, key: StoredKey) -> bool:
    """Whether a grant of this class gives a key of this kind."""
    if grant.scope is None:
        return key.purpose is Purpose.ROOT
    return key.purpose is Purpose.DATA and key.scope == grant.scope


def has_past(owner_class: OwnerClass) -> bool:
    """Whether new members of an owner of this class read earlier values."""
    return all(one.history == "shared" for one in owner_class.grants_with(None))


def vouches(seals: RowSeals, granted: int, missing: int) -> bool:
    """Whether a grant of the key of an epoch gives a right to the key of another epoch.

    With server keys, a grant of an older epoch gives no right to a newer key: an attacker may have put the
    grant back with its row, and cannot make a grant. Without server keys, an attacker who can write to the
    tables can plant a pending grant as well.

    Args:
        seals: whether there are row seals, which need server keys.
        granted: the epoch of the granted key.
        missing: the epoch of the other key.
    """
    return granted > missing or not seals.is_on


def granted_kind(right: Right) -> tuple[OwnerClass, PrimaryKey, str | None]:
    """The key that a row grants: class and primary key of the owner, and the scope; None for the root key."""
    return right.grant.of.owner_class, right.of, right.grant.scope


def waiting(right: Right, key: GrantedKey | None, seals: RowSeals) -> list[Waiting] | None:
    """The keys that a holder still has to seal; None if the row is void."""
    if key is None or not right.wraps:
        return None
    here = {one.key_id: one for one in right.wraps}
    newest = max(one.epoch for one in right.wraps)
    if key.active.key_id not in here and not vouches(seals, newest, key.active.epoch):
        return None
    older = key.older if right.grant.history == "shared" else ()
    found = []
    for due in (key.active, *older):
        wrap = here.get(due.key_id)
        if wrap is None:
            found.append(Waiting(due, True, due.since))
        elif wrap.is_pending:
            found.append(Waiting(due, False, wrap.since))
    return found


def standing(
    right: Right, key: GrantedKey | None, seals: RowSeals
) -> tuple[GrantStanding, dt.datetime | None]:
    """The standing of a row, and the time since when it is granted or pending."""
    left = waiting(right, key, seals)
    if left is None or key is None:
        return GrantStanding.VOID, None
    if left:
        return GrantStanding.PENDING, min(one.since for one in left)
    granted = next(one for one in right.wraps if one.key_id == key.active.key_id)
    return GrantStanding.GRANTED, granted.since


def void_among(desk: Desk, grant: GrantClass, rows: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """The void rows among these rows."""
    session, seals = desk.session, desk.policy.seals
    rights = RightStore(session, grant, seals).load_rows(rows)
    keys = keys_due(session, seals, rights)
    return [one.row for one in rights if waiting(one, keys.get(granted_kind(one)), seals) is None]


def take_void(desk: Desk, grant: GrantClass, rows: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """Find void rows as `void_among` does, and delete their wraps, so that they can be granted as new rows.

    The wraps of a void row count for nothing.
    """
    void = void_among(desk, grant, rows)
    desk.grants(grant).delete(void)
    return void


class RightStore(GrantStore):
    """Granting rows of one class, each with the wraps beside it. One query for some thousands of rows."""

    def load_all(self) -> list[Right]:
        """Every row, in the order of the primary key."""
        return self._rights(self._joined.order_by(*self._grant.row_key))

    def load_rows(self, rows: Sequence[PrimaryKey]) -> list[Right]:
        """The rows with these primary keys."""
        return self._matching(self._grant.row_key, rows)

    def load_rights(self, recipients: Sequence[PrimaryKey]) -> list[Right]:
        """The rows that grant something to these owners."""
        return self._matching(self._grant.to.columns, recipients)

    def _matching(self, columns: Sequence[Any], keys: Sequence[PrimaryKey]) -> list[Right]:
        found: list[Right] = []
        for some in chunks(keys):
            found += self._rights(self._joined.where(matches(columns, some)))
        return found

    @property
    def _joined(self) -> Any:
        return self._made_once("rights", self._query_joined)

    def _query_joined(self) -> Any:
        grant, c = self._grant, self._table.c
        of_class, to_class = grant.of.owner_class, grant.to.owner_class
        keys, to_keys = of_class.key_class.__table__.alias(), to_class.key_class.__table__.alias()
        joined = (
            grant.table.outerjoin(self._table, self._on_row())
            .outerjoin(keys, keys.c.key_id == c.key_id)
            .outerjoin(to_keys, to_keys.c.key_id == c.recipient_key_id)
        )
        return select(
            *grant.row_key,
            *grant.of.columns,
            *grant.to.columns,
            *(keys.c[column.key] for column in of_class.owner_columns),
            *(to_keys.c[column.key] for column in to_class.owner_columns),
            keys.c.purpose,
            keys.c.scope,
            keys.c.epoch,
            c.created_at,
            c.changed_at,
            *self._columns(),
        ).select_from(joined)

    def _rights(self, query: Any) -> list[Right]:
        grant = self._grant
        ends = [0]
        of_and_to = grant.of.columns, grant.to.columns
        for columns in (grant.row_key, *of_and_to, *of_and_to):
            ends.append(ends[-1] + len(columns))
        found: dict[PrimaryKey, Right] = {}
        for row in self._rows(query):
            key, of, to, key_of, sealed_to = (tuple(row[start:end]) for start, end in pairwise(ends))
            right = found.setdefault(key, Right(grant, key, of, to, ()))
            purpose, scope, epoch, created, changed, *stored = row[ends[-1] :]
            if stored[0] is None:
                continue
            one, error = self._stored(stored, grant.to.owner_class.reference_of(to))
            is_pending = one.state is GrantState.PENDING
            wrap = Wrap(
                one.key_id,
                epoch or 0,
                one.recipient_key_id,
                is_pending,
                one.wrapped is None,
                aware(changed or created),
            )
            is_of_kind = (purpose, scope) == (
                (Purpose.ROOT, "") if grant.scope is None else (Purpose.DATA, grant.scope)
            )
            is_to = sealed_to == to or (is_pending and one.recipient_key_id is None)
            if error is None and key_of == of and is_of_kind and is_to:
                found[key] = right._replace(wraps=(*right.wraps, wrap))
            else:
                found[key] = right._replace(void=(*right.void, wrap))
        return list(found.values())


def aware(moment: dt.datetime) -> dt.datetime:
    """Add the time zone, which SQLite and MariaDB do not keep."""
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment


def keys_due(session: Session, seals: RowSeals, rights: Iterable[Right]) -> KeysDue:
    """The keys that these rows grant. One query for each class of owners."""
    wanted: dict[OwnerClass, dict[PrimaryKey, None]] = {}
    for right in rights:
        if None not in right.of:
            wanted.setdefault(right.grant.of.owner_class, {})[right.of] = None
    found: dict[tuple[OwnerClass, PrimaryKey, str | None], GrantedKey] = {}
    for owner_class, owners in wanted.items():
        for primary_key, kinds in KindStore(session, owner_class, seals).load_kinds(owners).items():
            for scope, key in kinds.items():
                found[owner_class, primary_key, scope] = key
    return found


class KindStore(KeyStore):
    """The keys of owners that are granted, without their wrapped bytes."""

    def load_kinds(self, owners: Iterable[PrimaryKey]) -> dict[PrimaryKey, dict[str | None, GrantedKey]]:
        """The keys by owner and scope, None for the root key. Owners without active root key are left out."""
        c, columns = self._keys.c, self._class.owner_columns
        active: dict[PrimaryKey, dict[str | None, DueKey]] = {}
        older: dict[tuple[PrimaryKey, str | None], list[DueKey]] = {}
        for some in chunks(list(owners)):
            query = select(c.key_id, c.purpose, c.scope, c.epoch, c.state, c.created_at, *columns)
            query = query.where(
                matches(columns, some),
                c.purpose.in_([Purpose.ROOT, Purpose.DATA]),
                or_(c.state == KeyState.ACTIVE, and_(c.purpose == Purpose.DATA, c.state == KeyState.RETIRED)),
            )
            for key_id, purpose, scope, epoch, state, created, *owner in self._rows(query):
                key = DueKey(key_id, epoch, aware(created))
                kind = None if purpose == Purpose.ROOT else scope
                if state == KeyState.ACTIVE:
                    active.setdefault(tuple(owner), {})[kind] = key
                else:
                    older.setdefault((tuple(owner), kind), []).append(key)
        return {
            owner: {
                kind: GrantedKey(key, kinds[None].key_id, tuple(older.get((owner, kind), ())))
                for kind, key in kinds.items()
            }
            for owner, kinds in active.items()
            if None in kinds
        }

    def is_stored(self, key_id: KeyId) -> bool:
        """Whether any owner of the class has this key."""
        return bool(self._rows(select(self._keys.c.key_id).where(self._keys.c.key_id == key_id)))
