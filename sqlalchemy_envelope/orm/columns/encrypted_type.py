"""`EncryptedType`: describes an encrypted column. Types describe; sessions hold keys.

A type sees a value and a dialect, no row and no session. So it never encrypts: its bind processor takes
values that the statement hook has encrypted, and refuses everything else. A value that slips past the hook is
thus refused, and never stored in the clear. The type never decrypts either. Its result processor takes an
opened value out of its cell, and makes a `Sealed` of everything else.
"""

from collections.abc import Callable
from functools import cached_property
from keyword import iskeyword
from typing import Any, Literal, NoReturn

from sqlalchemy import ColumnClause, Label, LargeBinary, Null, String, and_, or_
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeDecorator, TypeEngine, to_instance

from sqlalchemy_envelope.crypto.aead import Field
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, StatementRefusedError
from sqlalchemy_envelope.orm.columns.codec import Codec
from sqlalchemy_envelope.orm.columns.codecs import check_null, codec_for
from sqlalchemy_envelope.orm.columns.format import ColumnFormat, Replacement
from sqlalchemy_envelope.orm.columns.owner_spec import OwnerSpec, check_spec
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn, previous_of
from sqlalchemy_envelope.orm.columns.sealed import CIPHERTEXT, Sealed
from sqlalchemy_envelope.orm.columns.searching import answered, has_word_op, has_words_op

_BYTES = (bytes, bytearray, memoryview)
_PASSED_BY = "its row was not looked at when it was fetched. Read it through SQLAlchemy's own result"
_NULL_TESTS = (operators.is_, operators.is_not, operators.eq, operators.ne)


RAISES: Any = object()
"""The default of `EncryptedType(shredded=...)`: there is no replacement."""


def _replacement(value: Any, inner: TypeEngine[Any]) -> Replacement | None:
    if value is RAISES:
        return None
    if value is None or isinstance(value, Replacement):
        return value or Replacement(None)
    codec, fits = codec_for(inner), f"of the type {type(value).__name__} does not fit the column"
    try:
        return Replacement(codec.encode(value))
    except Exception:  # noqa: BLE001 - of a type of the application's own, too
        raise ConfigurationError(f"EncryptedType(shredded=...): a value {fits}.") from None


class _EncryptedComparator(TypeEngine.Comparator[Any]):
    """Turns a comparison into one on a blind index of the column. Refuses every comparison that could only
    give a wrong answer, as soon as it is written."""

    __slots__ = ()

    @emptying
    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        if op in _NULL_TESTS and len(other) == 1:
            to = other[0]
            if to is None or isinstance(to, Null):
                return _null_test(self.expr, op, super().operate(op, *other, **kwargs))
        found = answered(self.expr, op, other, kwargs)
        if found is not None:
            return found
        if op is operators.eq and len(other) == 1 and isinstance(other[0], ColumnClause):
            # SQLAlchemy looks columns up in lists and dictionaries, which compare them: so `column == column`
            # can be written. If it is sent, it is refused like any other comparison.
            return super().operate(op, *other, **kwargs)
        raise refused(self.expr, op)

    @emptying
    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> NoReturn:
        raise refused(self.expr, op)

    @emptying
    def has_word(self, word: str) -> Any:
        """Find the texts that have this word. A token index of words answers it."""
        return self.operate(has_word_op, word)

    @emptying
    def has_words(self, text: str) -> Any:
        """Find the texts that have all words of this text."""
        return self.operate(has_words_op, text)


def _null_test(column: Any, op: Any, tested: Any) -> Any:
    """The test whether a row has a value in either of the two columns, while values are moved."""
    while isinstance(column, (Label, Grouping)):
        column = column.element
    previous = previous_of(column)
    if previous is None:
        return tested
    if op in (operators.is_, operators.eq):
        return and_(tested, previous.is_(None))
    return or_(tested, previous.is_not(None))


_SYMBOLS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "add": "+",
    "concat": "+",
    "sub": "-",
    "neg": "-",
    "mul": "*",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "getitem": "[]",
    "json_getitem": "[]",
    "and": "&",
    "or": "|",
    "inv": "~",
}


