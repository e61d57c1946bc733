"""Errors for a row without its owner, or without a value that the owner's key encrypts: what is missing, and
the line to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import StatementRefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath

_RESULTS = {"unlock": "unlocked", "server_mode": "server", "write_only": "writing"}
"""Names for the results of the envelope's verbs, as the documentation has them."""


def not_set(state: InstanceState[Any], path: OwnerPath, column: EncryptedColumn) -> StatementRefusedError:
    """The error for a new object that has no owner when it is flushed."""
    name, columns = state.class_.__name__, set(path.columns)
    keys = {attr.key for attr in state.mapper.column_attrs if columns & set(attr.columns)} or set(path.keys)
    attributes = " and ".join(f"{name}.{key}" for key in sorted(keys))
    relations = [one for one in state.mapper.relationships if set(one.local_columns) == columns]
    related = [f"{name}.{relation.key}" for relation in relations]
    are = "is" if len(keys) == 1 else "are"
    return StatementRefusedError(
        f"{attributes} {are} not set, and {name}.{column.key} is encrypted with the key of its "
        f"{names_of(path)}. Set {' or '.join([*related, attributes])} before the {name} is flushed; a query "
        "flushes too, but not in `with session.no_autoflush:`."
    )


def not_loaded(state: InstanceState[Any], key: str, why: str) -> StatementRefusedError:
    """The error for an attribute that a flush needs and the query forbade to load: `raiseload`."""
    name = state.class_.__name__
    return StatementRefusedError(
        f"{name}.{key} is not loaded, and may not be loaded by itself (raiseload): {why}. Load it with the "
        f"{name}, `undefer({name}.{key})`, or before the flush, `session.refresh(instance, [{key!r}])`."
    )


def moved_late(state: InstanceState[Any], keys: Sequence[str], column_key: str) -> StatementRefusedError:
    """The error for an object that got another owner or key after its flush had prepared it."""
    name = state.class_.__name__
    changed, was = " and ".join(f"{name}.{key}" for key in keys), "was" if len(keys) == 1 else "were"
    return StatementRefusedError(
        f"{changed} {was} changed while the {name} was being flushed, and too late, as by a `before_update` "
        f"listener: {name}.{column_key} would stay encrypted for the former owner or key; nothing was sent. "
        "Change it "
        f"before the flush, or let the listener run first: `event.listen({name}, 'before_update', ..., "
        "insert=True)`."
    )


def new_owner(column: EncryptedColumn) -> StatementRefusedError:
    """The error for a statement that inserts an owner with encrypted values of its own. Its keys could be
    stored only after its row."""
    name, where = column.path.owner_class.name, f"{column.column.table.name}.{column.key}"
    return StatementRefusedError(
        f"A statement inserts a new {name} with {where}, which is encrypted with the key of that {name}, and "
        f"bulk operations and Core statements make no keys. Add the {name} as an object: in server mode "
        f"`session.add_all([{name}(...), ...])`, else `envelope.enroll(session, {name}(...), secret=...)`."
    )


def unnamed_owner(
    path: OwnerPath, column: EncryptedColumn, *, inserts: bool, using: str | None
) -> StatementRefusedError:
    """The error for a statement that does not say whose rows it writes.

    Args:
        using: the verb of the envelope whose result could say it by `using`; None if `using` could not.
    """
    named = f"name it in the values ({', '.join(f'`{key}=`' for key in path.keys)})"
    objects = "add objects to a session" if inserts else "load the objects and change them"
    if using is None:
        cures = f"{named[0].upper()}{named[1:]}, or {objects}; `using` gives no row its owner."
    else:
        name = _RESULTS[using]
        inside = (
            f"inside `with {name}.using(owner): session.execute(...)`, where `{name}` is what "
            f"`envelope.{using}(...)` returned, or {objects}."
        )
        # An owner in the values of an UPDATE gets the rows, which is seldom what is meant.
        cures = (
            f"Name it in the values, or run it {inside}"
            if inserts
            else f"Run it {inside} A WHERE does not count."
        )
    where = f"{column.column.table.name}.{column.key}"
    return StatementRefusedError(f"A statement writes {where} and does not name the row's owner. {cures}")


def names_of(path: OwnerPath) -> str:
    """The classes that an owner may have."""
    return " or ".join(owner_class.name for owner_class in path.owner_classes)
