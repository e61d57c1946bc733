"""Canaries of the private spots of SQLAlchemy that writing leans on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert, literal, select, union_all, update
from sqlalchemy.dialects.sqlite import insert as upsert

from sqlalchemy_envelope import EnvelopeError, StatementRefusedError
from sqlalchemy_envelope.orm.sharing import deletions
from sqlalchemy_envelope.orm.writing import copies, forms, marks, statements
from sqlalchemy_envelope.orm.writing.rows import WrittenRows
from tests.orm.conftest import Started
from tests.orm.models import Note, Page, User, stored, unlock
from tests.orm.private_spots.hidden import Hidden, a_note, rows

pytestmark = pytest.mark.both_lines
PLAIN = "plaintext that must not be stored"
Hide = Callable[[Any], Any]


@pytest.fixture
def hide_from_writer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hide], None]:
    """Lets the statement hook see each statement through a function that hides something."""
    writer: Any = statements._StatementWriter

    def blind(hide: Hide) -> None:
        class Blinded(writer):  # type: ignore[misc]
            def __init__(self, plan: Any, connection: Any, statement: Any, *others: Any) -> None:
                super().__init__(plan, connection, hide(statement), *others)

            def write(self, multiparams: Any, params: Any) -> Any:
                statement, *rest = super().write(multiparams, params)
                return statement.target if type(statement) is Hidden else statement, *rest

        monkeypatch.setattr(statements, "_StatementWriter", Blinded)

    return blind


def require_nothing_in_the_clear(engine: Engine) -> None:
    """The database file, its journal included, holds no plaintext."""
    path = Path(str(engine.url.database))
    for file in path.parent.glob(path.name + "*"):
        assert PLAIN.encode() not in file.read_bytes()


@contextmanager
def refused(started: Started) -> Iterator[None]:
    """What runs inside raises, and leaves nothing behind."""
    before = rows(started.engine)
    with pytest.raises((EnvelopeError, AttributeError, KeyError, TypeError)) as caught:
        yield
    started.session.rollback()

    assert PLAIN not in str(caught.value)
    assert before == rows(started.engine)
    require_nothing_in_the_clear(started.engine)


# Insert and update: what a statement assigns


def single(started: Started) -> Any:
    return insert(Note).values(user_id=started.ada.id, body=PLAIN)


def several(started: Started) -> Any:
    return insert(Note).values([{"user_id": started.ada.id, "body": PLAIN}, {"user_id": 1, "body": PLAIN}])


def from_select(started: Started) -> Any:
    return insert(Note).from_select(["user_id", "body"], select(literal(started.ada.id), literal(PLAIN)))


def change(started: Started) -> Any:
    return update(Note.__table__).where(Note.__table__.c.user_id == started.ada.id).values(body=PLAIN)


def upserting(started: Started) -> Any:
    statement = upsert(Note).values(id=1, user_id=started.ada.id, body="fine")
    return statement.on_conflict_do_update(index_elements=["id"], set_={"body": PLAIN})


def test_values(lite: Started) -> None:
    """`Insert._values`: the values that stand in a statement, by column."""
    values = single(lite)._values

    assert {"user_id", "body"} == {column.key for column in values}
    assert {PLAIN, lite.ada.id} == {bind.effective_value for bind in values.values()}


def test_multi_values(lite: Started) -> None:
    """`Insert._multi_values`: the rows of `values([...])`, a group for each call."""
    ((first, second),) = several(lite)._multi_values

    assert PLAIN in (getattr(value, "effective_value", value) for value in first.values())
    assert len(second) == 2


def test_select_names(lite: Started) -> None:
    """`Insert._select_names`: the columns of `from_select()`, in the order of the select."""
    assert [getattr(name, "key", name) for name in from_select(lite)._select_names] == ["user_id", "body"]


def test_a_textual_select_that_names_no_columns(lite: Started) -> None:
    """What such a select writes where cannot be told: refused."""
    text = sa.text(f"SELECT {lite.ada.id}, '{PLAIN}'").columns()
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(insert(Note).from_select(["user_id", "body"], text))


def test_ordered_values(lite: Started) -> None:
    """`Update._ordered_values`: where SQLAlchemy 2.0 keeps what 2.1 has in `_values`."""
    statement = update(Note.__table__).ordered_values((Note.__table__.c.body, PLAIN))
    kept = getattr(statement, "_ordered_values", None) or statement._values.items()

    assert [(column.key, bind.effective_value) for column, bind in kept] == [("body", PLAIN)]


def test_where_criteria() -> None:
    """`_where_criteria`: the conditions of an UPDATE. Without them, one that names the owner is refused as a
    move."""
    condition = Note.__table__.c.user_id == 1

    assert update(Note.__table__).where(condition)._where_criteria == (condition,)


def test_return_defaults() -> None:
    """`Insert._return_defaults` says that the result tells the keys of new rows; the context has them then.
    Without it, an INSERT of a table with a token index fails before it is sent."""
    statement = insert(Note)

    assert not statement._return_defaults
    assert statement.return_defaults()._return_defaults


def test_post_values_clause(lite: Started) -> None:
    """`_post_values_clause`: what an upsert sets (pairs in 2.0, a dict in 2.1), and on which conflict."""
    clause = upserting(lite)._post_values_clause
    updates = clause.update_values_to_set
    pairs = dict(updates.items() if hasattr(updates, "items") else updates)

    assert [getattr(key, "key", key) for key in pairs] == ["body"]
    assert [getattr(one, "key", one) for one in clause.inferred_target_elements] == ["id"]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (single, "_values"),
        (several, "_multi_values"),
        (from_select, "_select_names"),
        (change, "_values"),
    ],
)
def test_without_the_values_of_a_statement(
    lite: Started, hide_from_writer: Callable[[Hide], None], make: Callable[[Started], Any], name: str
) -> None:
    """The hook fails before anything is sent."""
    a_note(lite, lite.ada)
    hide_from_writer(lambda statement: Hidden(statement, name))
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(make(lite))


@pytest.mark.parametrize(
    ("make", "instead"),
    [
        (single, {"_values": None}),
        (several, {"_multi_values": ()}),
        (from_select, {"_select_names": ()}),
        (change, {"_values": {}}),
    ],
)
def test_with_the_values_of_a_statement_elsewhere(
    lite: Started,
    hide_from_writer: Callable[[Hide], None],
    make: Callable[[Started], Any],
    instead: dict[str, Any],
) -> None:
    """A hook that overlooks the values leaves them to the bind processor, which refuses them."""
    a_note(lite, lite.ada)
    hide_from_writer(lambda statement: Hidden(statement, **instead))
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(make(lite))


@pytest.mark.parametrize(
    "hide",
    [
        lambda statement: Hidden(statement, "_post_values_clause"),
        lambda statement: Hidden(
            statement, _post_values_clause=Hidden(statement._post_values_clause, "update_values_to_set")
        ),
        lambda statement: Hidden(
            statement, _post_values_clause=Hidden(statement._post_values_clause, "inferred_target_elements")
        ),
    ],
    ids=["_post_values_clause", "update_values_to_set", "inferred_target_elements"],
)
def test_without_the_clause_of_an_upsert(
    lite: Started, hide_from_writer: Callable[[Hide], None], hide: Hide
) -> None:
    """An upsert that sets a literal is then refused by the bind processor."""
    a_note(lite, lite.ada)
    hide_from_writer(hide)
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(upserting(lite))


def test_with_ordered_values_elsewhere(lite: Started, hide_from_writer: Callable[[Hide], None]) -> None:
    """An UPDATE with an order, whose values are overlooked, is refused by the bind processor."""
    a_note(lite, lite.ada)
    table = Note.__table__
    hide_from_writer(lambda statement: Hidden(statement, _ordered_values=None, _values={}))
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(update(table).where(table.c.id == 1).ordered_values((table.c.body, PLAIN)))


def test_the_annotation_of_a_bulk_insert(lite: Started) -> None:
    """`_annotations` names the one table that a bulk statement on a joined subclass writes;
    here, that of the class."""
    marks: list[Any] = []

    def listen(connection: Any, statement: Any, multiparams: Any, params: Any, options: Any) -> None:
        marks.append(statement._annotations.get("_emit_insert_table"))

    with unlock(lite.session, lite.ada):
        sa.event.listen(lite.engine, "before_execute", listen)
        lite.session.execute(insert(Note), [{"user_id": lite.ada.id, "body": "hello"}])
        sa.event.remove(lite.engine, "before_execute", listen)
        lite.session.commit()

    assert Note.__table__ in marks


@pytest.mark.parametrize(
    "hide", [lambda one: Hidden(one, "_annotations"), lambda one: Hidden(one, _annotations={})]
)
def test_without_the_annotation(lite: Started, hide: Hide) -> None:
    """A bulk insert into a joined table that is not named fails, or its values are left
    to the bind processor."""
    statement: Any = insert(User)._annotate({"_emit_insert_table": Note.__table__})
    row = {"user_id": lite.ada.id, "body": PLAIN}
    with unlock(lite.session, lite.ada), lite.engine.connect() as connection:
        try:
            _, given, _ = statements.encrypt(connection, hide(statement), [row], {}, {})
        except AttributeError:
            return
        process = Note.__table__.c.body.type.bind_processor(connection.dialect)

        assert [row] == given
        with pytest.raises(StatementRefusedError):
            process(given[0]["body"])


# The flush: the names of a row's key


def test_label_names_the_key_of_a_flushed_update(lite: Started) -> None:
    """`Column._label` is the parameter by which a flush's UPDATE names its row."""
    note_id = a_note(lite, lite.ada)
    seen: list[dict[str, Any]] = []

    def listen(connection: Any, statement: Any, multiparams: Any, params: Any, options: Any) -> None:
        if isinstance(statement, sa.Update):
            seen.extend([*multiparams, params])

    with unlock(lite.session, lite.ada):
        sa.event.listen(lite.engine, "before_execute", listen)
        lite.session.get_one(Note, note_id).body = "changed"
        lite.session.flush()
        sa.event.remove(lite.engine, "before_execute", listen)
        lite.session.commit()
    label: Any = Note.__table__.c.id._label

    assert label == "notes_id"
    assert [note_id] == [params[label] for params in seen if label in params]


