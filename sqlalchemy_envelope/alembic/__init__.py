"""Alembic: a single import in `env.py`. Migrations show encrypted columns with the type that the database
holds, `sa.LargeBinary()`, and may move plaintext to them.

Alembic writes `repr(type)` into migration files. A migration is kept for years. It must not depend on this
library, on its version, or on a type with arguments that have changed since. The operations that move values
are the exception: a file with such an operation imports this package, and states itself what the models
declared when it was written.

There is no entry point in place of the import: Alembic 1.18.0 to 1.20.0 fail at import when any
installed package has an entry point.
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
    EmptyBlindIndexOp,
    EncryptColumnOp,
    ExpandEncryptedColumnOp,
    FillBlindIndexOp,
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
    "EmptyBlindIndexOp",
    "EncryptColumnOp",
    "ExpandEncryptedColumnOp",
    "FillBlindIndexOp",
    "KeySource",
    "UndoContractEncryptedColumnOp",
    "UndoExpandEncryptedColumnOp",
    "compare",
    "impl",
    "render_item",
    "values",
]
