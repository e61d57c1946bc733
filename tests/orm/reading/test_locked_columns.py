"""Values that are selected without their entity, and stored bytes that are wrong."""

import copy
import csv
import io
import json
import pickle
import pprint
import string
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import JSON, DateTime, LargeBinary, String, select
from sqlalchemy.orm import defer

from sqlalchemy_envelope import (
    ConfigurationError,
    DecryptionError,
    FormatError,
    LockedError,
    Sealed,
    TruncatedError,
)
from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.orm.columns.format import ColumnFormat
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, User, new_user, stored, unlock, without_checks
from tests.orm.reading.locked_notes import assert_locked, note_of
from tests.plain_sql import update_of

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]
BODY: Any = Note.__table__.c.body  # type: ignore[attr-defined]
PLAIN = "p1aintext"


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
            with pytest.raises(FormatError, match="the longest that is written has"):
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
