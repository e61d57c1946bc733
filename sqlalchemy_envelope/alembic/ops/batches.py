"""The table of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alembic.operations import BatchOperations


def table_of(operations: BatchOperations) -> dict[str, Any]:
    """The table of a batch, as arguments of an operation."""
    return {"table_name": operations.impl.table_name, "schema": operations.impl.schema}
