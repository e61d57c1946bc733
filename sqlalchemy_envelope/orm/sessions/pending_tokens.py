"""The texts of an owner in token indexes: they get their tags when the owner settles, and lose them with the
keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, tuple_

from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.orm.columns.plans import mapper_of_table
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.indexes.pending import is_of, token_indexes_of
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import as_indexed
from sqlalchemy_envelope.orm.tables.attempts import attempt
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.newer_rows import refuse_newer
from sqlalchemy_envelope.orm.tables.raw_tables import is_there
from sqlalchemy_envelope.orm.writing.tokens.filling import add_missing
from sqlalchemy_envelope.orm.writing.tokens.tags import make_tags, require_tags_to_go

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
    from sqlalchemy_envelope.orm.tables.owners import Place

    Hasher = Callable[[Place, IndexedColumn], IndexHasher | None]

MOST_TEXTS = 1_000
"""The most texts of an owner that get their tags in a transaction: it is that of a flush, as a rule, and a
text has many tags. The others follow with the next."""


def fill_pending_tokens(session: Session, places: Iterable[Place], hasher_of: Hasher) -> None:
    """Give the pending texts of these owners their tags, in the session's transaction.

    A text that does not open, or has too many tokens, stays pending.

    Args:
        hasher_of: what makes the tags of an owner in an index under the owners' keys; None for no key.
    """
    with session.no_autoflush:
        for place in places:
            for index in token_indexes_of(place.owner_class):
                _fill(session, index, place, hasher_of)


def _fill(session: Session, index: TokenizedColumn, place: Place, hasher_of: Hasher) -> None:
    table: Any = index.text.table
    mapper = mapper_of_table(table) or place.owner_class.mapper
    bind = bind_for(session, mapper)
    own = list(table.primary_key)
    here = [one for one in index.path.columns if one.table is table and one not in own]
    query = select(*own, index.text, *here).where(index.pending(), is_of(as_indexed(index), place))
    query = query.order_by(*own).limit(MOST_TEXTS)
    try:
        with attempt(session, mapper):
            connection = session.connection(bind_arguments=bind)
            if not is_there(connection, index.table):
                return  # it is declared, and not in the database yet
            rows = session.execute(query, bind_arguments=bind).all()
            if not rows:
                return
            hasher = _hasher(connection, index, place, hasher_of)
            tags = {tuple(row[: len(own)]): _tags(index, row[len(own)], hasher) for row in rows}
            require_tags_to_go(connection)
            add_missing(connection, index, {key: made for key, made in tags.items() if made})
    except EnvelopeError:
        pass  # a value was altered, or no key is at hand: whoever reads or searches is told


def _hasher(
    connection: Connection, index: TokenizedColumn, place: Place, hasher_of: Hasher
) -> IndexHasher | None:
    if index.scope != "server":
        return hasher_of(place, as_indexed(index))
    return server_hashers(connection, as_indexed(index), makes=True).writes


def _tags(index: TokenizedColumn, text: Any, hasher: IndexHasher | None) -> Sequence[bytes]:
    if isinstance(text, Sealed):
        return ()
    convert = index.source.convert
    try:
        return make_tags(index, text if convert is None else convert(text), hasher)
    except Exception:  # noqa: BLE001 - it may hold the text; the row stays pending
        return ()


def forget_tokens(session: Session, place: Place) -> None:
    """Take the tags of an owner's texts away, in every token index, as `forget_tags`."""
    for index in token_indexes_of(place.owner_class):
        table: Any = index.text.table
        mapper = mapper_of_table(table) or place.owner_class.mapper
        connection = session.connection(bind_arguments=bind_for(session, mapper))
        if is_there(connection, index.table):
            own = list(table.primary_key)
            key: Any = index.keys[0] if len(own) == 1 else tuple_(*index.keys)
            mine = key.in_(select(*own).where(is_of(as_indexed(index), place)))
            refuse_newer(connection, list(index.table.primary_key), mine)
            connection.execute(delete(index.table).where(mine))
