"""The whole life of secrets whose KEK has a share in a second database."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    CampaignKeyFile,
    ConfigurationError,
    Envelope,
    KeyNames,
    KeyOwner,
    KeyShareError,
    KeySlotTable,
    KeyTable,
    ServerKeyring,
    UnlockError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.crypto.argon2id import share_named_by
from tests.orm.models import statements_sent
from tests.orm.two_databases.conftest import AsyncTwo, Two
from tests.orm.two_databases.split_models import (
    CHEAP,
    NEW,
    SECRET,
    Base,
    Before,
    Note,
    Share,
    Slot,
    User,
    UserBefore,
    envelope,
    new_user,
    second,
    serving,
    sessions_on,
)


def named_shares(session: Session) -> set[Any]:
    """The shares that the slots name."""
    return {share_named_by(kdf) for kdf in session.scalars(select(Slot.kdf))}


def test_the_verbs_on_secrets_work_over_two_databases(two: Two) -> None:
    """Enrolment, unlock, change, further and forgotten secrets: all opens as with one database."""
    with two.sessions() as session:
        key = new_user(session).id
        ada = session.get_one(User, key)
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()

        assert [two.opens(key, one) for one in (SECRET, NEW)] == ["UnlockError", "of ada"]

        with envelope.unlock(session, ada, secret=NEW) as unlocked:
            unlocked.add_secret(ada, "of the phone", label="phone")
            unlocked.set_secret(ada, "the third")
            session.commit()

        assert [two.opens(key, one) for one in (NEW, "of the phone", "the third")] == [
            "UnlockError",
            "UnlockError",
            "of ada",
        ]

        envelope.rebind(session, ada, secret="the third")
        session.commit()

        assert two.opens(key, "the third") == "of ada"
        assert len(named_shares(session)) == 1


def test_secrets_of_an_owner_share_a_share_with_their_salt(lite_two: Two) -> None:
    """A further secret costs no further share. Each opens, and each can be removed."""
    with lite_two.sessions() as session:
        ada = new_user(session)
        with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            unlocked.add_secret(ada, NEW, label="phone")
            session.commit()
        (slot,) = (slot for slot in envelope.slots(session, ada) if slot.label == "phone")

        assert [lite_two.opens(ada.id, one) for one in (SECRET, NEW)] == ["of ada"] * 2
        assert lite_two.shares() == 1

        with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            unlocked.remove_slot(ada, slot)
            session.commit()

        assert [lite_two.opens(ada.id, one) for one in (SECRET, NEW)] == ["of ada", "UnlockError"]


def test_a_list_is_enrolled_with_one_statement_more(two: Two) -> None:
    """The shares of a list are one INSERT; each owner opens with its own secret and no other."""
    with two.sessions() as session, statements_sent(two.second) as sent:
        users = [User(email=f"{i}@example.org", phone=str(i)) for i in range(50)]
        envelope.enroll(session, users, secret={user: f"secret of {user.phone}" for user in users})
        session.commit()
        keys = [user.id for user in users]

    assert len([one for one in sent if one.startswith("INSERT")]) == 1
    assert two.shares() == 50
    assert two.opens(keys[7], "secret of 7") == "7"
    assert two.opens(keys[7], "secret of 8") == "UnlockError"


def test_an_unlock_sends_one_query_more(lite_two: Two) -> None:
    """One query on the second database, and those on the first that there are without shares."""
    with lite_two.sessions() as session:
        key = new_user(session).id
    with (
        lite_two.sessions() as session,
        statements_sent(lite_two.first) as sent,
        statements_sent(lite_two.second) as more,
    ):
        ada = session.get_one(User, key)
        before = len(sent)
        with envelope.unlock(session, ada, secret=SECRET):
            assert ada.phone == "of ada"

    assert (len(sent) - before, len(more)) == (2, 1)
    assert more[0].startswith("SELECT")


def test_a_new_epoch_needs_no_share(two: Two) -> None:
    """A new root key is sealed to the public key of the KEK; the secret opens both epochs with one share."""
    with two.sessions() as session:
        ada = new_user(session, secret=SECRET, provider="server")
        with serving.unlock(session, ada, secret=SECRET):
            session.add(Note(user=ada, body="first epoch"))
            session.commit()
            with statements_sent(two.second) as sent:
                serving.remove_provider(session, ada, provider="server")
                session.commit()
            session.add(Note(user=ada, body="second epoch"))
            session.commit()
        key = ada.id
    with two.sessions() as session:
        ada = session.get_one(User, key)
        with serving.unlock(session, ada, secret=SECRET):
            bodies = [note.body for note in session.scalars(select(Note).order_by(Note.id))]

    assert sent == []
    assert bodies == ["first epoch", "second epoch"]
    assert two.shares() == 1


def test_a_provider_opens_without_the_second_database(lite_two: Two) -> None:
    """A provider's slot has no share: it opens while the second database is away, and gives a new secret."""
    with lite_two.sessions() as session:
        ada = new_user(session, secret=SECRET, provider="server")
        key = ada.id
    with lite_two.second.begin() as connection:
        connection.execute(Share.__table__.delete())

    assert lite_two.opens(key, SECRET) == "KeyShareError"

    with lite_two.sessions() as session:
        ada = session.get_one(User, key)
        with serving.unlock(
            session, ada, provider="server", reason="the second database is lost"
        ) as unlocked:
            unlocked.set_secret(ada, NEW)
            session.commit()

    assert lite_two.opens(key, NEW) == "of ada"


