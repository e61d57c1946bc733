"""Reading and writing the key tables, in the caller's transaction. Nothing here commits.

What is read is checked against its row seal, and what is written gets one, where server keys are configured.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    LargeBinary,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    tuple_,
    type_coerce,
    union_all,
    update,
)

from sqlalchemy_envelope.exceptions import (
    EnvelopeError,
    KdfParametersError,
    OwnerMismatchError,
    RowSealError,
    TamperedKeyError,
)
from sqlalchemy_envelope.keys.model import (
    GrantState,
    KeyState,
    Purpose,
    SlotKind,
    StoredGrant,
    StoredKey,
    StoredSlot,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Table
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.grants import GrantClass
    from sqlalchemy_envelope.orm.owners import OwnerClass

    PrimaryKey = tuple[Any, ...]

MAX_SLOTS = 3
"""Most secret slots that are tried: each costs a derivation, and planted ones would cost many."""
CHUNK = 4000
"""Most values of one `IN`: every supported database takes so many parameters."""


class OwnedKey(NamedTuple):
    """A key row with whose it is: by its foreign key, and by what the owner is bound to."""

    owner: OwnerId
    primary_key: PrimaryKey
    stored: StoredKey
    error: EnvelopeError | None
    """Why it must not be used, if it must not: told with the row, so that a bad row stops its owner alone."""


class _Rows:
    """Statements on the tables of one class, through the session's own connection."""

    def __init__(self, session: Session, mapper: Any, seals: RowSeals) -> None:
        self._session = session
        self._bind = {"mapper": mapper}
        self._seals = seals

    def _execute(self, statement: Any, *rows: Any) -> Any:
        # No autoflush: values may be waiting for the very key that is being unlocked.
        with self._session.no_autoflush:
            return self._session.execute(statement, *rows, bind_arguments=self._bind)

    def _rows(self, query: Any) -> Sequence[Any]:
        result = self._execute(query)
        try:
            rows: Sequence[Any] = result.all()
            return rows
        except (TypeError, ValueError, AttributeError):
            # SQLite stores anything in any column: what SQLAlchemy's own types choke on comes here.
            raise TamperedKeyError("A stored key or slot holds what its columns cannot hold.") from None


