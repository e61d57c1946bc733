"""Make keys for owners without keys, batch by batch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, exists, select
from sqlalchemy.exc import DBAPIError

from sqlalchemy_envelope.campaign.owner_rows import OwnerRows, parts
from sqlalchemy_envelope.exceptions import MigrationStoppedError, TransactionConflictError
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.keys.slots import provider_slot
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.sharing.new_grants import grant_to
from sqlalchemy_envelope.orm.sharing.recipients import Recipient
from sqlalchemy_envelope.orm.tables.collisions import collided, may_pass
from sqlalchemy_envelope.orm.tables.keyset import beyond
from sqlalchemy_envelope.orm.tables.rows import matches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy_envelope.campaign.setting import Setting
    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

    PrimaryKey = tuple[Any, ...]
    Progress = Callable[[str, int], None]

_MOST_COLLISIONS = 20
"""The largest number of times that a batch is repeated because others enrol the same owners."""


class Providing:
    """Makes keys for every owner without keys. Each batch is a transaction of its own."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def provide(self, owner_class: OwnerClass, batch: int, progress: Progress | None) -> int:
        """Make keys for every owner of a class without keys, and count the owners that got keys."""
        after: PrimaryKey | None = None
        made = collisions = 0
        while True:
            kek = self._setting.new_kek(self._setting.provider)
            try:
                with self._setting.transaction() as session:
                    rows = OwnerRows(self._setting, session, owner_class)
                    found = self._without_keys(rows, after, batch)
                    count = self._make(rows, found, kek)
            except (DBAPIError, TransactionConflictError) as error:
                # An owner was deleted, and the next query does not find it. Or a lock, or a conflict.
                if not (may_pass(error) or collided(error)):
                    raise
                collisions += 1
                if collisions > _MOST_COLLISIONS:
                    raise MigrationStoppedError(
                        f"Other processes enrolled owners of {owner_class.name} at this moment. Run "
                        "provide() again: it goes on from here."
                    ) from error
                time.sleep(min(0.01 * 2**collisions, 1.0))
                continue
            if not found:
                return made
            collisions, after, made = 0, found[-1][0], made + count
            self._setting.tell("campaign_provided", owner_class.name, count)
            if progress is not None:
                progress(owner_class.name, made)

    def _without_keys(
        self, rows: OwnerRows, after: PrimaryKey | None, batch: int
    ) -> list[tuple[PrimaryKey, bytes]]:
        """A batch of owners without keys, by primary key, each with the reference to bind its keys to."""
        owner_class = rows.owner_class
        keys, table = owner_class.primary_key, owner_class.key_class.__table__
        owned = and_(*(a == b for a, b in zip(owner_class.owner_columns, keys, strict=True)))
        query = select(*keys).where(~exists(select(table.c.key_id).where(owned))).order_by(*keys).limit(batch)
        if owner_class.reference_attribute is not None:
            column = owner_class.mapper.columns[owner_class.reference_attribute]
            query = query.add_columns(column).where(column.is_not(None))
        if after is not None:
            dialect = rows.session.get_bind(owner_class.mapper).dialect.name
            query = query.where(beyond(keys, after, dialect))
        return [
            (
                tuple(row[: len(keys)]),
                owner_class.reference_of(tuple(row[len(keys) :] if len(row) > len(keys) else row)),
            )
            for row in rows.rows(query)
        ]

    def _make(self, rows: OwnerRows, found: Sequence[tuple[PrimaryKey, bytes]], kek: ProviderKek) -> int:
        """Make the owners' keys, except where others did so meanwhile, and count the owners that got keys."""
        of, hybrid = rows.owner_class, self._setting.policy.hybrid
        made = [
            (primary_key, bound_keys(new_keys(of.scopes, of.indexed, hybrid=hybrid), reference))
            for primary_key, reference in found
        ]
        try:
            stored = rows.store.insert_first_of(
                [
                    (primary_key, [one.stored for one in keys], [provider_slot(keys[0], kek)])
                    for primary_key, keys in made
                ]
            )
            mine = {primary_key: keys for primary_key, keys in made if keys[0].stored.key_id in stored}
            if rows.owner_class.grants_of and mine:
                self._grant(rows, mine)
            return len(mine)
        finally:
            for _, keys in made:
                for one in keys:
                    one.key.wipe()

    def _grant(self, rows: OwnerRows, made: dict[PrimaryKey, list[OpenedKey]]) -> None:
        """Grant new keys to the recipients that granting rows named before the keys were made."""
        for grant in rows.owner_class.grants_of:
            of, end = grant.of.columns, len(grant.row_key) + len(grant.of.columns)
            query = select(*grant.row_key, *of, *grant.to.columns)
            to: dict[PrimaryKey, list[Recipient]] = {}
            for some in parts(list(made)):
                for row in rows.rows(query.where(matches(of, some))):
                    row_key, owner = tuple(row[: len(grant.row_key)]), tuple(row[len(grant.row_key) : end])
                    if None not in row[end:]:
                        to.setdefault(owner, []).append(Recipient(grant, row_key, tuple(row[end:])))
            for owner, recipients in to.items():
                key = next(one for one in made[owner] if _is_granted(one.stored, grant.scope))
                grant_to(Desk(rows.session, self._setting.policy), rows.store, key, recipients)


def _is_granted(key: StoredKey, scope: str | None) -> bool:
    return (
        key.purpose is Purpose.ROOT if scope is None else key.purpose is Purpose.DATA and key.scope == scope
    )
