"""The throttle: who waits for whose failures.

What holds, whatever attackers do (`tests/orm/throttling/test_throttle.py`):

1. An attempt counts as a failure before its key is derived, and one that succeeds takes its own failure back.
   So guesses that run at one time cannot all pass.
2. A success takes back nothing that others did: with an account of one's own, nobody clears a source.
3. A source that unlocked an account within `known_for` waits for its own failures at that account and for no
   others. So an attacker elsewhere never locks an owner out.
4. Everybody else waits for the failures at the account, of the source, and of both together; never longer
   than the longest of these waits. A refused attempt counts nowhere, and so makes no wait longer.
5. After a time without failures nothing is remembered.
6. An account that does not exist waits as one that does: to the throttle both are names.
"""

from __future__ import annotations

import copy
import time
from ipaddress import IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple, Self

from sqlalchemy_envelope.crypto.context import encode_context
from sqlalchemy_envelope.crypto.throttle_name import throttle_key, throttle_name
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.throttling.backoff import Backoff, Bucket
from sqlalchemy_envelope.orm.throttling.table import TableThrottle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.secret import KeyBytes
    from sqlalchemy_envelope.orm.throttling.backoff import Buckets
    from sqlalchemy_envelope.orm.throttling.stores import ThrottleStore

_DAY = 86_400.0


class Names(NamedTuple):
    """The names that an attempt counts under; None where the caller did not say."""

    account: UUID | None
    source: UUID | None
    pair: UUID | None

    @property
    def in_order(self) -> list[UUID]:
        """Those that are there, sorted."""
        return sorted(name for name in self if name is not None)


class Counted(NamedTuple):
    """One name that an attempt was counted under.

    Attributes:
        backoff: the rules that it was judged by.
        before, after: what the attempt found, and what it left.
    """

    backoff: Backoff
    before: Bucket
    after: Bucket


class Reservation(NamedTuple):
    """An attempt that counts as a failure until it succeeds."""

    names: Names
    counted: Mapping[UUID, Counted]


class _Judged(NamedTuple):
    """What became of an attempt: the milliseconds that it has to wait, or a reservation."""

    wait: int
    reservation: Reservation
    changed: Buckets


