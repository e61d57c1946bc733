"""A shredded value as a reader meets it: an error that says so, or the replacement of its column."""

import copy
import pickle
from typing import Any

import pytest
from sqlalchemy import Engine, String, inspect, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    KeyShreddedError,
    LockedError,
    Sealed,
    ServerKeyring,
)
from tests.orm.models import statements_sent, stored
from tests.orm.verbs.shredding.erasable_models import (
    Letter,
    eraser,
    opened,
    person,
    shred,
    start,
    told,
    unlock,
)
from tests.plain_sql import update_of
from tests.prepared import prepared


@pytest.fixture
def erased(sqlite_engine: Engine) -> Engine:
    """Ada is shredded."""

    def make() -> None:
        start(sqlite_engine)
        shred(sqlite_engine, "ada")

    prepared(sqlite_engine, "erased", make)
    told.clear()
    return sqlite_engine


def adas(session: Session) -> Letter:
    return session.scalars(select(Letter).where(Letter.author_id == 1)).one()


def test_a_replacement_is_never_written(erased: Engine) -> None:
    """The object is flushed, refreshed, and saved as it was shown: the stored bytes stay."""
    before = [stored(erased, getattr(Letter, key).property.columns[0], 1) for key in ("text", "note", "tags")]
    with opened(erased, "ben") as session:
        letter = adas(session)
        letter.subject = "changed"
        letter.note, letter.tags = letter.note, letter.tags
        letter.note = "[erased]"
        assert session.is_modified(letter)
        with statements_sent(erased) as sent:
            session.commit()
        session.refresh(letter)
        assert (letter.subject, letter.note, letter.tags) == ("changed", "[erased]", ["erased"])
        letter.note = "[erased]"
        assert not session.is_modified(letter)
        assert "note" not in inspect(letter).dict
    after = [stored(erased, getattr(Letter, key).property.columns[0], 1) for key in ("text", "note", "tags")]

    assert before == after
    assert [one for one in sent if "UPDATE" in one] == ["UPDATE letters SET subject=? WHERE letters.id = ?"]


def test_each_reader_has_a_replacement_of_its_own(erased: Engine) -> None:
    """Whoever changes a replacement in place changes nobody else's, and stores nothing."""
    with opened(erased, "ben") as session:
        letter = adas(session)
        tags: Any = letter.tags
        tags.append("more")
        session.commit()

        assert letter.tags == ["erased"]
        assert session.scalars(select(Letter.tags).where(Letter.author_id == 1)).all() == [["erased"]]


def test_a_new_value_replaces_it(erased: Engine) -> None:
    """The owner's new keys encrypt a new value in place of a shredded one; None is stored as NULL."""
    with Session(erased) as session, eraser.enroll(session, person(session, "ada"), secret="new secret"):
        letter = adas(session)
        letter.note, letter.text, letter.tags = "new", "new text", None
        session.commit()

        assert (letter.note, letter.text, letter.tags) == ("new", "new text", None)


def test_selected_columns(erased: Engine) -> None:
    """A select of columns gives the replacement, or a handle that says why it does not open."""
    with Session(erased) as session, unlock(session, "ben") as unlocked:
        rows = session.execute(
            select(Letter.author_id, Letter.note, Letter.text).order_by(Letter.author_id)
        ).all()
        sealed: Any = rows[0].text
        with pytest.raises(KeyShreddedError):
            unlocked.decrypt(sealed)
        with pytest.raises(KeyShreddedError):
            str(sealed)

        assert [one.note for one in rows] == ["[erased]", "a note"]
        assert rows[1].text == "dear"
        assert "key-shredded" in repr(sealed)
        assert isinstance(pickle.loads(pickle.dumps(sealed)).why, KeyShreddedError)  # noqa: S301


def test_a_handle_from_before_is_looked_up(erased: Engine) -> None:
    """A value that was selected while nothing was unlocked tells at `decrypt` that its key is destroyed."""
    with Session(erased) as session:
        text, note = session.execute(select(Letter.text, Letter.note).where(Letter.author_id == 1)).one()
        with unlock(session, "ben") as unlocked:
            assert isinstance(note, Sealed)
            assert unlocked.decrypt(note) == "[erased]"
            with pytest.raises(KeyShreddedError):
                unlocked.decrypt(text)


def test_without_a_key_it_is_locked(erased: Engine) -> None:
    """Whoever has unlocked nothing is told that a value is locked, with no query more; `why_locked` knows."""
    with Session(erased) as session, statements_sent(erased) as sent:
        letter = adas(session)
        with pytest.raises(LockedError) as caught:
            _ = letter.note
        sent_to_read = len(sent)
        why = eraser.why_locked(session, letter, "note")

    assert not isinstance(caught.value, KeyShreddedError)
    assert sent_to_read == 1
    assert why is not None
    assert why.reason == "shredded"


