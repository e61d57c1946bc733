"""`KeyGrant`: a mapped class whose rows grant a key of one owner to another.

The row is the right. The key itself, sealed to the recipient, is in a companion table with a foreign key to
the row: however the row is deleted, its wraps are deleted with it.
"""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from sqlalchemy import (
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    event,
    inspect,
)
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.schema import conv

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.followed import check_following, follow
from sqlalchemy_envelope.orm.tables.generated import GrantNames, Name, fill_in, generate, name_indexes, now
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID, GrantClass, History
from sqlalchemy_envelope.orm.tables.records import records_of_mapper, records_of_table
from sqlalchemy_envelope.orm.tables.two_owners import names_no_owners, paths_to_two
from sqlalchemy_envelope.orm.tables.watched import watch_name

if TYPE_CHECKING:
    from sqlalchemy import Column
    from sqlalchemy.orm import Mapper, RelationshipProperty

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass


class KeyGrant:
    """Mixin: each row of the class grants a key of one owner to another. Add a row to grant, delete it to
    revoke. The wraps are in `<table>_keygrant`, which the class `__grant_class__` maps.

    The recipient may be away and gives no secret: the key is sealed to their public key, and they have it
    from their next unlock on. If nobody who is unlocked holds the key, the grant is pending until a holder
    unlocks. When a row is deleted, its wraps are deleted with it, and a new epoch starts for the owners that
    remain.

    Class keywords:
        of: the attribute or column that refers to the owner whose key is granted.
        to: the attribute or column that refers to the recipient, which is a `KeyOwner` too.
        scope: the scope whose data key is granted; left out, the owner's root key and so every scope.
        history: "shared": a new member reads what was written before. "from_join": each join starts a new
            epoch.
        follows: a class of memberships, which grants the key of a group to this class's owner. A flush that
            adds or deletes a membership adds or deletes its row here, and a foreign key ties the two rows
            together.
        grant_names: other names for the companion table and its class, `GrantNames(table="member_keys")`.

    Class attributes:
        __grant_label__: the name that grants are bound to in place of the table's name. Set it to the old
            name before a rename.
    """

    __grant_label__: ClassVar[str | None] = None
    __grant_names__: ClassVar[GrantNames] = GrantNames()
    __grant_follows__: ClassVar[type[KeyGrant] | None] = None
    if TYPE_CHECKING:
        __grant_class__: ClassVar[type[KeyGrantTable]]
    __grant_options__: ClassVar[tuple[str | tuple[str, ...], str | tuple[str, ...], str | None, History]]

    def __init_subclass__(
        cls,
        of: str | tuple[str, ...] | None = None,
        to: str | tuple[str, ...] | None = None,
        scope: str | None = None,
        history: History = "shared",
        follows: type[KeyGrant] | None = None,
        grant_names: GrantNames | None = None,
        **kwargs: Any,
    ) -> None:
        if grant_names is not None:
            cls.__grant_names__ = grant_names
        if follows is not None:
            if not (isinstance(follows, type) and issubclass(follows, KeyGrant)):
                raise ConfigurationError(
                    f"{cls.__name__}: follows= takes a class of memberships, a KeyGrant."
                )
            cls.__grant_follows__ = follows
        if history not in ("shared", "from_join"):
            raise ConfigurationError(f"{cls.__name__}: history={history!r}; use 'shared' or 'from_join'.")
        if of is not None and to is not None:
            cls.__grant_options__ = of, to, scope, history
        elif of is not None or to is not None:
            raise ConfigurationError(f"{cls.__name__}: a KeyGrant names both, of= and to=.")
        super().__init_subclass__(**kwargs)


_GRANT = "grant"
_complete_grants: WeakKeyDictionary[Mapper[Any], None] = WeakKeyDictionary()
_waiting: WeakKeyDictionary[Mapper[Any], None] = WeakKeyDictionary()
_secondaries: WeakKeyDictionary[RelationshipProperty[Any], None] = WeakKeyDictionary()


def grant_class_of(mapper: Mapper[Any]) -> GrantClass | None:
    """The grant class of a mapper; a subclass has that of its base."""
    own: GrantClass | None = records_of_mapper(mapper).get(_GRANT)
    return own or (grant_class_of(mapper.inherits) if mapper.inherits is not None else None)


def grants_can_circle(grant: GrantClass) -> bool:
    """Whether whole keys that are granted through these classes can lead from an owner back to itself."""
    seen, frontier = {grant.of.owner_class.mapper}, [grant.of.owner_class]
    while frontier:
        ways = [way for owner_class in frontier for way in owner_class.grants_to]
        reached = [way.of.owner_class for way in ways if way.scope is None]
        frontier = [owner_class for owner_class in reached if owner_class.mapper not in seen]
        seen |= {owner_class.mapper for owner_class in reached}
    return grant.to.owner_class.mapper in seen


