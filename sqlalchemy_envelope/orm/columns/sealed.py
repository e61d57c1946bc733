"""What a value is between the database and its owner's key: bytes that show nothing of themselves."""

from typing import Any, NoReturn

from sqlalchemy_envelope.exceptions import LockedError
from sqlalchemy_envelope.orm.current.context import server_hint


class _Ciphertext:
    """The mark of a value that the statement hook has encrypted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<ciphertext>"


CIPHERTEXT = _Ciphertext()
"""A value on its way into the database is the pair `(CIPHERTEXT, bytes)`. The bind processor accepts nothing
else, and nobody but the statement hook has the mark. A plain tuple, because a class of its own takes four
times as long to make."""


def is_ciphertext(value: object) -> bool:
    """Whether the statement hook made this."""
    return type(value) is tuple and len(value) == 2 and value[0] is CIPHERTEXT


class Unplaced:
    """A stored value on its way to its result processor, whose row came without its owner: it may open, but
    whose row it is in is still to be asked."""

    __slots__ = ("blob",)

    def __init__(self, blob: bytes) -> None:
        self.blob = blob

    def __repr__(self) -> str:
        return f"<Unplaced, {len(self.blob)} bytes>"


class Sealed:
    """A stored value that could not be opened where it was read: its key is locked, or it is bound to a
    row that the statement did not select as an entity. `unlocked.decrypt(sealed)` opens it, with
    `primary_key=` if row-bound."""

    __slots__ = ("blob", "type")

    def __init__(self, blob: bytes, type_: Any) -> None:
        self.blob = blob
        self.type = type_

    @property
    def label(self) -> str:
        """The label of the column it comes from."""
        return (self.type.label if self.type is not None else None) or "?"

    def __repr__(self) -> str:
        how = "unlocked.decrypt(sealed, primary_key=...)" if self._row_bound else "unlocked.decrypt(sealed)"
        return f"<Sealed {self.label}, {len(self.blob)} bytes: open it with {how}>"

    @property
    def _row_bound(self) -> bool:
        return self.type is not None and self.type.bind == "row"

    def _refuse(self, *_: Any) -> NoReturn:
        raise LockedError(
            f"A value of {self.label!r} is sealed; unlock its owner and use "
            f"unlocked.decrypt(sealed).{server_hint()}"
        )

    # Whatever would take it for the value it hides is refused; equality is of the stored bytes.
    __bool__ = __len__ = __iter__ = __getitem__ = __int__ = __float__ = __add__ = __lt__ = __contains__ = (
        _refuse
    )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and other.blob == self.blob

    def __hash__(self) -> int:
        return hash(self.blob)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (bytes(self.blob), self.type)
