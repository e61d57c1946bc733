"""The verbs on an owner who is to be erased, for an `AsyncSession`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AsyncSteps, plain_async

if TYPE_CHECKING:
    import datetime as dt

    from sqlalchemy_envelope.keys.receipts import ErasureReceipt
    from sqlalchemy_envelope.orm.verbs.envelope.async_steps import AnyAsyncSession
    from sqlalchemy_envelope.orm.verbs.erasure.erasure_report import ErasureReport


@emptying_class
class AsyncShredVerbs(AsyncSteps):
    """The verbs of an `AsyncEnvelope` on an owner who is to be erased."""

    @property
    def receipt_public_key(self) -> str:
        """As `Envelope.receipt_public_key`."""
        return self.envelope.receipt_public_key

    def owner_tag(self, owner_class: type[Any], primary_key: Any) -> str:
        """As `Envelope.owner_tag`."""
        return self.envelope.owner_tag(owner_class, primary_key)

    async def erasure_report(
        self, session: AnyAsyncSession, owner: object, *, backups_kept: dt.timedelta | None = None
    ) -> ErasureReport:
        """As `Envelope.erasure_report`."""
        found: ErasureReport = await plain_async(session).run_sync(
            lambda plain: self.envelope.erasure_report(plain, owner, backups_kept=backups_kept)
        )
        return found

    async def shred(
        self,
        session: AnyAsyncSession,
        owner: object,
        *,
        reason: str,
        backups_kept: dt.timedelta | None = None,
        keep_row: bool = True,
        also_groups: bool = False,
    ) -> ErasureReceipt:
        """As `Envelope.shred`."""
        receipt: ErasureReceipt = await plain_async(session).run_sync(
            lambda plain: self.envelope.shred(
                plain,
                owner,
                reason=reason,
                backups_kept=backups_kept,
                keep_row=keep_row,
                also_groups=also_groups,
            )
        )
        return receipt
