"""The normalisers of an index, which its declaration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.normalizers import normalizer_named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
    from sqlalchemy_envelope.orm.indexes.normalizers import Normalizer


def normalizers_of(type_: BlindIndex, sources: Sequence[EncryptedColumn]) -> list[Normalizer | None]:
    """The normaliser of each attribute of an index.

    Raises:
        ConfigurationError: there is no normaliser of that name, or it does not take such values.
    """
    names = type_.normalize
    each = names if isinstance(names, tuple) else (names,) * len(sources)
    return [_checked(name, source, type_) for name, source in zip(each, sources, strict=True)]


def _checked(name: str | None, source: EncryptedColumn, type_: BlindIndex) -> Normalizer | None:
    normalizer = None if name is None else normalizer_named(name)
    where, is_text = f"{source.column.table.name}.{source.key}", source.type.codec.tag == "str"
    if normalizer is not None and normalizer.of_text and not is_text:
        raise ConfigurationError(
            f"BlindIndex(normalize={name!r}): it takes text, and {where} holds {source.type.codec.tag!r} "
            "values. Leave it out, or register a normaliser of your own with `register_normalizer`."
        )
    if type_.prefix is None:
        return normalizer
    if normalizer is None and not is_text:
        raise ConfigurationError(
            f"BlindIndex(prefix={type_.prefix}): {where} holds {source.type.codec.tag!r} values, and no text."
        )
    if normalizer is not None and not normalizer.of_prefixes:
        raise ConfigurationError(
            f"BlindIndex(prefix={type_.prefix}, normalize={name!r}): the beginning of a value cannot be "
            "normalised by it. Use 'case-v1', or register your own with `of_prefixes=True`."
        )
    return normalizer
