"""A ticket in groups: it follows grants as an unlock does, and makes, takes and gives no key."""

import datetime as dt
import json
from typing import Any

import pytest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import EnrollmentError, LockedError, TicketError
from sqlalchemy_envelope.orm.sharing import active_keys
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
    is_readable,
    secret_of,
)
from tests.orm.verbs.tickets.application import HOUR, Application, envelope


def posts(app: Application, ticket: str, name: str = "ada") -> list[str | None]:
    """The posts that a request with this ticket reads."""
    with app.request(ticket, name) as session:
        found = session.scalars(select(Post).order_by(Post.id)).all()
        return [post.text for post in found if is_readable(post, "text")]


def write(app: Application, ticket: str, text: str, name: str = "ada") -> None:
    """Write a post in a request with this ticket."""
    with app.request(ticket, name) as session:
        session.add(Post(group_id=app.group_id, text=text))
        session.commit()


def found_group(session: Session, *members: User) -> Group:
    """A new group with one post, by whoever is unlocked in the session."""
    group = Group(name="another group")
    envelope.enroll(session, group)
    session.add_all([Membership(group=group, user=one) for one in members])
    session.add(Post(group=group, text="in another group"))
    session.commit()
    return group


def test_a_group_after_the_ticket(app: Application) -> None:
    """A group that was founded later is locked, and opens with the next ticket."""
    ticket = app.log_in()
    with app.with_secret() as (session, _):
        found_group(session, app.user(session))
    with app.request(ticket) as session:
        post = session.scalars(select(Post).order_by(Post.id.desc())).first()
        assert post is not None
        with pytest.raises(LockedError, match=r"log in again.*issue a new ticket"):
            getattr(post, "text")  # noqa: B009
        session.add(Post(group_id=post.group_id, text="x"))
        with pytest.raises(LockedError, match="log in again"):
            session.flush()

    assert posts(app, ticket) == ["the first post"]
    assert posts(app, app.log_in()) == ["the first post", "in another group"]


def test_a_new_epoch_after_the_ticket(app: Application) -> None:
    """A member was removed, and the group has a new key: what is under it is locked, and nothing is written
    under the key that the removed member has."""
    ticket = app.log_in()
    with app.with_secret() as (session, _):
        session.delete(session.scalars(select(Membership).where(Membership.user_id == 2)).one())
        session.add(Post(group_id=app.group_id, text="without ben"))
        session.commit()
    with pytest.raises(LockedError, match="issue a new ticket"):
        write(app, ticket, "under the old key")

    assert posts(app, ticket) == ["the first post"]
    new = app.log_in()
    write(app, new, "under the new key")
    assert posts(app, new) == ["the first post", "without ben", "under the new key"]


