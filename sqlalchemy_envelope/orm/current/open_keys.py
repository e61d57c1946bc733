"""What an unlocked session is to statements, rows and attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy_envelope.exceptions import LockedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Index, Keyring, OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass, Place


class OpenKeys(Protocol):
    """The open keys, as statements, rows and attributes see them. Unlocked sessions are of this kind.

    Attributes:
        readers: by column and value header, the function that opens the values of one owner.
        on_demand: whether keys are fetched or made as they are needed. Such a session is told of rows before
            they come.
        follows: whether grants are followed as they are needed. Such a session is told of rows before they
            come, too.
        enrolls: whether new owners get keys here with the flush that adds them.
        by_ticket: whether a ticket opened it: it has no root key, and makes and grants none.
        provider: in server mode, the provider whose slots open keys; else None.
        home: the session that it was opened with.
        left: the kind of error that says why it is no longer open.
    """

    readers: dict[object, dict[bytes, Any]]
    policy: Policy
    home: Session | None
    is_open: bool
    left: type[LockedError] | None
    on_demand: bool
    follows: bool
    enrolls: bool
    by_ticket: bool
    provider: str | None

    def __contains__(self, owner: OwnerId) -> bool: ...

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """The cipher for a stored value, if its key is open."""

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """The cipher for new values of an owner that a session writes, if its key is open."""

    def index_writer(
        self, owner: OwnerId, scope: str, index: Index, session: Session | None = None
    ) -> IndexHasher | None:
        """What makes the tags of new values of an owner, if the owner's index key is open."""

    def index_seekers(
        self,
        session: Session | None,
        wheres: Mapping[OwnerClass, Location],
        scope: str,
        index: Index,
        *,
        whole: bool,
    ) -> dict[Place, list[IndexHasher]]:
        """What makes the tags that a statement looks for, for each owner whose index key is open.

        Args:
            wheres: the classes of the owners whose rows are looked for, and where they are.
            scope: the scope of the data keys of the values.
            whole: leave out owners of whom an earlier index key does not open.
        """
        ...

    def owner_of(self, header: bytes) -> OwnerId | None:
        """The owner whose key a stored value names, if the key is open."""

    @property
    def only_owner(self) -> OwnerId | None:
        """The owner whose keys are open here, if no other owner's keys are, or could be in a moment."""

    @property
    def makes_keys(self) -> bool:
        """Whether owners without keys get keys here."""
        ...

    def sole(self, owner_class: OwnerClass, where: bytes) -> set[tuple[Any, ...]]:
        """The primary keys of the sole owners of a class, in this database and schema, that are open here.
        There are several if a sole owner was deleted and another was made."""
        ...

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """The keyring that reaches the owner's root key."""

    def follow_all(self, session: Session | None = None) -> None:
        """Follow all grants that are not followed yet."""

    def follow_owners(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Follow the grants that lead to these owners, by primary key."""

    def may_follow(self, owner_class: OwnerClass, header: bytes) -> bool:
        """Whether the grants that lead to the key of a stored value were not looked for yet."""
        ...

    def find_others(self, session: Session | None) -> None:
        """Find out whether keys of other owners may come."""

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Prepare for rows that are about to be read, with so many values under each of these keys."""

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Prepare to encrypt so many values of these owners, by primary key."""

    def waits_in(self, session: Session) -> bool:
        """Whether an unlock in this session left anything to settle."""
        ...

    def settle_for(self, session: Session, owner: OwnerId) -> None:
        """Settle what waits for an owner, before a session writes under the owner's keys."""

    def places_for(self, owner: OwnerId) -> Mapping[OwnerId, Place]:
        """The owners that are reached by the keys among which this owner's keys are."""
        ...

    def settle_around(self, session: Session) -> None:
        """Settle what the unlocks in a session left waiting, before the session writes."""

    def remember(self, slot: object, header: bytes, cipher: ValueCipher, entry: tuple[Any, ...]) -> None:
        """Keep, for the hot paths, the cipher that opens the values of a column under one key."""

    def begin_statement(self, session: Session | None) -> None:
        """Note that a session runs a statement here."""

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values."""

    def admit(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Add an owner that was enrolled inside this unlocked session."""

    def make_way(self, session: Session, place: Place) -> None:
        """Make way for the first keys of this owner, which a session makes: other keys of the same name are a
        deleted owner's."""

    def drop(self, owner: OwnerId) -> None:
        """Forget an owner's keys."""

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Trust no key of these classes any more: owners of them may have been deleted, and this owner
        was."""
