"""What makes the tags of an index for the rows of a job: the server's key, or each row's owner's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import LockedError
from sqlalchemy_envelope.keys.index_keys import IndexHashers
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.indexes.owner_keys import owner_hashers
from sqlalchemy_envelope.orm.indexes.server_keys import server_hashers

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn


class RowHashers:
    """The hashers of an index, by the values with which rows name their owners.

    Args:
        makes: whether to make a key if the index has none.
        owners: the owners of the rows to come.
    """

    def __init__(
        self,
        session: Session,
        index: IndexedColumn,
        keys: OwnerCiphers,
        owners: Collection[tuple[Any, ...]],
        *,
        makes: bool,
    ) -> None:
        self._session, self._index, self._keys = session, index, keys
        self._known: dict[tuple[Any, ...], IndexHashers | None] = {}
        self._server: IndexHashers | None = None
        if index.scope == "server":
            self._server = server_hashers(session.connection(), index, makes=makes)
        elif makes:
            # Who is opened here settles: with keys for the indexes that were declared since.
            keys.writers({one for one in owners if keys.names_owner(one)}, len(owners))

    def of(self, owner: tuple[Any, ...]) -> IndexHashers | None:
        """The hashers for the rows of an owner; None if no key here makes tags for them."""
        if self._server is not None:
            return self._server
        if owner not in self._known:
            self._known[owner] = self._of_owner(owner)
        return self._known[owner]

    def _of_owner(self, named: tuple[Any, ...]) -> IndexHashers | None:
        place = self._keys.place(named) if self._keys.names_owner(named) else None
        if place is None:
            return None
        writer = context.find_index_writer(self._session, place.owner, self._index.data_scope, self._index)
        with context.using(place):  # server mode opens whom it names
            try:
                seekers = owner_hashers(self._session.connection(), self._index).get(place, [])
            except LockedError:
                seekers = []
        if writer is None and not seekers:
            return None
        return IndexHashers(writer, None, tuple(seekers) or (writer,))  # type: ignore[arg-type]
