"""The errors for an attribute whose value cannot be opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import KeyShreddedError, LockedError
from sqlalchemy_envelope.orm.columns.attribute_marks import was_closed
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.tables.owner_paths import linked_paths

if TYPE_CHECKING:
    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.columns.sealed import Sealed


def locked_attribute(state: InstanceState[Any], key: str) -> LockedError:
    """Return the error for a value whose key is not unlocked."""
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    encrypted = attribute.encrypted
    name = f"{state.class_.__name__}.{key}"
    was_open = was_closed(state, key)
    return context.locked(name, state.session, encrypted.path.owner_class, encrypted.scope, was_open=was_open)


def shredded_attribute(state: InstanceState[Any], key: str) -> KeyShreddedError:
    """Return the error for a value whose key was destroyed."""
    return KeyShreddedError(
        f"{state.class_.__name__}.{key} cannot be read again: the key that it was written under was "
        "destroyed. `EncryptedType(..., shredded='[erased]')` reads as a value of your choice instead."
    )


def cannot_wait(state: InstanceState[Any], key: str) -> LockedError:
    """Return the error for an attribute under asyncio whose value needs a SQL statement to open."""
    attribute = next(one for one in plan_of_mapper(state.mapper) if one.key == key)
    if linked_paths(attribute.encrypted.path):
        return owner_not_loaded(state, attribute, "an attribute cannot wait for them", "await ")
    return LockedError(
        f"{state.class_.__name__}.{key} is locked: it was closed when its unlocked session was left, and "
        "an attribute cannot wait for it to be read anew. "
        f"`await session.refresh(instance, [{key!r}])` reads it."
    )


def owner_not_loaded(
    state: InstanceState[Any], attribute: EncryptedAttribute, why: str, wait: str = ""
) -> LockedError:
    """Return the error for a value whose owner is found through data that may not be loaded now.

    Args:
        wait: the text before a call that reads: "await " under asyncio.
    """
    name = state.class_.__name__
    ways = [
        ".".join(f"selectinload({step.parent.class_.__name__}.{step.key})" for step in linked.steps)
        for linked in linked_paths(attribute.encrypted.path)
    ]
    what = "rows" if ways else "columns"
    loads = " and ".join(
        f"`{way}`" for way in ways or [f"undefer({name}.{key})" for key in attribute.owner_keys]
    )
    return LockedError(
        f"{name}.{attribute.key} is locked: the {what} that lead to its owner are not loaded, and {why}. "
        f"Load them with it, {loads}, or read it anew inside the unlocked session, "
        f"`{wait}session.refresh(instance)`."
    )


def not_followed(
    state: InstanceState[Any], attribute: EncryptedAttribute, sealed: Sealed
) -> LockedError | None:
    """Return the error for a value whose grants were not looked for yet; None if no grant can open it."""
    here, header = context.unlocked_sessions(state.session), bytes(sealed.blob[:HEADER_SIZE])
    classes = attribute.encrypted.path.owner_classes
    if not any(one.follows and one.may_follow(of, header) for one in here for of in classes):
        return None
    key = attribute.key
    said = (
        f"{state.class_.__name__}.{key} is locked: nothing looked yet whether a grant leads to its key, and"
    )
    if state.session is None:
        return LockedError(
            f"{said} the instance is in no session that could. Add it to one and refresh it, or unlock with "
            "`follow='all'`."
        )
    return LockedError(
        f"{said} an attribute cannot wait for that. `await session.refresh(instance, [{key!r}])` reads it; "
        "or unlock with `follow='all'`."
    )
