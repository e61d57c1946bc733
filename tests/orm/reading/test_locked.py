"""Rows whose owner is locked load, are changed around and saved without harm to the stored bytes; touching
a locked value raises; leaving an unlocked session takes the plaintext with it."""

import copy
import csv
import datetime as dt
import enum
import io
import json
import pickle
import pprint
import string
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import JSON, DateTime, Engine, ForeignKey, LargeBinary, String, inspect, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, attributes, base, defer, mapped_column, undefer

from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    EncryptedType,
    FormatError,
    KeyOwner,
    LockedError,
    Sealed,
    SessionLeftError,
    StatementRefusedError,
    TruncatedError,
    UnflushedError,
)
from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.orm.columns import codecs
from sqlalchemy_envelope.orm.columns.codecs import codec_for
from sqlalchemy_envelope.orm.columns.format import ColumnFormat
from tests.orm.conftest import Started
from tests.orm.models import (
    SECRET,
    Note,
    Page,
    User,
    envelope,
    new_user,
    statements_sent,
    stored,
    unlock,
    without_checks,
)
from tests.plain_sql import update_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]

BODY: Any = Note.__table__.c.body  # type: ignore[attr-defined]
PLAIN = "p1aintext"


def note_of(started: Started, owner: User, **values: Any) -> int:
    """A committed note, in no session."""
    with started.fresh() as session:
        alone = session.get_one(User, owner.id)
        with unlock(session, alone):
            note = Note(**{"user_id": alone.id, "body": PLAIN, "title": "t"} | values)
            session.add(note)
            session.commit()
            return note.id


def body_of(started: Started, owner: User, note_id: int) -> Any:
    """What the note says to its owner, read in a session of its own."""
    with started.fresh() as session, unlock(session, session.get_one(User, owner.id)):
        return session.get_one(Note, note_id).body


def assert_locked(instance: Any, name: str = "body") -> None:
    with pytest.raises(LockedError):
        getattr(instance, name)


NO_LOADING = [
    value
    for name, value in sorted(vars(base).items())
    if name.startswith("PASSIVE_")
    and isinstance(value, type(base.PASSIVE_OFF))
    and not (value & base.SQL_OK and value & base.CALLABLES_OK)
]
"""Every way in which SQLAlchemy asks for an attribute without loading it."""


# Ways in which a locked object goes through a session


def _flushed(session: Session, note: Any, name: str) -> None:
    session.flush()


