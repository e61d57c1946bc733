"""Canaries of the private spots of SQLAlchemy that reading leans on, and a list of all spots."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import func, select, union_all, update
from sqlalchemy.engine.cursor import CursorFetchStrategy
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    ColumnProperty,
    Mapped,
    Session,
    configure_mappers,
    defer,
    load_only,
    mapped_column,
    query_expression,
    with_expression,
)

from sqlalchemy_envelope import LockedError, Sealed
from sqlalchemy_envelope.orm import hooks
from sqlalchemy_envelope.orm.columns import leaving
from sqlalchemy_envelope.orm.columns.codecs import codec_for
from sqlalchemy_envelope.orm.columns.encrypted_type import is_ours
from sqlalchemy_envelope.orm.columns.stored_value import EncryptedCheck
from sqlalchemy_envelope.orm.current import locks
from sqlalchemy_envelope.orm.reading import (
    candidates,
    echo,
    objects,
    results,
    selected_columns,
    statement_plan,
)
from sqlalchemy_envelope.orm.tables.databases import database_name
from sqlalchemy_envelope.orm.tables.session_notes import page_of
from sqlalchemy_envelope.orm.writing import object_copies, refusals
from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock
from tests.orm.private_spots.hidden import Hidden, a_note, rows

pytestmark = pytest.mark.both_lines


# Attributes: where a locked value is found


def test_an_attribute_changes_its_class() -> None:
    """`impl.__class__` can be set: both classes have the same slots, and `get` runs for
    what is not in `__dict__`."""
    configure_mappers()
    implementation: Any = Note.body.impl
    bases = {base.__name__.strip("_") for base in type(implementation).__mro__}

    assert isinstance(implementation, objects._LockedAware)
    assert "ScalarAttributeImpl" in bases
    assert not hasattr(implementation, "__dict__")


def test_a_mapped_column_changes_its_class() -> None:
    """`prop.__class__` can be set, and `merge`, which SQLAlchemy documents, runs for every column of an
    object that is merged: `test_object_copies` holds what it carries."""
    configure_mappers()
    prop: Any = Note.__mapper__.get_property("body")

    assert isinstance(prop, object_copies._Carrying)
    assert isinstance(prop, ColumnProperty)
    assert "merge" in vars(ColumnProperty)


def test_an_attribute_that_does_not_change_its_class() -> None:
    """Where the class cannot be set, mapping fails: no model is mapped whose locked
    values nobody would find."""

    class Stiff:
        __slots__ = ("key", "other")

        @property
        def __class__(self) -> type:
            return Stiff

    with pytest.raises((TypeError, AttributeError)):
        objects.make_locked_aware(Stiff())


def test_without_the_class_of_the_attribute(lite: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """If `get` were no longer asked, a locked value would read as None; its bytes still survive a flush."""
    note_id = a_note(lite, lite.ada)
    before = rows(lite.engine)
    implementation: Any = Note.body.impl
    lite.session.expunge_all()
    note = lite.session.get_one(Note, note_id)
    with pytest.raises(LockedError):
        note.body  # noqa: B018

    with monkeypatch.context() as patched:
        patched.setattr(implementation, "__class__", type(implementation).__mro__[2])
        assert note.body is None
        note.title = "changed"
        lite.session.commit()

    assert before == rows(lite.engine)


def test_the_refresh_event_of_one_instance(lite: Started) -> None:
    """`state.manager.dispatch.refresh` wraps a value that is opened late, so that
    changes inside it are seen."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(user_id=lite.ada.id, extra={"a": 1}))
        lite.session.commit()
    with Session(lite.engine) as session:
        ada = session.get_one(User, lite.ada.id)
        note = session.scalars(select(Note)).one()
        with unlock(session, ada):
            assert type(note.extra) is MutableDict
            note.extra["a"] = 2

            assert note in session.dirty
            session.commit()


# Selects: what the refusals walk over


NAMES = ("_raw_columns", "_order_by_clauses", "_group_by_clauses", "_distinct_on", "_distinct")


