"""Everything that must hold, as sessions: `nox`, or `nox -s tests` for one of them.

`./run test` runs these sessions too, after it has set up nox itself.
"""

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "imports", "tests", "docs", "lowest"]

PROJECT = Path(__file__).parent
OLDER_ORM = [
    "attribute_names", "binary_results", "decorators", "gate", "locked", "moved_links", "object_copies",
    "owner_columns", "plain_statements", "previous_reads", "previous_writes", "private_spots", "programs",
    "queries", "reading", "reading_table", "sharing", "sole_owner", "two_places", "types", "unnoticed",
    "unreadable", "whose_key", "writes",
]  # fmt: skip
"""The modules of `tests/orm` that the line of SQLAlchemy makes a difference to: forms of statements, ways of
loading, and what the library reads of SQLAlchemy's insides."""
OLDER = [
    *(f"tests/orm/test_{name}.py" for name in OLDER_ORM),
    "tests/alembic/test_autogenerate.py",
    "tests/migration/test_engine.py",
]
"""What the older line runs, on SQLite: what it makes a difference to lies before the driver."""
ALEMBIC = {"2.0": "alembic==1.18.0", "2.1": "alembic"}
"""Beside each line of SQLAlchemy; `lowest` has the oldest, and 1.18.0 is the first with plugins."""


def install(session: nox.Session, *what: str) -> None:
    """Install with pip, unless this environment has had exactly this from this pyproject.toml."""
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes() + repr(what).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    session.install("--upgrade", "pip>=25.1")  # the first that knows --group
    session.install(*what)
    stamp.write_text(wanted)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting and spelling."""
    install(session, "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")


@nox.session
def types(session: nox.Session) -> None:
    """The package under mypy, strict, and under pyright."""
    install(session, "-e", ".[all]", "--group", "lint")
    session.run("mypy")
    session.run("pyright")


@nox.session
def imports(session: nox.Session) -> None:
    """The layers of docs/architecture.md."""
    install(session, "-e", ".", "--group", "lint")
    session.run("lint-imports")


@nox.session
@nox.parametrize("sqlalchemy", ["2.0", "2.1"])
def tests(session: nox.Session, sqlalchemy: str) -> None:
    """The tests on one line of SQLAlchemy; arguments go to pytest. What the line makes no difference to, and
    what only repeats at length, runs on the newer one."""
    install(session, "-e", ".[all]", "--group", "test", f"sqlalchemy=={sqlalchemy}.*", ALEMBIC[sqlalchemy])
    if sqlalchemy == "2.0":
        run_pytest(session, "-m", "not thorough and not backend", *(session.posargs or OLDER))
    elif session.posargs:
        run_pytest(session, *session.posargs)
    else:
        # Apart: with all that the migration's tests import, those that look for keys in memory take longer.
        run_pytest(session, "--ignore=tests/migration")
        run_pytest(session, "tests/migration")


def run_pytest(session: nox.Session, *arguments: str) -> None:
    """Two test processes. They and the programs that they start find compiled modules, whatever the
    environment says, and have their databases in memory where there is room for them."""
    with quick_folder() as folder:
        env = {"PYTHONDONTWRITEBYTECODE": "", "TMPDIR": str(folder)}
        session.run("pytest", "-n", "2", *arguments, env=env)


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder for temporary files, removed afterwards: in memory if 4 GB are free there, or on disk."""
    memory = Path("/dev/shm")  # noqa: S108   the folder in it has a random name
    usable = (
        os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free >= 4 * 2**30
        and not os.statvfs(memory).f_flag & os.ST_NOEXEC  # PostgreSQL's programs may be copied there
    )
    with tempfile.TemporaryDirectory(dir=memory if usable else None, ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another account
        yield Path(folder)


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests on the oldest versions that pyproject.toml allows."""
    asked = [*project_dependencies(), *project_dependencies("alembic")]
    pinned = [requirement.replace(">=", "==") for requirement in asked]
    install(session, "-e", ".[all]", "--group", "test", *pinned)
    run_pytest(session, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation; a warning is an error."""
    install(session, "-e", ".[all]", "--group", "docs")
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-q", "docs", "docs/_build/html")


@nox.session
def bench(session: nox.Session) -> None:
    """The benchmarks; arguments go to them."""
    install(session, "-e", ".[all]", "--group", "bench", "--group", "test")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def suites(session: nox.Session) -> None:
    """SQLAlchemy's own tests, with this library loaded and without; arguments are folders of them. It takes
    an hour, and runs on request alone."""
    install(session, "-e", ".[asyncio]", "pytest>=9", "aiosqlite>=0.20")
    session.run("python", "-m", "tests.sqlalchemy_suites", *session.posargs)


def project_dependencies(extra: str | None = None) -> list[str]:
    """What [project] of pyproject.toml asks for, or one of its extras, as it is written there."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"] if extra is None else project["optional-dependencies"][extra])
