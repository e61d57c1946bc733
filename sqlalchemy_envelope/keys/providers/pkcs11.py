"""A hardware security module, through PKCS#11: the token wraps the key, and its own key never leaves it.

    0      1   2         2 + n      14 + n          46 + n   62 + n
    | 0x01 | n | label n | nonce 12 | ciphertext 32 | tag 16 |         AES-GCM, AAD = the context
    | 0x02 | n | label n | 40 bytes of AES key wrap with padding |     RFC 5649, bound to no context

The label, in UTF-8, names the key of the token: so another key can take over, and this key still unwraps.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from sqlalchemy_envelope.exceptions import ConfigurationError, FormatError, ProviderError, TruncatedError
from sqlalchemy_envelope.keys.providers.base import encode_bound

_GCM, _KEY_WRAP = 1, 2
_BODY_SIZES = {_GCM: 60, _KEY_WRAP: 40}
_LOST = {"SessionClosed", "SessionHandleInvalid", "UserNotLoggedIn", "DeviceRemoved", "TokenNotPresent"}


class Pkcs11:
    """An AES key of a token, called through a session that python-pkcs11 opened.

    Calls are made one after the other: two threads must not use a PKCS#11 session at once.

    Args:
        session: an open session, logged in; or a function that opens one. The function is called at the first
            use, and again when the session is lost.
        label: the label of the key that wraps, 1 to 255 bytes of UTF-8.
        retired: the labels of keys that wrapped before, and still unwrap.
        unsafe_unbound: wrap with CKM_AES_KEY_WRAP_PAD, which binds to no context, for tokens that have no
            AES-GCM with associated data. Keys that were wrapped either way unwrap, whatever this says.

    Raises:
        ConfigurationError: the label is empty or too long.
    """

    local = False

    def __init__(
        self, session: Any, label: str, *, retired: Sequence[str] = (), unsafe_unbound: bool = False
    ) -> None:
        if not 0 < len(label.encode("utf-8")) <= 255:
            raise ConfigurationError("The label of a PKCS#11 key must have 1 to 255 bytes of UTF-8.")
        self.reference = label
        self._labels = {label, *retired}
        self._unbound = unsafe_unbound
        self._open: Callable[[], Any] | None = session if callable(session) else None
        self._session = None if callable(session) else session
        self._lock, self._pid = Lock(), os.getpid()

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key of 32 bytes with the token's key of this label.

        Raises:
            ProviderError: the session was opened before a fork.
        """
        name = self.reference.encode("utf-8")
        with self._in_use() as session:
            wrapping_key = session.get_key(_constants().ObjectClass.SECRET_KEY, label=self.reference)
            if self._unbound:
                return bytes([_KEY_WRAP, len(name)]) + name + _key_wrap(session, wrapping_key, key)
            nonce = os.urandom(12)
            sealed: bytes = wrapping_key.encrypt(key, **_gcm(nonce, context))
            return bytes([_GCM, len(name)]) + name + nonce + sealed

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap a key with the token's key that it names, if the label is one of ours.

        Raises:
            FormatError, TruncatedError: a token did not wrap this key.
            ProviderError: it names a label that is not configured, or the session was opened before a fork.
        """
        kind, label, body = _parse(wrapped)
        if label not in self._labels:
            raise ProviderError(
                "The stored key names a PKCS#11 key that is neither the label nor a retired one here."
            )
        with self._in_use() as session:
            wrapping_key = session.get_key(_constants().ObjectClass.SECRET_KEY, label=label)
            if kind == _KEY_WRAP:
                return _key_unwrap(wrapping_key, body)
            key: bytes = wrapping_key.decrypt(body[12:], **_gcm(body[:12], context))
            return key

    def is_transient(self, error: Exception) -> bool:
        """Whether the session was lost and can be opened again."""
        return self._open is not None and type(error).__name__ in _LOST

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        """The open session, for one thread at a time."""
        if self._session is not None and self._pid != os.getpid():
            raise ProviderError("A PKCS#11 session does not cross a fork; open one in the child.")
        with self._lock:
            if self._session is None and self._open is not None:
                self._session, self._pid = self._open(), os.getpid()
            try:
                yield self._session
            except Exception as error:
                if self.is_transient(error):
                    self._session = None
                raise

    def __repr__(self) -> str:
        return f"<Pkcs11 {self.reference!r}>"


def _parse(wrapped: bytes) -> tuple[int, str, bytes]:
    if not wrapped or wrapped[0] not in _BODY_SIZES:
        raise FormatError("The stored key is not one that a PKCS#11 token wrapped.")
    kind, body_at = wrapped[0], 2 + (wrapped[1] if len(wrapped) > 1 else 0)
    label, body = wrapped[2:body_at], wrapped[body_at:]
    if len(body) < _BODY_SIZES[kind]:
        raise TruncatedError("The stored key is shorter than what a PKCS#11 token makes.")
    if len(body) > _BODY_SIZES[kind]:
        raise FormatError("The stored key is longer than what a PKCS#11 token makes.")
    return kind, label.decode("utf-8", "replace"), body


def _constants() -> Any:
    """The module python-pkcs11; whoever opened the session imported it."""
    import pkcs11

    return pkcs11


def _gcm(nonce: bytes, context: Mapping[str, str]) -> dict[str, Any]:
    sdk = _constants()
    parameters = sdk.GCMParams(nonce, encode_bound("provider", context), 128)
    return {"mechanism": sdk.Mechanism.AES_GCM, "mechanism_param": parameters}


def _key_wrap(session: Any, wrapping_key: Any, key: bytes) -> bytes:
    """Wrap a key with RFC 5649. The token wraps only its objects, so the key is an object for a moment."""
    sdk = _constants()
    attribute = sdk.Attribute
    held = session.create_object(
        {
            attribute.CLASS: sdk.ObjectClass.SECRET_KEY,
            attribute.KEY_TYPE: sdk.KeyType.GENERIC_SECRET,
            attribute.VALUE: key,
            attribute.TOKEN: False,
            attribute.EXTRACTABLE: True,
        }
    )
    try:
        wrapped: bytes = wrapping_key.wrap_key(held, mechanism=sdk.Mechanism.AES_KEY_WRAP_PAD)
    finally:
        held.destroy()
    return wrapped


def _key_unwrap(wrapping_key: Any, body: bytes) -> bytes:
    sdk = _constants()
    attribute = sdk.Attribute
    held = wrapping_key.unwrap_key(
        sdk.ObjectClass.SECRET_KEY,
        sdk.KeyType.GENERIC_SECRET,
        body,
        mechanism=sdk.Mechanism.AES_KEY_WRAP_PAD,
        template={attribute.TOKEN: False, attribute.EXTRACTABLE: True, attribute.SENSITIVE: False},
    )
    try:
        key: bytes = held[attribute.VALUE]
    finally:
        held.destroy()
    return key
