"""The verbs on an owner who is to be erased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.erasure.erasure_report import erasure_report
from sqlalchemy_envelope.orm.verbs.erasure.shred import owner_tag, receipt_key_of_policy, shred

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.keys.receipts import ErasureReceipt
    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession
    from sqlalchemy_envelope.orm.verbs.erasure.erasure_report import ErasureReport


@emptying_class
class ShredVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` on an owner who is to be erased."""

    @property
    def receipt_public_key(self) -> str:
        """The public key that checks the receipts of this envelope, as base64 text.

        Raises:
            ConfigurationError: there is neither a server key nor a receipt key.
        """
        return receipt_key_of_policy(self.policy).public_text

    def owner_tag(self, owner_class: type[Any], primary_key: Any) -> str:
        """Return the name that an owner has in the receipts of this envelope, 64 hexadecimal digits.

        It is the `tag` among the `owners` of a receipt, so that you find the receipts of a person by class
        and primary key, also when the row is gone. Nothing is read. After a rotation of the server key the
        tag is another: ask an envelope whose first server key is the one of the receipt's time.

        Args:
            owner_class: the class of the owner.
            primary_key: its primary key; a tuple, if it has several columns.

        Raises:
            ConfigurationError: this is no class of key owners, the primary key has not as many columns as the
                table, or there is neither a server key nor a receipt key.
        """
        return owner_tag(self.policy, owner_class, primary_key)

    def erasure_report(
        self, session: AnySession, owner: object, *, backups_kept: dt.timedelta | None = None
    ) -> ErasureReport:
        """Return what `shred` would destroy, who could read it until now, which groups would be lost with it,
        and what would remain. Sends only SELECTs, and needs no key.

        Args:
            backups_kept: how long backups are kept, to say until when they hold the keys.

        Raises:
            NotEnrolledError: the owner is not in the database.
        """
        return erasure_report(self._desk(plain_session(session)), owner, backups_kept)

    def shred(
        self,
        session: AnySession,
        owner: object,
        *,
        reason: str,
        backups_kept: dt.timedelta | None = None,
        keep_row: bool = True,
        also_groups: bool = False,
    ) -> ErasureReceipt:
        """Destroy an owner's keys, so that nobody reads its values again. Needs no secret. Never commits: a
        rollback takes everything back.

        Slots, tickets and grants of the keys are deleted. The owner leaves its groups, which start a new
        epoch. The application's own rows stay, granting rows among them. A value under a destroyed key reads
        as `KeyShreddedError`, or as what `EncryptedType(..., shredded=...)` says.

        Args:
            reason: the reason, for the audit event. It is not in the receipt.
            backups_kept: how long backups are kept, for the receipt.
            keep_row: False deletes the owner with the same flush, as `session.delete(owner)` does.
            also_groups: shred the groups, too, that the owner is the last holder of.

        Returns:
            The receipt. Its `to_json()` is signed once the transaction is committed.

        Raises:
            ErasureError: the keys are destroyed already, or groups would be lost. Nothing was done.
            NotEnrolledError: the owner has no keys.
            ConfigurationError: there is neither a server key nor a receipt key to sign with, or no reason.
        """
        return shred(
            self._desk(plain_session(session)),
            owner,
            reason,
            backups_kept,
            keep_row=keep_row,
            also_groups=also_groups,
        )
