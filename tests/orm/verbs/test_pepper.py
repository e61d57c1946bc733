"""A pepper is introduced, rotated, taken away and lost: what opens at each moment, and what the rows hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, literal_column, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    ConfigurationError,
    Envelope,
    KdfProfile,
    PepperError,
    PepperProgress,
    PepperUse,
    ServerKeyring,
    TamperedKeyError,
    UnlockError,
)
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs.owner_keys import locate
from tests.orm.conftest import Started, _start
from tests.orm.models import SECRET, Base, Note, User, new_user, statements_sent

OLD, NEW, SEALING = b"\x0a" * 32, b"\x0b" * 32, ServerKeyring([b"\x51" * 32])
SLOTS = Base.metadata.tables["users_keyslot"]
OTHER = "another secret, quite long"


def app(*peppers: bytes, **options: Any) -> Envelope:
    """An application with these peppers. It goes with the test: an envelope counts for every flush."""
    pepper = ServerKeyring(list(peppers)) if peppers else None
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), pepper=pepper, **options)


def name_of(pepper: bytes) -> str:
    return ServerKeyring([pepper]).active[0].hex()


def rotated(engine: Engine, envelope: Envelope, batch: int = 500) -> PepperProgress:
    """A job that rotates, as the how-to has it."""
    last = PepperProgress()
    with Session(engine) as session:
        for so_far in envelope.rotate_pepper(session, User, batch=batch):
            session.commit()
            last = so_far
    return last


def use(engine: Engine, envelope: Envelope) -> PepperUse:
    with Session(engine) as session:
        return envelope.pepper_use(session, User)


@contextmanager
def unlocked(engine: Engine, envelope: Envelope, owner: int, secret: str = SECRET) -> Iterator[Session]:
    with (
        Session(engine) as session,
        envelope.unlock(session, session.get_one(User, owner), secret=secret),
    ):
        yield session


def opens(engine: Engine, envelope: Envelope, owner: int = 1, secret: str = SECRET) -> bool:
    with unlocked(engine, envelope, owner, secret):
        return True


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(SLOTS).order_by(SLOTS.c.slot_id)))


@pytest.mark.parametrize("server_keys", [None, SEALING], ids=["without seals", "with seals"])
def test_a_pepper_is_introduced_rotated_and_taken_away(
    started: Started, server_keys: ServerKeyring | None
) -> None:
    """Without any owner, slots go under a pepper, under the next one, and out of it; the secret stays."""
    engine, told = started.engine, list[AuditEvent]()
    with_none, with_old = app(server_keys=server_keys), app(OLD, server_keys=server_keys, audit=told.append)
    with_both, with_new = app(NEW, OLD, server_keys=server_keys), app(NEW, server_keys=server_keys)
    if server_keys is not None:
        with Session(engine) as session:
            with_none.seal_rows(session, User)
            session.commit()

    assert PepperUse(name_of(OLD)[:8], {}, 2) == use(engine, with_old)
    assert rotated(engine, with_old, batch=1).replaced == 2
    assert [str(one) for one in told] == ["pepper_rotated User x1", "pepper_rotated User x1"]
    assert {(b"\x15" + bytes.fromhex(name_of(OLD)), None)} == {
        (row.wrapped[:17], row.recipient_public_key) for row in rows(engine)
    }
    assert 0 == use(engine, with_old).remaining == rotated(engine, with_old).replaced
    assert opens(engine, with_old)
    with pytest.raises(UnlockError):
        opens(engine, with_old, secret="wrong")
    with pytest.raises(PepperError, match=name_of(OLD)[:8]):
        opens(engine, with_none)
    with pytest.raises(PepperError):
        opens(engine, with_new, secret="wrong")

    assert opens(engine, with_both)
    assert rotated(engine, with_both).replaced == 2
    assert opens(engine, with_new)

    away = app(NEW, pepper_slots=False, server_keys=server_keys)
    assert 2 == use(engine, away).remaining == rotated(engine, away).replaced
    assert PepperUse(None, {}, 2) == use(engine, away)
    assert opens(engine, with_none)
    assert all(row.recipient_public_key is not None for row in rows(engine))


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """Enrolled under a pepper, rotated and unlocked, on both drivers."""
    async with async_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    seen = []
    async with AsyncSession(async_engine) as session:
        users = [User(email=str(number)) for number in range(3)]
        await AsyncEnvelope(app(OLD)).enroll(session, users, secret=dict.fromkeys(users, SECRET))
        await session.commit()
        envelope = AsyncEnvelope(app(NEW, OLD))
        async for so_far in envelope.rotate_pepper(session, User, batch=2):
            await session.commit()
            seen.append(so_far.replaced)
        found = await envelope.pepper_use(session, User)
        async with AsyncEnvelope(app(NEW)).unlock(session, users[0], secret=SECRET):
            pass

    assert seen == [2, 3]
    assert (0, {name_of(NEW)[:8]: 3}) == (found.remaining, found.under)


# ---------------------------------------------------------------- what waits, and what is done meanwhile


def test_the_first_write_after_an_unlock_brings_a_slot_under_the_pepper(lite: Started) -> None:
    """An unlock takes as many statements as without; the first write replaces a slot that is stale."""
    envelope = app(NEW, OLD)
    counts = []
    assert opens(lite.engine, app())  # the first statements on an engine ask about it
    for at_first in (app(), app(OLD), app(OLD), envelope, envelope):
        with statements_sent(lite.engine) as sent, unlocked(lite.engine, at_first, 1) as session:
            counts.append(len(sent))
            session.add(Note(user_id=1, body="hello"))
            session.commit()

    assert len(set(counts)) == 1, counts
    assert {name_of(NEW)[:8]: 1} == use(lite.engine, envelope).under
    assert use(lite.engine, envelope).without == 1
    assert opens(lite.engine, app(NEW))


def test_a_secret_that_is_changed_meanwhile_wins(started: Started) -> None:
    """A rotation leaves a slot alone that somebody replaced since it was read; the next run finds it."""
    envelope = app(NEW, OLD)
    owners: Any = owner_class_of(User.__table__)
    with Session(started.engine) as rotating, Session(started.engine) as changing:
        store = Desk(rotating, envelope.policy).keys(owners)
        stale = [one.slot for one in store.load_stale(None, 10)]
        rotating.commit()
        app(OLD).change_secret(changing, changing.get_one(User, 1), old=SECRET, new=OTHER)
        changing.commit()
        replaced = store.replace_slots([(slot, slot) for slot in stale])
        rotating.commit()

    assert (len(stale), replaced) == (2, 1)
    assert opens(started.engine, app(OLD), secret=OTHER)
    assert rotated(started.engine, envelope).replaced == 1
    assert opens(started.engine, app(NEW), secret=OTHER)


@pytest.fixture
def on_postgres(postgres_engine: Engine) -> Iterator[Started]:
    """Two owners, on PostgreSQL alone: SQLite locks no rows."""
    yield from _start(postgres_engine)


def test_a_rotation_does_not_wait_for_a_change_of_secret(on_postgres: Started) -> None:
    """A slot that another transaction holds is skipped, and counted."""
    engine, envelope = on_postgres.engine, app(NEW)
    with Session(engine) as changing:
        app().change_secret(changing, changing.get_one(User, 1), old=SECRET, new=OTHER)
        skipping = rotated(engine, envelope)
        changing.commit()

    assert (skipping.replaced, skipping.skipped) == (1, 1)
    assert rotated(engine, envelope).replaced == 1
    assert opens(engine, app(NEW), secret=OTHER)


def test_a_run_without_a_loop_is_told_of(lite: Started) -> None:
    """As with `settle_all`: a call that did nothing warns."""
    with Session(lite.engine) as session, pytest.warns(RuntimeWarning, match="rotate_pepper"):
        app(OLD).rotate_pepper(session, User)


# ---------------------------------------------------------------- a lost pepper, and altered rows


def test_a_slot_that_cannot_be_rotated_stops_no_other(lite: Started) -> None:
    """A slot under a pepper that is not here, a slot of another row, and a row of nonsense are named, and
    stay as they are."""
    engine = lite.engine
    with Session(engine) as session:
        new_user(session, "cyd")
        new_user(session, "dan")
    rotated(engine, app(OLD))
    before = {row.slot_id: row.wrapped for row in rows(engine)}
    one, two, three, _ = before
    with engine.begin() as connection:
        connection.execute(update(SLOTS).where(SLOTS.c.slot_id == one).values(wrapped=before[two]))
        lost = b"\x15" + bytes.fromhex(name_of(b"\x0c" * 32)) + before[two][17:]
        connection.execute(update(SLOTS).where(SLOTS.c.slot_id == two).values(wrapped=lost))
        nonsense = update(SLOTS).where(SLOTS.c.slot_id == three).values(kdf=literal_column("x'00'"))
        connection.execute(nonsense)
    found = rotated(engine, app(NEW, OLD), batch=1)

    assert (found.replaced, found.refused_count) == (1, 3)
    assert {"pepper", "tampered-key", "kdf-parameters"} == {refused.code for refused in found.refused}
    assert len({refused.primary_key for refused in found.refused}) == 3
    assert [before[two], lost] == [row.wrapped for row in rows(engine)[:2]]


def test_a_lost_pepper_costs_the_secrets_under_it_and_nothing_else(lite: Started) -> None:
    """The unlock tells of it. A provider still opens the owner, and a new secret replaces the lost."""
    engine, keys = lite.engine, ServerKeyring([b"\x51" * 32])
    before = app(OLD, providers={"ours": keys})
    after = app(NEW, providers={"ours": keys})
    with unlocked(engine, before, 1) as session:
        before.add_provider(session, session.get_one(User, 1), provider="ours")
        before.add_secret(session, session.get_one(User, 1), secret=OTHER, label="phone")
        session.commit()
    rotated(engine, before)

    with pytest.raises(PepperError, match=name_of(OLD)[:8]):
        opens(engine, after)
    with Session(engine) as session:
        user = session.get_one(User, 1)
        kinds = sorted(slot.kind for slot in after.slots(session, user))

        assert kinds == ["provider", "secret", "secret"]
        with after.unlock(session, user, provider="ours", reason="test"):
            with pytest.raises(PepperError):
                # The new keys of an epoch would be without the secret.
                after.remove_provider(session, user, provider="ours")
            session.rollback()
            after.set_secret(session, user, new="a third one, quite long")
            session.commit()
            after.remove_provider(session, user, provider="ours")
            session.commit()

    assert opens(engine, app(NEW), secret="a third one, quite long")
    assert use(engine, after).under == {name_of(OLD)[:8]: 1, name_of(NEW)[:8]: 2}


def test_a_secret_opens_beside_another_under_a_lost_pepper(lite: Started) -> None:
    """The secret whose slot can be tried opens. Another secret may be right for the slot that cannot."""
    rotated(lite.engine, app(OLD))
    with unlocked(lite.engine, app(OLD), 1) as session:
        app(NEW).add_secret(session, session.get_one(User, 1), secret=OTHER, label="phone")
        session.commit()

    assert {name_of(OLD)[:8]: 2, name_of(NEW)[:8]: 1} == use(lite.engine, app(NEW)).under
    assert opens(lite.engine, app(OLD))
    assert opens(lite.engine, app(NEW), secret=OTHER)
    for envelope, secret in ((app(OLD), OTHER), (app(NEW), SECRET), (app(NEW), "wrong")):
        with pytest.raises(PepperError):
            opens(lite.engine, envelope, secret=secret)
    with pytest.raises(UnlockError):
        opens(lite.engine, app(OLD, NEW), secret="wrong")


def test_a_recovery_code_resets_a_secret_under_a_lost_pepper(lite: Started) -> None:
    """A code is under no pepper: it opens the owner, and puts a new secret in the place of the lost."""
    with unlocked(lite.engine, app(OLD), 1) as session:
        code = app(OLD).add_recovery_code(session, session.get_one(User, 1))
        session.commit()
    rotated(lite.engine, app(OLD))
    after = app(NEW)
    with Session(lite.engine) as session:
        user = session.get_one(User, 1)
        with after.unlock(session, user, recovery_code=code):
            assert after.recoverable(session, user)
        after.reset_secret(session, user, recovery_code=code, new=OTHER)
        session.commit()

    assert opens(lite.engine, after, secret=OTHER)


def test_every_byte_of_a_slot_under_a_pepper_is_bound(lite: Started) -> None:
    """The layer opens as it was written, beside its own salt string. Otherwise it was altered for certain."""
    rotated(lite.engine, app(OLD))
    row = rows(lite.engine)[0]
    owner = 1 if _opens_row(lite.engine, row) else 2
    faults = [(SLOTS.c.wrapped, _flipped(row.wrapped, at)) for at in (17, 45, 80, 150, len(row.wrapped) - 1)]
    faults += [(SLOTS.c.kdf, row.kdf.replace("t=1", "t=2"))]
    for column, value in faults:
        with lite.engine.begin() as connection:
            connection.execute(update(SLOTS).where(SLOTS.c.slot_id == row.slot_id).values({column: value}))
        with pytest.raises(TamperedKeyError):
            opens(lite.engine, app(OLD), owner)
        with lite.engine.begin() as connection:
            whole = {SLOTS.c.wrapped: row.wrapped, SLOTS.c.kdf: row.kdf}
            connection.execute(update(SLOTS).where(SLOTS.c.slot_id == row.slot_id).values(whole))

    assert opens(lite.engine, app(OLD), owner)


def _opens_row(engine: Engine, row: Any) -> bool:
    with Session(engine) as session:
        user = session.get_one(User, 1)
        located = locate(Desk(session, app(OLD).policy), user)
        return any(one.stored.key_id == row.key_id for one in located.load())


def _flipped(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


# ---------------------------------------------------------------- epochs, and what is refused


def test_a_new_epoch_is_under_the_pepper_too(lite: Started) -> None:
    """A slot that an epoch seals without the secret is stored under the pepper, opens, and is adopted."""
    envelope = app(OLD, providers={"ours": ServerKeyring([b"\x51" * 32])})
    with unlocked(lite.engine, envelope, 1) as session:
        user = session.get_one(User, 1)
        envelope.add_provider(session, user, provider="ours")
        session.commit()
        envelope.remove_provider(session, user, provider="ours")
        session.commit()
    sealed = [row for row in rows(lite.engine) if len(row.wrapped) == 202]

    assert [(row.wrapped[:1], row.recipient_public_key) for row in sealed] == [(b"\x15", None)]
    with unlocked(lite.engine, envelope, 1) as session:
        session.add(Note(user_id=1, body="hello"))
        session.commit()
    assert not [row for row in rows(lite.engine) if len(row.wrapped) == 202]
    with unlocked(lite.engine, envelope, 1) as session:
        assert session.scalars(select(Note).where(Note.user_id == 1)).one().body == "hello"


def test_rows_are_sealed_without_the_pepper(lite: Started) -> None:
    """The seal covers the row as it is stored: a machine without the pepper can check and renew it."""
    sealing = app(OLD, server_keys=SEALING)
    rotated(lite.engine, app(OLD))
    with Session(lite.engine) as session:
        app(server_keys=SEALING).seal_rows(session, User)
        session.commit()

    assert opens(lite.engine, sealing)
    assert rotated(lite.engine, app(NEW, OLD, server_keys=SEALING)).replaced == 2
    assert opens(lite.engine, app(NEW, server_keys=SEALING))


@pytest.mark.parametrize(
    "make",
    [
        lambda session: app().rotate_pepper(session, User),
        lambda session: app(OLD).rotate_pepper(session, Note),
        lambda session: app(OLD).rotate_pepper(session, User, batch=0),
        lambda session: app(OLD).pepper_use(session, Note),
        lambda session: Envelope(pepper=b"\x01" * 32),  # type: ignore[arg-type]
        lambda session: Envelope(pepper_slots=False),
    ],
)
def test_what_cannot_be_meant_is_refused(lite: Started, make: Any) -> None:
    """No pepper, no class of owners, no slots at a time, a pepper that is no keyring: told at the call."""
    with pytest.raises(ConfigurationError):
        make(lite.session)
