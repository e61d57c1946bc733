"""An owner with its place in the database, and what must hold of it before its keys are opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import EnrollmentError, NotEnrolledError, OwnerMismatchError
from sqlalchemy_envelope.keys.hierarchy import check_generations
from sqlalchemy_envelope.orm.engine import require_cascades
from sqlalchemy_envelope.orm.owners import OwnerClass, require_owner_class
from sqlalchemy_envelope.orm.store import KeyStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.model import StoredKey


class LocatedOwner(NamedTuple):
    """An owner with its place in the database."""

    instance: object
    owner_class: OwnerClass
    primary_key: tuple[Any, ...]
    store: KeyStore

    @property
    def reference(self) -> bytes:
        """What this owner's wraps are bound to."""
        return self.owner_class.reference(self.instance, self.primary_key)


def usable_state(owner: object, owner_class: OwnerClass) -> InstanceState[Any]:
    """The state of an owner that is not deleted."""
    state: InstanceState[Any] = inspect(owner)
    if state.deleted or state.was_deleted or (state.session is not None and owner in state.session.deleted):
        raise EnrollmentError(f"This {owner_class.name} is deleted, and its keys with it.")
    return state


def locate(session: Session, owner: object) -> LocatedOwner:
    """An owner that is in the database."""
    owner_class = require_owner_class(owner)
    identity: Any = inspect(owner).key
    primary_key = tuple(identity[1])
    return LocatedOwner(owner, owner_class, primary_key, KeyStore(session, owner_class, primary_key))


def locate_enrolled(session: Session, owner: object) -> LocatedOwner:
    """An owner that could have keys, in a database that would delete them with it.

    Raises:
        NotEnrolledError, EnrollmentError, ConfigurationError: it could not.
    """
    owner_class = require_owner_class(owner)
    if usable_state(owner, owner_class).key is None:
        raise NotEnrolledError(
            f"This {owner_class.name} is not in the database yet; enroll it: envelope.enroll(...)."
        )
    require_cascades(session, {"mapper": owner_class.mapper})
    return locate(session, owner)


def load_keys(located: LocatedOwner) -> list[StoredKey]:
    """An owner's keys, one active generation of each.

    Raises:
        NotEnrolledError: there are none.
        TamperedKeyError: an older one was made active again.
    """
    keys = located.store.load_keys()
    if not keys:
        raise NotEnrolledError(
            f"This {located.owner_class.name} has no keys; enroll it first: envelope.enroll(...)."
        )
    check_generations(keys)
    return keys


def check_reference(keys: Sequence[StoredKey], located: LocatedOwner) -> None:
    """Whether the keys say they belong to this owner.

    Raises:
        OwnerMismatchError: they do not.
    """
    reference = located.reference
    if any(key.owner_reference != reference for key in keys):
        raise OwnerMismatchError(
            f"Keys stored for this {located.owner_class.name} are bound to another owner. If its table was "
            "renamed, pin the old name: `__owner_label__ = 'old_name'` on the class. If its primary key was "
            "changed, bind the keys anew: envelope.rebind(session, owner, secret=...). If neither, they were "
            "moved here."
        )
