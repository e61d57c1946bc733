"""Flushes in server mode: new owners get keys without a call of `enroll`.

The keys are made before the flush, which encrypts the owners' own columns. They are bound and stored after
the flush, when the owners' primary keys are known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import AlreadyEnrolledError, ConfigurationError
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.key_types import mistyped
from sqlalchemy_envelope.orm.tables.owners import Place, owner_class_of
from sqlalchemy_envelope.orm.tables.session_notes import put_page, take_page
from sqlalchemy_envelope.orm.writing.newcomers import (
    ENROLLING_OWNER,
    Enrolling,
    enrolling_in,
    note_enrolling,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.orm.sessions.server import ServerSession
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


@dataclass(slots=True)
class _NewOwners:
    """A page of `SessionNotes`: the new owners of the present flush, with their keys."""

    made: list[tuple[InstanceState[Any], OwnerClass, list[OpenedKey]]] = field(default_factory=list)


def _server(session: Session) -> ServerSession | None:
    found: Any = next((one for one in context.unlocked_sessions(session) if one.enrolls), None)
    return found  # type: ignore[no-any-return]  # nothing else enrolls


def before_flush(session: Session, *_: object) -> None:
    """Make keys for new owners in server mode, without a call of `enroll`."""
    server = _server(session)
    if server is None:
        return
    waiting = enrolling_in(session)
    new = _NewOwners()
    for instance in session.new:
        state: InstanceState[Any] = inspect(instance)
        owner_class = owner_class_of(getattr(type(instance), "__table__", None))
        if owner_class is None or owner_class.key_class is None or state in waiting:
            continue
        if owner_class.slot_class is None:
            continue
        wrong = mistyped(owner_class.primary_key, current_key(state))
        if wrong is not None:
            raise ConfigurationError(f"A new {owner_class.name} cannot get keys: {wrong}.")
        keys = new_keys(owner_class.scopes, owner_class.indexed, hybrid=server.policy.hybrid)
        keyring = Keyring()
        keyring.add(ENROLLING_OWNER, keys[1:])
        note_enrolling(session, Enrolling(state, owner_class, keyring))
        new.made.append((state, owner_class, keys))
    if new.made:
        server.kek_for_new(session)
        put_page(session, new)


def after_flush(session: Session, *_: object) -> None:
    """Bind the keys of new owners to the written rows, and store the keys."""
    new = take_page(session, _NewOwners)
    server = _server(session)
    if new is None or server is None:
        return
    kek, names = server.kek_for_new(session), Names(session)
    by_class: dict[OwnerClass, list[tuple[Place, list[OpenedKey]]]] = {}
    for state, owner_class, keys in new.made:
        enrolling_in(session).pop(state, None)
        primary_key = tuple(
            state.dict[state.mapper.get_property_by_column(column).key] for column in state.mapper.primary_key
        )
        place = names.place(owner_class, primary_key)
        reference = owner_class.reference(state.obj(), primary_key)
        by_class.setdefault(owner_class, []).append((place, bound_keys(keys, reference)))
    with session.no_autoflush:
        for owner_class, some in by_class.items():
            if server.write_new(session, owner_class, some, kek):
                # The flush wrote values under keys that are not stored: they must not be committed.
                raise AlreadyEnrolledError(
                    f"A new {owner_class.name} has the primary key of an owner whose keys are still there: "
                    "delete that one in a flush of its own."
                )


def after_soft_rollback(session: Session, *_: object) -> None:
    """Remove half-made owners after a failed flush."""
    new = take_page(session, _NewOwners)
    if new is None:
        return
    for state, _owner_class, keys in new.made:
        enrolling_in(session).pop(state, None)
        for one in keys:
            one.key.wipe()
