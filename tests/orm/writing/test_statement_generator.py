"""Statements by the thousand, made of SQLAlchemy's own constructs, against the gate.

Each one writes a needle that is easy to find into an encrypted column, in a form that hypothesis puts
together. Whatever becomes of it, the needle is in no byte of the database and in no error, and each value
that was stored is under the key of its row's owner, and has its tag in the blind index.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import Context
from pathlib import Path
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    Engine,
    bindparam,
    cast,
    delete,
    insert,
    lambda_stmt,
    literal,
    select,
    type_coerce,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, aliased
from sqlalchemy.sql.lambdas import NullLambdaStatement

from sqlalchemy_envelope import EnvelopeError
from tests.orm.indexes.agreement import out_of_step
from tests.orm.indexes.indexed_models import Indexed, Note, User, started_with_indexes

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning", "ignore::DeprecationWarning")
MANY = int(os.environ.get("STATEMENT_EXAMPLES", "1000"))
"""How many statements are tried on SQLite with `--all`; 20,000 take some minutes."""
COUNT = pytest.mark.parametrize("count", [250, pytest.param(MANY, marks=pytest.mark.thorough)])

NEEDLE = "needle-7f3a"
NOTES: Any = Note.__table__
PLAIN = sa.Table(
    "plain_copies", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("data", sa.String)
)
LIGHT: Any = sa.table("notes", *(sa.column(name) for name in ("id", "user_id", "title", "body")))
TYPED = sa.Table(
    "notes",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    *(sa.Column("user_id", sa.Integer), sa.Column("title", sa.Text), sa.Column("body", sa.Text)),
)
ADDED = ["scalar", "called", "SQL", "None"]


def adding(kind: str, needle: str) -> Any:
    """The same table, whose column is written where a statement does not name it."""
    added: Any = {
        "scalar": needle,
        "called": lambda: needle,
        "SQL": sa.func.lower(needle),
        "None": sa.null(),
    }[kind]
    return sa.Table(
        "notes",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column("user_id", sa.Integer), sa.Column("title", sa.Text)),
        sa.Column("body", sa.Text, default=added, onupdate=added),
    )


class Form:
    """A statement, its parameters, and the names of what it was made of."""

    def __init__(self, statement: Any, parameters: Any, *names: str) -> None:
        self.statement = statement
        self.parameters = parameters
        self.names = names


def value_of(kind: str, needle: str) -> Any:
    """A value for the encrypted column."""
    return {
        "plain": lambda: needle,
        "none": lambda: None,
        "null": sa.null,
        "literal": lambda: literal(needle),
        "typed literal": lambda: literal(needle, sa.String),
        "bytes literal": lambda: literal(needle.encode()),
        "bindparam": lambda: bindparam("words"),
        "valued bindparam": lambda: bindparam("words", needle),
        "typed bindparam": lambda: bindparam("words", type_=sa.String),
        "unique bindparam": lambda: bindparam(None, needle, unique=True),
        "called bindparam": lambda: bindparam("words", callable_=lambda: needle),
        "cast": lambda: cast(needle, sa.String),
        "type_coerce": lambda: type_coerce(needle, sa.String),
        "type_coerce to bytes": lambda: type_coerce(needle.encode(), sa.LargeBinary),
        "type_coerce to the column": lambda: type_coerce(needle, NOTES.c.body.type),
        "function": lambda: sa.func.lower(needle),
        "case": lambda: sa.case((sa.true(), needle), else_="other"),
        "concatenation": lambda: literal(needle) + "!",
        "subquery": lambda: select(literal(needle)).scalar_subquery(),
        "another column": lambda: NOTES.c.title,
        "bytes": lambda: needle.encode(),
        "number": lambda: 7,
        "list": lambda: [needle],
    }[kind]()


VALUES = [
    *(["plain"] * 12),
    *("none", "null", "literal", "typed literal", "bytes literal"),
    *("bindparam", "valued bindparam", "typed bindparam", "unique bindparam", "called bindparam"),
    *("cast", "type_coerce", "type_coerce to bytes", "type_coerce to the column"),
    *("function", "case", "concatenation", "subquery", "another column", "bytes", "number", "list"),
]
TARGETS = ["entity", "table", "alias", "aliased entity", "light", "typed twin", "adding twin"]
HOW = [
    *("alone", "alone", "lambda", "lambda"),
    "lambda with more",
    "spoiled lambda",
    "from_statement",
    "cte",
    "added cte",
    "parameters",
]
VERBS = ["insert", "update", "multi-values", "tuple", "tuples", "ordered values", "upsert", "from_select"]
SOURCES = [
    "literals",
    "text",
    "text in a subquery",
    "same row",
    "same row with its tag",
    "another row's tag",
    "two aliases",
    "union all",
    "union all with a literal",
    "cte",
    "type_coerce",
    "into plain",
    "into plain by type_coerce",
    "light",
]


@st.composite
def forms(draw: st.DrawFn, dialect: str, start: int) -> Form:
    """One statement that writes the needle. Hypothesis draws a seed: of its own it would go on from one form
    to the next of kin, and as many different ones as can be are wanted."""
    random = draw(st.randoms(use_true_random=True))
    needle = f"{NEEDLE}-{random.randint(0, 999)}"
    verb = random.choice(VERBS)
    kind = random.choice(VALUES) if verb != "from_select" else "plain"
    changes = verb in ("update", "ordered values")
    name = random.choice(["entity", "table", *(TARGETS if changes else TARGETS[:2] + TARGETS[4:])])
    how = random.choice(HOW)
    owner = random.choice([start] * 5 + [start + 1])
    target: Any = {
        "entity": Note,
        "table": NOTES,
        "alias": NOTES.alias("n"),
        "aliased entity": aliased(Note),
        "light": LIGHT,
        "typed twin": TYPED,
        "adding twin": None,
    }[name]
    value = value_of(kind, needle)
    names = [verb, kind, name, how]
    leaves_out = name == "adding twin" and random.random() < 0.8
    if name == "adding twin":
        names.append(added := random.choice(ADDED))
        target = adding(added, needle)
    if leaves_out:
        kind, value = "plain", None
        statement = _left_out(verb, target, owner)
        names.append("left out")
    elif verb == "from_select":
        source = random.choice(SOURCES)
        names.append(source)
        statement = _from_select(target, source, needle, owner)
    else:
        statement = _written(random, verb, target, owner, value, dialect)
    if random.random() < 0.5 and how != "cte":
        returned = target.body if hasattr(target, "body") else target.c.body
        statement = statement.returning(returned)
        names.append("returning")
    parameters: Any = {"words": needle} if "bindparam" in kind else {}
    if how == "parameters":
        names.append("many" if (many := random.random() < 0.5) else "single")
        statement = insert(target) if verb == "insert" else statement
        row = {"user_id": owner, "body": needle, **parameters} if verb == "insert" else parameters
        row = {"user_id": owner} if leaves_out and verb == "insert" else row
        parameters = [row, dict(row)] if many and row else row
    return Form(_wrapped(how, statement, target, value, owner), parameters, *names)


def _written(random: Random, verb: str, target: Any, owner: int, value: Any, dialect: str) -> Any:
    row = {"user_id": owner, "body": value}
    if random.random() < 0.1 and (hasattr(target, "body_index") or "body_index" in getattr(target, "c", ())):
        row["body_index"] = random.choice([None, b"x" * 16])
    if verb == "insert":
        return insert(target).values(row)
    if verb == "multi-values":
        return insert(target).values([row, {"user_id": owner, "body": "other"}])
    if verb in ("tuple", "tuples"):
        names = sa.inspect(target).local_table.c.keys() if hasattr(target, "__table__") else target.c.keys()
        cells = tuple({"id": random.randint(10**6, 10**9), **row}.get(key) for key in names)
        return insert(target).values(cells if verb == "tuple" else [cells])
    if verb == "upsert":
        made: Any = (postgresql.insert if dialect == "postgresql" else sqlite.insert)(target)
        made = made.values(id=random.randint(1, 3), **row)
        sets = random.choice(["excluded", "value", "body alone"])
        set_ = {
            "excluded": {"body": made.excluded.body, "user_id": made.excluded.user_id},
            "value": {"body": value},
            "body alone": {"body": made.excluded.body},
        }[sets]
        return made.on_conflict_do_update(index_elements=["id"], set_=set_)
    columns = target if hasattr(target, "body") else target.c
    named = random.random() < 0.5
    changed = update(target).where(columns.user_id == owner)
    if random.random() < 0.5:
        changed = changed.where(columns.id == select(sa.func.max(NOTES.c.id)).scalar_subquery())
    if verb == "ordered values":
        pairs = [(columns.user_id, owner), (columns.body, value)]
        return changed.ordered_values(*(pairs if named else pairs[1:]))
    return changed.values(row if named else {"body": value})


def _left_out(verb: str, target: Any, owner: int) -> Any:
    """A statement that does not name the column, in any row or in the second one."""
    if verb in ("update", "ordered values"):
        return update(target).where(target.c.user_id == owner).values(user_id=owner)
    if verb == "from_select":
        return insert(target).from_select(["user_id"], select(literal(owner)))
    if verb == "multi-values":
        return insert(target).values([{"user_id": owner, "body": None}, {"user_id": owner}])
    return insert(target).values(user_id=owner)


def _from_select(target: Any, source: str, needle: str, owner: int) -> Any:
    one, other = NOTES.alias("one"), NOTES.alias("other")
    typed = sa.text(f"SELECT {owner} AS user_id, '{needle}' AS body").columns(NOTES.c.user_id, NOTES.c.body)
    same = select(NOTES.c.user_id, NOTES.c.body).where(NOTES.c.user_id == owner).limit(1)
    whole = select(NOTES.c.user_id, NOTES.c.body).where(NOTES.c.id < 3)
    made = select(literal(owner), literal(needle))
    if "tag" in source:
        tags = other if source.startswith("another") else NOTES
        copied = select(NOTES.c.user_id, NOTES.c.body, tags.c.body_index).where(NOTES.c.user_id == owner)
        names = ["user_id", "body", "body_index"]
        known = names if hasattr(target, "__table__") or "body_index" in target.c else names[:2]
        copied = copied.where(tags.c.id < 3).limit(1)
        return insert(target).from_select(
            known, copied.with_only_columns(*list(copied.selected_columns)[: len(known)])
        )
    selected = {
        "literals": lambda: made,
        "text": lambda: typed,
        "text in a subquery": lambda: select(typed.subquery()),
        "same row": lambda: same,
        "two aliases": lambda: select(
            select(one.c.user_id, other.c.body).where(one.c.user_id != other.c.user_id).limit(1).subquery()
        ),
        "union all": lambda: union_all(whole, whole),
        "union all with a literal": lambda: select(union_all(whole, made).subquery()),
        "cte": lambda: select(same.cte("c")),
        "type_coerce": lambda: select(literal(owner), type_coerce(literal(needle), NOTES.c.body.type)),
        "into plain": lambda: select(NOTES.c.body),
        "into plain by type_coerce": lambda: select(type_coerce(NOTES.c.body, sa.LargeBinary)),
        "light": lambda: select(LIGHT.c.user_id, literal(needle)).limit(1),
    }[source]()
    if source.startswith("into plain"):
        return insert(PLAIN).from_select(["data"], selected)
    return insert(target).from_select(["user_id", "body"], selected)


def _wrapped(how: str, statement: Any, target: Any, value: Any, owner: int) -> Any:
    on = [sa.inspect(target)]
    if how == "lambda" and isinstance(value, (str, bytes)):
        if not isinstance(statement, sa.Insert):
            return lambda_stmt(lambda: update(target).values(user_id=owner, body=value), track_on=on)
        return lambda_stmt(lambda: insert(target).values(user_id=owner, body=value), track_on=on)
    if how == "lambda with more" and isinstance(value, (str, bytes)):
        begun = lambda_stmt(lambda: update(target), track_on=on)
        return begun.add_criteria(lambda one: one.values(user_id=owner, body=value), track_on=on)
    if how in ("lambda", "lambda with more", "spoiled lambda"):
        return NullLambdaStatement(statement)  # what `spoil()` makes
    if how == "from_statement":
        whole = statement if statement._returning else statement.returning(sa.literal_column("1"))
        return select(Note).from_statement(whole)
    if how == "added cte":
        return select(literal(1)).add_cte(statement.cte("c"))
    if how == "cte":
        return select(statement.returning(sa.literal_column("user_id").label("u")).cte("c"))
    return statement


def run(session: Session, form: Form) -> BaseException | None:
    """Execute the statement; its error."""
    try:
        session.execute(form.statement, form.parameters).close()
        session.commit()
    except (EnvelopeError, SQLAlchemyError) as error:
        session.rollback()
        return error
    return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and all that it came from."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__, getattr(one, "orig", None)]


def said(error: BaseException | None) -> str:
    """Everything that an error, and what is behind it, would show."""
    return "\n".join(
        f"{one} {one!r} {one.args!r} {getattr(one, 'params', None)!r} {getattr(one, '__notes__', None)!r}"
        for one in chain(error)
    )


def check_rows(engine: Engine, known: dict[bytes, int]) -> None:
    """Each stored value is ours, and under a key of its row's owner."""
    with engine.connect() as connection:
        rows = connection.execute(sa.text("SELECT id, user_id, body FROM notes WHERE body IS NOT NULL")).all()
        copies = connection.execute(sa.text("SELECT data FROM plain_copies")).all()
    assert copies == []
    for key, owner, body in rows:
        assert not isinstance(body, str), key
        assert known.get(bytes(body)[:17]) == owner, key