def test_an_object_from_before_the_unlock(erased: Engine) -> None:
    """An object that was loaded before an unlock reads as shredded once it is refreshed."""
    with Session(erased) as session:
        letter = adas(session)
        with unlock(session, "ben"):
            session.refresh(letter)

            assert letter.note == "[erased]"


def test_the_statements_of_a_page(erased: Engine) -> None:
    """One query for all locked values of a fetch, once in a transaction; none where every value opens."""
    with Session(erased) as session, unlock(session, "ben"):
        session.commit()
        counts = []
        for query in (select(Letter).where(Letter.author_id == 2), select(Letter), select(Letter)):
            session.expunge_all()
            with statements_sent(erased) as sent:
                session.scalars(query).all()
            counts.append(len(sent))

    assert counts == [1, 2, 1]


def test_copies_of_an_object(erased: Engine) -> None:
    """An object that becomes another row is refused; a merge and a pickle carry the stored value."""
    with opened(erased, "ben") as session:
        letter = adas(session)
        session.expunge(letter)
        again = pickle.loads(pickle.dumps(letter))  # noqa: S301
        assert again.note == "[erased]"
        merged = session.merge(letter)
        assert merged.note == "[erased]"
        session.expunge_all()
        make_transient(again)
        again.id = None
        session.add(again)
        with pytest.raises(KeyShreddedError, match="becomes another row"):
            session.flush()
        session.rollback()


def test_a_moved_value_is_not_shredded(erased: Engine) -> None:
    """A value under a destroyed key in another owner's row is no erased value of that owner: it was moved."""
    with erased.begin() as connection:
        blob = stored(erased, Letter.note.property.columns[0], 1)
        connection.execute(update_of(connection.dialect, "letters", {"note": blob}, {"id": 2}))
    with opened(erased, "ben") as session:
        letter = session.scalars(select(Letter).where(Letter.author_id == 2)).one()
        with pytest.raises(Exception, match="another owner"):
            _ = letter.note


class SealedBase(DeclarativeBase):
    pass


class Member(KeyOwner, SealedBase):
    __tablename__ = "sealed_members"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String, shredded=None))
    nick: Mapped[str | None] = mapped_column(EncryptedType(String, shredded="gone"))


@pytest.fixture
def served(sqlite_engine: Engine) -> Envelope:
    """Ada and Ben, whom the server opens."""
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes([7]) * 32])
    )
    SealedBase.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        for name in ("ada", "ben"):
            envelope.enroll(session, Member(name=name, nick=name), provider="server")
        session.commit()
    return envelope


def test_a_server_that_runs_forgets(sqlite_engine: Engine, served: Envelope) -> None:
    """A process in server mode reads until the commit, after a rollback too, and then the replacement."""
    read, nick = [], select(Member.nick).where(Member.id == 1)
    with (
        served.server_mode(reason="test"),
        Session(sqlite_engine) as other,
        Session(sqlite_engine) as session,
    ):
        for end in (session.rollback, session.commit):
            read.append(other.scalars(nick).one())
            other.commit()
            served.shred(session, session.get_one(Member, 1), reason="asked")
            end()
            read.append(other.scalars(nick).one())
            other.commit()

        assert tuple(session.scalars(select(Member.name).where(Member.id == 1)).all() * 2) == (None, None)
    assert read == ["ada", "ada", "ada", "gone"]


def test_a_forged_mark_is_an_altered_row(sqlite_engine: Engine, served: Envelope) -> None:
    """A key that somebody else marked as destroyed has no fitting seal, and does not read as erased."""
    table = Member.__key_class__.__table__
    with sqlite_engine.begin() as connection:
        connection.execute(update(table).where(table.c.owner_id == 2).values(state="destroyed"))
    with Session(sqlite_engine) as session, served.server_mode(session, reason="test"):
        ada, ben = session.scalars(select(Member).order_by(Member.id))
        with pytest.raises(LockedError) as caught:
            _ = ben.nick

        assert ada.nick == "ada"
    assert not isinstance(caught.value, KeyShreddedError)


def test_replacements_are_checked_when_declared() -> None:
    """A replacement that the column could not hold is refused at once; copies keep a right one."""
    with pytest.raises(ConfigurationError, match="does not fit"):
        EncryptedType(String, shredded=3)
    kept = EncryptedType(String, shredded="[erased]")

    assert (
        "EncryptedType(String(), shredded='[erased]')"
        == repr(kept)
        == repr(copy.copy(kept))
        == repr(kept.copy())
    )
    assert kept._static_cache_key != EncryptedType(String)._static_cache_key
    assert hash(EncryptedType(String, shredded="[erased]")._static_cache_key) == hash(kept._static_cache_key)