def has_grants(table: object) -> bool:
    """Whether the rows of this table grant keys."""
    return isinstance(table, Table) and _GRANT in records_of_table(table)


def grant_of(table: Table) -> GrantClass:
    """The grant class whose rows this table holds."""
    grant: GrantClass = records_of_table(table)[_GRANT]
    return grant


def on_mapper(mapper: Mapper[Any], cls: type[Any]) -> bool:
    """A class was mapped: note a grant, and complete the grants whose owners are all known by now. Tells
    whether the class is a grant."""
    is_grant = issubclass(cls, KeyGrant) and mapper.inherits is None
    if is_grant:
        if not hasattr(cls, "__grant_options__"):
            raise ConfigurationError(
                f"{cls.__name__} is a KeyGrant and says neither whose key nor to whom: "
                f"`class {cls.__name__}(KeyGrant, Base, of='group_id', to='user_id')`."
            )
        _waiting[mapper] = None
    for waiting in list(_waiting):
        paths = _paths(waiting)
        if paths is not None:
            del _waiting[waiting]
            _complete(waiting, *paths)
    return is_grant


def check_all() -> None:
    """Mappers are configured: a grant that still waits for its owners will never be complete.

    Raises:
        ConfigurationError: `of` or `to` refers to no key owner, or the owner has no such scope, or histories
            differ, or a relationship writes granting rows past their objects.
    """
    # Registries are configured one by one: mappers of another registry may still be waiting.
    for mapper in [waiting for waiting in list(_waiting) if waiting.configured]:
        of, to, _, _ = mapper.class_.__grant_options__
        raise names_no_owners(mapper, of, to)
    for mapper in list(_complete_grants):
        grant: GrantClass = records_of_mapper(mapper)[_GRANT]
        if mapper.configured and grant.of.owner_class.mapper.configured:
            _check(grant)
    for relation in list(_secondaries):
        _refuse_secondary(relation)


def _check(grant: GrantClass) -> None:
    check_following(grant)
    owner_class, name = grant.of.owner_class, grant.mapper.class_.__name__
    if grant.scope is not None and grant.scope not in owner_class.scopes:
        raise ConfigurationError(
            f"{name}: no encrypted column of {owner_class.name} is in scope={grant.scope!r}; declare one, "
            f"EncryptedType(..., scope={grant.scope!r})."
        )
    full = [other for other in owner_class.grants_of if other.scope is None]
    if len({other.history for other in full}) > 1:
        names = ", ".join(sorted(other.mapper.class_.__name__ for other in full))
        raise ConfigurationError(
            f"{names} all grant the key of {owner_class.name}; give them one history, 'shared' or "
            "'from_join'."
        )


def refuse_secondaries(mapper: Mapper[Any]) -> None:
    """A mapper is configured: refuse a relationship that writes granting rows as its `secondary`. If the
    grant is not known yet, `check_all` asks again.

    Raises:
        ConfigurationError: there is such a relationship.
    """
    for relation in mapper.relationships:
        if isinstance(relation.secondary, Table) and not relation.viewonly:
            if records_of_table(relation.secondary).get(_GRANT) is None:
                _secondaries[relation] = None
                continue
            # SQLAlchemy counts the mapper as configured even so, and code that catches the error would go on.
            for write in ("before_insert", "before_update"):
                event.listen(mapper, write, lambda *_, refused=relation: _refuse_secondary(refused))
            _refuse_secondary(relation)


def _refuse_secondary(relation: RelationshipProperty[Any]) -> None:
    """The rows that a relationship writes into its `secondary` are no objects. So no flush would grant a
    key for them: a user would be a member in every list, and could read nothing."""
    table = relation.secondary
    grant: GrantClass | None = records_of_table(table).get(_GRANT) if isinstance(table, Table) else None
    if grant is None:
        return
    owner, name, granting = relation.parent.class_.__name__, relation.key, grant.mapper.class_.__name__
    link, rows = _link_to(grant, relation.mapper), f"{name}_rows"
    raise ConfigurationError(
        f"{owner}.{name} writes rows of {grant.table.name}, and only a {granting} that is added as an object "
        "grants its key. To read through it, say relationship(..., viewonly=True). To add and remove, write "
        f"`{rows}: Mapped[list[{granting}]] = relationship(cascade='all, delete-orphan', "
        f"passive_deletes=True)` and `{name} = association_proxy('{rows}', '{link}', creator=lambda one: "
        f"{granting}({link}=one))` in {owner}, and `{link}: Mapped[{relation.mapper.class_.__name__}] = "
        f"relationship()` in {granting}."
    )


