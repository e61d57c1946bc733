"""SQLAlchemy's own tests, without this library and with it: `nox -s suites`, or `nox -s suites -- orm ext`.

With it, an encrypted class is declared and server mode serves the whole process. No statement of those tests
has anything to do with that class, so not one may be lost. SQLAlchemy's source distribution is downloaded,
of the version that is installed; all of it takes an hour, and is none of the checks.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import sqlalchemy

FOLDERS = ("orm", "ext", "sql", "engine")
Outcomes = dict[tuple[str, str, str], list[str]]


def main() -> int:
    """Run them with the library, and the files in which a test failed without it too. What is skipped lacks
    something of the database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="*", default=FOLDERS, metavar="FOLDER", help="of SQLAlchemy's `test`"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = download(Path(name))
        files = [file for one in arguments.folders for file in files_of(source, one)]
        found = run(source, files, "-p", "tests.sqlalchemy_suites")
        failed = [one for one, outcomes in found.items() if {"failure", "error"} & set(outcomes)]
        files = sorted({file for file, _, _ in failed})
        without = run(source, files)
    # One that did not run without the library counts as lost: it may have passed.
    lost = [one for one in failed if "passed" in without.get(one, ["passed"])]
    passed = sum(outcomes.count("passed") for outcomes in found.values())
    print(f"SQLAlchemy {sqlalchemy.__version__}: {passed} tests pass with the library, {len(lost)} are lost")
    for one in lost:
        print("lost:", *one)
    return min(len(lost), 1) if passed else 2


def download(folder: Path) -> Path:
    """The tests that belong to the SQLAlchemy which is installed."""
    wanted = f"sqlalchemy=={sqlalchemy.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "sqlalchemy"]
    subprocess.run([*pip, "--dest", folder, wanted], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(one for one in folder.iterdir() if one.is_dir())


def files_of(source: Path, name: str) -> list[str]:
    """The files of tests in a folder, or one file."""
    where = source / "test" / name
    found = sorted(where.rglob("test_*.py")) if where.is_dir() else [where]
    return [str(one.relative_to(source)) for one in found]


def run(source: Path, files: list[str], *options: str) -> Outcomes:
    """What becomes of each test, by its file, class and name. Each file has a process of its own: some remove
    every listener there is, the library's too."""
    report, project = source.parent / "report.xml", str(Path(__file__).parents[1])
    # With -s they use the SQLAlchemy that is installed, and not the source beside them.
    command = [sys.executable, "-s", "-m", "pytest", "--maxfail=0", "-p", "no:randomly", *options]
    found: Outcomes = defaultdict(list)
    for file in files:
        report.unlink(missing_ok=True)
        subprocess.run(
            [*command, f"--junitxml={report}", file],
            cwd=source,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([project, os.environ.get("PYTHONPATH", "")])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if not report.exists():
            found[file, "", "the whole file"].append("error")
            continue
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written in the lines above
            wrong = [one.tag for one in case if one.tag in ("failure", "error", "skipped")]
            test = file, case.get("classname", ""), case.get("name", "")
            found[test].append(wrong[0] if wrong else "passed")
    return found


# As a plugin of pytest: what "with the library" is

_declared: list[Any] = []


def pytest_runtest_setup(item: Any) -> None:
    """Declare the class, and again for each file: SQLAlchemy's tests clear all mappers."""
    if _declared and _declared[0] == item.path:
        return
    from sqlalchemy import ForeignKey, Integer, String
    from sqlalchemy.orm import DeclarativeBase, configure_mappers, mapped_column

    from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, ServerKeyring

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id = mapped_column(Integer, primary_key=True)

    class Note(Base):
        __tablename__ = "notes"
        id = mapped_column(Integer, primary_key=True)
        user_id = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        body = mapped_column(EncryptedType(String))

    configure_mappers()
    server = _declared[2] if _declared else None
    if server is None:
        envelope = Envelope(server_keys=ServerKeyring([bytes(32)]))
        server = envelope.server_mode(reason="SQLAlchemy's own tests").everywhere()
    _declared[:] = [item.path, Note, server]


if __name__ == "__main__":
    sys.exit(main())
