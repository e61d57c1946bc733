"""The operation that fills a blind index, and its reverse."""

from __future__ import annotations

from typing import Any

from alembic.operations import Operations
from alembic.operations.ops import MigrateOperation


class BlindIndexOp(MigrateOperation):
    """An operation on all rows of a blind index."""

    tag = ""

    def __init__(self, table_name: str, column_name: str, *, schema: str | None = None) -> None:
        self.table_name = table_name
        self.column_name = column_name
        self.schema = schema

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """What `alembic check` shows."""
        return (self.tag, self.schema, self.table_name, self.column_name)


@Operations.register_operation("fill_blind_index")
class FillBlindIndexOp(BlindIndexOp):
    """Give tags to the values of a table that has rows."""

    tag = "fill_blind_index"

    def reverse(self) -> EmptyBlindIndexOp:
        """Take the tags away."""
        return EmptyBlindIndexOp(self.table_name, self.column_name, schema=self.schema)

    @classmethod
    def fill_blind_index(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Fill a blind index in this revision, for small tables. For others there is `index fill`.

        `context.configure(envelope=KeySource(...))` in `env.py` gives the keys. Values that its provider does
        not open stay without a tag.

        Raises:
            MigrationRefusedError: a value got no tag: it does not authenticate, the index does not take it,
                or a unique index has an equal value.
        """
        operations.invoke(cls(table_name, column_name, schema=schema))


@Operations.register_operation("empty_blind_index")
class EmptyBlindIndexOp(BlindIndexOp):
    """Take the tags of a blind index away."""

    tag = "empty_blind_index"

    def reverse(self) -> FillBlindIndexOp:
        """Fill it."""
        return FillBlindIndexOp(self.table_name, self.column_name, schema=self.schema)

    @classmethod
    def empty_blind_index(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Take the tags of a blind index away in this revision. Its key stays."""
        operations.invoke(cls(table_name, column_name, schema=schema))
