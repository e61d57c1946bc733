"""The error tree keeps its promises; and importing the package costs nothing that was not asked for."""

import ast
import inspect
import pickle
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from sqlalchemy.exc import DontWrapMixin

import sqlalchemy_envelope
from sqlalchemy_envelope import EnvelopeError, LockedError, LockReason, TransactionConflictError, exceptions

PACKAGE = Path(sqlalchemy_envelope.__file__).parent
REFERENCE = Path(__file__).parent.parent / "docs" / "reference" / "errors.md"
CLASSES: list[type[EnvelopeError]] = [
    value
    for value in vars(exceptions).values()
    if inspect.isclass(value) and value.__module__ == exceptions.__name__ and value is not LockReason
]
each = pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)


def sections() -> dict[str, str]:
    """The text below each `##` heading of the reference of errors."""
    parts = re.split(r"^## (.+)$", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    assert len(parts) % 2 == 1
    headings = parts[1::2]
    assert len(headings) == len(set(headings))
    return dict(zip(headings, parts[2::2], strict=True))


# ---------------------------------------------------------------- the tree


@each
def test_every_error_has_one_parent(error: type[EnvelopeError]) -> None:
    """Whatever this library raises is caught as `EnvelopeError`, and SQLAlchemy does not wrap it."""
    assert issubclass(error, EnvelopeError)
    assert issubclass(error, DontWrapMixin)
    assert issubclass(error, Exception)


@each
def test_every_error_says_what_it_is(error: type[EnvelopeError]) -> None:
    """Each class has a docstring and a code of its own."""
    assert error.__dict__["__doc__"].strip().endswith(".")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", error.__dict__["code"])


def test_codes_are_unique() -> None:
    """No two classes share a code: it leads to one section of the reference."""
    assert len(CLASSES) == len({error.code for error in CLASSES})


@each
def test_a_message_ends_with_its_address(error: type[EnvelopeError]) -> None:
    """What is printed ends with the code and the anchor under which the cure stands."""
    message = str(error("What happened."))

    assert (
        f"What happened. [{error.code}: https://sqlalchemy-envelope.readthedocs.io/en/stable/reference/"
        f"errors.html#{error.code}]" == message
    )


def test_the_address_is_that_of_the_documentation() -> None:
    """Messages lead to the site that the package's metadata names, and there to the page of the errors."""
    metadata = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))

    assert metadata["project"]["urls"]["Documentation"] == exceptions.DOCUMENTATION
    assert Path("reference", "errors.md") == REFERENCE.relative_to(REFERENCE.parents[1])


def test_the_reference_has_every_error_and_no_other() -> None:
    """Each code has a section in docs/reference/errors.md, and each section is of a class."""
    assert sorted(error.code for error in CLASSES) == sorted(sections())


@each
def test_the_reference_names_the_class(error: type[EnvelopeError]) -> None:
    """The section under a code begins with the class, and with what else it is caught as."""
    text = sections()[error.code].strip()
    parents = [base for base in error.__bases__ if base not in (EnvelopeError, DontWrapMixin, Exception)]
    named = text.partition(":")[0]

    assert text.startswith(f"`{error.__name__}`")
    assert error.__name__ in ("AlreadyEnrolledError", "NotEnrolledError") or [error, *parents] == [
        getattr(exceptions, name) for name in re.findall(r"`(\w+)`", named)
    ]


def said() -> str:
    """Every text in the package, in one line, with `...` for what a message puts in."""
    texts = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts.append("...".join(str(one.value) for one in parts if isinstance(one, ast.Constant)))
    return re.sub(r"\s+", " ", "\n".join(texts))


def test_what_the_reference_quotes_is_said() -> None:
    """Each message that the page quotes, in italics, is one that the package raises."""
    texts = said()
    quotes = re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", REFERENCE.read_text("utf-8"))
    parts = [part for one in quotes for part in re.split(r" ?\.\.\. ?", re.sub(r"\s+", " ", one)) if part]

    assert len(quotes) > 30
    assert [part for part in parts if part not in texts] == []


@each
def test_every_error_is_public(error: type[EnvelopeError]) -> None:
    """Each class can be imported from the package itself."""
    assert error is getattr(sqlalchemy_envelope, error.__name__)
    assert error.__name__ in sqlalchemy_envelope.__all__


def test_a_reason_survives_pickling() -> None:
    """Why something is locked crosses a process with its error; an error without a reason has none."""
    arrived = pickle.loads(pickle.dumps(LockedError("What happened.").because(LockReason.LEFT)))  # noqa: S301

    assert arrived.reason is LockReason.LEFT
    assert LockedError("What happened.").reason is None


@each
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(error: type[EnvelopeError], protocol: int) -> None:
    """An error that crosses a process arrives as itself, with its message and nothing else."""
    arrived = pickle.loads(pickle.dumps(error("What happened."), protocol))  # noqa: S301 - made here

    assert error is type(arrived)
    assert arrived.args == ("What happened.",)
    assert str(error("What happened.")) == str(arrived)
    assert vars(arrived) == {}