class KeyStore(_Rows):
    """The key and slot rows of one class of owners."""

    def __init__(self, session: Session, owner_class: OwnerClass, seals: RowSeals) -> None:
        super().__init__(session, owner_class.key_class.__mapper__, seals)
        self._class = owner_class
        self._keys: Table = owner_class.key_class.__table__
        self.key_id = self._keys.c.key_id
        self._slots: Table = owner_class.slot_class.__table__

    def load(self, primary_keys: Sequence[PrimaryKey], *, for_update: bool = False) -> list[OwnedKey]:
        """Every key of these owners, oldest first. One query for some thousands of owners."""
        found: list[OwnedKey] = []
        for some in _chunks(primary_keys):
            query = self._select().where(_matches(self._class.owner_columns, some))
            found += self._owned(query.with_for_update(of=self._keys) if for_update else query)
        return found

    def load_with(self, key_ids: Iterable[KeyId]) -> list[OwnedKey]:
        """Every key of the owners who have one of these. One query for some thousands."""
        found: list[OwnedKey] = []
        for some in _chunks(list(key_ids)):
            named = self._keys.alias()
            columns = self._class.owner_columns
            owners = select(*(named.c[column.key] for column in columns)).where(named.c.key_id.in_(some))
            matches = columns[0].in_(owners) if len(columns) == 1 else tuple_(*columns).in_(owners)
            found += self._owned(self._select().where(matches))
        return found

    def load_active_roots(self, primary_keys: Sequence[PrimaryKey]) -> dict[OwnerId, OwnedKey]:
        """The active root key of each of these owners that has one; its public key is what others seal to."""
        c, found = self._keys.c, []
        for some in _chunks(primary_keys):
            query = self._select().where(_matches(self._class.owner_columns, some))
            found += self._owned(query.where(c.purpose == Purpose.ROOT, c.state == KeyState.ACTIVE))
        return {one.owner: one for one in found}

    def load_held(self, key_ids: Iterable[bytes]) -> list[tuple[OwnedKey, OwnedKey, StoredSlot]]:
        """These data keys, each with the root key that wraps it and a provider's slot of that. One query for
        some thousands; what no provider holds is left out."""
        found = []
        roots, slots = self._keys.alias(), self._slots
        columns = [roots.c[column.key] for column in self._class.owner_columns]
        for some in _chunks([uuid.UUID(bytes=key_id) for key_id in key_ids]):
            query = self.select_keys(*_key_columns(roots), *columns, *_slot_columns(slots))
            query = query.join(roots, roots.c.key_id == self._keys.c.wrapping_key_id)
            query = query.join(slots, slots.c.key_id == roots.c.key_id)
            query = query.where(self._keys.c.key_id.in_(some), slots.c.kind == SlotKind.PROVIDER)
            for row in self._rows(query):
                data = self.owned(row)
                start = _KEY_WIDTH + len(columns) + (self._class.reference_attribute is not None)
                root_row = row[start : start + _KEY_WIDTH + len(columns)]
                root = self.owned((*root_row, *row[_KEY_WIDTH + len(columns) : start]))
                slot = _stored_slot(row[start + len(root_row) :])
                self._seals.check(slot.seal, self._class.label, slot.sealed_fields())
                found.append((data, root, slot))
        return found

    def exists(self, primary_key: PrimaryKey, key_id: KeyId) -> bool:
        """Whether this owner has this key."""
        c = self._keys.c
        mine = _matches(self._class.owner_columns, [primary_key])
        return bool(self._rows(select(c.key_id).where(c.key_id == key_id, mine)))

    def load_granted(self, key_ids: Iterable[KeyId]) -> dict[KeyId, int]:
        """How many grants were made of these keys, of those that are still active."""
        c = self._keys.c
        found: dict[KeyId, int] = {}
        for some in _chunks(list(key_ids)):
            query = select(c.key_id, c.granted).where(c.key_id.in_(some), c.state == KeyState.ACTIVE)
            found.update(tuple(row) for row in self._rows(query))
        return found

    def load_slots(
        self, key_ids: Iterable[KeyId], kind: SlotKind | None = None, limit: int | None = None
    ) -> list[StoredSlot]:
        """The slots of these root keys. One query for some thousands."""
        c, found = self._slots.c, []
        for some in _chunks(list(key_ids)):
            query = self._class.selects.get("slots")
            if query is None:
                query = select(*_slot_columns(self._slots)).order_by(c.slot_id)
                self._class.selects["slots"] = query
            query = query.where(c.key_id.in_(some)).limit(limit)
            found += [
                _stored_slot(row)
                for row in self._rows(query if kind is None else query.where(c.kind == kind))
            ]
        for slot in found:
            self._seals.check(slot.seal, self._class.label, slot.sealed_fields())
        return found

    def insert_keys(self, keys: Sequence[tuple[PrimaryKey, StoredKey]]) -> None:
        """Write new key rows, a root before what it wraps."""
        names = [column.key for column in self._class.owner_columns]
        rows = [
            {
                **vars(key),
                **dict(zip(names, primary_key, strict=True)),
                "purpose": key.purpose.value,
                "state": key.state.value,
                "seal": self._seal(key),
            }
            for primary_key, key in keys
        ]
        if rows:
            self._execute(insert(self._keys), rows)

    def insert_slots(self, slots: Sequence[StoredSlot]) -> None:
        """Write new slots."""
        rows = [{**vars(slot), "kind": slot.kind.value, "seal": self._seal(slot)} for slot in slots]
        if rows:
            self._execute(insert(self._slots), rows)

    def delete_slots(self, slots: Sequence[StoredSlot]) -> None:
        """Delete slots: what they opened no longer opens this way."""
        self._execute(self._slots.delete().where(self._slots.c.slot_id.in_([one.slot_id for one in slots])))

    def replace_slot(self, old: StoredSlot, new: StoredSlot) -> bool:
        """Replace a slot's wrap, unless somebody else did in the meantime; tells whether it did."""
        c = self._slots.c
        statement = update(self._slots).where(c.slot_id == old.slot_id, c.wrapped == old.wrapped)
        result = self._execute(
            statement.values(
                kdf=new.kdf,
                wrapped=new.wrapped,
                recipient_public_key=new.recipient_public_key,
                provider_ref=new.provider_ref,
                provider_wrapped=new.provider_wrapped,
                seal=self._seal(new),
            )
        )
        return bool(result.rowcount == 1)

    def replace_keys(self, keys: Sequence[StoredKey]) -> None:
        """Replace what may change of key rows: what they are bound to, their state and their wrap."""
        statement = (
            update(self._keys)
            .where(self._keys.c.key_id == bindparam("this_key"))
            .values(
                owner_reference=bindparam("owner_reference"),
                state=bindparam("state"),
                wrapping_key_id=bindparam("wrapping_key_id"),
                wrapped=bindparam("wrapped"),
                retired_at=func.coalesce(self._keys.c.retired_at, bindparam("retired_at")),
                seal=bindparam("seal"),
            )
        )
        now = dt.datetime.now(dt.UTC)
        rows = [
            {
                "this_key": key.key_id,
                "owner_reference": key.owner_reference,
                "state": key.state.value,
                "wrapping_key_id": key.wrapping_key_id,
                "wrapped": key.wrapped,
                "retired_at": None if key.state is KeyState.ACTIVE else now,
                "seal": self._seal(key),
            }
            for key in keys
        ]
        if rows:
            self._execute(statement, rows)

    def add_granted(self, counts: Sequence[tuple[KeyId, int]]) -> None:
        """Count grants that were made of keys."""
        c = self._keys.c
        statement = update(self._keys).where(c.key_id == bindparam("this_key"))
        rows = [{"this_key": key_id, "more": more} for key_id, more in counts]
        if rows:
            self._execute(statement.values(granted=c.granted + bindparam("more")), rows)

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = KeyStore(self._session, self._class, type(self._seals)())
        found = unchecked._owned(unchecked._select())
        keys = [one.stored for one in _parsed(found)]
        slots = unchecked.load_slots([key.key_id for key in keys if key.purpose is Purpose.ROOT])
        for table, id_column, sealed in (
            (self._keys, self._keys.c.key_id, [(key.key_id, self._seal(key)) for key in keys]),
            (self._slots, self._slots.c.slot_id, [(slot.slot_id, self._seal(slot)) for slot in slots]),
        ):
            statement = update(table).where(id_column == bindparam("this")).values(seal=bindparam("seal"))
            if sealed:
                self._execute(statement, [{"this": this, "seal": seal} for this, seal in sealed])
        return len(keys) + len(slots)

    def _seal(self, record: StoredKey | StoredSlot) -> bytes | None:
        return self._seals.seal(self._class.label, record.sealed_fields()) if self._seals.is_on else None

    def _select(self) -> Any:
        query = self._class.selects.get("keys")
        if query is None:
            c = self._keys.c
            query = self.select_keys().order_by(c.purpose, c.scope, c.epoch)
            self._class.selects["keys"] = query
        return query

    def select_keys(self, *more: Any) -> Any:
        """Every column that `owned` reads, and more after them."""
        columns = [*_key_columns(self._keys), *self._class.owner_columns]
        attribute = self._class.reference_attribute
        if attribute is None:
            return select(*columns, *more).select_from(self._keys)
        table = self._class.primary_key[0].table
        on = [a == b for a, b in zip(self._class.owner_columns, self._class.primary_key, strict=True)]
        columns.append(self._class.mapper.columns[attribute])
        return select(*columns, *more).select_from(self._keys.join(table, and_(*on)))

    def _owned(self, query: Any) -> list[OwnedKey]:
        return [self.owned(row) for row in self._rows(query)]

    def owned(self, row: Any) -> OwnedKey:
        """One row of `select_keys`, checked."""
        end = _KEY_WIDTH + len(self._class.owner_columns)
        primary_key = tuple(row[_KEY_WIDTH:end])
        owner = reference = self._class.owner_id(primary_key)
        try:
            stored = _stored_key(row)
        except TamperedKeyError as altered:
            # A stand-in with its id, so that whoever meets a value under it is told why it does not open.
            stored = StoredKey(row[0], b"", Purpose.DATA, "", 0, KeyState.RETIRED, b"", b"")
            return OwnedKey(owner, primary_key, stored, altered)
        if self._class.reference_attribute is not None:
            reference = self._class.owner_id((row[end],))
        error: EnvelopeError | None = None
        if self._seals.is_on:
            try:
                self._seals.check(stored.seal, self._class.label, stored.sealed_fields())
            except RowSealError as broken:
                error = broken
        if stored.owner_reference != reference:
            error = error or OwnerMismatchError(
                f"Keys stored for this {self._class.name} are bound to another owner. If its table was "
                "renamed, pin the old name: `__owner_label__ = 'old_name'` on the class. If its primary key "
                "was changed, bind the keys anew: envelope.rebind(session, owner, secret=...). If neither, "
                "they were moved here."
            )
        return OwnedKey(owner, primary_key, stored, error)