def shown_operator(op: Any) -> str:
    """An operator as an application writes it: `==`, `.desc()`."""
    custom = getattr(op, "opstring", None)
    if custom is not None:
        return f"`.op({custom!r})`"
    name = getattr(op, "__name__", str(op)).removesuffix("_op")
    symbol = _SYMBOLS.get(name.strip("_"))
    method = f"{name}_" if iskeyword(name) else name
    return f"`.{method}()`" if symbol is None else f"`{symbol}`"


def refused(column: Any, op: Any) -> StatementRefusedError:
    """The error for an operator that cannot work on ciphertext."""
    return StatementRefusedError(
        f"{shown_operator(op)} cannot work on the encrypted column {str(column)!r}: equal values are stored "
        "as different bytes. Only `is_(None)` and `is_not(None)` do. Declare a blind index on it "
        "to find equal values, `mapped_column(BlindIndex(...))`; or load the rows of one owner and compare "
        "the decrypted values."
    )


class EncryptedType(TypeDecorator[Any]):
    """A column whose values are encrypted with a data key of the row's owner.

    Args:
        inner: the type of the plaintext, as for a plain column: `String`, `JSON`, `Numeric(10, 2)`, ...
        owner: the attribute or column that refers to the key owner (a tuple of them for a composite
            primary key), or relationships that lead to it ("order.customer"); `OwnerColumn`, `OneOf`, or a
            class with a sole row. Left out: the class itself if it is a `KeyOwner`, else its only foreign key
            to one.
        label: the name that values are bound to. Left out: `table.column`; pin the old name before a rename.
        bind: "column", or "row" to bind each value to its row's primary key too, which
            the client must then make.
        scope: the name of the owner's data key; a `KeyGrant` may share one scope and not the others.
        previous: the column that this column replaces, while its values are moved.
        check: whether the database refuses values that are no ciphertext, by a CHECK on first byte and
            length. Left out: in new tables and columns. True: Alembic adds it to existing columns, too.
        shredded: the value to read where the owner's key was destroyed, "[erased]" for example. It is never
            stored. Left out: reading is a `KeyShreddedError`.

    Stored: plaintext + 45 bytes, in the dialect's binary type. The length and `NULL` show; the empty string
    is encrypted. Format: docs/reference/wire-format.md, section 6.

    Raises:
        ConfigurationError: the inner type cannot be encrypted, or `bind` is neither word.
    """

    impl = LargeBinary
    cache_ok = True
    comparator_factory: Any = _EncryptedComparator

    # Not keyword-only: SQLAlchemy builds its cache key from positional arguments alone.
    def __init__(
        self,
        inner: TypeEngine[Any] | type[TypeEngine[Any]] = String,
        owner: OwnerSpec | None = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        previous: PreviousColumn | None = None,
        check: bool | None = None,
        shredded: Any = RAISES,
    ) -> None:
        super().__init__()
        if bind not in ("column", "row"):
            raise ConfigurationError(f"EncryptedType(bind={bind!r}): use bind='column' or bind='row'.")
        self.inner: TypeEngine[Any] = to_instance(inner)
        if isinstance(self.inner, EncryptedType):
            raise ConfigurationError("EncryptedType inside EncryptedType: name the type of the plaintext.")
        check_spec(owner)
        self.owner = owner
        self.label = label
        if not isinstance(scope, str) or len(scope) > 64:
            raise ConfigurationError("EncryptedType(scope=...): a name of at most 64 characters.")
        self.bind: Literal["column", "row"] = bind
        self.scope = scope
        self.previous = previous
        self.check = check
        # Bytes, and not the value, which may be a list: SQLAlchemy makes a cache key of all arguments.
        self.shredded: Replacement | None = _replacement(shredded, self.inner)
        self.codec  # noqa: B018 - an unsupported inner type is an error here, not at first use
        if previous is not None:
            check_null(self.inner)

    @cached_property
    def format(self) -> ColumnFormat:
        """The format of stored values, without the column."""
        return ColumnFormat(self.inner, self.label, self.bind, self.shredded)

    @property
    def codec(self) -> Codec:
        """The codec that turns values into bytes."""
        return self.format.codec

    @property
    def field(self) -> Field:
        """The field that values of this column are bound to.

        Raises:
            ConfigurationError: the type is in no table yet and has no label.
        """
        return self.format.field

    def labelled(self, label: str) -> "EncryptedType":
        """A copy of this type for one column, with its label fixed."""
        copy = self.copy()
        copy.label = label
        copy.__dict__.pop("format", None)  # it has the former label
        return copy

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Pass on values that the statement hook has encrypted, and refuse everything else."""
        label = self.label

        def process(value: Any) -> Any:
            if value is None:
                return None
            try:
                mark, ciphertext = value
            except Exception:  # noqa: BLE001 - it is no pair, whatever it says of that
                mark = ciphertext = None
            if mark is CIPHERTEXT:
                return ciphertext
            del value, mark, ciphertext
            if label is None:
                raise StatementRefusedError(
                    "A value for an EncryptedType that is in no column reached the database driver and was "
                    "refused. A type of your own goes inside: EncryptedType(YourType), and not around it."
                )
            raise StatementRefusedError(
                f"A value for {label!r} reached the database driver unencrypted and was refused: this form "
                "of statement is not supported on an encrypted column. Write through the ORM, or a plain "
                "insert() / update()."
            )

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Hand out the values that were opened where the row is whole (`reading.rows`), and nothing else."""
        return _null_aware(_processor(self.format), self.codec.read_null)

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Return a text that no database accepts as SQL, in place of a literal.

        A literal would put plaintext into the statement's text. An error raised here would be worse:
        SQLAlchemy wraps it in an error that prints the value. So a log shows this text.
        """
        shown = f"<encrypted {self.label}>"
        return lambda value: shown

    def compare_values(self, x: Any, y: Any) -> bool:
        """Tell whether two plaintexts are equal, as the inner type sees it."""
        return self.inner.compare_values(x, y)

    @property
    def python_type(self) -> type[Any]:
        """The Python type of the plaintext."""
        return self.inner.python_type

    @property
    def hashable(self) -> bool:  # type: ignore[override]  # a plain attribute of SQLAlchemy's types
        """Whether plaintexts can be hashed, as `Result.unique()` asks."""
        return self.inner.hashable

    def __getstate__(self) -> dict[str, Any]:
        # The format is made again when it is read: its codec consists of functions, which no pickle takes.
        return {name: value for name, value in self.__dict__.items() if name != "format"}

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value.__name__ if isinstance(value, type) else repr(value)}"
            for name, value in (
                ("owner", self.owner),
                ("label", self.label),
                ("bind", self.bind),
                ("scope", self.scope),
                ("previous", self.previous),
                ("check", self.check),
            )
            if value not in (None, "column", "")
        )
        if self.shredded is not None:
            options += f", shredded={self.format.replacement()!r}"
        return f"EncryptedType({self.inner!r}{options})"


def _null_aware(process: Callable[[Any], Any], read_null: Callable[[], Any] | None) -> Callable[[Any], Any]:
    """Return a processor that reads NULL as the inner type's processor does."""
    if read_null is None:
        return process
    return lambda value: read_null() if value is None else process(value)


def _processor(form: ColumnFormat) -> Callable[[Any], Any]:
    def process(value: Any) -> Any:
        if value is None:
            return None
        try:
            return value.cell_contents
        except AttributeError:
            pass
        # The value did not pass the place of reading (`reading.results`), which knows the value's row.
        return Sealed(bytes(value) if isinstance(value, _BYTES) else b"", form, note=_PASSED_BY)

    return process


def format_in(type_: Any) -> ColumnFormat | None:
    """The format of an encrypted type, or of the encrypted type inside an application's decorator."""
    while isinstance(type_, TypeDecorator):
        if isinstance(type_, EncryptedType):
            return type_.format
        type_ = type_.impl_instance
    return None


def is_ours(processor: object) -> bool:
    """Tell whether a result processor is from this module."""
    return getattr(processor, "__module__", None) == __name__
