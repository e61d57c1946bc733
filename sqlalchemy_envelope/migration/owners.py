"""What encrypts the values of each row's owner, while a migration goes over the rows.

Owners whose keys a provider holds are opened in server mode, and owners without keys get some under that
provider. Whoever holds their keys alone is written to as any locked owner is: by a sealed write epoch.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import NotEnrolledError
from sqlalchemy_envelope.keys.model import KeyId
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.key_rows import chunks

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.migration.columns import MigratingColumn
    from sqlalchemy_envelope.orm.verbs.envelope import Envelope


@contextmanager
def keys_at_hand(envelope: Envelope, provider: str | None, reason: str) -> Iterator[None]:
    """Open owners with this provider from here on, if there is one."""
    with ExitStack() as stack:
        if provider is not None:
            server = envelope.server_mode(None, provider=provider, reason=reason)
            stack.enter_context(server)
        yield


class OwnerCiphers:
    """The ciphers of one chunk's owners.

    Attributes:
        unknown: owners that have no keys, and get none here.
    """

    def __init__(self, session: Session, column: MigratingColumn) -> None:
        self._session = session
        self._column = column
        self._field = column.plan.type.field
        self.unknown: set[tuple[Any, ...]] = set()

    def writers(self, owners: Collection[tuple[Any, ...]], values: int) -> dict[tuple[Any, ...], ValueCipher]:
        """What encrypts new values of each of these owners; those in `unknown` are left out."""
        self._prepare(owners, values)
        owner_class, names = self._column.path.owner_class, Names(self._session)
        found = {}
        for key in owners:
            cipher = context.find_writer(
                self._session, names.owner(owner_class, key), self._column.plan.scope, self._field
            )
            if cipher is None:
                self.unknown.add(key)
            else:
                found[key] = cipher
        return found

    def _prepare(self, owners: Collection[tuple[Any, ...]], values: int) -> None:
        owner_class = self._column.path.owner_class
        try:
            self._tell(owner_class, owners, values)
            return
        except NotEnrolledError:
            pass
        for key in owners:
            try:
                self._tell(owner_class, [key], values)
            except NotEnrolledError:
                self.unknown.add(key)

    def _tell(self, owner_class: Any, owners: Collection[tuple[Any, ...]], values: int) -> None:
        for unlocked in context.unlocked_sessions(self._session):
            unlocked.prepare_write(self._session, owner_class, owners, values)

    def prepare_read(self, headers: dict[bytes, int]) -> None:
        """Fetch the keys that these stored values name, as far as a provider holds them."""
        for unlocked in context.unlocked_sessions(self._session):
            if unlocked.on_demand:
                unlocked.prepare_read(self._session, self._column.path.owner_class, headers)

    def reader(self, header: bytes) -> ValueCipher | None:
        """What opens a stored value."""
        return context.find_reader(self._session, header, self._field)

    def strangers(self, values: Sequence[tuple[bytes, tuple[Any, ...]]]) -> list[bool]:
        """Which of these stored values, each with its row's owner, name a key that is not there any more, or
        is another owner's: nobody will open them again."""
        owner_class = self._column.path.owner_class
        key_id = owner_class.key_class.__table__.c.key_id
        named = {KeyId(bytes=header[1:HEADER_SIZE]) for header, _ in values if len(header) >= HEADER_SIZE}
        holders: dict[bytes, tuple[Any, ...]] = {}
        for some in chunks(list(named)):
            query = select(key_id, *owner_class.owner_columns).where(key_id.in_(some))
            holders |= {row[0].bytes: tuple(row[1:]) for row in self._session.execute(query)}
        return [
            (holder := holders.get(header[1:HEADER_SIZE])) is None or (None not in owner and holder != owner)
            for header, owner in values
        ]

    def are_of(self, header: bytes, owner: tuple[Any, ...]) -> bool:
        """Whether the key that a stored value names is this owner's, as far as is known here."""
        holder = context.owner_of(self._session, header)
        if holder is None or None in owner:
            return True
        return holder == Names(self._session).owner(self._column.path.owner_class, owner)
