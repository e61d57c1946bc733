"""Encryption of a statement's rows: each owner's rows together, column by column.

The hot path of every write. Rows of one owner stand together more often than not, so an owner's ciphers are
kept for the whole statement.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.sql.elements import ClauseElement

from sqlalchemy_envelope.crypto.aead import NO_ROW, Batch
from sqlalchemy_envelope.orm.columns.sealed import CIPHERTEXT
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import as_indexed, tokenized_of_table
from sqlalchemy_envelope.orm.writing.defaults import with_defaults
from sqlalchemy_envelope.orm.writing.index_tags import IndexTags
from sqlalchemy_envelope.orm.writing.owner_columns import require_uniform
from sqlalchemy_envelope.orm.writing.previous_columns import add_previous
from sqlalchemy_envelope.orm.writing.row_ciphers import RowCiphers
from sqlalchemy_envelope.orm.writing.row_moves import check_row_moves
from sqlalchemy_envelope.orm.writing.row_references import RowReferences
from sqlalchemy_envelope.orm.writing.tokens.token_rows import TokenRows
from sqlalchemy_envelope.orm.writing.unstorable import unstorable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy_envelope.crypto.aead import BoundCipher
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.writing.index_tags import Hashers
    from sqlalchemy_envelope.orm.writing.row_owners import RowOwners
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

    Row = Mapping[str, Any]

_CHUNK = 256
"""Rows that are encrypted at a time: what they take fits into the processor's cache."""
_FEW = 4
"""Up to so many rows of one owner are encrypted row by row: columns have a cost of their own."""
_ABSENT = object()


class _OwnedRows:
    """Rows of one owner, and their ciphers.

    Attributes:
        bound: the parameters with row-bound values.
        hashers: what makes the tags of the indexes under the owner's key.
    """

    __slots__ = ("bound", "ciphers", "hashers", "rows")

    def __init__(self, ciphers: list[BoundCipher], hashers: Hashers) -> None:
        self.ciphers = ciphers
        self.hashers = hashers
        self.bound = [name for name, _, _, _, _, row_bound, _ in ciphers if row_bound]
        self.rows: list[dict[str, Any]] = []


class _Group(NamedTuple):
    """Encrypted columns of one path to their owner.

    Attributes:
        owner_key: the parameter that names the owner, if a single one does.
        known: by the value of that parameter, the owner's rows.
        indexes: the blind indexes of these columns that are under the owner's key.
    """

    path: OwnerPath
    columns: Sequence[EncryptedColumn]
    owner_key: str | None
    known: dict[Any, _OwnedRows]
    indexes: Sequence[IndexedColumn]


