"""What can be done to a column in a migration: two operations for large tables, one for small ones, and
what undoes each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from alembic.operations import BatchOperations, Operations
from alembic.operations.ops import MigrateOperation

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.types import TypeEngine

Owner = str | tuple[str, ...] | None


def _table_of(operations: BatchOperations) -> dict[str, Any]:
    """The table that a batch is about."""
    return {"table_name": operations.impl.table_name, "schema": operations.impl.schema}


class PairOp(MigrateOperation):
    """An operation on two columns of a table: the one with the previous values, and the encrypted one.

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
    """Add the encrypted column beside the previous one, and begin to notice who writes that one alone."""

    tag = "expand_encrypted_column"

    def reverse(self) -> UndoExpandEncryptedColumnOp:
        """Take both away again."""
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
        """Add the binary column `encrypted`, and a trigger: whoever writes `previous` alone makes the row
        pending. `sqlalchemy-envelope migrate run` fills the column.

        Args:
            check: whether a CHECK lets ciphertext alone into the new column: on SQLite from here on, on
                PostgreSQL from the first `migrate run`. MySQL and MariaDB would copy the table for it:
                `op.create_encrypted_check` adds it there when that may be.
        """
        operations.invoke(cls(table_name, previous, encrypted, check=check, schema=schema))

    @classmethod
    def batch_expand_encrypted_column(
        cls, operations: BatchOperations, previous: str, encrypted: str, *, check: bool = True
    ) -> None:
        """The same at the end of a batch: a table that is built anew loses its triggers."""
        operations.invoke(cls(previous=previous, encrypted=encrypted, check=check, **_table_of(operations)))


@Operations.register_operation("undo_expand_encrypted_column")
@BatchOperations.register_operation("undo_expand_encrypted_column", "batch_undo_expand_encrypted_column")
class UndoExpandEncryptedColumnOp(PairOp):
    """Drop the encrypted column and the trigger."""

    tag = "undo_expand_encrypted_column"

    def reverse(self) -> ExpandEncryptedColumnOp:
        """Add both again."""
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
        """Drop the encrypted column and the trigger; refused while a value is nowhere else:
        `sqlalchemy-envelope migrate reverse` moves such values back."""
        operations.invoke(cls(table_name, previous, encrypted, schema=schema))

    @classmethod
    def batch_undo_expand_encrypted_column(
        cls, operations: BatchOperations, previous: str, encrypted: str
    ) -> None:
        """The same at the end of a batch."""
        operations.invoke(cls(previous=previous, encrypted=encrypted, **_table_of(operations)))


class ContractOp(PairOp):
    """The contract, or what undoes it.

    Attributes:
        existing_type: the type of the previous column, to make it again.
        unverified: the contract does without a clean verification.
        name: the migration's name in the state table, where it is neither column's: `table.attribute`.
    """

    def __init__(
        self,
        table_name: str,
        previous: str,
        encrypted: str,
        *,
        existing_type: TypeEngine[Any] | None = None,
        unverified: bool = False,
        name: str | None = None,
        schema: str | None = None,
    ) -> None:
        super().__init__(table_name, previous, encrypted, schema=schema)
        self.existing_type = existing_type
        self.unverified = unverified
        self.name = name

    def _arguments(self) -> dict[str, Any]:
        return {
            "table_name": self.table_name,
            "previous": self.previous,
            "encrypted": self.encrypted,
            "existing_type": self.existing_type,
            "unverified": self.unverified,
            "name": self.name,
            "schema": self.schema,
        }


