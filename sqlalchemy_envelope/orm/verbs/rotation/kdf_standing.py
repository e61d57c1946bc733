"""How costly the derivations of a class of owners are: what a stronger profile has still to reach.

A slot that falls short of the envelope's profile is replaced when its owner unlocks with it and writes.
Nobody else can do that: it takes the secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, select

from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.exceptions import ConfigurationError, KdfParametersError
from sqlalchemy_envelope.keys.model import KeyState, SlotKind
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.owners import owner_class_of

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.orm.current.desk import Desk

_SALT = 23
"""The characters of a salt in a PHC salt string, with the sign before it."""


class KdfStanding(NamedTuple):
    """The secret slots with the same derivation parameters.

    Attributes:
        parameters: as the slots store them, without the salt.
        slots: the number of slots.
        is_weak: whether the envelope's profile asks for more, or they cannot be read.
    """

    parameters: str
    slots: int
    is_weak: bool


def kdf_standing(desk: Desk, profile: KdfProfile, owner_class: type[Any]) -> list[KdfStanding]:
    """The work of `Envelope.kdf_standing`."""
    found = owner_class_of(getattr(owner_class, "__table__", None))
    if found is None or found.slot_class is None:
        raise ConfigurationError("kdf_standing() takes a class of key owners: kdf_standing(session, User).")
    keys, slots = found.key_class.__table__, found.slot_class.__table__
    parameters = func.substr(slots.c.kdf, 1, func.length(slots.c.kdf) - _SALT).label("parameters")
    query = (
        select(parameters, func.count(), func.min(slots.c.kdf))
        .join(keys, keys.c.key_id == slots.c.key_id)
        .where(keys.c.state == KeyState.ACTIVE, slots.c.kind == SlotKind.SECRET)
        .group_by(parameters)
        .order_by(parameters)
    )
    rows = desk.session.execute(query, bind_arguments=bind_for(desk.session, found.mapper, query))
    return [KdfStanding(str(row[0]), row[1], _is_weak(profile, str(row[2]))) for row in rows]


def _is_weak(profile: KdfProfile, kdf: str) -> bool:
    try:
        return profile.exceeds(KdfSalt.parse(kdf, policy=profile).profile)
    except KdfParametersError:
        return True
