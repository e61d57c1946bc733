"""Why a value does not open here is told in one value, by SELECTs alone and without a key; and where each
granting row stands."""

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, create_engine, delete, insert, select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    ConfigurationError,
    Envelope,
    GrantStanding,
    KdfProfile,
    LockedError,
    LockReason,
    OwnerName,
    WhyLocked,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.keys.providers import ServerKeyring
from sqlalchemy_envelope.orm.verbs.envelope.envelope import Follow
from tests.orm.sharing_models import (
    Affiliation,
    Base,
    Club,
    ClubMembership,
    Group,
    Membership,
    Minute,
    Organisation,
    Post,
    ProfileShare,
    User,
    calls_sent,
    envelope,
    found_group,
    unlock,
)
from tests.orm.verbs.why_locked.scene import add_pending, as_user, make_scene

FOUNDER, MEMBER, OUTSIDER = 1, 2, 3
GROUP = 1
GRANTS: sa.Table = Base.metadata.tables["memberships_keygrant"]
KEYS: sa.Table = Base.metadata.tables["groups_key"]


def why(session: Session, model: type[Any] = Post, attribute: str | None = None) -> WhyLocked:
    """Why the first object of a class is locked; it is."""
    found = envelope.why_locked(session, session.scalars(select(model)).first(), attribute)
    assert found is not None
    return found


def short_form(session: Session, model: type[Any] = Post, attribute: str = "text") -> LockReason | None:
    """The reason that the error carries when the attribute is touched."""
    instance = session.scalars(select(model)).first()
    with pytest.raises(LockedError) as raised:
        getattr(instance, attribute)
    return raised.value.reason


# ---------------------------------------------------------------- each reason


def test_what_opens_is_not_locked(scene: Engine) -> None:
    """There is no reason where the value opens."""
    with as_user(scene, "member") as session:
        assert envelope.why_locked(session, session.scalars(select(Post)).one()) is None


def test_nobody_is_unlocked(scene: Engine) -> None:
    """Without an unlock that is the reason, and the error says the same."""
    with Session(scene) as session:
        found = why(session)

        assert LockReason.NOTHING_UNLOCKED is found.reason is short_form(session)
        assert ("Post.text", OwnerName("Group", (GROUP,))) == (found.attribute, found.owner)


def test_the_unlocked_session_was_left(scene: Engine) -> None:
    """After leaving, that is the reason."""
    with Session(scene) as session, unlock(session, "member") as unlocked:
        unlocked.lock()

        assert LockReason.LEFT is why(session).reason is short_form(session)


def test_there_is_no_right(scene: Engine) -> None:
    """No granting row leads from the outsider to the group; the error cannot know without a query."""
    with as_user(scene, "outsider") as session:
        found = why(session)

        assert LockReason.NO_RIGHT is found.reason
        assert short_form(session) is None
        assert "no Affiliation or" not in found.message
        assert "gives the key of Group 1 to User 3" in found.message


def test_an_owners_own_values_are_shared_with_nobody(scene: Engine) -> None:
    """The scope counts: of another user nothing is shared here."""
    with as_user(scene, "outsider") as session:
        found = why(session, User, "diary")

    assert (LockReason.NO_RIGHT, OwnerName("User", (FOUNDER,)), "") == (
        found.reason,
        found.owner,
        found.scope,
    )


def test_a_right_is_pending(both: Engine) -> None:
    """The answer says since when, by which row, and who can fulfil it; after one of them did, it opens."""
    add_pending(both)
    with Session(both) as session:
        session.connection(execution_options={"postgresql_readonly": True})
        with unlock(session, "outsider"):
            found = why(session)
        assert found.grant is not None
        assert found.grant.since is not None

        assert LockReason.PENDING is found.reason
        assert (found.grant.grant, found.grant.row) == ("Membership", (GROUP, OUTSIDER))
        assert {OwnerName("User", (FOUNDER,)), OwnerName("User", (MEMBER,))} == set(found.grant.holders)
        assert found.grant.since.tzinfo is not None
        assert (
            f"Membership {GROUP}, {OUTSIDER} gives User {OUTSIDER} the key of Group {GROUP}" in found.message
        )
        assert f"and has been pending since {found.grant.since:%Y-%m-%d %H:%M}." in found.message
        assert "unlock User 1 or User 2, and call `envelope.settle(session)`" in found.message
    with as_user(both, "member") as session:
        envelope.settle(session)
        session.commit()
    with as_user(both, "outsider") as session:
        assert envelope.why_locked(session, session.scalars(select(Post)).one()) is None


