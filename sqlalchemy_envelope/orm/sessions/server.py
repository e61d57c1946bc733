"""Server mode: owners whose keys a provider holds are opened as their rows appear.

For applications whose operator holds the keys, and for worker processes. Keys are fetched for all rows of a
fetch at once, always with a reason in the audit event. They are kept for a time, for a number of uses, and up
to a number of owners. Owners without a slot of the provider are read through grants to owners with such a
slot, and stay locked if there are no grants.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from sqlalchemy.exc import IntegrityError

from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import require_reason
from sqlalchemy_envelope.orm.indexes.filling import fill_pending
from sqlalchemy_envelope.orm.sessions.fetched_keys import FetchedKeys
from sqlalchemy_envelope.orm.sessions.found_keys import FoundBySession
from sqlalchemy_envelope.orm.sessions.kept_keys import KeptKeys
from sqlalchemy_envelope.orm.sessions.new_owners import NewOwners, first_keys, no_such_owner
from sqlalchemy_envelope.orm.sessions.pending_tokens import fill_pending_tokens
from sqlalchemy_envelope.orm.sessions.provider_grants import ProviderGrants
from sqlalchemy_envelope.orm.sessions.provider_slots import ProviderSlots
from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
from sqlalchemy_envelope.orm.sharing.granted import Opening
from sqlalchemy_envelope.orm.sharing.rollbacks import note_enrolment
from sqlalchemy_envelope.orm.sharing.settle import settle
from sqlalchemy_envelope.orm.tables.owners import Place
from sqlalchemy_envelope.orm.writing.stored_columns import stores_column

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Index, OwnerId
    from sqlalchemy_envelope.keys.model import KeyId, OpenedKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.current.audit import EventName
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sessions.new_owners import FreshKeys
    from sqlalchemy_envelope.orm.sharing.granted import Places
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey


_MOST_TURNS = 5
"""How often the same owners are looked for, at most, while other transactions make or delete their keys."""


class ServerSession(UnlockedSession):
    """An unlocked session in server mode, for a request or a job (`with`), or for the whole process
    (`everywhere`). Made by `Envelope.server_mode`."""

    on_demand = enrolls = True
    provider: str

    def __init__(self, session: Session | None, policy: Policy, provider: str, reason: str) -> None:
        require_reason(reason)
        self._providers = policy.require_providers()
        self.provider = provider
        self._slots = ProviderSlots(provider, can_open=self._providers.can_open(provider))
        self._reason = reason
        self._process_wide = False
        self._new = NewOwners()
        self._grants = ProviderGrants(provider)
        self._found = FoundBySession()
        super().__init__(session, policy, (), Keyring())
        self._kept = KeptKeys(self._providers.cache, self._keyring, self.places)

    def everywhere(self) -> Self:
        """Serve the whole process from now on, until `stop`: all present and later threads and tasks, and
        child processes, each with keys of its own. Unlocked sessions inside see both their own keys and
        these keys.

        Raises:
            ConfigurationError: another server session serves the process already.
        """
        self._require_usable()
        if self.is_open or context.NOTHING.server is not None:
            raise ConfigurationError(
                "Server mode is on for this process already; stop() the other one first."
            )
        self.is_open = self._process_wide = True
        self.policy.emit(self._event("server_mode_started", "the process", 1))
        context.NOTHING.serve(self)
        return self

    def stop(self) -> None:
        """Stop serving the process: wipe the keys. Decrypted values stay in their objects."""
        if context.NOTHING.server is self:
            context.NOTHING.serve(None)
        self.lock()

    def __enter__(self) -> Self:
        """Serve this context and, if a `Session` was given, this `Session`."""
        super().__enter__()
        self.policy.emit(self._event("server_mode_started", "a context", 1))
        return self

    def prepare(self) -> Self:
        """Have the provider wrap the KEK for new owners' slots now, at start-up. Otherwise the first flush of
        a new owner asks the provider, before the flush's first statement.

        Raises:
            ProviderError: the provider failed.
        """
        if self._providers.needs_new(self.provider):
            self._providers.wrap_new(self.provider)
        return self

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Fetch the missing keys of these values, with one query for some thousands."""
        self._parent.prepare_read(session, owner_class, headers)
        if not self.is_open or session is None:
            return
        missing, stale, moment = self._kept.use(headers, self.owner_of)
        if missing:
            fetched = FetchedKeys(self._slots, self._kept.lend)
            try:
                self._fetch(Desk(session, self.policy), fetched, owner_class, missing)
                opened, is_changed = self._kept.share_fetched(fetched, moment)
            finally:
                fetched.keyring.wipe()
            for name, count in opened.items():
                self.policy.emit(self._event("server_opened", name, count))
            asked = {UUID(bytes=header[1:]) for header in missing}
            self._kept.forget_stale(stale - fetched.places.keys())
            if self._kept.forget_deleted(asked - fetched.key_ids) or stale or is_changed:
                self._clear_readers()

    def _fetch(
        self, desk: Desk, fetched: FetchedKeys, owner_class: OwnerClass, headers: Collection[bytes]
    ) -> None:
        """Load the keys of these values: through slots of the provider, and then through grants."""
        asked = self._grants.not_closed(desk, fetched, owner_class, headers)
        if not asked:
            return
        fetched.take_in(desk, owner_class, desk.keys(owner_class).load_held(one[1:] for one in asked))
        if self._slots.can_open:
            self._grants.follow(desk, fetched, owner_class, asked)

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Open these owners for writing, and make keys for owners without keys."""
        self._parent.prepare_write(session, owner_class, keys, values)
        if session is None or not self.is_open:
            return
        desk, found, fresh = (
            Desk(session, self.policy),
            self._found.now_in(session),
            self._new.keys_in(session),
        )
        names = Names(session)
        waiting = [
            place
            for place in {names.place(owner_class, key) for key in keys}
            if place.owner not in found and place.owner not in self._parent
        ]
        # Owners that share keys are opened anew in each transaction: a member may have been removed since.
        known = [
            place
            for place in waiting
            if place.owner in fresh.keyring
            or (place.owner in self._kept.owners.whole and not owner_class.grants_of)
        ]
        found.look_for(desk, known, [fresh.keyring, self._keyring])
        missing = [place for place in waiting if place.owner not in found]
        if missing:
            self._open_whole(desk, owner_class, missing)

    def _open_whole(self, desk: Desk, owner_class: OwnerClass, places: list[Place]) -> None:
        """Open these owners in this transaction, and make keys for owners without keys.

        If another transaction made an owner's keys at the same moment, use these keys.
        """
        store = desk.keys(owner_class)
        locking = False
        for _ in range(_MOST_TURNS):
            rows: dict[OwnerId, list[OwnedKey]] = {}
            for row in store.load([place.primary_key for place in places], for_update=locking):
                rows.setdefault(row.owner, []).append(row)
            there = [place for place in places if place.owner in rows]
            if there:
                self._open_found(desk, there, rows, locking=locking)
            places = self._enroll_rows(desk, owner_class, [one for one in places if one.owner not in rows])
            if not places:
                return
            locking = store.shows_others_when_locked
        raise TransactionConflictError(
            f"Keys of this {owner_class.name} are in {owner_class.key_class.__table__.name}, and this "
            "transaction does not see them: others make and delete them at this moment, or a row policy of "
            "the database hides them. Run the transaction again."
        )

    def _open_found(
        self, desk: Desk, places: list[Place], rows: Mapping[OwnerId, list[OwnedKey]], *, locking: bool
    ) -> None:
        """Open these owners of one class, whose keys were loaded."""
        owner_class, keyring = places[0].owner_class, self._found.now_in(desk.session).opened
        slots = self._slots.of_owners(desk, places, rows, locking=locking)
        opened: Places = {
            place.owner: place
            for place in places
            if self._open_owner(desk, keyring, place, rows[place.owner], slots)
        }
        if not opened:
            return
        self.policy.emit(self._event("server_opened", owner_class.name, len(opened)))
        if owner_class.grants_of or owner_class.indexed:
            settle(desk, keyring, Opening(opened, [], {}))
        if owner_class.indexed:
            fill_pending(
                desk.session,
                opened.values(),
                lambda place, index: keyring.index_writer(place.owner, index.data_scope, index),
                stores_column,
            )
            fill_pending_tokens(
                desk.session,
                opened.values(),
                lambda place, index: keyring.index_writer(place.owner, index.data_scope, index),
            )
        for place in opened.values():
            self._kept.owners.renew(place.owner)
            self._kept.share(place, keyring)

    def _open_owner(
        self,
        desk: Desk,
        keyring: Keyring,
        place: Place,
        rows: list[OwnedKey],
        slots: Mapping[KeyId, Sequence[StoredSlot]],
    ) -> bool:
        """Take all of an owner's keys into a keyring; tell whether its active root key opened."""
        try:
            if not self._slots.open(desk, keyring, place, rows, slots):
                if (
                    place.owner not in self._kept.owners.granted
                ):  # values of an owner reached through a grant are read, and not written
                    self._kept.forget(place.owner)
                return False
        except (ProviderError, ConfigurationError, TransactionConflictError):
            raise
        except EnvelopeError as error:
            keyring.drop(place.owner)
            keyring.refuse(place.owner, error, altogether=True)
            self._kept.refuse(place.owner, [row.stored for row in rows], error)
            return False
        return True

    def kek_for_new(self, session: Session) -> ProviderKek:
        """Return the KEK for new owners' slots. A flush uses the present KEK, however old it is."""
        return self._slots.kek_for_new(Desk(session, self.policy), however_old=session._flushing)

    def _enroll_rows(self, desk: Desk, owner_class: OwnerClass, places: list[Place]) -> list[Place]:
        """Make keys for owners in the database; return the owners for whom another transaction was faster."""
        if not places or owner_class.reference_attribute is not None:
            return []  # the reference to bind keys to is not known here: the owners stay locked
        kek = self.kek_for_new(desk.session)
        made = first_keys(owner_class, places, hybrid=self.policy.hybrid)
        try:
            return self.write_new(desk.session, owner_class, made, kek)
        except IntegrityError as error:
            refused = no_such_owner(error, owner_class, places)
            if refused is None:
                raise
            raise refused from error

    def write_new(
        self,
        session: Session,
        owner_class: OwnerClass,
        made: list[tuple[Place, list[OpenedKey]]],
        kek: ProviderKek,
    ) -> list[Place]:
        """Store the keys of new owners, and hold them for this session alone until its transaction commits.

        Returns:
            The owners for whom another transaction stored keys at the same moment. The new keys of these
            owners are not used.
        """
        mine, lost = self._new.store(Desk(session, self.policy), owner_class, made, kek)
        fresh, found = self._new.keys_in(session), self._found.now_in(session)
        for place, keys in mine:
            found.note_made(place, keys)
            note_enrolment(session, place.owner, fresh, partial(self._admit, fresh, place))
        if mine:
            self.policy.emit(self._event("server_enrolled", owner_class.name, len(mine)))
        return lost

    def _admit(self, fresh: FreshKeys, place: Place) -> None:
        """Share an owner's keys with all sessions here, after the keys were committed."""
        if self.is_open and place.owner in fresh.keyring:
            self._kept.share(place, fresh.keyring)
        fresh.drop(place.owner)

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """Return the cipher for an owner's new values, under a key that the transaction found or made."""
        found = self._found.get(session)
        cipher = None
        if session is not None and found is not None and self.is_open:
            kept = (self._keyring, self._new.keys_in(session).keyring)
            cipher = found.writer(owner, scope, field, kept)
            if cipher is None and (place := found.forget(owner)) is not None:
                # The owner was over a limit, or another thread dropped it: open it for this session alone.
                self._open_whole(Desk(session, self.policy), place.owner_class, [place])
                cipher = self._found.now_in(session).writer(owner, scope, field, kept)
        return self._parent.writer(owner, scope, field, session) if cipher is None else cipher

    def index_writer(
        self, owner: OwnerId, scope: str, index: Index, session: Session | None = None
    ) -> IndexHasher | None:
        """Return what makes the tags of an owner's new values, under a key that the transaction found or
        made."""
        found, hasher = self._found.get(session), None
        if session is not None and found is not None and self.is_open:
            kept = (self._keyring, self._new.keys_in(session).keyring)
            hasher = found.index_writer(owner, scope, index, kept)
        return self._parent.index_writer(owner, scope, index, session) if hasher is None else hasher

    def index_seekers(
        self,
        session: Session | None,
        wheres: Mapping[OwnerClass, Location],
        scope: str,
        index: Index,
        *,
        whole: bool,
    ) -> dict[Place, list[IndexHasher]]:
        """Return what makes the tags of the values of the owner that `using` names, and of the owners who are
        open around this. An owner is opened for this one statement, by a slot of the provider."""
        found: dict[Place, list[IndexHasher]] = self._parent.index_seekers(
            session, wheres, scope, index, whole=whole
        )
        place, home = context.USING.get(), session or self.home
        if place is None or home is None or not self.is_open or wheres.get(place.owner_class) != place.where:
            return found
        desk = Desk(home, self.policy)
        rows = desk.keys(place.owner_class).load([place.primary_key])
        keyring = Keyring()
        try:
            slots = self._slots.of_owners(desk, [place], {place.owner: rows}, locking=False)
            if rows and self._slots.open(desk, keyring, place, rows, slots):
                hashers = keyring.index_seekers(place.owner, scope, index, whole=whole)
                if hashers:
                    found.setdefault(place, []).extend(hashers)
        finally:
            keyring.wipe()
        return found

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """Return the cipher for a stored value. Any session that sees the value can use a new owner's key."""
        found = super().reader(header, field)
        if found is None and self.is_open:
            found = self._new.reader(header, field)
        return found

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Return the owner of the key that a stored value names."""
        found = super().owner_of(header)
        if found is None and self.is_open:
            found = self._new.owner_of(header)
        return found

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """Return the keyring that holds the owner's root key."""
        found = self._found.get(session)
        if found is not None and found.opened.root(owner) is not None:
            return found.opened
        fresh = self._new.known_in(session)
        if fresh is not None and owner in fresh.keyring:
            return fresh.keyring
        return super().keyring_for(owner, session)

    def only_reads(self, owner: OwnerId) -> bool:
        """Tell whether an owner is reached through a grant alone."""
        if self.is_open and owner in self._keyring:
            return owner in self._kept.owners.granted and owner not in self._kept.owners.whole
        return bool(self._parent.only_reads(owner))

    def begin_statement(self, session: Session | None) -> None:
        """Drop owners over a limit."""
        self.saw(session)
        if self._kept.sweep():
            self._clear_readers()

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Load the keys of these classes anew before their next use: owners may have been deleted."""
        self._kept.distrust(owner_classes)
        super().forget_deleted(owner_classes, owner)

    def drop(self, owner: OwnerId) -> None:
        """Drop an owner's keys, so that they are not used again."""
        self._kept.forget(owner)
        self._clear_readers()

    def saw(self, session: Session | None) -> None:
        """Note a session that may hold decrypted values; not needed when serving the whole process."""
        if not self._process_wide:
            super().saw(session)

    def close_in_child(self) -> None:
        """Drop the parent's keys in a forked child. A session for the whole process serves the child too."""
        if not self._process_wide:
            super().close_in_child()
            return
        self._keyring = self._kept.start_again()
        self._grants.forget()
        self._wipe_of_sessions()
        self.readers.clear()
        self._providers.forget()

    def _wipe(self) -> None:
        super()._wipe()
        self._wipe_of_sessions()

    def _wipe_of_sessions(self) -> None:
        self._new.wipe()
        self._found.close()

    def _event(self, name: EventName, owner_class: str, count: int) -> AuditEvent:
        return AuditEvent(name, owner_class, count=count, reason=self._reason, provider=self.provider)
