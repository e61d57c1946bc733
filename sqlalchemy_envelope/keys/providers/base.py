"""What an outside key holder is asked for: to wrap 32 bytes for a context, and to unwrap them for it."""

from collections.abc import Mapping
from typing import Protocol

from sqlalchemy_envelope.crypto.context import encode_context


class KeyProvider(Protocol):
    """Whoever holds a key outside of the database.

    One method is optional, `is_transient(error: Exception) -> bool`: whether a failure of this provider may
    pass, so that the call is made again. Time-outs and lost connections are taken to pass without it. So are
    three of a campaign's key, which `CampaignKey` gives to any provider: `campaign = True`, `can_open` and
    `destroy()`.
    """

    @property
    def reference(self) -> str:
        """Which outside key wraps now. Stored beside each wrap: at most 255 characters, and no secret."""
        ...

    @property
    def local(self) -> bool:
        """Whether it answers at once, without a network: then it may be called in the midst of a flush."""
        ...

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key of 32 bytes, bound to the context as far as the holder can."""
        ...

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap what `wrap` made for the same context; raise for any other."""
        ...


def encode_bound(label: str, context: Mapping[str, str]) -> bytes:
    """A context of texts as bytes, for holders that bind to bytes (section 8).

    Pairs stand in the order of their names' bytes, so that no order of a mapping makes another context.
    """
    pairs = sorted((name.encode("utf-8"), value.encode("utf-8")) for name, value in context.items())
    return encode_context(label, *(part for pair in pairs for part in pair))
