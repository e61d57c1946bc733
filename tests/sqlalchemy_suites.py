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
    """Run them with the library, and then those files without it in which a test failed. What is skipped is
    skipped for what it needs of the database."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="*", default=FOLDERS, metavar="FOLDER", help="of SQLAlchemy's `test`"
    )
    parser.add_argument("--workers", default="2", help="processes that run them at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        source = download(Path(name))
        folders = [f"test/{one}" for one in arguments.folders]
        found = run(source, "with", folders, "-n", arguments.workers, "-p", "tests.sqlalchemy_suites")
        doubtful = sorted({one[0] for one, outcomes in found.items() if {"failure", "error"} & set(outcomes)})
        without = run(source, "without", doubtful, "-n", arguments.workers) if doubtful else {}
    lost = [one for one, outcomes in without.items() if _passed(outcomes) > _passed(found.get(one, []))]
    passed = sum(map(_passed, found.values()))
    print(f"SQLAlchemy {sqlalchemy.__version__}: {passed} tests pass with the library, {len(lost)} are lost")
    for one in lost:
        print("lost:", *one, found.get(one, ["was not run"]))
    return min(len(lost), 1) if passed else 2


def download(folder: Path) -> Path:
    """The tests that belong to the SQLAlchemy which is installed."""
    wanted = f"sqlalchemy=={sqlalchemy.__version__}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "sqlalchemy"]
    subprocess.run([*pip, "--dest", folder, wanted], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(one for one in folder.iterdir() if one.is_dir())


def run(source: Path, name: str, what: list[str], *options: str) -> Outcomes:
    """What becomes of each test, by its file, class and name."""
    report, log = source.parent / f"{name}.xml", source.parent / f"{name}.log"
    project = str(Path(__file__).parents[1])
    # With -s they use the SQLAlchemy that is installed, and not the source beside them.
    command = [sys.executable, "-s", "-m", "pytest", "--maxfail=0", "-p", "no:randomly", *options]
    with log.open("w") as output:
        subprocess.run(
            [*command, "-o", "junit_family=xunit1", f"--junitxml={report}", *what],
            cwd=source,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([project, os.environ.get("PYTHONPATH", "")])},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    print(f"{name} the library:", log.read_text().strip().rpartition("\n")[2], flush=True)
    found: Outcomes = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - written in the lines above
        wrong = [one.tag for one in case if one.tag in ("failure", "error", "skipped")]
        test = case.get("file", ""), case.get("classname", ""), case.get("name", "")
        found[test].append(wrong[0] if wrong else "passed")
    return found


def _passed(outcomes: list[str]) -> int:
    return outcomes.count("passed")


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
