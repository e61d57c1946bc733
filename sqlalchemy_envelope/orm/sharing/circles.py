"""Refuse circles of grants: owners that reach each other's keys could never shut anybody out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select, tuple_

from sqlalchemy_envelope.exceptions import GrantError
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.owners import places_by_class

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.sharing.recipients import Recipient
    from sqlalchemy_envelope.orm.tables.owners import Place


def refuse_circles(session: Session, place: Place, recipients: Iterable[Recipient]) -> None:
    """Refuse a grant that would let two owners reach each other's keys.

    Two such owners cannot shut anybody out: the new key of each owner would be sealed to the old key of the
    other, and a former member still has that old key.

    Raises:
        GrantError: the owner reaches the key of one of these recipients already.
    """
    seen, frontier = {place}, {place}
    names = Names(session)
    while frontier:
        frontier = _one_grant_on(session, names, frontier) - seen
        seen |= frontier
    for one in recipients:
        recipient = names.place(one.grant_class.to.owner_class, one.primary_key)
        if recipient in seen:
            raise GrantError(
                f"{_name(place)} holds the key of {_name(recipient)} already, by itself or through others; "
                "granted to each other, neither could shut anybody out again. Share a scope, or let both be "
                "members of a third."
            )


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
