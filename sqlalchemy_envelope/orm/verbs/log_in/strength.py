"""The application's word on a new secret: `Envelope(secret_strength=...)`.

Its function is given the secret, so that an error in it has the secret in its frames. None of its errors goes
on: a refusal is our own error, with the function's reason, unless the reason shows the secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.preparation import prepare_hidden
from sqlalchemy_envelope.exceptions import ConfigurationError, SecretError, WeakSecretError

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.preparation import HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden
    from sqlalchemy_envelope.orm.current.policy import Policy

_WEAK = "The secret is too weak; choose another."


def prepare_new(policy: Policy, secret: HiddenSecret, owner: object) -> Hidden[bytes]:
    """Prepare a secret that somebody chose a moment ago, if the application takes it.

    Raises:
        SecretError: see `prepare_secret`.
        WeakSecretError: the application refused the secret.
        ConfigurationError: the application's function answered with no text.
    """
    prepared = prepare_hidden(secret, new=True)
    if policy.secret_strength is None:
        return prepared
    reason = _reason(policy.secret_strength, prepared, owner)
    if reason is None or reason == "":
        return prepared
    if not isinstance(reason, str):
        raise ConfigurationError(
            "The function secret_strength returns None for a secret that will do, or the reason against it "
            f"as text; it returned something of the type {type(reason).__name__}."
        )
    raise WeakSecretError(_WEAK if _shows(reason, prepared) else reason)


def _reason(strength: Any, prepared: Hidden[bytes], owner: object) -> Any:
    try:
        return strength(_text(prepared), owner)
    except Exception as error:  # noqa: BLE001 - its frames hold the secret
        # A class derived from ValueError, as pydantic's, may put its input into its text.
        if type(error) is ValueError or isinstance(error, SecretError):
            return str(error.args[0]) if error.args else _WEAK
        return f"The secret was not judged: the function secret_strength raised {type(error).__name__}."


def _shows(reason: str, prepared: Hidden[bytes]) -> bool:
    return _text(prepared).casefold() in reason.casefold()


def _text(prepared: Hidden[bytes]) -> str:
    return prepared.reveal().decode("utf-8", "replace")
