"""The ciphers of each row's owner, while a migration goes over the rows.

The keys of owners with a slot of the provider are opened in server mode. Owners without keys get keys under
that provider. If only the owner holds the keys, values are encrypted as for any locked owner: under a sealed
write epoch.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import NotEnrolledError
from sqlalchemy_envelope.keys.model import KeyId, KeyState
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.reading.opener import open_bytes
from sqlalchemy_envelope.orm.tables.cascades import without_cascades
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.tables.rows import chunks
from sqlalchemy_envelope.orm.writing.owner_seek import OwnerSeek

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import Owner
    from sqlalchemy_envelope.orm.verbs.envelope.envelope import Envelope


@contextmanager
def keys_at_hand(envelope: Envelope, provider: str | None, reason: str) -> Iterator[None]:
    """Open owners' keys with this provider inside the block, if a provider is given. Foreign keys may be off
    on SQLite, as while Alembic rebuilds a table: a migration deletes no owner."""
    with ExitStack() as stack:
        stack.enter_context(without_cascades())
        if provider is not None:
            stack.enter_context(envelope.server_mode(None, provider=provider, reason=reason))
        yield


class OwnerCiphers:
    """The ciphers of the owners of a chunk's rows.

    Attributes:
        unknown: owners without a cipher: they have no keys, and get no keys here.
    """

    def __init__(self, session: Session, column: MigratingColumn) -> None:
        self._session = session
        self._column = column
        self._field = column.plan.type.field
        bind_arguments = {"mapper": column.path.owner_class.mapper}
        self._seek = OwnerSeek(session, session.connection(bind_arguments=bind_arguments))
        self.unknown: set[tuple[Any, ...]] = set()

    def writers(self, owners: Collection[tuple[Any, ...]], values: int) -> dict[tuple[Any, ...], ValueCipher]:
        """The cipher for new values of each owner. Owners in `unknown` are left out.

        Args:
            owners: the values by which rows name their owners, in the order of the path's columns.
        """
        found = self._find(owners)
        self._prepare(found, values)
        ciphers = {}
        for named, owner in found.items():
            cipher = None
            if owner is not None and named not in self.unknown:
                name = self._seek.owner(*owner)
                cipher = context.find_writer(self._session, name, self._column.plan.scope, self._field)
            if cipher is None:
                self.unknown.add(named)
            else:
                ciphers[named] = cipher
        return ciphers

    def _find(self, owners: Collection[tuple[Any, ...]]) -> dict[tuple[Any, ...], Owner | None]:
        """The class and primary key of each owner, by the values with which rows name the owner."""
        path = self._column.path
        if not path.is_direct:
            self._seek.load(path, owners)
        return {named: path.find(named, self._seek) for named in owners}

    def _prepare(self, found: dict[tuple[Any, ...], Owner | None], values: int) -> None:
        by_class: dict[Any, dict[tuple[Any, ...], tuple[Any, ...]]] = {}
        for named, owner in found.items():
            if owner is not None:
                by_class.setdefault(owner[0], {})[owner[1]] = named
        for owner_class, keys in by_class.items():
            try:
                self._tell(owner_class, keys, values)
                continue
            except NotEnrolledError:
                pass
            for key, named in keys.items():
                try:
                    self._tell(owner_class, [key], values)
                except NotEnrolledError:
                    self.unknown.add(named)

    def _tell(self, owner_class: Any, owners: Collection[tuple[Any, ...]], values: int) -> None:
        for unlocked in context.unlocked_sessions(self._session):
            unlocked.prepare_write(self._session, owner_class, owners, values)

    def names_owner(self, named: tuple[Any, ...]) -> bool:
        """Whether a row with these values names an owner."""
        path = self._column.path
        return (
            None not in named if path.is_direct else not path.columns or any(one is not None for one in named)
        )

    def owner_name(self, named: tuple[Any, ...]) -> OwnerId | None:
        """The keyring's name for the owner that a row with these values names."""
        found = self._find([named])[named]
        return None if found is None else self._seek.owner(*found)

    def place(self, named: tuple[Any, ...]) -> Place | None:
        """The owner that a row with these values names, with the database and schema of its row."""
        found = self._find([named])[named]
        return None if found is None else Place(*found, self._seek.where(found[0]))

    def prepare_read(self, headers: dict[bytes, int]) -> None:
        """Fetch the keys that these value headers name, as far as a provider holds them."""
        for unlocked in context.unlocked_sessions(self._session):
            if unlocked.on_demand or unlocked.follows:
                for owner_class in self._column.path.owner_classes:
                    unlocked.prepare_read(self._session, owner_class, headers)

    def open(self, field: Field, stored: Any, named: tuple[Any, ...], reference: bytes) -> bytes | None:
        """The plaintext bytes of a stored value of this owner; None if no key here opens the value, or the
        row's owner is not found.

        Raises:
            FormatError, DecryptionError: the value was altered, or belongs to another owner.
        """
        owner = self.owner_name(named)
        return None if owner is None else open_bytes(self._session, field, stored, owner, reference)

    def strangers(self, values: Sequence[tuple[bytes, tuple[Any, ...]]]) -> list[bool]:
        """Say of each value header, given with its row's owner, whether nobody can open the value again: the
        key that the header names is gone, or belongs to another owner."""
        holders = self._holders([header for header, _ in values])
        found = self._find({owner for _, owner in values})
        return [
            (holder := holders.get(header[1:HEADER_SIZE])) is None
            or ((mine := found[owner]) is not None and holder != mine)
            for header, owner in values
        ]

    def has_key(self, header: bytes) -> bool:
        """Whether a value header names a key that the database has, of any owner of these classes."""
        return bool(self._holders([header]))

    def destroyed(self, headers: Iterable[bytes]) -> set[bytes]:
        """Those of these value headers whose keys are destroyed."""
        by_id = {KeyId(bytes=header[1:HEADER_SIZE]): header for header in headers}
        found = set()
        for owner_class in self._column.path.owner_classes:
            c = owner_class.key_class.__table__.c
            for some in chunks(list(by_id)):
                query = select(c.key_id).where(c.key_id.in_(some), c.state == KeyState.DESTROYED)
                rows = self._session.execute(query, bind_arguments={"mapper": owner_class.mapper})
                found |= {by_id[key_id] for (key_id,) in rows}
        return found

    def _holders(self, headers: Iterable[bytes]) -> dict[bytes, tuple[Any, tuple[Any, ...]]]:
        """The class and primary key of the owner of each key that these headers name, by key id."""
        named = {KeyId(bytes=header[1:HEADER_SIZE]) for header in headers if len(header) >= HEADER_SIZE}
        holders: dict[bytes, tuple[Any, tuple[Any, ...]]] = {}
        for owner_class in self._column.path.owner_classes:
            key_id = owner_class.key_class.__table__.c.key_id
            for some in chunks(list(named)):
                query = select(key_id, *owner_class.owner_columns).where(key_id.in_(some))
                rows = self._session.execute(query, bind_arguments={"mapper": owner_class.mapper})
                holders |= {row[0].bytes: (owner_class, tuple(row[1:])) for row in rows}
        return holders

    def are_of(self, header: bytes, owner: tuple[Any, ...]) -> bool:
        """Whether the key that a stored value names is this owner's, as far as is known here."""
        holder = context.owner_of(self._session, header)
        found = self._find([owner])[owner] if holder is not None else None
        return found is None or holder == self._seek.owner(*found)
