"""A value that a statement looks for: its tags are made when the statement is sent, for the database that it
is sent to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.evaluator import UnevaluatableError

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.executing import Execution, execution_now, resume
from sqlalchemy_envelope.orm.indexes.owner_keys import owner_hashers, require_few
from sqlalchemy_envelope.orm.indexes.server_keys import Moves, moves_of, server_hashers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn
    from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted


NO_TAG = b""
"""What no row has."""


class NotBeingSentError(StatementRefusedError, UnevaluatableError):  # type: ignore[misc]  # ours has its code
    """Tags are asked for outside of an execution. For SQLAlchemy that is a condition which cannot be
    evaluated in Python: an UPDATE or DELETE asks the database which objects it changed."""


class Sought:
    """Gives a parameter its value: the tags of the values that a statement looks for.

    Attributes:
        index: the index in which they are looked for.
        wanted: what is looked for.
    """

    __slots__ = ("_later", "index", "wanted")

    def __init__(
        self, index: IndexedColumn, wanted: Wanted, later: Callable[[Execution], Wanted] | None = None
    ) -> None:
        """Make it.

        Args:
            later: gives what is looked for, if that is known only when the statement is sent.
        """
        self.index = index
        self.wanted = wanted
        self._later = later

    @emptying
    def __call__(self) -> list[bytes | None]:
        """The tags, by every key that a row's tag may be under.

        Raises:
            StatementRefusedError: no statement is being sent.
            EnvelopeError: the index key is not at hand.
        """
        execution, connection = require_execution(self.index)
        wanted = self.wanted if self._later is None else self._later(Execution(*execution))
        try:
            hashers = _hashers(connection, self.index)
        finally:
            resume(execution)
        require_few(self.index, len(hashers) * len(wanted.datas))
        tags: list[bytes | None] = [hasher.tag(data) for hasher in hashers for data in wanted.datas]
        if wanted.has_null:
            tags.append(None)
        return tags if tags or wanted.is_empty else [NO_TAG]

    def __repr__(self) -> str:
        return f"<sought in {self.index.label}>"

    def __reduce__(self) -> Any:
        raise StatementRefusedError(
            f"A statement that looks for a value of {self.index.label!r} cannot be pickled: the value would "
            "stand in the pickle."
        )


class OpenOwners:
    """Gives a parameter its value: the primary keys of the owners whose index keys are all open.

    Attributes:
        index: the index whose owners they are.
    """

    __slots__ = ("index",)

    def __init__(self, index: IndexedColumn) -> None:
        self.index = index

    @emptying
    def __call__(self) -> list[Any]:
        """The primary keys.

        Raises:
            StatementRefusedError: no statement is being sent.
            EnvelopeError: nobody is open.
        """
        execution, connection = require_execution(self.index)
        try:
            found = owner_hashers(connection, self.index, whole=True)
        finally:
            resume(execution)
        require_few(self.index, len(found))
        return [place.primary_key[0] for place in found]

    def __repr__(self) -> str:
        return f"<the owners who are open, of {self.index.label}>"

    def __reduce__(self) -> Any:
        raise StatementRefusedError(f"A statement that looks in {self.index.label!r} cannot be pickled.")


def require_execution(index: IndexedColumn) -> tuple[tuple[Any, ...], Connection]:
    """The statement that is being sent, and its connection.

    Raises:
        StatementRefusedError: no statement is being sent.
    """
    execution = execution_now()
    connection = None if execution is None else execution[0]()
    if execution is None or connection is None:
        raise NotBeingSentError(
            f"The tags of {index.label!r} are made when a statement is sent: there are none to show."
        )
    return execution, connection


class Rotating:
    """Gives a parameter its value: whether the rows of an index may have the tags of two keys."""

    __slots__ = ("_index",)

    def __init__(self, index: IndexedColumn) -> None:
        self._index = index

    def __call__(self) -> bool:
        """Whether a rotation goes on.

        Raises:
            StatementRefusedError: no statement is being sent.
        """
        return self._states().is_rotating

    def _states(self) -> Moves:
        execution, connection = require_execution(self._index)
        try:
            return moves_of(connection, self._index)
        finally:
            resume(execution)


class Steady(Rotating):
    """Gives a parameter the value True, unless rows are being moved to another key."""

    __slots__ = ()

    def __call__(self) -> bool:
        """True.

        Raises:
            StatementRefusedError: rows are being moved, or no statement is being sent.
        """
        if not self._states().by_guard:
            return True
        raise StatementRefusedError(
            f"{self._index.label!r} is being moved to another index key, and a relationship by its tags "
            "would miss rows meanwhile. Look for the value instead, or wait until `rotate_index` is done."
        )


def _hashers(connection: Connection, index: IndexedColumn) -> Sequence[IndexHasher]:
    """What makes the tags that a row with a value may have."""
    if index.scope == "server":
        return server_hashers(connection, index).seeks
    return [one for hashers in owner_hashers(connection, index).values() for one in hashers]
