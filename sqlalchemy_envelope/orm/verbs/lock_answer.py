"""The answer to why an attribute is locked, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy_envelope.exceptions import LockReason
    from sqlalchemy_envelope.orm.verbs.grant_status import GrantStatus, OwnerName


@dataclass(frozen=True)
class WhyLocked:
    """Why an encrypted attribute does not open here. Holds no key, value or secret.

    Attributes:
        attribute: which one, "Post.text".
        reason: the short form, as on `LockedError`.
        message: cause and cure, in words.
        owner: whose key the value is under; None where that is not known.
        scope: under which of the owner's scopes.
        grant: the granting row in the way, if one is: since when it is pending, and who can fulfil it.
        epoch: of `LockReason.OTHER_EPOCH`, that of the value.
        epochs: of the same, those that are held.
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