class GrantStore(_Rows):
    """The grants of one class."""

    def __init__(self, session: Session, grant: GrantClass, seals: RowSeals) -> None:
        super().__init__(session, grant.mapper, seals)
        self._grant = grant
        self._table = grant.companion

    def load_to(
        self, recipients: Sequence[PrimaryKey]
    ) -> list[tuple[StoredGrant, EnvelopeError | None, OwnedKey]]:
        """What these owners were granted, whatever root key it was sealed to, with the rows of the keys that
        were granted. One query for some thousands of owners."""
        of = KeyStore(self._session, self._grant.of.owner_class, self._seals)
        to_class = self._grant.to.owner_class
        to_keys = to_class.key_class.__table__.alias()
        owner_columns = tuple(to_keys.c[column.key] for column in to_class.owner_columns)
        found = []
        for some in _chunks(recipients):
            query = of.select_keys(*self._columns(), *owner_columns)
            query = query.join(self._table, self._table.c.key_id == of.key_id)
            query = query.join(to_keys, to_keys.c.key_id == self._table.c.recipient_key_id)
            for row in self._rows(query.where(_matches(owner_columns, some))):
                cut = len(row) - len(owner_columns)
                recipient = to_class.owner_id(tuple(row[cut:]))
                grant, error = self._stored(row[cut - self._width : cut], recipient)
                found.append((grant, error, of.owned(row)))
        return found

    def load_of(
        self, key_ids: Iterable[KeyId], state: GrantState | None = None
    ) -> list[tuple[StoredGrant, PrimaryKey, PrimaryKey]]:
        """The grants of these keys, with the primary key of each one's row and of its recipient. What was
        planted is left out: a row without its seal, and one whose granting row names somebody else now."""
        table, found, to = self._grant.table, [], self._grant.to
        rows, key = self._grant.row_columns, self._grant.row_key
        on = and_(*(a == b for a, b in zip(rows, key, strict=True)))
        to_keys = to.owner_class.key_class.__table__.alias()
        sealed_to = [to_keys.c[column.key] for column in to.owner_class.owner_columns]
        both = self._table.join(table, on).outerjoin(
            to_keys, to_keys.c.key_id == self._table.c.recipient_key_id
        )
        end = self._width + len(sealed_to)
        for some in _chunks(list(key_ids)):
            query = select(*self._columns(), *to.columns, *sealed_to).select_from(both)
            query = query.where(self._table.c.key_id.in_(some))
            for row in self._rows(query if state is None else query.where(self._table.c.state == state)):
                row_key = tuple(row[self._width - len(key) : self._width])
                named = tuple(row[self._width : end])
                grant, error = self._stored(row[: self._width], to.owner_class.owner_id(named))
                if error is None and (grant.recipient_key_id is None or tuple(row[end:]) == named):
                    found.append((grant, row_key, named))
        return found

    def insert(self, grants: Sequence[tuple[PrimaryKey, StoredGrant]]) -> None:
        """Write new grants, in one statement."""
        names = [column.key for column in self._grant.row_columns]
        rows = [
            {**_grant_values(grant), **dict(zip(names, row_key, strict=True)), "seal": self._seal(grant)}
            for row_key, grant in grants
        ]
        if rows:
            self._execute(insert(self._table), rows)

    def replace(self, grants: Sequence[StoredGrant]) -> None:
        """Replace grants that were sealed or adopted."""
        c = self._table.c
        statement = (
            update(self._table)
            .where(c.grant_id == bindparam("this_grant"))
            .values(
                recipient_key_id=bindparam("recipient_key_id"),
                state=bindparam("state"),
                wrapped=bindparam("wrapped"),
                seal=bindparam("seal"),
            )
        )
        rows = [
            {
                "this_grant": grant.grant_id,
                "recipient_key_id": grant.recipient_key_id,
                "state": grant.state.value,
                "wrapped": grant.wrapped,
                "seal": self._seal(grant),
            }
            for grant in grants
        ]
        if rows:
            self._execute(statement, rows)

    def delete(self, row_keys: Sequence[PrimaryKey]) -> None:
        """Delete every grant through these rows, which now refer to somebody else."""
        for some in _chunks(row_keys):
            self._execute(self._table.delete().where(_matches(self._grant.row_columns, some)))

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = GrantStore(self._session, self._grant, type(self._seals)())
        to = self._grant.to
        on = zip(self._grant.row_columns, self._grant.row_key, strict=True)
        joined = self._table.join(self._grant.table, and_(*(a == b for a, b in on)))
        grants = []
        for row in self._rows(select(*self._columns(), *to.columns).select_from(joined)):
            recipient = to.owner_class.owner_id(tuple(row[self._width :]))
            grant, error = unchecked._stored(row[: self._width], recipient)
            if error is not None:
                raise error
            grants.append(grant)
        self.replace(grants)
        return len(grants)

    @property
    def _width(self) -> int:
        return 6 + len(self._grant.row_columns)

    def _columns(self) -> tuple[Any, ...]:
        c = self._table.c
        return (
            c.grant_id,
            c.key_id,
            c.recipient_key_id,
            c.state,
            _raw(c.wrapped).label("grant_wrapped"),
            _raw(c.seal).label("grant_seal"),
            *self._grant.row_columns,
        )

    def _stored(self, row: Any, recipient: OwnerId) -> tuple[StoredGrant, EnvelopeError | None]:
        try:
            state = GrantState(row[3])
            wrapped, seal = (None if row[at] is None else _bytes(row[at]) for at in (4, 5))
        except ValueError:
            altered = TamperedKeyError("A stored grant has a state that no grant has.")
            return StoredGrant(row[0], b"", row[1], row[2], GrantState.PENDING), altered
        except TamperedKeyError as altered:
            return StoredGrant(row[0], b"", row[1], row[2], GrantState.PENDING), altered
        granting_row = self._grant.granting_row(tuple(row[6:]))
        grant = StoredGrant(row[0], granting_row, row[1], row[2], state, wrapped, seal, recipient)
        if self._seals.is_on:
            try:
                self._seals.check(grant.seal, self._grant.label, grant.sealed_fields())
            except RowSealError as error:
                return grant, error
        return grant, None

    def _seal(self, grant: StoredGrant) -> bytes | None:
        return self._seals.seal(self._grant.label, grant.sealed_fields()) if self._seals.is_on else None