def test_a_key_replaced_during_a_request(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that goes on while the key is rotated elsewhere writes nothing under the old key."""
    monkeypatch.setattr(active_keys, "LOOK_SECONDS", 0.0)
    ticket = app.log_in()
    with app.request(ticket) as session:
        app.user(session).diary = "before the rotation"
        session.commit()
        with app.with_secret() as (other, unlocked):
            unlocked.rotate(app.user(other))
            other.commit()
        app.user(session).diary = "under the old key"
        with pytest.raises(LockedError, match="issue a new ticket"):
            session.commit()

    assert app.diary(app.log_in()) == "before the rotation"


def test_a_destroyed_key_is_in_no_ticket(app: Application) -> None:
    """An owner's tickets end when a key that they carry is destroyed."""
    with app.with_secret() as (session, unlocked):
        retired = unlocked.rotate(app.user(session), scope="profile").retired
        app.user(session).display_name = "under the new key"
        session.commit()
    ticket, keys = app.log_in(), Base.metadata.tables["users_key"]
    with Session(app.engine) as session:
        hour_ago = dt.datetime.now(dt.UTC) - HOUR
        session.execute(keys.update().where(keys.c.key_id.in_(retired)).values(retired_at=hour_ago))
        session.commit()
        envelope.destroy_key(session, Base, retired[0], backups_until=hour_ago)
        session.commit()
    with pytest.raises(TicketError):
        app.diary(ticket)


def test_a_shredded_group(app: Application) -> None:
    """The tickets of a group's members carry its keys, and end with them; the receipt counts them."""
    with app.with_secret() as (session, _):
        organisation = Organisation(name="above the group")
        envelope.enroll(session, organisation)
        session.add(Affiliation(organisation_id=organisation.id, group_id=app.group_id))
        session.commit()
        organisation_id = organisation.id
    for cls, number in ((Organisation, organisation_id), (Group, app.group_id)):
        ticket = app.log_in("ben")
        with Session(app.engine) as session:
            receipt = envelope.shred(session, session.get_one(cls, number), reason="asked")
            session.commit()

        assert json.loads(receipt.to_json())["receipt"]["counts"]["tickets"] == 1
        assert app.rows() == []
        with pytest.raises(TicketError):
            app.diary(ticket, "ben")
    assert app.diary(app.log_in("ben"), "ben") == "the diary of ben"


def test_a_destroyed_key_of_a_group_is_in_no_ticket(app: Application) -> None:
    """Whoever was granted a group's key loses the tickets when a key of the group is destroyed."""
    with app.with_secret() as (session, unlocked):
        retired = unlocked.rotate(session.get_one(Group, app.group_id)).retired
        session.scalars(select(Post)).one().text = "under the new key"
        session.get_one(Group, app.group_id).name = "under the new key, too"
        session.commit()
        hour_ago = dt.datetime.now(dt.UTC) - HOUR
        keys = Base.metadata.tables["groups_key"]
        session.execute(keys.update().where(keys.c.key_id.in_(retired)).values(retired_at=hour_ago))
        session.commit()
    ticket = app.log_in("ben")
    with Session(app.engine) as session:
        envelope.destroy_key(session, Base, retired[0], backups_until=hour_ago)
        session.commit()

    with pytest.raises(TicketError):
        app.diary(ticket, "ben")
    assert posts(app, app.log_in("ben"), "ben") == ["under the new key"]


def test_a_shredded_user(app: Application) -> None:
    """The tickets of a user go with the keys."""
    ticket = app.log_in("ben")
    with Session(app.engine) as session:
        envelope.shred(session, app.user(session, "ben"), reason="asked")
        session.commit()
    assert app.rows() == []
    with pytest.raises(TicketError):
        app.diary(ticket, "ben")


def test_an_epoch_that_is_due(app: Application) -> None:
    """Somebody was removed by SQL, and nobody has written since: a write by ticket is refused, also at the
    second try, and starts no epoch. After a log-in with the secret, a new ticket writes."""
    ticket = app.log_in()
    app.remove_member("ben")
    before = app.key_rows()
    with app.request(ticket) as session:
        for _ in range(2):
            session.add(Post(group_id=app.group_id, text="x"))
            with pytest.raises(LockedError, match="a member was removed"):
                session.flush()
            session.rollback()
        with session.no_autoflush:
            for _ in range(2):
                with pytest.raises(LockedError, match="a member was removed"):
                    session.execute(Post.__table__.insert().values(group_id=app.group_id, text="x"))

    assert before == app.key_rows()
    new = app.log_in()
    write(app, new, "by the new ticket")
    assert posts(app, new) == ["the first post", "by the new ticket"]


def test_membership_by_ticket(app: Application) -> None:
    """Adding a member gives a key, and is refused. Removing a member needs none: the rows go, the epoch waits
    for somebody with the group's key, and the removed member is out at once."""
    ticket, of_ben = app.log_in(), app.log_in("ben")
    with app.request(ticket) as session:
        session.add(Membership(group_id=app.group_id, user_id=3))
        with pytest.raises(LockedError, match=r"(?s)for a Membership.*Unlock with the secret"):
            session.commit()
        session.rollback()
        session.delete(session.scalars(select(Membership).where(Membership.user_id == 2)).one())
        session.commit()

    assert posts(app, of_ben, "ben") == []
    with pytest.raises(LockedError, match="a member was removed"):
        write(app, ticket, "x")
    with app.with_secret() as (session, _):
        session.add(Post(group_id=app.group_id, text="without ben"))
        session.commit()
    assert posts(app, app.log_in()) == ["the first post", "without ben"]


def test_enrolling_by_ticket(app: Application) -> None:
    """A group gets no keys from a ticket; a user with a secret of its own does."""
    ticket = app.log_in()
    with app.request(ticket) as session:
        with pytest.raises(EnrollmentError, match="A ticket makes no keys"):
            envelope.enroll(session, Group(name="x"))
        session.rollback()
        with envelope.enroll(session, User(email="new", diary="mine"), secret="the secret of new"):
            session.commit()
    with app.with_secret("new") as (session, _):
        assert app.user(session, "new").diary == "mine"


@pytest.mark.parametrize("inner", ["secret", "ticket"])
def test_a_secret_beside_a_ticket(app: Application, inner: str) -> None:
    """Where the secret is open too, around the ticket or in it, members join and groups are founded."""
    ticket = app.log_in()
    with Session(app.engine) as session:
        user = app.user(session)
        ways: list[Any] = [{"ticket": ticket}, {"secret": secret_of("ada")}]
        first, second = ways if inner == "secret" else ways[::-1]
        with envelope.unlock(session, user, **first), envelope.unlock(session, user, **second):
            session.add(Membership(group_id=app.group_id, user_id=3))
            session.commit()
            found_group(session, user)
    with app.with_secret("eve") as (session, _):
        assert session.scalars(select(Post).order_by(Post.id)).first().text == "the first post"  # type: ignore[union-attr]


def test_what_others_write_for_the_owner(app: Application) -> None:
    """Values that a job wrote for the locked owner after the ticket are locked until the next log-in."""
    ticket = app.log_in()
    with Session(app.engine) as session:
        user = app.user(session)
        with envelope.write_only(session, user):
            user.diary = "from a job"
            session.commit()
    with pytest.raises(LockedError, match="log in again"):
        app.diary(ticket)

    assert app.diary(app.log_in()) == "from a job"


def test_groups_in_groups(app: Application) -> None:
    """The keys of an organisation come through the group, while the group is its member."""
    with app.with_secret() as (session, _):
        organisation = Organisation(name="the organisation")
        envelope.enroll(session, organisation)
        session.flush()
        session.add(Affiliation(organisation_id=organisation.id, group_id=app.group_id))
        session.commit()
    ticket = app.log_in("ben")
    with app.request(ticket, "ben") as session:
        organisation = session.scalars(select(Organisation)).one()
        assert organisation.name == "the organisation"
        organisation.name = "renamed"
        session.commit()
    with Session(app.engine) as session:
        session.execute(delete(Affiliation))
        session.commit()
    with app.request(ticket, "ben") as session:
        assert not is_readable(session.scalars(select(Organisation)).one(), "name")
        assert session.scalars(select(Group)).one().name == "the group of ada"


def test_a_shared_scope(app: Application) -> None:
    """What Ada shows the group is read by Ben's ticket, and locked with the share."""
    with app.with_secret() as (session, _):
        session.add(ProfileShare(user_id=1, group_id=app.group_id))
        session.commit()
    ticket = app.log_in("ben")
    with app.request(ticket, "ben") as session:
        ada = app.user(session)
        assert ada.display_name == "Ada"
        assert not is_readable(ada, "diary")
    with Session(app.engine) as session:
        session.execute(delete(ProfileShare))
        session.commit()
    with app.request(ticket, "ben") as session:
        ada = app.user(session)
        assert not is_readable(ada, "display_name")
        ada.display_name = "x"
        with pytest.raises(LockedError):
            session.flush()


def test_history_from_join(app: Application) -> None:
    """Who joined later reads by ticket what an unlock reads, and no more."""
    with app.with_secret() as (session, _):
        club = Club(motto="the motto")
        envelope.enroll(session, club)
        session.flush()
        session.add(ClubMembership(club_id=club.id, user_id=1))
        session.add(Minute(club_id=club.id, text="before eve"))
        session.commit()
        session.add(ClubMembership(club_id=club.id, user_id=3))
        session.commit()
        session.add(Minute(club_id=club.id, text="with eve"))
        session.commit()

    def minutes(name: str) -> list[str | None]:
        with app.request(app.log_in(name), name) as session:
            found = session.scalars(select(Minute).order_by(Minute.id)).all()
            return [one.text for one in found if is_readable(one, "text")]

    assert minutes("ada") == ["before eve", "with eve"]
    assert minutes("eve") == ["with eve"]


def test_every_epoch_is_carried(lite_app: Application) -> None:
    """After 40 epochs of the user, the ticket opens the oldest value."""
    with lite_app.with_secret() as (session, unlocked):
        user = lite_app.user(session)
        for number in range(40):
            unlocked.add_secret(user, f"words {number}", label="phone")
            session.commit()
            (slot,) = [one for one in envelope.slots(session, user) if one.label == "phone"]
            unlocked.remove_slot(user, slot)
            session.commit()

    assert lite_app.diary(lite_app.log_in()) == "the diary of ada"


def test_why_a_value_is_locked(lite_app: Application) -> None:
    """`why_locked` says that another log-in opens it."""
    ticket = lite_app.log_in()
    with lite_app.with_secret() as (session, _):
        found_group(session, lite_app.user(session))
    with lite_app.request(ticket) as session:
        post = session.scalars(select(Post).order_by(Post.id.desc())).first()
        why = envelope.why_locked(session, post, "text")

    assert why is not None
    assert why.reason == "unlocked-earlier"
    assert "issue a new ticket" in str(why)