def test_a_pending_right_that_nobody_can_fulfil(scene: Engine) -> None:
    """Where the wraps of all holders are gone, the answer says that, and what is left to do."""
    add_pending(scene)
    with scene.begin() as connection:
        connection.execute(delete(GRANTS).where(GRANTS.c.row_user_id != OUTSIDER))
    with Session(scene) as session:
        (status,) = [one for one in envelope.grant_states(session, Membership) if one.row[1] == OUTSIDER]
        with unlock(session, "outsider"):
            found = why(session)

    assert LockReason.PENDING is found.reason
    assert "Nobody holds that key any more" in found.message
    assert str(status).endswith(", and nobody holds the key")


def test_a_right_behind_a_pending_one_is_pending(scene: Engine) -> None:
    """The row in the way is named, however far from the value."""
    with as_user(scene, "founder") as session:
        organisation = Organisation(name="all")
        envelope.enroll(session, organisation)
        session.add(Affiliation(organisation_id=organisation.id, group_id=GROUP))
        session.commit()
    add_pending(scene)
    with as_user(scene, "outsider") as session:
        found = why(session, Organisation)

    assert (LockReason.PENDING, OwnerName("Organisation", (1,))) == (found.reason, found.owner)
    assert found.grant is not None
    assert found.grant.grant == "Membership"


def test_a_pending_scope(scene: Engine) -> None:
    """A scope that is shared while its owner is away is pending, and the owner can fulfil it."""
    with Session(scene) as session:
        envelope.attach(session)
        session.add(ProfileShare(user_id=OUTSIDER, group_id=GROUP))
        session.commit()
    with as_user(scene, "member") as session:
        found = envelope.why_locked(session, session.get_one(User, OUTSIDER), "display_name")
        diary = envelope.why_locked(session, session.get_one(User, OUTSIDER), "diary")

    assert found is not None
    assert diary is not None
    assert found.grant is not None
    assert (found.reason, found.scope) == (LockReason.PENDING, "profile")
    assert (OwnerName("User", (OUTSIDER,)),) == found.grant.holders
    assert LockReason.NO_RIGHT is diary.reason


def test_a_row_that_no_flush_added_is_void(scene: Engine) -> None:
    """An INSERT grants nothing, and the answer says so."""
    with scene.begin() as connection:
        connection.execute(insert(Membership.__table__).values(group_id=GROUP, user_id=OUTSIDER))
    with as_user(scene, "outsider") as session:
        found = why(session)

    assert LockReason.VOID is found.reason
    assert found.grant is not None
    assert GrantStanding.VOID is found.grant.standing


def test_who_joined_later_holds_later_epochs(scene: Engine) -> None:
    """With `history="from_join"` what was before is of another epoch, and the answer says which are held."""
    with as_user(scene, "founder") as session:
        club = Club(motto="slowly")
        envelope.enroll(session, club)
        session.add(ClubMembership(club_id=club.id, user_id=FOUNDER))
        session.add(Minute(club_id=club.id, text="before"))
        session.commit()
        session.add(ClubMembership(club_id=club.id, user_id=MEMBER))
        session.commit()
    with as_user(scene, "member") as session:
        found = why(session, Minute)

    assert (found.reason, found.epoch, found.epochs) == (LockReason.OTHER_EPOCH, 1, (2,))
    assert found.grant is not None


def test_who_was_removed_meanwhile_holds_earlier_epochs(both: Engine) -> None:
    """An unlocked session that outlives its member's removal holds earlier keys alone."""
    with as_user(both, "member") as session:
        session.scalars(select(Post)).all()  # so that the grants which lead to it are followed
        session.rollback()
        with both.begin() as connection:
            connection.execute(delete(Membership.__table__).where(Membership.__table__.c.user_id == MEMBER))
        with Session(both) as other, unlock(other, "founder"):
            other.add(Post(group_id=GROUP, text="after"))
            other.commit()
        later = session.scalars(select(Post).order_by(Post.id.desc())).first()
        found = envelope.why_locked(session, later)

    assert found is not None
    assert (found.reason, found.epoch, found.epochs, found.grant) == (LockReason.OTHER_EPOCH, 2, (1,), None)


