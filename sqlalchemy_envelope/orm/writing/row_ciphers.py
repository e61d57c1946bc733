"""Ciphers for the values of a row: bound to the key of its owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import LockedError, NotEnrolledError, StatementRefusedError
from sqlalchemy_envelope.keys.model import KeyState
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex
from sqlalchemy_envelope.orm.writing.missing_owner import names_of, new_owner
from sqlalchemy_envelope.orm.writing.newcomers import ENROLLING_OWNER, enrolling_owner, enrolling_row
from sqlalchemy_envelope.orm.writing.previous_columns import leave_pending

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.crypto.aead import BoundCipher, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.writing.newcomers import Enrolling
    from sqlalchemy_envelope.orm.writing.row_owners import RowOwners
    from sqlalchemy_envelope.orm.writing.row_references import RowReferences
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]


class RowCiphers:
    """The ciphers of one statement's rows."""

    __slots__ = ("_as_bytearray", "_owner", "_owners", "_references", "_rows")

    def __init__(self, rows: WrittenRows, owners: RowOwners, references: RowReferences) -> None:
        self._rows = rows
        self._owners = owners
        self._references = references
        self._owner: tuple[Enrolling | None, OwnerId] | None = None
        # CPython's sqlite3 looks for an adapter for every `bytes`, and takes a bytearray as it is: half the
        # time.
        self._as_bytearray = rows.connection.dialect.name == "sqlite"

    def of(
        self, row: dict[str, Any], path: OwnerPath, columns: Sequence[EncryptedColumn]
    ) -> list[BoundCipher]:
        """The ciphers of the columns that a row writes for one owner. Values that wait for the migration are
        taken out of the row.

        Raises:
            LockedError: the owner's key is not open here.
            NotEnrolledError: the owner has no keys.
            StatementRefusedError: the row's owner is not known.
        """
        self._owner = None
        if self._rows.plan.dual:
            return self._of_or_pending(row, path, columns)
        return self._of_owner(row, path, self._in_written_scopes(row, columns))

    def _of_or_pending(
        self, row: dict[str, Any], path: OwnerPath, columns: Sequence[EncryptedColumn]
    ) -> list[BoundCipher]:
        """The ciphers of a row while its values are moved. Without a key, or without a known owner, the
        values of columns with the policy "both" stay in the previous column, and these columns get no
        cipher."""
        try:
            if any(column.row_bound and not self._rows.is_empty(row, [column]) for column in columns):
                self._references.of(row)
            return self._of_owner(row, path, self._in_written_scopes(row, columns))
        except (LockedError, NotEnrolledError, StatementRefusedError):
            if not leave_pending(self._rows, row, columns):
                raise
        left = [column for column in columns if not self._rows.is_empty(row, [column])]
        return self._of_owner(row, path, left) if left else []

    def _in_written_scopes(self, row: Row, columns: Sequence[EncryptedColumn]) -> Sequence[EncryptedColumn]:
        """The columns of the scopes that a row writes. The keys of other scopes may be held by others
        alone."""
        if all([column.scope == columns[0].scope for column in columns]):  # noqa: C419
            return columns
        scopes = {column.scope for column in columns if not self._rows.is_empty(row, [column])}
        return [column for column in columns if column.scope in scopes]

    def _of_owner(self, row: Row, path: OwnerPath, columns: Sequence[EncryptedColumn]) -> list[BoundCipher]:
        rows, inserts_owner = self._rows, path.is_self and self._rows.inserts
        if inserts_owner:
            newcomer = enrolling_row(rows.session, path.owner_class, row, self._attributes())
            if newcomer is not None:
                self._owner = newcomer, b""
                return [self._column_cipher(newcomer, b"", column) for column in columns]
        written = rows.first_written(row, columns)
        owner_class, key = self._owners.owner(row, path, written)
        owner = self._owners.name(owner_class, key)
        newcomer = enrolling_owner(rows.session, owner)
        self._owner = newcomer, owner
        if newcomer is None:
            if inserts_owner and not rows.upserts:
                raise new_owner(written)
            self._owners.prepare_write(owner_class, key, len(columns))
        try:
            return [self._column_cipher(newcomer, owner, column) for column in columns]
        except LockedError:
            # While values are moved, many rows wait for their owner: asked of each, this would cost a query.
            # A connection without a session may be in no transaction, and the question would begin one.
            if rows.plan.dual or rows.session is None:
                raise
            states = self._owners.key_states(owner_class, key)
            if states - {KeyState.DESTROYED.value}:
                raise
        where = f"{rows.plan.table.name}.{written.key}"
        if states:
            raise context.destroyed_keys(where, owner_class.name)
        raise context.no_keys(
            where, owner_class.name, rows.session, is_there=self._owners.is_there(owner_class, key)
        )

    def _attributes(self) -> dict[str, str]:
        """The attributes by which columns are mapped, to find the new owner whose row this is. Indexes and
        their guards are left out: a row has tags by now that no object holds."""
        plan = self._rows.plan
        return {
            column.key: plan.attributes.get(column.key, column.key)
            for column in plan.table.columns
            if not column.primary_key
            and column.key not in plan.converting
            and not isinstance(column.type, BlindIndex)
        }

    def hashers(self, indexes: Sequence[IndexedColumn]) -> list[tuple[IndexedColumn, IndexHasher | None]]:
        """What makes the tags of these indexes, for the owner whose ciphers `of` gave last. None if the
        owner's index key is not open here: who writes for a locked owner has none."""
        return [(index, self._hasher(index)) for index in indexes] if indexes else []

    def _hasher(self, index: IndexedColumn) -> IndexHasher | None:
        if self._owner is None:
            return None  # the values wait for the migration
        newcomer, owner = self._owner
        if newcomer is not None:
            return newcomer.keyring.index_writer(ENROLLING_OWNER, index.data_scope, index)
        return context.find_index_writer(self._rows.session, owner, index.data_scope, index)

    def _column_cipher(
        self, newcomer: Enrolling | None, owner: OwnerId, column: EncryptedColumn
    ) -> BoundCipher:
        """A column's cipher under an owner's key. A new owner's key is in a keyring of its own, any other
        owner's in an unlocked session."""
        cipher = self._cipher(newcomer, owner, column)
        name = self._rows.parameter(column.key)
        return cipher.bind(name, column.encode_converted, column, as_bytearray=self._as_bytearray)

    def _cipher(self, newcomer: Enrolling | None, owner: OwnerId, column: EncryptedColumn) -> ValueCipher:
        field = column.type.field
        if newcomer is not None:
            cipher = newcomer.keyring.writer(ENROLLING_OWNER, column.scope, field)
        else:
            cipher = context.find_writer(self._rows.session, owner, column.scope, field)
        if cipher is None:
            self._owners.require_here(column.path.owner_classes)
            context.refuse_replaced(self._rows.session, owner, column.path.owner_class)
            raise context.locked(
                f"{self._rows.plan.table.name}.{column.key}, of this row's {names_of(column.path)},",
                self._rows.session,
                column.path.owner_class,
                column.scope,
                use="write",
            )
        return cipher
