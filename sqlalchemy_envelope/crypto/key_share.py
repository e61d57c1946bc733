"""The share of a KEK: 32 random bytes in a second database, so that the first one tests no guess (section 3).

Its id is that of a key with these bytes. So a share proves its id, and one that was altered, or exchanged for
another, is found out before any secret is judged by it.
"""

import uuid
from hmac import compare_digest

from sqlalchemy_envelope.crypto.kdf import commitment, key_id_of
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import KeyShareError


class KeyShare(KeyBytes):
    """A share.

    Attributes:
        id: the id that slots name it by.
        stored_at: when this process last stored it, by the monotonic clock; None if it did not.
    """

    __slots__ = ("id", "stored_at")

    def __init__(self, data: bytes | bytearray) -> None:
        super().__init__(data)
        self.id: uuid.UUID = key_id_of(commitment(self))
        self.stored_at: float | None = None

    @classmethod
    def read(cls, share_id: uuid.UUID, data: object) -> "KeyShare":
        """A stored share.

        Raises:
            KeyShareError: it is not the share with this id.
        """
        if isinstance(data, (bytes, memoryview, bytearray)) and len(data) == 32:
            share = cls(bytes(data))
            if compare_digest(share.id.bytes, share_id.bytes):
                return share
        raise KeyShareError(
            f"Share {share_id.hex[:8]} was altered: it is not the share that its key slot names. Whether the "
            "secret is right cannot be told. Put the row back from a backup of the second database."
        )