def explore(started: Indexed, count: int, at_rest: Any) -> Counter[str]:
    """Run that many statements, and count the forms and what became of them."""
    engine, session = started.engine, started.session
    PLAIN.create(engine)
    ada, ben = started.ada.id, started.ben.id
    assert ben == ada + 1
    known = headers(started)
    seen: Counter[str] = Counter()
    forms_seen: set[tuple[str, ...]] = set()

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count <= 1000,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(forms(engine.dialect.name, ada), st.sampled_from([True] * 5 + [False]))
    def one(form: Form, unlocked: bool) -> None:
        # In a context of its own nobody is unlocked.
        print(
            "LAST",
            form.names,
            form.statement._values if hasattr(form.statement, "_values") else "",
            form.parameters,
        )
        error = run(session, form) if unlocked else Context().run(run, locked, form)
        forms_seen.add((*form.names, str(unlocked)))
        seen["stored" if error is None else type(error).__name__] += 1
        assert NEEDLE not in said(error), form.names
        check_rows(engine, known)
        if seen.total() % 5 == 0:
            assert Context().run(stale_rows, started) == []
        if seen.total() % 20 == 0:  # so that there is always little to look through
            session.execute(delete(NOTES).where(NOTES.c.id > 3))
            session.commit()
        if seen.total() % 100 == 0:
            assert NEEDLE not in at_rest()

    with started.fresh() as locked, started.unlock(session, started.ada):
        one()
    assert NEEDLE not in at_rest()
    assert seen["stored"] > count // 20
    print(f"\n{seen.total()} statements of {len(forms_seen)} forms: {dict(seen)}")
    return seen


