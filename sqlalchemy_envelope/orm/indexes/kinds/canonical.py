"""One form for equal values. Encryption keeps a value as it is, `1.00` included; `1.00` and `1` are equal and
have one tag."""

from __future__ import annotations

import struct
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn

_EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)


def encoder_of(source: EncryptedColumn) -> Callable[[Any], bytes]:
    """What encodes the values of a column, as their inner type has converted them, equal values alike.

    Raises:
        ConfigurationError: equal values of the type have several encodings, and no common one.
    """
    tag = source.type.codec.tag
    if "json" in tag or (tag.startswith("list:") and tag.rpartition(":")[2] in _FORMS):
        raise ConfigurationError(
            f"{source.column.table.name}.{source.key} has no blind index: equal values of its type have "
            "several texts, `1` and `1.0` for example, and would not all be found. Store what is looked for "
            "in a column of its own, and index that."
        )
    encode, form = source.encode_converted, _FORMS.get(tag)
    return encode if form is None else lambda value: form(encode(value))


def _decimal(data: bytes) -> bytes:
    value = Decimal(data.decode())
    return str(_EXACT.normalize(value)).encode() if value else b"0"


def _float(data: bytes) -> bytes:
    """The two zeros are equal, and so are all that are no number."""
    (value,) = struct.unpack(">d", data)
    return struct.pack(">d", value + 0.0 if value == value else float("nan"))


_FORMS = {"decimal": _decimal, "float": _float}
