"""Types for values that other libraries encrypted, to be named in a `PreviousColumn`.

If a library has a SQLAlchemy type of its own, name that type. The types here are for other cases: tokens
that were made by hand, pgcrypto, values that a type hands out wrapped, and columns that were left half
encrypted. No type here takes a value that it cannot open for plaintext.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from sqlalchemy import LargeBinary, Text, bindparam, column, func, type_coerce
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType, to_instance

from sqlalchemy_envelope.exceptions import ConfigurationError


class Tokens(Protocol):
    """An object that makes and opens tokens, such as a `Fernet` or `MultiFernet` of cryptography."""

    def encrypt(self, data: bytes) -> bytes:
        """A token for these bytes."""
        ...

    def decrypt(self, token: Any) -> bytes:
        """The bytes of a token."""
        ...


class FernetText(TypeDecorator[str]):
    """Text that the application itself encrypted and decrypted with a `Fernet` or `MultiFernet`.

    Args:
        fernet: an object that is ready to use, with the two methods of `Tokens`.
        binary: whether tokens are stored as bytes, not as text.
    """

    impl = Text
    cache_ok = True

    def __init__(self, fernet: Tokens, binary: bool = False) -> None:
        super().__init__()
        if not callable(getattr(fernet, "decrypt", None)) or not callable(getattr(fernet, "encrypt", None)):
            raise ConfigurationError(
                "FernetText(...): hand over a Fernet or MultiFernet, or what has both its methods."
            )
        self.fernet = fernet
        self.binary = binary

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Bytes or text."""
        return dialect.type_descriptor(LargeBinary() if self.binary else Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Make a token."""
        if value is None:
            return None
        token = bytes(self.fernet.encrypt(value.encode()))
        return token if self.binary else token.decode("ascii")

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        """Open a token."""
        if value is None:
            return None
        return bytes(self.fernet.decrypt(value.encode() if isinstance(value, str) else bytes(value))).decode()

    def __repr__(self) -> str:
        return f"FernetText({type(self.fernet).__name__}(), binary={self.binary!r})"


class _Hidden(str):
    """A text that drivers send as it is, but that a log does not show."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<hidden>"

    __str__ = __repr__


class _HiddenText(TypeDecorator[str]):
    """The type of a parameter that no log and no statement's text may show."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return _Hidden(str.__str__(value)) if value is not None else None

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        return lambda value: "<hidden>"


class _Passphrase:
    """A passphrase, or the function that fetches it. It compares by identity, so no cache key holds it."""

    __slots__ = ("_given",)

    def __init__(self, given: str | Callable[[], str]) -> None:
        self._given = given

    def __call__(self) -> str:
        return _Hidden(self._given() if callable(self._given) else self._given)

    def __repr__(self) -> str:
        return "<hidden>"


class _Bytea(UserDefinedType[str]):
    """Bytes in the database that only a function reads."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        return "BYTEA"


class PgCryptoText(TypeDecorator[str]):
    """Text that PostgreSQL encrypts and decrypts itself, with pgcrypto's `pgp_sym_encrypt`.

    The passphrase goes to the server as a parameter. A server that logs parameters shows it there.

    Args:
        key: the passphrase, or a function that fetches it.
        options: options of `pgp_sym_encrypt`, such as "cipher-algo=aes256", for values still to be written.
        armored: whether the column holds text that `armor()` made, not bytes.
    """

    impl = Text
    cache_ok = True

    def __init__(
        self, key: str | Callable[[], str], options: str | None = None, armored: bool = False
    ) -> None:
        super().__init__()
        self.key = key if isinstance(key, _Passphrase) else _Passphrase(key)
        self.options = options
        self.armored = armored

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type in the database. The functions take and return text."""
        return dialect.type_descriptor(Text() if self.armored else _Bytea())

    def _passphrase(self) -> Any:
        return bindparam(None, callable_=self.key, type_=_HiddenText(), unique=True)

    def bind_expression(self, bindparam: Any) -> Any:
        """Encrypt in the database."""
        options = () if self.options is None else (self.options,)
        encrypted = func.pgp_sym_encrypt(type_coerce(bindparam, Text()), self._passphrase(), *options)
        return func.armor(encrypted) if self.armored else encrypted

    def column_expression(self, column: Any) -> Any:
        """Decrypt in the database."""
        return func.pgp_sym_decrypt(func.dearmor(column) if self.armored else column, self._passphrase())

    def __repr__(self) -> str:
        return f"PgCryptoText(<hidden>, options={self.options!r}, armored={self.armored!r})"


class _Around(TypeDecorator[Any]):
    """A type around another library's type, with the same type in the database."""

    impl = Text
    cache_ok = True

    def __init__(self, inner: TypeEngine[Any] | type[TypeEngine[Any]]) -> None:
        super().__init__()
        found = to_instance(inner)
        if not isinstance(found, TypeDecorator):
            raise ConfigurationError(
                f"{type(self).__name__}(...) goes around another library's type, a TypeDecorator."
            )
        self.inner: TypeDecorator[Any] = found

    def _set_parent(self, parent: Any, outer: bool = False, **options: Any) -> None:
        super()._set_parent(parent, outer=outer, **options)
        self.inner._set_parent(parent, **options)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The database type of the other type."""
        return self.inner.load_dialect_impl(dialect)

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """Write as the other type does."""
        return None if value is None else self.inner.process_bind_param(value, dialect)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Read as the other type does."""
        return None if value is None else self.inner.process_result_value(value, dialect)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.inner).__name__}())"


