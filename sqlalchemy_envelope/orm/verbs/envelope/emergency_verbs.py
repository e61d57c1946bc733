"""The verbs on emergency access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.slots import emergency

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession


@emptying_class
class EmergencyVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on emergency access."""

    def allow_emergency(
        self, session: AnySession, owner: object, *, person: object, wait: dt.timedelta
    ) -> None:
        """Let a person open an owner who is unlocked here, in an emergency: the person asks, the owner sees
        it and can cancel, and after the waiting time the person's unlock works. Called again for the same
        person, it begins anew. Never commits.

        Args:
            session: the session in which the owner is unlocked.
            owner: the owner.
            person: who may help; enrolled, and an owner of its own.
            wait: the time from the request on.

        Raises:
            LockedError: the owner is not unlocked here.
            NotEnrolledError: the person has no keys.
            ConfigurationError: there are no server keys, or no class of emergency access.
        """
        emergency.allow_emergency(self._desk(plain_session(session)), owner, person, wait)

    def request_emergency(self, session: AnySession, owner: object, *, person: object) -> dt.datetime:
        """Ask to open an owner, as a person who is unlocked here and whom the owner has named. Asking again
        does not begin the waiting time anew. Tell the owner by mail as well. Never commits.

        Returns:
            When the waiting time is over, in UTC.

        Raises:
            LockedError: the person is not unlocked here.
            EmergencyError: the owner has not allowed it, or has taken it back.
            TamperedKeyError: the row was altered.
        """
        return emergency.request_emergency(self._desk(plain_session(session)), owner, person)

    def cancel_emergency(self, session: AnySession, owner: object, *, person: object) -> None:
        """Cancel a person's request, as the owner, who is unlocked here. The person may ask again, and then
        waits again; `refuse_emergency` ends that. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
            EmergencyError: the person has no such access.
            TamperedKeyError: the row was altered. `refuse_emergency` removes it.
        """
        emergency.cancel_emergency(self._desk(plain_session(session)), owner, person)

    def refuse_emergency(self, session: AnySession, owner: object, *, person: object) -> None:
        """Take back `allow_emergency`, as the owner, who is unlocked here. A new epoch starts. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
        """
        emergency.refuse_emergency(self._desk(plain_session(session)), owner, person)