@pytest.mark.parametrize("model", [Note, Page])
def test_without_the_label(lite: Started, monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """A flush's UPDATE whose row is not found names neither owner nor key, and is refused."""
    with unlock(lite.session, lite.ada):
        name = "body" if model is Note else "text"
        row = model(user_id=lite.ada.id, **{name: "hello"})
        lite.session.add(row)
        lite.session.commit()
        key = row.id
        before = stored(lite.engine, model.__table__.c[name], key)
        monkeypatch.setattr(WrittenRows, "identity", lambda self, row: (None,))
        setattr(row, name, PLAIN)
        with pytest.raises(StatementRefusedError):
            lite.session.flush()
        lite.session.rollback()

    assert before == stored(lite.engine, model.__table__.c[name], key)
    require_nothing_in_the_clear(lite.engine)


# The gate: what carries the mark, and where a statement may be


def test_an_annotation_is_part_of_a_cache_key(lite: Started) -> None:
    """`_annotate` makes a copy that shares no compiled statement with what it was made of."""
    plain = single(lite)
    marked = marks.mark(plain)

    assert marks.is_marked(marked)
    assert not marks.is_marked(plain)
    assert marked._generate_cache_key().key != plain._generate_cache_key().key
    assert marked._generate_cache_key().key == marks.mark(single(lite))._generate_cache_key().key


def test_what_a_statement_memoizes_is_not_handed_on(lite: Started) -> None:
    """`_set_memoized_attribute` keeps a marked copy beside its statement, and beside none that is built on
    it."""
    plain = insert(Note)

    assert marks.mark_lasting(plain) is marks.mark_lasting(plain)
    assert set(marks.mark_lasting(plain.values(title="x"))._values) != set(
        marks.mark_lasting(plain)._values or ()
    )
    assert marks.mark_lasting(plain.values(title="x").values(size=1))._values.keys() != {"title"}


def test_the_statement_of_the_unit_of_work(lite: Started) -> None:
    """`Mapper._memoized_values` keeps the DELETE that the unit of work sends. Without it, every DELETE may
    delete any owner of the class."""
    seen: list[tuple[Any, bool]] = []

    def note(_: object, statement: Any, *__: object) -> None:
        if isinstance(statement, sa.Delete):
            seen.append((statement.table, deletions._is_of_a_flush(lite.session, statement)))

    sa.event.listen(lite.engine, "before_execute", note)
    lite.session.execute(sa.delete(User.__table__).where(User.id == 99))  # type: ignore[arg-type]
    lite.session.delete(lite.ben)
    lite.session.flush()

    assert seen == [(User.__table__, False), (User.__table__, True)]


def test_without_the_mark(lite: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every INSERT into a table with encrypted columns is then refused."""
    monkeypatch.setattr(statements, "mark", lambda statement: statement)
    monkeypatch.setattr(statements, "mark_lasting", lambda statement: statement)
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(single(lite))


def test_what_a_lambda_stands_for(lite: Started) -> None:
    """`_resolved` is the statement of a lambda, with the values that its variables have now."""
    owner, body = lite.ada.id, PLAIN
    found = forms.plain(sa.lambda_stmt(lambda: insert(Note).values(user_id=owner, body=body)))

    assert isinstance(found, sa.Insert)
    assert {PLAIN, lite.ada.id} == {bind.effective_value for bind in found._values.values()}


def test_without_what_a_lambda_stands_for(lite: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lambda that the hook cannot look into is refused."""
    monkeypatch.setattr(forms, "LAMBDAS", ())
    owner, body = lite.ada.id, PLAIN
    with unlock(lite.session, lite.ada), refused(lite):
        lite.session.execute(sa.lambda_stmt(lambda: insert(Note).values(user_id=owner, body=body)))


def test_independent_ctes(lite: Started) -> None:
    """`_independent_ctes` are those of `add_cte()`; one that is overlooked is refused
    (`test_queries`: an insert in a cte)."""
    cte = single(lite).cte("i")

    assert list(select(literal(1)).add_cte(cte)._independent_ctes) == [cte]
    assert forms.may_hold_ctes(select(literal(1)).add_cte(cte))
    assert not forms.may_hold_ctes(select(Note))


def test_proxies() -> None:
    """`_proxies`: what a subquery's column is in the SELECT inside; in each part of a UNION."""
    inner = union_all(select(Note.body), select(Note.body)).subquery()
    (single_proxy,) = select(Note.body).subquery().c.body._proxies

    assert single_proxy.key == "body"
    assert [one.key for one in inner.c.body._proxies] == ["body", "body"]


def test_without_proxies() -> None:
    """A column whose origin cannot be told is not copied."""
    column = Hidden(select(Note.body).subquery().c.body, "_proxies")

    assert copies.trace(column) == [None]
