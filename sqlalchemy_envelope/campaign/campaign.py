"""A campaign: keys for every owner now, though most are away; claimed as they come back, and then closed."""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, and_, exists, func, or_, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, configure_mappers, sessionmaker

from sqlalchemy_envelope.campaign.report import CampaignReport, CampaignStatus, Released
from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    EnvelopeError,
    MigrationRefusedError,
    MigrationStoppedError,
    ProviderError,
    TransactionConflictError,
)
from sqlalchemy_envelope.keys.hierarchy import bound_keys, new_keys
from sqlalchemy_envelope.keys.model import GrantState, KeyState, Purpose, SlotKind
from sqlalchemy_envelope.keys.slots import provider_slot
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.current.policy import note_policy
from sqlalchemy_envelope.orm.sharing.epochs import Recipient, grant_to, start_epoch
from sqlalchemy_envelope.orm.tables.bases import mappers_of, require_registries
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.collisions import collided, may_pass
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore, chunks, matches, usable
from sqlalchemy_envelope.orm.tables.keyset import beyond
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs import claim
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sqlalchemy_envelope.keys.model import OpenedKey, StoredKey, StoredSlot
    from sqlalchemy_envelope.keys.slots import ProviderKek
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.verbs.envelope import Envelope

    PrimaryKey = tuple[Any, ...]
    Progress = Callable[[str, int], None]

_MOST_COLLISIONS = 20
"""Most times that one batch is begun anew because others enrol the same owners."""

_PART = 500
"""Most owners that one statement names."""