class GrantCounts(NamedTuple):
    """What there is of the grants of one key."""

    rows: int
    pending: int
    stale: int
    """Sealed to, or wrapped under, a key of the recipient that was retired since."""


def count_grants(
    session: Session, grants: Sequence[GrantClass], key_ids: Iterable[KeyId]
) -> dict[KeyId, GrantCounts]:
    """The grants of these keys, counted over all classes of grants. One query for some thousands of keys."""
    counts: dict[KeyId, GrantCounts] = {}
    for some in _chunks(list(key_ids)):
        queries = []
        for grant in grants:
            c, to_keys = grant.companion.c, grant.to.owner_class.key_class.__table__
            retired = case((to_keys.c.state != KeyState.ACTIVE, 1), else_=0)
            queries.append(
                select(
                    c.key_id,
                    func.count().label("rows"),
                    func.sum(case((c.state == GrantState.PENDING, 1), else_=0)).label("pending"),
                    func.sum(retired).label("stale"),
                )
                .select_from(grant.companion.outerjoin(to_keys, to_keys.c.key_id == c.recipient_key_id))
                .where(c.key_id.in_(some))
                .group_by(c.key_id)
            )
        rows = _Rows(session, grants[0].mapper, None)._rows(union_all(*queries))  # type: ignore[arg-type]
        for key_id, count, pending, stale in rows:
            sums = (int(count), int(pending or 0), int(stale or 0))
            counts[key_id] = GrantCounts(*map(sum, zip(counts.get(key_id, (0, 0, 0)), sums, strict=True)))
    return counts