@Operations.register_operation("contract_encrypted_column")
@BatchOperations.register_operation("contract_encrypted_column", "batch_contract_encrypted_column")
class ContractEncryptedColumnOp(ContractOp):
    """Drop the previous column, once every value is in the encrypted one and was verified."""

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
        name: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Drop the column `previous` and every trigger of the migration; refused while a row has a
        previous value alone, or without a clean `sqlalchemy-envelope migrate verify` and `cutover`.

        Args:
            existing_type: its type, so that a downgrade can make it again.
            unverified: do without the verification. A row with a previous value alone is still refused.
            name: the migration's name, `table.attribute`, where the attribute has neither column's name.
        """
        operations.invoke(
            cls(
                table_name,
                previous,
                encrypted,
                existing_type=existing_type,
                unverified=unverified,
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
        name: str | None = None,
    ) -> None:
        """The same at the end of a batch."""
        operations.invoke(
            cls(
                previous=previous,
                encrypted=encrypted,
                existing_type=existing_type,
                unverified=unverified,
                name=name,
                **_table_of(operations),
            )
        )


@Operations.register_operation("undo_contract_encrypted_column")
@BatchOperations.register_operation("undo_contract_encrypted_column", "batch_undo_contract_encrypted_column")
class UndoContractEncryptedColumnOp(ContractOp):
    """Add the previous column again, empty, and the tracking trigger."""

    tag = "undo_contract_encrypted_column"

    def reverse(self) -> ContractEncryptedColumnOp:
        """Drop it again."""
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
                **_table_of(operations),
            )
        )


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
        operations.invoke(cls(column=column, **_table_of(operations)))


@Operations.register_operation("drop_encrypted_column")
@BatchOperations.register_operation("drop_encrypted_column", "batch_drop_encrypted_column")
class DropEncryptedColumnOp(MigrateOperation):
    """Drop an encrypted column and its CHECK. SQLite drops no column that a CHECK of its table names.

    Attributes:
        column: what it was, to make it again; None in a revision that runs.
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
            ValueError: what it was is not known.
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
        """Drop an encrypted column, with every value in it, and its CHECK. SQLite's table is built anew where
        it must be."""
        operations.invoke(cls(table_name, column_name, schema=schema))

    @classmethod
    def batch_drop_encrypted_column(cls, operations: BatchOperations, column_name: str) -> None:
        """The same at the end of a batch."""
        operations.invoke(cls(column_name=column_name, **_table_of(operations)))


class CheckOp(MigrateOperation):
    """An operation on the CHECK of an encrypted column that is there.

    Attributes:
        validate: whether the rows that are there are looked at.
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
    """Let the database refuse what is no ciphertext in a column."""

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
        """Add the CHECK of an encrypted column that is there; refused while it holds anything else.

        Args:
            validate: PostgreSQL: without it, the rows that are there are not read, and new writes are checked
                all the same.
        """
        operations.invoke(cls(table_name, column_name, validate=validate, schema=schema))


@Operations.register_operation("drop_encrypted_check")
class DropEncryptedCheckOp(CheckOp):
    """Drop the CHECK of an encrypted column."""

    tag = "drop_encrypted_check"

    def reverse(self) -> CreateEncryptedCheckOp:
        """Add it again."""
        return CreateEncryptedCheckOp(
            self.table_name, self.column_name, validate=self.validate, schema=self.schema
        )

    @classmethod
    def drop_encrypted_check(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Drop the CHECK of an encrypted column; the column stays."""
        operations.invoke(cls(table_name, column_name, schema=schema))


class ValuesOp(MigrateOperation):
    """An operation that moves every value of a column in the migration itself.

    The migration stays as it is when the models change, so all that counts stands in it.

    Attributes:
        type_: the type of the plaintext.
        owner: the columns that name each row's owner.
        label, bind, scope: as of the `EncryptedType`.
        nullable: whether the column may be NULL, before and after.
        check: whether the encrypted column has a CHECK.
    """

    tag = ""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        owner: Owner = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        nullable: bool = True,
        check: bool = True,
        schema: str | None = None,
    ) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.type_ = type_
        self.owner = owner
        self.label = label
        self.bind: Literal["column", "row"] = bind
        self.scope = scope
        self.nullable = nullable
        self.check = check
        self.schema = schema

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.column_name)

    def _options(self) -> dict[str, Any]:
        return {
            "owner": self.owner,
            "label": self.label,
            "bind": self.bind,
            "scope": self.scope,
            "nullable": self.nullable,
            "check": self.check,
            "schema": self.schema,
        }


