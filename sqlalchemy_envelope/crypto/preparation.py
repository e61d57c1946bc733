"""What a typed secret becomes before it is stretched: RFC 8265 OpaqueString (section 3, steps 1 and 2)."""

import unicodedata
from typing import overload

from sqlalchemy_envelope.crypto.secret import Hidden
from sqlalchemy_envelope.exceptions import SecretError

MAX_CODE_POINTS = 4_096
MAX_SIZE = 1_024
"""Most bytes of a prepared secret; a longer one is refused, never cut."""

HiddenSecret = Hidden[str | bytes]
GivenSecret = str | bytes | HiddenSecret


def prepare_secret(secret: GivenSecret, *, new: bool = False) -> bytes:
    """Prepare a secret; the same text typed on another machine gives the same bytes. As `prepare_hidden`."""
    hidden = secret if isinstance(secret, Hidden) else Hidden(secret)
    del secret
    return prepare_hidden(hidden, new=new).reveal()


@overload
def hide_secret(secret: GivenSecret) -> HiddenSecret: ...
@overload
def hide_secret(secret: GivenSecret | None) -> HiddenSecret | None: ...
def hide_secret(secret: GivenSecret | None) -> HiddenSecret | None:
    """A secret as it was typed, from where it comes in: no frame has it among its variables from there on."""
    return secret if secret is None or isinstance(secret, Hidden) else Hidden(secret)


def prepare_hidden(secret: GivenSecret, *, new: bool = False) -> Hidden[bytes]:
    """Prepare a secret that stays hidden.

    Args:
        secret: text, prepared as OpaqueString; or bytes, taken as they are.
        new: a slot is being made. Unassigned code points are refused then, and only then: how they will be
            normalised one day is not known, but a secret that exists must go on opening its slot.

    Raises:
        SecretError: empty, too long, or with characters that cannot be typed again.
    """
    secret = secret if isinstance(secret, Hidden) else Hidden(secret)
    prepared = _prepared(secret, new=new)
    if isinstance(prepared, SecretError):
        raise prepared  # here, where no variable holds the secret
    return prepared


def _prepared(secret: HiddenSecret, *, new: bool) -> Hidden[bytes] | SecretError:
    given: object = secret.reveal()
    if isinstance(given, str):
        prepared = _prepare_text(given, new=new)
    elif isinstance(given, (bytes, bytearray)):
        prepared = bytes(given)
    else:
        return SecretError(f"A secret is str or bytes, not {type(given).__name__}.")
    if isinstance(prepared, SecretError):
        return prepared
    if not prepared:
        return SecretError("The secret is empty. How strong one must be is the application's to say.")
    if len(prepared) > MAX_SIZE:
        return SecretError(f"The secret is longer than {MAX_SIZE} bytes; it is refused, not cut.")
    return Hidden(prepared)


def _prepare_text(secret: str, *, new: bool) -> bytes | SecretError:
    # Before any other work: normalising megabytes of combining marks is a denial of service.
    if len(secret) > MAX_CODE_POINTS:
        return SecretError(f"The secret is longer than {MAX_CODE_POINTS} characters; it is refused, not cut.")
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in secret)
    text = unicodedata.normalize("NFC", spaced)
    categories = {unicodedata.category(c) for c in text}
    if "Cc" in categories:
        return SecretError("The secret holds a control character (a line end or tab?); remove it.")
    if "Cs" in categories:
        return SecretError("The secret holds a lone surrogate; it was decoded wrongly before it came here.")
    if new and "Cn" in categories:
        return SecretError(
            "The secret holds a character that this Unicode version does not know; choose another."
        )
    return text.encode("utf-8")