def usable(keys: Iterable[OwnedKey]) -> list[OwnedKey]:
    """The same keys, if each may be used.

    Raises:
        RowSealError, OwnerMismatchError: one may not.
    """
    found = list(keys)
    for one in found:
        if one.error is not None:
            raise one.error
    return found


def _parsed(keys: Iterable[OwnedKey]) -> Iterator[OwnedKey]:
    for one in keys:
        if isinstance(one.error, TamperedKeyError):
            raise one.error
        yield one


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def _matches(columns: Sequence[Any], keys: Sequence[PrimaryKey]) -> Any:
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return or_(*(and_(*(a == b for a, b in zip(columns, key, strict=True))) for key in keys))


def _grant_values(grant: StoredGrant) -> dict[str, Any]:
    return {
        "grant_id": grant.grant_id,
        "key_id": grant.key_id,
        "recipient_key_id": grant.recipient_key_id,
        "state": grant.state.value,
        "wrapped": grant.wrapped,
    }


class _RawBytes(LargeBinary):
    """Bytes as the driver gives them. SQLAlchemy's own type calls `bytes()` on them, and `bytes(n)` of an
    integer that was planted in a binary column of SQLite allocates n bytes."""

    def result_processor(self, dialect: Any, coltype: object) -> None:
        """None: nothing is done to them."""