def stale_rows(started: Indexed) -> list[Any]:
    """The rows that have not the tag of their value."""
    with started.fresh() as session, ExitStack() as stack:
        for owner in (started.ada.id, started.ben.id):
            stack.enter_context(started.unlock(session, session.get_one(User, owner)))
        return out_of_step(session, Note)


def headers(started: Indexed) -> dict[bytes, int]:
    """The beginning of every value under each owner's key: its version and its key's name."""
    known = {}
    for owner in (started.ada, started.ben):
        with started.unlock(started.session, owner):
            started.session.add(Note(user_id=owner.id, body="first"))
            started.session.commit()
        statement = sa.text("SELECT body FROM notes WHERE user_id = :owner")
        known[bytes(started.session.execute(statement, {"owner": owner.id}).scalar_one())[:17]] = owner.id
    started.session.commit()
    return known


@COUNT
def test_on_sqlite(sqlite_engine: Engine, count: int) -> None:
    """No statement brings plaintext into a database file or an error, a value under a foreign key, or a
    value without its tag."""
    path = Path(str(sqlite_engine.url.database))
    sa.event.listen(sqlite_engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))
    sqlite_engine.dispose()

    def at_rest() -> str:
        return "".join(one.read_bytes().decode("latin-1") for one in path.parent.glob(path.name + "*"))

    for started in started_with_indexes(sqlite_engine):
        seen = explore(started, count, at_rest)

        assert seen.total() == count


@COUNT
@pytest.mark.backend
def test_on_postgresql(postgres_engine: Engine, postgres_dump: Any, count: int) -> None:
    """The same on PostgreSQL, which takes statements in CTEs as well."""
    for started in started_with_indexes(postgres_engine):
        seen = explore(started, min(count // 4, 2500), postgres_dump)

        assert seen.total()
