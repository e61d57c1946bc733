"""`ColumnFormat`: the type of a column's plaintext and the binding of its values, without the column."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.aead import Field
from sqlalchemy_envelope.exceptions import ConfigurationError, FormatError
from sqlalchemy_envelope.orm.columns.codec import Codec
from sqlalchemy_envelope.orm.columns.codecs import codec_for

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine


@dataclass(frozen=True)
class Replacement:
    """The value that a column reads in place of a shredded value.

    Attributes:
        plaintext: the value's bytes, of which each reader gets a value of its own; None for the value None.
    """

    plaintext: bytes | None


class ColumnFormat:
    """The format of a column's values, without the column.

    Args:
        inner: the type of the plaintext.
        label: the label that values are bound to; None as long as the column is in no table.
        bind: "column" or "row".
        shredded: what is read in place of a shredded value; None if reading it is an error.
    """

    def __init__(
        self, inner: TypeEngine[Any], label: str | None, bind: str, shredded: Replacement | None = None
    ) -> None:
        self.inner = inner
        self.label = label
        self.bind = bind
        self.shredded = shredded

    @cached_property
    def codec(self) -> Codec:
        """The codec that turns values into bytes.

        Raises:
            ConfigurationError: values of this type cannot be encrypted.
        """
        return codec_for(self.inner)

    @cached_property
    def field(self) -> Field:
        """The field that values are bound to.

        Raises:
            ConfigurationError: there is no label.
        """
        if self.label is None:
            raise ConfigurationError(
                "An EncryptedType outside a table needs a label: EncryptedType(..., label='t.c')."
            )
        return Field(self.label, self.codec.tag, self.bind == "row")

    def decode(self, plaintext: bytes) -> Any:
        """Return the Python value of authenticated bytes.

        Raises:
            FormatError: no writer of this format makes such bytes.
        """
        try:
            return self.codec.decode(plaintext)
        except Exception:  # noqa: BLE001 - raised below, so that the plaintext in it goes no further
            del plaintext
        raise FormatError(
            f"A value of {self.label!r} authenticates but cannot be read as {self.codec.tag!r}."
        )

    def replacement(self) -> Any:
        """The value to read in place of a shredded value, where one is declared."""
        held = None if self.shredded is None else self.shredded.plaintext
        return None if held is None else self.codec.decode(held)

    def __reduce__(self) -> tuple[Any, ...]:
        # A codec consists of functions, which no pickle takes.
        return ColumnFormat, (self.inner, self.label, self.bind, self.shredded)
