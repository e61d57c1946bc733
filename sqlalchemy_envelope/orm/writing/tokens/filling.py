"""Token indexes beside the writes: tags for rows that have none yet, and rows whose tags are out of step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import object_mapper

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TAG_COLUMN
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.tokens.tags import Tagger, add_tags, require_tags_to_go

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
    from sqlalchemy_envelope.orm.writing.tokens.tags import Tags

    Key = tuple[Any, ...]

T = TypeVar("T")


def fill_tokens(session: Session, index: TokenizedColumn, objects: Iterable[Any]) -> None:
    """Give the rows of these objects their tags, if they have none: they were written before the index was
    there, or by raw SQL.

        pending = select(Note).where(Note.body_words.pending()).limit(1000)
        fill_tokens(session, Note.body_words, session.scalars(pending).all())

    The texts are decrypted, so their owners have to be open.

    Args:
        index: the attribute of the class that `token_index` declares.

    Raises:
        ConfigurationError: the index is under its owners' keys.
        LockedError: the owner of a text is locked.
        StatementRefusedError: a text has too many tokens.
    """
    made = _Made(session, index)
    tags = {made.key(one): made.tags(one) for one in objects}
    if tags:
        require_tags_to_go(made.connection)
        add_missing(made.connection, index, tags)


def stale_tokens(session: Session, index: TokenizedColumn, objects: Iterable[T]) -> list[T]:
    """Those of the objects whose rows have other tags than their texts ask for: raw SQL has changed the text,
    or the tags. A new write of the text puts them right: `flag_modified(note, "body")`.

    Args:
        index: the attribute of the class that `token_index` declares.

    Raises:
        ConfigurationError: the index is under its owners' keys.
        LockedError: the owner of a text is locked.
        StatementRefusedError: a text has too many tokens.
    """
    made, stale = _Made(session, index), []
    for one in objects:
        tags, mine = made.tags(one), among(index.keys, [made.key(one)])
        if set(made.connection.scalars(select(index.table.c[TAG_COLUMN]).where(mine))) != set(tags):
            stale.append(one)
    return stale


class _Made:
    """The tags that the texts of objects ask for."""

    def __init__(self, session: Session, index: TokenizedColumn) -> None:
        if index.scope != "server":
            raise ConfigurationError(
                f"{index.label!r} is under its owners' keys, and each owner fills it: "
                "`envelope.settle(session)`."
            )
        self._session = session
        self._index = index
        self._tagger: Tagger | None = None
        self.connection: Any = None

    def key(self, one: object) -> Key:
        """The primary key of an object's row."""
        mapper, own = object_mapper(one), self._index.column.table.primary_key
        return tuple(getattr(one, mapper.get_property_by_column(column).key) for column in own)

    def tags(self, one: object) -> Sequence[bytes]:
        """The tags of its text."""
        mapper, convert = object_mapper(one), self._index.source.convert
        if self._tagger is None:
            self.connection = self._session.connection(bind_arguments={"mapper": mapper})
            self._tagger = Tagger(self.connection, {})
        text = getattr(one, mapper.get_property_by_column(self._index.text).key)
        return self._tagger.tags(self._index, text if convert is None else convert(text))


def add_missing(connection: Connection, index: TokenizedColumn, tags: Tags) -> int:
    """Give rows these tags, if they have none; how many got some.

    Args:
        tags: by primary key of the row.
    """
    missing = _without_tags(connection, index, list(tags))
    add_tags(connection, index, {key: tags[key] for key in missing})
    return len(missing)


def _without_tags(connection: Connection, index: TokenizedColumn, keys: Sequence[Key]) -> set[Key]:
    """Those of the rows that have no tags, locked until the transaction ends: another transaction may have
    written a row since its text was read, and its tags with it."""
    own, missing = list(index.column.table.primary_key), set(keys)
    for some in chunks(keys):
        connection.execute(select(*own).where(among(own, some)).with_for_update()).all()
        rows = connection.execute(select(*index.keys).where(among(index.keys, some)).distinct())
        missing -= {tuple(row) for row in rows}
    return missing
