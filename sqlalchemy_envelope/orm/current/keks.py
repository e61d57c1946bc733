"""The KEKs that providers' slots are under: at hand, or by a call to the provider, for which no lock waits.

A call is not made here. It is yielded, so that a verb makes it where its caller waits for it, and server mode
off the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy_envelope.orm.current.locks import require_no_locks

if TYPE_CHECKING:
    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.desk import Desk

T = TypeVar("T")


class Outside(NamedTuple):
    """A call to a provider that a step waits for."""

    call: Callable[[], Any]


Calls = Generator[Outside, Any, T]
"""Steps that yield the calls that they wait for."""


def kek_of_slot(desk: Desk, slot: StoredSlot) -> Calls[KeyBytes]:
    """The KEK of a provider's slot.

    Raises:
        ProviderError: the provider failed, or would be called while locks are held.
    """
    providers = desk.policy.require_providers()
    kek = providers.cached(slot)
    if kek is None:
        _require_no_locks(desk, providers.of(slot))
        kek = yield Outside(lambda: providers.open(slot))
    return kek


def kek_for_new(desk: Desk, provider: str, *, however_old: bool = False) -> Calls[ProviderKek]:
    """The KEK that new slots of a provider are under; wrapped by the provider if there is none yet, or it is
    past its time.

    Args:
        however_old: take the one that is there.

    Raises:
        ProviderError: the provider failed, or would be called while locks are held.
    """
    providers = desk.policy.require_providers()
    ready = providers.ready_for_new(provider)
    if ready is not None and (however_old or not providers.needs_new(provider)):
        return ready
    _require_no_locks(desk, provider)
    made: ProviderKek = yield Outside(lambda: providers.wrap_new(provider))
    return made


def _require_no_locks(desk: Desk, provider: str) -> None:
    """A provider that is reached through the network is not called while others wait for this transaction."""
    if not desk.policy.require_providers().is_local(provider):
        require_no_locks(desk.session, provider)