def test_owners_from_before_move_at_their_next_write(two: Two) -> None:
    """A slot without a share opens, and the first write after an unlock puts one with a share in its place,
    also after a rollback in between."""
    with Session(two.first) as session:
        user = UserBefore(email="ada@example.org", phone="of ada")
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        key = user.id
    with two.sessions() as session:
        ada = session.get_one(User, key)
        with envelope.unlock(session, ada, secret=SECRET) as unlocked:
            assert ada.phone == "of ada"
            assert named_shares(session) == {None}
            unlocked.settle()
            session.rollback()
            assert named_shares(session) == {None}
            ada.phone = "1234"
            session.commit()
            (share_id,) = named_shares(session)

    assert share_id is not None
    assert two.opens(key, SECRET) == "1234"
    assert two.shares() == 1
    with Session(two.first) as session:  # a process with the models from before
        user = session.get_one(UserBefore, key)
        with pytest.raises(KeyShareError, match="key_shares=True"):
            envelope.unlock(session, user, secret=SECRET)


def test_a_session_may_route_by_itself(lite_two: Two) -> None:
    """A `get_bind` of the application's own finds the second database by the mapper of the shares."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **arguments: Any) -> Engine:
            is_share = mapper is not None and mapper.class_ is Share
            return lite_two.second if is_share else lite_two.first

    with Routing() as session:
        ada = new_user(session)
        with envelope.unlock(session, ada, secret=SECRET):
            assert ada.phone == "of ada"


def test_both_databases_in_memory() -> None:
    """Where a database has one connection, the share is part of the session's own transaction, and is
    rolled back and stored again with it."""
    first, other = create_engine("sqlite://"), create_engine("sqlite://")
    enforce_foreign_keys(first)
    Base.metadata.create_all(first)
    second.create_all(other)
    with sessions_on(first, other)() as session:
        old = UserBefore(email="old@example.org", phone="of old")
        envelope.enroll(session, old, secret=SECRET)
        session.commit()
        ada = new_user(session)
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        with envelope.unlock(session, ada, secret=NEW):
            assert ada.phone == "of ada"
        moved = session.get_one(User, old.id)
        with envelope.unlock(session, moved, secret=SECRET) as unlocked:
            unlocked.settle()
            session.rollback()
            unlocked.settle()
            session.commit()
        with envelope.unlock(session, moved, secret=SECRET):
            assert moved.phone == "of old"
        assert envelope.sweep_shares(session, User).is_whole


async def test_over_asyncio(async_two: AsyncTwo) -> None:
    """Under asyncio: enrolment, change, further secrets, an unlock, a missing share, and the sweep."""
    aenvelope = AsyncEnvelope(envelope)
    async with async_two.session() as session:
        ada = User(email="ada@example.org", phone="of ada")
        await aenvelope.enroll(session, ada, secret=SECRET)
        await session.commit()
        await aenvelope.change_secret(session, ada, old=SECRET, new=NEW)
        await session.commit()
        with pytest.raises(UnlockError):
            await aenvelope.unlock(session, ada, secret=SECRET)
        async with aenvelope.unlock(session, ada, secret=NEW):
            await aenvelope.add_secret(session, ada, secret="of the phone", label="phone")
            await session.commit()
        async with aenvelope.unlock(session, ada, secret="of the phone"):
            await session.refresh(ada)
            assert ada.phone == "of ada"

        found = await aenvelope.sweep_shares(session, User)
        assert (found.shares, found.unused, found.is_whole) == (2, 1, True)

        async with async_two.second.begin() as connection:
            await connection.execute(Share.__table__.delete())
        with pytest.raises(KeyShareError):
            await aenvelope.unlock(session, ada, secret=NEW)

        found = await aenvelope.sweep_shares(session, User)
        assert (found.slots_without_share, found.owners_affected, found.locked_out) == (2, 1, ((ada.id,),))


def test_shares_in_the_first_database_are_refused(lite_two: Two) -> None:
    """Beside the slots, shares would protect nothing: no bind, the first engine, and another engine on the
    first database are errors that show the line to write."""
    again = create_engine(lite_two.first.url)
    for binds in ({}, {Share: lite_two.first}, {Share: again}):
        with Session(lite_two.first, binds=binds) as session:
            with pytest.raises(ConfigurationError, match=r"binds=\{User.__share_class__: second_engine\}"):
                envelope.enroll(session, User(email="ada@example.org"), secret=SECRET)
            session.rollback()
    alone = Session(binds={Base: lite_two.first})
    with alone, pytest.raises(ConfigurationError, match=r"binds=\{User.__share_class__: second_engine\}"):
        envelope.enroll(alone, User(email="ada@example.org"), secret=SECRET)


def test_a_second_database_without_the_table_says_so(lite_two: Two) -> None:
    """The error names the table, and how to make it."""
    second.drop_all(lite_two.second)
    session = lite_two.sessions()
    with session, pytest.raises(ConfigurationError, match=r"no table users_keyshare.*__table__.create"):
        envelope.enroll(session, User(email="ada@example.org"), secret=SECRET)


def test_declarations() -> None:
    """The table has the name that was chosen, is among the tables of the first database only if asked for,
    and whoever declares all tables declares this one."""

    class Mine(DeclarativeBase):
        pass

    class Person(KeyOwner, Mine, key_shares=True, key_names=KeyNames(share_table="halves")):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Team(KeyOwner, Mine, key_shares=True, key_tables=False):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)

    class TeamKey(KeyTable[Team], Mine):
        __tablename__ = "team_keys"

    class TeamSlot(KeySlotTable[Team], Mine):
        __tablename__ = "team_slots"

    assert "halves" in Mine.metadata.tables
    assert Person.__share_class__.__table__.name == "halves"
    assert not Person.__share_class__.__table__.foreign_keys
    assert {"users_keyshare"} == set(second.tables)
    assert "users_keyshare" not in {*Base.metadata.tables, *Before.metadata.tables}
    with Session() as session, pytest.raises(ConfigurationError, match=r"KeyShareTable\[Team\]"):
        envelope.enroll(session, Team(id=1), secret=SECRET)
    with pytest.raises(ConfigurationError, match="key_shares= takes True, or a MetaData"):

        class Wrong(KeyOwner, Mine, key_shares="yes"):  # type: ignore[arg-type]
            __tablename__ = "wrong"
            id: Mapped[int] = mapped_column(primary_key=True)


async def test_over_asyncio_a_database_that_is_away_changes_nothing(async_two: AsyncTwo) -> None:
    """The driver's own error, and the owner opens as before when it is back."""
    aenvelope = AsyncEnvelope(envelope)
    async with async_two.session() as session:
        ada = User(email="ada@example.org", phone="of ada")
        await aenvelope.enroll(session, ada, secret=SECRET)
        await session.commit()
        key = ada.id
    away = create_async_engine("sqlite+aiosqlite:////nowhere/at/all.db")
    async with AsyncSession(async_two.first, binds={Share: away}) as session:
        ada = await session.get_one(User, key)
        with pytest.raises(OperationalError):
            await aenvelope.change_secret(session, ada, old=SECRET, new=NEW)
        await session.commit()
    async with async_two.session() as session:
        ada = await session.get_one(User, key)
        async with aenvelope.unlock(session, ada, secret=SECRET):
            assert ada.phone == "of ada"
    await away.dispose()


