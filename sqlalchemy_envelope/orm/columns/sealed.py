"""A value between the database and its owner's key: bytes that show nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import JSON

from sqlalchemy_envelope.exceptions import EnvelopeError, KeyShreddedError, LockedError
from sqlalchemy_envelope.orm.current.context import server_hint
from sqlalchemy_envelope.orm.tables.python_types import python_type_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.types import TypeEngine

    from sqlalchemy_envelope.orm.columns.format import ColumnFormat


class _Ciphertext:
    """The mark of a value that the statement hook has encrypted."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<ciphertext>"


CIPHERTEXT = _Ciphertext()
"""A value on its way into the database is the pair `(CIPHERTEXT, bytes)`. The bind processor accepts
nothing else, and only the statement hook has the mark. A plain tuple, because a class takes four times as
long to make."""


def is_ciphertext(value: object) -> bool:
    """Tell whether the statement hook made this value."""
    return type(value) is tuple and len(value) == 2 and value[0] is CIPHERTEXT


class _Refusing(dict[str, Any]):
    """The attributes of a `Sealed`, for code that takes it apart."""

    __slots__ = ("_refuse",)

    def __init__(self, refuse: Callable[..., NoReturn]) -> None:
        super().__init__()
        self._refuse = refuse

    def keys(self) -> NoReturn:
        self._refuse()

    values = items = keys


class Sealed:
    """A stored value that could not be opened when it was read, or that is unreadable.

    The value's key is locked, or the statement does not tell the value's row or the row's owner; then `note`
    names the missing part. `unlocked.decrypt(sealed)` opens the value, with `primary_key=` if row-bound.

    `repr` shows nothing of the value. Every use as the value raises `LockedError`: for example `str`, `==`
    with anything that is not sealed, and the methods of the value's type. `json.dumps` does not know this
    type, and raises its own `TypeError`.

    An unreadable value is not what was written there, and no key opens it. Using it raises the error `why`.
    """

    __slots__ = ("blob", "format", "note", "why")

    def __init__(
        self, blob: bytes, form: ColumnFormat, why: EnvelopeError | None = None, note: str | None = None
    ) -> None:
        self.blob = blob
        self.format = form
        self.why = why
        self.note = note

    def unreadable(self, error: EnvelopeError) -> Sealed:
        """Return the same bytes as an unreadable value: they are no value of their column and row."""
        # Keep only the error's message: the frames in its traceback had a key.
        return Sealed(self.blob, self.format, type(error)(*error.args))

    def shredded(self) -> Sealed:
        """Return the same bytes as a shredded value: their key was destroyed."""
        said = "cannot be read again: the key that it was written under was destroyed."
        return self.unreadable(KeyShreddedError(f"A value of {self.label!r} {said}"))

    @property
    def is_shredded(self) -> bool:
        """Whether the key of the value was destroyed."""
        return isinstance(self.why, KeyShreddedError)

    @property
    def is_replaced(self) -> bool:
        """Whether another value is read in place of this value, which is shredded."""
        return self.format.shredded is not None and self.is_shredded

    @property
    def label(self) -> str:
        """The label of the column it comes from."""
        return self.format.label or "?"

    def __repr__(self) -> str:
        if self.why is not None:
            return f"<Sealed {self.label}, {len(self.blob)} bytes: unreadable ({self.why.code})>"
        return f"<Sealed {self.label}, {len(self.blob)} bytes: open it with {self._how}>"

    @property
    def _how(self) -> str:
        row_bound = self.format.bind == "row"
        return "unlocked.decrypt(sealed, primary_key=...)" if row_bound else "unlocked.decrypt(sealed)"

    def error(self) -> EnvelopeError:
        """Return the error for a use as the value: the value is unreadable, or locked."""
        if self.why is not None:
            return type(self.why)(*self.why.args)  # a new one for each use
        if self.note is not None:
            return LockedError(f"A value of {self.label!r} is sealed: {self.note}; or use {self._how}.")
        return LockedError(
            f"A value of {self.label!r} is sealed and was used as if it were open: unlock its owner and use "
            f"{self._how}. repr() shows it without its content.{server_hint()}"
        )

    def _refuse(self, *_: Any) -> NoReturn:
        del _  # the other operand may be a plaintext value
        raise self.error()

    # Every use as the hidden value is refused, so that no redacted text ends up in a page or a file. Only
    # `repr` may be printed, because logs and debuggers print it.
    __str__ = __format__ = __bytes__ = _refuse
    __bool__ = __int__ = __float__ = __complex__ = __index__ = __round__ = _refuse
    __len__ = __iter__ = __getitem__ = __contains__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __mod__ = __rmod__ = __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _refuse
    __neg__ = __pos__ = __abs__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        """Called for attributes that a `Sealed` lacks: methods of the value are refused, like the value."""
        # `copy`, `pickle`, debuggers and SQLAlchemy ask every object for names with underscores.
        if not name.startswith("_") and name not in self.__slots__ and _is_of_value(self.format.inner, name):
            raise self.error()
        raise AttributeError(f"'Sealed' object has no attribute {name!r}", name=name, obj=self)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # a slotted class has none
        """FastAPI makes JSON of `dict(value)`, then of `vars(value)`, and turns an error of both into a
        `ValueError`, past the application's handler of `LockedError`. So `vars` succeeds, and its result
        refuses every use."""
        return _Refusing(self._refuse)

    def __eq__(self, other: object) -> bool:
        """Tell whether the stored bytes of two sealed values are the same.

        A comparison with an open value is refused: its answer would be mistaken for an answer about the
        plaintext.
        """
        return other.blob == self.blob if isinstance(other, Sealed) else self._refuse()

    def __hash__(self) -> int:
        return hash(self.blob)

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (bytes(self.blob), self.format, self.why, self.note)


_PLAIN = (str, bytes, int, float, bool, list, dict)
"""The possible types of a value if the column's type does not tell, for example for a JSON column."""


def _is_of_value(inner: TypeEngine[Any], name: str) -> bool:
    """Tell whether the values of a type have this attribute."""
    python_type = python_type_of(inner) or object
    types = _PLAIN if python_type is object or isinstance(inner, JSON) else (python_type,)
    return any(hasattr(one, name) for one in types)
