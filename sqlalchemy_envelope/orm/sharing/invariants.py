"""The invariants of shared keys, checked on the raw rows: the check needs no key.

(a) Each granting row that is not void has a wrap of every key that it gives a right to, or is visibly
    pending.
(b) The next holder of the key who writes or settles fulfils a pending grant.
(c) Nobody without a granting row holds the key that encrypts new values, through any number of grants.
(d) An owner has one active key of each kind and scope.

`rights` decides whether a row grants, here as for a status. A void row grants nothing, and is no violation.
The page `docs/explanation/groups.md` explains the rules. The tests of interleavings check the rules after
each interleaving.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import select

from sqlalchemy_envelope.keys.model import KeyState, Purpose
from sqlalchemy_envelope.keys.row_seals import RowSeals
from sqlalchemy_envelope.orm.sharing.rights import RightStore, granted_kind, keys_due, waiting
from sqlalchemy_envelope.orm.tables.rows import Rows
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.sharing.rights import Right, Wrap
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass


class _Key(NamedTuple):
    owner: tuple[Any, ...]
    purpose: str
    scope: str
    epoch: int
    state: str
    granted: int


_Keys = dict["KeyId | None", _Key]
_UNSEALED = RowSeals()
"""Checks no row seal: the invariants are asked of the rows as they are."""


def violations(
    session: Session,
    owner_classes: Iterable[OwnerClass],
    *,
    settled: bool = True,
    written: bool = False,
    removed: Collection[KeyId] = (),
) -> list[str]:
    """Describe each violation in plain words; an empty list if there is none.

    Args:
        session: a session on the database. It only reads.
        owner_classes: the classes of owners to check.
        settled: whether a holder of the keys has settled since the last change. Until then, a removal that
            no flush saw waits for its epoch, and a pending grant waits for its wrap.
        written: whether a value was also written for each of these owners. Until then, an owner waits for an
            epoch if its key was granted to a group that somebody left.
        removed: the keys that a person without a granting row can still open.
    """
    found = []
    for owner_class in owner_classes:
        keys = _keys(session, owner_class)
        found += _several_active(owner_class, keys)
        found += [
            f"(c) somebody who was removed opens the active {_name(owner_class, key)}"
            for key_id, key in keys.items()
            if key_id in removed and key.state == KeyState.ACTIVE
        ]
        rows: dict[KeyId | None, int] = {}
        for grant in owner_class.grants_of:
            rights = RightStore(session, grant, _UNSEALED).load_all()
            for wrap in (wrap for right in rights for wrap in (*right.wraps, *right.void)):
                rows[wrap.key_id] = rows.get(wrap.key_id, 0) + 1
            found += _of_grant(session, grant, keys, rights, settled=settled, written=written)
        if settled and owner_class.grants_of:
            found += [
                f"(c) the {_name(owner_class, key)} was granted {key.granted} times, and "
                f"{counted(rows.get(key_id, 0), 'grant is', 'grants are')} there: no epoch was started"
                for key_id, key in keys.items()
                if key.state == KeyState.ACTIVE and key.granted != rows.get(key_id, 0)
            ]
    return found


def _several_active(owner_class: OwnerClass, keys: _Keys) -> list[str]:
    active: dict[tuple[Any, ...], list[_Key]] = {}
    for key in keys.values():
        if key.state == KeyState.ACTIVE:
            active.setdefault((key.owner, key.purpose, key.scope), []).append(key)
    several = [
        f"(d) {len(some)} are active of the {_name(owner_class, some[0])}"
        for some in active.values()
        if len(some) > 1
    ]
    owners = {key.owner for key in keys.values() if key.state != KeyState.DESTROYED}
    rootless = owners - {owner for owner, purpose, _ in active if purpose == Purpose.ROOT}
    return several + [f"(d) {owner_class.name} {owner} has no active root key" for owner in rootless]


def _of_grant(
    session: Session, grant: GrantClass, keys: _Keys, rights: Sequence[Right], *, settled: bool, written: bool
) -> list[str]:
    to, due = _keys(session, grant.to.owner_class), keys_due(session, _UNSEALED, rights)
    found: list[str] = []
    with_keys = {one.owner for one in to.values() if (one.purpose, one.state) == ("root", "active")}
    for right in rights:
        for wrap in (*right.wraps, *right.void):
            found += _of_wrap(right, wrap, keys)
            if settled:
                found += _of_active(right, wrap, keys, to, written=written)
        left = waiting(right, due.get(granted_kind(right)), _UNSEALED) if settled else None
        for one in left or ():
            what = _name(grant.of.owner_class, keys[one.key.key_id])
            if one.is_missing:
                found.append(f"(a) the {what} is not granted through {_row(right)}")
            elif right.to in with_keys:
                found.append(f"(b) the {what} is pending through {_row(right)}, whose recipient has keys")
    return found


def _row(right: Right) -> str:
    return f"row {right.row} of {right.grant.table.name}"


def _of_wrap(right: Right, wrap: Wrap, keys: _Keys) -> Iterator[str]:
    """The violations of a wrap by itself."""
    if wrap.key_id not in keys:
        yield f"(a) a grant through {_row(right)} is of a key that is not there"
    elif wrap.is_pending != wrap.is_empty:
        is_, holds = ("is", "a") if wrap.is_pending else ("is not", "no")
        yield f"(a) a grant through {_row(right)} {is_} pending and holds {holds} key"


def _of_active(right: Right, wrap: Wrap, keys: _Keys, to: _Keys, *, written: bool) -> Iterator[str]:
    """The violations of rule (c): holders of an active key who should not hold it."""
    key, sealed_to = keys.get(wrap.key_id), to.get(wrap.recipient_key_id)
    if key is None or key.state != KeyState.ACTIVE:
        return
    what = _name(right.grant.of.owner_class, key)
    if wrap in right.void:
        yield f"(c) the active {what} is in the hands of somebody whom {_row(right)} does not name"
    elif written and sealed_to is not None and sealed_to.state != KeyState.ACTIVE:
        yield f"(c) the active {what} is under a retired key of who is named by {_row(right)}"


def _keys(session: Session, owner_class: OwnerClass) -> _Keys:
    c, width = owner_class.key_class.__table__.c, len(owner_class.owner_columns)
    query = select(
        c.key_id, *owner_class.owner_columns, c.purpose, c.scope, c.epoch, c.state, c.granted
    ).where(c.purpose.in_([Purpose.ROOT, Purpose.DATA]))
    return {
        row[0]: _Key(tuple(row[1 : width + 1]), *row[width + 1 :])
        for row in _read(session, owner_class.mapper, query)
    }


def _read(session: Session, mapper: Any, query: Any) -> Sequence[Any]:
    return Rows(session, mapper, None)._rows(query)  # type: ignore[arg-type]  # checks no row seal


def _name(owner_class: OwnerClass, key: _Key) -> str:
    owner = ", ".join(map(str, key.owner))
    scope = f" of scope {key.scope!r}" if key.scope else ""
    return f"{key.purpose} key {key.epoch} of {owner_class.name} {owner}{scope}"