def test_two_databases_of_one_server(postgres_engine: Engine) -> None:
    """They are two databases, although their engines differ in the name alone."""
    Base.metadata.create_all(postgres_engine)
    name = f"second_{uuid.uuid4().hex}"
    with postgres_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        other = create_engine(postgres_engine.url.set(database=name))
        second.create_all(other)
        with sessions_on(postgres_engine, other)() as session:
            ada = new_user(session)
            envelope.change_secret(session, ada, old=SECRET, new=NEW)
            session.commit()
            with envelope.unlock(session, ada, secret=NEW):
                assert ada.phone == "of ada"
        other.dispose()
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_claim_stores_a_share(lite_two: Two, tmp_path: Path) -> None:
    """An owner whose keys a campaign made claims them with a secret whose slot has a share."""
    campaign_key = CampaignKeyFile.generate(tmp_path / "campaign.key")
    away = Envelope(kdf_profile=CHEAP, providers={"campaign": campaign_key})
    with lite_two.sessions() as session:
        user = User(email="ada@example.org")
        session.add(user)
        session.commit()
        Campaign(lite_two.sessions, away, Base).provide(User)
        away.enroll(session, user, secret=SECRET)
        session.commit()
        named = named_shares(session)

        assert None not in named
        assert lite_two.opens(user.id, SECRET) is None
        assert envelope.sweep_shares(session, User).is_whole
    assert lite_two.opens(user.id, NEW) == "UnlockError"


def test_a_pepper_and_a_share_go_together(lite_two: Two) -> None:
    """A slot under a pepper names its share as any slot does: it opens with both, and the sweep sees it."""
    peppered = Envelope(kdf_profile=CHEAP, pepper=ServerKeyring([b"\x05" * 32]))
    with lite_two.sessions() as session:
        ada = User(email="ada@example.org", phone="of ada")
        peppered.enroll(session, ada, secret=SECRET)
        session.commit()
        peppered.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        with peppered.unlock(session, ada, secret=NEW):
            assert ada.phone == "of ada"
        found = peppered.sweep_shares(session, User)

        assert (found.slots, found.unused, found.is_whole) == (1, 1, True)

        session.execute(delete(Share))
        session.commit()
        with pytest.raises(KeyShareError):
            peppered.unlock(session, ada, secret=NEW)
