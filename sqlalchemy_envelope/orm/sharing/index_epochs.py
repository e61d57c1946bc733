"""A search looks for the tags of the present epoch: another session may have started it a moment ago.

Rows that were written since then have tags under an index key that this keyring does not know yet. So before
tags are looked for, the index keys are compared with the database. One query for each class of owners.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.sharing.granted import Opening, follow_grants, load_owners, owners_of
from sqlalchemy_envelope.orm.tables.owners import places_by_class

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy_envelope.keys.keyring import Keyring
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.owners import Place


def renew_index_keys(
    desk: Desk, keyring: Keyring, known_places: Places, asked: Iterable[Place], scope: str
) -> None:
    """Take in the index keys of some owners, as they are now.

    Args:
        known_places: every owner that the keyring reaches.
        asked: some of these owners, whose rows are looked for.
        scope: the scope of the index keys.
    """
    with desk.session.no_autoflush:
        is_behind = False
        for owner_class, some in places_by_class(asked).items():
            current = {place: keyring.current(place.owner, Purpose.INDEX, scope) for place in some}
            active = desk.keys(owner_class).load_active(one.key_id for one in current.values() if one)
            behind = [place for place, key in current.items() if key is None or key.key_id not in active]
            if behind:
                load_owners(desk, keyring, behind, again=True)
                is_behind = True
        if is_behind:
            follow_grants(desk, keyring, known_places.values(), owners_of(Opening(known_places, [], {})))
