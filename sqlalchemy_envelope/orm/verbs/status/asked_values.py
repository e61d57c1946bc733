"""The encrypted values of an object, as stored in the database, with their owners. For `why_locked`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from sqlalchemy import inspect, select
from sqlalchemy.orm import Mapper, RelationshipDirection
from sqlalchemy.orm import exc as orm_exc

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.reading.row_owners import RowOwners
from sqlalchemy_envelope.orm.tables.rows import matches
from sqlalchemy_envelope.orm.tables.stored_rows import raw

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.tables.owners import Place


class AskedValue(NamedTuple):
    """A stored value, or a value of an object without a row.

    Attributes:
        name: the name of its attribute, "Post.text".
        stored: the bytes as they are stored; None for an object without a row.
        owner: the owner of its row; None if the row leads to no owner, and `why_none` gives the reason.
        reference: the reference of its row, if the column is bound to its row.
    """

    name: str
    attribute: EncryptedAttribute
    stored: Any
    owner: Place | None
    why_none: str
    reference: bytes

    @property
    def scope(self) -> str:
        """The scope whose data key encrypts the value."""
        return self.attribute.encrypted.scope

    @property
    def key_id(self) -> KeyId | None:
        """The key that the stored value names."""
        return None if self.stored is None else UUID(bytes=bytes(self.stored[1:HEADER_SIZE]))


def asked_for(instance: object, attribute: str | None) -> tuple[InstanceState[Any], list[EncryptedAttribute]]:
    """Return the state of an object, and its encrypted attribute of this name, or all without a name.

    Raises:
        ConfigurationError: the object has no such encrypted attribute.
    """
    state: Any = inspect(instance, raiseerr=False)
    mapper = getattr(state, "mapper", None)
    plan = plan_of_mapper(mapper) if isinstance(mapper, Mapper) and mapper is not state else ()
    found = [one for one in plan if attribute in (None, one.key)]
    if not found:
        name = type(instance).__name__
        known = " and ".join(repr(one.key) for one in plan)
        raise ConfigurationError(
            f"why_locked() tells of encrypted attributes, and {name} has {known or 'none'}"
            f"{'' if attribute is None else f': no {attribute!r}'}."
        )
    return state, found


def values_of(
    session: Session, state: InstanceState[Any], plan: Sequence[EncryptedAttribute]
) -> Iterator[AskedValue]:
    """Yield the values that are not NULL, as stored in the database, each with its owner."""
    held = _unflushed(state) if state.key is None else _row(session, state, plan)
    names = RowOwners(session, session.connection(bind_arguments={"mapper": state.mapper}))
    for one in plan:
        value, path = held.get(one.key), one.encrypted.path
        if value is None:
            continue
        values = tuple(held.get(key) for key in one.owner_keys)
        found, why_none = None, "the columns that name it are not mapped here"
        if len(values) == len(path.columns):
            names.load(path, [values])
            found, why_none = path.find(values, names), path.why_none(values)
        place = None if found is None else names.place(*found)
        reference = encode_reference(state.key[1]) if one.row_bound and state.key is not None else b""
        stored = None if state.key is None else value
        yield AskedValue(f"{state.class_.__name__}.{one.key}", one, stored, place, why_none, reference)


def _unflushed(state: InstanceState[Any]) -> dict[str, Any]:
    """Return the values of an object without a row, with keys that a flush takes from its relationships."""
    held, mapper = dict(state.dict), state.mapper
    for relation in mapper.relationships:
        referred: Any = held.get(relation.key)
        if relation.direction is RelationshipDirection.MANYTOONE and referred is not None:
            for local, remote in relation.local_remote_pairs or ():
                value = inspect(referred).dict.get(relation.mapper.get_property_by_column(remote).key)
                key = mapper.get_property_by_column(local).key
                held[key] = held.get(key) if value is None else value
    return held


def _row(session: Session, state: InstanceState[Any], plan: Sequence[EncryptedAttribute]) -> dict[str, Any]:
    """Load the row of an object: the stored bytes, and the columns that tell its owner."""
    assert state.key is not None  # noqa: S101 - asked before
    cls, owners = state.class_, dict.fromkeys(key for one in plan for key in one.owner_keys)
    columns = [raw(getattr(cls, one.key)).label(f"stored_{at}") for at, one in enumerate(plan)]
    query = select(*columns, *(getattr(cls, key) for key in owners))
    query = query.where(matches(state.mapper.primary_key, [tuple(state.key[1])]))
    row = session.execute(query, bind_arguments={"mapper": state.mapper}).first()
    if row is None:
        raise orm_exc.ObjectDeletedError(state)
    return dict(zip([*(one.key for one in plan), *owners], row, strict=True))
