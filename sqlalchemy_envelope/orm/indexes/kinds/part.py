"""One attribute of an index: what is hashed of its values, with or without a normaliser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import NormalizationError
from sqlalchemy_envelope.orm.indexes.kinds.canonical import encoder_of
from sqlalchemy_envelope.orm.indexes.normalizers import NoNormalFormError

if TYPE_CHECKING:
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.normalizers import Normalizer

NO_ROW = b"\xff"
"""What no row has: it is no UTF-8, and so no normalised text."""


class Part:
    """One attribute of an index.

    Attributes:
        encode: the bytes of a value that its inner type has converted, the same for equal values.
        form: what is made of a value before it is hashed.
        normalizer: makes the text by which values are compared; None if they are compared as they are.
    """

    __slots__ = ("_convert", "_where", "encode", "form", "normalizer")

    def __init__(self, source: EncryptedColumn, normalizer: Normalizer | None = None) -> None:
        self.normalizer = normalizer
        self._convert = source.convert
        self.encode = encoder_of(source)
        self._where = f"{source.column.table.name}.{source.key}"
        self.form = f"{'exact' if normalizer is None else normalizer.name} {source.type.codec.tag}"

    def data(self, value: Any) -> bytes | None:
        """What is hashed of a value that is written; None of None.

        Args:
            value: the value, as its inner type has converted it.

        Raises:
            NormalizationError: the normaliser makes nothing of it.
        """
        if value is None:
            return None
        return self.encode(value) if self.normalizer is None else self.text(value).encode("utf-8")

    def text(self, value: Any) -> str:
        """The text by which a value is compared.

        Raises:
            NormalizationError: the normaliser makes nothing of it.
        """
        if self.normalizer is None:
            return str(self.encode(value), "utf-8")
        try:
            return self.normalizer(value)
        except NoNormalFormError as error:
            why = str(error)
        except Exception as error:  # noqa: BLE001 - what an application's function says may hold the value
            why = f"its function raised {type(error).__name__}"
        del value
        raise NormalizationError(
            f"{self._where} is found by a blind index with the normaliser {self.normalizer.name!r}, which "
            f"makes nothing of this value: {why}. Check it where it is entered, and store None where there "
            "is none."
        )

    def converted(self, value: Any) -> Any:
        """What the inner type makes of a value of the application."""
        return value if self._convert is None else self._convert(value)

    def sought(self, value: Any) -> bytes | None:
        """What is hashed of a value that is looked for; None of None. No row has a value of which the
        normaliser makes nothing."""
        value = self.converted(value)
        if value is None:
            return None
        if self.normalizer is None:
            return self.encode(value)
        text = self.sought_text(value)
        return NO_ROW if text is None else text.encode("utf-8")

    def sought_text(self, value: Any) -> str | None:
        """The text by which a value is compared that is looked for; None if its normaliser makes nothing of
        it."""
        if self.normalizer is None:
            return self.text(value)
        try:
            return self.normalizer(value)
        except ValueError:  # as the function of an application says it, too
            return None
