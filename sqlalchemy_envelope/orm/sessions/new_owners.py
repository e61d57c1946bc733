"""New owners in server mode: their first keys belong to a single session until it commits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import IntegrityError

from sqlalchemy_envelope.exceptions import EnrollmentError
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.slots import provider_slot
from sqlalchemy_envelope.orm.sessions.by_session import BySession
from sqlalchemy_envelope.orm.tables.cascades import require_cascades
from sqlalchemy_envelope.orm.tables.foreign_key_errors import is_foreign_key_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place

    Made = list[tuple[Place, list[OpenedKey]]]
    """New keys by owner, the root key first."""

_MOST_SHOWN = 5
"""The highest number of primary keys in an error."""


class FreshKeys:
    """The keys of a session's new owners, which are not committed yet."""

    def __init__(self) -> None:
        self.keyring = Keyring()

    def drop(self, owner: OwnerId) -> None:
        """Drop an owner's keys, after the transaction that made them was rolled back or committed."""
        self.keyring.drop(owner)


class NewOwners:
    """The new owners of every session that a server session serves."""

    def __init__(self) -> None:
        self._fresh: BySession[FreshKeys] = BySession()

    def known_in(self, session: Session | None) -> FreshKeys | None:
        """Return the keys of a session's new owners, or None."""
        return self._fresh.get(session)

    def keys_in(self, session: Session) -> FreshKeys:
        """As `known_in`, for a session that may get new owners."""
        fresh = self._fresh.get(session)
        if fresh is None:
            fresh = FreshKeys()
            self._fresh.put(session, fresh)
        return fresh

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """Return the cipher for a stored value, from the new owners of any session.

        A value names its key. So every session that sees the value can use a new owner's key.
        """
        ciphers = (fresh.keyring.reader(header, field) for fresh in self._fresh.all())
        return next((one for one in ciphers if one is not None), None)

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Return the owner of the key that a stored value names, as `reader`."""
        owners = (fresh.keyring.owner_of(header) for fresh in self._fresh.all())
        return next((one for one in owners if one is not None), None)

    def wipe(self) -> None:
        """Wipe every key."""
        for fresh in self._fresh.all():
            fresh.keyring.wipe()
        self._fresh.clear()

    def store(
        self, desk: Desk, owner_class: OwnerClass, made: Made, kek: ProviderKek
    ) -> tuple[Made, list[Place]]:
        """Store the first keys of owners in three statements, and hold the keys for this session.

        Returns:
            The keys that were stored, and the owners for whom another transaction was faster. The new keys of
            these owners are wiped.
        """
        require_cascades(desk.session, owner_class.mapper)
        rows = [
            (
                place.primary_key,
                [one.stored for one in keys],
                [provider_slot(keys[0], kek), *desk.policy.first_slots(keys[0])],
            )
            for place, keys in made
        ]
        stored = desk.keys(owner_class).insert_first_of(rows)
        mine = [(place, keys) for place, keys in made if keys[0].stored.key_id in stored]
        lost = [(place, keys) for place, keys in made if keys[0].stored.key_id not in stored]
        keyring = self.keys_in(desk.session).keyring
        for place, keys in mine:
            keyring.add(place.owner, keys)
        for one in (one for _, keys in lost for one in keys):
            one.key.wipe()
        return mine, [place for place, _ in lost]


def first_keys(owner_class: OwnerClass, places: Sequence[Place], *, hybrid: bool) -> Made:
    """Make first keys for owners in the database, bound to their owners."""
    made = [(place, new_keys(owner_class.scopes, owner_class.indexed, hybrid=hybrid)) for place in places]
    return [(place, bound_keys(keys, owner_class.reference_of(place.primary_key))) for place, keys in made]


def no_such_owner(
    error: IntegrityError, owner_class: OwnerClass, places: Sequence[Place]
) -> EnrollmentError | None:
    """Return the error for rows whose owner is not in the database; None if the error is another."""
    if not is_foreign_key_error(error):
        return None
    keys = [", ".join(map(repr, place.primary_key)) for place in places]
    told = f"no {owner_class.name} has the key {keys[0]}"
    if len(keys) > 1:
        some = "; ".join(keys[:_MOST_SHOWN])
        told = f"at least one of these keys is no {owner_class.name}'s: {some}"
    return EnrollmentError(
        f"Rows name an owner who does not exist: {told}. Insert the {owner_class.name} before its rows."
    )
