"""Statements in server mode, and server mode beside what the other modules bring."""

import threading
import time

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import ConfigurationError, Envelope, KdfProfile, ServerKeyring
from tests.orm import models
from tests.orm.models import SECRET, Base, Note, Page, User
from tests.orm.sessions.server_mode.devices import Serving

KEY = b"\x07" * 32


WAIT = 30
"""Seconds after which a thread that does not come is given up."""


# Statements


def test_bulk_inserts_for_many_owners(serving: Serving) -> None:
    """ORM bulk and Core inserts of children for many owners at once, half of them without keys before."""
    owners = serving.users(20) + [serving.bare_user(f"bare {n}") for n in range(20)]
    with serving.mode(), Session(serving.engine) as session:
        session.execute(insert(Note), [{"user_id": owner, "body": f"bulk {owner}"} for owner in owners])
        session.execute(
            insert(Note.__table__),
            [{"user_id": owner, "body": f"core {owner}"} for owner in owners],  # type: ignore[arg-type]
        )
        session.execute(insert(Note).values([{"user_id": o, "body": f"values {o}"} for o in owners]))
        session.execute(insert(Page), [{"user_id": owner, "text": f"page {owner}"} for owner in owners])
        session.commit()
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note)).all()

        for kind in ("bulk", "core", "values"):
            mine = [note for note in notes if (note.body or "").startswith(kind)]
            assert {(owner, f"{kind} {owner}") for owner in owners} == {(n.user_id, n.body) for n in mine}
        pages = session.scalars(select(Page)).all()
        assert {(owner, f"page {owner}") for owner in owners} == {(p.user_id, p.text) for p in pages}


def test_updates(serving: Serving) -> None:
    """Objects are changed by a flush, by bulk update with keys, and by an UPDATE that names the owner."""
    owners = serving.users(3)
    with serving.mode(), Session(serving.engine) as session:
        notes = session.scalars(select(Note).order_by(Note.id)).all()
        notes[0].body = "by flush"
        session.commit()
        rest = {"size": None, "tags": None, "extra": None}
        named = {"id": notes[1].id, "user_id": notes[1].user_id}
        session.execute(update(Note), [{**named, "body": "by bulk update", **rest}])
        session.execute(
            update(Note.__table__)  # type: ignore[arg-type]
            .where(Note.id == notes[2].id)
            .values(user_id=notes[2].user_id, body="by core", **rest)
        )
        session.commit()

    assert serving.bodies(*owners) == ["by flush", "by bulk update", "by core"]


@pytest.mark.any_database
def test_a_row_moves_to_another_owner(serving: Serving) -> None:
    """A child is encrypted anew for another owner, one without keys included, row-bound columns too."""
    (ada,) = serving.users(1, "moving")
    ben = serving.bare_user("ben")
    with serving.mode(), Session(serving.engine) as session:
        page = Page(user_id=ada, text="page")
        session.add(page)
        session.commit()
        page_id = page.id
    with serving.mode(), Session(serving.engine) as session:
        session.scalars(select(Note)).one().user_id = ben
        session.get_one(Page, page_id).user_id = ben
        session.commit()
    with serving.engine.begin() as connection:
        connection.execute(sa.delete(User.__table__).where(User.id == ada))  # type: ignore[arg-type]

    assert serving.bodies(ben) == ["moving"]
    with serving.mode(), Session(serving.engine) as session:
        assert session.get_one(Page, page_id).text == "page"


@pytest.mark.any_database
def test_using_an_owner(serving: Serving) -> None:
    """A statement that does not name its rows' owner is written for the one that `using` says."""
    owners = serving.users(2)
    with serving.mode() as server, Session(serving.engine) as session:
        with server.using(session.get_one(User, owners[1])):
            session.execute(
                update(Note.__table__).where(Note.user_id == owners[1]).values(body="using")  # type: ignore[arg-type]
            )
        session.commit()

    assert serving.bodies(*owners) == ["note 0", "using"]


# Together with what the other modules bring


