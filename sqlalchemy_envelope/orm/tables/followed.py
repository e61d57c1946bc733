"""Shares that follow a membership: for each membership row there is a row of the share.

    class ProfileShare(KeyGrant, Base, of="user_id", to="group_id", scope="profile", follows=Membership)

A foreign key ties what a user shares with a group to the membership: however the membership is deleted, the
share is deleted with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ForeignKeyConstraint, UniqueConstraint

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.records import records_of_table

if TYPE_CHECKING:
    from sqlalchemy import Column

    from sqlalchemy_envelope.orm.tables.owners import GrantClass

_FOLLOWERS = "followers"
_FOLLOWS = "follows"


def follow(share: GrantClass, leader: GrantClass) -> None:
    """Note that a share follows a membership, and give its table the foreign key. `check_following` raises
    for what cannot be, when mappers are configured."""
    records_of_table(share.table)[_FOLLOWS] = leader
    key = _key(share, leader)
    if key is None:
        return
    columns = [_pairs(share, leader)[column] for column in key]
    # The application may have declared the foreign key itself, with a name of its choice.
    if not any(list(declared.columns) == columns for declared in share.table.foreign_key_constraints):
        share.table.append_constraint(
            ForeignKeyConstraint(columns, key, ondelete="CASCADE", onupdate="CASCADE")
        )
    followers = followers_of(leader)
    followers[:] = [*(other for other in followers if other.table is not share.table), share]


def followers_of(leader: GrantClass) -> list[GrantClass]:
    """The shares that follow these memberships."""
    found: list[GrantClass] = records_of_table(leader.table).setdefault(_FOLLOWERS, [])
    return found


def leader_of(share: GrantClass) -> GrantClass | None:
    """The memberships that a share follows."""
    found: GrantClass | None = records_of_table(share.table).get(_FOLLOWS)
    return found


def check_following(share: GrantClass) -> None:
    """Check that a share can follow its membership.

    Raises:
        ConfigurationError: it cannot. The message says what to write.
    """
    leader = leader_of(share)
    if leader is not None:
        _check_direction(share, leader)
        _check_table(share, leader)


def _names(share: GrantClass, leader: GrantClass) -> tuple[str, str]:
    return share.mapper.class_.__name__, leader.mapper.class_.__name__


def _check_direction(share: GrantClass, leader: GrantClass) -> None:
    """A share grants one scope of a member's key to the group."""
    name, followed = _names(share, leader)
    member, group = leader.to.owner_class, leader.of.owner_class
    if (share.of.owner_class, share.to.owner_class) != (member, group):
        raise ConfigurationError(
            f"{name} follows {followed}, which gives a {member.name} the key of a {group.name}: the share "
            f"goes the other way, of= the {member.name} to= the {group.name}."
        )
    if share.scope is None:
        raise ConfigurationError(
            f"{name} follows {followed} and grants the whole key of a {member.name}: with the key of the "
            f"{group.name} in the other direction neither could shut anybody out. Name a scope=."
        )


def _check_table(share: GrantClass, leader: GrantClass) -> None:
    """A foreign key finds the membership, and rows of the share can be made without the application."""
    name, followed = _names(share, leader)
    if _key(share, leader) is None:
        names = ", ".join(repr(column.key) for column in (*leader.of.columns, *leader.to.columns))
        raise ConfigurationError(
            f"{name} follows {followed}, and its rows refer to a row of that by {names}: make these columns "
            f"the primary key of {leader.table.name}, or add UniqueConstraint({names}) to it."
        )
    needed = [column.key for column in share.table.columns if _is_needed(column, share)]
    if needed:
        raise ConfigurationError(
            f"{name} follows {followed}, and so the library makes its rows: give {', '.join(needed)} a "
            "default, or let it be empty."
        )


def _is_needed(column: Column[Any], share: GrantClass) -> bool:
    given = {*share.of.columns, *share.to.columns}
    generated = column is share.table.autoincrement_column or column.computed is not None
    return not (column in given or column.nullable or column.default or column.server_default or generated)


def _pairs(share: GrantClass, leader: GrantClass) -> dict[Column[Any], Column[Any]]:
    """By each column of the membership, the share's column that refers to it."""
    pairs = dict(zip(leader.of.columns, share.to.columns, strict=False))
    return pairs | dict(zip(leader.to.columns, share.of.columns, strict=False))


def _key(share: GrantClass, leader: GrantClass) -> tuple[Column[Any], ...] | None:
    """The columns that name a membership by both of its ends, in the order of a key of its table."""
    wanted = set(_pairs(share, leader))
    unique = [each for each in leader.table.constraints if isinstance(each, UniqueConstraint)]
    keys = (tuple(key.columns) for key in (leader.table.primary_key, *unique))
    return next((key for key in keys if set(key) == wanted), None)
