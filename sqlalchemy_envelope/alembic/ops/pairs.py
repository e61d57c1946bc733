"""The two operations for large tables, and their reverses: add a second column, and drop the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import BatchOperations, Operations
from alembic.operations.ops import MigrateOperation

from sqlalchemy_envelope.alembic.ops.batches import table_of

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine


class PairOp(MigrateOperation):
    """An operation on two columns of a table: the previous column and the encrypted column.

    Attributes:
        tag: the name of the operation.
        check: whether the encrypted column has a CHECK from the start.
    """

    tag = ""

    def __init__(
        self, table_name: str, previous: str, encrypted: str, *, check: bool = True, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.previous = previous
        self.encrypted = encrypted
        self.check = check
        self.schema = schema

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.previous, self.encrypted)


@Operations.register_operation("expand_encrypted_column")
@BatchOperations.register_operation("expand_encrypted_column", "batch_expand_encrypted_column")
class ExpandEncryptedColumnOp(PairOp):
    """Add the encrypted column, and begin to notice writes to the previous column alone."""

    tag = "expand_encrypted_column"

    def reverse(self) -> UndoExpandEncryptedColumnOp:
        """Drop the column and the trigger again."""
        return UndoExpandEncryptedColumnOp(
            self.table_name, self.previous, self.encrypted, check=self.check, schema=self.schema
        )

    @classmethod
    def expand_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        check: bool = True,
        schema: str | None = None,
    ) -> None:
        """Add the binary column `encrypted`, and a trigger: a write to `previous` alone makes the row
        pending. `sqlalchemy-envelope migrate run` fills the column.

        Args:
            check: whether a CHECK lets ciphertext alone into the new column: on SQLite from here on, on
                PostgreSQL from the first `migrate run`. MySQL and MariaDB would copy the table for it. There
                `op.create_encrypted_check` adds the CHECK at a time when the copy is acceptable.
        """
        operations.invoke(cls(table_name, previous, encrypted, check=check, schema=schema))

    @classmethod
    def batch_expand_encrypted_column(
        cls, operations: BatchOperations, previous: str, encrypted: str, *, check: bool = True
    ) -> None:
        """The same at the end of a batch, since a table that is rebuilt loses its triggers."""
        operations.invoke(cls(previous=previous, encrypted=encrypted, check=check, **table_of(operations)))


@Operations.register_operation("undo_expand_encrypted_column")
@BatchOperations.register_operation("undo_expand_encrypted_column", "batch_undo_expand_encrypted_column")
class UndoExpandEncryptedColumnOp(PairOp):
    """Drop the encrypted column and the trigger."""

    tag = "undo_expand_encrypted_column"

    def reverse(self) -> ExpandEncryptedColumnOp:
        """Add the column and the trigger again."""
        return ExpandEncryptedColumnOp(
            self.table_name, self.previous, self.encrypted, check=self.check, schema=self.schema
        )

    @classmethod
    def undo_expand_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        schema: str | None = None,
    ) -> None:
        """Drop the encrypted column and the trigger. Refused while a value is in this column alone:
        `sqlalchemy-envelope migrate reverse` moves such values back."""
        operations.invoke(cls(table_name, previous, encrypted, schema=schema))

    @classmethod
    def batch_undo_expand_encrypted_column(
        cls, operations: BatchOperations, previous: str, encrypted: str
    ) -> None:
        """The same at the end of a batch."""
        operations.invoke(cls(previous=previous, encrypted=encrypted, **table_of(operations)))


class ContractOp(PairOp):
    """The contract, or its reverse.

    Attributes:
        existing_type: the type of the previous column, to add it again.
        unverified: the contract does without a clean verification.
        accept_sample, accept_locked: the contract takes the verification of a sample, or a verification with
            up to so many values that no provider opens.
        name: the migration's name in the state table, `table.attribute`, if the attribute has neither
            column's name.
    """

    def __init__(
        self,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        unverified: bool = False,
        accept_sample: bool = False,
        accept_locked: int = 0,
        name: str | None = None,
        schema: str | None = None,
    ) -> None:
        super().__init__(table_name, previous, encrypted, schema=schema)
        self.existing_type = existing_type
        self.unverified = unverified
        self.accept_sample = accept_sample
        self.accept_locked = accept_locked
        self.name = name

    def _arguments(self) -> dict[str, Any]:
        return {
            "table_name": self.table_name,
            "previous": self.previous,
            "encrypted": self.encrypted,
            "existing_type": self.existing_type,
            "unverified": self.unverified,
            "accept_sample": self.accept_sample,
            "accept_locked": self.accept_locked,
            "name": self.name,
            "schema": self.schema,
        }


@Operations.register_operation("contract_encrypted_column")
@BatchOperations.register_operation("contract_encrypted_column", "batch_contract_encrypted_column")
class ContractEncryptedColumnOp(ContractOp):
    """Drop the previous column, after every value is in the encrypted column and was verified."""

    tag = "contract_encrypted_column"

    def reverse(self) -> UndoContractEncryptedColumnOp:
        """Add the previous column again, empty."""
        return UndoContractEncryptedColumnOp(**self._arguments())

    @classmethod
    def contract_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        unverified: bool = False,
        accept_sample: bool = False,
        accept_locked: int = 0,
        name: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Drop the column `previous` and every trigger of the migration. Refused while a row has a
        previous value alone, or without a clean `sqlalchemy-envelope migrate verify` and `cutover`.

        Args:
            existing_type: the column's type, so that a downgrade can add it again.
            unverified: do without the verification. A row with a previous value alone is still refused.
            accept_sample: take the verification of a sample.
            accept_locked: how many values may be unverified because only their owners hold the keys.
            name: the migration's name, `table.attribute`, where the attribute has neither column's name.
        """
        operations.invoke(
            cls(
                table_name,
                previous,
                encrypted,
                existing_type=existing_type,
                unverified=unverified,
                accept_sample=accept_sample,
                accept_locked=accept_locked,
                name=name,
                schema=schema,
            )
        )

    @classmethod
    def batch_contract_encrypted_column(
        cls,
        operations: BatchOperations,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        unverified: bool = False,
        accept_sample: bool = False,
        accept_locked: int = 0,
        name: str | None = None,
    ) -> None:
        """The same at the end of a batch."""
        operations.invoke(
            cls(
                previous=previous,
                encrypted=encrypted,
                existing_type=existing_type,
                unverified=unverified,
                accept_sample=accept_sample,
                accept_locked=accept_locked,
                name=name,
                **table_of(operations),
            )
        )


@Operations.register_operation("undo_contract_encrypted_column")
@BatchOperations.register_operation("undo_contract_encrypted_column", "batch_undo_contract_encrypted_column")
class UndoContractEncryptedColumnOp(ContractOp):
    """Add the previous column again, empty, and the tracking trigger."""

    tag = "undo_contract_encrypted_column"

    def reverse(self) -> ContractEncryptedColumnOp:
        """Drop the previous column again."""
        return ContractEncryptedColumnOp(**self._arguments())

    @classmethod
    def undo_contract_encrypted_column(
        cls,
        operations: Operations,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        name: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Add the column `previous` again, empty, and the trigger. `sqlalchemy-envelope migrate reverse`
        moves the values back."""
        operations.invoke(
            cls(table_name, previous, encrypted, existing_type=existing_type, name=name, schema=schema)
        )

    @classmethod
    def batch_undo_contract_encrypted_column(
        cls,
        operations: BatchOperations,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        name: str | None = None,
    ) -> None:
        """The same at the end of a batch."""
        operations.invoke(
            cls(
                previous=previous,
                encrypted=encrypted,
                existing_type=existing_type,
                name=name,
                **table_of(operations),
            )
        )
