"""Owners that are being enrolled: their keys exist, and their row is written by the flush that comes.

A new owner's primary key may be known only after its INSERT. Until then its keys lie in a keyring of its own,
under the name `ENROLLING_OWNER`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import NotEnrolledError
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.columns.previous import policy_of_column
from sqlalchemy_envelope.orm.columns.state import current_key
from sqlalchemy_envelope.orm.current.context import server_hint
from sqlalchemy_envelope.orm.current.names import Names
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.session_notes import known_page, page_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import InstanceState, Session

    from sqlalchemy_envelope.keys.keyring import Keyring, OwnerId
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass

ENROLLING_OWNER = b"enrolling"
"""The keyring's name for an owner whose primary key is not known yet."""


@dataclass(frozen=True, eq=False)
class Enrolling:
    """An owner whose first flush is under way: its keys exist, its primary key may not."""

    state: InstanceState[Any]
    owner_class: OwnerClass
    keyring: Keyring

    def owner_id(self) -> OwnerId | None:
        """The owner's own name, as soon as its row is written: rows that refer to it follow in the same
        flush."""
        key = current_key(self.state)
        if None in key or self.state.session is None:
            return None
        return Names(self.state.session).owner(self.owner_class, key)

    def is_row(self, row: Mapping[str, Any], names: Mapping[str, str]) -> bool:
        """Whether an INSERT's parameters are this owner's. They are compared by identity with what the object
        holds, because a new owner has no primary key to compare."""
        return all(row.get(column) is self.state.dict.get(key) for column, key in names.items())


@dataclass(slots=True)
class _Newcomers:
    """A page of `SessionNotes`: the owners that are being enrolled.

    Attributes:
        waiting: all of them, in the order of their INSERTs.
        unwritten: those whose rows the present flush has not written yet.
        named: those whose rows are written, by name.
    """

    waiting: dict[InstanceState[Any], Enrolling] = field(default_factory=dict)
    unwritten: dict[OwnerClass, list[Enrolling]] = field(default_factory=dict)
    named: dict[OwnerId, Enrolling] = field(default_factory=dict)


def note_enrolling(session: Session, newcomer: Enrolling) -> None:
    """Use this owner's keys in the next flush of the session."""
    page_of(session, _Newcomers).waiting[newcomer.state] = newcomer


def enrolling_in(session: Session | None) -> dict[InstanceState[Any], Enrolling]:
    """The owners that are being enrolled in this session, in the order of their INSERTs."""
    page = None if session is None else known_page(session, _Newcomers)
    return {} if page is None else page.waiting


def enrolling_row(
    session: Session | None, owner_class: OwnerClass, row: Mapping[str, Any], names: Mapping[str, str]
) -> Enrolling | None:
    """The new owner whose row an INSERT writes with these parameters.

    Rows come in the order of their objects, so the first owner that fits and is not written yet is taken.
    """
    waiting = enrolling_in(session)
    if session is None or not waiting:
        return None
    unwritten = page_of(session, _Newcomers).unwritten
    if owner_class not in unwritten:
        unwritten[owner_class] = [new for new in waiting.values() if new.owner_class is owner_class]
    of_class = unwritten[owner_class]
    if len(waiting) == 1 and len(of_class) <= 1:
        return of_class[0] if of_class else None
    newcomer = next((new for new in of_class if new.is_row(row, names)), None)
    if newcomer is not None:
        of_class.remove(newcomer)  # the first, as a rule
    return newcomer


def enrolling_owner(session: Session | None, owner: OwnerId) -> Enrolling | None:
    """The new owner of this name, if it is being enrolled and its row is written."""
    waiting = enrolling_in(session)
    if session is None or not waiting:
        return None
    # Each name is made once. An owner whose row is not written yet has no name.
    named = page_of(session, _Newcomers).named
    if owner not in named:
        named.update({name: new for new in waiting.values() if (name := new.owner_id()) is not None})
    newcomer = named.get(owner)
    return newcomer if newcomer is not None and newcomer.state in waiting else None


def forget_lookups(session: Session) -> None:
    """The flush is over: drop what was looked up of its new owners."""
    page = known_page(session, _Newcomers)
    if page is not None:
        page.unwritten.clear()
        page.named.clear()


def require_enrolling(state: InstanceState[Any]) -> None:
    """Refuse to insert a new owner that has encrypted values of its own and no keys.

    Raises:
        NotEnrolledError: it has no keys.
    """
    if state in enrolling_in(state.session) or not _needs_keys(state):
        return
    name, hint = state.class_.__name__, server_hint(state.session)
    owner_class = owner_class_of(state.mapper.local_table)
    grants = () if owner_class is None else owner_class.grants_of
    whole = {grant.mapper.class_.__name__ for grant in grants if grant.scope is None}
    if whole:
        # A group has no secret of its own, as a rule.
        rows = " or ".join(sorted(whole))
        raise NotEnrolledError(
            f"A new {name} has encrypted values and no keys. While a member-to-be is unlocked, call "
            f"envelope.enroll(session, owner) in place of session.add(owner), and add the {rows} that gives "
            f"them its key in the same transaction.{hint}"
        )
    raise NotEnrolledError(
        f"A new {name} has encrypted values and no keys. Call envelope.enroll(session, owner, secret=...) in "
        f"place of session.add(owner), for each new owner before the next is added.{hint}"
    )


def _needs_keys(state: InstanceState[Any]) -> bool:
    """Whether a new owner has values that are encrypted with its own key. The migration encrypts those of
    columns with the policy "both" later, from the previous column."""
    return any(
        attribute.encrypted.path.is_self
        and state.dict.get(attribute.key) is not None
        and policy_of_column(attribute.encrypted.column) != "both"
        for attribute in plan_of_mapper(state.mapper)
    )
