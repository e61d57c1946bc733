"""Rows that lose their owner: SQLAlchemy sets the foreign key of a child to NULL when its parent is deleted,
or when the child leaves the parent's collection, unless the relationship has a cascade."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import RelationshipDirection

from sqlalchemy_envelope.exceptions import LockedError, PlaintextRefusedError, StatementRefusedError
from sqlalchemy_envelope.orm.columns.previous import policy_of_column
from sqlalchemy_envelope.orm.tables.owner_paths import ChosenPath
from sqlalchemy_envelope.orm.writing.missing_owner import names_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute


def refuse_orphan(state: InstanceState[Any], attribute: EncryptedAttribute) -> None:
    """Refuse to write a row that has lost its owner and still holds a value under that owner's key.

    Raises:
        StatementRefusedError: with the relationship that took the row from its owner, and the line to write
            in its place.
    """
    path = attribute.encrypted.path
    lost = [key for key in attribute.owner_keys if state.dict.get(key) is None]
    if isinstance(path, ChosenPath) and path.parts([state.dict.get(key) for key in attribute.owner_keys]):
        return  # it has another of its possible owners
    if not lost or policy_of_column(attribute.encrypted.column) == "both" or not _holds(state, attribute):
        return
    child, owner = state.class_.__name__, names_of(path)
    are = "is" if len(lost) == 1 else "are"
    lost_owner = (
        f"{child}.{' and '.join(lost)} {are} set to NULL, and {child}.{attribute.key} is encrypted with the "
        f"key of its {owner}."
    )
    causes = sorted(set(_without_cascade(state, lost)))
    if causes:
        raise StatementRefusedError(f"{lost_owner} {_missing_cascade(child, causes)}")
    raise StatementRefusedError(
        f"{lost_owner} Give it another {owner}, delete it, or set {child}.{attribute.key} to None with it. "
        f"If it gets another {owner} further on, a query between the two flushed it too early: put both "
        "into `with session.no_autoflush:`."
    )


def _missing_cascade(child: str, causes: list[tuple[str, str]]) -> str:
    """Why SQLAlchemy takes a child from its owner, and the relationships to write."""
    names = " and ".join(f"{parent}.{key}" for parent, key in causes)
    have = "have" if len(causes) > 1 else "has"
    lines = " and ".join(
        f'`{key} = relationship(..., cascade="all, delete-orphan", passive_deletes=True)`'
        for _, key in causes
    )
    return (
        f"SQLAlchemy does so when a {causes[0][0]} is deleted, or a {child} is removed from its collection, "
        f"because {names} {have} no cascade. Write {lines}, or delete the {child} itself."
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
        for relation in mapper.relationships:
            if (
                relation.direction is RelationshipDirection.ONETOMANY
                and not relation.viewonly
                and not relation.cascade.delete_orphan
                and state.mapper.isa(relation.mapper)
                and any(column in columns for _, column in relation.synchronize_pairs)
            ):
                yield relation.parent.class_.__name__, relation.key