@Operations.register_operation("encrypt_column")
@BatchOperations.register_operation("encrypt_column", "batch_encrypt_column")
class EncryptColumnOp(ValuesOp):
    """Encrypt every value of a column for its row's owner."""

    tag = "encrypt_column"

    def reverse(self) -> DecryptColumnOp:
        """Decrypt them again."""
        return DecryptColumnOp(self.table_name, self.column_name, self.type_, **self._options())

    @classmethod
    def encrypt_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        owner: str | tuple[str, ...] | None = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        nullable: bool = True,
        check: bool = True,
        schema: str | None = None,
    ) -> None:
        """Encrypt a plaintext column in this revision, for small tables: nobody else can write meanwhile.

        Every value is encrypted for its row's owner, decrypted again and compared, before the plaintext goes.

        Args:
            type_: the type of the plaintext, the same in the database and in the `EncryptedType`.
            owner: the column (a tuple of them for a composite key) that names the owner; left out, the
                table's own rows if they are owners, else its only foreign key to owners.
            label, bind, scope: as of the model's `EncryptedType`; the label is `table.column` unless given.
            nullable: whether the column may be NULL.
            check: whether a CHECK lets ciphertext alone into the column from here on.
        """
        operations.invoke(
            cls(
                table_name,
                column_name,
                type_,
                owner=owner,
                label=label,
                bind=bind,
                scope=scope,
                nullable=nullable,
                check=check,
                schema=schema,
            )
        )

    @classmethod
    def batch_encrypt_column(
        cls,
        operations: BatchOperations,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        owner: str | tuple[str, ...] | None = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        nullable: bool = True,
        check: bool = True,
    ) -> None:
        """The same, after what the batch has done so far; SQLite's table is built anew where it must be."""
        operations.invoke(
            cls(
                column_name=column_name,
                type_=type_,
                owner=owner,
                label=label,
                bind=bind,
                scope=scope,
                nullable=nullable,
                check=check,
                **_table_of(operations),
            )
        )


@Operations.register_operation("decrypt_column")
@BatchOperations.register_operation("decrypt_column", "batch_decrypt_column")
class DecryptColumnOp(ValuesOp):
    """Decrypt every value of a column."""

    tag = "decrypt_column"

    def reverse(self) -> EncryptColumnOp:
        """Encrypt them again."""
        return EncryptColumnOp(self.table_name, self.column_name, self.type_, **self._options())

    @classmethod
    def decrypt_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        owner: str | tuple[str, ...] | None = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        nullable: bool = True,
        check: bool = True,
        schema: str | None = None,
    ) -> None:
        """The reverse of `encrypt_column`, with the same arguments; refused if the provider cannot open a
        value."""
        operations.invoke(
            cls(
                table_name,
                column_name,
                type_,
                owner=owner,
                label=label,
                bind=bind,
                scope=scope,
                nullable=nullable,
                check=check,
                schema=schema,
            )
        )

    @classmethod
    def batch_decrypt_column(
        cls,
        operations: BatchOperations,
        column_name: str,
        type_: TypeEngine[Any],
        *,
        owner: str | tuple[str, ...] | None = None,
        label: str | None = None,
        bind: Literal["column", "row"] = "column",
        scope: str = "",
        nullable: bool = True,
        check: bool = True,
    ) -> None:
        """The same in a batch."""
        operations.invoke(
            cls(
                column_name=column_name,
                type_=type_,
                owner=owner,
                label=label,
                bind=bind,
                scope=scope,
                nullable=nullable,
                check=check,
                **_table_of(operations),
            )
        )
