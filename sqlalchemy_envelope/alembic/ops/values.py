"""The operation for small tables, and its reverse: move every value of a column in a single revision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from alembic.operations import BatchOperations, Operations
from alembic.operations.ops import MigrateOperation

from sqlalchemy_envelope.alembic.ops.batches import table_of

if TYPE_CHECKING:
    from sqlalchemy.types import TypeEngine

Owner = str | tuple[str, ...] | None


class ValuesOp(MigrateOperation):
    """An operation that moves every value of a column in the migration itself.

    The migration stays as it is when the models change, so it contains everything that it needs from them.

    Attributes:
        type_: the type of the plaintext.
        owner: the columns that name each row's owner.
        label, bind, scope: as in the `EncryptedType`.
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
        """Decrypt the values again."""
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
            owner: the column (a tuple of columns for a composite key) that names the owner. By default, the
                table's own rows if they are owners, else its only foreign key to owners.
            label, bind, scope: as in the model's `EncryptedType`; the label is `table.column` unless given.
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
        """The same, after the earlier changes of the batch. SQLite's table is rebuilt if needed."""
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
                **table_of(operations),
            )
        )


@Operations.register_operation("decrypt_column")
@BatchOperations.register_operation("decrypt_column", "batch_decrypt_column")
class DecryptColumnOp(ValuesOp):
    """Decrypt every value of a column."""

    tag = "decrypt_column"

    def reverse(self) -> EncryptColumnOp:
        """Encrypt the values again."""
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
        """Undo `encrypt_column`, with the same arguments. Refused if the provider cannot open a value."""
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
                **table_of(operations),
            )
        )
