"""The operations on a column in a revision, each with the operation that undoes it.

Nothing here is run, written or detected: `impl`, `render` and `compare` do that.
"""

from sqlalchemy_envelope.alembic.ops.indexes import BlindIndexOp, EmptyBlindIndexOp, FillBlindIndexOp
from sqlalchemy_envelope.alembic.ops.pairs import (
    ContractEncryptedColumnOp,
    ContractOp,
    ExpandEncryptedColumnOp,
    PairOp,
    UndoContractEncryptedColumnOp,
    UndoExpandEncryptedColumnOp,
)
from sqlalchemy_envelope.alembic.ops.single import (
    AddEncryptedColumnOp,
    CheckOp,
    CreateEncryptedCheckOp,
    DropEncryptedCheckOp,
    DropEncryptedColumnOp,
)
from sqlalchemy_envelope.alembic.ops.values import (
    DecryptColumnOp,
    EncryptColumnOp,
    ValuesOp,
)

__all__ = [
    "AddEncryptedColumnOp",
    "BlindIndexOp",
    "CheckOp",
    "ContractEncryptedColumnOp",
    "ContractOp",
    "CreateEncryptedCheckOp",
    "DecryptColumnOp",
    "DropEncryptedCheckOp",
    "DropEncryptedColumnOp",
    "EmptyBlindIndexOp",
    "EncryptColumnOp",
    "ExpandEncryptedColumnOp",
    "FillBlindIndexOp",
    "PairOp",
    "UndoContractEncryptedColumnOp",
    "UndoExpandEncryptedColumnOp",
    "ValuesOp",
]
