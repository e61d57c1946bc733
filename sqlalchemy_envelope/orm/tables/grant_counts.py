"""How many grants a key has, of those that were made: whether somebody was removed shows in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Select, and_, bindparam, case, func, or_, select, union_all

from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose
from sqlalchemy_envelope.orm.tables.rows import Rows, chunks, made_once, pairs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.keys.model import KeyId
    from sqlalchemy_envelope.orm.tables.owners import GrantClass

    PrimaryKey = tuple[Any, ...]


class GrantCounts(NamedTuple):
    """What there is of one key and its grants, at one moment."""

    granted: int
    """How many were made."""
    is_active: bool
    owner: PrimaryKey
    rows: int = 0
    pending: int = 0
    stale: int = 0
    """Sealed to, or wrapped under, a key of the recipient that was retired since."""
    void: int = 0
    """Of a granting row that names somebody else now."""

    @property
    def is_left(self) -> bool:
        """Whether somebody may have this key who has no right to what is written from now on."""
        return self.is_removed or (self.is_active and self.stale > 0)

    @property
    def is_removed(self) -> bool:
        """Whether somebody was removed from this key's owner, and not from one that it was granted to."""
        return self.is_active and (self.rows != self.granted or self.void > 0)


def count_grants(
    session: Session,
    grants: Sequence[GrantClass],
    key_ids: Iterable[KeyId],
    recipients_of: GrantClass | None = None,
) -> dict[KeyId, GrantCounts]:
    """These keys with their grants, counted over all classes of grants. One statement for some thousands of
    keys: how many there should be and how many there are is read at one moment.

    Args:
        session: where.
        grants: of the classes of owners whose keys they are.
        key_ids: the keys.
        recipients_of: count instead the grants of the root keys that lead to these keys through grants of
            this class.
    """
    counts: dict[KeyId, GrantCounts] = {}
    rows = Rows(session, grants[0].mapper, None)  # type: ignore[arg-type]  # nothing of it is sealed
    query = made_once(
        grants[0].selects, ("counts", recipients_of, *grants), lambda: _count_queries(grants, recipients_of)
    )
    for part in [rows._rows(query, {"key_ids": some}) for some in chunks(list(key_ids))]:
        for key_id, state, granted, there, pending, stale, void, *owner in part:
            known = counts.get(key_id, GrantCounts(granted, state == KeyState.ACTIVE, tuple(owner)))
            counts[key_id] = known._replace(
                rows=known.rows + int(there),
                pending=known.pending + int(pending or 0),
                stale=known.stale + int(stale or 0),
                void=known.void + int(void or 0),
            )
    return counts


def _count_queries(grants: Sequence[GrantClass], through: GrantClass | None) -> Any:
    key_ids: Any = bindparam("key_ids", expanding=True)
    if through is not None:
        key_ids = _recipients_of(through, key_ids)
    queries = [count_query(grant, key_ids) for grant in grants]
    return queries[0] if len(queries) == 1 else union_all(*queries)


def count_query(grant: GrantClass, key_ids: Any) -> Select[Any]:
    """A query for these keys with their grants of one class, counted."""
    c, of, to = grant.companion.c, grant.of.owner_class, grant.to.owner_class
    keys, to_keys = of.key_class.__table__.alias(), to.key_class.__table__.alias()
    owners = [keys.c[column.key] for column in of.owner_columns]
    others = [
        *(a != b for a, b in zip(grant.of.columns, owners, strict=True)),
        *(a != to_keys.c[b.key] for a, b in zip(grant.to.columns, to.owner_columns, strict=True)),
    ]
    read = (
        keys.outerjoin(grant.companion, c.key_id == keys.c.key_id)
        .outerjoin(grant.table, and_(*pairs(grant.row_columns, grant.row_key)))
        .outerjoin(to_keys, to_keys.c.key_id == c.recipient_key_id)
    )
    counted: Any = (
        select(
            keys.c.key_id,
            keys.c.state,
            keys.c.granted,
            func.count(c.grant_id).label("rows"),
            func.sum(case((c.state == GrantState.PENDING, 1), else_=0)).label("pending"),
            func.sum(case((to_keys.c.state != KeyState.ACTIVE, 1), else_=0)).label("stale"),
            func.sum(case((or_(*others), 1), else_=0)).label("void"),
            *(owner.label(f"owner_{at}") for at, owner in enumerate(owners)),
        )
        .select_from(read)
        .where(keys.c.key_id.in_(key_ids))
        .group_by(keys.c.key_id, keys.c.state, keys.c.granted, *owners)
    )
    return counted  # type: ignore[no-any-return]  # with as many columns as there are


def _recipients_of(grant: GrantClass, key_ids: Any) -> Select[Any]:
    """A query for the root keys that lead to these keys, through grants of one class.

    These are the root keys that the keys are sealed to, or wrapped under, and the active root keys of the
    same recipients. A grant may be sealed to a root key that was retired since. The next grant is sealed to
    the active root key, so whoever was removed from that key matters as well.
    """
    c, to = grant.companion.c, grant.to.owner_class
    sealed_to, keys = to.key_class.__table__.alias(), to.key_class.__table__.alias()
    same_owner = (sealed_to.c[column.key] == keys.c[column.key] for column in to.owner_columns)
    is_active_root = and_(keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.ACTIVE)
    return (
        select(keys.c.key_id)
        .select_from(
            grant.companion.join(sealed_to, sealed_to.c.key_id == c.recipient_key_id).join(
                keys, and_(*same_owner)
            )
        )
        .where(c.key_id.in_(key_ids), or_(keys.c.key_id == sealed_to.c.key_id, is_active_root))
    )
