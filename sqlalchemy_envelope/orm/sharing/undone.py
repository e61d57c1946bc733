"""Find the owners with keys or grants to settle, among all owners that an unlocked owner reaches.

The search reads rows and opens no key, so that a first write loads only the keys that it settles.

One query for each class of grants on each level finds the reached owners. One query for each class of owners
finds the owners to settle. Its conditions are the conditions of `settle`; finding more owners does no harm.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, func, or_, select, union, union_all

from sqlalchemy_envelope.crypto.sealing import SEALED_PREFIXES
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.sharing.beyond import find_left
from sqlalchemy_envelope.orm.sharing.rights import has_past
from sqlalchemy_envelope.orm.sharing.ways import steps_from
from sqlalchemy_envelope.orm.tables.grant_counts import count_query
from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, given, matches, values_of
from sqlalchemy_envelope.orm.tables.stored_rows import raw

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy import Select
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.sharing.granted import Owners
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass, Place

    PrimaryKey = tuple[Any, ...]


def find_undone(session: Session, start: Place) -> Owners | None:
    """The owners beyond this owner that have to be settled; None if any of them may have to be."""
    reached: dict[OwnerClass, list[PrimaryKey]] = {}
    for owner_class, key in steps_from(session, start):
        reached.setdefault(owner_class, []).append(key)
    holders = {**reached, start.owner_class: [start.primary_key, *reached.get(start.owner_class, ())]}
    found: dict[OwnerClass, list[PrimaryKey]] = {}
    for owner_class in {**reached, **_scopes_beyond(holders)}:
        keys = reached.get(owner_class, ())
        left = _left_beyond(session, owner_class, keys)
        if any(place.primary_key not in reached.get(place.owner_class, ()) for place in left):
            return None
        query, columns = _query(owner_class, bool(keys), tuple(holders))
        given_keys = [keys, *(holders[one] for one in holders)]
        for parts in zip_longest(*(chunks(list(one)) for one in given_keys), fillvalue=()):
            values = zip(_names(holders), columns, parts, strict=True)
            read = {name: values_of(of, some) for name, of, some in values if of}
            rows = Rows(session, owner_class.mapper, None)._rows(query, read)  # type: ignore[arg-type]  # no seal
            found.setdefault(owner_class, []).extend(tuple(row) for row in rows)
    return found


def _scopes_beyond(holders: Owners) -> dict[OwnerClass, None]:
    """The classes of owners that may grant a scope to these holders."""
    return {
        grant.of.owner_class: None for one in holders for grant in one.grants_to if grant.scope is not None
    }


def _names(holders: Collection[OwnerClass]) -> list[str]:
    return ["owners", *(f"holders_{at}" for at, _ in enumerate(holders))]


def _query(
    owner_class: OwnerClass, is_reached: bool, holders: tuple[OwnerClass, ...]
) -> tuple[Any, list[Sequence[Any]]]:
    """A query for the owners of a class with pending work, and the columns to compare each list of keys with.

    The columns are empty for a list that is not needed. A query is built once and kept, because building it
    takes longer than sending it.
    """
    known = ("undone", is_reached, holders, frozenset(owner_class.kinds), len(owner_class.grants_of))
    if known not in owner_class.selects:
        parts = _undone(owner_class) if is_reached else []
        columns: list[Sequence[Any]] = [owner_class.owner_columns if is_reached else ()]
        for name, holder in zip(_names(holders)[1:], holders, strict=True):
            grants = [one for one in owner_class.grants_of if one.to.owner_class is holder]
            asked = [one for one in grants if is_reached or one.scope is not None]
            parts += [_sealed(one, name) for one in asked]
            columns.append(holder.owner_columns if asked else ())
        owner_class.selects[known] = union(*parts), columns
    found: tuple[Any, list[Sequence[Any]]] = owner_class.selects[known]
    return found


def _undone(owner_class: OwnerClass) -> list[Select[Any]]:
    """Queries for the given owners with own keys and grants that have to be settled."""
    keys = owner_class.key_class.__table__.alias()
    owners = [keys.c[column.key] for column in owner_class.owner_columns]
    mine = select(*owners).where(given(owners, "owners"))
    past = [one.scope for one in owner_class.grants_of if one.scope is not None]
    is_past = and_(keys.c.purpose == Purpose.DATA, keys.c.scope.in_(past))
    if not has_past(owner_class):
        is_past = or_(is_past, keys.c.purpose == Purpose.ROOT)
    counted = select(keys.c.key_id).where(
        given(owners, "owners"),
        or_(keys.c.state == KeyState.ACTIVE, and_(keys.c.state == KeyState.RETIRED, is_past)),
    )
    is_sealed = func.substr(raw(keys.c.wrapped), 1, 1).in_(SEALED_PREFIXES)
    parts = [mine.where(is_sealed), _uncounted(owner_class, counted)]
    if has_past(owner_class):
        is_retired = and_(keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.RETIRED)
        parts.append(mine.where(is_retired, keys.c.wrapped.is_(None)))
    for purpose, scope in sorted(owner_class.kinds):
        is_root = and_(keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.ACTIVE)
        parts.append(mine.where(is_root, ~_has_key(owner_class, owners, purpose, scope)))
    return [*parts, *(_not_granted(grant, owner_class) for grant in owner_class.grants_of)]


def _uncounted(owner_class: OwnerClass, keys: Select[Any]) -> Select[Any]:
    """The owners of keys with pending grants, and of active keys from which somebody was removed."""
    counted = union_all(*(count_query(grant, keys) for grant in owner_class.grants_of)).subquery()
    c = counted.c
    owners = [c[f"owner_{at}"] for at, _ in enumerate(owner_class.owner_columns)]
    is_left = or_(func.sum(c.rows) != c.granted, func.sum(c.void) > 0)
    return (
        select(*owners)
        .group_by(c.key_id, c.state, c.granted, *owners)
        .having(or_(func.sum(c.pending) > 0, and_(c.state == KeyState.ACTIVE, is_left)))
    )


def _has_key(owner_class: OwnerClass, owners: Sequence[Any], purpose: Purpose, scope: str) -> Any:
    there = owner_class.key_class.__table__.alias()
    same = [
        there.c[column.key] == owner for column, owner in zip(owner_class.owner_columns, owners, strict=True)
    ]
    is_one = and_(there.c.purpose == purpose, there.c.state != KeyState.DESTROYED)
    return exists().where(*same, is_one, there.c.scope == scope)


def _not_granted(grant: GrantClass, owner_class: OwnerClass) -> Any:
    """The owners of keys that a granting row gives a right to and that have no grant beside the row."""
    keys, granted = owner_class.key_class.__table__.alias(), grant.companion.alias()
    owners = [keys.c[column.key] for column in owner_class.owner_columns]
    pairs = zip(grant.row_columns, grant.row_key, strict=True)
    rows = [granted.c[column.key] == key for column, key in pairs]
    is_granted = exists().where(granted.c.key_id == keys.c.key_id, *rows)
    is_wanted = and_(keys.c.state == KeyState.ACTIVE, keys.c.purpose == Purpose.ROOT)
    if grant.scope is not None:
        states = (KeyState.ACTIVE, KeyState.RETIRED) if grant.history == "shared" else (KeyState.ACTIVE,)
        of_scope = and_(keys.c.purpose == Purpose.DATA, keys.c.scope == grant.scope)
        is_wanted = and_(keys.c.state.in_(states), of_scope)
    same = [of == owner for of, owner in zip(grant.of.columns, owners, strict=True)]
    return (
        select(*owners).join(grant.table, and_(*same)).where(given(owners, "owners"), is_wanted, ~is_granted)
    )


def _sealed(grant: GrantClass, holders: str) -> Select[Any]:
    """The owners of keys that are sealed to the given holders and not adopted yet."""
    rows = [a == b for a, b in zip(grant.row_columns, grant.row_key, strict=True)]
    return (
        select(*grant.of.columns)
        .join(grant.companion, and_(*rows))
        .where(given(grant.to.columns, holders), grant.companion.c.state == GrantState.SEALED)
    )


def _left_beyond(session: Session, owner_class: OwnerClass, some: Sequence[PrimaryKey]) -> list[Place]:
    """The owners that somebody was removed from, among the recipients of these owners' keys.

    The unlocked owner may not reach all of these recipients.
    """
    holders = [grant.to.owner_class for grant in owner_class.grants_of]
    if not some or not any(holder.grants_with(None) for holder in holders):
        return []
    keys = owner_class.key_class.__table__
    active = select(keys.c.key_id).where(keys.c.state == KeyState.ACTIVE)
    rows = Rows(session, owner_class.mapper, None)  # type: ignore[arg-type]  # reads no row seal
    key_ids = [
        row[0]
        for part in chunks(some)
        for row in rows._rows(active.where(matches(owner_class.owner_columns, part)))
    ]
    return [one.place for one in find_left(session, {owner_class: key_ids})]
