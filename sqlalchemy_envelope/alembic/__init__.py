"""Alembic: one import in `env.py`, and migrations show encrypted columns as what the database
holds, `sa.LargeBinary()`.

Alembic writes `repr(type)` into migration files. A migration is kept for years, and must not depend on this
library, on its version, or on a type whose arguments have changed since. Nothing is encrypted by a migration:
that is for those who hold keys.

There is no entry point in place of the import: Alembic 1.18.0 to 1.20.0 fail at import when any
installed package has one.
"""

from collections.abc import Callable
from typing import Any, Literal

from alembic import util
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import DropTableOp, UpgradeOps

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.types import EncryptedType

__all__ = ["render_item"]

_LAST: dict[str, Any] = (
    {"priority": priorities.LAST} if (priorities := getattr(util, "DispatchPriority", None)) else {}
)


def render_item(kind: str, item: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render an encrypted column's type; False for everything else, as Alembic asks of such a function.

    Importing this module is enough under `alembic revision --autogenerate`. Call this from a `render_item` of
    your own where you use `render_python_code()` without a comparison.
    """
    if kind != "type" or not isinstance(item, EncryptedType):
        return False
    return f"{autogen_context.opts.get('sqlalchemy_module_prefix') or ''}LargeBinary()"


class _AfterTheirs:
    """A `render_item` that asks the one of `env.py` first."""

    def __init__(self, theirs: Callable[..., Any] | None) -> None:
        self._theirs = theirs

    def __call__(self, kind: str, item: Any, autogen_context: AutogenContext) -> Any:
        rendered = self._theirs(kind, item, autogen_context) if self._theirs is not None else False
        return render_item(kind, item, autogen_context) if rendered is False else rendered


# Alembic asks `render_item` of the options alone, and the options are first at hand when it compares schemas.
# It has priorities for comparators since 1.18; before, they ran in the order in which they were registered.
@comparators.dispatch_for("schema", **_LAST)
def _install(autogen_context: AutogenContext, upgrade_ops: UpgradeOps, *_: Any) -> None:
    _refuse_to_drop_keys(upgrade_ops)
    theirs = autogen_context.opts.get("render_item")
    if not isinstance(theirs, _AfterTheirs):
        autogen_context.opts["render_item"] = _AfterTheirs(theirs)


_KEY_COLUMNS = {"owner_reference", "commitment", "wrapping_key_id", "wrapped"}
_GRANT_COLUMNS = {"grant_id", "key_id", "recipient_key_id", "wrapped"}


def _refuse_to_drop_keys(upgrade_ops: UpgradeOps) -> None:
    """Autogenerate sees the rename of an owner's table as key tables to drop: the end of all they open."""
    for operation in upgrade_ops.ops:
        if not isinstance(operation, DropTableOp):
            continue
        columns = set(operation.to_table().columns.keys())
        if columns >= _KEY_COLUMNS or columns >= _GRANT_COLUMNS:
            raise ConfigurationError(
                f"This migration would drop {operation.table_name!r}, and with it the keys of everything "
                "encrypted for its owners. If their table was renamed, keep the names of the key tables: see "
                "'Rename a table' in docs/how-to/alembic.md. If it is to go, write op.drop_table() by hand."
            )
