"""A session with the policy that key rows are read and written by there; it hands out their stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy_envelope.orm.current.context import policy_of, unlocked_sessions
from sqlalchemy_envelope.orm.current.key_shares import KeyShares
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.current.audit import AuditEvent
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, OwnerClass


class Desk:
    """Where work on key rows is done: in this session's transaction, by this policy.

    A desk has no state of its own. It is made wherever a session and a policy meet, and passed on.
    """

    __slots__ = ("policy", "session")

    def __init__(self, session: Session, policy: Policy) -> None:
        self.session = session
        self.policy = policy

    def keys(self, owner_class: OwnerClass) -> KeyStore:
        """The store of the key and slot rows of one class of owners."""
        shares = self.shares(owner_class) if owner_class.has_shares else None
        return KeyStore(self.session, owner_class, self.policy.seals, self.policy.pepper, shares)

    def shares(self, owner_class: OwnerClass) -> KeyShares:
        """The shares of one class of owners, in the second database."""
        return KeyShares(self.session, owner_class)

    def grants(self, grant_class: GrantClass) -> GrantStore:
        """The store of the grants of one class."""
        return GrantStore(self.session, grant_class, self.policy.seals)

    def keyring_for(self, owner: OwnerId) -> Keyring | None:
        """The keyring, of those that are unlocked here, that reaches an owner's root key."""
        here = unlocked_sessions(self.session)
        keyrings = (unlocked.keyring_for(owner, self.session) for unlocked in here)
        return next((one for one in keyrings if one is not None), None)

    def emit(self, event: AuditEvent) -> None:
        """Tell the log and the application what was done."""
        self.policy.emit(event)


def desk_of(session: Session) -> Desk:
    """The desk for what a session's flush does by itself.

    Raises:
        ConfigurationError: there are several policies with different server keys, and nothing says which one.
    """
    return Desk(session, policy_of(session))
