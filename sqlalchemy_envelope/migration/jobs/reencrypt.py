"""Re-encrypt stored values under their owners' current data keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import and_

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE
from sqlalchemy_envelope.exceptions import ConfigurationError, DecryptionError, FormatError
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.stored import encrypted_again, headers_of, open_stored
from sqlalchemy_envelope.migration.jobs.work import Work

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.migration.jobs.work import Step


class Reencrypt(Work):
    """Re-encrypt stored values that are not under their owner's current data key.

    Args:
        owner: the primary key of an owner, to do this owner's rows alone; None for all owners.
    """

    job = Job.REENCRYPT

    def __init__(self, owner: tuple[Any, ...] | None = None) -> None:
        self._owner = owner
        # Many owners may re-encrypt at the same moment, each in a request of its own.
        self.part = "" if owner is None else f":{uuid4().hex}"

    @classmethod
    def of_owner(cls, column: MigratingColumn, owner: object) -> Reencrypt:
        """The work on the rows of this owner, with the keys that are unlocked here.

        Raises:
            ConfigurationError: the column's own table does not name the owner of its rows.
        """
        key = column.path.owner_class.mapper.primary_key_from_instance(owner)
        if column.path.columns and not column.path.is_direct:
            raise ConfigurationError(
                f"reencrypt(owner=...) needs a column that names its owner itself; {column.name} leads to it "
                "through others. Leave `owner` out: whoever is unlocked here gets their values encrypted "
                "anew."
            )
        return cls(tuple(key) if column.path.columns else None)

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value; the rows of `owner` alone, if it is given."""
        where: ColumnElement[bool] = rows.encrypted.is_not(None)
        if self._owner is None:
            return where
        return and_(where, *(mine == key for mine, key in zip(rows.owners, self._owner, strict=True)))

    def work(self, session: Session, rows: Rows, parts: list[Any], step: Step) -> None:
        """Re-encrypt a chunk."""
        keys = OwnerCiphers(session, rows.column)
        writers = keys.writers({owner for _, owner, *_ in parts if keys.names_owner(owner)}, len(parts))
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        made, locked = [], list[bytes]()
        for position, owner, _, _, stored in parts:
            writer = writers.get(owner)
            if writer is not None and stored is not None and bytes(stored[:HEADER_SIZE]) == writer.header:
                continue
            try:
                plaintext = open_stored(rows.column, keys, position, stored, owner)
            except (DecryptionError, FormatError):
                step.bad += 1  # the value stays as it is, and is counted
                continue
            if plaintext is None or writer is None:
                locked.append(b"" if stored is None else bytes(stored[:HEADER_SIZE]))
            else:
                made.append((position, stored, encrypted_again(rows.column, writer, position, plaintext)))
        destroyed = keys.destroyed({one for one in locked if len(one) == HEADER_SIZE})
        step.shredded += sum(one in destroyed for one in locked)
        step.locked += sum(one not in destroyed for one in locked)
        step.rows = rows.replace_encrypted(session.connection(), made)