def _link_to(grant: GrantClass, target: Mapper[Any]) -> str:
    """The relationship of a grant's class that leads to this mapper, or the name to give it."""
    for relation in grant.mapper.relationships:
        if relation.mapper is target and not relation.uselist:
            key: str = relation.key
            return key
    return target.class_.__name__.lower()


def grant_written_by(mapper: Mapper[Any]) -> GrantClass | None:
    """The grant class whose rows this mapper writes, although it is not the grant's own mapper."""
    if grant_class_of(mapper) is not None:
        return None
    tables = [table for table in mapper.tables if isinstance(table, Table)]
    grants = [records_of_table(table).get(_GRANT) for table in tables]
    return next((grant for grant in grants if grant is not None), None)


def _paths(mapper: Mapper[Any]) -> tuple[OwnerPath, OwnerPath] | None:
    of, to, _, _ = mapper.class_.__grant_options__
    follows = mapper.class_.__grant_follows__
    if follows is not None and grant_class_of(inspect(follows)) is None:
        return None
    return paths_to_two(mapper, of, to)


def _complete(mapper: Mapper[Any], of: OwnerPath, to: OwnerPath) -> None:
    cls = mapper.class_
    _, _, scope, history = cls.__grant_options__
    table: Table = mapper.local_table  # type: ignore[assignment]
    companion, row_columns = _companion(mapper, table, of.owner_class, to.owner_class)
    grant = GrantClass(
        mapper, cls.__grant_label__ or table.name, of, to, scope, history, companion, row_columns
    )
    records_of_mapper(mapper)[_GRANT] = records_of_table(table)[_GRANT] = grant
    watch_name(table)
    _complete_grants[mapper] = None
    if cls.__grant_follows__ is not None:
        leader = grant_class_of(inspect(cls.__grant_follows__))
        assert leader is not None  # noqa: S101 - asked by `_paths`
        follow(grant, leader)
    for grants in (of.owner_class.grants_of, to.owner_class.grants_to):
        # A class that is declared a second time takes the place of the first.
        grants[:] = [*(other for other in grants if other.table is not table), grant]


class KeyGrantTable:
    """The columns of every table of grants. One row is one key for one recipient."""

    grant_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    wrapped: Mapped[bytes | None] = mapped_column(LargeBinary)
    seal: Mapped[bytes | None] = mapped_column(LargeBinary(48))
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), default=now)
    changed_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True), onupdate=now)


def _companion(
    mapper: Mapper[Any], table: Table, of: OwnerClass, to: OwnerClass
) -> tuple[Table, tuple[Column[Any], ...]]:
    """The companion table of a grant, and its columns that refer to the granting row."""
    cls: type[KeyGrant] = mapper.class_
    known = {"table": table.name, "grant": cls.__name__}
    name = Name(
        fill_in(cls, cls.__grant_names__.class_name, **known),
        fill_in(cls, cls.__grant_names__.table, **known),
        "__grant_class__",
        "grant_names=GrantNames(table=...)",
    )
    row_key = tuple(table.primary_key.columns)
    names = [f"row_{column.key}" for column in row_key]
    attributes = {
        "key_id": _key_reference(of, nullable=False),
        "recipient_key_id": _key_reference(to, nullable=True),
    }
    for row_name, column in zip(names, row_key, strict=True):
        attributes[row_name] = mapped_column(column.type, nullable=False)
    cls.__grant_class__ = generate(mapper, KeyGrantTable, name, attributes)
    companion: Table = cls.__grant_class__.__table__  # type: ignore[attr-defined]  # it is mapped by now
    columns = tuple(companion.c[row_name] for row_name in names)
    _tie_to_row(companion, columns, row_key)
    return companion, columns


def _key_reference(owner_class: OwnerClass, *, nullable: bool) -> Any:
    reference = ForeignKey(owner_class.key_class.__table__.c.key_id, ondelete="CASCADE")
    return mapped_column(KEY_UUID, reference, nullable=nullable, index=True)


def _tie_to_row(companion: Table, columns: tuple[Column[Any], ...], row_key: tuple[Column[Any], ...]) -> None:
    """Give the companion table its foreign key to the granting row, and the keys and indexes on it."""
    companion.append_constraint(
        ForeignKeyConstraint(columns, row_key, ondelete="CASCADE", onupdate="CASCADE")
    )
    companion.append_constraint(
        UniqueConstraint(*columns, companion.c.key_id, name=conv(f"uq_{companion.name}"))
    )
    Index(conv(f"ix_{companion.name}_row"), *columns)
    name_indexes(companion)
