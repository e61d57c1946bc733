"""A value that a statement looks for: its tags are made when the statement is sent, for the database that it
is sent to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.executing import connection_now
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted


class Sought:
    """Gives a parameter its value: the tags of the values that a statement looks for.

    Attributes:
        index: the index in which they are looked for.
        wanted: what is looked for.
    """

    __slots__ = ("index", "wanted")

    def __init__(self, index: IndexedColumn, wanted: Wanted) -> None:
        self.index = index
        self.wanted = wanted

    @emptying
    def __call__(self) -> list[bytes]:
        """The tags, by every key that a row's tag may be under.

        Raises:
            StatementRefusedError: no statement is being sent.
            EnvelopeError: the index key is not at hand.
        """
        connection = connection_now()
        if connection is None:
            raise StatementRefusedError(
                f"The tags of {self.index.label!r} are made when a statement is sent: there are none to show."
            )
        hashers = _hashers(connection, self.index)
        return [hasher.tag(data) for hasher in hashers for data in self.wanted.datas]

    def __repr__(self) -> str:
        return f"<sought in {self.index.label}>"

    def __reduce__(self) -> Any:
        raise StatementRefusedError(
            f"A statement that looks for a value of {self.index.label!r} cannot be pickled: the value would "
            "stand in the pickle."
        )


def _hashers(connection: Connection, index: IndexedColumn) -> Sequence[IndexHasher]:
    """What makes the tags that a row with a value may have."""
    return server_hashers(connection, index).seeks
