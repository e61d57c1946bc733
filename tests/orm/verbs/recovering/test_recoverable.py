"""`recoverable` says what would be lost without the secret, and who could help; from the rows alone."""

from typing import Any

import pytest
from sqlalchemy import Engine, delete, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    Envelope,
    KdfProfile,
    Loss,
    NotEnrolledError,
    OwnerName,
    Recoverability,
    ServerKeyring,
)
from tests.orm import models
from tests.orm.models import statements_sent
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Group,
    Membership,
    Organisation,
    Post,
    ProfileShare,
    User,
    secret_of,
)

OWN = ("User.diary", "User.display_name")
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x05" * 32]))


class Town:
    """Ada founded a group alone, which is a member of an organisation; Ada and Ben share another group."""

    def __init__(self, engine: Engine) -> None:
        Base.metadata.create_all(engine)
        self.session = Session(engine)
        self.ada, self.ben = self.enrolled("ada"), self.enrolled("ben")
        with self.unlocked(self.ada):
            self.alone, self.shared = Group(name="alone"), Group(name="shared")
            self.firm = Organisation(name="firm")
            for one in (self.alone, self.shared, self.firm):
                envelope.enroll(self.session, one)
            self.session.add_all(
                [
                    Membership(group=self.alone, user=self.ada),
                    Membership(group=self.shared, user=self.ada),
                    Membership(group=self.shared, user=self.ben),
                    Affiliation(organisation_id=self.firm.id, group_id=self.alone.id),
                ]
            )
            self.session.commit()
            self.session.add(Post(group=self.alone, text="alone"))
            self.session.commit()

    def enrolled(self, name: str) -> User:
        user = User(email=name, diary="dear diary", display_name=name)
        envelope.enroll(self.session, user, secret=secret_of(name))
        self.session.commit()
        return user

    def unlocked(self, user: User) -> Any:
        return envelope.unlock(self.session, user, secret=secret_of(user.email))

    def recoverable(self, owner: object, **options: Any) -> Recoverability:
        return envelope.recoverable(self.session, owner, **options)


@pytest.fixture
def town(sqlite_engine: Engine) -> Any:
    made = Town(sqlite_engine)
    yield made
    made.session.close()


def name(owner: Any) -> OwnerName:
    return OwnerName(type(owner).__name__, (owner.id,))


def test_a_secret_alone(town: Town) -> None:
    """Lost are the owner's own columns, the group that it alone is in, and what that group alone is in."""
    found = town.recoverable(town.ada)

    assert {
        Loss(name(town.ada), OWN),
        Loss(name(town.alone), ("Group.name", "Post.text")),
        Loss(name(town.firm), ("Organisation.name",)),
    } == set(found.lost)
    assert found.lost[0].owner == name(town.ada)
    assert found.helpers == ()
    assert str(found) == (
        "User 1 is opened by a secret. Without a secret, this would be lost: User.diary, User.display_name "
        "of User 1; Group.name, Post.text of Group 1; Organisation.name of Organisation 1. "
        "A recovery code, made while the owner is unlocked, would prevent that."
    )


def test_a_recovery_code(town: Town) -> None:
    """With a code nothing is lost; without secret and code, all is."""
    with town.unlocked(town.ada) as unlocked:
        unlocked.add_recovery_code(town.ada, label="in the safe")
        town.session.commit()
    found = town.recoverable(town.ada)

    assert found.lost == ()
    assert found.helpers == ("whoever keeps the recovery code 'in the safe'",)
    assert len(town.recoverable(town.ada, without=["secret", "recovery"]).lost) == 3
    assert str(found) == (
        "User 1 is opened by a secret; a recovery code 'in the safe'. Without a secret, these could help: "
        "whoever keeps the recovery code 'in the safe'. Nothing would be lost."
    )


def test_a_provider(town: Town) -> None:
    """A provider that holds a slot can help, and is named."""
    with town.unlocked(town.ada):
        envelope.add_provider(town.session, town.ada, provider="server")
        town.session.commit()
    found = town.recoverable(town.ada)

    assert found.lost == ()
    assert found.helpers == ("provider 'server'",)
    assert {"provider"} == {way.kind for way in found.remaining}


