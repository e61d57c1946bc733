"""The interface of an outside key holder: wrap 32 bytes for a context, and unwrap them for it (section 8)."""

from collections.abc import Mapping
from typing import Protocol

from sqlalchemy_envelope.crypto.context import encode_context


class KeyProvider(Protocol):
    """A holder of keys outside of the database: server keys, a key service (KMS), a hardware module (HSM).

    One method is optional, `is_transient(error: Exception) -> bool`: whether a failure of this provider may
    pass, so that the call is made again. Time-outs and lost connections count as passing without it. Three
    members of a campaign's key are optional too: `campaign = True`, `can_open` and `destroy()`. `CampaignKey`
    gives them to any provider.
    """

    @property
    def reference(self) -> str:
        """The outside key that wraps now, stored beside each wrap: at most 255 characters, and no secret."""
        ...

    @property
    def local(self) -> bool:
        """Whether it answers at once, without a network, so that it may be called in the midst of a flush."""
        ...

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key of 32 bytes, bound to the context as far as the holder can."""
        ...

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap what `wrap` made for the same context, 32 bytes; raise an error for any other context."""
        ...


def encode_bound(label: str, context: Mapping[str, str]) -> bytes:
    """Encode a context of texts as bytes, for holders that bind to bytes (section 8).

    The pairs are in the order of their names' bytes, so that the order of a mapping makes no other context.

    Args:
        label: the label of the context, `server` or `provider`.
    """
    pairs = sorted((name.encode("utf-8"), value.encode("utf-8")) for name, value in context.items())
    return encode_context(label, *(part for pair in pairs for part in pair))
