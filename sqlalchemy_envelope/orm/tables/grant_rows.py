"""Reading and writing the tables of grants, in the caller's transaction, as `store` does those of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, exists, func, insert, select, update

from sqlalchemy_envelope.exceptions import EnvelopeError, RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind, StoredGrant
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, given, made_once, matches, pairs, values_of
from sqlalchemy_envelope.orm.tables.stored_rows import raw, stored_bytes

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.owners import GrantClass
    from sqlalchemy_envelope.orm.tables.stored_rows import OwnedKey

    PrimaryKey = tuple[Any, ...]


class GrantStore(Rows):
    """The grants of one class."""

    def __init__(self, session: Session, grant: GrantClass, seals: RowSeals) -> None:
        super().__init__(session, grant.mapper, seals)
        self._grant = grant
        self._table = grant.companion

    def load_to(
        self, recipients: Sequence[PrimaryKey], of_owners: Sequence[PrimaryKey] | None = None
    ) -> list[tuple[StoredGrant, EnvelopeError | None, OwnedKey]]:
        """What these owners were granted, whatever root key it was sealed to, with the rows of the keys that
        were granted. One query for some thousands of owners. The granting row says whose key it is and for
        whom, as it is now: a grant that was made when it said something else is void.

        Args:
            recipients: of one class, by primary key.
            of_owners: the owners of whose keys grants are asked for; None for all.
        """
        of = KeyStore(self._session, self._grant.of.owner_class, self._seals)
        to_class = self._grant.to.owner_class
        owners, holders = self._grant.of.owner_class.owner_columns, to_class.owner_columns
        whole = of_owners is None
        query = self._made_once(("to", whole), lambda: self._query_to(of, whole=whole))
        found = []
        for some in chunks(recipients):
            for part in [None] if of_owners is None else chunks(of_owners):
                values = {"holders": values_of(holders, some)}
                if part is not None:
                    values["owners"] = values_of(owners, part)
                for row in self._rows(query, values):
                    cut = len(row) - len(holders)
                    recipient = to_class.reference_of(tuple(row[cut:]))
                    grant, error = self._stored(row[cut - self._width : cut], recipient)
                    found.append((grant, error, of.owned(row)))
        return found

    def _query_to(self, of: KeyStore, *, whole: bool) -> Any:
        to_class, owners = self._grant.to.owner_class, self._grant.of.owner_class.owner_columns
        to_keys = to_class.key_class.__table__.alias()
        holders = tuple(to_keys.c[column.key] for column in to_class.owner_columns)
        query = of.select_keys(*self._columns(), *holders)
        query = query.join(self._table, self._table.c.key_id == of.key_id)
        query = query.join(to_keys, to_keys.c.key_id == self._table.c.recipient_key_id)
        query = query.join(self._grant.table, self._on_row()).where(
            *pairs(self._grant.of.columns, owners), *pairs(self._grant.to.columns, holders)
        )
        query = query.where(given(holders, "holders"))
        return query if whole else query.where(given(owners, "owners"))

    def leads_from(self, recipient: PrimaryKey) -> bool:
        """Whether any key was granted to this owner."""
        query = self._made_once("leads", self._query_leads)
        return bool(self._rows(query, {"holders": values_of(self._grant.to.columns, [recipient])}))

    def _query_leads(self) -> Any:
        query = select(self._table.c.grant_id).join(self._grant.table, self._on_row()).limit(1)
        query = query.where(given(self._grant.to.columns, "holders"))
        return query.where(self._table.c.recipient_key_id.is_not(None))

    def load_held(self, key_ids: Sequence[KeyId], provider: str) -> list[tuple[KeyId, PrimaryKey]]:
        """For each of these keys that was granted to an owner whose root key a provider holds: the key, and
        the first such owner."""
        query = self._made_once(("held", provider), lambda: self._query_held(provider))
        return [
            (row[0], tuple(row[1:]))
            for some in chunks(key_ids)
            for row in self._rows(query, {"key_ids": some})
        ]

    def _query_held(self, provider: str) -> Any:
        to, c = self._grant.to.owner_class, self._table.c
        sealed_to, active = to.key_class.__table__.alias(), to.key_class.__table__.alias()
        slots = to.slot_class.__table__
        holders = [active.c[column.key] for column in to.owner_columns]
        sealed = [sealed_to.c[column.key] for column in to.owner_columns]
        number = func.row_number().over(partition_by=c.key_id, order_by=holders)
        labelled = [column.label(f"holder_{at}") for at, column in enumerate(holders)]
        numbered = (
            select(c.key_id, *labelled, number.label("number"))
            .join(self._grant.table, self._on_row())
            .join(sealed_to, sealed_to.c.key_id == c.recipient_key_id)
            .join(active, and_(*pairs(holders, sealed)))
            .join(slots, slots.c.key_id == active.c.key_id)
            .where(
                given([c.key_id], "key_ids"),
                *pairs(self._grant.to.columns, holders),
                active.c.purpose == Purpose.ROOT,
                active.c.state == KeyState.ACTIVE,
                slots.c.kind == SlotKind.PROVIDER,
                slots.c.provider_ref.startswith(f"{provider} ", autoescape=True),
            )
            .subquery()
        )
        *columns, last = numbered.c
        return select(*columns).where(last == 1)

    def load_of(
        self,
        key_ids: Iterable[KeyId],
        state: GrantState | None = None,
        *,
        without: KeyId | None = None,
        held: bool = False,
    ) -> list[tuple[StoredGrant, PrimaryKey, PrimaryKey]]:
        """The grants of these keys, with the primary key of each one's row and of its recipient. What was
        planted is left out: a row without its seal, and one whose granting row names somebody else now.

        Args:
            key_ids: of one class of owners.
            state: those in this state alone.
            without: those alone through whose granting row this key is not granted.
            held: hold the granting rows, so that a grant can be added to each: nobody deletes one meanwhile.
        """
        found, grant = [], self._grant
        query = self._made_once(("of", state), lambda: self._query_of(state))
        if without is not None:
            query = query.where(~self._is_granted(without))
        if held:
            # As the foreign key of a new grant does: whoever reads or changes the row is not in the way.
            query = query.with_for_update(of=grant.table, read=True, key_share=True)
        end = self._width + len(grant.to.owner_class.owner_columns)
        for some in chunks(list(key_ids)):
            for row in self._rows(query, {"key_ids": some}, locks=held):
                row_key = tuple(row[self._width - len(grant.row_key) : self._width])
                named = tuple(row[self._width : end])
                one, error = self._stored(row[: self._width], grant.to.owner_class.reference_of(named))
                if error is None and (one.recipient_key_id is None or tuple(row[end:]) == named):
                    found.append((one, row_key, named))
        return found

    def _query_of(self, state: GrantState | None) -> Any:
        grant, c = self._grant, self._table.c
        to_keys = grant.to.owner_class.key_class.__table__.alias()
        keys = grant.of.owner_class.key_class.__table__.alias()
        sealed_to = [to_keys.c[column.key] for column in grant.to.owner_class.owner_columns]
        owners = [keys.c[column.key] for column in grant.of.owner_class.owner_columns]
        both = (
            self._table.join(grant.table, self._on_row())
            .join(keys, and_(keys.c.key_id == c.key_id, *pairs(grant.of.columns, owners)))
            .outerjoin(to_keys, to_keys.c.key_id == c.recipient_key_id)
        )
        query = select(*self._columns(), *grant.to.columns, *sealed_to).select_from(both)
        query = query.where(given([c.key_id], "key_ids"))
        return query if state is None else query.where(c.state == state)

    def keys_with_missing(self, key_ids: Iterable[KeyId]) -> set[KeyId]:
        """Those of these keys that are not granted through each row that says so. A row that no flush added
        is among them: it grants nothing."""
        found: set[KeyId] = set()
        query = self._made_once("missing", self._query_missing)
        for some in chunks(list(key_ids)):
            found.update(row[0] for row in self._rows(query, {"key_ids": some}))
        return found

    def _query_missing(self) -> Any:
        of = self._grant.of
        keys = of.owner_class.key_class.__table__
        on = and_(*pairs(of.columns, of.owner_class.owner_columns))
        query = select(keys.c.key_id).join(self._grant.table, on).distinct()
        return query.where(given([keys.c.key_id], "key_ids"), ~self._is_granted(keys.c.key_id))

    def _made_once(self, name: object, make: Callable[[], Any]) -> Any:
        return made_once(self._grant.selects, name, make)

    def _is_granted(self, key_id: Any) -> Any:
        """Whether a key is granted through a granting row, of a statement that reads those."""
        there = self._table.alias()
        rows = [there.c[column.key] for column in self._grant.row_columns]
        return exists().where(there.c.key_id == key_id, *pairs(rows, self._grant.row_key))

    def _on_row(self) -> Any:
        return and_(*pairs(self._grant.row_columns, self._grant.row_key))

    def insert(self, grants: Sequence[tuple[PrimaryKey, StoredGrant]]) -> None:
        """Write new grants, in one statement."""
        names = [column.key for column in self._grant.row_columns]
        rows = [
            {**_grant_values(grant), **dict(zip(names, row_key, strict=True)), "seal": self._seal(grant)}
            for row_key, grant in grants
        ]
        if rows:
            self._execute(insert(self._table), rows)

    def free(self, grant_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
        """Those of these grants whose rows no other transaction holds; they are held here from now on."""
        return self._free(self._table.c.grant_id, grant_ids)

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

    def load_checked(self, key_ids: Sequence[KeyId]) -> list[tuple[StoredGrant, EnvelopeError | None]]:
        """Every grant of these keys with a granting row, each with why it must not be used, if so."""
        to, found = self._grant.to, []
        joined = self._table.join(self._grant.table, self._on_row())
        query = select(*self._columns(), *to.columns).select_from(joined)
        for some in chunks(key_ids):
            for row in self._rows(query.where(self._table.c.key_id.in_(some))):
                recipient = to.owner_class.reference_of(tuple(row[self._width :]))
                found.append(self._stored(row[: self._width], recipient))
        return found

    def renew_seals(self, grants: Sequence[StoredGrant]) -> int:
        """Seal these grants under the active server key; how many were still as they were read."""
        c = self._table.c
        rows = [(one.grant_id, one.seal, self._seal(one)) for one in grants]
        return self.update_each(self._table, (c.grant_id, c.seal), (c.seal,), rows)

    def delete(self, row_keys: Sequence[PrimaryKey]) -> None:
        """Delete every grant through these rows, which now refer to somebody else."""
        for some in chunks(row_keys):
            self._execute(self._table.delete().where(matches(self._grant.row_columns, some)))

    def delete_with(self, *, of_keys: Sequence[KeyId] = (), to_keys: Sequence[KeyId] = ()) -> None:
        """Delete every grant of these keys, and every grant that is under one of the others."""
        c = self._table.c
        for column, key_ids in ((c.key_id, of_keys), (c.recipient_key_id, to_keys)):
            for some in chunks(key_ids):
                self._execute(self._table.delete().where(column.in_(some)))

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = GrantStore(self._session, self._grant, type(self._seals)())
        to = self._grant.to
        joined = self._table.join(self._grant.table, self._on_row())
        grants = []
        for row in self._rows(select(*self._columns(), *to.columns).select_from(joined)):
            recipient = to.owner_class.reference_of(tuple(row[self._width :]))
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
            raw(c.wrapped).label("grant_wrapped"),
            raw(c.seal).label("grant_seal"),
            *self._grant.row_columns,
        )

    def _stored(self, row: Any, recipient: OwnerId) -> tuple[StoredGrant, EnvelopeError | None]:
        try:
            state = GrantState(row[3])
            wrapped, seal = (None if row[at] is None else stored_bytes(row[at]) for at in (4, 5))
        except ValueError:
            altered = TamperedKeyError("A stored grant has an unknown state.")
            return StoredGrant(row[0], b"", row[1], row[2], GrantState.PENDING), altered
        except TamperedKeyError as altered:
            return StoredGrant(row[0], b"", row[1], row[2], GrantState.PENDING), altered
        granting_row = self._grant.granting_row(tuple(row[6:]))
        grant = StoredGrant(row[0], granting_row, row[1], row[2], state, wrapped, seal, recipient)
        if self._seals.is_on:
            try:
                self._seals.check(grant.seal, self._grant.label, grant.sealed_fields(), self._realm)
            except RowSealError as error:
                return grant, error
        return grant, None

    def _seal(self, grant: StoredGrant) -> bytes | None:
        if not self._seals.is_on:
            return None
        return self._seals.seal(self._grant.label, grant.sealed_fields(), self._realm)


def load_granting_rows(
    session: Session, grant: GrantClass, recipients: Sequence[PrimaryKey]
) -> list[tuple[PrimaryKey, PrimaryKey]]:
    """Of the granting rows of a class that name one of these recipients: whose key each grants, and to
    whom."""
    rows, found = Rows(session, grant.mapper, None), []  # type: ignore[arg-type]  # nothing of it is sealed
    cut, columns = len(grant.of.columns), (*grant.of.columns, *grant.to.columns)
    query = made_once(
        grant.selects, "rows", lambda: select(*columns).where(given(grant.to.columns, "holders"))
    )
    for some in chunks(recipients):
        read = rows._rows(query, {"holders": values_of(grant.to.columns, some)})
        found += [(tuple(row[:cut]), tuple(row[cut:])) for row in read]
    return found


def load_recipients(session: Session, grant: GrantClass, owners: Sequence[PrimaryKey]) -> list[PrimaryKey]:
    """To whom the granting rows of a class grant the keys of these owners."""
    rows = Rows(session, grant.mapper, None)  # type: ignore[arg-type]  # nothing of it is sealed
    query = made_once(
        grant.selects,
        "recipients",
        lambda: select(*grant.to.columns).where(given(grant.of.columns, "owners")).distinct(),
    )
    return [
        tuple(row)
        for some in chunks(owners)
        for row in rows._rows(query, {"owners": values_of(grant.of.columns, some)})
    ]


def _grant_values(grant: StoredGrant) -> dict[str, Any]:
    return {
        "grant_id": grant.grant_id,
        "key_id": grant.key_id,
        "recipient_key_id": grant.recipient_key_id,
        "state": grant.state.value,
        "wrapped": grant.wrapped,
    }
