"""An error in the keys of one owner is raised when those keys are asked for, and stops no other owner."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import EnvelopeError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import short
from sqlalchemy_envelope.orm.current.audit import AuditEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import Place


@contextmanager
def refusing(
    desk: Desk, keyring: Keyring | None, owner: OwnerId, event: AuditEvent, *, altogether: bool = False
) -> Iterator[None]:
    """Turn an `EnvelopeError` of the body into a refusal of this owner's keys, and emit the event.

    A `TransactionConflictError` is raised on.

    Args:
        desk: emits the event.
        keyring: the keyring that refuses the keys, if there is one.
        owner: the owner of the keys.
        event: the event to emit after an error.
        altogether: open none of the owner's keys from now on. Otherwise open them only in other, genuine
            ways.
    """
    try:
        yield
    except TransactionConflictError:
        raise
    except EnvelopeError as error:
        if keyring is not None:
            keyring.refuse(owner, error, altogether=altogether)
        desk.emit(event)


def grant_refused(place: Place, key: StoredKey | None = None) -> AuditEvent:
    """The event for an owner's key that cannot be granted or replaced."""
    key_id = None if key is None else short(key)
    return AuditEvent("grant_refused", place.owner_class.name, key_id=key_id, owner_id=place.primary_key)
