"""Shares that follow a membership are written with it, by the same flush and in the same transaction.

Statements make the rows of these shares, not objects. Nothing orders two unrelated objects in a flush, and
the share's foreign key needs the membership first. When a flush deletes a membership, the database deletes
its shares; this module notes the shares, so that an epoch starts. Shares that are deleted in another way are
found missing, as with any grant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import insert, select

from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.orm.current.desk import desk_of
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.sharing.new_grants import grant_to
from sqlalchemy_envelope.orm.sharing.recipients import Recipient
from sqlalchemy_envelope.orm.sharing.rights import take_void
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.followed import followers_of, leader_of
from sqlalchemy_envelope.orm.tables.key_grant import grant_class_of
from sqlalchemy_envelope.orm.tables.owners import places_by_class
from sqlalchemy_envelope.orm.tables.rows import chunks, matches
from sqlalchemy_envelope.orm.tables.session_notes import page_of, take_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Column
    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.model import OpenedKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.sharing.row_switches import Ends as MemberOf
    from sqlalchemy_envelope.orm.tables.owners import GrantClass, Place

    PrimaryKey = tuple[Any, ...]
    Ends = tuple[PrimaryKey, PrimaryKey]
    """Of a share: the primary key of the owner of the key, and that of the recipient."""
    Joined = tuple[GrantClass, Place, Recipient]


@dataclass(slots=True)
class _SharesLeft:
    """A page of `SessionNotes`: the shares that the present flush ends together with their memberships."""

    ends: set[tuple[GrantClass, Ends]] = field(default_factory=set)


class Followed(NamedTuple):
    """The changes to shares in a flush: the keys that somebody left, and the recipients that joined."""

    left: set[tuple[Place, str | None]]
    joined: list[Joined]


def before_flush(session: Session, *_: object) -> None:
    """Forget the notes of an earlier flush that failed."""
    take_page(session, _SharesLeft)


def before_delete(mapper: object, connection: object, state: InstanceState[Any]) -> None:
    """Note the shares that will be deleted with a membership."""
    leader, session = grant_class_of(state.mapper), state.session
    followers = [] if leader is None else followers_of(leader)
    if leader is None or session is None or not followers:
        return
    page_of(session, _SharesLeft).ends.update((share, _ends_before(leader, state)) for share in followers)


def before_update(mapper: object, connection: object, state: InstanceState[Any]) -> None:
    """Note the shares of a membership that will get other ends. The foreign key takes the shares along."""
    leader, session = grant_class_of(state.mapper), state.session
    followers = [] if leader is None else followers_of(leader)
    if leader is None or session is None or not followers:
        return
    before = _ends_before(leader, state)
    if before != _ends(leader, state):
        page_of(session, _SharesLeft).ends.update((share, before) for share in followers)


def note_moved(session: Session, leader: GrantClass, before: MemberOf) -> None:
    """Note the shares of a membership that gets other ends, although no object of it changed."""
    page_of(session, _SharesLeft).ends.update(
        (share, (before.to, before.of)) for share in followers_of(leader)
    )


def follow(session: Session, joined: Iterable[Joined], kept: Iterable[Joined] = ()) -> Followed:
    """Write the shares that follow the memberships of a flush.

    Args:
        session: the session of the flush.
        joined: new memberships. All their shares are written.
        kept: memberships that the flush wrote again unchanged. Only missing or void shares are written.

    Returns:
        The keys that somebody left, and the shares to grant.
    """
    left = (take_page(session, _SharesLeft) or _SharesLeft()).ends
    given: set[tuple[GrantClass, Ends]] = set()
    wanted, repaired = _wanted(joined, given), _wanted(kept, given)
    if not wanted and not repaired and not left:
        return Followed(set(), [])
    names, desk = Names(session), desk_of(session)
    more: list[Joined] = []
    with session.no_autoflush:
        for shares, add in ((wanted, _add), (repaired, _repair)):
            for share, ends in shares.items():
                # A share that the application also adds as an object is granted as that object.
                mine = [one for one in ends if (share, one) not in given]
                for row_key, (of, to) in add(desk, share, mine):
                    more.append((share, names.place(share.of.owner_class, of), Recipient(share, row_key, to)))
    return Followed({(names.place(one.of.owner_class, of), one.scope) for one, (of, _) in left}, more)


def _wanted(rows: Iterable[Joined], given: set[tuple[GrantClass, Ends]]) -> dict[GrantClass, list[Ends]]:
    """The shares that follow these rows. The rows are noted in `given`."""
    found: dict[GrantClass, list[Ends]] = {}
    for grant, place, recipient in rows:
        given.add((grant, (place.primary_key, recipient.primary_key)))
        for share in followers_of(grant):
            found.setdefault(share, []).append((recipient.primary_key, place.primary_key))
    return found


def grant_existing(desk: Desk, owners: Mapping[Place, Sequence[OpenedKey]]) -> None:
    """Grant the shares of owners that had no keys until now and may be members already."""
    for owner_class, places in places_by_class(owners).items():
        keys = {place.primary_key: owners[place] for place in places}
        store = desk.keys(owner_class)
        for share in [one for one in owner_class.grants_of if leader_of(one) is not None]:
            to_whom: dict[PrimaryKey, list[Recipient]] = {}
            for row_key, (of, to) in _rows(desk.session, share, share.of.columns, list(keys)):
                to_whom.setdefault(of, []).append(Recipient(share, row_key, to))
            for of, recipients in to_whom.items():
                for key in keys[of]:
                    if key.stored.purpose is Purpose.DATA and key.stored.scope == share.scope:
                        grant_to(desk, store, key, recipients)


def _add(desk: Desk, share: GrantClass, ends: Sequence[Ends]) -> list[tuple[PrimaryKey, Ends]]:
    """Insert the share rows of new memberships, except the rows that the foreign key took along.

    Returns:
        The shares to grant.
    """
    columns = (*share.of.columns, *share.to.columns)
    together = [(*of, *to) for of, to in ends]
    there = _rows(desk.session, share, columns, together)
    # A row that was taken along still holds the grants of another owner's key.
    desk.grants(share).delete([row_key for row_key, _ in there])
    return _enrolled(desk, share, [*there, *_insert(desk.session, share, ends, there)])


def _repair(desk: Desk, share: GrantClass, ends: Sequence[Ends]) -> list[tuple[PrimaryKey, Ends]]:
    """Insert the share rows of earlier memberships, where SQL deleted the rows.

    Returns:
        The shares to grant: the inserted rows, and the void rows.
    """
    columns = (*share.of.columns, *share.to.columns)
    there = _rows(desk.session, share, columns, [(*of, *to) for of, to in ends])
    void = set(take_void(desk, share, [row_key for row_key, _ in there]))
    some = [one for one in there if one[0] in void]
    return _enrolled(desk, share, [*some, *_insert(desk.session, share, ends, there)])


def _insert(
    session: Session,
    share: GrantClass,
    ends: Sequence[Ends],
    there: Sequence[tuple[PrimaryKey, Ends]],
) -> list[tuple[PrimaryKey, Ends]]:
    """Insert the rows that are missing, and return them."""
    known = {found for _, found in there}
    missing = [one for one in ends if one not in known]
    if not missing:
        return []
    columns = (*share.of.columns, *share.to.columns)
    values = [dict(zip((one.key for one in columns), (*of, *to), strict=True)) for of, to in missing]
    statement = insert(share.table)
    session.execute(statement, values, bind_arguments=bind_for(session, share.mapper, statement))
    return _rows(session, share, columns, [(*of, *to) for of, to in missing])


def _enrolled(
    desk: Desk, share: GrantClass, there: Sequence[tuple[PrimaryKey, Ends]]
) -> list[tuple[PrimaryKey, Ends]]:
    """The shares of owners that have keys. The other shares are granted when their owners are enrolled."""
    owners = list({of for _, (of, _) in there})
    roots = desk.keys(share.of.owner_class).load_active_roots(owners)
    enrolled = {one.primary_key for one in roots.values()}
    return [one for one in there if one[1][0] in enrolled]


def _rows(
    session: Session, share: GrantClass, columns: Sequence[Column[Any]], keys: Sequence[PrimaryKey]
) -> list[tuple[PrimaryKey, Ends]]:
    """The shares with these values in these columns."""
    found: list[tuple[PrimaryKey, Ends]] = []
    first, second = len(share.row_key), len(share.row_key) + len(share.of.columns)
    for some in chunks(keys):
        query = select(*share.row_key, *share.of.columns, *share.to.columns).where(matches(columns, some))
        for row in session.execute(query, bind_arguments=bind_for(session, share.mapper, query)):
            parts = tuple(row)
            found.append((parts[:first], (parts[first:second], parts[second:])))
    return found


def _ends(leader: GrantClass, state: InstanceState[Any]) -> Ends:
    return leader.values(state, leader.to.columns), leader.values(state, leader.of.columns)


def _ends_before(leader: GrantClass, state: InstanceState[Any]) -> Ends:
    """The ends of a membership as they are in the database."""
    known = dict(zip(leader.row_key, state.key[1], strict=True)) if state.key is not None else {}
    instance: Any = state.obj()

    def before(column: Column[Any]) -> Any:
        if column in known:
            return known[column]
        key = leader.mapper.get_property_by_column(column).key
        if key not in state.dict:
            getattr(instance, key)  # expired
        return state.committed_state.get(key, state.dict.get(key))

    return tuple(map(before, leader.to.columns)), tuple(map(before, leader.of.columns))