@emptying_class
class Campaign:
    """Keys for owners who are away, from `provide` over their claims to `close`.

    Args:
        engine: an engine, or what makes sessions.
        envelope: the application's, with the campaign's provider among its `providers`.
        base: the declarative base of the models, or a registry.
        provider: the campaign's, by its name.

    Raises:
        ConfigurationError: there is no such provider, or it is not one of a campaign's.
    """

    def __init__(
        self,
        engine: Engine | Callable[[], Session],
        envelope: Envelope,
        base: Any,
        provider: str = "campaign",
    ) -> None:
        self._sessions: Callable[[], Session]
        if isinstance(engine, Engine):
            self._sessions = sessionmaker(engine)
        elif callable(engine):
            self._sessions = engine
        else:
            raise ConfigurationError(f"{engine!r} is neither an Engine nor a maker of sessions.")
        self.policy, self.provider = envelope.policy, provider
        self._providers = envelope.policy.require_providers()
        self._calls = self._providers.named(provider)
        if not self._calls.is_campaign:
            raise ConfigurationError(
                f"Provider {provider!r} is no campaign's. A key that is destroyed at the end has to be one "
                "that nothing else is under: CampaignKeyFile, OfflinePublicKey, or CampaignKey(AwsKms(...))."
            )
        self._require_own_key()
        self._classes = _owner_classes(base)

    def _require_own_key(self) -> None:
        for name, calls in self._providers.calls.items():
            if name != self.provider and calls.reference == self._calls.reference:
                raise ConfigurationError(
                    f"Provider {name!r} is under the same key as campaign {self.provider!r}, and would be "
                    "destroyed with it: make a key for the campaign."
                )

    # ------------------------------------------------------------ keys for everybody

    def provide(
        self, *classes: type[Any], batch: int = 500, progress: Callable[[str, int], None] | None = None
    ) -> int:
        """Make keys for every owner who has none, of these classes or of all; how many.

        Each batch is a transaction of its own. Run again, it goes on, and finds who came meanwhile. Of owners
        that are shared, as groups are, the keys are granted to whoever the rows of their `KeyGrant` name.

        Args:
            classes: of whom; left out, of every `KeyOwner` of the base.
            batch: how many owners a transaction.
            progress: called after each with the name of the class and how many of it were made.

        Raises:
            MigrationStoppedError: others go on making keys for the same owners at the same moments.
            ProviderError: the provider failed.
        """
        wanted = [_class_named(self._classes, one) for one in classes] or self._classes
        # Who is granted something needs keys that it is sealed to.
        in_order = sorted(wanted, key=lambda one: bool(one.grants_of))
        return sum(self._provide(one, batch, progress) for one in in_order)

    def _provide(self, owner_class: OwnerClass, batch: int, progress: Progress | None) -> int:
        after: PrimaryKey | None = None
        made = collisions = 0
        while True:
            kek = self._kek(self.provider)
            try:
                with self._sessions() as session, session.begin():
                    found = self._without_keys(session, owner_class, after, batch)
                    count = self._make(session, owner_class, found, kek)
            except (DBAPIError, TransactionConflictError) as error:
                # Somebody deleted one of them: now it is not among them any more. Or a lock, or a conflict.
                if not (may_pass(error) or collided(error)):
                    raise
                collisions += 1
                if collisions > _MOST_COLLISIONS:
                    raise MigrationStoppedError(
                        f"Others enrol {owner_class.name} rows in the same moments; run provide() again, "
                        "it goes on."
                    ) from error
                time.sleep(min(0.01 * 2**collisions, 1.0))
                continue
            if not found:
                return made
            collisions, after, made = 0, found[-1][0], made + count
            self.policy.emit(self._event("campaign_provided", owner_class.name, count))
            if progress is not None:
                progress(owner_class.name, made)

    def _kek(self, name: str) -> ProviderKek:
        ready = self._providers.ready_for_new(name)
        return (
            ready
            if ready is not None and not self._providers.needs_new(name)
            else self._providers.wrap_new(name)
        )

    def _without_keys(
        self, session: Session, owner_class: OwnerClass, after: PrimaryKey | None, batch: int
    ) -> list[tuple[PrimaryKey, bytes]]:
        """Some owners without keys, in the order of their primary keys, and what theirs would be bound to."""
        keys, table = owner_class.primary_key, owner_class.key_class.__table__
        owned = and_(*(a == b for a, b in zip(owner_class.owner_columns, keys, strict=True)))
        query = select(*keys).where(~exists(select(table.c.key_id).where(owned))).order_by(*keys).limit(batch)
        if owner_class.reference_attribute is not None:
            column = owner_class.mapper.columns[owner_class.reference_attribute]
            query = query.add_columns(column).where(column.is_not(None))
        if after is not None:
            dialect = session.get_bind(owner_class.mapper).dialect.name
            query = query.where(beyond(keys, after, dialect))
        rows = self._rows(session, owner_class, query)
        return [
            (
                tuple(row[: len(keys)]),
                owner_class.reference_of(tuple(row[len(keys) :] if len(row) > len(keys) else row)),
            )
            for row in rows
        ]

    def _make(
        self,
        session: Session,
        owner_class: OwnerClass,
        found: Sequence[tuple[PrimaryKey, bytes]],
        kek: ProviderKek,
    ) -> int:
        """Make their keys, but for those whose keys others made meanwhile; for how many."""
        note_policy(session, self.policy)
        store = KeyStore(session, owner_class, self.policy.seals)
        made = [
            (primary_key, bound_keys(new_keys(owner_class.scopes, hybrid=self.policy.hybrid), reference))
            for primary_key, reference in found
        ]
        try:
            stored = store.insert_first_of(
                [
                    (primary_key, [one.stored for one in keys], [provider_slot(keys[0], kek)])
                    for primary_key, keys in made
                ]
            )
            mine = {primary_key: keys for primary_key, keys in made if keys[0].stored.key_id in stored}
            if owner_class.grants_of and mine:
                self._grant(session, store, owner_class, mine)
            return len(mine)
        finally:
            for _, keys in made:
                for one in keys:
                    one.key.wipe()

    def _grant(
        self,
        session: Session,
        store: KeyStore,
        owner_class: OwnerClass,
        made: dict[PrimaryKey, list[OpenedKey]],
    ) -> None:
        """Grant new keys to those whom rows named before there were any."""
        for grant in owner_class.grants_of:
            of, end = grant.of.columns, len(grant.row_key) + len(grant.of.columns)
            query = select(*grant.row_key, *of, *grant.to.columns)
            to: dict[PrimaryKey, list[Recipient]] = {}
            for some in _parts(list(made)):
                for row in self._rows(session, owner_class, query.where(matches(of, some))):
                    row_key, owner = tuple(row[: len(grant.row_key)]), tuple(row[len(grant.row_key) : end])
                    if None not in row[end:]:
                        to.setdefault(owner, []).append(Recipient(grant, row_key, tuple(row[end:])))
            for owner, recipients in to.items():
                key = next(one for one in made[owner] if _is_granted(one.stored, grant.scope))
                grant_to(session, self.policy, store, key, recipients)

    # ------------------------------------------------------------ where it stands

    def status(self) -> dict[str, CampaignStatus]:
        """How many owners of each class stand where."""
        with self._sessions() as session, session.begin():
            return {one.name: self._status(session, one) for one in self._classes}

    def _status(self, session: Session, owner_class: OwnerClass) -> CampaignStatus:
        owners = select(func.count()).select_from(owner_class.primary_key[0].table)
        total: int = self._rows(session, owner_class, owners)[0][0]
        at = _Standing(owner_class, self.provider)
        standing = select(
            at.has_secret.label("secret"),
            at.waits.label("waits"),
            at.is_provisional.label("provisional"),
            at.was_claimed.label("claimed"),
            at.is_as_claimed.label("as_claimed"),
            at.is_shared.label("shared"),
        ).where(at.is_active)
        each = standing.subquery()
        query = select(*each.c, func.count()).group_by(*each.c)
        counts = dict.fromkeys((f.name for f in fields(CampaignStatus)), 0)
        for secret, waits, provisional, claimed, as_claimed, shared, count in self._rows(
            session, owner_class, query
        ):
            if secret:
                counts["claimed" if claimed else "enrolled"] += count
                counts["hardened"] += count if claimed and not as_claimed else 0
            elif shared:
                counts["shared"] += count
            elif provisional:
                counts["waiting" if waits else "unclaimed"] += count
            else:
                counts["other"] += count
        with_keys = sum(counts.values()) - counts["hardened"]
        return CampaignStatus(**{**counts, "owners": total, "unprovided": total - with_keys})

    # ------------------------------------------------------------ custodians

    def release(
        self,
        session: Session,
        owners: Iterable[object] | None = None,
        *,
        unsafe_without_row_seals: bool = False,
    ) -> Released:
        """Hand their keys to owners who chose a secret and wait; where the private half of the offline key
        is. Never commits.

        Args:
            session: whose transaction it is.
            owners: whom; left out, all who wait.
            unsafe_without_row_seals: do it though nothing tells a secret that was chosen through the
                application from one that somebody with access to the database put there to be given the keys.

        Raises:
            MigrationRefusedError: there are no server keys, and so no row seals.
            ConfigurationError: the private half is not here.
            TransactionConflictError: one of them chose another secret at the same moment.
        """
        if not self.policy.seals.is_on and not unsafe_without_row_seals:
            raise MigrationRefusedError(
                "Without row seals whoever can write to the database can have put a secret of their own "
                "among those that wait, and would be given the keys: configure server_keys, or look at each "
                "owner and pass unsafe_without_row_seals=True."
            )
        self._require_opening()
        note_policy(session, self.policy)
        places = (
            None if owners is None else [locate_enrolled(session, one, self.policy).place for one in owners]
        )
        released = refused = 0
        for owner_class in self._classes:
            at = _Standing(owner_class, self.provider)
            wanted = (
                None
                if places is None
                else [one.primary_key for one in places if one.owner_class is owner_class]
            )
            for some in _parts(self._owners(session, owner_class, and_(at.is_active, at.waits), wanted)):
                done = 0
                store = KeyStore(session, owner_class, self.policy.seals)
                for keys, slots in self._loaded(session, owner_class, store, some):
                    try:
                        done += claim.release(
                            self.policy, store, _usable_keys(keys), _usable_slots(slots), self.provider
                        )
                    except (ProviderError, TransactionConflictError):
                        raise
                    except EnvelopeError:
                        refused += 1
                        self.policy.emit(self._event("release_refused", owner_class.name, 1))
                released += done
                if done:
                    self.policy.emit(self._event("claim_released", owner_class.name, done))
        return Released(released, refused)

    # ------------------------------------------------------------ the end

    def close(
        self, policy: str = "refuse", *, confirm: int | None = None, batch: int = 500
    ) -> CampaignReport:
        """Take the campaign's last slots away and destroy its key. Can be run again.

        Before, take the campaign's provider out of every other process: what one of them would still enrol
        under it is lost with the key.

        Args:
            policy: what becomes of those who have not claimed their keys. "refuse": do not close. "keep":
                they keep their slots, and the key is not destroyed. "provider:NAME": their keys are put under
                that provider. "shred": nobody will ever open their data again.
            confirm: for "shred", how many owners that is.
            batch: how many owners a transaction.

        Raises:
            MigrationRefusedError: some are unclaimed, or other slots than expected are left.
            ConfigurationError: there is no such policy.
            ProviderError: the provider failed; what was done stays done.
        """
        to = self._target(policy)
        found = self.status()
        total = sum(found.values(), CampaignStatus())
        left = total.unclaimed + total.waiting
        if policy == "refuse" and left:
            raise MigrationRefusedError(
                f"{left} owners have not claimed their keys. Wait, or say what becomes of them: "
                'close("keep"), close("provider:NAME"), or close("shred", ...), after which nobody opens '
                "their data any more."
            )
        if policy == "shred" and confirm != left:
            raise MigrationRefusedError(
                f"This makes the data of {left} owners unreadable for ever, for them and for everybody: if "
                f'that is meant, close("shred", confirm={left}).'
            )
        rewrapped = sum(self._rewrap(one, to, batch) for one in self._classes) if to is not None else 0
        for owner_class in self._classes:
            self._let_go(owner_class, batch)
        shredded = self._shred(left) if policy == "shred" else 0
        kept = self._left()
        if kept and policy != "keep":
            raise MigrationRefusedError(
                f"{kept} owners still depend on the campaign's key: they came meanwhile, or their rows were "
                "altered and do not open. The key was not destroyed; look at status() and close again."
            )
        report = CampaignReport(
            self.provider, self._calls.reference, policy, found, kept, rewrapped, shredded
        )
        report = report if kept else self._destroy(report)
        self.policy.emit(self._event("campaign_closed", "every class", total.claimed))
        return report

    def _target(self, policy: str) -> str | None:
        kind, _, name = policy.partition(":")
        if policy not in ("refuse", "keep", "shred") and kind != "provider":
            raise ConfigurationError(f"{policy!r} is none of 'refuse', 'keep', 'shred' and 'provider:NAME'.")
        if kind != "provider":
            return None
        self._providers.named(name)
        if name == self.provider:
            raise ConfigurationError("The keys are under this provider already; name another one.")
        self._require_opening()
        return name

    def _require_opening(self) -> None:
        if not self._calls.can_open:
            raise ConfigurationError(
                f"Provider {self.provider!r} is the public half of an offline key. Run this where its "
                "custodians configure OfflineKey(...) under the same name."
            )

    def _rewrap(self, owner_class: OwnerClass, to: str, batch: int) -> int:
        at = _Standing(owner_class, self.provider)
        condition = and_(at.is_active, at.is_provisional, ~at.has_secret, ~at.is_shared)
        done = 0
        with self._sessions() as session, session.begin():
            owners = self._owners(session, owner_class, condition, None)
        for start in range(0, len(owners), batch):
            kek = self._kek(to)
            with self._sessions() as session, session.begin():
                note_policy(session, self.policy)
                store = KeyStore(session, owner_class, self.policy.seals)
                for keys, slots in self._loaded(session, owner_class, store, owners[start : start + batch]):
                    try:
                        claim.rewrap(
                            self.policy, store, _usable_keys(keys), _usable_slots(slots), self.provider, kek
                        )
                        done += 1
                    except (ProviderError, TransactionConflictError):
                        raise
                    except EnvelopeError:
                        self.policy.emit(self._event("rewrap_refused", owner_class.name, 1))
        return done

    def _let_go(self, owner_class: OwnerClass, batch: int) -> None:
        """Of owners whom others open, take the campaign's slots away; what was its alone stays."""
        at = _Standing(owner_class, self.provider)
        others = or_(at.has_secret, at.is_shared)
        with self._sessions() as session, session.begin():
            owners = self._owners(session, owner_class, and_(at.is_active, at.is_anywhere, others), None)
            shared = set(
                self._owners(session, owner_class, and_(at.is_active, at.is_provisional, others), None)
            )
        for start in range(0, len(owners), batch):
            with self._sessions() as session, session.begin():
                note_policy(session, self.policy)
                some = owners[start : start + batch]
                self._delete_slots(session, owner_class, matches(owner_class.owner_columns, some))
                for primary_key in some:
                    if self.policy.harden_claims and primary_key in shared:
                        place = Names(session).place(owner_class, primary_key)
                        start_epoch(session, self.policy, place, None)

    def _shred(self, expected: int) -> int:
        """All in one transaction: as many as were agreed to, and no one else."""
        with self._sessions() as session, session.begin():
            count = 0
            for owner_class in self._classes:
                at = _Standing(owner_class, self.provider)
                owners = self._owners(session, owner_class, at.is_anywhere, None)
                count += len(owners)
                for some in _parts(owners):
                    self._delete_slots(session, owner_class, matches(owner_class.owner_columns, some))
            if count > expected:
                raise MigrationRefusedError(
                    f"{count} owners would be shredded and not {expected}: more came meanwhile. Nothing was "
                    "done."
                )
        if count:
            self.policy.emit(self._event("campaign_shredded", "every class", count))
        return count

    def _left(self) -> int:
        """How many owners have a slot of the campaign still."""
        with self._sessions() as session, session.begin():
            conditions = [(one, _Standing(one, self.provider).is_anywhere) for one in self._classes]
            return sum(len(self._owners(session, one, condition, None)) for one, condition in conditions)

    def _destroy(self, report: CampaignReport) -> CampaignReport:
        self._providers.forget_provider(self.provider)
        destroy: Callable[[], str | None] | None = getattr(self._calls.provider, "destroy", None)
        remaining: str | None = f"Destroy {report.reference} where it is kept: nothing here can."
        if destroy is not None:
            try:
                remaining = destroy()
            except Exception as error:
                raise ProviderError(
                    f"The slots of campaign {self.provider!r} are gone and its key is not: "
                    f"{type(error).__name__}. Close it again, or destroy the key by hand."
                ) from error
        return CampaignReport(**{**vars(report), "destroyed": destroy is not None, "by_hand": remaining})

    # ------------------------------------------------------------ rows

    def _loaded(
        self, session: Session, owner_class: OwnerClass, store: KeyStore, owners: Sequence[PrimaryKey]
    ) -> Iterator[tuple[list[Any], list[StoredSlot] | EnvelopeError]]:
        """The key rows of each of these owners, and the slots of its root keys or why they must not be used;
        with every KEK at hand: it is asked for before the first of them is written."""
        rows: dict[bytes, list[Any]] = {}
        for row in store.load(owners):
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
                loaded = store.load_slots(some)
            except EnvelopeError:
                loaded = []
                for key_id in some:  # one altered row is not to stop all the others
                    try:
                        loaded += store.load_slots([key_id])
                    except EnvelopeError as error:
                        altered[roots[key_id]] = error
            for slot in loaded:
                slots.setdefault(roots[slot.key_id], []).append(slot)
        for slot in {one.provider_wrapped: one for found in slots.values() for one in found}.values():
            if slot.kind is SlotKind.PROVIDER and self._providers.of(slot) == self.provider:
                self._providers.open(slot)
        for owner, found in rows.items():
            yield found, altered.get(owner) or slots.get(owner, [])

    def _owners(
        self, session: Session, owner_class: OwnerClass, condition: Any, among: Sequence[PrimaryKey] | None
    ) -> list[PrimaryKey]:
        """The owners of a class that have a key of which this holds."""
        columns = owner_class.owner_columns
        query = select(*columns).where(condition).distinct().order_by(*columns)
        queries = (
            [query] if among is None else [query.where(matches(columns, some)) for some in _parts(among)]
        )
        return [tuple(row) for one in queries for row in self._rows(session, owner_class, one)]

    def _delete_slots(self, session: Session, owner_class: OwnerClass, owned: Any) -> None:
        """Delete the campaign's slots of some owners."""
        keys, slots = owner_class.key_class.__table__, owner_class.slot_class.__table__
        mine = slots.c.key_id.in_(select(keys.c.key_id).where(keys.c.purpose == Purpose.ROOT, owned))
        statement = slots.delete().where(mine, _held_by(slots, self.provider))
        session.execute(statement, bind_arguments=bind_for(session, owner_class.mapper, statement))

    def _rows(self, session: Session, owner_class: OwnerClass, query: Any) -> Sequence[Any]:
        bind = bind_for(session, owner_class.mapper, query)
        rows: Sequence[Any] = session.execute(query, bind_arguments=bind).all()
        return rows

    def _event(self, name: str, owner_class: str, count: int) -> AuditEvent:
        return AuditEvent(name, owner_class, count=count, provider=self.provider)

    def __repr__(self) -> str:
        return f"<Campaign {self.provider!r}>"


