"""The token indexes of a table: which column each of them indexes, and the table of its tags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Column, Table, and_, exists

from sqlalchemy_envelope.crypto.blind_index import FULL_BITS, IndexHasher
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.plans import encrypted_column_of, plan_of_table
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.tokens.options import TokenOptions
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath

TAG_COLUMN = "tag"
_INDEXES = "token indexes"
_TAGS_OF = "tags of"
WHOLE = b""
"""What is hashed for every text beside its tokens. A row with this tag is in the index, whatever is in its
text; a row with a text and without it is pending."""


class TokenizedColumn:
    """A token index, with the encrypted column that it indexes, and the table of its tags.

    Attributes:
        options: what the class declared.
        key: the name of the class's attribute.
        text: the encrypted column.
        column: the first column of the primary key, by which a row is found as others are by their tag.
        table: the table of tags.
        keys: its columns with the primary key of the row.
        label: the name that its tags are bound to.
    """

    bits = FULL_BITS

    def __init__(
        self, key: str, options: TokenOptions, column: Column[Any], table: Table, keys: Sequence[Column[Any]]
    ) -> None:
        self.options = options
        self.key = key
        self.text = column
        self.column: Column[Any] = next(iter(column.table.primary_key))
        self.table = table
        self.keys = tuple(keys)
        self.tokens = options.tokens
        self.scope = options.scope
        self.label: str = options.label or f"{column.table.name}.{key}"
        self._resolved: tuple[object, EncryptedColumn] | None = None
        records_of_table(table)[_TAGS_OF] = self

    @property
    def source(self) -> EncryptedColumn:
        """The encrypted column, with what is known of its values.

        Raises:
            ConfigurationError: it is not encrypted, or holds no text.
        """
        plan = plan_of_table(self.text.table)
        if self._resolved is not None and self._resolved[0] is plan:
            return self._resolved[1]
        source = encrypted_column_of(self.text)
        if source is None or source.type.codec.tag != "str":
            raise ConfigurationError(
                f"{self.text.table.name}.{self.key} is a token index of {self.options.of!r}, which is no "
                "encrypted column of texts: EncryptedType(String) or EncryptedType(Text)."
            )
        self._resolved = plan, source  # a table gets another plan when another class is mapped to it
        return source

    @property
    def sources(self) -> tuple[EncryptedColumn, ...]:
        """The encrypted column, as an index of several columns has them."""
        return (self.source,)

    @property
    def path(self) -> OwnerPath:
        """The path from a row to its owner."""
        return self.source.path

    @property
    def data_scope(self) -> str:
        """The scope of the keys of its texts. An index key of an owner has a scope, too."""
        return self.source.scope

    def hasher(self, key: KeyBytes) -> IndexHasher:
        """What makes the tags of this index under a key."""
        return IndexHasher(key, self.label, self.tokens.form)

    def data(self, text: str) -> list[bytes]:
        """What is hashed of a text.

        Raises:
            UnicodeEncodeError: the text has a lone surrogate.
            OverflowError: the text has too many tokens.
        """
        tokens = self.tokens.tokens(text)
        if len(tokens) > self.options.most:
            raise OverflowError
        return [WHOLE, *(token.encode() for token in tokens)]

    def pending(self) -> ColumnElement[bool]:
        """The condition that a row has a text and no tags: it was written before the index was there, or by
        raw SQL. Such a row is found by no token."""
        own = list(self.text.table.primary_key)
        tags = self.table.alias()
        same = [tags.c[key.key] == column for key, column in zip(self.keys, own, strict=True)]
        return and_(self.text.is_not(None), ~exists().where(*same).correlate(self.text.table))

    def __repr__(self) -> str:
        return f"<token index {self.label}>"


def tokenized_of_table(table: Any) -> tuple[TokenizedColumn, ...]:
    """The token indexes of a table."""
    if not isinstance(table, Table):
        return ()
    found: tuple[TokenizedColumn, ...] = records_of_table(table).get(_INDEXES, ())
    return found


def note_tokenized(table: Table, index: TokenizedColumn) -> None:
    """Note a token index of a table, in place of an earlier one of that name."""
    others = [one for one in tokenized_of_table(table) if one.key != index.key]
    records_of_table(table)[_INDEXES] = (*others, index)


def tags_of(table: Any) -> TokenizedColumn | None:
    """The token index whose tags a table holds."""
    if not isinstance(table, Table):
        return None
    found: TokenizedColumn | None = records_of_table(table).get(_TAGS_OF)
    return found


def as_indexed(index: TokenizedColumn) -> IndexedColumn:
    """A token index, as a function that makes tags takes it: it has the attributes of a blind index that such
    a function reads."""
    return cast("IndexedColumn", index)
