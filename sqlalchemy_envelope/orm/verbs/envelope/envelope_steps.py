"""The steps of the verbs, for both envelopes: `Envelope` runs them at once, `AsyncEnvelope` in threads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from sqlalchemy.orm import Session, scoped_session

from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile, KdfSalt
from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required, prepare_hidden
from sqlalchemy_envelope.crypto.wrapping import wrong_secret
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.model import SlotKind
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.keks import Outside
from sqlalchemy_envelope.orm.current.policy import Policy
from sqlalchemy_envelope.orm.throttling.throttle import Throttle
from sqlalchemy_envelope.orm.verbs import tickets
from sqlalchemy_envelope.orm.verbs.log_in import claim, unlock
from sqlalchemy_envelope.orm.verbs.log_in.attempts import Attempt, Setting
from sqlalchemy_envelope.orm.verbs.log_in.enroll import Asked, asked_for
from sqlalchemy_envelope.orm.verbs.log_in.even_refusals import Pace
from sqlalchemy_envelope.orm.verbs.slots import escrow, recovery, secrets, slots
from sqlalchemy_envelope.orm.verbs.slots.emergency import unlock_for_person_steps
from sqlalchemy_envelope.orm.verbs.steps import Derivation, Pause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy_envelope.crypto.preparation import GivenSecret, HiddenSecret
    from sqlalchemy_envelope.crypto.secret import Hidden
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.verbs.log_in.way import Way
    from sqlalchemy_envelope.orm.verbs.steps import Steps, Work


AnySession = Session | scoped_session[Any]
T = TypeVar("T")
Follow = Literal["needed", "all"]


@emptying_class
class EnvelopeSteps:
    """Makes the steps of each verb.

    Attributes:
        policy: what the layers below need.
        kdf_profile: the cost of new secret slots.
        limit: carries key derivations out.
        throttle: makes attempts wait after failures; None if none do.
        pace: how long refusals take.
    """

    policy: Policy
    kdf_profile: KdfProfile
    limit: KdfLimit
    throttle: Throttle | None
    pace: Pace

    def _desk(self, session: Session) -> Desk:
        """The desk of a session, by this envelope's policy."""
        return Desk(session, self.policy)

    def attempt(self, session: Session | None, owner: object, kind: SlotKind, source: str | None) -> Attempt:
        """An attempt to open an owner with a slot of this kind.

        Args:
            source: where the attempt comes from, if the caller said.

        Raises:
            ConfigurationError, EnrollmentError: the owner is none.
        """
        return self._attempt(session, kind, source).at_owner(owner)

    def _attempt(self, session: Session | None, kind: SlotKind, source: str | None) -> Attempt:
        setting = Setting(self.policy, self.throttle, self.pace, self.kdf_profile)
        return Attempt(setting, session, kind, source)

    def run(self, steps: Steps[T]) -> T:
        """Carry steps out, with derivations and calls on this thread."""
        go_on: Any = steps.send
        answer: Any = None
        try:
            while True:
                work = go_on(answer)
                try:
                    go_on, answer = steps.send, self.perform(work)
                except Exception as error:  # noqa: BLE001 - the steps raise it again
                    go_on, answer = steps.throw, error
        except StopIteration as stop:
            result: T = stop.value
            return result

    def perform(self, work: Work) -> Any:
        """Run one key derivation, within the limit, or one call to a provider or a store; or pause."""
        if isinstance(work, Pause):
            return time.sleep(work.seconds)
        if isinstance(work, Outside):
            return work.call()
        return self.limit.derive(work.secret, work.salt, took=work.took)

    def enroll_steps(
        self,
        session: Session,
        owner: object,
        secret: GivenSecret | Mapping[Any, GivenSecret] | Asked | None,
        provider: str | None,
    ) -> Steps[UnlockedSession]:
        """The steps of `enroll`."""
        asked = asked_for(owner, secret)
        return self._made(claim.enroll_steps(self._desk(session), self.kdf_profile, asked, provider))

    def _made(self, steps: Steps[UnlockedSession]) -> Steps[UnlockedSession]:
        """Let the unlocked session that steps make know who made it."""
        unlocked = yield from steps
        unlocked.made_by = self
        return unlocked

    def unlock_steps(
        self, session: Session, owner: object, way: Way, follow: Follow = "needed"
    ) -> Steps[UnlockedSession]:
        """The steps of `unlock`."""
        if follow not in ("needed", "all"):
            raise ConfigurationError(f"follow={follow!r}; use 'needed' or 'all'.")
        steps = self._unlock_steps(session, owner, way)
        return self._made(unlock.whole_steps(steps) if follow == "all" else steps)

    def _unlock_steps(self, session: Session, owner: object, way: Way) -> Steps[UnlockedSession]:
        desk = self._desk(session)
        if way.secret is not None:
            steps = claim.unlock_steps if way.authenticated else unlock.unlock_steps
            attempt = self.attempt(session, owner, SlotKind.SECRET, way.source)
            return steps(desk, self.kdf_profile, owner, way.secret, attempt)
        if way.recovery_code is not None:
            attempt = self.attempt(session, owner, SlotKind.RECOVERY, way.source)
            return recovery.unlock_with_code_steps(desk, owner, way.recovery_code, attempt)
        if way.ticket is not None:
            return tickets.unlock_with_ticket_steps(desk, owner, way.ticket)
        if way.escrow_key is not None:
            return escrow.unlock_with_escrow_steps(desk, owner, way.escrow_key, way.reason or "")
        if way.emergency is not None:
            return unlock_for_person_steps(desk, owner, way.emergency)
        return unlock.unlock_with_provider_steps(desk, owner, way.provider or "", way.reason or "")

    def add_provider_steps(self, session: Session, owner: object, provider: str) -> Steps[None]:
        """The steps of `add_provider`."""
        return slots.add_provider_steps(self._desk(session), owner, provider)

    def add_secret_steps(
        self, session: Session, owner: object, secret: GivenSecret, label: str | None = None
    ) -> Steps[None]:
        """The steps of `add_secret`."""
        hidden = hide_required(secret)
        return secrets.add_secret_steps(self._desk(session), self.kdf_profile, owner, hidden, label)

    def set_secret_steps(
        self, session: Session, owner: object, new: GivenSecret, label: str | None = None
    ) -> Steps[None]:
        """The steps of `set_secret`."""
        hidden = hide_required(new)
        return secrets.set_secret_steps(self._desk(session), self.kdf_profile, owner, hidden, label)

    def change_secret_steps(
        self,
        session: Session,
        owner: object,
        old: GivenSecret,
        new: GivenSecret,
        source: str | None = None,
    ) -> Steps[None]:
        """The steps of `change_secret`."""
        hidden, hidden_new = hide_required(old), hide_required(new)
        attempt = self.attempt(session, owner, SlotKind.SECRET, source)
        desk, profile = self._desk(session), self.kdf_profile
        return secrets.change_secret_steps(desk, profile, owner, hidden, hidden_new, attempt)

    def rebind_steps(
        self, session: Session, owner: object, secret: GivenSecret, source: str | None = None
    ) -> Steps[None]:
        """The steps of `rebind`."""
        attempt = self.attempt(session, owner, SlotKind.SECRET, source)
        return unlock.rebind_steps(
            self._desk(session), self.kdf_profile, owner, hide_required(secret), attempt
        )

    def unknown_steps(
        self,
        session: Session | None,
        secret: HiddenSecret | None,
        account: str | None,
        source: str | None,
        code: Hidden[str] | None = None,
    ) -> Steps[NoReturn]:
        """The steps of `unlock_unknown`."""
        if code is not None and secret is None:
            attempt = self._attempt(session, SlotKind.RECOVERY, source)
            yield from recovery.refuse_unknown_steps(code, attempt)
        elif secret is not None and code is None:
            prepared = prepare_hidden(secret)
            attempt = self._attempt(session, SlotKind.SECRET, source).at_unknown(account)
            with attempt.told():
                yield from attempt.judged(prepared, _opening_nothing(prepared, self.kdf_profile))
        else:
            raise ConfigurationError("unlock_unknown() takes `secret=` or `recovery_code=`: one of them.")
        raise AssertionError  # nothing was opened


def _opening_nothing(prepared: Hidden[bytes], profile: KdfProfile) -> Steps[NoReturn]:
    kek = yield Derivation(prepared, KdfSalt.generate(profile))
    kek.wipe()
    raise wrong_secret()


def plain_session(session: AnySession) -> Session:
    """Return the session behind a scoped session.

    Raises:
        ConfigurationError: the session is asynchronous.
    """
    if hasattr(session, "sync_session"):
        raise ConfigurationError(
            "This is an AsyncSession: use AsyncEnvelope(envelope), with `await` or `async with`."
        )
    return session.registry() if isinstance(session, scoped_session) else session
