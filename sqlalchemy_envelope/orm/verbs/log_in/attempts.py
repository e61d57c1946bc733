"""An attempt to open an owner: counted before it is made, and told as an event, whatever opens the owner.

attempt = envelope.attempt(session, owner, SlotKind.RECOVERY, source)
with attempt.told():
    found = yield from attempt.counted(opening)
    unlocked = ...
return attempt.told_unlocked(unlocked)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    TransactionConflictError,
    UnlockBusyError,
    UnlockThrottledError,
)
from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from sqlalchemy_envelope.orm.throttling.throttle import Reservation, owner_account, typed_account
from sqlalchemy_envelope.orm.verbs.log_in.even_refusals import even
from sqlalchemy_envelope.orm.verbs.steps import locking_if_untold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.argon2id import KdfProfile
    from sqlalchemy_envelope.crypto.secret import Hidden
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.throttling.throttle import Throttle
    from sqlalchemy_envelope.orm.verbs.log_in.even_refusals import Pace
    from sqlalchemy_envelope.orm.verbs.steps import Steps

T = TypeVar("T")

GUESSED = frozenset({SlotKind.SECRET})
"""The kinds of slots that somebody might open by guessing. All others hold 128 random bits or more: to count
failures at the account would only let an attacker delay its owner, who needs that way all the more then."""
UNKNOWN = "unknown"
"""What an event names in place of a class, for an account that does not exist."""


class Setting(NamedTuple):
    """What attempts of one envelope have in common.

    Attributes:
        pace: how long refusals take.
        profile: the cost of a key derivation.
    """

    policy: Policy
    throttle: Throttle | None
    pace: Pace
    profile: KdfProfile


class Attempt:
    """An attempt to open an owner, or an account that does not exist."""

    def __init__(self, setting: Setting, session: Session | None, kind: SlotKind, source: str | None) -> None:
        self._policy, self._throttle, self._pace, self._profile = setting
        self._session = session
        self._kind = kind
        self._source = source
        self._account: Callable[[], bytes] | None = None
        self._class = UNKNOWN
        self._owner_id: tuple[Any, ...] | None = None

    def at_owner(self, owner: object) -> Attempt:
        """Set the owner to be opened.

        Raises:
            ConfigurationError, EnrollmentError: it is none.
        """
        owner_class = require_owner_class(owner)
        self._class = owner_class.name
        identity: Any = inspect(owner).key
        if identity is None:
            return self
        self._owner_id = primary_key = tuple(identity[1])
        if self._kind in GUESSED:
            # It may send a query, and so waits for the steps.
            self._account = lambda: owner_account(
                owner_class.reference(owner, primary_key), self._realm(owner_class)
            )
        return self

    def at_unknown(self, account: str | None) -> Attempt:
        """Set the account that somebody named and that does not exist."""
        if account is not None:
            typed = typed_account(account)
            self._account = lambda: typed
        return self

    def _realm(self, owner_class: OwnerClass) -> str:
        seals = self._policy.seals
        if self._session is None or seals.realm is None:
            return ""
        return seals.realm_of(bind_of(self._session, owner_class.mapper).engine)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tell by an event why the block failed."""
        try:
            yield
        except UnlockThrottledError:
            self._tell("unlock_throttled")
            raise
        except UnlockBusyError:
            self._tell("unlock_busy")
            raise
        except (ConfigurationError, TransactionConflictError):
            raise  # nobody was refused
        except EnvelopeError as error:
            self._tell("unlock_failed", error.code)
            raise

    def told_unlocked(self, unlocked: UnlockedSession) -> UnlockedSession:
        """Tell that the owner was unlocked, and return the unlocked session. If the application's function
        for events raises, the owner stays locked."""
        with locking_if_untold(unlocked):
            self._tell("unlocked")
        return unlocked

    def counted(self, opening: Steps[T], wipe: Callable[[T], None] | None = None) -> Steps[T]:
        """Carry steps out that prove a secret right or raise, as a failure that is counted until they end.

        Args:
            opening: the steps.
            wipe: wipes their result, should it not be returned.

        Raises:
            UnlockThrottledError: too many attempts failed before; nothing was carried out.
        """
        if self._throttle is None:
            return (yield from opening)
        throttle, store = self._throttle, self._throttle.store_for(self._session)
        account = None if self._account is None else self._account()
        names = throttle.names(account, self._source)
        reserved: Any = yield from _called(store.blocks, lambda: throttle.reserve(store, names))
        if not isinstance(reserved, Reservation):
            raise UnlockThrottledError(
                f"Too many attempts failed; try again in {ceil(reserved)} s. Nothing was tried."
            ).after(reserved)

        def give_back(*, opened: bool) -> Steps[None]:
            return _called(store.blocks, lambda: throttle.give_back(store, reserved, opened=opened))

        try:
            opened = yield from opening
        except UnlockBusyError:
            yield from give_back(opened=False)  # it was not made
            raise
        try:
            yield from give_back(opened=True)
        except BaseException:
            if wipe is not None:
                wipe(opened)
            raise
        return opened

    def judged(
        self,
        prepared: Hidden[bytes],
        opening: Steps[T],
        wipe: Callable[[T], None] | None = None,
    ) -> Steps[T]:
        """As `counted`, for steps that stretch a secret: a refusal takes as long as every other."""
        of_account = self._class != UNKNOWN
        return self.counted(even(self._pace, self._profile, prepared, opening, of_account=of_account), wipe)

    def _tell(self, name: EventName, reason: str | None = None) -> None:
        self._policy.emit(
            AuditEvent(name, self._class, reason=reason, owner_id=self._owner_id, slot_kind=self._kind.value)
        )


def _called(blocks: bool, call: Callable[[], T]) -> Steps[T]:
    """Call a store: in a thread under asyncio, if it blocks."""
    result: T = (yield Outside(call)) if blocks else call()
    return result