class Revealed(_Around):
    """Values of a type that hands them out wrapped, to be decrypted on demand.

    Made for sqlalchemy-encrypted-field. A value with a method `decrypt` becomes the result of that method,
    and a mapping becomes a dict. NULL passes through, which the types of that library do not allow.

    Args:
        inner: the other library's type.
    """

    cache_ok = True

    def __init__(self, inner: TypeEngine[Any] | type[TypeEngine[Any]]) -> None:
        super().__init__(inner)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Read, and unwrap."""
        if value is None:
            return None
        wrapped: Any = self.inner.process_result_value(value, dialect)
        if isinstance(wrapped, Mapping):
            return dict(wrapped)
        return wrapped.decrypt() if callable(getattr(wrapped, "decrypt", None)) else wrapped


class PartlyPlaintext(_Around):
    """A column in which some rows are another library's ciphertext and others were never encrypted.

    A function tells the two apart by the stored value. A value that the function calls ciphertext has to
    open: a value that does not open is never taken for plaintext.

    Args:
        inner: the other library's type.
        is_ciphertext: takes the stored value; true if the other library wrote it. For Fernet:
            `lambda stored: stored.startswith("gAAAA")`.
    """

    cache_ok = True

    def __init__(
        self, inner: TypeEngine[Any] | type[TypeEngine[Any]], is_ciphertext: Callable[[Any], bool]
    ) -> None:
        super().__init__(inner)
        if is_decrypted_by_database(self.inner):
            raise ConfigurationError(
                "PartlyPlaintext(...): the database itself decrypts this type, for every row."
            )
        self.is_ciphertext = is_ciphertext

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Read as the other type does, or take the stored value for plaintext, as the function says."""
        if value is None or not self.is_ciphertext(value):
            return value
        return self.inner.process_result_value(value, dialect)


def is_decrypted_by_database(type_: TypeEngine[Any]) -> bool:
    """Whether values of a type are decrypted by an expression in SQL."""
    probe: Any = column("probe", type_)
    expression = type_.column_expression(probe)
    return expression is not None and expression is not probe


def check_of(type_: TypeEngine[Any]) -> Callable[[Any], bool] | None:
    """A function that tells whether a stored value was read as it was encrypted; None if no check is needed.

    Under a wrong key, a cipher without authentication still makes something of many ciphertexts. For example,
    `AesEngine` of sqlalchemy-utils with the padding "zeroes" makes the empty string of nearly every short
    ciphertext. A cipher that makes the same ciphertext of the same value each time can encrypt the decrypted
    value again. The result must equal the stored ciphertext, or its beginning: naive padding takes more from
    some values than it added.
    """
    if isinstance(type_, _Around):
        inner = check_of(type_.inner)
        if inner is None or not isinstance(type_, PartlyPlaintext):
            return inner
        is_ciphertext = type_.is_ciphertext
        return lambda stored: not is_ciphertext(stored) or inner(stored)
    engine: Any = getattr(type_, "engine", None)
    if not callable(getattr(engine, "encrypt", None)) or not callable(getattr(engine, "decrypt", None)):
        return None

    def reads_back(stored: Any) -> bool:
        # Ask for the engine here, where the type has just given it a key.
        if engine.encrypt("") != engine.encrypt(""):
            return True
        text = stored if isinstance(stored, str) else bytes(stored).decode("ascii")
        again = _from_base64(engine.encrypt(engine.decrypt(text)))
        return bool(again) and _from_base64(text).startswith(again)

    return reads_back


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return text.encode()
