"""The sweep: orphans are deleted in two runs, and slots without a share are counted."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import URL, Engine, StaticPool, create_engine, delete, select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import AuditEvent, ConfigurationError, Envelope, SharesSwept, enforce_foreign_keys
from sqlalchemy_envelope.orm.verbs.slots import share_sweep
from tests.orm.models import User as UserElsewhere
from tests.orm.two_databases.conftest import Two
from tests.orm.two_databases.split_models import (
    CHEAP,
    NEW,
    SECRET,
    Base,
    Share,
    User,
    UserBefore,
    envelope,
    new_user,
    second,
    sessions_on,
)

DAY = dt.timedelta(days=1)


def sweep(two: Two, **options: Any) -> SharesSwept:
    with two.sessions() as session:
        return envelope.sweep_shares(session, User, **options)


def let_pass(two: Two, time: dt.timedelta) -> None:
    """Set back the times that earlier runs noted."""
    with two.second.begin() as connection:
        for share_id, since in connection.execute(
            select(Share.share_id, Share.unused_since).where(Share.unused_since.is_not(None))
        ).all():
            statement = update(Share).where(Share.share_id == share_id)
            connection.execute(statement.values(unused_since=since - time))


def test_an_orphan_is_noted_first_and_deleted_by_a_later_run(two: Two) -> None:
    """The share of a replaced secret and that of a rollback go after a day; a dry run notes nothing, and
    the shares in use stay."""
    with two.sessions() as session:
        ada, ben = new_user(session), new_user(session, "ben")
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        envelope.change_secret(session, ben, old=SECRET, new=NEW)
        session.rollback()
        keys = ada.id, ben.id

    assert (sweep(two, delete=False).unused, two.shares()) == (2, 4)
    let_pass(two, 2 * DAY)
    first = sweep(two)
    assert (first.shares, first.unused, first.deleted, first.is_whole) == (4, 2, 0, True)
    again = sweep(two)
    assert (again.unused, again.deleted) == (2, 0)
    let_pass(two, DAY)
    last = sweep(two)
    assert (last.shares, last.unused, last.deleted, last.slots) == (4, 0, 2, 2)
    assert two.shares() == 2
    assert [two.opens(keys[0], NEW), two.opens(keys[1], SECRET)] == ["of ada", "of ben"]


def test_a_slot_that_is_committed_late_keeps_its_share(two: Two) -> None:
    """A sweep between the two commits notes the share, and the next one takes the note back."""
    with two.sessions() as session:
        new_user(session, "ben")
        ada = User(email="ada@example.org", phone="of ada")
        envelope.enroll(session, ada, secret=SECRET)
        assert sweep(two).unused == 1
        session.commit()
        key = ada.id
    let_pass(two, 2 * DAY)

    assert (sweep(two).unused, two.shares()) == (0, 2)
    with two.second.connect() as connection:
        assert set(connection.scalars(select(Share.unused_since))) == {None}
    assert two.opens(key, SECRET) == "of ada"


def test_a_deleted_owner_leaves_a_share_for_the_sweep(two: Two) -> None:
    """The cascade of the first database deletes the slot; nothing in the second database can, but the
    sweep."""
    with two.sessions() as session:
        new_user(session)
        session.delete(new_user(session, "ben"))
        session.commit()

    assert (sweep(two).unused, two.shares()) == (1, 2)
    let_pass(two, DAY)
    assert (sweep(two).deleted, two.shares()) == (1, 1)


def test_another_first_database_deletes_nothing(lite_two: Two, tmp_path: Any) -> None:
    """Where no slot needs any of the shares, they belong to other slots: nothing is noted, and it is told."""
    with lite_two.sessions() as session:
        new_user(session)
    other = create_engine(f"sqlite:///{tmp_path / 'another.db'}")
    enforce_foreign_keys(other)
    Base.metadata.create_all(other)
    with sessions_on(other, lite_two.second)() as session:
        found = envelope.sweep_shares(session, User)
        let_pass(lite_two, 2 * DAY)
        again = envelope.sweep_shares(session, User)

    assert found == again == SharesSwept(shares=1, unused=1)
    assert found.is_strange
    assert lite_two.shares() == 1
    other.dispose()


@pytest.mark.backend
def test_a_schema_sweeps_its_own_shares_on_postgresql(postgres_engine: Engine, other_url: URL) -> None:
    """The same with the schemas of PostgreSQL: one tenant's sweep leaves the shares of the other."""
    with postgres_engine.begin() as connection:
        for name in ("acme", "bolt"):
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    _sweeps_its_own(postgres_engine, create_engine(other_url))