class Throttle:
    """Makes attempts to unlock wait after failures. Give it to the `Envelope`.

    Args:
        store: where failures are remembered: `TableThrottle`, `MemoryThrottle`, or a store of your own.
        account: the waits after failures at one account; for a known source, after its own failures there.
        source: the waits after failures from one source. The addresses of an IPv6 network (/64) are a single
            source.
        pair: the waits after failures from one source at one account, while the source is not known.
        known_for: how many seconds a source counts as the owner's after it unlocked an account.
        clock: the present, in seconds since 1970; for tests.
    """

    def __init__(
        self,
        store: ThrottleStore,
        *,
        account: Backoff = Backoff(),  # noqa: B008 - it never changes
        source: Backoff = Backoff(free=20, forget=60.0),  # noqa: B008 - it never changes
        pair: Backoff = Backoff(longest=300.0),  # noqa: B008 - it never changes
        known_for: float = 30 * _DAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not callable(getattr(store, "update", None)):
            raise ConfigurationError(
                f"A throttle counts in a store, and this is of the type {type(store).__name__}: write "
                "Throttle(TableThrottle(throttle_table(Base.metadata)))."
            )
        self.store = store
        self._account, self._source, self._pair = account, source, pair
        self._known_for = round(known_for * 1000)
        self._clock = clock
        self._key: KeyBytes | None = None

    def under(self, key: KeyBytes | None) -> Self:
        """The same throttle, whose names are made under this server key."""
        named = copy.copy(self)
        named._key = None if key is None else throttle_key(key)
        return named

    def store_for(self, session: Session | None) -> ThrottleStore:
        """The store for an attempt in this session."""
        if isinstance(self.store, TableThrottle):
            return self.store.within(session)
        return self.store

    def names(self, account: bytes | None, source: str | None) -> Names:
        """The names for an attempt.

        Args:
            account: from `owner_account` or `typed_account`.
            source: where the attempt comes from, as the application knows it.
        """
        at = None if account is None else throttle_name(self._key, b"account", account)
        if source is None:
            return Names(at, None, None)
        here = _network(source)
        from_ = throttle_name(self._key, b"source", here)
        return Names(at, from_, None if account is None else throttle_name(self._key, b"pair", account, here))

    def reserve(self, store: ThrottleStore, names: Names) -> Reservation | float:
        """Count an attempt as a failure, before it is made; or return the seconds that it has to wait."""
        judged: _Judged | None = None

        def change(found: Buckets) -> Buckets:
            nonlocal judged
            judged = self._judge(names, found, self._now())
            return judged.changed

        if names.in_order:
            store.update(names.in_order, change, self._now())
        if judged is None:
            return Reservation(names, {})
        return judged.wait / 1000 if judged.wait else judged.reservation

    def give_back(self, store: ThrottleStore, reservation: Reservation, *, opened: bool) -> None:
        """Take back what an attempt was counted for.

        Args:
            opened: whether it succeeded. Then its source is known from now on.
        """
        names = reservation.names
        if not reservation.counted:
            return
        known = opened and names.pair is not None

        def change(found: Buckets) -> Buckets:
            changed = {
                name: one.backoff.undone(found[name], one.before, one.after)
                for name, one in reservation.counted.items()
            }
            if known and names.pair is not None:
                changed[names.pair] = Bucket(known_until=self._now() + self._known_for)
            return changed

        store.update(names.in_order, change, self._now())

    def _judge(self, names: Names, found: Buckets, now: int) -> _Judged:
        rules = self._rules(names, found, now)
        seen = {name: self._seen(found[name], backoff, now) for name, backoff in rules.items()}
        wait = max([0, *(bucket.free_at - now for bucket in seen.values())])
        if wait:
            # Times that a clock had set too far away are stored as they look now, so that they come nearer.
            moved = {name: bucket for name, bucket in seen.items() if bucket != found[name]}
            return _Judged(wait, Reservation(names, {}), moved)
        counted = {
            name: Counted(backoff, seen[name], backoff.failed(seen[name], now))
            for name, backoff in rules.items()
        }
        changed = {name: one.after for name, one in counted.items()}
        return _Judged(0, Reservation(names, counted), changed)

    def _rules(self, names: Names, found: Buckets, now: int) -> dict[UUID, Backoff]:
        """The names that an attempt is judged by and counted under."""
        if names.pair is not None and found[names.pair].known_until > now:
            return {names.pair: self._account}
        all_rules = zip(names, (self._account, self._source, self._pair), strict=True)
        return {name: backoff for name, backoff in all_rules if name is not None}

    def _seen(self, bucket: Bucket, backoff: Backoff, now: int) -> Bucket:
        seen = backoff.seen(bucket, now)
        return seen._replace(known_until=min(seen.known_until, now + self._known_for))

    def _now(self) -> int:
        return round(self._clock() * 1000)

    def __repr__(self) -> str:
        return f"Throttle({type(self.store).__name__})"


def owner_account(reference: bytes, realm: str = "") -> bytes:
    """The account of an owner.

    Args:
        reference: what the owner's keys are bound to.
        realm: the name of the database, if the application gives it one: primary keys repeat.
    """
    return encode_context("owner-account", realm.encode("utf-8"), reference)


def typed_account(account: str) -> bytes:
    """The account that somebody named and that does not exist.

    It is taken as it is. Only the application knows which spellings lead to one account: if two spellings
    were one here and two there, the waits would tell which accounts exist.

    Raises:
        ConfigurationError: it is no text.
    """
    if not isinstance(account, str):
        raise ConfigurationError(f"account= takes text, not a {type(account).__name__}.")
    return encode_context("typed-account", account.encode("utf-8", "backslashreplace"))


def _network(source: str) -> bytes:
    """What counts as one source: an IPv4 address, the /64 of an IPv6 address, or another text as it is.

    Raises:
        ConfigurationError: it is no text.
    """
    if not isinstance(source, str):
        raise ConfigurationError(
            f"source= takes text, as an IP address, and not a {type(source).__name__}: str(address)."
        )
    try:
        address = ip_address(source.strip().partition("%")[0])
    except ValueError:
        return source.strip().encode("utf-8", "backslashreplace")
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((address, 64), strict=False)).encode("ascii")
        address = address.ipv4_mapped
    return str(address).encode("ascii")
