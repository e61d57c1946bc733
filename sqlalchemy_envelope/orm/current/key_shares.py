"""The shares of one class of owners, in the second database.

Each call is a short transaction of its own there. So a share is committed before the key slot that needs it:
no crash leaves a slot whose share was not stored. And no session keeps a transaction of the second database.
"""

from __future__ import annotations

import datetime as dt
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import DBAPIError, UnboundExecutionError

from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.exceptions import ConfigurationError, KeyShareError
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.databases import database_name
from sqlalchemy_envelope.orm.tables.location import bind_of, schema_on
from sqlalchemy_envelope.orm.tables.missing_tables import missing_tables
from sqlalchemy_envelope.orm.tables.own_transaction import own_transaction
from sqlalchemy_envelope.orm.tables.rows import chunks, given, made_once
from sqlalchemy_envelope.orm.tables.stored_rows import raw

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Iterator

    from sqlalchemy import Connection, Engine, Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

_STORED_FOR = 600.0
"""The seconds for which a share that was stored counts as stored. The sweep keeps it for longer than that."""


class Redacted(bytes):
    """Bytes that do not show themselves, in a log of statements or an error of the driver."""

    def __repr__(self) -> str:
        return "<redacted>"


class KeyShares:
    """Reads and writes the shares of a class of owners."""

    def __init__(self, session: Session, owner_class: OwnerClass) -> None:
        self._session = session
        self._class = owner_class

    @property
    def are_wanted(self) -> bool:
        """Whether new secret slots get a share."""
        return self._class.has_shares

    def new(self) -> KeyShare | None:
        """A fresh share, which the store of the slots will store; None if the class has none."""
        return KeyShare.generate() if self.are_wanted else None

    def load(self, share_ids: Iterable[uuid.UUID]) -> dict[uuid.UUID, KeyShare | KeyShareError]:
        """These shares, or in place of each why it cannot be had. One query.

        Raises:
            ConfigurationError: the second database is the first one, or lacks the table.
        """
        wanted = list(dict.fromkeys(share_ids))
        found: dict[uuid.UUID, object] = {}
        if wanted and self._class.share_class is not None:
            query = made_once(self._class.selects, "shares", self._query)
            with self.transaction() as connection:
                for some in chunks(wanted):
                    found.update(map(tuple, connection.execute(query, {"ids": some})))
        return {one: self._read(one, found.get(one)) for one in wanted}

    def _query(self) -> Any:
        c = self.table.c
        return select(c.share_id, raw(c.share)).where(given([c.share_id], "ids"))

    def _read(self, share_id: uuid.UUID, data: object) -> KeyShare | KeyShareError:
        if data is None:
            return self._missing(share_id)
        try:
            share = KeyShare.read(share_id, data)
        except KeyShareError as altered:
            return altered
        share.stored_at = time.monotonic()
        return share

    def _missing(self, share_id: uuid.UUID) -> KeyShareError:
        name = self._class.name
        if self._class.share_class is None:
            return KeyShareError(
                f"A key slot of this {name} needs a share from a second database, and its class has none: "
                f"declare `class {name}(KeyOwner, Base, key_shares=True)`, as it was when the slot was made."
            )
        return KeyShareError(
            f"The second database has no share {share_id.hex[:8]}, which a key slot of this {name} needs. "
            "Whether the secret is right cannot be told. One of the two databases was set back to an older "
            f"state, or the share was deleted: put its row back into {self.table.fullname} from a backup."
        )

    def store(self, shares: Iterable[KeyShare]) -> None:
        """Store shares, and commit them, before the slots that need them are written.

        Raises:
            ConfigurationError: as `load`.
        """
        now = time.monotonic()
        due = [
            # The slots of several root keys have one share.
            one
            for one in {share.id: share for share in shares}.values()
            if one.stored_at is None or now - one.stored_at > _STORED_FOR
        ]
        if not due:
            return
        schema = self._schema()
        with self.transaction() as connection:
            # With one connection it is the session's own transaction, which may be rolled back.
            is_own = session_of(connection) is None
            # Stored before, and its slot was rolled back since: the sweep may have deleted it.
            gone = [
                one
                for one in due
                if (is_own and one.stored_at is None) or not self._use_again(connection, one)
            ]
            if gone:
                connection.execute(insert(self.table), [self._row(one, schema) for one in gone])
        for one in due if is_own else ():
            one.stored_at = now

    def _use_again(self, connection: Connection, share: KeyShare) -> bool:
        statement = update(self.table).where(self.table.c.share_id == share.id)
        return bool(connection.execute(statement.values(unused_since=None)).rowcount)

    def _schema(self) -> str:
        """The schema in which this session writes the slots."""
        mapper = self._class.mapper
        return schema_on(self._session.connection(bind_arguments=bind_for(self._session, mapper)), mapper)

    def _row(self, share: KeyShare, schema: str) -> dict[str, Any]:
        return {
            "share_id": share.id,
            "share": Redacted(share.buffer),
            "slot_schema": schema,
            "created_at": dt.datetime.now(dt.UTC),
        }

    @property
    def table(self) -> Table:
        """The table of the shares."""
        table: Table = self._class.share_class.__table__
        return table

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A short transaction of its own in the second database.

        Raises:
            ConfigurationError: the second database is the first one, or lacks the table.
        """
        mapper = self._class.share_class.__mapper__
        self._require_second(mapper)
        try:
            with own_transaction(self._session, mapper) as connection:
                yield connection
        except DBAPIError as error:
            if missing_tables(error, select(self.table)) is None:
                raise
            cause = error.orig
        else:
            return
        raise ConfigurationError(
            f"The second database has no table {self.table.fullname}: make it there with a revision of "
            f"Alembic, or with `{self._class.name}.__share_class__.__table__.create(second_engine)`."
        ) from cause

    def _require_second(self, mapper: Any) -> None:
        """Refuse shares beside the slots that need them: they would protect nothing."""
        try:
            second = bind_of(self._session, mapper).engine
        except UnboundExecutionError:
            second = None
        first = bind_of(self._session, self._class.mapper).engine
        if second is None or _same(first, second):
            name = self._class.name
            raise ConfigurationError(
                f"The shares of {name} have no database of their own, and beside its keys they protect "
                "nothing. Tell the session where the second database is: `Session(engine, "
                f"binds={{{name}.__share_class__: second_engine}})`."
            )


def _same(first: Engine, second: Engine) -> bool:
    # Without the realm: an application has one for both.
    return first is second or database_name(first, None) == database_name(second, None)
