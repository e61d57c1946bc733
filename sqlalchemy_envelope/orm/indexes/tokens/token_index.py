"""`token_index`: declares that the texts of an encrypted column are found by what they contain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, get_args, overload

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.blind_index import Scope
from sqlalchemy_envelope.orm.indexes.tokens.options import TokenOptions
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import tokenized_of_table
from sqlalchemy_envelope.orm.indexes.tokens.words import Words

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.indexes.tokens.token_set import TokenSet
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn

_MOST = 10_000


class TokenIndex:
    """What a class declares by `token_index`. An attribute of the mapped class gives the `TokenizedColumn`
    that was made of it."""

    def __init__(self, options: TokenOptions) -> None:
        self.options = options
        self.key = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        self.key = name

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> TokenizedColumn: ...

    @overload
    def __get__(self, instance: object, owner: type[Any]) -> Self: ...

    def __get__(self, instance: object | None, owner: type[Any]) -> TokenizedColumn | Self:
        # A mixin's declaration makes an index for each class.
        mapper = inspect(owner, raiseerr=False)
        for table in getattr(mapper, "tables", ()):
            for index in tokenized_of_table(table):
                if index.options is self.options:
                    return index
        return self

    def __repr__(self) -> str:
        given = self.options
        return f"token_index({given.of!r}, scope={given.scope!r}, tokens={given.tokens!r})"


def token_index(
    of: str,
    scope: Scope = "owner",
    tokens: TokenSet | None = None,
    most: int = _MOST,
    label: str | None = None,
    table: str | None = None,
) -> TokenIndex:
    """Declare that the texts of an encrypted column are found by what they contain:

        bio: Mapped[str] = mapped_column(EncryptedType(Text))
        bio_words = token_index("bio", scope="server")

    The library keeps a table with a tag for each different word of each text, `<table>_<name>`, and
    `User.bio.has_word("lovelace")` works. The database deletes the tags with their row.

    What it tells somebody who has the database stands with each kind: `Words`, `Grams`, `Starts`. It is much
    more than a `BlindIndex` of the whole value tells.

    Args:
        of: the attribute that it indexes. It holds text.
        scope: whose key makes the tags, as with `BlindIndex`.
        tokens: how a text is taken apart: `Words()`, `Grams(3)`, `Starts(1, 12)`. Left out: `Words()`.
        most: the most tokens of one text. A text with more is refused.
        label: the name that tags are bound to. Left out: `table.name`; pin the old name before a rename.
        table: the name of the table of tags. Left out: `<table>_<name>`.

    Raises:
        ConfigurationError: an argument is out of range.
    """
    if not isinstance(of, str) or not of:
        raise ConfigurationError("token_index(of): the name of one attribute.")
    if scope not in get_args(Scope):
        raise ConfigurationError(f"token_index(scope={scope!r}): use 'owner', 'group' or 'server'.")
    if not isinstance(most, int) or most < 1:
        raise ConfigurationError(f"token_index(most={most!r}): a number from 1 on.")
    return TokenIndex(TokenOptions(of, scope, Words() if tokens is None else tokens, most, label, table))
