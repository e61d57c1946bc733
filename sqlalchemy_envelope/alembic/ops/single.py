"""The operations on an encrypted column without a previous column, and on its CHECK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic.operations import BatchOperations, Operations
from alembic.operations.ops import MigrateOperation

from sqlalchemy_envelope.alembic.ops.batches import table_of

if TYPE_CHECKING:
    from sqlalchemy import Column


@Operations.register_operation("add_encrypted_column")
@BatchOperations.register_operation("add_encrypted_column", "batch_add_encrypted_column")
class AddEncryptedColumnOp(MigrateOperation):
    """Add an encrypted column and its CHECK. SQLite takes a CHECK for a column with the column alone.

    Attributes:
        column: as for `op.add_column`: of the type `sa.LargeBinary()`.
    """

    tag = "add_encrypted_column"

    def __init__(self, table_name: str, column: Column[Any], *, schema: str | None = None) -> None:
        self.table_name = table_name
        self.column = column
        self.schema = schema

    def reverse(self) -> DropEncryptedColumnOp:
        """Drop the column; its CHECK goes with it."""
        return DropEncryptedColumnOp(
            self.table_name, self.column.name, column=self.column, schema=self.schema
        )

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.column)

    @classmethod
    def add_encrypted_column(
        cls, operations: Operations, table_name: str, column: Column[Any], *, schema: str | None = None
    ) -> None:
        """Add a binary column, and a CHECK that lets ciphertext alone into it."""
        operations.invoke(cls(table_name, column, schema=schema))

    @classmethod
    def batch_add_encrypted_column(cls, operations: BatchOperations, column: Column[Any]) -> None:
        """The same at the end of a batch."""
        operations.invoke(cls(column=column, **table_of(operations)))


@Operations.register_operation("drop_encrypted_column")
@BatchOperations.register_operation("drop_encrypted_column", "batch_drop_encrypted_column")
class DropEncryptedColumnOp(MigrateOperation):
    """Drop an encrypted column and its CHECK. SQLite drops no column that a CHECK of its table names.

    Attributes:
        column: the column as it was, to add it again; None in a revision that runs.
    """

    tag = "drop_encrypted_column"

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        column: Column[Any] | None = None,
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.column = column
        self.schema = schema

    def reverse(self) -> AddEncryptedColumnOp:
        """Add the column again, empty.

        Raises:
            ValueError: the column's definition is not known.
        """
        if self.column is None:
            raise ValueError("operation is not reversible; original column is not present")
        return AddEncryptedColumnOp(self.table_name, self.column, schema=self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.column_name)

    @classmethod
    def drop_encrypted_column(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Drop an encrypted column, with every value in it, and its CHECK. SQLite's table is rebuilt if
        needed."""
        operations.invoke(cls(table_name, column_name, schema=schema))

    @classmethod
    def batch_drop_encrypted_column(cls, operations: BatchOperations, column_name: str) -> None:
        """The same at the end of a batch."""
        operations.invoke(cls(column_name=column_name, **table_of(operations)))


class CheckOp(MigrateOperation):
    """An operation on the CHECK of an existing encrypted column.

    Attributes:
        validate: whether the existing rows are checked.
    """

    tag = ""

    def __init__(
        self, table_name: str, column_name: str, *, validate: bool = True, schema: str | None = None
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.validate = validate
        self.schema = schema

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.column_name)


@Operations.register_operation("create_encrypted_check")
class CreateEncryptedCheckOp(CheckOp):
    """Let the database refuse values that are not ciphertext in a column."""

    tag = "create_encrypted_check"

    def reverse(self) -> DropEncryptedCheckOp:
        """Let everything in again."""
        return DropEncryptedCheckOp(
            self.table_name, self.column_name, validate=self.validate, schema=self.schema
        )

    @classmethod
    def create_encrypted_check(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        validate: bool = True,
        schema: str | None = None,
    ) -> None:
        """Add the CHECK of an existing encrypted column. Refused while the column holds anything else.

        Args:
            validate: on PostgreSQL, False leaves the existing rows unread; new writes are checked all the
                same.
        """
        operations.invoke(cls(table_name, column_name, validate=validate, schema=schema))


@Operations.register_operation("drop_encrypted_check")
class DropEncryptedCheckOp(CheckOp):
    """Drop the CHECK of an encrypted column."""

    tag = "drop_encrypted_check"

    def reverse(self) -> CreateEncryptedCheckOp:
        """Add the CHECK again."""
        return CreateEncryptedCheckOp(
            self.table_name, self.column_name, validate=self.validate, schema=self.schema
        )

    @classmethod
    def drop_encrypted_check(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Drop the CHECK of an encrypted column; the column stays."""
        operations.invoke(cls(table_name, column_name, schema=schema))