def test_an_error_leaves_a_process_pool() -> None:
    """What a worker process raises is raised where its result is asked for."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        future = pool.submit(
            eval, "(_ for _ in ()).throw(__import__('sqlalchemy_envelope').UnlockError('What.'))"
        )
        with pytest.raises(exceptions.UnlockError, match=re.escape("What. [unlock: ")):
            future.result(60)


def raised() -> list[tuple[str, ast.Call]]:
    """Every place in the package where an error is made."""
    names = {error.__name__ for error in CLASSES}
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in names:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", node))
    return found


def test_an_error_holds_its_message_alone() -> None:
    """Every error in the package is made with one argument, its message: no value rides along."""
    places = raised()
    odd = [where for where, call in places if len(call.args) != 1 or call.keywords]

    assert len(places) > 30
    assert odd == []
    assert not any("__init__" in vars(error) for error in CLASSES)


def test_a_conflict_says_what_to_do() -> None:
    """Each message of a lost race tells to run the transaction again."""
    told = {
        where: text_of(call.args[0])
        for where, call in raised()
        if getattr(call.func, "id", "") == TransactionConflictError.__name__
    }

    assert len(told) > 5
    assert [where for where, text in told.items() if "un the transaction again" not in text] == []


def text_of(message: ast.expr) -> str:
    """What is fixed of a message."""
    parts = [node.value for node in ast.walk(message) if isinstance(node, ast.Constant)]
    return "".join(part for part in parts if isinstance(part, str))


# ---------------------------------------------------------------- what importing costs


def run(program: str) -> str:
    """What a program prints in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_public_name_is_there() -> None:
    """Each name of `__all__` exists, once, and a star import gives exactly these."""
    names = sqlalchemy_envelope.__all__
    star: dict[str, object] = {}
    exec("from sqlalchemy_envelope import *", star)  # noqa: S102 - there is no other way to see what it gives

    assert len(names) == len(set(names))
    assert set(names) == set(star) - {"__builtins__"}
    # A Literal has no docstring of its own.
    assert [name for name in names if not getattr(sqlalchemy_envelope, name).__doc__] == ["EventName"]


EXTRAS = [
    "click",
    "rich",
    "alembic",
    "greenlet",
    "sqlalchemy.ext.asyncio",
    "fastapi",
    "flask",
    "asyncpg",
    "psycopg",
]


def test_importing_needs_no_extra() -> None:
    """The package is imported where none of its extras is installed."""
    blocked = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS[:3]!r})); "

    assert run(blocked + "import sqlalchemy_envelope; print('yes')") == "yes"


def test_importing_needs_no_fork() -> None:
    """The package is imported on a system that does not fork."""
    forkless = "import os; [vars(os).pop(name, None) for name in ('fork', 'register_at_fork')]; "

    assert run(forkless + "import sqlalchemy_envelope; print('yes')") == "yes"


def test_importing_loads_no_extra() -> None:
    """Beyond what SQLAlchemy itself loads, importing the package brings in nothing that an extra is for."""
    program = "import sys, sqlalchemy.orm; before = set(sys.modules); import sqlalchemy_envelope; "
    loaded = run(program + f"print([name for name in {EXTRAS!r} if name in set(sys.modules) - before])")

    assert loaded == "[]"


LISTENERS = """
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine
from sqlalchemy.orm import Session
engine, session = create_engine("sqlite://"), Session
def heard():
    of_engine = ("before_execute", "before_cursor_execute", "after_execute", "engine_connect")
    of_session = ("after_begin", "after_flush", "before_flush", "do_orm_execute", "after_attach")
    return sum(len(list(getattr(engine.dispatch, name))) for name in of_engine) + sum(
        len(list(getattr(Session().dispatch, name))) for name in of_session)
nothing = heard()
import sqlalchemy_envelope
print(heard() == nothing)
plain = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))
print(heard() == nothing)
type_ = sqlalchemy_envelope.EncryptedType(String)
print(heard() == nothing)
Table("secret", MetaData(), Column("id", Integer, primary_key=True), Column("name", type_))
print(heard() > nothing)
first = heard()
Table("secret", MetaData(), Column("id", Integer, primary_key=True), Column("name", type_))
print(heard() == first)
"""


def test_statements_cost_nothing_until_a_column_is_encrypted() -> None:
    """No listener to statements or sessions is there until the first column is encrypted, and then one."""
    assert run(LISTENERS).split() == ["True"] * 5


def test_a_migration_needs_no_greenlet() -> None:
    """Without the extra `asyncio` the migration and the command line can be imported, and server mode asks
    for no greenlet."""
    program = (
        "import sys; sys.modules['greenlet'] = None\n"
        "import sqlalchemy_envelope.migration, sqlalchemy_envelope.cli.group\n"
        "from sqlalchemy_envelope.orm.tables.cascades import in_greenlet\n"
        "assert in_greenlet() is False\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
