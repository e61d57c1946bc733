"""Whether a session's transaction holds locks. While it does, the library does not wait for the network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Select, TextClause, UpdateBase

from sqlalchemy_envelope.exceptions import ProviderError
from sqlalchemy_envelope.orm.tables.connections import holds_locks

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def takes_locks(statement: object) -> bool:
    """Whether a statement makes its transaction hold locks. Text does, unless it begins with SELECT.

    FOR KEY SHARE does not count: like a foreign key, it only holds up a transaction that deletes the row or
    changes its key.
    """
    if isinstance(statement, UpdateBase):
        return True
    if isinstance(statement, Select):
        asked = statement._for_update_arg
        return asked is not None and not (asked.read and asked.key_share)
    return isinstance(statement, TextClause) and statement.text.lstrip()[:6].upper() != "SELECT"


def require_no_locks(session: Session, name: str) -> None:
    """Refuse to wait for the network while others wait for this transaction.

    Args:
        name: the name of the provider to be called.

    Raises:
        ProviderError: a transaction of the session holds locks.
    """
    if holds_locks(session):
        raise ProviderError(
            f"Provider {name!r} would be called inside a transaction that holds locks. Unlock, enroll or "
            "load before the first write, or commit before."
        )
