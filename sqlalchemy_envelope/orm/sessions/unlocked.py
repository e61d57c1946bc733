"""An unlocked session. Over 400 lines, since its docstrings are the reference.

It holds an owner's keys, and the keys granted to the owner, from `with` to its end.

Two other kinds of session build on it: `write_only` encrypts for locked owners, and `server` opens owners as
their rows appear.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import finalize

from sqlalchemy.orm import attributes

from sqlalchemy_envelope.crypto.aead import HEADER_SIZE, check_value
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.exceptions import ConfigurationError, LockedError
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.orm.columns.sealed import Sealed
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.indexes.filling import fill_pending
from sqlalchemy_envelope.orm.reading import destroyed
from sqlalchemy_envelope.orm.sessions.former_owners import FormerOwners
from sqlalchemy_envelope.orm.sessions.granted_keys import GrantedKeys
from sqlalchemy_envelope.orm.sessions.own_verbs import OwnVerbs
from sqlalchemy_envelope.orm.sessions.pending_tokens import fill_pending_tokens
from sqlalchemy_envelope.orm.sessions.scope import Scope
from sqlalchemy_envelope.orm.sharing.active_keys import ActiveKeys
from sqlalchemy_envelope.orm.sharing.index_epochs import renew_index_keys
from sqlalchemy_envelope.orm.sharing.membership import require_present_members
from sqlalchemy_envelope.orm.tables.cascades import in_greenlet
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.owners import Place, require_owner_class
from sqlalchemy_envelope.orm.writing.stored_columns import stores_column

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
    from sqlalchemy_envelope.crypto.blind_index import IndexHasher
    from sqlalchemy_envelope.keys.keyring import Index, OwnerId
    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.sessions.emergency_request import EmergencyRequest
    from sqlalchemy_envelope.orm.sessions.key_slots import KeySlot
    from sqlalchemy_envelope.orm.sharing.waiting import Waiting
    from sqlalchemy_envelope.orm.tables.owners import Location, OwnerClass


class UnlockedSession(OwnVerbs, Scope):
    """The keys of an owner, and the keys granted to it, open from `with` to its end. Made by
    `Envelope.enroll` and `Envelope.unlock`.

    Entering the unlocked session puts it into the context and binds it to the `Session`. After leaving, it
    cannot be used again.

    Attributes:
        unacknowledged_slots: the key slots that were added to the owner and not acknowledged yet. Show them
            to the user, and call `acknowledge_slots`.
        emergency_requests: who has asked to open the owner in an emergency, as it was at the unlock. Show
            them to the user, who can call `cancel_emergency`.
    """

    unacknowledged_slots: tuple[KeySlot, ...] = ()
    emergency_requests: tuple[EmergencyRequest, ...] = ()

    def __init__(
        self,
        session: Session | None,
        policy: Policy,
        places: Sequence[Place],
        keyring: Keyring,
        waiting: Waiting | None = None,
    ) -> None:
        self.places: dict[OwnerId, Place] = {place.owner: place for place in places}
        self._keyring = keyring
        self._active = ActiveKeys()
        self._former = FormerOwners(keyring, self.places)
        self._granted: GrantedKeys | None = None
        if waiting is not None:
            self._granted, self.follows = GrantedKeys(session, policy, keyring, self.places, waiting), True
        super().__init__(session, policy)  # last: from here on a fork finds this session
        # A session that is never entered is never left: its keys are wiped when it is collected.
        for one in (keyring, waiting):
            if one is not None:
                finalize(self, one.wipe).atexit = False

    @property
    def only_owner(self) -> OwnerId | None:
        """The only owner with open keys; None if other owners' keys are open, or may come."""
        may_come = self.on_demand or (self._granted is not None and self._granted.leads_on)
        if may_come or not len(self._keyring) == len(self.places) == 1:
            return None
        owner = next(iter(self.places), None)
        return owner if self._is_outermost or self._parent.only_owner == owner else None

    def admit(self, place: Place, keys: Iterable[OpenedKey]) -> None:
        """Take in an owner that was enrolled inside this unlocked session."""
        if self._granted is not None:
            self._granted.note(place)
        self.places[place.owner] = place
        self._keyring.add(place.owner, keys)

    def make_way(self, session: Session, place: Place) -> None:
        """Put aside open keys under the name of an owner who is about to get its first keys.

        These keys, here or in a session around this, belong to a former owner with the same name, which the
        session deleted in the same transaction.
        """
        owner = place.owner
        if owner in self._keyring and not self.on_demand:
            self._former.put_aside(session, owner, self._clear_readers)
            self._clear_readers()
        self._parent.make_way(session, place)

    @property
    def keyring(self) -> Keyring:
        """The keys."""
        return self._keyring

    def follow_all(self, session: Session | None = None) -> None:
        """Follow all grants to the owner that were not followed yet, and the grants that they lead to.

        This includes the unlocked sessions around this one. It takes one query for each class of grants and
        each class of owners on the way.

        Args:
            session: the session to read with. The session of the unlock may be in use by another thread or
                task. If this is left out, or reaches another database, the session of the unlock reads.
        """
        granted = self._unfollowed
        if granted is not None:
            granted.follow_all(session, self)
            self.follows = granted.leads_on or self._parent.follows
        self._parent.follow_all(session)

    @property
    def _unfollowed(self) -> GrantedKeys | None:
        """The grants of this unlocked session, if some are not followed yet and the session was not left."""
        granted = self._granted
        return granted if granted is not None and granted.leads_on and self.left is None else None

    def follow_owners(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Follow all grants that lead to these owners, here and in the sessions around this.

        Called before values are written, or keys granted, for these owners.
        """
        granted = self._unfollowed
        if granted is not None:
            granted.follow_owners(session, self, owner_class, keys)
        self._parent.follow_owners(session, owner_class, keys)

    def may_follow(self, owner_class: OwnerClass, header: bytes) -> bool:
        """Tell whether a grant may lead to the key of a stored value, and was not looked for yet.

        Asks this unlocked session and the sessions around it.
        """
        if self._granted is not None and self._granted.may_follow(owner_class, header):
            return True
        return bool(self._parent.may_follow(owner_class, header))

    def find_others(self, session: Session | None) -> None:
        """Find out whether keys of other owners may come, here or around this.

        Until this is known, `only_owner` is None.
        """
        granted = self._unfollowed
        if granted is not None:
            granted.find_others(session)
            self.follows = granted.leads_on or self._parent.follows
        self._parent.find_others(session)

    def keyring_for(self, owner: OwnerId, session: Session | None = None) -> Keyring | None:
        """Return the keyring, here or around this, with an owner's root key, as far as grants lead to it."""
        if self.is_open and owner in self._keyring and self._keyring.root(owner) is not None:
            return self._keyring
        around: Keyring | None = self._parent.keyring_for(owner, session)
        return around

    @emptying
    def settle(self) -> None:
        """Do now what the first write would do: adopt keys sealed to this owner, fulfil pending grants, and
        start a new epoch if a member was removed. For a log-in whose requests only read. Never commits. After
        a rollback, the next write does it. If nothing waits, it does nothing.

        Raises:
            SessionLeftError, SessionForkedError: the session was left, or belongs to the parent process.
            ConfigurationError: the session is an AsyncSession.
        """
        self._require_usable()
        if self.home is None:
            return
        if self._granted is not None and self._granted.is_async() and not in_greenlet():
            raise ConfigurationError(
                "An AsyncSession is settled with `await AsyncEnvelope(envelope).settle(session)`."
            )
        self.settle_in(self.home)

    @property
    def _is_settled(self) -> bool:
        return self._granted is None or self._granted.is_settled

    def settle_in(self, session: Session) -> None:
        """As `settle`, in the transaction of a session that is about to write under these keys."""
        granted = self._granted
        if granted is None or self.left is not None or granted.is_settled:
            return
        if any(one.indexed for one in granted.owner_classes):
            self.follow_all(session)  # their rows may be pending
        if granted.settle(session, self):
            self._fill_pending(session)

    def _fill_pending(self, session: Session) -> None:
        """Give pending rows of blind indexes their tags."""
        here: Any = context.unlocked_sessions(session)
        if not any(one is self for innermost in here for one in innermost.outward()):
            return  # nothing opens their values
        places = [one for one in list(self.places.values()) if one.owner_class.index_tables]
        if places:
            fill_pending(
                session,
                places,
                lambda place, index: self._keyring.index_writer(place.owner, index.data_scope, index),
                stores_column,
            )
            fill_pending_tokens(
                session,
                places,
                lambda place, index: self._keyring.index_writer(place.owner, index.data_scope, index),
            )

    def settle_for(self, session: Session, owner: OwnerId) -> None:
        """As `settle_in`, for each unlocked session, here or around this, that holds this owner's keys."""
        if self.is_open and not self._is_settled and owner in self._keyring:
            self.settle_in(session)
        self._parent.settle_for(session, owner)

    def places_for(self, owner: OwnerId) -> Mapping[OwnerId, Place]:
        """Return the owners reached by the keyring, here or around this, that holds this owner's keys."""
        if self._is_outermost or (self.is_open and owner in self._keyring):
            return self.places
        found: Mapping[OwnerId, Place] = self._parent.places_for(owner)
        return found

    def waits_in(self, session: Session) -> bool:
        """Tell whether an unlock in this session, here or around this, left work to be settled."""
        if self.home is session and self.is_open and not self._is_settled:
            return True
        return bool(self._parent.waits_in(session))

    def settle_around(self, session: Session) -> None:
        """Settle all unlocked sessions of this session, here and around this, since the session writes."""
        if self.home is session and self.is_open:
            self.settle_in(session)
        self._parent.settle_around(session)

    @property
    def makes_keys(self) -> bool:
        """Whether owners without keys get keys, here or around this."""
        return self.enrolls or bool(self._parent.makes_keys)

    def sole(self, owner_class: OwnerClass, where: bytes) -> set[tuple[Any, ...]]:
        """Return the primary keys of the open sole owners of a class.

        There are several, if a sole owner was deleted and another was made.
        """
        found = {
            place.primary_key
            for place in list(self.places.values())
            if place.owner_class is owner_class and place.where == where and place.owner in self
        }
        return found.union(self._parent.sole(owner_class, where))

    def prepare_read(
        self, session: Session | None, owner_class: OwnerClass, headers: Mapping[bytes, int]
    ) -> None:
        """Prepare for reading values under these keys, with the number of values under each.

        All keys are passed at once, so that they can be fetched in batches.
        """
        self._parent.prepare_read(session, owner_class, headers)
        granted = self._unfollowed
        if granted is None:
            return
        closed = granted.closed(session, owner_class, headers)
        closed = [header for header in closed if self._parent.owner_of(header) is None]
        granted.follow_values(session, self, owner_class, closed)

    def prepare_write(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]], values: int
    ) -> None:
        """Prepare for encrypting a number of values of these owners, named by primary key."""
        if (granted := self._unfollowed) is not None:
            granted.follow_owners(session, self, owner_class, keys)
        if self.is_open:
            self._put_in_order(session, owner_class, keys)
        if not self._is_outermost:
            self._parent.prepare_write(session, owner_class, self._others(session, owner_class, keys), values)

    def _put_in_order(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Before a write for these owners, settle what waits, and require that only members hold keys."""
        writer = session or self.home
        if (writer is not None and not self._is_settled) and (
            writer is self.home or len(self._others(writer, owner_class, keys)) < len(keys)
        ):
            self.settle_in(writer)
        self._look_for_retired(session, owner_class, keys)
        if session is not None and owner_class.grants_of:
            desk = Desk(session, self.policy)
            require_present_members(desk, self._keyring, self.places, owner_class, keys)

    def _look_for_retired(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> None:
        """Look whether the keys of these owners are still active, if this session lasts for a while. If their
        class has a unique index, look always: a tag under an earlier index key meets no equal value."""
        always = owner_class.compares
        if session is not None and (always or not self._active.is_young):
            desk = Desk(session, self.policy)
            self._active.look(desk, self._keyring, owner_class, keys, always=always)

    def _others(
        self, session: Session | None, owner_class: OwnerClass, keys: Collection[tuple[Any, ...]]
    ) -> Collection[tuple[Any, ...]]:
        """Return the owners whose keys are not in this keyring."""
        if session is None:
            return keys
        names = Names(session)
        return [key for key in keys if names.owner(owner_class, key) not in self._keyring]

    @emptying
    def using(self, owner: object) -> AbstractContextManager[None]:
        """Inside the `with`, encrypt an UPDATE for this owner if it writes no column of its rows' owner.

        A query checks whether the UPDATE's WHERE matches rows of other owners; if so, a
        `StatementRefusedError` is raised. An INSERT names the owner in its values. An INSERT into the table
        of a joined subclass, whose base has the owner's column, is encrypted for this owner too.

        Raises:
            LockedError: the owner is not unlocked here.
        """
        self._require_usable()
        owner_class = require_owner_class(owner)
        state, place = attributes.instance_state(owner), None
        session = state.session or self.home
        if state.key is not None and session is not None:
            place = Names(session).place(owner_class, tuple(state.key[1]))
            self.follow_owners(session, owner_class, [place.primary_key])
        if place is None or (place.owner not in self and not self.on_demand):
            raise context.locked(f"{owner_class.name}, for `using`,", self.home)
        return context.using(place)

    @emptying
    def decrypt(self, sealed: Sealed, *, primary_key: object = None) -> Any:
        """Return the value behind a `Sealed` handle.

        Args:
            sealed: a value that a select of columns returned.
            primary_key: the primary key of its row (a tuple if composite), for a row-bound column.

        Raises:
            LockedError: the value's key is not unlocked here.
            KeyShreddedError: the value's key was destroyed, and the column declares no replacement.
            FormatError, TruncatedError, DecryptionError: the value does not belong to that column or row.
            ConfigurationError: the argument is no `Sealed`.
        """
        self._require_usable()
        if not isinstance(sealed, Sealed):
            raise ConfigurationError(
                f"decrypt() opens a Sealed, which is what a select of columns gives for a locked value. This "
                f"is of the type {type(sealed).__name__}: use it as it is."
            )
        if sealed.is_replaced:
            return sealed.format.replacement()
        if sealed.why is not None:
            raise sealed.error()
        field = sealed.format.field
        check_value(sealed.blob, field.label)
        cipher = self.reader(bytes(sealed.blob[:HEADER_SIZE]), field)
        if cipher is None and self.follows:
            self.seek(bytes(sealed.blob[:HEADER_SIZE]))
            cipher = self.reader(bytes(sealed.blob[:HEADER_SIZE]), field)
        if cipher is None and self._is_destroyed(bytes(sealed.blob[:HEADER_SIZE])):
            return self.decrypt(sealed.shredded(), primary_key=primary_key)
        if cipher is None:
            raise self._locked(field.label, bytes(sealed.blob[:HEADER_SIZE]))
        if field.row_bound and primary_key is None:
            raise ConfigurationError(f"{field.label!r} is row-bound: say which row, with `primary_key=`.")
        parts = primary_key if isinstance(primary_key, tuple) else (primary_key,)
        reference = encode_reference(parts) if field.row_bound else b""
        return sealed.format.decode(cipher.decrypt(bytes(sealed.blob), reference))

    def _is_destroyed(self, header: bytes) -> bool:
        """Tell whether the key of a value that is locked here was destroyed. Asks the database, if it may."""
        if destroyed.owner_of(self.home, header) is None and self.home is not None:
            classes = dict.fromkeys(place.owner_class for place in list(self.places.values()))
            classes.update(dict.fromkeys(() if self._granted is None else self._granted.owner_classes))
            mapper = next((one.mapper for one in classes), None)
            if mapper is not None and (in_greenlet() or not bind_of(self.home, mapper).dialect.is_async):
                destroyed.look(self.home, {one: {header: 1} for one in classes})
        return destroyed.owner_of(self.home, header) is not None

    def _locked(self, label: str, header: bytes) -> LockedError:
        classes = () if self._granted is None else self._granted.owner_classes
        if any(self.may_follow(one, header) for one in classes):
            return LockedError(
                f"A value of {label!r} is locked: nothing looked yet whether a grant leads to its key, and "
                "`decrypt` cannot wait for that. Unlock with `follow='all'`, or decrypt where it can: "
                "`await session.run_sync(lambda _: unlocked.decrypt(sealed))`."
            )
        return context.locked(f"A value of {label!r}", self.home)

    def seek(self, header: bytes) -> None:
        """Follow the grants that lead to a value, if only the name of its key is known."""
        for owner_class in () if self._granted is None else self._granted.owner_classes:
            self.prepare_read(None, owner_class, {header: 1})
        self._parent.seek(header)

    def reader(self, header: bytes, field: Field) -> ValueCipher | None:
        """Return the cipher for a stored value, from this session or a session around it."""
        found = self._keyring.reader(header, field) if self.is_open else None
        return found or self._parent.reader(header, field)

    def writer(
        self, owner: OwnerId, scope: str, field: Field, session: Session | None = None
    ) -> ValueCipher | None:
        """Return the cipher for an owner's new values, from this unlocked session or a session around it."""
        found = self._keyring.writer(owner, scope, field) if self.is_open else None
        return self._parent.writer(owner, scope, field, session) if found is None else found

    def index_writer(
        self, owner: OwnerId, scope: str, index: Index, session: Session | None = None
    ) -> IndexHasher | None:
        """Return what makes the tags of an owner's new values, from this session or one around it."""
        found = self._keyring.index_writer(owner, scope, index) if self.is_open else None
        return self._parent.index_writer(owner, scope, index, session) if found is None else found

    def index_seekers(
        self,
        session: Session | None,
        wheres: Mapping[OwnerClass, Location],
        scope: str,
        index: Index,
        *,
        whole: bool,
    ) -> dict[Place, list[IndexHasher]]:
        """Return what makes the tags of the values of each owner who is open here or around this. All grants
        are followed first."""
        found: dict[Place, list[IndexHasher]] = self._parent.index_seekers(
            session, wheres, scope, index, whole=whole
        )
        if not self.is_open:
            return found
        granted = self._unfollowed
        if granted is not None:
            granted.follow_all(session, self)
            self.follows = granted.leads_on or self._parent.follows
        asked = [one for one in list(self.places.values()) if wheres.get(one.owner_class) == one.where]
        reader = session or self.home
        if asked and reader is not None:
            renew_index_keys(Desk(reader, self.policy), self._keyring, dict(self.places), asked, scope)
        for place in asked:
            hashers = self._keyring.index_seekers(place.owner, scope, index, whole=whole)
            if hashers:
                found.setdefault(place, []).extend(hashers)
            else:
                context.refuse_replaced(session, place.owner, place.owner_class)
        return found

    def owner_of(self, header: bytes) -> OwnerId | None:
        """Return the owner of the key that a stored value names, if the key is open here."""
        found = self._keyring.owner_of(header) if self.is_open else None
        return found or self._parent.owner_of(header)

    def __contains__(self, owner: OwnerId) -> bool:
        return (self.is_open and owner in self._keyring) or owner in self._parent

    def only_reads(self, owner: OwnerId) -> bool:
        """Tell whether an owner's values are read here, or around this, and not written."""
        held = self.is_open and owner in self._keyring
        return not held and bool(self._parent.only_reads(owner))

    def drop(self, owner: OwnerId) -> None:
        """Forget an owner whose enrolment was rolled back: values under its keys could never be read."""
        self._keyring.drop(owner)
        place = self.places.pop(owner, None)
        if self._granted is not None and place is not None:
            self._granted.forget(place)
        self._clear_readers()

    def forget_deleted(self, owner_classes: Collection[OwnerClass], owner: OwnerId | None = None) -> None:
        """Forget the keys of a deleted owner. Other owners of these classes may have been deleted, too."""
        if owner is not None and owner in self.places:
            self.drop(owner)
        self._parent.forget_deleted(owner_classes, owner)

    def __del__(self) -> None:
        # An unlock only to authenticate is never entered: it must leave no key behind either.
        UnlockedSession._wipe(self)

    def __repr__(self) -> str:
        names = {place.owner_class.name for place in self.places.values()}
        return (
            f"<{type(self).__name__} of {', '.join(sorted(names)) or 'nobody'}, "
            f"{'open' if self.is_open else 'locked'}>"
        )

    def _wipe(self) -> None:
        for name in ("_keyring", "_former", "_granted"):
            part = getattr(self, name, None)  # missing if a part could not be made
            if part is not None:
                part.wipe()

    def _cipher(self, owner: OwnerId, attribute: EncryptedAttribute) -> ValueCipher | None:
        """Return the cipher that closes a decrypted value when this session is left."""
        return self._keyring.writer(owner, attribute.encrypted.scope, attribute.type.field)
