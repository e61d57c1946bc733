"""Alembic: one import in `env.py`. Migrations show encrypted columns as what the database holds,
`sa.LargeBinary()`, and may move plaintext to them.

Alembic writes `repr(type)` into migration files. A migration is kept for years, and must not depend on this
library, on its version, or on a type whose arguments have changed since. The operations that
move values are the exception: a file with one of them imports this package, and says in its own words what
the models said when it was written.

There is no entry point in place of the import: Alembic 1.18.0 to 1.20.0 fail at import when any
installed package has one.
"""

from sqlalchemy_envelope.alembic import compare, impl
from sqlalchemy_envelope.alembic.impl import values
from sqlalchemy_envelope.alembic.ops import (
    AddEncryptedColumnOp,
    ContractEncryptedColumnOp,
    CreateEncryptedCheckOp,
    DecryptColumnOp,
    DropEncryptedCheckOp,
    DropEncryptedColumnOp,
    EncryptColumnOp,
    ExpandEncryptedColumnOp,
    UndoContractEncryptedColumnOp,
    UndoExpandEncryptedColumnOp,
)
from sqlalchemy_envelope.alembic.render import render_item
from sqlalchemy_envelope.alembic.source import KeySource

__all__ = [
    "AddEncryptedColumnOp",
    "ContractEncryptedColumnOp",
    "CreateEncryptedCheckOp",
    "DecryptColumnOp",
    "DropEncryptedCheckOp",
    "DropEncryptedColumnOp",
    "EncryptColumnOp",
    "ExpandEncryptedColumnOp",
    "KeySource",
    "UndoContractEncryptedColumnOp",
    "UndoExpandEncryptedColumnOp",
    "compare",
    "impl",
    "render_item",
    "values",
]
