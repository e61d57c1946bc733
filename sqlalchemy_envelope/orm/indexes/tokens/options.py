"""What an application says of a token index when it declares it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.indexes.blind_index import Scope
    from sqlalchemy_envelope.orm.indexes.tokens.token_set import TokenSet


@dataclass(frozen=True, eq=False)
class TokenOptions:
    """The arguments of `token_index`, which says what each of them is."""

    of: str
    scope: Scope
    tokens: TokenSet
    most: int
    label: str | None
    table: str | None
