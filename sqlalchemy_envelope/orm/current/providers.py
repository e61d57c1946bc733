"""The providers of an `Envelope`, and the KEKs that they have opened.

One KEK serves many slots, so that not every owner costs a call to a key service. New slots share a KEK for a
time. An opened KEK is kept for a time, for a number of uses, and up to a number of keys.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError, KeyNotFoundError
from sqlalchemy_envelope.keys.providers.calls import FORMAT_PROVIDER, ProviderCalls
from sqlalchemy_envelope.keys.slots import ProviderKek, SharedKek, check_kek, kek_context

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.keys.providers.base import KeyProvider


@dataclass(frozen=True)
class CachePolicy:
    """How long opened keys stay in a server's memory.

    Attributes:
        seconds: the seconds for which a key stays after it was opened.
        uses: how many times a key may be used before it is opened anew.
        keys: the most keys that stay.
    """

    seconds: float = 300.0
    uses: int = 1_000_000
    keys: int = 10_000


class _Entry(NamedTuple):
    name: str
    kek: KeyBytes
    until: float
    uses: list[int]


@dataclass(eq=False)
class Providers(Uncopied):
    """The named providers of an `Envelope`. Work that needs the network is yielded as `Outside` and done
    before a flush."""

    calls: Mapping[str, ProviderCalls]
    cache: CachePolicy = field(default_factory=CachePolicy)
    shared_for: float = 86_400.0
    """Seconds for which new slots share one KEK."""
    _keks: OrderedDict[bytes, _Entry] = field(default_factory=OrderedDict, repr=False)
    _for_new: dict[str, tuple[float, ProviderKek]] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=Lock, repr=False)

    def __repr__(self) -> str:
        return f"<Providers {', '.join(sorted(self.calls)) or 'none'}>"

    def named(self, name: str) -> ProviderCalls:
        """The provider of this name.

        Raises:
            ConfigurationError: no provider of this name is configured.
        """
        calls = self.calls.get(name)
        if calls is None:
            known = ", ".join(repr(other) for other in sorted(self.calls)) or "none"
            raise ConfigurationError(
                f"No provider {name!r} is configured (there is: {known}). Give it to the Envelope: "
                "Envelope(server_keys=...) or Envelope(providers={name: ...})."
            )
        return calls

    def of(self, slot: StoredSlot) -> str:
        """The name of the provider that opens a slot."""
        return slot.provider_name

    def is_local(self, name: str) -> bool:
        """Whether this provider answers at once, without a network."""
        return self.named(name).local

    @property
    def campaigns(self) -> frozenset[str]:
        """The names of the providers that exist only for a campaign: their slots are claimed."""
        return frozenset(name for name, calls in self.calls.items() if calls.is_campaign)

    def can_open(self, name: str) -> bool:
        """Whether this provider unwraps here; the public half of an offline key does not."""
        return self.named(name).can_open

    def ready_for_new(self, name: str) -> ProviderKek | None:
        """The KEK that new slots share now, if there is one. It may be past its time: callers that must not
        call the provider use it all the same."""
        entry = self._for_new.get(name)
        return None if entry is None else entry[1]

    def needs_new(self, name: str) -> bool:
        """Whether `wrap_new` should run before new slots are made.

        Raises:
            ConfigurationError: see `named`.
        """
        self.named(name)
        entry = self._for_new.get(name)
        return entry is None or entry[0] <= time.monotonic()

    def wrap_new(self, name: str) -> ProviderKek:
        """Make a KEK for new slots, and have the provider wrap it.

        Raises:
            ConfigurationError: see `named`.
            ProviderError: the provider failed, or did not answer in time.
        """
        calls = self.named(name)
        reference, public_key = self.current_reference(name), calls.public_key
        if public_key is not None:
            fresh = ProviderKek(reference, bytes([FORMAT_PROVIDER]) + public_key, public_key)
        else:
            kek = SharedKek(KeyBytes.generate().buffer)
            fresh = ProviderKek(reference, calls.wrap(kek, kek_context(kek.public_key)), kek.public_key, kek)
        with self._lock:
            self._for_new[name] = time.monotonic() + self.shared_for, fresh
        return fresh

    def cached(self, slot: StoredSlot, uses: int = 1) -> KeyBytes | None:
        """The KEK of a slot, if it is new or was opened within the cache's time and uses.

        Args:
            uses: how many uses to count.
        """
        blob = slot.provider_wrapped
        with self._lock:
            for _, fresh in self._for_new.values():
                if fresh.wrapped == blob and fresh.key is not None:
                    return fresh.key
            entry = self._keks.get(blob or b"")
            if entry is None:
                return None
            entry.uses[0] += uses
            if entry.until <= time.monotonic() or entry.uses[0] > self.cache.uses:
                # The key is not wiped: another thread may just have been given it.
                del self._keks[blob or b""]
                return None
            self._keks.move_to_end(blob or b"")
            return entry.kek

    def open(self, slot: StoredSlot) -> KeyBytes:
        """The KEK of a slot. Calls the provider, unless the KEK is cached.

        Raises:
            KeyNotFoundError: the slot names no provider that is configured here.
            ProviderError: the provider failed, did not answer in time, or answered with another key.
        """
        kek = self.cached(slot)
        if kek is not None:
            return kek
        name, blob = self.of(slot), slot.provider_wrapped
        if name not in self.calls or blob is None:
            raise KeyNotFoundError(
                f"A key slot is held by provider {name!r}, which is not configured here. Give it to the "
                "envelope: Envelope(server_keys=...) or Envelope(providers={...})."
            )
        kek = check_kek(self.calls[name].unwrap(blob, kek_context(slot.recipient_public_key or b"")), slot)
        with self._lock:
            self._keks[blob] = _Entry(name, kek, time.monotonic() + self.cache.seconds, [1])
            while len(self._keks) > max(1, self.cache.keys):
                self._keks.popitem(last=False)
        return kek

    def current_reference(self, name: str) -> str:
        """What new slots of this provider name: the provider, and which of its keys wraps now.

        Raises:
            ConfigurationError: see `named`.
        """
        return f"{name} {self.named(name).reference}"[:255]

    def rewrap(self, slot: StoredSlot) -> ProviderKek:
        """Have the provider wrap the KEK of a slot under the key that wraps now; the KEK stays the same.

        Raises:
            ProviderError: the provider failed, does not open the slot, or does not open its new wrap.
        """
        calls, public_key = self.named(self.of(slot)), slot.recipient_public_key or b""
        made = calls.rewrap(slot.provider_wrapped or b"", kek_context(public_key))
        return ProviderKek(self.current_reference(calls.name), made, public_key)

    def forget_provider(self, name: str) -> None:
        """Wipe the KEKs of one provider, whose campaign is closed."""
        with self._lock:
            for blob in [blob for blob, entry in self._keks.items() if entry.name == name]:
                self._keks.pop(blob).kek.wipe()
            _, fresh = self._for_new.pop(name, (0.0, None))
            if fresh is not None and fresh.key is not None:
                fresh.key.wipe()

    def forget(self) -> None:
        """Wipe every KEK."""
        for entry in self._keks.values():
            entry.kek.wipe()
        for _, fresh in self._for_new.values():
            if fresh.key is not None:
                fresh.key.wipe()
        self._keks.clear()
        self._for_new.clear()
        self._lock = Lock()  # after a fork, a thread that does not exist here may hold the old lock


def make_providers(
    providers: Mapping[str, KeyProvider], cache: CachePolicy, *, timeout: float, retries: int
) -> Providers:
    """The providers of an `Envelope`.

    Args:
        providers: by name.
        timeout: the seconds that one call may take.
        retries: how often a call is made again.

    Raises:
        ConfigurationError: a name is empty, longer than 64 characters, or has white space.
    """
    for name in providers:
        if not name or len(name) > 64 or any(character.isspace() for character in name):
            raise ConfigurationError(
                f"{name!r} names a provider: use up to 64 characters without white space."
            )
    calls = {
        name: ProviderCalls(provider, name, timeout=timeout, retries=retries)
        for name, provider in providers.items()
    }
    return Providers(calls, cache)
