"""The answer of `why_locked`, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy_envelope.exceptions import LockReason
    from sqlalchemy_envelope.orm.verbs.status.grant_status import GrantStatus, OwnerName


@dataclass(frozen=True)
class WhyLocked:
    """The reason why an encrypted attribute does not open. Holds no key, value or secret.

    Attributes:
        attribute: the name of the attribute, "Post.text".
        reason: the reason in short form, as on `LockedError`.
        message: cause and cure, in words.
        owner: the owner whose key encrypts the value; None if the owner is not known.
        scope: the owner's scope that the value is in.
        grant: the granting row in the way, if any: since when it is pending, and who can fulfil it.
        epoch: for `LockReason.OTHER_EPOCH`, the epoch of the value's key.
        epochs: for `LockReason.OTHER_EPOCH`, the epochs of the keys that are held.
    """

    attribute: str
    reason: LockReason
    message: str
    owner: OwnerName | None = None
    scope: str = ""
    grant: GrantStatus | None = None
    epoch: int | None = None
    epochs: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.message
