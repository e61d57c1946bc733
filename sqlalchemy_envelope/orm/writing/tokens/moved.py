"""The rows of a token index during a rotation of its key. A row has a tag of its own beside those of its
tokens, and that tells by which key they are made: no guard is needed, and nothing is unique."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, delete, false, func, select

from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TAG_COLUMN, WHOLE
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.keyset import beyond
from sqlalchemy_envelope.orm.tables.owner_paths import among
from sqlalchemy_envelope.orm.writing.moved_rows import Batch, MovedRows
from sqlalchemy_envelope.orm.writing.tokens.tags import replace_tags

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
    from sqlalchemy_envelope.orm.tables.keyset import Position


class MovedTokens(MovedRows):
    """The rows of a token index. While rows are moved, those with tags of the old key are pending."""

    moves_at_once = True

    def __init__(self, session: Session, index: TokenizedColumn) -> None:
        super().__init__(session, index.column.table)
        self._tokens = index
        self._tags = index.table.c[TAG_COLUMN]
        self.pending = self.unmoved = self.guarded = self.left = false()

    def know(self, old: IndexHasher | None) -> None:
        """Rows with a tag of this key for their whole text are pending."""
        if old is not None:
            self.pending = self.left = self._tags == old.tag(WHOLE)

    def any(self, condition: ColumnElement[bool], *, locks: bool = False) -> bool:
        """As `MovedRows.any`, of the rows of tags."""
        query = select(1).select_from(self._tokens.table).where(condition).limit(1)
        query = query.with_for_update(read=True) if locks else query
        return self.connection.execute(query).first() is not None

    def count(self, condition: ColumnElement[bool]) -> int:
        """As `MovedRows.count`: each row of the index has one such tag."""
        query = select(func.count()).select_from(self._tokens.table).where(condition)
        return int(self.connection.execute(query).scalar_one())

    def fill(self, hasher: IndexHasher, after: Position | None, size: int) -> Batch:
        """Give rows whose texts are open here the tags of the next key, in place of those that they have."""
        index = self._tokens
        if self._dialect == "sqlite":  # what is read from here on is not changed by others
            self.connection.execute(delete(index.table).where(false()))
        where = [self.pending, *([] if after is None else [beyond(index.keys, after, self._dialect)])]
        query = select(*index.keys).where(and_(*where)).order_by(*index.keys).limit(size)
        found = [tuple(row) for row in self.connection.execute(query)]
        if not found:
            return Batch(None, 0)
        made = {
            key: sorted(map(hasher.tag, index.data(text)))
            for key, text in self._texts(found)
            if text is not None
        }
        replace_tags(self.connection, index, made)
        return Batch(found[-1], len(made))

    def _texts(self, keys: list[Position]) -> list[tuple[Position, Any]]:
        """The texts of these rows that are open here, as they are stored; held until the transaction ends."""
        table, source = self._tokens.column.table, self._tokens.source
        own = list(table.primary_key.columns)
        owners = [one for one in self._tokens.path.columns if one.table is table and one not in own]
        query: Any = select(*own, *owners, source.column).where(among(own, keys))
        if self._dialect != "sqlite":
            query = query.with_for_update(key_share=self._dialect == "postgresql", of=self._locked(table))
        with self._session.no_autoflush:
            rows = self._session.execute(query, bind_arguments=bind_for(self._session, self._mapper, query))
        texts = []
        for row in rows:
            text = row[-1]
            if text is not None and not isinstance(text, Sealed):
                stored = text if source.convert is None else source.convert(text)
                texts.append((tuple(row[: len(own)]), stored))
        return texts

    def _locked(self, table: Any) -> Any:
        return table if self._dialect == "postgresql" else None

    def move(self, after: Position | None, size: int) -> Batch:
        """Nothing: they are moved as they are filled."""
        return Batch(None, 0)

    def clear(self, after: Position | None, size: int) -> Batch:
        """Nothing."""
        return Batch(None, 0)
