"""What was open is locked again when the unlocked session is left, and what a pickle holds."""

import copy
import datetime as dt
import enum
import pickle
import subprocess
import sys
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import EncryptedType, KeyOwner, LockedError, SessionLeftError, UnflushedError
from sqlalchemy_envelope.orm.columns import codecs
from sqlalchemy_envelope.orm.columns.codecs import codec_for
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, User, envelope, statements_sent, unlock
from tests.orm.reading.locked_notes import assert_locked, body_of, note_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]
PLAIN = "p1aintext"


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


def test_history_keeps_no_plaintext(lite: Started) -> None:
    """The value that a change replaced is gone with the keys, whether or not the change was flushed."""
    note = lite.session.get_one(Note, note_of(lite, lite.ada))
    with pytest.raises(UnflushedError), unlock(lite.session, lite.ada):  # noqa: PT012 - leaving the block raises
        assert note.body == PLAIN
        note.body = "p2aintext"
    state = sa.inspect(note)

    assert PLAIN not in repr((state.committed_state, state.attrs.body.history))
    assert state.attrs.body.history.added == ["p2aintext"]
    with unlock(lite.session, lite.ada):
        lite.session.commit()
        assert note.body == "p2aintext"
        del note.body

    assert "p2aintext" not in repr((state.committed_state, state.attrs.body.history))
    lite.session.rollback()


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
        "import pickle, sys; from tests.orm.reading import test_leaving as t; "
        f"things = pickle.load(open({str(pickled)!r}, 'rb')); "
        "print(len(things['row']), [one.label for one in things['sealed']] == "
        "[f'kept.{n}' for n in t.EVERY_CODEC], repr(things['object'].__class__), "
        "[c.type.codec.tag for c in things['metadata'].tables['kept'].c if c.name in t.EVERY_CODEC] == "
        "[n.removesuffix(' decorated') for n in t.EVERY_CODEC])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert f"{len(VALUES)} True {Kept!r} True" == run.stdout.strip(), run.stderr


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
