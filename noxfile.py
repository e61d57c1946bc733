"""Everything that must hold, as sessions: `nox`, or `nox -s tests` for one of them.

`./run test` runs these sessions too, after it has set up nox itself.
"""

import hashlib
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["check", "tests", "lowest"]

PROJECT = Path(__file__).parent
OLDER = ["sqlalchemy==2.0.*", "alembic==1.18.0"]
"""The older line of SQLAlchemy, and the first Alembic with plugins; `lowest` has the oldest of both."""
NONE_CHOSEN = 5
"""What pytest exits with if none of the tests that it was given is marked for the older line."""


def install(session: nox.Session, *what: str) -> bool:
    """Install with pip, unless this environment has had exactly this from this pyproject.toml."""
    wanted = hashlib.sha256((PROJECT / "pyproject.toml").read_bytes() + repr(what).encode()).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    session.install("pip>=25.1")  # the first that knows --group
    session.install("--no-compile", *what)  # Python compiles what is imported, which is a small part
    stamp.write_text(wanted)
    return True


@nox.session
def check(session: nox.Session) -> None:
    """Style, formatting and spelling; the layers of docs/architecture.md; types, under mypy and pyright; the
    documentation, in which a warning is an error."""
    install(session, "-e", ".[all]", "--group", "lint", "--group", "docs")
    commands = [
        "ruff check .",
        "ruff format --check .",
        "codespell",
        "lint-imports",
        "mypy",
        "pyright",
        "sphinx-build -n -W --keep-going -q docs docs/_build/html",
    ]
    require_all(session, [runs(session, *command.split()) for command in commands])


@nox.session
def tests(session: nox.Session) -> None:
    """The tests on both lines of SQLAlchemy. The older line runs what is marked `both_lines`, on SQLite: what
    it makes a difference to lies before the driver. Arguments go to pytest; `--all` leaves nothing out."""
    older = Path(session.virtualenv.location) / "older"
    if install(session, "-e", ".[all]", "--group", "test") or not older.exists():
        # In a folder that comes first on the path, and not in an environment of its own: it takes a second.
        shutil.rmtree(older, ignore_errors=True)
        session.install("--no-compile", "--no-deps", "--target", str(older), *OLDER)
    databases = "" if "--all" in session.posargs else " and not backend"
    chosen = ["-m", f"both_lines{databases}", *session.posargs]
    require_all(
        session,
        [
            run_pytest(session, *chosen, env={"PYTHONPATH": str(older)}, success=[0, NONE_CHOSEN]),
            run_pytest(session, *session.posargs),
        ],
    )


@nox.session
def lowest(session: nox.Session) -> None:
    """The tests on the oldest versions that pyproject.toml allows."""
    asked = [*project_dependencies(), *project_dependencies("alembic")]
    pinned = [requirement.replace(">=", "==") for requirement in asked]
    install(session, "-e", ".[all]", "--group", "test", *pinned)
    require_all(session, [run_pytest(session, *session.posargs)])


def run_pytest(
    session: nox.Session, *arguments: str, env: dict[str, str] | None = None, success: Sequence[int] = (0,)
) -> bool:
    """Two test processes. They and the programs that they start find compiled modules, whatever the
    environment says, and have their databases in memory where there is room for them."""
    with quick_folder() as folder:
        env = {"PYTHONDONTWRITEBYTECODE": "", "TMPDIR": str(folder)} | (env or {})
        command = ["pytest", "-n", "2", "--durations=20", "--durations-min=1", *arguments]
        return runs(session, *command, env=env, success=success)


def runs(
    session: nox.Session, *command: str, env: dict[str, str] | None = None, success: Sequence[int] = (0,)
) -> bool:
    """Whether a command succeeds. What comes after it is run in any case."""
    try:
        session.run(*command, env=env, success_codes=success)
    except CommandFailed:
        return False
    return True


def require_all(session: nox.Session, succeeded: list[bool]) -> None:
    if not all(succeeded):
        session.error(f"{succeeded.count(False)} of {len(succeeded)} commands failed")


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
