"""Columns of few values are not indexed, unless the application says why.

The tags of such a column need no key to be read: whoever sees the database counts them, and knows from public
figures which of two or ten values the commonest tag is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Enum, Integer, String, TypeDecorator

from sqlalchemy_envelope.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn

_MANY = 1_000
"""From so many members on, an Enum may be indexed."""
_CODE = 2
"""The most characters of a text that is a code: a sex, a country."""
_COUNTED = re.compile(r"(?:^|_)(?:age|day|days|month|months|year|years|yob)(?:_|$)")
"""The names of whole numbers of which there are few."""


def check_entropy(index: Column[Any], sources: Sequence[EncryptedColumn], reason: str | None) -> None:
    """Refuse an index whose columns have few values each.

    Args:
        reason: what the application says, if it wants the index all the same.

    Raises:
        ConfigurationError: every column has few values, and there is no reason.
    """
    few = [_few_values(one) for one in sources]
    if reason is not None or None in few:
        return
    names = " and ".join(one.key for one in sources)
    has = " and ".join(one for one in few if one is not None)
    raise ConfigurationError(
        f"{index.table.name}.{index.name} is a blind index of {names}, which holds {has}. Whoever sees the "
        "database counts equal tags, and tells from public figures which value the commonest tag stands for: "
        "no key is needed. Leave the index out, and compare decrypted values; or index it together with a "
        f'column of many values, BlindIndex(("{sources[0].key}", "...")). If everybody with a dump may know '
        'the values, say why: BlindIndex(..., allow_low_entropy="...").'
    )


def _few_values(source: EncryptedColumn) -> str | None:
    """The few values that a column can have, in words; None if there may be many."""
    inner: Any = source.type.inner
    while isinstance(inner, TypeDecorator):
        inner = inner.impl_instance
    if isinstance(inner, Boolean):
        return "two values"
    if isinstance(inner, Enum):
        count = len(inner.enums)
        return f"the {count:,} values of an Enum" if count < _MANY else None
    if isinstance(inner, String) and inner.length is not None and inner.length <= _CODE:
        return f"codes of at most {_CODE} characters"
    if isinstance(inner, Integer) and _COUNTED.search(source.key.lower()):
        return "a small whole number, by its name"
    return None
