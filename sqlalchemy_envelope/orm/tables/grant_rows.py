"""Reading and writing the tables of grants, in the caller's transaction, as `store` does those of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, bindparam, case, func, insert, select, union_all, update

from sqlalchemy_envelope.exceptions import EnvelopeError, RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys.model import GrantState, KeyState, StoredGrant
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, Rows, chunks, matches, raw, stored_bytes

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.keys.row_seals import RowSeals
    from sqlalchemy_envelope.orm.tables.key_rows import OwnedKey
    from sqlalchemy_envelope.orm.tables.owners import GrantClass

    PrimaryKey = tuple[Any, ...]


class GrantStore(Rows):
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
        for some in chunks(recipients):
            query = of.select_keys(*self._columns(), *owner_columns)
            query = query.join(self._table, self._table.c.key_id == of.key_id)
            query = query.join(to_keys, to_keys.c.key_id == self._table.c.recipient_key_id)
            for row in self._rows(query.where(matches(owner_columns, some))):
                cut = len(row) - len(owner_columns)
                recipient = to_class.reference_of(tuple(row[cut:]))
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
        for some in chunks(list(key_ids)):
            query = select(*self._columns(), *to.columns, *sealed_to).select_from(both)
            query = query.where(self._table.c.key_id.in_(some))
            for row in self._rows(query if state is None else query.where(self._table.c.state == state)):
                row_key = tuple(row[self._width - len(key) : self._width])
                named = tuple(row[self._width : end])
                grant, error = self._stored(row[: self._width], to.owner_class.reference_of(named))
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

    def delete(self, row_keys: Sequence[PrimaryKey]) -> None:
        """Delete every grant through these rows, which now refer to somebody else."""
        for some in chunks(row_keys):
            self._execute(self._table.delete().where(matches(self._grant.row_columns, some)))

    def reseal(self) -> int:
        """Seal every row anew under the active server key, whatever seal it has; how many."""
        unchecked = GrantStore(self._session, self._grant, type(self._seals)())
        to = self._grant.to
        on = zip(self._grant.row_columns, self._grant.row_key, strict=True)
        joined = self._table.join(self._grant.table, and_(*(a == b for a, b in on)))
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
            altered = TamperedKeyError("A stored grant has a state that no grant has.")
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
    for some in chunks(list(key_ids)):
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
        rows = Rows(session, grants[0].mapper, None)._rows(union_all(*queries))  # type: ignore[arg-type]
        for key_id, count, pending, stale in rows:
            sums = (int(count), int(pending or 0), int(stale or 0))
            counts[key_id] = GrantCounts(*map(sum, zip(counts.get(key_id, (0, 0, 0)), sums, strict=True)))
    return counts


def _grant_values(grant: StoredGrant) -> dict[str, Any]:
    return {
        "grant_id": grant.grant_id,
        "key_id": grant.key_id,
        "recipient_key_id": grant.recipient_key_id,
        "state": grant.state.value,
        "wrapped": grant.wrapped,
    }
