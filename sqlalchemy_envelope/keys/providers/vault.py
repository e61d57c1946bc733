"""The transit engine of HashiCorp Vault or OpenBao: its key never leaves the server."""

import base64
from collections.abc import Mapping
from typing import Any

from sqlalchemy_envelope.keys.providers.base import encode_bound

_PASSING = {"RateLimitExceeded", "InternalServerError", "BadGateway", "VaultDown"}


class VaultTransit:
    """A transit key of a type with authenticated encryption, called through a client that hvac made.

    Args:
        client: `hvac.Client(...)`, authenticated; the application renews its token.
        name: the transit key: `aes256-gcm96` or `chacha20-poly1305`, derived or not.
        mount_point: the path where the engine is mounted.
    """

    local = False

    def __init__(self, client: Any, name: str, mount_point: str = "transit") -> None:
        self._client, self._name, self._mount_point = client, name, mount_point
        self.reference = f"{mount_point}/{name}"

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt 32 bytes with the newest version of the transit key; the ciphertext names the version."""
        answer = self._client.secrets.transit.encrypt_data(
            self._name, plaintext=_text(key), mount_point=self._mount_point, **_bound(context)
        )
        ciphertext: str = answer["data"]["ciphertext"]
        return ciphertext.encode("ascii")

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Decrypt with the version that the ciphertext names."""
        answer = self._client.secrets.transit.decrypt_data(
            self._name, ciphertext=wrapped.decode("ascii"), mount_point=self._mount_point, **_bound(context)
        )
        return base64.b64decode(answer["data"]["plaintext"], validate=True)

    def destroy(self) -> None:
        """Delete the transit key with all its versions, for the end of a campaign (`CampaignKey`)."""
        transit = self._client.secrets.transit
        transit.update_key_configuration(self._name, deletion_allowed=True, mount_point=self._mount_point)
        transit.delete_key(self._name, mount_point=self._mount_point)

    def is_transient(self, error: Exception) -> bool:
        """Whether Vault was too busy, sealed or failing; known by names, since hvac is not imported."""
        return type(error).__name__ in _PASSING

    def __repr__(self) -> str:
        return f"<VaultTransit {self.reference!r}>"


def _bound(context: Mapping[str, str]) -> dict[str, str]:
    """The arguments that bind a wrap to its context: a derived key demands `context`, others ignore it."""
    encoded = _text(encode_bound("provider", context))
    return {"associated_data": encoded, "context": encoded}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