class _Standing:
    """Conditions on one class's key rows, that tell where their owner stands in a campaign."""

    def __init__(self, owner_class: OwnerClass, provider: str) -> None:
        keys, slots = owner_class.key_class.__table__, owner_class.slot_class.__table__
        all_keys = keys.alias()
        of_owner = and_(*(all_keys.c[one.key] == one for one in owner_class.owner_columns))
        c, mine = slots.c, slots.c.key_id == keys.c.key_id
        claimed = c.label.startswith(f"{claim.CLAIMED} {provider} ", autoescape=True)
        anywhere = slots.join(all_keys, all_keys.c.key_id == c.key_id)
        is_secret = c.kind == SlotKind.SECRET
        grants = [one.companion for one in owner_class.grants_of if one.scope is None]
        self.is_active = and_(keys.c.purpose == Purpose.ROOT, keys.c.state == KeyState.ACTIVE)
        self.has_secret = _any(slots, mine, is_secret, func.length(c.wrapped) > 0)
        self.waits = _any(slots, mine, is_secret, func.length(c.wrapped) == 0)
        self.is_provisional = _any(slots, mine, _held_by(slots, provider))
        self.is_anywhere = _any(anywhere, of_owner, _held_by(slots, provider))
        self.was_claimed = _any(anywhere, of_owner, is_secret, claimed)
        self.is_as_claimed = _any(slots, mine, is_secret, claimed)
        self.is_shared = or_(
            *(_any(one, one.c.key_id == keys.c.key_id, one.c.state != GrantState.PENDING) for one in grants),
            keys.c.key_id.is_(None),
        )