class RowEncryption:
    """Encrypts the rows of one statement.

    Attributes:
        tokens: the tags of its texts; None if its table has no token index.
    """

    __slots__ = ("_ciphers", "_groups", "_owners", "_prepares", "_references", "_rows", "_tags", "tokens")

    def __init__(self, rows: WrittenRows, owners: RowOwners, options: Any) -> None:
        self._rows = rows
        self._owners = owners
        self._prepares = bool(not rows.inserts or rows.plan.dual or rows.plan.converting)
        self._references = RowReferences(rows)
        self._ciphers = RowCiphers(rows, owners, self._references)
        indexes = indexes_of_table(rows.plan.table)
        tokenized = tokenized_of_table(rows.plan.table)
        self._tags = IndexTags(rows, options) if indexes else None
        self.tokens = TokenRows(rows, options) if tokenized else None
        owned = [one for one in (*indexes, *map(as_indexed, tokenized)) if one.scope != "server"]
        self._groups = [
            _Group(
                path,
                columns,
                self._owner_key(path),
                {},
                [one for one in owned if any(one.sources[0].column is each.column for each in columns)],
            )
            for path, columns in rows.plan.groups
        ]

    def _owner_key(self, path: OwnerPath) -> str | None:
        is_single = len(path.keys) == 1 and path.is_direct and self._rows.plan.has(path)
        return self._rows.parameter(path.keys[0]) if is_single else None

    def encrypted(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Copies of the rows, with ciphertext in place of the values of encrypted columns."""
        rows = self._complete(rows)
        if len(rows) > 1:
            self._owners.find_all(rows)
        batch = Batch(len(rows) * len(self._rows.plan.columns), CIPHERTEXT)
        encrypted: list[dict[str, Any]] = []
        for start in range(0, len(rows), _CHUNK):
            encrypted += self._chunk(batch, rows[start : start + _CHUNK])
        return encrypted

    def _complete(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows with the defaults that their values depend on."""
        plan, notes = self._rows.plan, self._rows.notes
        if self._rows.inserts and plan.has_defaults:
            rows = with_defaults(self._rows, rows)
        require_uniform(self._rows, rows)
        if notes is not None and notes.to_rewrite and not self._rows.inserts:
            notes.sent(plan.columns, [self._rows.identity(row) for row in rows])
        return rows

    def _chunk(self, batch: Batch, rows: Sequence[Row]) -> list[dict[str, Any]]:
        chunk = [dict(row) for row in rows]
        if self._prepares:
            for row in chunk:
                self._prepare(row)
        if self._tags is not None:
            self._tags.add(chunk)
        if self.tokens is not None:
            self.tokens.add(chunk)
        # All owners first: finding them compares plaintext of the row with what objects hold.
        by_owner = [owned for group in self._groups for owned in self._by_owner(chunk, group)]
        for owned in by_owner:
            if self._tags is not None and owned.hashers:
                self._tags.add_owned(owned.rows, owned.hashers)
            if self.tokens is not None and owned.hashers:
                self.tokens.add_owned(owned.rows, owned.hashers)
            self._encrypt(batch, owned)
        return chunk

    def _prepare(self, row: dict[str, Any]) -> None:
        """Add a row's previous values, convert its values, and refuse a move that leaves a value behind."""
        if self._rows.plan.dual:
            add_previous(self._rows, row)
        if self._rows.plan.converting:
            self._convert(row)
        if not self._rows.inserts:
            check_row_moves(self._rows, row)

    def _by_owner(self, rows: list[dict[str, Any]], group: _Group) -> list[_OwnedRows]:
        """The rows of each owner. Rows without a value in the group's columns are left out."""
        name = group.owner_key
        owners = [None if name is None else row.get(name) for row in rows]
        first = group.known.get(owners[0])
        if first is not None and owners.count(owners[0]) == len(owners):  # as most are
            first.rows = rows
            return [first]
        by_owner: list[_OwnedRows] = []
        for row, owner in zip(rows, owners, strict=True):
            owned = group.known.get(owner) or self._owned_rows(row, group)
            if owned is None:
                continue
            if not owned.rows:
                by_owner.append(owned)
            owned.rows.append(row)
        return by_owner

    def _owned_rows(self, row: dict[str, Any], group: _Group) -> _OwnedRows | None:
        """The ciphers for a row and for other rows of its owner; None if the row has no value."""
        columns = group.columns
        if self._rows.is_empty(row, columns):
            return None
        ciphers = self._ciphers.of(row, group.path, columns)
        owned = _OwnedRows(ciphers, self._ciphers.hashers(group.indexes))
        if len(owned.ciphers) == len(columns) and group.owner_key is not None:
            owner = row.get(group.owner_key)
            if owner is not None:
                group.known[owner] = owned
        return owned

    def _encrypt(self, batch: Batch, owned: _OwnedRows) -> None:
        """Encrypt the rows of one owner, in place."""
        rows, owned.rows = owned.rows, []
        tails = self._references.tails(owned.bound, rows)
        if len(rows) > _FEW and batch.encrypt_rows(rows, owned.ciphers, tails):
            return
        for row, tail in zip(rows, tails or repeat(NO_ROW), strict=False):
            failed = batch.encrypt(row, owned.ciphers, tail)
            if failed is not None:
                error = unstorable(*failed)
                del rows, row, failed
                raise error

    def _convert(self, row: dict[str, Any]) -> None:
        """Let the decorators among the inner types convert values, as in a plain column: also from None
        and to None. While values are moved None stays as it is: NULL says that the previous column has the
        value."""
        for key, column in self._rows.plan.converting.items():
            name = self._rows.parameter(key)
            value = row.get(name, _ABSENT)
            if value is _ABSENT or (value is None and key in self._rows.plan.dual):
                continue
            if isinstance(value, ClauseElement):
                raise unstorable(column, value, None)  # a decorator might take its text for a value
            try:
                row[name] = column.convert(value)  # type: ignore[misc]  # that is why it is among them
                continue
            except Exception:  # noqa: BLE001, S110 - raised below, chained to nothing that holds the value
                pass
            raise unstorable(column, value, None)