def _raw(column: Any) -> Any:
    return type_coerce(column, _RawBytes())


def _bytes(value: object, size: int | None = None) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)) or size not in (None, len(value)):
        raise TamperedKeyError(
            "A stored key has something else than bytes of its size where bytes are stored."
        )
    return bytes(value)


def _key_columns(keys: Any) -> tuple[Any, ...]:
    c = keys.c
    return (
        c.key_id, _raw(c.owner_reference), c.purpose, c.scope, c.epoch, c.state, _raw(c.commitment),
        _raw(c.public_key), _raw(c.mlkem_public_key), c.wrapping_key_id, _raw(c.wrapped), _raw(c.proof),
        c.granted, _raw(c.seal),
    )  # fmt: skip


def _slot_columns(slots: Table) -> tuple[Any, ...]:
    c = slots.c
    return (
        c.slot_id, c.key_id, c.kind, c.kdf, _raw(c.wrapped), _raw(c.recipient_public_key), c.provider_ref,
        _raw(c.provider_wrapped), _raw(c.seal),
    )  # fmt: skip


_KEY_WIDTH = 14
_PURPOSES = {purpose.value: purpose for purpose in Purpose}
_STATES = {state.value: state for state in KeyState}


def _stored_key(row: Any) -> StoredKey:
    purpose, state = _PURPOSES.get(row[2]), _STATES.get(row[5])
    if purpose is None or state is None:
        raise TamperedKeyError("A stored key has a purpose or state that no key has.")
    scope, epoch, granted = row[3], row[4], row[12]
    if not isinstance(scope, str) or not isinstance(epoch, int) or not isinstance(granted, int):
        raise TamperedKeyError("A stored key has a scope or epoch that no key has.")
    if not 0 <= epoch < 2**32:
        raise TamperedKeyError(f"A stored key says it is of epoch {epoch}; no key is.")
    return StoredKey(
        row[0],
        _bytes(row[1]),
        purpose,
        scope,
        epoch,
        state,
        _bytes(row[6], 32),
        _bytes(row[7], 32),
        None if row[8] is None else _bytes(row[8], 1184),
        row[9],
        None if row[10] is None else _bytes(row[10]),
        _proof(row[11]),
        granted,
        None if row[13] is None else _bytes(row[13]),
    )


def _proof(value: object) -> bytes | None:
    if value is None:
        return None
    proof = _bytes(value)
    if len(proof) not in (32, 64):
        raise TamperedKeyError("A stored key has a proof of another size than proofs have.")
    return proof


def _stored_slot(row: Any) -> StoredSlot:
    kdf, reference = row[3] or "", row[6]
    if not isinstance(kdf, str) or not isinstance(reference, (str, type(None))):
        raise KdfParametersError("The stored key-derivation string is no text.")
    try:
        kind = SlotKind(row[2])
    except ValueError:
        raise TamperedKeyError("A stored slot is of a kind that no slot is of.") from None
    return StoredSlot(
        row[0],
        row[1],
        kind,
        kdf,
        _bytes(row[4]),
        None if row[5] is None else _bytes(row[5], 32),
        reference,
        None if row[7] is None else _bytes(row[7]),
        None if row[8] is None else _bytes(row[8]),
    )