def _parts(owners: Sequence[PrimaryKey]) -> Iterator[Sequence[PrimaryKey]]:
    """Some at a time, for statements of a bearable length."""
    return (owners[start : start + _PART] for start in range(0, len(owners), _PART))


def _usable_keys(rows: Iterable[Any]) -> list[StoredKey]:
    return [row.stored for row in usable(rows)]


def _usable_slots(slots: list[StoredSlot] | EnvelopeError) -> list[StoredSlot]:
    if isinstance(slots, EnvelopeError):
        raise slots
    return slots


def _any(table: Any, *conditions: Any) -> Any:
    return exists(select(1).select_from(table).where(*conditions))


def _held_by(slots: Any, provider: str) -> Any:
    return and_(
        slots.c.kind == SlotKind.PROVIDER, slots.c.provider_ref.startswith(f"{provider} ", autoescape=True)
    )


def _is_granted(key: StoredKey, scope: str | None) -> bool:
    return (
        key.purpose is Purpose.ROOT if scope is None else key.purpose is Purpose.DATA and key.scope == scope
    )


def _owner_classes(base: Any) -> list[OwnerClass]:
    require_registries(base)
    configure_mappers()
    classes = {owner_class_of(mapper.local_table) for mapper in mappers_of(base)}
    known = [
        one for one in classes if one is not None and one.key_class is not None and one.slot_class is not None
    ]
    return sorted(known, key=lambda one: one.name)


def _class_named(classes: Sequence[OwnerClass], wanted: type[Any]) -> OwnerClass:
    found = owner_class_of(getattr(wanted, "__table__", None))
    if found is None or found not in classes:
        raise ConfigurationError(f"{wanted!r} is no class of key owners of this base.")
    return found
