"""The preparation of a typed secret for stretching: RFC 8265 OpaqueString (section 3, steps 1 and 2)."""

import unicodedata
from typing import overload

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.secret import Hidden
from sqlalchemy_envelope.exceptions import SecretError

MAX_CODE_POINTS = 4_096
"""The most characters of a text secret."""
MAX_SIZE = 1_024
"""The most bytes of a prepared secret; a longer one is refused, never cut."""

HiddenSecret = Hidden[str | bytes]
GivenSecret = str | bytes | HiddenSecret


@overload
def hide_secret(secret: GivenSecret) -> HiddenSecret: ...
@overload
def hide_secret(secret: GivenSecret | None) -> HiddenSecret | None: ...
def hide_secret(secret: GivenSecret | None) -> HiddenSecret | None:
    """Hide a secret where it enters the library: from there on, no frame has it among its variables."""
    return secret if secret is None or isinstance(secret, Hidden) else Hidden(secret)


def hide_required(secret: GivenSecret) -> HiddenSecret:
    """As `hide_secret`, where a secret has to be given: what is none is refused when it is prepared."""
    return secret if isinstance(secret, Hidden) else Hidden(secret)


def prepare_hidden(secret: HiddenSecret, *, new: bool = False) -> Hidden[bytes]:
    """Prepare a secret as `prepare_secret` does, and keep it hidden.

    Raises:
        SecretError: see `prepare_secret`.
    """
    return Hidden(prepare_secret(secret.reveal(), new=new))


@emptying
def prepare_secret(secret: str | bytes, *, new: bool = False) -> bytes:
    """Prepare a secret; the same text, typed on another machine, gives the same bytes.

    Args:
        secret: text, which is prepared as an OpaqueString; or bytes, which are taken as they are.
        new: whether a slot is being made. Only then are unassigned code points refused: nobody knows how a
            later Unicode will normalise them. A secret that exists must go on opening its slot.

    Raises:
        SecretError: the secret is empty, too long, or holds characters that cannot be typed again.
    """
    if isinstance(secret, str):
        prepared = _prepare_text(secret, new=new)
    elif isinstance(secret, (bytes, bytearray)):
        prepared = bytes(secret)
    else:
        raise SecretError(f"A secret is str or bytes, not {type(secret).__name__}.")
    if not prepared:
        raise SecretError("The secret is empty. The application decides how strong a secret must be.")
    if len(prepared) > MAX_SIZE:
        raise SecretError(f"The secret is longer than {MAX_SIZE} bytes; it is refused, not cut.")
    return prepared


def _prepare_text(secret: str, *, new: bool) -> bytes:
    # Before any other work: normalising megabytes of combining marks is a denial of service.
    if len(secret) > MAX_CODE_POINTS:
        raise SecretError(f"The secret is longer than {MAX_CODE_POINTS} characters; it is refused, not cut.")
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in secret)
    text = unicodedata.normalize("NFC", spaced)
    categories = {unicodedata.category(c) for c in text}
    if "Cc" in categories:
        raise SecretError("The secret holds a control character (a line end or tab?); remove it.")
    if "Cs" in categories:
        raise SecretError("The secret holds a lone surrogate; it was decoded wrongly before it came here.")
    if new and "Cn" in categories:
        raise SecretError(
            "The secret holds a character that this Unicode version does not know; choose another."
        )
    return text.encode("utf-8")