def test_a_scope_that_others_were_granted(town: Town) -> None:
    """What another member of a shared group can read is not lost; what the owner shows to itself alone is."""
    with town.unlocked(town.ada):
        town.session.add(ProfileShare(user=town.ada, group=town.alone))
        town.session.commit()
        assert Loss(name(town.ada), OWN) == town.recoverable(town.ada).lost[0]
        town.session.add(ProfileShare(user=town.ada, group=town.shared))
        town.session.commit()
    found = town.recoverable(town.ada)

    assert Loss(name(town.ada), ("User.diary",)) == found.lost[0]
    assert {name(town.alone), name(town.shared)} == set(found.holders)


def test_a_group_is_opened_by_its_members(town: Town) -> None:
    """A group has no secret: nothing is lost without one, and its members could help."""
    found = town.recoverable(town.shared)

    assert found.lost == ()
    assert (name(town.ada), name(town.ben)) == found.holders
    assert str(found).startswith(
        "Group 2 is opened by nothing of its own. Without a secret, these could help: "
    )


def test_the_last_member(town: Town) -> None:
    """Once Ben has left, the shared group hangs on Ada too."""
    with town.unlocked(town.ada):
        town.session.execute(delete(Membership).where(Membership.user_id == town.ben.id))
        town.session.commit()
    lost = [one.owner for one in town.recoverable(town.ada).lost]

    assert name(town.shared) in lost


def test_values_of_earlier_epochs(town: Town) -> None:
    """A code that opens the present keys alone leaves earlier values to the secret, and that is said."""
    with town.unlocked(town.ada) as unlocked:
        unlocked.add_recovery_code(town.ada, label="lost")
        (lost,) = [slot for slot in envelope.slots(town.session, town.ada) if slot.label == "lost"]
        unlocked.remove_slot(town.ada, lost)  # a new epoch
        unlocked.add_recovery_code(town.ada, label="new")
        town.session.commit()

    assert town.recoverable(town.ada).lost == ()
    slots, keys = Base.metadata.tables["users_keyslot"], Base.metadata.tables["users_key"]
    first = keys.c.epoch == 1, keys.c.purpose == "root", keys.c.owner_id == town.ada.id
    root = town.session.scalars(select(keys.c.key_id).where(*first)).one()
    town.session.execute(slots.delete().where(slots.c.key_id == root, slots.c.kind == "recovery"))
    assert town.recoverable(town.ada).lost == ()  # the newer root key leads to the first
    town.session.execute(keys.update().where(*first).values(wrapped=None, wrapping_key_id=None))
    envelope.seal_rows(town.session, User)

    assert [Loss(name(town.ada), OWN, only_earlier=True)] == list(town.recoverable(town.ada).lost)


def test_who_has_no_keys(town: Town) -> None:
    """It is refused as by every verb."""
    owner = User(email="cid")
    town.session.add(owner)
    town.session.commit()

    with pytest.raises(NotEnrolledError):
        town.recoverable(owner)


def test_few_queries_however_many_groups(town: Town, sqlite_engine: Engine) -> None:
    """The same number of SELECTs for two groups and for twenty, and nothing else."""

    def sent() -> list[str]:
        with statements_sent(sqlite_engine) as statements:
            town.recoverable(town.ada)
        return statements

    few = sent()
    with town.unlocked(town.ada):
        for _ in range(18):
            group = Group(name="another")
            envelope.enroll(town.session, group)
            town.session.add(Membership(group=group, user=town.ada))
        town.session.commit()
        assert len(town.recoverable(town.ada).lost) == 21
    many = sent()

    assert len(few) == len(many) <= 25
    assert all(statement.startswith("SELECT") for statement in many)


async def test_the_asynchronous_face(async_engine: AsyncEngine) -> None:
    """The same report, on aiosqlite and asyncpg."""
    aio = AsyncEnvelope(envelope)
    async with async_engine.begin() as connection:
        await connection.run_sync(models.Base.metadata.create_all)
    async with AsyncSession(async_engine, expire_on_commit=False) as session:
        owner = models.User(email="cid")
        await aio.enroll(session, owner, secret=models.SECRET)
        await session.commit()
        found = await aio.recoverable(session, owner)

    columns = ("Note.body", "Note.extra", "Note.size", "Note.tags", "Page.text", "User.phone")
    assert (Loss(name(owner), columns),) == found.lost