@pytest.mark.any_database
def test_columns_alone_and_joins(serving: Serving) -> None:
    """Selects of columns, joins and relationship loading open what belongs to several owners."""
    owners = serving.users(5)
    with serving.mode(), Session(serving.engine) as session:
        pairs = session.execute(select(Note.user_id, Note.body).order_by(Note.id)).all()
        joined = session.execute(
            select(User, Note.user_id, Note.body).join(User.notes).order_by(Note.id)
        ).all()

        assert [(owner, f"note {n}") for n, owner in enumerate(owners)] == [tuple(pair) for pair in pairs]
        assert [f"note {n}" for n in range(5)] == [row.body for row in joined]


@pytest.mark.any_database
def test_an_expired_and_a_refreshed_object(serving: Serving) -> None:
    """Values come back after expire, refresh, merge and a deferred load."""
    serving.users(1, "hello")
    with serving.mode(), Session(serving.engine) as session:
        note = session.scalars(select(Note).options(sa.orm.defer(Note.body))).one()
        assert note.body == "hello"
        session.expire(note)
        assert note.body == "hello"
        session.refresh(note)
        assert note.body == "hello"
        session.expunge(note)
        assert session.merge(note).body == "hello"
        session.commit()
        assert session.merge(note, load=False).body == "hello"


@pytest.mark.any_database
def test_a_secret_and_a_provider_open_the_same_owner(serving: Serving) -> None:
    """An owner with both slots is read by the server, and by itself without it."""
    envelope = serving.envelope()
    with Session(serving.engine) as session:
        user = User(email="both@example.org")
        envelope.enroll(session, user, secret=SECRET, provider="server")
        session.commit()
        both = user.id
    with serving.mode(), Session(serving.engine) as session:
        session.add(Note(user_id=both, body="from the server"))
        session.commit()
    with Session(serving.engine) as session:
        user = session.get_one(User, both)
        with envelope.unlock(session, user, secret=SECRET):
            assert [note.body for note in user.notes] == ["from the server"]
            session.add(Note(user_id=both, body="from the user"))
            session.commit()

    assert serving.bodies(both) == ["from the server", "from the user"]


@pytest.mark.any_database
def test_a_server_key_is_rotated_by_putting_a_new_one_first(serving: Serving) -> None:
    """With a new server key before the old one, old owners open and new ones come under the new key."""
    (ada,) = serving.users(1, "old")
    rotated = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"\x09" * 32, KEY])
    )
    with rotated.server_mode(reason="test"), Session(serving.engine) as session:
        session.add(User(email="new@example.org", notes=[Note(body="new")]))
        session.add(Note(user_id=ada, body="more"))
        session.commit()
        assert {"old", "more", "new"} == {note.body for note in session.scalars(select(Note))}


def test_no_secret_of_the_shared_models_is_weakened() -> None:
    """The envelope of the shared models has no server key: what it enrolls stays with its owner."""
    with pytest.raises(ConfigurationError):
        models.envelope.server_mode(reason="test")


@pytest.mark.backend
def test_two_processes_enrol_one_owner(postgres_engine: Engine) -> None:
    """Whoever comes second to make keys for an owner goes on with those of the first, and no write fails."""
    Base.metadata.create_all(postgres_engine)
    with Session(postgres_engine) as session:
        session.execute(insert(User.__table__).values(id=1, email="ada@example.org"))
        session.commit()
    second: list[str] = []

    def other() -> None:
        envelope = Envelope(server_keys=ServerKeyring([KEY]))
        with envelope.server_mode(reason="test"), Session(postgres_engine) as session:
            session.add(Note(user_id=1, body="second", tags=[]))
            session.commit()
            second.append(session.scalars(select(Note.body).where(Note.body.is_not(None))).all()[-1])

    envelope = Envelope(server_keys=ServerKeyring([KEY]))
    with envelope.server_mode(reason="test"), Session(postgres_engine) as session:
        session.add(Note(user_id=1, body="first", tags=[]))
        session.flush()
        thread = threading.Thread(target=other)
        thread.start()
        with postgres_engine.connect() as connection:
            waits = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            until = time.monotonic() + WAIT
            while not connection.execute(waits).scalar() and time.monotonic() < until:
                connection.rollback()
        session.commit()
        thread.join(WAIT)
        assert sorted(session.scalars(select(Note.body))) == ["first", "second"]
    assert len(second) == 1
