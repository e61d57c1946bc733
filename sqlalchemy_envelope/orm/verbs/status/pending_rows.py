"""The rows that have a value and no tag in a blind index, counted. Nothing is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import func, select

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.indexes.pending import (
    count_pending,
    indexes_of,
    is_of,
    shown_name,
    token_indexes_of,
)
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import as_indexed
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.raw_tables import is_there
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass, Place


class PendingIndexRows(NamedTuple):
    """The rows that a blind index does not find yet.

    Attributes:
        name: the name of the index with that of its class, "Note.title_index".
        rows: how many rows have a value and no tag.
    """

    name: str
    rows: int


def pending_index_rows(desk: Desk, owner: object) -> tuple[PendingIndexRows, ...]:
    """The work of `Envelope.pending_index_rows`."""
    place: Place | None = None
    if isinstance(owner, type):
        found = owner_class_of(getattr(owner, "__table__", None))
        if found is None or found.key_class is None:
            raise ConfigurationError(f"{owner.__name__} is no class of key owners.")
        owner_class: OwnerClass = found
    else:
        place = locate_enrolled(desk, owner).place
        owner_class = place.owner_class
    counted = []
    for index in indexes_of(owner_class):
        mapper = mapper_of_table(index.column.table) or owner_class.mapper
        query = count_pending(index, place)
        bind = bind_for(desk.session, mapper, query)
        if not is_there(desk.session.connection(bind_arguments=bind), index.column.table):
            continue
        rows = desk.session.execute(query, bind_arguments=bind).scalar_one()
        if rows:
            counted.append(PendingIndexRows(shown_name(index), rows))
    for tokens in token_indexes_of(owner_class):
        mapper = mapper_of_table(tokens.text.table) or owner_class.mapper
        query = select(func.count()).select_from(tokens.text.table).where(tokens.pending())
        query = query if place is None else query.where(is_of(as_indexed(tokens), place))
        bind = bind_for(desk.session, mapper, query)
        if not is_there(desk.session.connection(bind_arguments=bind), tokens.table):
            continue
        rows = desk.session.execute(query, bind_arguments=bind).scalar_one()
        if rows:
            counted.append(PendingIndexRows(f"{mapper.class_.__name__}.{tokens.key}", rows))
    return tuple(sorted(counted))