def test_the_parts_of_a_select() -> None:
    """The clauses that no comparator sees are where the refusals look for them."""
    table = Note.__table__
    statement = select(table.c.id, table.c.body).order_by(table.c.body).group_by(table.c.title)

    assert [table.c.id, table.c.body] == list(statement._raw_columns)
    assert [table.c.body] == list(statement._order_by_clauses)
    assert [table.c.title] == list(statement._group_by_clauses)
    assert (statement._distinct, tuple(statement._distinct_on)) == (False, ())
    assert statement.distinct()._distinct is True
    assert [table.c.body] == list(union_all(statement, statement).order_by(table.c.body)._order_by_clauses)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_part_of_a_select(lite: Started, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every select that the walk cannot read to its end fails before it is sent."""
    a_note(lite, lite.ada)
    walk: Any = refusals._Walk

    class Blinded(walk):  # type: ignore[misc]
        def _select(self, statement: Any) -> None:
            super()._select(Hidden(statement, name))

    monkeypatch.setattr(refusals, "_Walk", Blinded)
    monkeypatch.setattr(hooks, "_PASSES", "_of_this_test")
    sent: list[str] = []
    sa.event.listen(lite.engine, "do_execute", lambda cursor, statement, *_: sent.append(statement))

    with pytest.raises(AttributeError), Session(lite.engine) as session:
        session.execute(select(Note.body).order_by(Note.title))
    assert not any("notes" in statement for statement in sent)


def test_what_an_update_returns() -> None:
    """`_returning` holds the columns of RETURNING; the walk takes them for read, and not for computed on."""
    statement = update(Note.__table__).values(title="x").returning(Note.__table__.c.body)

    assert [Note.__table__.c.body] == list(statement._returning)


def test_without_what_an_update_returns(lite: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every UPDATE then fails before it is sent."""
    walk: Any = refusals._Walk

    class Blinded(walk):  # type: ignore[misc]
        def _write(self, statement: Any) -> None:
            super()._write(Hidden(statement, "_returning"))

    a_note(lite, lite.ada)
    before = rows(lite.engine)
    monkeypatch.setattr(refusals, "_Walk", Blinded)
    monkeypatch.setattr(hooks, "_PASSES", "_of_this_test")
    with pytest.raises(AttributeError), lite.engine.begin() as connection:
        connection.execute(update(Note.__table__).values(title=func.upper("x")))

    assert before == rows(lite.engine)


# Candidates of a blind index: where a statement must not have them


COUNTING = {
    "_limit_clause": lambda one: one.limit(1),
    "_offset_clause": lambda one: one.offset(1),
    "_fetch_clause": lambda one: one.fetch(1),
    "_group_by_clauses": lambda one: one.group_by(Note.id),
    "_having_criteria": lambda one: one.having(Note.id > 1),
    "_distinct_on": lambda one: one.distinct(Note.id),
    "_prefixes": lambda one: one.prefix_with("TOP 1"),
    "_suffixes": lambda one: one.suffix_with("LIMIT 1"),
}


@pytest.mark.parametrize("name", COUNTING)
@pytest.mark.filterwarnings("ignore:Passing expression to")
def test_what_counts_the_rows_of_a_select(name: str) -> None:
    """Each part of a SELECT that would count candidates is where the refusal looks for it. Without it, the
    SELECT fails before it is sent."""
    plain = select(Note)
    counting = COUNTING[name](plain)  # type: ignore[no-untyped-call]

    assert candidates._refusal_of(plain) is None
    assert candidates._refusal_of(counting) is not None
    assert [Note.id > 1][0].compare(plain.where(Note.id > 1)._where_criteria[0])
    with pytest.raises(AttributeError):
        getattr(Hidden(plain, name), name)


def test_what_extends_the_syntax_of_a_select() -> None:
    """SQLAlchemy 2.1 keeps what `ext()` adds in one of four places, in the SELECT that the ORM makes, too."""
    if not hasattr(select(Note), "ext"):
        pytest.skip("SQLAlchemy 2.0 has no extensions")
    extended = select(Note).ext(sa.dialects.postgresql.distinct_on(Note.user_id))
    compiled: Any = extended.compile(dialect=sa.dialects.postgresql.dialect())

    assert {"_pre_columns_clause"} == {
        name for name in candidates._EXTENSIONS if getattr(extended, name) is not None
    }
    assert candidates._refusal_of(compiled.compile_state.statement) is not None


def test_a_parameter_knows_what_it_was_copied_from() -> None:
    """`_cloned_set` leads from a parameter of a compiled statement to that of the cache key, by which
    SQLAlchemy gives it another value at each execution."""
    one: Any = sa.bindparam(None, 1, unique=True)
    copy = one._clone()

    assert copy.key != one.key
    assert {one.key, copy.key} == {each.key for each in copy._cloned_set}


# Rows: what a log shows


def test_what_a_row_says_of_its_columns(lite: Started) -> None:
    """`Row._parent` has the columns and the result processors by which a row in a log
    is known for encrypted."""
    a_note(lite, lite.ada)
    with lite.engine.connect() as connection:
        row = connection.execute(select(Note.__table__.c.body)).one()
        other = connection.execute(select(Note.__table__.c.id)).one()

    assert hasattr(row._parent, "_keymap")
    assert hasattr(row._parent, "_processors")
    assert echo._has_encrypted(row)
    assert not echo._has_encrypted(other)


@pytest.mark.parametrize("name", ["_parent"])
def test_a_row_that_does_not_say_is_not_shown(lite: Started, name: str) -> None:
    """What cannot be told is taken for encrypted."""
    with lite.engine.connect() as connection:
        row: Any = connection.execute(select(User.__table__.c.id)).first()

    assert echo._has_encrypted(Hidden(row, name))


def test_what_a_compiled_statement_says_of_its_result(lite: Started) -> None:
    """`_result_columns`, `_ordered_columns` and their kin say which columns of a row are encrypted, and
    where: rows are opened as they are fetched."""
    ordered = select(Note.id, Note.body).compile(lite.engine)
    text = sa.text("SELECT body FROM notes")
    by_name = text.columns(body=Note.__table__.c.body.type).compile(lite.engine)
    in_order = text.columns(Note.__table__.c.body).compile(lite.engine)

    assert [entry.keyname for entry in ordered._result_columns] == ["id", "body"]
    assert ordered._ordered_columns
    assert not by_name._ordered_columns
    assert (ordered._textual_ordered_columns, in_order._textual_ordered_columns) == (False, True)
    assert (ordered._loose_column_name_matching, in_order._loose_column_name_matching) == (False, False)
    assert by_name._loose_column_name_matching
    plan = statement_plan._make_plan(ordered, ordered._result_columns)
    assert [one.position for row in plan.rows for one in row.values] == [1]


@pytest.mark.parametrize(
    "name", ["_result_columns", "_ordered_columns", "_textual_ordered_columns", "_loose_column_name_matching"]
)
def test_a_result_that_does_not_say_is_not_fetched(
    lite: Started, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Where it cannot be told whose row a value is in, the statement fails."""
    a_note(lite, lite.ada)
    statement: Any = select(Note.user_id, Note.body)
    if name == "_loose_column_name_matching":
        statement = sa.text("SELECT user_id, body FROM notes").columns(body=Note.__table__.c.body.type)
    monkeypatch.setattr(statement_plan, "_plans", type(statement_plan._plans)())
    genuine = statement_plan.plan_of_statement

    def of_hidden(execution: Any, description: Any) -> Any:
        hidden = SimpleNamespace(
            compiled=Hidden(execution.compiled, name), execution_options=execution.execution_options
        )
        return genuine(hidden, description)

    with unlock(lite.session, lite.ada):
        monkeypatch.setattr(results, "plan_of_statement", of_hidden)
        with pytest.raises(AttributeError, match=name):
            lite.session.execute(statement).all()
        monkeypatch.undo()


@pytest.mark.parametrize("passed_by", ["no plan", "another cursor"])
def test_a_result_that_passes_the_place_of_reading_by_gives_no_value(
    lite: Started, monkeypatch: pytest.MonkeyPatch, passed_by: str
) -> None:
    """Rows that are fetched by another way than the place of reading hold nothing but `Sealed`, by ORM and
    Core alike; an object, which knows its row, opens them for that."""
    a_note(lite, lite.ada)
    if passed_by == "no plan":
        monkeypatch.setattr(results, "plan_of_statement", lambda *_: statement_plan.StatementPlan(()))
    else:
        monkeypatch.setattr(results, "OpeningCursor", lambda cursor, _: cursor)
    with unlock(lite.session, lite.ada) as unlocked:
        (by_orm,) = lite.session.execute(select(Note.user_id, Note.body)).all()
        (by_core,) = lite.session.connection().execute(select(Note.__table__)).all()
        note = lite.session.scalars(select(Note)).one()

        assert [Sealed, Sealed] == [type(by_orm.body), type(by_core.body)]
        assert "its row was not looked at" in str(by_orm.body.error())
        assert note.body == unlocked.decrypt(by_core.body)


READ_WAYS = {
    "objects": lambda session: [one.body for one in session.scalars(select(Note).order_by(Note.id))],
    "columns": lambda session: session.scalars(select(Note.body).order_by(Note.id)).all(),
    "core": lambda session: [
        one.body for one in session.connection().execute(select(Note.__table__).order_by(Note.__table__.c.id))
    ],
    "stream": lambda session: [
        one.body
        for one in session.execute(select(Note).order_by(Note.id), execution_options={"stream_results": True})
        .scalars()
        .yield_per(2)
    ],
    "text": lambda session: session.scalars(
        sa.text("SELECT body, user_id, id FROM notes ORDER BY id").columns(
            Note.__table__.c.body, Note.user_id
        )
    ).all(),
}


@pytest.mark.parametrize("way", list(READ_WAYS))
def test_a_result_that_fetches_from_the_place_of_reading_has_no_processor_of_ours(
    lite: Started, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """`CursorResult._metadata`, `_tuplefilter`, `_reset_memoizations` and the first row of a stream, in
    `_rowbuffer`: the result takes opened values as they are, and what SQLAlchemy keeps has the processor."""
    rows = [{"user_id": lite.ada.id, "body": f"text {number}"} for number in range(20)]
    results_seen: list[Any] = []
    with unlock(lite.session, lite.ada):
        lite.session.execute(sa.insert(Note), rows)
        READ_WAYS[way](lite.session)  # the first result with many rows tells that there may be many
        lite.session.expunge_all()
        sa.event.listen(lite.engine, "after_execute", lambda *arguments: results_seen.append(arguments[-1]))
        read = READ_WAYS[way](lite.session)

    result = results_seen[-1]
    kept = result.context.compiled._cached_metadata
    assert [row["body"] for row in rows] == list(read)
    assert not any(map(is_ours, result._metadata._processors))
    assert any(map(is_ours, kept._processors))


@pytest.mark.parametrize("unlike", ["cursor", "way of fetching"])
def test_a_result_that_fetches_otherwise_keeps_its_processors(lite: Started, unlike: str) -> None:
    """A plugin's own cursor around the place of reading, or its own way of fetching, is no way past it."""
    rows = [{"user_id": lite.ada.id, "body": "hello"}] * 20
    with unlock(lite.session, lite.ada):
        lite.session.execute(sa.insert(Note), rows)
        lite.session.scalars(select(Note.body)).all()

    class Around:
        def __init__(self, cursor: Any) -> None:
            self.cursor = cursor

        def __getattr__(self, name: str) -> Any:
            return getattr(self.cursor, name)

    class OwnFetching(CursorFetchStrategy):
        pass

    def take_over(*arguments: Any) -> None:
        execution = arguments[-2]
        if unlike == "cursor":
            execution.cursor = Around(execution.cursor)
        else:
            execution.cursor_fetch_strategy = OwnFetching()

    results_seen: list[Any] = []
    sa.event.listen(lite.engine, "after_execute", lambda *arguments: results_seen.append(arguments[-1]))
    sa.event.listen(lite.engine, "after_cursor_execute", take_over)
    with unlock(lite.session, lite.ada):
        read = lite.session.scalars(select(Note.body)).all()

    assert list(read) == ["hello"] * 20
    assert any(map(is_ours, results_seen[-1]._metadata._processors))


def test_the_first_encrypted_property_is_asked_for_what_fills_objects(lite: Started) -> None:
    """`memoized_populators` and `populators["new"]` of SQLAlchemy's loading: what is locked is put aside as
    objects are filled, without a `load` event."""
    a_note(lite, lite.ada)
    lite.session.expunge_all()
    note = lite.session.scalars(select(Note)).one()

    listeners = list(sa.inspect(Note).class_manager.dispatch.load)
    assert not [one for one in listeners if one.__module__.startswith("sqlalchemy_envelope")]
    assert "body" not in note.__dict__
    with pytest.raises(LockedError):
        note.body  # noqa: B018 - reading it is what raises


@pytest.mark.parametrize("many", [1, 3])
def test_where_rows_of_insertmanyvalues_are_fetched(lite: Started, many: int) -> None:
    """`fetchall_for_returning` of the execution gives SQLAlchemy the rows of `INSERT .. RETURNING`."""
    rows = [{"user_id": lite.ada.id, "body": f"text {number}"} for number in range(many)]
    with unlock(lite.session, lite.ada):
        made = lite.session.scalars(sa.insert(Note).returning(Note, sort_by_parameter_order=True), rows).all()

        assert [row["body"] for row in rows] == [note.body for note in made]


# Locks and flushes: when a provider is not called


def test_what_a_select_says_of_locks() -> None:
    """`Select._for_update_arg` says that rows are locked; a provider is not called while they are."""
    assert locks.takes_locks(select(Note.id).with_for_update())
    assert not locks.takes_locks(select(Note.id))
    with pytest.raises(AttributeError):
        locks.takes_locks(Hidden(select(Note.id), "_for_update_arg"))


def test_what_a_session_says_of_flushing(lite: Started) -> None:
    """`Session._flushing` is true inside of a flush and nowhere else."""
    seen = []
    sa.event.listen(lite.session, "before_flush", lambda session, *_: seen.append(session._flushing))
    before = lite.session._flushing
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(user_id=lite.ada.id, body="hello"))
        lite.session.flush()

    assert [before, *seen, lite.session._flushing] == [False, True, False]


# Loader options


def test_what_a_select_says_of_its_options() -> None:
    """`Select._with_options` says that there are some, which might leave a previous column out. Without it,
    that column is read when its value is touched (`test_previous_reads`: what `load_only` leaves out)."""
    assert not select(Note)._with_options
    assert select(Note).options(load_only(Note.body))._with_options


def test_what_an_option_says_of_its_attribute() -> None:
    """The elements of a loader option have the property that they are for. Were it hidden, SQLAlchemy would
    refuse the query: its own option for the owner's column, and ours."""
    named = selected_columns._named_by([defer(Note.user_id), defer("*")])
    hidden = Hidden(defer(Note.user_id), "context")

    assert named == {Note.user_id.property}
    assert selected_columns._named_by([hidden]) == set()


def test_what_an_option_says_of_its_expression(lite: Started) -> None:
    """`_extra_criteria` of an option is the expression that `with_expression` fills an attribute with, so
    that it can be emptied on leaving (`test_reading`: what is left of expressions)."""

    class Base(sa.orm.DeclarativeBase):
        pass

    class Counted(Base):
        __tablename__ = "counted"
        id: Mapped[int] = mapped_column(primary_key=True)
        chosen: Mapped[str | None] = query_expression()

    (option,) = select(Counted).options(with_expression(Counted.chosen, Note.body))._with_options
    (element,) = option.context

    assert element.strategy == (("query_expression", True),)
    assert [one.type.label for one in element._extra_criteria] == ["notes.body"]
    leaving.note_expressions(lite.session, [option])
    assert {(Counted, "chosen")} == page_of(lite.session, leaving.SeenPlaintext).expressions


# Types


def test_what_a_type_says_of_its_variants() -> None:
    """`TypeEngine._variant_mapping` names the types that stand in on one database. Without it, no column can
    be declared."""
    text = sa.String().with_variant(sa.Text(), "sqlite")

    assert list(text._variant_mapping) == ["sqlite"]
    assert not sa.String()._variant_mapping
    with pytest.raises(AttributeError):
        codec_for(Hidden(text, "_variant_mapping"))


# Bound to the type


def test_a_constraint_that_is_bound_to_its_type() -> None:
    """`_type_bound` keeps a copied column from copying the CHECK that it gets when it joins its table."""
    checks = [one for one in Note.__table__.c.body.constraints if isinstance(one, EncryptedCheck)]

    assert [one._type_bound for one in checks] == [True]
    assert Note.__table__.c.body._copy().constraints == set()


def test_prefixes() -> None:
    """`Insert._prefixes` holds what `prefix_with` put there; without it no INSERT is sent."""
    statement = sa.insert(Note).prefix_with("OR REPLACE")

    assert [str(prefix) for prefix, _ in statement._prefixes] == ["OR REPLACE"]


# All of them


def test_an_engine_without_its_creator_is_a_database_of_its_own() -> None:
    """What an engine passes to its driver is kept in `Pool._creator` alone; hidden, no URL is trusted."""
    url = "postgresql+psycopg://db.example/app"
    seen = [sa.create_engine(url, connect_args={"dbname": name}) for name in ("app", "app", "other")]
    hidden = sa.create_engine(url)
    hidden.pool = Hidden(hidden.pool, "_creator")
    names = [database_name(engine, None) for engine in (*seen, hidden)]

    assert names[0] == names[1]
    assert len(set(names)) == 3


def test_no_private_spot_without_a_canary() -> None:
    """The private names that the ORM half of the package reads of SQLAlchemy are those
    that this file speaks of."""
    known = {
        "_annotate",
        "_annotations",
        "_cloned_set",
        "_creator",
        "_distinct",
        "_extra_criteria",
        "_distinct_on",
        "_fetch_clause",
        "_flushing",
        "_generate_cache_key",
        "_for_update_arg",
        "_group_by_clauses",
        "_having_criteria",
        "_independent_ctes",
        "_keymap",
        "_label",
        "_limit_clause",
        "_loose_column_name_matching",
        "_memoized_values",
        "_metadata",
        "_multi_values",
        "_offset_clause",
        "_order_by_clauses",
        "_ordered_columns",
        "_ordered_values",
        "_params",
        "_parent",
        "_post_values_clause",
        "_prefixes",
        "_processors",
        "_proxies",
        "_raw_columns",
        "_reset_memoizations",
        "_resolved",
        "_return_defaults",
        "_result_columns",
        "_returning",
        "_rowbuffer",
        "_sa__py_wrapper_literal",
        "_select_names",
        "_set_memoized_attribute",
        "_suffixes",
        "_supplemental_returning",
        "_textual_ordered_columns",
        "_traverse_internals",
        "_tuplefilter",
        "_values",
        "_variant_mapping",
        "_where_criteria",
        "_with_options",
    }
    texts = [path.read_text() for path in Path(str(hooks.__file__)).parent.rglob("*.py")]
    own = {name for text in texts for name in re.findall(r"(?:def |class |self\.)(_[a-z]\w*)", text)}
    read = {name for text in texts for name in re.findall(r"(?<!self)(?<!cls)\.(_[a-z]\w*)\b", text)}
    asked = {name for text in texts for name in re.findall(r'getattr\([\w.]+, "(_[a-z]\w*)"', text)}

    # `_asdict` and `_mapping` are documented names of Python and of SQLAlchemy.
    assert (read | asked) - own - {"_clone", "_asdict", "_mapping"} <= known
