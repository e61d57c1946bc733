"""Server keys: a key holder whose keys are in the environment or in a file.

    0            16     121
    | server key | 0x11 |            the id of a server key, and a key wrapped under it (sections 4 and 8)

An attacker who reads the server's memory, its environment or that file can read what these keys wrap. A
backup of the database, or a break-in to the database alone, cannot.
"""

import base64
import binascii
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Self

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.row_seal import server_key_id
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    ProviderError,
    TamperedKeyError,
    TruncatedError,
    UnlockError,
)
from sqlalchemy_envelope.keys.providers.base import encode_bound
from sqlalchemy_envelope.words import counted

_ID_SIZE = 16

_MAKE = "`ServerKeyring.generate_key()` makes the text of a key."


class ServerKeyring(Uncopied):
    """Server keys in order: the first wraps, all of them unwrap.

    To rotate, put a new key before the others. Remove an old key when nothing refers to it any more.

    Args:
        keys: 32 random bytes each, the active key first.

    Raises:
        ConfigurationError: there is no key, a key has another size, or a key is there twice.
    """

    __slots__ = ("_keys",)
    local = True

    @emptying
    def __init__(self, keys: Sequence[bytes]) -> None:
        given: object = keys  # a check beyond the types: text is a sequence too
        if isinstance(given, (str, bytes, bytearray)):
            raise ConfigurationError(
                "ServerKeyring takes a list of keys, for a single key too; for base64 text use from_text()."
            )
        self._keys: dict[bytes, KeyBytes] = {}
        for number, data in enumerate(keys, 1):
            if not isinstance(data, (bytes, bytearray)):
                raise ConfigurationError(
                    f"Server key {number} is a {type(data).__name__}, not bytes; "
                    "for base64 text there are from_text(), from_environment() and from_file()."
                )
            if len(data) != KEY_SIZE:
                size = counted(len(data), "byte")
                raise ConfigurationError(f"Server key {number} has {size}, not {KEY_SIZE}.")
            key = KeyBytes(data)
            key_id = server_key_id(key)
            if key_id in self._keys:
                raise ConfigurationError(f"Server key {number} is there twice.")
            self._keys[key_id] = key
        if not self._keys:
            raise ConfigurationError(f"There is no server key. {_MAKE}")

    @classmethod
    @emptying
    def from_environment(cls, name: str = "ENVELOPE_SERVER_KEYS") -> Self:
        """Read the keys of an environment variable: base64, separated by commas or white space, active first.

        Raises:
            ConfigurationError: the variable is not set, or does not hold server keys.
        """
        if name not in os.environ:
            raise ConfigurationError(
                f"The environment variable {name} is not set; it holds the server keys. "
                "ServerKeyring.generate_key() makes the text of one."
            )
        return cls.from_text(os.environ[name], source=f"the environment variable {name}")

    @classmethod
    def from_text(cls, text: str, *, source: str = "the text of the server keys") -> Self:
        """Read the keys of a text: base64, separated by commas or white space, active first.

        It is for an application that reads its settings itself, with pydantic's
        `SecretStr.get_secret_value()` for example.

        Args:
            text: the keys.
            source: where the keys come from, for error messages, which never show the text.

        Raises:
            ConfigurationError: the text does not hold server keys.
        """
        if not isinstance(text, str):
            raise ConfigurationError(
                f"ServerKeyring.from_text takes a str, not a {type(text).__name__}; for a SecretStr pass its "
                "`.get_secret_value()`."
            )
        return cls(_decoded(source, re.findall(r"[^\s,]+", text)))

    @classmethod
    @emptying
    def from_file(cls, path: str | os.PathLike[str], *, unsafe_permissions: bool = False) -> Self:
        """Read the keys of a file: base64, one key a line, active first. `#` begins a line of comment.

        Args:
            path: the file. On POSIX it is refused if others than its owner may read it.
            unsafe_permissions: take the file all the same, if the platform that mounts it leaves no choice.

        Raises:
            ConfigurationError: the file cannot be read, is open to others, or does not hold server keys.
        """
        try:
            with Path(path).open(encoding="utf-8") as file:
                mode = os.fstat(file.fileno()).st_mode  # of the open file: its name may lead elsewhere by now
                if os.name == "posix" and mode & 0o077 and not unsafe_permissions:
                    raise ConfigurationError(
                        f"The server keys in {str(path)!r} are open to others (mode {mode & 0o777:04o}): "
                        "chmod 600, or pass unsafe_permissions=True."
                    )
                lines = [line.strip() for line in file]
        except OSError as error:
            raise ConfigurationError(
                f"The server keys in {str(path)!r} cannot be read: {error.strerror}."
            ) from None
        except UnicodeDecodeError:
            raise ConfigurationError(f"{str(path)!r} is not text: one base64 key a line.") from None
        return cls(_decoded(repr(str(path)), [line for line in lines if line and not line.startswith("#")]))

    @staticmethod
    def generate_key() -> str:
        """Make the base64 text of a fresh key, for the environment or the file."""
        return base64.b64encode(os.urandom(KEY_SIZE)).decode("ascii")

    @property
    def keys_by_id(self) -> Mapping[bytes, KeyBytes]:
        """Every server key by its id of 16 bytes, the active key first."""
        return MappingProxyType(self._keys)

    @property
    def active(self) -> tuple[bytes, KeyBytes]:
        """The id (16 bytes) and the key that wraps and seals."""
        return next(iter(self._keys.items()))

    @property
    def reference(self) -> str:
        """`server:` and the id, in hexadecimal, of the key that wraps."""
        return f"server:{self.active[0].hex()}"

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key under the first server key; 121 bytes."""
        key_id, server_key = self.active
        return key_id + wrap(KeyBytes(key), kdf.subkey(server_key, "wrap"), encode_bound("server", context))

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap a key with the server key that it names.

        Raises:
            ProviderError: that server key is not configured here.
            FormatError, TruncatedError: `wrap` did not make this.
            TamperedKeyError: the wrapped key was altered, or is for another context.
        """
        if len(wrapped) < _ID_SIZE:
            raise TruncatedError("The stored key ends within the id of its server key.")
        key_id, frame = wrapped[:_ID_SIZE], wrapped[_ID_SIZE:]
        if key_id not in self._keys:
            raise ProviderError(
                f"Server key {key_id.hex()[:8]} is not configured here. Put that key back among the server "
                "keys, after the first key."
            )
        try:
            key = unwrap(frame, kdf.subkey(self._keys[key_id], "wrap"), encode_bound("server", context))
        except UnlockError:
            # The server key is right beyond doubt, for its id is computed from it: this is no wrong secret.
            raise TamperedKeyError(
                f"A key under server key {key_id.hex()[:8]} was altered, or was moved here from elsewhere."
            ) from None
        return bytes(key.buffer)

    def __repr__(self) -> str:
        return f"<ServerKeyring of {len(self._keys)}, active {self.active[0].hex()[:8]}>"


def _decoded(source: str, texts: Iterable[str]) -> list[bytes]:
    """Decode base64 in either alphabet, padded or not. An error names the faulty text without showing it."""
    keys = []
    for number, text in enumerate(texts, 1):
        standard = text.replace("-", "+").replace("_", "/").rstrip("=")
        try:
            data = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        except (binascii.Error, ValueError):  # ValueError: letters outside of ASCII
            raise ConfigurationError(f"Key {number} of {source} is not base64. {_MAKE}") from None
        if len(data) != KEY_SIZE:
            size = counted(len(data), "byte")
            raise ConfigurationError(f"Key {number} of {source} has {size}, not {KEY_SIZE}. {_MAKE}")
        keys.append(data)
    if not keys:
        raise ConfigurationError(f"There is no key in {source}. {_MAKE}")
    return keys
