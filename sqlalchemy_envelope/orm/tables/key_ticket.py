"""The mapped table of the tickets of one class of owners."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING

from sqlalchemy import DateTime, ForeignKey, Integer, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owned_table import OwnedTable, Owner, refer_to_owner
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID, OwnerClass

MAX_WRAPPED = 2**24 - 1
"""The most bytes of the carried keys: without a length, MariaDB's column ends at 64 KiB."""


class KeyTicketTable(OwnedTable[Owner]):
    """Tickets of one class of owners: each row is one client that stays logged in. A row alone opens nothing,
    as the client and the server hold the other parts of its key. The dates are bound to the wrap, except
    `used_at`."""

    ticket_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID, primary_key=True)
    server_half: Mapped[bytes] = mapped_column(LargeBinary(32))
    server_key_id: Mapped[bytes] = mapped_column(LargeBinary(16))
    wrapped: Mapped[bytes] = mapped_column(LargeBinary(MAX_WRAPPED))
    label: Mapped[str | None] = mapped_column(String(255))
    issued_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    used_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), index=True)
    idle_seconds: Mapped[int | None] = mapped_column(Integer)

    if TYPE_CHECKING:
        key_id: Mapped[uuid.UUID]

    @classmethod
    def _refer(cls, owner_class: OwnerClass) -> None:
        if owner_class.key_class is None:
            raise ConfigurationError(f"{cls.__name__}: declare `KeyTable[{owner_class.name}]` before it.")
        refer_to_owner(cls, owner_class)
        target = owner_class.key_class.__table__.c.key_id
        cls.key_id = mapped_column(
            KEY_UUID, ForeignKey(target, ondelete="CASCADE"), nullable=False, index=True
        )
