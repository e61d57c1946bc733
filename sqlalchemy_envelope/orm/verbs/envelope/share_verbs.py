"""The verb on the shares of keys in a second database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.slots.share_sweep import DEFAULT_KEEP, SharesSwept, sweep_shares

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession


class ShareVerbs(EnvelopeSteps):
    """The verb of an `Envelope` on shares."""

    def sweep_shares(
        self,
        session: AnySession,
        owner_class: type[Any],
        *,
        keep: dt.timedelta = DEFAULT_KEEP,
        delete: bool = True,
    ) -> SharesSwept:
        """Delete shares that no key slot needs from the second database, and count the slots whose share is
        missing there. Commits, in short transactions of its own.

        The first run that finds a share without a slot notes the time, and a run after `keep` deletes it.
        Until then the first database can be set back, and the share is there. If no share at all is needed
        by a slot, nothing is noted or deleted: the session hardly leads to the right pair of databases. Slots
        are never deleted.

        Args:
            session: a session that leads to both databases, with nothing pending in it.
            owner_class: a class with `key_shares=`.
            keep: how long a share without a slot stays, an hour at least.
            delete: False to count only.

        Raises:
            ConfigurationError: the class has no shares, the time is too short, or the session does not lead
                to a second database.
        """
        return sweep_shares(self._desk(plain_session(session)), owner_class, keep, delete=delete)