def _refreshed(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.refresh(note)
    assert note.title == "changed"


def _refreshed_attribute(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.refresh(note, [name])


def _expired(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.expire(note)
    assert note.title == "changed"


def _expired_attribute(session: Session, note: Any, name: str) -> None:
    session.expire(note, [name])
    assert_locked(note, name)


def _committed(session: Session, note: Any, name: str) -> None:
    session.commit()
    assert note.title == "changed"
    note.title = "changed again"


def _touched(session: Session, note: Any, name: str) -> None:
    assert_locked(note, name)
    assert not session.is_modified(note) or note.title


def _history_asked(session: Session, note: Any, name: str) -> None:
    state = inspect(note)
    assert state.attrs[name].history == attributes.HISTORY_BLANK
    for look in NO_LOADING:
        assert attributes.get_history(note, name, look) == attributes.HISTORY_BLANK
    assert session.is_modified(note)


def _merged(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.expunge(note)
    merged = session.merge(note)
    assert_locked(merged, name)


def _merged_pickled(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - pickled right here
    assert_locked(copied, name)
    merged = session.merge(copied)
    assert merged is note


def _merged_into_an_empty_session(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    merged = session.merge(copied, load=False)
    assert_locked(merged, name)
    merged.title = "again"


def _readded(session: Session, note: Any, name: str) -> None:
    session.flush()
    copied = pickle.loads(pickle.dumps(note))  # noqa: S301 - as above
    session.commit()
    session.expunge_all()
    session.add(copied)
    copied.title = "after pickling"


def _failed_then_retried(session: Session, note: Any, name: str) -> None:
    session.add(User(email="ada@example.org"))
    with pytest.raises(IntegrityError):
        session.flush()
    session.rollback()
    assert_locked(note, name)
    note.title = "changed"


def _rolled_back_savepoint(session: Session, note: Any, name: str) -> None:
    session.flush()
    nested = session.begin_nested()
    note.title = "lost"
    session.flush()
    nested.rollback()
    assert note.title == "changed"


def _populated_again(session: Session, note: Any, name: str) -> None:
    session.flush()
    session.scalars(select(type(note)).execution_options(populate_existing=True)).all()
    assert_locked(note, name)


@pytest.mark.parametrize(
    "happen",
    [
        _flushed,
        _refreshed,
        _refreshed_attribute,
        _expired,
        _expired_attribute,
        _committed,
        _touched,
        _history_asked,
        _merged,
        _merged_pickled,
        _merged_into_an_empty_session,
        _readded,
        _failed_then_retried,
        _rolled_back_savepoint,
        _populated_again,
    ],
)
@pytest.mark.parametrize("model", [Note, Page], ids=["column-bound", "row-bound"])
def test_stored_bytes_survive(lite: Started, happen: Any, model: Any) -> None:
    """Whatever a locked object goes through, its stored bytes stay the same, and open later."""
    name = "body" if model is Note else "text"
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        made = model(user_id=1, title="t", **{name: PLAIN})
        session.add(made)
        session.commit()
        key = made.id
    column = model.__table__.c[name]
    before = stored(lite.engine, column, key)
    with lite.fresh() as session:
        one = session.get_one(model, key)
        one.title = "changed"
        happen(session, one, name)
        session.commit()

    assert stored(lite.engine, column, key) == before
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert getattr(session.get_one(model, key), name) == PLAIN


def test_one_of_two_owners(started: Started) -> None:
    """A list of two owners' rows loads; only the locked values raise, and only when they are touched."""
    a_id, b_id = note_of(started, started.ada), note_of(started, started.ben)
    with unlock(started.session, started.ada):
        notes = {note.id: note for note in started.session.scalars(select(Note).order_by(Note.id))}

        assert notes[a_id].body == PLAIN
        assert notes[b_id].title == "t"
        with pytest.raises(LockedError) as caught:
            _ = notes[b_id].body
    assert "Note.body" in str(caught.value)
    assert PLAIN not in str(caught.value)


def test_touching_sends_nothing(started: Started) -> None:
    """The error for a locked value costs no SQL: under asyncio there would be nowhere to run it."""
    note = started.session.get_one(Note, note_of(started, started.ada))
    with statements_sent(started.engine) as sent:
        assert_locked(note)
        assert_locked(note, "body")
        assert not hasattr(note, "__missing__")

    assert sent == []
    assert "body" not in note.__dict__
    assert PLAIN not in repr(vars(note))


def test_unlocking_later_opens_the_same_instance(started: Started) -> None:
    """Once unlocked, an object that was loaded locked opens without SQL and without looking changed."""
    note_id = note_of(started, started.ada, tags=["a"], extra={"k": 1}, size=7)
    note = started.session.get_one(Note, note_id)
    assert_locked(note)
    with unlock(started.session, started.ada), statements_sent(started.engine) as sent:
        assert (note.body, note.size, note.tags, note.extra) == (PLAIN, 7, ["a"], {"k": 1})
        assert not started.session.is_modified(note)
        started.session.flush()

        assert sent == []


def test_a_late_open_is_tracked(started: Started) -> None:
    """A mutable value that was opened late is tracked: a change in place is stored."""
    note_id = note_of(started, started.ada, tags=["a"], extra={"k": 1})
    note = started.session.get_one(Note, note_id)
    with unlock(started.session, started.ada):
        note.tags.append("b")
        note.extra["l"] = 2
        started.session.commit()
        started.session.expire_all()

        assert (note.tags, note.extra) == (["a", "b"], {"k": 1, "l": 2})


def test_row_bound_values_open_late(lite: Started) -> None:
    """The same for a value bound to its row."""
    with unlock(lite.session, lite.ada):
        page = Page(user_id=1, text=PLAIN)
        lite.session.add(page)
        lite.session.commit()
        page_id = page.id
    lite.session.expunge_all()
    page = lite.session.get_one(Page, page_id)
    assert_locked(page, "text")
    with unlock(lite.session, lite.session.get_one(User, 1)), statements_sent(lite.engine) as sent:
        assert page.text == PLAIN
        assert sent == []


def test_overwriting_a_locked_value(started: Started) -> None:
    """A new value for a locked attribute cannot be flushed while locked; unlocked, it takes the old one's
    place."""
    note_id = note_of(started, started.ada)
    before = stored(started.engine, BODY, note_id)
    note = started.session.get_one(Note, note_id)
    note.body = "new"
    assert note.body == "new"
    with pytest.raises(LockedError):
        started.session.flush()
    started.session.rollback()
    assert stored(started.engine, BODY, note_id) == before
    assert_locked(note)
    note.body = "new"
    with unlock(started.session, started.ada):
        started.session.commit()

    assert body_of(started, started.ada, note_id) == "new"


def test_setting_a_locked_value_to_null(started: Started) -> None:
    """Deleting needs no key: NULL may take a locked value's place."""
    note_id = note_of(started, started.ada)
    note = started.session.get_one(Note, note_id)
    note.body = None
    started.session.commit()

    assert stored(started.engine, BODY, note_id) is None
    assert note.body is None


def test_deleting_a_locked_attribute(lite: Started) -> None:
    """`del note.body` on a locked attribute does not lose the stored bytes by accident."""
    note_id = note_of(lite, lite.ada)
    before = stored(lite.engine, BODY, note_id)
    note = lite.session.get_one(Note, note_id)
    with pytest.raises((LockedError, AttributeError)):
        del note.body
    lite.session.commit()

    assert stored(lite.engine, BODY, note_id) == before


def test_rolling_back_an_overwrite(lite: Started) -> None:
    """After a rollback the locked value is back, and opens."""
    note_id = note_of(lite, lite.ada)
    note = lite.session.get_one(Note, note_id)
    note.body = "new"
    lite.session.rollback()
    assert_locked(note)
    with unlock(lite.session, lite.ada):
        assert note.body == PLAIN


def test_a_sealed_value_cannot_be_carried_elsewhere(lite: Started) -> None:
    """A `Sealed` handle assigned to another row is refused: nobody could read it there."""
    note_id = note_of(lite, lite.ada)
    sealed = lite.session.scalar(select(Note.body).where(Note.id == note_id))
    assert isinstance(sealed, Sealed)
    lite.session.add(Note(user_id=2, body=sealed))
    with unlock(lite.session, lite.ben):
        with pytest.raises(StatementRefusedError):
            lite.session.flush()
        lite.session.rollback()


def test_deferred_attributes(started: Started) -> None:
    """A deferred encrypted column loads on access, open or locked."""
    note_id = note_of(started, started.ada)
    query = select(Note).options(defer(Note.body)).where(Note.id == note_id)
    note = started.session.scalars(query).one()
    assert_locked(note)
    with unlock(started.session, started.ada):
        assert note.body == PLAIN
    started.session.expunge_all()
    with unlock(started.session, started.session.get_one(User, 1)):
        assert started.session.scalars(query).one().body == PLAIN
        started.session.expunge_all()
        note = started.session.scalars(select(Note).options(defer("*"), undefer(Note.body))).one()
        assert note.body == PLAIN


# Leaving


def test_leaving_expires_what_was_decrypted(started: Started) -> None:
    """After the block no object of any session that took part holds plaintext, and touching one sends
    nothing."""
    note_id = note_of(started, started.ada, tags=["a"])
    with started.fresh() as other:
        with unlock(started.session, started.ada):
            one = started.session.get_one(Note, note_id)
            two = other.get_one(Note, note_id)
            late = started.session.scalars(select(Note)).one()
            written = Note(user_id=1, body="written")
            other.add(written)
            other.commit()
            other.refresh(written)
            assert (one.body, two.body, late.tags) == (PLAIN, PLAIN, ["a"])
        with statements_sent(started.engine) as sent:
            for note in (one, two, written):
                assert "body" not in note.__dict__
                assert_locked(note)
            assert sent == []
        assert PLAIN not in repr([vars(one), vars(two)])
        with unlock(started.session, started.ada):
            assert (one.body, two.body, written.body) == (PLAIN, PLAIN, "written")


def test_what_was_written_is_expired_too(lite: Started) -> None:
    """With `expire_on_commit=False`, values that were only written leave with the keys as well."""
    with Session(lite.engine, expire_on_commit=False) as session:
        ada = session.get_one(User, 1)
        with unlock(session, ada):
            ada.phone = PLAIN
            note = Note(user_id=1, body=PLAIN, extra={"k": PLAIN})
            session.add(note)
            session.commit()
            assert note.body == PLAIN

        assert PLAIN not in repr([vars(note), vars(ada)])
        assert_locked(note)
        assert_locked(ada, "phone")


def test_unflushed_values_are_kept(started: Started) -> None:
    """Leaving with unflushed values says which they are; they stay in their objects, and a later unlock
    flushes them."""
    note_id = note_of(started, started.ada)
    note = started.session.get_one(Note, note_id)
    fresh = Note(user_id=1, body="fresh")
    with pytest.raises(UnflushedError, match=r"Note\.body") as caught, unlock(started.session, started.ada):  # noqa: PT012 - leaving the block raises
        note.body = "changed"
        started.session.add(fresh)
    assert "changed" not in str(caught.value)
    assert "fresh" not in str(caught.value)
    assert (note.body, fresh.body) == ("changed", "fresh")
    with pytest.raises(LockedError):
        started.session.flush()
    started.session.rollback()
    note.body = "changed"
    started.session.add(fresh)
    with started.session.no_autoflush, unlock(started.session, started.session.get_one(User, 1)):
        started.session.commit()
        fresh_id = fresh.id

    assert body_of(started, started.ada, note_id) == "changed"
    assert body_of(started, started.ada, fresh_id) == "fresh"


def test_unflushed_values_are_flushed_by_a_later_unlock(lite: Started) -> None:
    """Straight after `UnflushedError`, unlocking again and committing is enough: nothing was lost."""
    note = lite.session.get_one(Note, note_of(lite, lite.ada))
    with pytest.raises(UnflushedError), unlock(lite.session, lite.ada):
        note.body = "changed"
    with unlock(lite.session, lite.ada):
        lite.session.commit()
        note_id = note.id

    assert body_of(lite, lite.ada, note_id) == "changed"


def test_an_exception_inside_stays_the_error(started: Started) -> None:
    """An exception inside the block reaches the caller as itself, with the keys wiped."""
    note_id = note_of(started, started.ada)
    with pytest.raises(ZeroDivisionError), unlock(started.session, started.ada) as unlocked:  # noqa: PT012 - leaving the block raises
        note = started.session.get_one(Note, note_id)
        assert note.body == PLAIN
        note.title = "unflushed"
        raise ZeroDivisionError

    assert not unlocked.is_open
    assert_locked(note)
    started.session.rollback()
    assert_locked(note)


def test_nested_unlocks(started: Started) -> None:
    """An inner block sees the outer keys and takes only its own with it."""
    a_id, b_id = note_of(started, started.ada), note_of(started, started.ben)
    session = started.session
    with unlock(session, started.ada):
        a, b = session.get_one(Note, a_id), session.get_one(Note, b_id)
        with unlock(session, started.ben):
            assert (a.body, b.body) == (PLAIN, PLAIN)
            with statements_sent(started.engine) as sent:
                b.body = "changed"
                session.flush()
            assert len(sent) == 1
        assert_locked(b)
        with statements_sent(started.engine) as sent:
            assert a.body == PLAIN
        assert sent == []
        session.commit()
        assert a.body == PLAIN
    assert_locked(a)
    assert body_of(started, started.ben, b_id) == "changed"


def test_nested_unlocks_of_one_owner(lite: Started) -> None:
    """The inner of two unlocks of one owner leaves the outer one's values open."""
    note_id = note_of(lite, lite.ada)
    with unlock(lite.session, lite.ada):
        note = lite.session.get_one(Note, note_id)
        with unlock(lite.session, lite.ada):
            assert note.body == PLAIN
            lite.session.add(Note(user_id=1, body="waits"))
        assert note.body == PLAIN
        lite.session.commit()
    assert_locked(note)


def test_leaving_out_of_order(lite: Started) -> None:
    """An outer block that is locked early takes its keys from the inner one, which keeps its own."""
    a_id, b_id = note_of(lite, lite.ada), note_of(lite, lite.ben)
    a, b = lite.session.get_one(Note, a_id), lite.session.get_one(Note, b_id)
    with unlock(lite.session, lite.ada) as outer, unlock(lite.session, lite.ben):
        assert (a.body, b.body) == (PLAIN, PLAIN)
        outer.lock()
        assert_locked(a)
        assert b.body == PLAIN
        lite.session.expire_all()
        assert b.body == PLAIN


def test_locking_early(started: Started) -> None:
    """`lock()` ends it at once; the block's end does nothing more, and the session object is of no more
    use."""
    note_id = note_of(started, started.ada)
    with unlock(started.session, started.ada) as unlocked:
        note = started.session.get_one(Note, note_id)
        assert note.body == PLAIN
        unlocked.lock()
        with pytest.raises(SessionLeftError):
            _ = note.body
        with pytest.raises(SessionLeftError):
            unlocked.lock()
        started.session.add(Note(user_id=1, body=PLAIN))
        with pytest.raises(SessionLeftError):
            started.session.flush()
        started.session.rollback()
    assert_locked(note)


def test_the_keys_are_bound_to_the_session(lite: Started) -> None:
    """Work on the same `Session` in another context finds the keys that were unlocked on it; another
    session, none."""
    import contextvars

    note_id = note_of(lite, lite.ada)
    with unlock(lite.session, lite.ada), lite.fresh() as other:
        lite.session.expunge_all()

        def read(session: Session) -> Any:
            return session.get_one(Note, note_id).body

        empty = contextvars.Context()
        assert empty.run(read, lite.session) == PLAIN
        assert empty.run(lambda: lite.session.scalars(select(Note.id)).all()) == [note_id]
        with pytest.raises(LockedError):
            empty.run(read, other)

        def write() -> None:
            lite.session.add(Note(user_id=1, body="elsewhere"))
            lite.session.commit()

        empty.run(write)
        found = empty.run(lambda: {note.body for note in lite.session.scalars(select(Note))})
        assert found == {PLAIN, "elsewhere"}
    assert_locked(lite.session.get_one(Note, note_id))


def test_objects_read_in_another_context_are_expired(lite: Started) -> None:
    """Leaving finds plaintext that was read through the bound session in a context of its own."""
    import contextvars

    note_id = note_of(lite, lite.ada)
    with unlock(lite.session, lite.ada):
        note = contextvars.Context().run(lambda: lite.session.get_one(Note, note_id))
        assert note.body == PLAIN
    assert "body" not in note.__dict__
    assert_locked(note)


def test_a_detached_object_keeps_what_it_has(lite: Started) -> None:
    """An expunged object is the application's own: what it holds open stays, what it holds sealed stays
    sealed."""
    a_id, b_id = note_of(lite, lite.ada), note_of(lite, lite.ben)
    with unlock(lite.session, lite.ada):
        a, b = lite.session.get_one(Note, a_id), lite.session.get_one(Note, b_id)
        lite.session.expunge_all()
        assert a.body == PLAIN
        assert_locked(b)
    with unlock(lite.session, lite.session.get_one(User, 2)):
        assert b.body == PLAIN


def test_pickles_of_locked_objects_hold_no_plaintext(lite: Started) -> None:
    """A locked object can be pickled, copied and opened after that, and the pickle shows nothing."""
    note_id = note_of(lite, lite.ada)
    note = lite.session.get_one(Note, note_id)
    lite.session.expunge(note)
    pickled = pickle.dumps(note)
    assert PLAIN.encode() not in pickled
    again = pickle.loads(pickled)  # noqa: S301 - pickled right here
    assert_locked(again)
    assert_locked(copy.copy(note))
    lite.session.add(again)
    with unlock(lite.session, lite.session.get_one(User, 1)):
        assert again.body == PLAIN


class Shape(enum.Enum):
    ROUND = 1


class Shouted(sa.TypeDecorator[str]):
    """A conversion of the application's own."""

    impl = sa.String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return value and value.upper()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return value and value.lower()


EVERY_CODEC: dict[str, tuple[Any, Any]] = {
    "enum": (sa.Enum(Shape), Shape.ROUND),
    "json": (sa.JSON(), {"a": [1]}),
    "bool": (sa.Boolean(), True),
    "int": (sa.Integer(), 7),
    "decimal": (sa.Numeric(10, 2), Decimal("1.10")),
    "float": (sa.Float(), 0.5),
    "datetime": (sa.DateTime(), dt.datetime(2026, 1, 1)),
    "datetimetz": (sa.DateTime(timezone=True), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    "date": (sa.Date(), dt.date(2026, 1, 1)),
    "time": (sa.Time(), dt.time(1)),
    "timetz": (sa.Time(timezone=True), dt.time(1, tzinfo=dt.UTC)),
    "timedelta": (sa.Interval(), dt.timedelta(1)),
    "uuid": (sa.Uuid(), uuid.UUID(int=1)),
    "bytes": (sa.LargeBinary(), b"x"),
    "list:date": (sa.ARRAY(sa.Date), [dt.date(2026, 1, 1), None]),
    "str": (sa.String(), "a"),
    "str decorated": (Shouted(), "a"),
}


class PickledBase(DeclarativeBase):
    pass


class Keeper(KeyOwner, PickledBase):
    __tablename__ = "keepers"
    id: Mapped[int] = mapped_column(primary_key=True)


class Kept(PickledBase):
    __tablename__ = "kept"
    id: Mapped[int] = mapped_column(primary_key=True)
    keeper_id: Mapped[int] = mapped_column(ForeignKey("keepers.id"))


for _name, (_type, _) in EVERY_CODEC.items():
    setattr(Kept, _name.replace(":", "_").replace(" ", "_"), mapped_column(_name, EncryptedType(_type)))
VALUES = {name.replace(":", "_").replace(" ", "_"): value for name, (_, value) in EVERY_CODEC.items()}


def test_every_codec_is_pickled_here() -> None:
    """No codec of the library is left out below."""
    made = [kind for kinds, _ in codecs._CODECS for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]

    of_bytes = {sa.BINARY, sa.VARBINARY}  # siblings of LargeBinary, with its codec

    assert of_bytes == {
        kind for kind in made if not any(isinstance(one, kind) for one, _ in EVERY_CODEC.values())
    }
    assert list(EVERY_CODEC) == [
        codec_for(one).tag + (" decorated" if type(one) is Shouted else "") for one, _ in EVERY_CODEC.values()
    ]


def test_locked_things_of_every_codec_are_pickled(sqlite_engine: Engine, tmp_path: Path) -> None:
    """A locked object, a row of sealed values, tables and MetaData: each is pickled and copied, here and into
    a process that knows the models alone, and its values open afterwards."""
    PickledBase.metadata.create_all(sqlite_engine)
    columns = [getattr(Kept, name) for name in VALUES]
    with Session(sqlite_engine) as session:
        keeper = Keeper(id=1)
        session.add(keeper)
        with envelope.enroll(session, keeper, secret=SECRET):
            session.add(Kept(id=1, keeper_id=1, **VALUES))
            session.commit()
        session.expunge_all()
        kept, row = session.get_one(Kept, 1), session.execute(select(*columns)).one()
        session.expunge(kept)
        things = {
            "object": kept,
            "row": row,
            "sealed": list(row),
            "metadata": PickledBase.metadata,
            "table": Kept.__table__,
            "types": [column.type for column in Kept.__table__.c],
        }
        for copied in (
            pickle.loads(pickle.dumps(things)),  # noqa: S301 - pickled right here
            copy.deepcopy([*row]),
            [copy.copy(x) for x in row],
        ):
            rows = [copied["row"], copied["sealed"]] if isinstance(copied, dict) else [copied]
            with unlock(session, session.get_one(Keeper, 1)) as unlocked:
                for each in rows:
                    assert [unlocked.decrypt(one) for one in each] == list(VALUES.values())
                if isinstance(copied, dict):
                    again = session.merge(copied["object"], load=False)
                    assert {name: getattr(again, name) for name in VALUES} == VALUES
            session.expunge_all()
        for copied in (copy.copy(kept), pickle.loads(pickle.dumps(kept))):  # noqa: S301 - as above
            for name in VALUES:
                assert_locked(copied, name)
        for type_ in things["types"]:  # type: ignore[attr-defined]
            assert repr(type_) == repr(copy.copy(type_)) == repr(copy.deepcopy(type_))

    pickled = tmp_path / "things"
    pickled.write_bytes(pickle.dumps(things))
    program = (
        "import pickle, sys; from tests.orm import test_locked as t; "
        f"things = pickle.load(open({str(pickled)!r}, 'rb')); "
        "print(len(things['row']), [one.label for one in things['sealed']] == "
        "[f'kept.{n}' for n in t.EVERY_CODEC], repr(things['object'].__class__), "
        "[c.type.codec.tag for c in things['metadata'].tables['kept'].c if c.name in t.EVERY_CODEC] == "
        "[n.removesuffix(' decorated') for n in t.EVERY_CODEC])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert f"{len(VALUES)} True {Kept!r} True" == run.stdout.strip(), run.stderr


# Selects without the entity


def test_column_selects(started: Started) -> None:
    """Selects of columns open what is unlocked and hand out `Sealed` for the rest, which `decrypt` opens
    later."""
    a_id = note_of(started, started.ada)
    note_of(started, started.ben)
    session, table = started.session, Note.__table__
    queries = [
        select(Note.body),
        select(table.c.body),  # type: ignore[attr-defined]
        select(Note.id, Note.body.label("said")).with_only_columns(Note.body.label("said")),
        select(sa.orm.Bundle("b", Note.body)).with_only_columns(Note.body),
        select(select(Note.body.label("inner"), Note.id).subquery().c.inner),
    ]
    for query in queries:
        locked = session.scalars(query).all()
        assert [type(one) for one in locked] == [Sealed, Sealed]
        with unlock(session, started.ada) as unlocked:
            found = session.scalars(query).all()
            assert sorted(type(one).__name__ for one in found) == ["Sealed", "str"]
            assert PLAIN in [one for one in found if isinstance(one, str)]
            (sealed,) = session.scalars(select(Note.body).where(Note.user_id == 2))
            with pytest.raises(LockedError):
                unlocked.decrypt(sealed)
            opened = [unlocked.decrypt(one) for one in locked if _opens(unlocked, one)]
            assert opened == [PLAIN]
    with started.engine.connect() as connection:
        assert isinstance(connection.scalar(select(table.c.body).where(table.c.id == a_id)), Sealed)  # type: ignore[attr-defined]


def _opens(unlocked: Any, sealed: Sealed) -> bool:
    try:
        unlocked.decrypt(sealed)
    except LockedError:
        return False
    return True


@pytest.mark.parametrize(
    ("inner", "has", "has_not"),
    [
        (String(), ["upper", "encode", "startswith"], ["isoformat", "items", "nothing"]),
        (LargeBinary(), ["hex", "decode"], ["upper_case"]),
        (DateTime(), ["isoformat", "year"], ["upper"]),
        (JSON(), ["items", "append", "upper", "bit_length"], ["isoformat"]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_the_methods_of_a_sealed_value(inner: Any, has: list[str], has_not: list[str]) -> None:
    """What the value's type has is a `LockedError`; what it has not, and what any object is asked for by
    copies, pickles and debuggers, is an `AttributeError` as ever."""
    sealed = Sealed(b"stored", ColumnFormat(inner, "t.c", "column"))

    for name in has:
        with pytest.raises(LockedError, match="is sealed and was used as if it were open"):
            getattr(sealed, name)
    for name in [*has_not, "__clause_element__", "__html__", "_sa_instance_state", "__deepcopy__"]:
        assert not hasattr(sealed, name)
    assert [sealed] * 3 == [copy.copy(sealed), copy.deepcopy(sealed), pickle.loads(pickle.dumps(sealed))]  # noqa: S301
    assert not hasattr(Sealed.__new__(Sealed), "format")


def test_sealed_shows_nothing(lite: Started) -> None:
    """A `Sealed` neither prints nor behaves as the value it hides."""
    note_id = note_of(lite, lite.ada)
    sealed = lite.session.scalar(select(Note.body).where(Note.id == note_id))

    assert isinstance(sealed, Sealed)
    assert "notes.body" in repr(sealed)
    assert sealed.blob.hex() not in repr(sealed)
    for use in (
        bool,
        len,
        list,
        int,
        float,
        lambda one: one + "x",
        lambda one: one[0],
        lambda one: "x" in one,
        str,
        format,
        bytes,
        complex,
        round,
        abs,
        lambda one: f"{one}",
        lambda one: f"{one:>20}",
        lambda one: "{}".format(one),  # noqa: UP032 - another way to it
        lambda one: "%s" % one,  # noqa: UP031 - another way to it
        lambda one: "Dear " + one,
        lambda one: 3 * one,
        lambda one: one % 2,
        lambda one: one == PLAIN,
        lambda one: one != PLAIN,
        lambda one: PLAIN == one,  # noqa: SIM300 - the other way round
        lambda one: one in [1, PLAIN],
        lambda one: one == None,  # noqa: E711 - what is asked here
        lambda one: one < PLAIN,
        lambda one: one >= PLAIN,
        lambda one: sorted([one, one]),
        lambda one: ",".join(map(str, [one])),
        lambda one: csv.writer(io.StringIO()).writerow([one]),
        lambda one: json.dumps({"phone": one}, default=str),
        lambda one: string.Template("$x").substitute(x=one),
        lambda one: print(one, file=io.StringIO()),
    ):
        with pytest.raises(LockedError, match=r"notes\.body.*unlocked\.decrypt"):
            use(sealed)  # type: ignore[operator]
    assert repr(sealed) == f"{sealed!r}" == "%r" % sealed  # noqa: UP031 - as logging does
    assert repr(sealed) in f"{[sealed]}" + pprint.pformat({"phone": sealed})
    assert sealed == copy.copy(sealed) == copy.deepcopy(sealed)
    assert len({sealed, copy.copy(sealed)}) == 1
    with lite.fresh() as session:
        assert session.execute(select(Note.body)).one() == session.execute(select(Note.body)).one()
    again = pickle.loads(pickle.dumps(sealed))  # noqa: S301 - pickled right here
    assert again == sealed
    with unlock(lite.session, lite.ada) as unlocked:
        assert unlocked.decrypt(sealed) == unlocked.decrypt(again) == PLAIN


ROW_BOUND_READS = {
    "select": lambda s, key: s.scalars(select(Page).where(Page.id == key)).one(),
    "get": lambda s, key: s.get_one(Page, key),
    "legacy query": lambda s, key: s.query(Page).filter_by(id=key).one(),
    "refreshed": lambda s, key: (s.refresh(page := s.get_one(Page, key)), page)[1],
    "expired": lambda s, key: (s.expire(page := s.get_one(Page, key)), page)[1],
    "populated again": lambda s, key: s.scalars(
        select(Page).execution_options(populate_existing=True).where(Page.id == key)
    ).one(),
    "alias": lambda s, key: s.scalars(select(a := sa.orm.aliased(Page)).where(a.id == key)).one(),
    "alias of a subquery": lambda s, key: s.scalars(
        select(sa.orm.aliased(Page, select(Page).where(Page.id == key).subquery()))
    ).one(),
    "from a statement": lambda s, key: s.scalars(
        select(Page).from_statement(sa.text("select * from pages"))
    ).one(),
    "with another column": lambda s, key: s.execute(select(Page, Page.title).where(Page.id == key)).one()[0],
    "yield_per": lambda s, key: next(iter(s.scalars(select(Page).execution_options(yield_per=1)))),
    "deferred": lambda s, key: s.scalars(select(Page).options(defer(Page.text))).one(),
    "load_only": lambda s, key: s.scalars(select(Page).options(sa.orm.load_only(Page.text))).one(),
    "returning": lambda s, key: s.scalars(sa.update(Page).values(title="r").returning(Page)).one(),
}


@pytest.mark.parametrize("form", ROW_BOUND_READS)
def test_row_bound_values_in_every_read_form(lite: Started, form: str) -> None:
    """Every way to load the entity knows the row, and opens the value in it."""
    key = _page(lite)
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert ROW_BOUND_READS[form](session, key).text == PLAIN  # type: ignore[no-untyped-call]


def _page(started: Started) -> Any:
    with unlock(started.session, started.ada):
        page = Page(user_id=1, text=PLAIN)
        started.session.add(page)
        started.session.commit()
        return page.id


def test_row_bound_columns_without_their_row(started: Started) -> None:
    """A select of the column alone gives a handle that opens with the row's key, and with no other."""
    key = _page(started)
    with unlock(started.session, started.ada) as unlocked:
        sealed = started.session.scalar(select(Page.text))

        assert isinstance(sealed, Sealed)
        assert "primary_key" in repr(sealed)
        assert unlocked.decrypt(sealed, primary_key=key) == PLAIN
        for wrong in (None, 1, key.bytes, (key, key)):
            with pytest.raises((DecryptionError, ConfigurationError)):
                unlocked.decrypt(sealed, primary_key=wrong)


@pytest.mark.parametrize("model", [Note, Page])
def test_a_reader_that_is_warm_holds_to_the_limit(lite: Started, model: Any) -> None:
    """A value over 16 MiB, which only a holder of the key can have made, is refused after others of its key
    as it is before them."""
    ids = [note_of(lite, lite.ada), note_of(lite, lite.ada)] if model is Note else [_page(lite), _page(lite)]
    column = BODY if model is Note else Page.__table__.c.text  # type: ignore[attr-defined]
    with lite.fresh() as session, unlock(session, session.get_one(User, 1)) as unlocked:
        cipher = unlocked.reader((stored(lite.engine, column, ids[0]) or b"")[:17], column.type.field)
        assert cipher is not None
        reference = b"" if model is Note else encode_reference((ids[1],))
        nonce, plaintext = bytes(12), bytes(MAX_VALUE_SIZE + 1)
        blob = cipher.header + nonce + cipher.seal(nonce, plaintext, cipher.aad_of(reference))
    table = column.table
    stored_key = ids[1] if model is Note else ids[1].hex
    with lite.engine.begin() as connection:
        planted = update_of(lite.engine.dialect, table.name, {column.name: blob}, {"id": stored_key})
        connection.execute(planted)
    for first in ([], [ids[0]], [ids[0], ids[0]]):
        with lite.fresh() as session, unlock(session, session.get_one(User, 1)):
            for key in first:
                assert getattr(session.get_one(model, key), column.name) == PLAIN
                session.expunge_all()
            with pytest.raises(FormatError, match="more than any that is written"):
                getattr(session.get_one(model, ids[1]), column.name)


# Bytes that are wrong


def _overwrite(started: Started, table: str, key: int, value: bytes | None, **other: Any) -> None:
    with started.engine.begin() as connection:
        planted = update_of(started.engine.dialect, table, {"body": value, **other}, {"id": key})
        connection.execute(planted)


@pytest.mark.parametrize("unlocked", [True, False])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"plaintext", FormatError),
        (b"", FormatError),
        (b"\x01", TruncatedError),
        (b"\x01" + bytes(43), TruncatedError),
        (b"\x02" + bytes(60), FormatError),
    ],
)
def test_bytes_that_are_not_ours(lite: Started, unlocked: bool, value: bytes, error: type[Exception]) -> None:
    """Foreign bytes are an error of their own, locked or not, and never taken for plaintext."""
    note_id = note_of(lite, lite.ada)
    lite.session.close()
    without_checks(lite.engine)
    _overwrite(lite, "notes", note_id, value)
    with lite.fresh() as session:
        if unlocked:
            with unlock(session, session.get_one(User, 1)), pytest.raises(error):
                _ = session.get_one(Note, note_id).body
        else:
            with pytest.raises(error):
                _ = session.get_one(Note, note_id).body


def test_an_altered_value(started: Started) -> None:
    """One bit off and the value does not open; the message names the column and shows no bytes."""
    note_id = note_of(started, started.ada)
    value = stored(started.engine, BODY, note_id)
    assert value is not None
    _overwrite(started, "notes", note_id, value[:-1] + bytes([value[-1] ^ 1]))
    with (
        started.fresh() as session,
        unlock(session, session.get_one(User, 1)),
        pytest.raises(DecryptionError, match=r"notes\.body"),
    ):
        session.get_one(Note, note_id).body  # noqa: B018 - reading it is the point


def test_a_value_moved_between_owners(started: Started) -> None:
    """A row given to another owner behind the library's back is refused when its old owner reads it."""
    note_id = note_of(started, started.ada)
    value = stored(started.engine, BODY, note_id)
    _overwrite(started, "notes", note_id, value, user_id=2)
    with started.fresh() as session:
        with unlock(session, session.get_one(User, 1)), pytest.raises(DecryptionError):
            _ = session.get_one(Note, note_id).body
        session.expunge_all()
        note = session.get_one(Note, note_id)
        with unlock(session, session.get_one(User, 1)), pytest.raises(DecryptionError):
            _ = note.body


def test_a_deleted_owner_cannot_be_read(started: Started) -> None:
    """With the owner's keys gone, a value that survived elsewhere stays locked for ever."""
    eve = new_user(started.session, "eve")
    note_id = note_of(started, eve)
    value = stored(started.engine, BODY, note_id)
    started.session.delete(eve)
    started.session.commit()
    assert started.session.get(Note, note_id) is None
    other_id = note_of(started, started.ada)
    _overwrite(started, "notes", other_id, value)
    with started.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert_locked(session.get_one(Note, other_id))


def test_enrolling_locks_on_leaving(lite: Started) -> None:
    """An enrolment that is used in a `with` is an unlocked session like any other."""
    eve = User(email="eve@example.org", phone=PLAIN)
    with envelope.enroll(lite.session, eve, secret="another secret"):
        lite.session.commit()
        assert eve.phone == PLAIN
    assert_locked(eve, "phone")


def test_enrolling_without_with_leaves_nothing_open(lite: Started) -> None:
    """`enroll` alone writes the owner and unlocks nothing; its plaintext does not stay behind after a
    commit."""
    eve = User(email="eve@example.org", phone=PLAIN)
    envelope.enroll(lite.session, eve, secret="another secret")
    lite.session.commit()

    assert_locked(eve, "phone")