@pytest.mark.parametrize("follow", ["needed", "all"])
def test_a_grant_after_the_unlock(scene: Engine, follow: Follow) -> None:
    """Who was added after everything was followed is told to unlock again; where grants are followed as they
    are needed, the next transaction looks for itself."""
    with Session(scene) as session, unlock(session, "outsider", follow):
        before = why(session).reason
        session.rollback()
        with Session(scene) as other, unlock(other, "founder"):
            other.add(Membership(group_id=GROUP, user_id=OUTSIDER))
            other.commit()
        found = envelope.why_locked(session, session.scalars(select(Post)).first())

    assert before == LockReason.NO_RIGHT
    assert (found and found.reason) == (LockReason.UNLOCKED_EARLIER if follow == "all" else None)


def test_an_owner_without_keys(scene: Engine) -> None:
    """A new object of an owner that is not enrolled cannot be flushed, and the answer says why."""
    with scene.begin() as connection:
        connection.execute(insert(Group.__table__).values(id=9))
    with as_user(scene, "member") as session:
        found = envelope.why_locked(session, Post(group_id=9, text="new"))

    assert found is not None
    assert (LockReason.NOT_ENROLLED, OwnerName("Group", (9,))) == (found.reason, found.owner)


def test_a_new_object_that_could_be_flushed(scene: Engine) -> None:
    """A new object of a group that is held has no reason not to be."""
    with as_user(scene, "member") as session:
        assert envelope.why_locked(session, Post(group_id=GROUP, text="new")) is None
        group = session.get_one(Group, GROUP)
        with session.no_autoflush:
            assert envelope.why_locked(session, Post(group=group, text="new")) is None


def test_a_row_without_an_owner(scene: Engine) -> None:
    """A new object that names no owner is told so."""
    with as_user(scene, "member") as session:
        found = envelope.why_locked(session, Post(text="new"))

    assert found is not None
    assert LockReason.NO_OWNER is found.reason


def destroy(engine: Engine) -> None:
    """The group's data keys are destroyed."""
    with engine.begin() as connection:
        connection.execute(
            update(KEYS).where(KEYS.c.purpose == "data").values(state="destroyed", wrapped=None)
        )


def remove(engine: Engine) -> None:
    """The rows of the group's data keys are deleted."""
    with engine.begin() as connection:
        connection.execute(delete(KEYS).where(KEYS.c.purpose == "data"))


@pytest.mark.parametrize("shred", [destroy, remove])
def test_a_shredded_key(scene: Engine, shred: Callable[[Engine], None]) -> None:
    """A key that is destroyed or gone is told, whoever is unlocked."""
    shred(scene)
    with Session(scene) as session:
        found = why(session)

    assert LockReason.SHREDDED is found.reason


def alter(engine: Engine) -> None:
    """The last byte of the post is altered."""
    with engine.begin() as connection:
        stored = connection.scalar(sa.text("SELECT text FROM posts"))
        altered = stored[:-1] + bytes([stored[-1] ^ 1])
        connection.execute(sa.text("UPDATE posts SET text = :altered"), {"altered": altered})


def move(engine: Engine) -> None:
    """The post is moved to another group."""
    with Session(engine) as session:
        other = found_group(session, "outsider")
        session.connection().execute(sa.text(f"UPDATE posts SET group_id = {other} WHERE id = 1"))
        session.commit()


@pytest.mark.parametrize("tamper", [alter, move])
def test_a_value_that_is_not_what_was_written(scene: Engine, tamper: Callable[[Engine], None]) -> None:
    """An altered value is told to who could read it, and a moved one to everybody."""
    tamper(scene)
    with as_user(scene, "member") as session:
        assert LockReason.UNREADABLE is why(session).reason


def test_keys_that_were_altered(scene: Engine) -> None:
    """Keys that say they belong to another owner open nothing, and the answer says why."""
    with scene.begin() as connection:
        connection.execute(update(KEYS).values(owner_reference=b"another"))
    with Session(scene) as session:
        found = why(session)

    assert LockReason.UNREADABLE is found.reason
    assert "another owner" in found.message


