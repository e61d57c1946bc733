"""Rows that lose their owner: SQLAlchemy sets the foreign key of a child to NULL when its parent is deleted,
or when the child leaves the parent's collection, unless the relationship has a cascade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import RelationshipDirection

from sqlalchemy_envelope.exceptions import LockedError, PlaintextRefusedError, StatementRefusedError
from sqlalchemy_envelope.orm.columns.previous import policy_of_column
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute


def refuse_orphan(state: InstanceState[Any], attribute: EncryptedAttribute) -> None:
    """Refuse to write a row that was taken from its owner and still holds a value under that owner's key.

    Raises:
        StatementRefusedError: with the relationship that does it, and the line to write in its place.
    """
    lost, path = (
        [key for key in attribute.owner_keys if state.dict.get(key) is None],
        attribute.encrypted.path,
    )
    if isinstance(path, ChosenPath) and path.parts([state.dict.get(key) for key in attribute.owner_keys]):
        return  # it has another of its alternatives
    if not lost or policy_of_column(attribute.encrypted.column) == "both" or not _holds(state, attribute):
        return
    child, owner = state.class_.__name__, " or ".join(one.name for one in path.owner_classes)
    are = "is" if len(lost) == 1 else "are"
    what = (
        f"{child}.{' and '.join(lost)} {are} set to NULL, and {child}.{attribute.key} is "
        f"encrypted with the key "
        f"of its {owner}."
    )
    causes = sorted(set(_without_cascade(state, lost)))
    if causes:
        names = " and ".join(f"{parent}.{key}" for parent, key in causes)
        names += " have no" if len(causes) > 1 else " has no"
        lines = " and ".join(
            f'`{key} = relationship(..., cascade="all, delete-orphan", passive_deletes=True)`'
            for _, key in causes
        )
        raise StatementRefusedError(
            f"{what} SQLAlchemy does so when a {causes[0][0]} is deleted, or a {child} is removed from its "
            f"collection, because {names} cascade. Write {lines}, or delete the {child} itself."
        )
    raise StatementRefusedError(
        f"{what} Give it another {owner}, delete it, or set {child}.{attribute.key} to None with it. If it "
        f"gets another {owner} further on, a query between the two flushed it too early: put both into "
        "`with session.no_autoflush:`."
    )


def _holds(state: InstanceState[Any], attribute: EncryptedAttribute) -> bool:
    try:
        return getattr(state.obj(), attribute.key) is not None
    except (LockedError, PlaintextRefusedError, InvalidRequestError):  # raiseload
        return True


def _without_cascade(state: InstanceState[Any], lost: list[str]) -> Iterator[tuple[str, str]]:
    """The relationships, by class and name, that set these columns of a child to NULL."""
    columns = {column for key in lost for column in state.mapper.attrs[key].columns}
    for mapper in state.mapper.registry.mappers:
        for one in mapper.relationships:
            if (
                one.direction is RelationshipDirection.ONETOMANY
                and not one.viewonly
                and not one.cascade.delete_orphan
                and state.mapper.isa(one.mapper)
                and any(column in columns for _, column in one.synchronize_pairs)
            ):
                yield one.parent.class_.__name__, one.key