def test_a_schema_sweeps_its_own_shares(other_url: URL) -> None:
    """Tenants by schema share the table of shares. One tenant's sweep deletes its own orphans, leaves the
    shares of the other, and counts them."""
    first = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(first)
    with first.connect() as connection:
        for name in ("acme", "bolt"):
            connection.exec_driver_sql(f"ATTACH ':memory:' AS {name}")
    _sweeps_its_own(first, create_engine(other_url))


def _sweeps_its_own(first: Engine, other: Engine) -> None:
    second.create_all(other)
    tenants = {}
    for name in ("acme", "bolt"):
        tenant = first.execution_options(schema_translate_map={None: name})
        Base.metadata.create_all(tenant)
        two = tenants[name] = Two(tenant, other, sessions_on(tenant, other))
        with two.sessions() as session:
            user = new_user(session, name)
            envelope.change_secret(session, user, old=SECRET, new=NEW)
            session.commit()
    sweep(tenants["acme"])
    let_pass(tenants["acme"], DAY)
    found = sweep(tenants["acme"])

    assert (found.shares, found.unused, found.deleted, found.elsewhere) == (2, 0, 1, 2)
    assert [two.opens(1, NEW) for two in tenants.values()] == ["of acme", "of bolt"]
    assert sweep(tenants["bolt"]).unused == 1
    other.dispose()


def test_the_report_counts_slots_and_owners(lite_two: Two) -> None:
    """Slots without a share, their owners, those whom another slot still opens, and slots from before
    shares."""
    with Session(lite_two.first) as session:
        for name in ("old", "older"):
            envelope.enroll(session, UserBefore(email=f"{name}@example.org"), secret=SECRET)
        session.commit()
    with lite_two.sessions() as session:
        kept = set(session.scalars(select(Share.share_id)))
        lost = new_user(session)
        with envelope.unlock(session, lost, secret=SECRET) as unlocked:
            unlocked.add_secret(lost, NEW, label="phone")
            session.commit()
        new_user(session, "held", secret=SECRET, provider="server")
        mine = set(session.scalars(select(Share.share_id))) - kept
        new_user(session, "well")
        session.execute(delete(Share).where(Share.share_id.in_(mine)))
        session.commit()
        key = lost.id

    assert sweep(lite_two) == SharesSwept(
        shares=1,
        slots=6,
        slots_to_move=2,
        slots_without_share=3,
        owners_affected=2,
        owners_locked_out=1,
        locked_out=((key,),),
    )


def test_large_tables_are_read_in_pages(lite_two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pages of two slots and windows of three shares, the report and the deletions are those of one
    page."""
    with lite_two.sessions() as session:
        users = [new_user(session, str(number)) for number in range(5)]
        with envelope.unlock(session, users[0], secret=SECRET) as unlocked:
            for number in range(4):
                unlocked.add_secret(users[0], f"{NEW} {number}", label=str(number))
            session.commit()
        for user in users[1:4]:
            envelope.change_secret(session, user, old=SECRET, new=NEW)
        session.commit()
        session.execute(delete(Share).where(Share.share_id == _newest(session)))
        session.commit()
    whole = sweep(lite_two)
    monkeypatch.setattr(share_sweep, "_PAGE", 2)
    monkeypatch.setattr(share_sweep, "_WINDOW", 3)

    assert whole == sweep(lite_two)
    assert (whole.shares, whole.unused, whole.slots, whole.slots_without_share) == (7, 3, 9, 1)
    let_pass(lite_two, DAY)
    assert (sweep(lite_two).deleted, lite_two.shares()) == (3, 4)


def _newest(session: Session) -> Any:
    return session.scalar(select(Share.share_id).order_by(Share.created_at.desc()).limit(1))


def test_a_sweep_is_an_event(lite_two: Two) -> None:
    """What was deleted is told to the application."""
    events: list[AuditEvent] = []
    told = Envelope(kdf_profile=CHEAP, audit=events.append)
    with lite_two.sessions() as session:
        ada = new_user(session)
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        told.sweep_shares(session, User)
        let_pass(lite_two, DAY)
        told.sweep_shares(session, User)

    assert [(one.name, one.owner_class, one.count) for one in events] == [("orphans_swept", "User", 1)]


def test_what_cannot_be_swept(lite_two: Two) -> None:
    """A class without shares and too short a time are errors."""
    with lite_two.sessions() as session:
        with pytest.raises(ConfigurationError, match="key_shares=True"):
            envelope.sweep_shares(session, UserElsewhere)
        with pytest.raises(ConfigurationError, match="an hour at least"):
            envelope.sweep_shares(session, User, keep=dt.timedelta(minutes=59))