def test_another_database(scene: Engine, tmp_path: Any) -> None:
    """Who is unlocked in one database is nobody in another one."""
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    enforce_foreign_keys(engine)
    make_scene(engine)
    with as_user(engine, "member"), Session(scene) as session:
        found = why(session)

    engine.dispose()

    assert found.reason is LockReason.OTHER_DATABASE


def test_server_mode_without_a_slot(scene: Engine) -> None:
    """A server that holds no slot of the owner is told who does."""
    served = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        providers={"staff": ServerKeyring.from_text(ServerKeyring.generate_key())},
    )
    with Session(scene) as session, served.server_mode(session, provider="staff", reason="a test"):
        found = served.why_locked(session, session.scalars(select(Post)).one())

    assert found is not None
    assert LockReason.NO_RIGHT is found.reason
    assert "server mode is on with the provider 'staff'" in found.message
    assert "The newest key of Group 1 has slots of no provider, and no grant leads to it" in found.message


def test_write_only_reads_nothing(scene: Engine) -> None:
    """Inside `write_only` nobody is unlocked who could read."""
    with Session(scene) as session, envelope.write_only(session):
        assert LockReason.NOTHING_UNLOCKED is why(session).reason


# ---------------------------------------------------------------- how it is asked


def test_a_reader_who_is_away(scene: Engine) -> None:
    """Asked for another owner, nobody has to be unlocked."""
    with Session(scene) as session:
        post = session.scalars(select(Post)).one()
        member, outsider = session.get_one(User, MEMBER), session.get_one(User, OUTSIDER)
        found = envelope.why_locked(session, post, reader=outsider)

        assert envelope.why_locked(session, post, reader=member) is None
        assert found is not None
        assert LockReason.NO_RIGHT is found.reason
    with as_user(scene, "founder") as session:
        found = envelope.why_locked(
            session, session.scalars(select(Post)).one(), reader=session.get_one(User, OUTSIDER)
        )

        assert found is not None


def test_of_several_attributes_the_first_that_is_locked(scene: Engine) -> None:
    """Without a name, what opens is passed over."""
    with as_user(scene, "founder") as session:
        session.add(ProfileShare(user_id=FOUNDER, group_id=GROUP))
        session.commit()
    with as_user(scene, "member") as session:
        found = envelope.why_locked(session, session.get_one(User, FOUNDER))

        assert found is not None
        assert found.attribute == "User.diary"
        assert envelope.why_locked(session, session.get_one(User, FOUNDER), "display_name") is None


@pytest.mark.parametrize(
    ("what", "attribute"), [(Post(), "name"), (Membership(), None), ("a text", None), (Post, None)]
)
def test_what_has_no_such_attribute(scene: Engine, what: object, attribute: str | None) -> None:
    """The error names the encrypted attributes that there are."""
    with Session(scene) as session, pytest.raises(ConfigurationError, match="tells of encrypted attributes"):
        envelope.why_locked(session, what, attribute)


def test_it_sends_selects_alone(scene: Engine) -> None:
    """A pending answer takes eight SELECTs that lock nothing, and what waits for a flush is left waiting."""
    add_pending(scene)
    with as_user(scene, "outsider") as session:
        post = session.scalars(select(Post)).one()
        session.add(Post(text="waits"))
        with calls_sent(scene) as sent:
            found = envelope.why_locked(session, post)
        session.expunge_all()

    assert found is not None
    assert LockReason.PENDING is found.reason
    assert {"SELECT"} == {statement.split()[0] for statement, _ in sent}
    assert not [statement for statement, _ in sent if "FOR UPDATE" in statement or "FOR NO KEY" in statement]
    assert len(sent) == 8


def test_an_answer_holds_no_key(scene: Engine) -> None:
    """Neither the text nor the representation of an answer has bytes of a key, a wrap or a value in it."""
    add_pending(scene)
    with as_user(scene, "outsider") as session:
        found = why(session)
    shown = f"{found} {found!r}"
    with scene.connect() as connection:
        stored = [
            value
            for table in (KEYS, GRANTS, Base.metadata.tables["users_key"])
            for row in connection.execute(select(table))
            for value in row
            if isinstance(value, bytes)
        ]
    assert stored

    assert not [one for one in stored if one.hex() in shown or repr(one)[2:-1] in shown]
    assert "the first post" not in shown
