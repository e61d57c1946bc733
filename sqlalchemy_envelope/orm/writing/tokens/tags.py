"""The tags of texts: made under the keys of a database, and put into the table of a token index."""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TAG_COLUMN, as_indexed
from sqlalchemy_envelope.orm.tables.cascades import require_foreign_keys
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.unstorable import unstorable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn

    Key = tuple[Any, ...]
    Tags = Mapping[Key, Sequence[bytes]]


class Tagger:
    """Makes the tags of texts, under the keys of one database."""

    __slots__ = ("_connection", "_hashers", "_options")

    def __init__(self, connection: Connection, options: Any) -> None:
        self._connection = connection
        self._options = options
        self._hashers: dict[TokenizedColumn, IndexHasher] = {}

    def tags(self, index: TokenizedColumn, text: Any) -> Sequence[bytes]:
        """The tags of a text that its inner type has converted, in an order that tells nothing of the text.

        Raises:
            StatementRefusedError: it has too many tokens.
            ValueEncodingError: it is no text.
        """
        return make_tags(index, text, None if text is None else self._hasher(index))

    def _hasher(self, index: TokenizedColumn) -> IndexHasher:
        known = self._hashers.get(index)
        if known is None:
            found = server_hashers(self._connection, as_indexed(index), makes=True, options=self._options)
            assert found.writes is not None  # noqa: S101 - it was made
            known = self._hashers[index] = found.writes
        return known


def make_tags(index: TokenizedColumn, text: Any, hasher: IndexHasher | None) -> Sequence[bytes]:
    """The tags of a text that its inner type has converted, in an order that tells nothing of the text.

    Raises:
        StatementRefusedError: it has too many tokens.
        ValueEncodingError: it is no text.
    """
    if text is None or hasher is None:
        return ()
    error: Exception | None = None
    datas: list[bytes] = []
    try:
        index.source.encode_converted(text)
        datas = index.data(text)
    except OverflowError:
        error = StatementRefusedError(
            f"{index.label}: a text has more than {index.options.most:,} different tokens. Raise "
            f"token_index(..., most=...), or index less of it."
        )
    except Exception:  # noqa: BLE001 - raised below, chained to nothing that holds the value
        error = unstorable(index.source, text, None)
    if error is not None:
        del text, datas
        raise error
    tag = hasher.tag
    return sorted([tag(data) for data in datas])


def require_tags_to_go(connection: Connection) -> None:
    """Refuse a database that would leave the tags of a deleted row behind.

    Raises:
        ConfigurationError: SQLite with `PRAGMA foreign_keys` off.
    """
    require_foreign_keys(connection, "deleting a row would leave its tags behind")


def replace_tags(connection: Connection, index: TokenizedColumn, tags: Tags) -> None:
    """Give rows these tags, in place of those that they have.

    Args:
        tags: by primary key of the row.
    """
    for keys in chunks(list(tags)):
        connection.execute(delete(index.table).where(among(index.keys, keys)))
    add_tags(connection, index, tags)


def add_tags(connection: Connection, index: TokenizedColumn, tags: Tags) -> None:
    """Give rows without tags these tags, by primary key of the row."""
    names = [key.key for key in index.keys]
    rows: list[dict[str, Any]] = []
    for key, made in tags.items():
        own = dict(zip(names, key, strict=True))
        rows += [{TAG_COLUMN: tag, **own} for tag in made]
    if rows:
        rows.sort(key=itemgetter(TAG_COLUMN))  # as the table has them
        connection.execute(insert(index.table), rows)
