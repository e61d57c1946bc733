"""The rows of a class of owners, as a campaign reads and changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from sqlalchemy_envelope.campaign.standing import held_by
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.model import Purpose, SlotKind
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import chunks, matches
from sqlalchemy_envelope.orm.tables.stored_rows import usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.campaign.setting import Setting
    from sqlalchemy_envelope.keys.model import StoredKey, StoredSlot
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    PrimaryKey = tuple[Any, ...]

_PART = 500
"""The largest number of owners that a statement names."""


class OwnerRows:
    """A class of owners in a session.

    Attributes:
        store: the statements on the key tables of the class.
    """

    def __init__(self, setting: Setting, session: Session, owner_class: OwnerClass) -> None:
        self._setting, self.session, self.owner_class = setting, session, owner_class
        note_policy(session, setting.policy)
        self.store = KeyStore(session, owner_class, setting.policy.seals, setting.policy.pepper)

    def rows(self, query: Any) -> Sequence[Any]:
        """The rows that a query finds in the database of the class."""
        bind = bind_for(self.session, self.owner_class.mapper, query)
        rows: Sequence[Any] = self.session.execute(query, bind_arguments=bind).all()
        return rows

    def owners(self, condition: Any, among: Sequence[PrimaryKey] | None = None) -> list[PrimaryKey]:
        """The owners with a key row that meets the condition. `among`: only look at these owners."""
        columns = self.owner_class.owner_columns
        query = select(*columns).where(condition).distinct().order_by(*columns)
        queries = [query] if among is None else [query.where(matches(columns, some)) for some in parts(among)]
        return [tuple(row) for one in queries for row in self.rows(one)]

    def loaded(
        self, owners: Sequence[PrimaryKey]
    ) -> Iterator[tuple[list[Any], list[StoredSlot] | EnvelopeError]]:
        """The key rows of each owner, and the slots of its root keys, or the error that forbids their use.

        The provider is asked for every KEK first, before the caller writes the first row.
        """
        providers, rows = self._setting.providers, dict[bytes, list[Any]]()
        for row in self.store.load(owners):
            rows.setdefault(row.owner, []).append(row)
        roots = {
            row.stored.key_id: owner
            for owner, found in rows.items()
            for row in found
            if row.stored.purpose is Purpose.ROOT
        }
        slots: dict[bytes, list[StoredSlot]] = {}
        altered: dict[bytes, EnvelopeError] = {}
        for some in chunks(list(roots)):
            try:
                loaded = self.store.load_slots(some)
            except EnvelopeError:
                loaded = []
                for key_id in some:  # an altered row must not stop the other rows
                    try:
                        loaded += self.store.load_slots([key_id])
                    except EnvelopeError as error:
                        altered[roots[key_id]] = error
            for slot in loaded:
                slots.setdefault(roots[slot.key_id], []).append(slot)
        for slot in {one.provider_wrapped: one for found in slots.values() for one in found}.values():
            if slot.kind is SlotKind.PROVIDER and providers.of(slot) == self._setting.provider:
                providers.open(slot)
        for owner, found in rows.items():
            yield found, altered.get(owner) or slots.get(owner, [])

    def delete_slots(self, owners: Sequence[PrimaryKey]) -> None:
        """Delete the campaign's slots of some owners."""
        owned = matches(self.owner_class.owner_columns, owners)
        tables = self.owner_class.key_class, self.owner_class.slot_class
        keys, slots = (one.__table__ for one in tables)
        mine = slots.c.key_id.in_(select(keys.c.key_id).where(keys.c.purpose == Purpose.ROOT, owned))
        statement = slots.delete().where(mine, held_by(slots, self._setting.provider))
        self.session.execute(
            statement, bind_arguments=bind_for(self.session, self.owner_class.mapper, statement)
        )


def parts(owners: Sequence[PrimaryKey], size: int = _PART) -> Iterator[Sequence[PrimaryKey]]:
    """Split the owners into parts, so that no statement gets too long."""
    return (owners[start : start + size] for start in range(0, len(owners), size))


def usable_keys(rows: Iterable[Any]) -> list[StoredKey]:
    """The keys of rows of `OwnerRows.loaded`."""
    return [row.stored for row in usable(rows)]


def usable_slots(slots: list[StoredSlot] | EnvelopeError) -> list[StoredSlot]:
    """The slots of `OwnerRows.loaded`. Raises the error that forbids their use, if there is one."""
    if isinstance(slots, EnvelopeError):
        raise slots
    return slots
