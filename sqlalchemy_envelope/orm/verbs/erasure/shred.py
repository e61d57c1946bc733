"""Shredding: an owner's keys are destroyed, so that nobody reads its values again, and a receipt says so.

The rows of the keys stay, without wrapped bytes: by them a reader knows that a value is lost and not locked.
All that leads to the keys is deleted: slots, grants, and tickets, those of readers too. What was granted to
the owner is deleted too, and the groups that it leaves start a new epoch. The application's own rows stay as
they are.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.exceptions import ConfigurationError, ErasureError, NotEnrolledError
from sqlalchemy_envelope.keys.receipts import FORMAT, ErasureReceipt, shown_time
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.audit import AuditEvent
from sqlalchemy_envelope.orm.current.policy import ENVELOPES, note_policy, require_reason
from sqlalchemy_envelope.orm.indexes.filling import forget_tags
from sqlalchemy_envelope.orm.indexes.pending import indexes_of
from sqlalchemy_envelope.orm.reading import destroyed
from sqlalchemy_envelope.orm.sessions.pending_tokens import forget_tokens
from sqlalchemy_envelope.orm.sessions.scope import forget_everywhere
from sqlalchemy_envelope.orm.sharing.grant_flushes import leave
from sqlalchemy_envelope.orm.sharing.locking import lock_groups
from sqlalchemy_envelope.orm.sharing.membership import forget_looks
from sqlalchemy_envelope.orm.sharing.rollbacks import note_outcome
from sqlalchemy_envelope.orm.tables.binds import bind_for
from sqlalchemy_envelope.orm.tables.first_savepoints import require_rollback
from sqlalchemy_envelope.orm.tables.key_types import mistyped
from sqlalchemy_envelope.orm.tables.location import bind_of
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.tables.raw_tables import full_name
from sqlalchemy_envelope.orm.verbs.erasure.erasure import Survey
from sqlalchemy_envelope.orm.verbs.erasure.erasure_report import copies_of, tickets_among
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled
from sqlalchemy_envelope.orm.verbs.readers_tickets import revoke_readers_tickets
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.model import StoredKey
    from sqlalchemy_envelope.keys.receipts import ReceiptKey
    from sqlalchemy_envelope.orm.current.desk import Desk
    from sqlalchemy_envelope.orm.current.policy import Policy
    from sqlalchemy_envelope.orm.tables.owners import Place
    from sqlalchemy_envelope.orm.verbs.erasure.erasure import Holdings, Lost
    from sqlalchemy_envelope.orm.verbs.owner_keys import LocatedOwner

DISTRIBUTION = "sqlalchemy-envelope"


def shred(
    desk: Desk,
    owner: object,
    reason: str,
    backups_kept: dt.timedelta | None,
    *,
    keep_row: bool,
    also_groups: bool,
) -> ErasureReceipt:
    """Destroy the keys of an owner."""
    require_reason(reason)
    key = receipt_key_of_policy(desk.policy)
    note_policy(desk.session, desk.policy)
    desk.session.flush()  # what waits is encrypted under the keys as long as they are there
    located = locate_enrolled(desk, owner)
    require_rollback(desk.session, located.place.owner_class.mapper, "shred")
    with desk.session.no_autoflush:
        gone, left = _locked(desk, located, also_groups=also_groups)
        copies = copies_of(desk, located.place, dt.datetime.now(dt.UTC), backups_kept)
        counts = _counts(gone)
        counts["tickets"] += revoke_readers_tickets(desk, [one.place for one in gone])
        shredded = _destroy(desk, gone, left)
        for place in [one.place for one in gone]:
            # Under the server's key, a tag would go on telling whether a guess was right.
            for index in indexes_of(place.owner_class):
                forget_tags(desk.session, place, index)
            forget_tokens(desk.session, place)
    receipt = ErasureReceipt(
        key,
        {
            "format": FORMAT,
            "library": _version(),
            "realm": desk.policy.seals.realm_of(
                bind_of(desk.session, located.place.owner_class.mapper).engine
            ),
            "owners": [_named(desk, key, *one) for one in shredded],
            "counts": counts,
            "remains": [
                {"place": one.place, "known": one.known, "until": one.until and shown_time(one.until)}
                for one in copies
            ],
        },
        [one.key_id for _, keys in shredded for one in keys],
    )
    _forget(desk, [one.place for one in gone], receipt, reason)
    if not keep_row:
        desk.session.delete(owner)
        desk.session.flush()
    return receipt


def receipt_key_of_policy(policy: Policy) -> ReceiptKey:
    """Return the key that signs receipts.

    Raises:
        ConfigurationError: there is none.
    """
    key = policy.receipt_key
    if key is None:
        raise ConfigurationError(
            "Nothing can sign the receipt: give the Envelope `server_keys=`, or "
            "`receipt_key=ReceiptKey.from_text(...)`. `ReceiptKey.generate_key()` makes such a text."
        )
    return key


def owner_tag(policy: Policy, owner_class: object, primary_key: Any) -> str:
    """Return the name of an owner in receipts.

    Raises:
        ConfigurationError: this is no class of key owners, or not as long a primary key; or no key signs.
    """
    found = owner_class_of(getattr(owner_class, "__table__", None)) if isinstance(owner_class, type) else None
    if found is None or found.key_class is None:
        raise ConfigurationError("owner_tag() takes a class of key owners: owner_tag(User, user_id).")
    given = primary_key if isinstance(primary_key, tuple) else (primary_key,)
    if len(given) != len(found.primary_key):
        size = counted(len(found.primary_key), "column")
        raise ConfigurationError(f"The primary key of {found.name} has {size}, and {len(given)} were given.")
    wrong = mistyped(found.primary_key, given)
    if wrong is not None:
        raise ConfigurationError(f"This names no {found.name}: {wrong}.")
    return receipt_key_of_policy(policy).owner_tag(found.reference_of(given))


def _locked(
    desk: Desk, located: LocatedOwner, *, also_groups: bool
) -> tuple[list[Holdings], set[tuple[Place, str | None]]]:
    """Lock the owner and its groups. Return whose keys are to be destroyed, and the keys that they leave.

    Raises:
        NotEnrolledError, ErasureError: there is nothing to destroy, or too much.
    """
    before = Survey(desk)
    mine = before.holdings(located.place)
    lock_groups(
        desk, [located.place, *before.groups([mine, *(one.holdings for one in before.lost_with(mine))])]
    )
    survey = Survey(desk, locked=True)
    mine = survey.holdings(located.place)
    if not mine.keys:
        if located.load():
            raise ErasureError(f"The keys of this {located.name} are destroyed already.")
        raise NotEnrolledError(f"This {located.name} has no keys: nothing of it is encrypted.")
    lost = survey.lost_with(mine)
    if not also_groups:
        _refuse_lost(located, [one for one in lost if one.matters])
        lost = []
    gone = [mine, *(one.holdings for one in lost)]
    places = {one.place for one in gone}
    groups = survey.groups(gone)
    left = {(place, scope) for place, scopes in groups.items() if place not in places for scope in scopes}
    return gone, left


def _refuse_lost(located: LocatedOwner, lost: Sequence[Lost]) -> None:
    if not lost:
        return
    # By class: a primary key may be a name, and errors go into logs.
    classes = Counter(one.holdings.place.owner_class.name for one in lost)
    shown = " and ".join(counted(count, name, name) for name, count in sorted(classes.items()))
    values = counted(sum(one.holdings.value_count for one in lost), "value")
    raise ErasureError(
        f"This {located.name} is the last holder of {shown} with {values}, which would be lost with it. "
        "`envelope.erasure_report(session, owner).lost_groups` names them. Let a holder add another member "
        "first; or shred them too, with `also_groups=True`."
    )


def _counts(gone: Sequence[Holdings]) -> dict[str, int]:
    return {
        "values": sum(one.value_count for one in gone),
        "slots": sum(sum(one.slots.values()) for one in gone),
        "tickets": sum(tickets_among(one) for one in gone),
        "grants_given": sum(len(one.given) for one in gone),
        "grants_received": sum(len(one.received) for one in gone),
    }


def _destroy(
    desk: Desk, gone: Sequence[Holdings], left: set[tuple[Place, str | None]]
) -> list[tuple[Place, list[StoredKey]]]:
    """Delete all that leads to the keys, and then the keys."""
    for one in gone:
        for right in one.received:
            desk.grants(right.grant).delete([right.row])
        for grant in one.place.owner_class.grants_to:
            desk.grants(grant).delete_with(to_keys=one.key_ids)
    leave(desk, left)
    survey, found = Survey(desk, locked=True), []
    for one in gone:
        store = survey.rows(one.place)
        for grant in one.place.owner_class.grants_of:
            desk.grants(grant).delete_with(of_keys=one.key_ids)
        store.delete_beside(one.key_ids)
        found.append((one.place, store.destroy(one.keys)))
    forget_looks(desk.session)
    destroyed.forget(desk.session)
    return found


def _named(desk: Desk, key: ReceiptKey, place: Place, keys: Sequence[StoredKey]) -> dict[str, Any]:
    owner_class, session = place.owner_class, desk.session
    connection = session.connection(bind_arguments=bind_for(session, owner_class.mapper))
    return {
        "class": owner_class.label,
        "tag": key.owner_tag(owner_class.reference_of(place.primary_key)),
        "key_table": full_name(connection, owner_class.key_class.__table__),
        "keys": [
            {
                "id": one.key_id.hex,
                "commitment": one.commitment.hex(),
                "purpose": one.purpose.value,
                "epoch": one.epoch,
            }
            for one in keys
        ],
    }


def _forget(desk: Desk, places: Sequence[Place], receipt: ErasureReceipt, reason: str) -> None:
    """Put the keys aside where they are open here. The commit wipes them everywhere in this process, and a
    rollback takes them back."""
    session = desk.session
    for place in places:
        for unlocked in context.unlocked_sessions(session):
            unlocked.make_way(session, place)

    def committed() -> None:
        receipt.commit()
        forget_everywhere({place.owner_class for place in places}, [place.owner for place in places])
        for policy in ENVELOPES:
            for place in places:
                epoch = policy.write_epochs.pop(place.owner, None)
                if epoch is not None:
                    epoch.opened.key.wipe()
        for place in places:
            desk.emit(
                AuditEvent("shredded", place.owner_class.name, reason=reason, owner_id=place.primary_key)
            )

    note_outcome(session, committed, receipt.undo)


def _version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
