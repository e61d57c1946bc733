"""Refuse circles of grants: owners that reach each other's keys could never shut anybody out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, tuple_

from sqlalchemy_envelope.exceptions import GrantError
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.owners import places_by_class

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.owners import Place


def refuse_circles(desk: Desk, place: Place, recipients: Iterable[Recipient]) -> None:
    """Refuse a grant that would let two owners reach each other's keys.

    Two such owners cannot shut anybody out: the new key of each owner would be sealed to the old key of the
    other, and a former member still has that old key.

    Every owner that might be in the circle is locked, and then looked at again. Two transactions that would
    close a circle together lock an owner in common, so that the second one sees the grant of the first.

    Raises:
        GrantError: the owner reaches the key of one of these recipients already.
    """
    locked: set[Place] = set()
    while not (around := owners_around(desk.session, place, recipients)) <= locked:
        locked |= around
        lock_groups(desk, locked)
    for recipient in _places(desk.session, recipients) & _reached_from(desk.session, place):
        raise GrantError(
            f"{_name(place)} holds the key of {_name(recipient)} already, by itself or through others; "
            "granted to each other, neither could shut anybody out again. Share a scope, or let both be "
            "members of a third."
        )


def owners_around(session: Session, place: Place, recipients: Iterable[Recipient]) -> set[Place]:
    """The owners that might be in a circle, if the owner's root key is granted to these recipients."""
    return _reached_from(session, place) | _places(session, recipients)


def _places(session: Session, recipients: Iterable[Recipient]) -> set[Place]:
    names = Names(session)
    return {names.place(one.grant_class.to.owner_class, one.primary_key) for one in recipients}


def _reached_from(session: Session, place: Place) -> set[Place]:
    """This owner, and every owner whose root key was granted to it, directly or through others."""
    names, seen, frontier = Names(session), {place}, {place}
    while frontier:
        frontier = _one_grant_on(session, names, frontier) - seen
        seen |= frontier
    return seen


def _one_grant_on(session: Session, names: Names, places: Collection[Place]) -> set[Place]:
    """The owners with a root key that was granted to at least one of these owners."""
    reached: set[Place] = set()
    for owner_class, some in places_by_class(places).items():
        keys = [one.primary_key for one in some]
        for grant in [one for one in owner_class.grants_to if one.scope is None]:
            query = select(*grant.of.columns).where(tuple_(*grant.to.columns).in_(keys))
            rows = session.execute(query, bind_arguments=bind_for(session, grant.mapper, query)).all()
            reached |= {names.place(grant.of.owner_class, tuple(row)) for row in rows}
    return reached


def _name(place: Place) -> str:
    return f"{place.owner_class.name} {', '.join(map(str, place.primary_key))}"
