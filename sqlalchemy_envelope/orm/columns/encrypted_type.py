"""`EncryptedType`: describes an encrypted column. Types describe; sessions hold keys.

A type sees a value and a dialect, no row and no session. So it never encrypts: its bind processor takes
what the statement hook encrypted and refuses everything else, and what slips past the hook is
thus refused, never stored in the clear. On read the header names the key, and a value whose key is
unlocked here is opened in place.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NoReturn

from sqlalchemy import ColumnClause, Label, LargeBinary, Null, String, and_, or_
from sqlalchemy.engine import Dialect
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Grouping
from sqlalchemy.types import TypeDecorator, TypeEngine, to_instance

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, MAX_STORED_SIZE, Field, check_value
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    DecryptionError,
    FormatError,
    StatementRefusedError,
)
from sqlalchemy_envelope.orm.columns.codecs import Codec, check_null
from sqlalchemy_envelope.orm.columns.format import ColumnFormat
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn, previous_of
from sqlalchemy_envelope.orm.columns.sealed import CIPHERTEXT, Sealed, Unplaced
from sqlalchemy_envelope.orm.columns.whose import OwnerSpec, check_spec
from sqlalchemy_envelope.orm.current.context import CURRENT

# Constant slices, made once: building them for each value costs a tenth of its decryption.
_HEADER, _NONCE, _BODY = slice(HEADER_SIZE), slice(HEADER_SIZE, 29), slice(29, None)
_BYTES = (bytes, bytearray, memoryview)
_NULL_TESTS = (operators.is_, operators.is_not, operators.eq, operators.ne)


class _EncryptedComparator(TypeEngine.Comparator[Any]):
    """Refuses, where the statement is built, every comparison that could only give a wrong answer."""

    __slots__ = ()

    @emptying
    def operate(self, op: Any, *other: Any, **kwargs: Any) -> Any:
        if op in _NULL_TESTS and len(other) == 1:
            to = other[0]
            if to is None or isinstance(to, Null):
                return _null_test(self.expr, op, super().operate(op, *other, **kwargs))
            # SQLAlchemy looks columns up in lists and dictionaries, which compare them: `column == column`
            # has to be built. Sent, it is refused as any other.
            if op is operators.eq and isinstance(to, ColumnClause):
                return super().operate(op, *other, **kwargs)
        raise refused(self.expr, op)

    @emptying
    def reverse_operate(self, op: Any, other: Any, **kwargs: Any) -> NoReturn:
        raise refused(self.expr, op)


def _null_test(column: Any, op: Any, tested: Any) -> Any:
    """While values are moved: whether a row holds nothing in either column, or something in one of them."""
    while isinstance(column, (Label, Grouping)):
        column = column.element
    previous = previous_of(column)
    if previous is None:
        return tested
    if op in (operators.is_, operators.eq):
        return and_(tested, previous.is_(None))
    return or_(tested, previous.is_not(None))


def refused(column: Any, op: Any) -> StatementRefusedError:
    """The error for an operator that cannot work on ciphertext."""
    name = getattr(op, "__name__", str(op)).rstrip("_").removesuffix("_op")
    return StatementRefusedError(
        f"{name!r} cannot work on the encrypted column {str(column)!r}: equal values are stored as different "
        "bytes. Only `is_(None)` and `is_not(None)` do; load the rows of one owner and compare the decrypted "
        "values."
    )


class EncryptedType(TypeDecorator[Any]):
    """A column whose values are encrypted with a data key of the row's owner.

    Args:
        inner: the type of the plaintext, as for a plain column: `String`, `JSON`, `Numeric(10, 2)`, ...
        owner: the attribute or column that refers to the key owner (a tuple of them for a composite
            primary key), or relationships that lead to it ("order.customer"); `OwnerColumn`, `OneOf`, or a
            class with a sole row. Left out: the class itself if it is a `KeyOwner`, else its only foreign key
            to one.
        label: what values are bound to. Left out: `table.column`; pin the old name before a rename.
        bind: "column", or "row" to bind each value to its row's primary key too, which
            the client must then make.
        scope: which of the owner's data keys, by name; a `KeyGrant` may share one scope and not the others.
        previous: the column that this one takes the place of, while its values are moved.
        check: whether the database refuses what is no ciphertext, by a CHECK on first byte and length.
            Left out: in new tables and columns. True: Alembic adds it to a column that is there, too.

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
        self.bind = bind
        self.scope = scope
        self.previous = previous
        self.check = check
        self.codec  # noqa: B018 - an unsupported inner type is an error here, not at first use
        if previous is not None:
            check_null(self.inner)

    @cached_property
    def format(self) -> ColumnFormat:
        """What is stored, without the column."""
        return ColumnFormat(self.inner, self.label, self.bind)

    @property
    def codec(self) -> Codec:
        """How values become bytes."""
        return self.format.codec

    @property
    def field(self) -> Field:
        """What values of this column are bound to.

        Raises:
            ConfigurationError: the type is in no table yet and has no label.
        """
        return self.format.field

    def labelled(self, label: str) -> "EncryptedType":
        """A copy of this type for one column, with its label fixed."""
        copy = self.copy()
        copy.label = label
        copy.__dict__.pop("format", None)  # has the label that was
        return copy

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Pass on what the statement hook encrypted; refuse everything else."""
        label = self.label

        def process(value: Any) -> bytes | None:
            if type(value) is tuple and len(value) == 2 and value[0] is CIPHERTEXT:
                ciphertext: bytes = value[1]
                return ciphertext
            if value is None:
                return None
            del value
            raise StatementRefusedError(
                f"A value for {label!r} reached the database driver unencrypted and was refused: this form "
                "of statement is not supported on an encrypted column. Write through the ORM, or a plain "
                "insert() / update()."
            )

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Open a value if its key is unlocked here and it belongs here, else hand out a `Sealed`."""
        make = _row_bound_processor if self.bind == "row" else _column_bound_processor
        return _null_aware(make(self.format), self.codec.read_null)

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Literals would be plaintext in the statement's text. An error raised here would be worse:
        SQLAlchemy wraps it in one that prints the value. So this is what shows in a log, and what no
        database takes for SQL."""
        shown = f"<encrypted {self.label}>"
        return lambda value: shown

    def compare_values(self, x: Any, y: Any) -> bool:
        """Whether two plaintexts are equal, as the inner type sees it."""
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
        # Made again where it is asked for: its codec is made of functions that no pickle takes.
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
        return f"EncryptedType({self.inner!r}{options})"


def _null_aware(process: Callable[[Any], Any], read_null: Callable[[], Any] | None) -> Callable[[Any], Any]:
    """A processor that gives for NULL what the inner type gives for it."""
    if read_null is None:
        return process
    return lambda value: read_null() if value is None else process(value)


def _column_bound_processor(form: ColumnFormat) -> Callable[[Any], Any]:
    current, slot, decode_bytes, most = CURRENT.get, object(), form.codec.decode, MAX_STORED_SIZE
    if form.codec.tag == "str" and decode_bytes is bytes.decode:

        def process_text(value: Any) -> Any:
            if value is None:
                return None
            try:
                open_, aad = current().readers[slot][value[_HEADER]]
                if len(value) <= most:
                    return open_(value[_NONCE], value[_BODY], aad).decode()
            except Exception:  # noqa: BLE001, S110 - told apart below, where nothing is chained to the error
                pass
            return open_first(form, slot, value)

        return process_text

    def process(value: Any) -> Any:
        if value is None:
            return None
        try:
            open_, aad = current().readers[slot][value[_HEADER]]
            if len(value) <= most:
                return decode_bytes(open_(value[_NONCE], value[_BODY], aad))
        except Exception:  # noqa: BLE001, S110 - as above
            pass
        return open_first(form, slot, value)

    return process


def _row_bound_processor(form: ColumnFormat) -> Callable[[Any], Any]:
    def process(value: Any) -> Sealed | None:
        if value is None:
            return None
        if not isinstance(value, _BYTES):
            return open_first(form, None, value)  # type: ignore[no-any-return]  # a Sealed that says why
        return Sealed(value, form)  # type: ignore[arg-type]  # as the driver gives it

    return process


@emptying
def open_first(form: ColumnFormat, slot: object, value: Any) -> Any:
    """The first value under its key in a column, or a `Sealed` for one that is locked or cannot be read.

    Raised here, the error of one value would lose all the rows of the statement to its reader, who may not
    even look at the column. And here the row is not known that the error should name.
    """
    placed = type(value) is not Unplaced
    if not placed:
        value = value.blob
    try:
        return _open_first(form, slot, value, placed=placed)
    except (DecryptionError, FormatError) as error:
        CURRENT.get().handed_sealed = True
        stored: Any = value if isinstance(value, _BYTES) else b""
        return Sealed(bytes(stored), form).unreadable(error)


def _open_first(form: ColumnFormat, slot: object, value: Any, *, placed: bool) -> Any:
    check_value(value, form.field.label)
    header = bytes(value[_HEADER])
    current = CURRENT.get()
    cipher = current.reader(header, form.field)
    if cipher is None:
        current.handed_sealed = True
        return Sealed(bytes(value), form)
    plaintext = form.decode(cipher.decrypt(value))
    if placed:
        current.remember(slot, header, cipher, (cipher.open, cipher.aad))
    else:
        # Several owners are unlocked: its object will be asked whose it is.
        current.note_provenance(plaintext, header)
    return plaintext


def is_ours(processor: object) -> bool:
    """Whether a result processor is one that decrypts."""
    return getattr(processor, "__module__", None) == __name__
