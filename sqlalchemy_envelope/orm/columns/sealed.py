"""What a value is between the database and its owner's key: bytes that show nothing of themselves."""

from typing import Any, NoReturn

from sqlalchemy_envelope.exceptions import EnvelopeError, LockedError


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
    `primary_key=` if row-bound.

    Or a stored value that cannot be read by anybody, since it is not what was written there; `why` is the
    error that whoever uses it gets."""

    __slots__ = ("blob", "type", "why")

    def __init__(self, blob: bytes, type_: Any, why: EnvelopeError | None = None) -> None:
        self.blob = blob
        self.type = type_
        self.why = why

    def unreadable(self, error: EnvelopeError) -> "Sealed":
        """The same bytes, which turned out to be no value of their column and row."""
        # Of the error its message alone: the frames that it passed had a key.
        return Sealed(self.blob, self.type, type(error)(*error.args))

    @property
    def label(self) -> str:
        """The label of the column it comes from."""
        return (self.type.label if self.type is not None else None) or "?"

    def __repr__(self) -> str:
        if self.why is not None:
            return f"<Sealed {self.label}, {len(self.blob)} bytes: unreadable ({self.why.code})>"
        how = "unlocked.decrypt(sealed, primary_key=...)" if self._row_bound else "unlocked.decrypt(sealed)"
        return f"<Sealed {self.label}, {len(self.blob)} bytes: open it with {how}>"

    @property
    def _row_bound(self) -> bool:
        return self.type is not None and self.type.bind == "row"

    def error(self) -> EnvelopeError:
        """What whoever takes it for a value is told: why it cannot be read, or that it is locked."""
        if self.why is not None:
            return type(self.why)(*self.why.args)  # a new one for each use
        return LockedError(
            f"A value of {self.label!r} is sealed; unlock its owner and use unlocked.decrypt(sealed)."
        )

    def _refuse(self, *_: Any) -> NoReturn:
        raise self.error()

    # Whatever would take it for the value it hides is refused; equality is of the stored bytes.
    __bool__ = __len__ = __iter__ = __getitem__ = __int__ = __float__ = __add__ = __lt__ = __contains__ = (
        _refuse
    )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sealed) and other.blob == self.blob

    def __hash__(self) -> int:
        return hash(self.blob)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (bytes(self.blob), self.type, self.why)
