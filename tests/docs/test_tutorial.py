"""The second tutorial runs when it is typed along: after each block, and not only at the end."""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import create_engine

from sqlalchemy_envelope import Envelope, KdfProfile

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial" / "application.md"
INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"""^:([\w-]+): ["']?(.*?)["']?$""", re.MULTILINE)
ADA = ("ada", "ada's secret")


def blocks() -> Iterator[tuple[str, str]]:
    """Each file that the page shows a part of, and that part."""
    for path, options in INCLUDED.findall(PAGE.read_text("utf-8")):
        given = dict(OPTION.findall(options))
        lines = (PAGE.parent / path).read_text("utf-8").splitlines(keepends=True)
        start = next((at for at, line in enumerate(lines) if given.get("start-at", "") in line), 0)
        ends = (at for at, line in enumerate(lines) if at > start and given["end-before"] in line)
        yield Path(path).name, "".join(lines[start : next(ends) if "end-before" in given else None])


def loaded(name: str) -> ModuleType:
    """A module of the application as it is typed by now."""
    for known in [known for known in sys.modules if known.partition(".")[0] == "circle"]:
        del sys.modules[known]
    importlib.invalidate_caches()
    return importlib.import_module(f"circle.{name}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package that the reader makes, in place of the finished one."""
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a module that is typed anew is read anew
    with patch.dict(sys.modules):
        yield tmp_path


def test_each_step_runs(folder: Path) -> None:
    """Each block can be imported with what was typed before it. A comment is written before the model has the
    column that a later step adds, and a quote after it."""
    answers = []
    for name, block in blocks():
        if name not in ("models.py", "app.py"):
            continue
        with (folder / "circle" / name).open("a", encoding="utf-8") as file:
            file.write(block)
        app = loaded(name.removesuffix(".py"))
        if "def create_app(" in block or "def write_quote(" in block:
            answers.append(talk(app, f"sqlite:///{folder}/{len(answers)}.db"))

    assert answers == [(201, 404), (201, 204)]


def talk(app: ModuleType, database: str) -> tuple[int, int]:
    """How a comment is answered, and a quote in it."""
    engine = create_engine(database)
    app.User.metadata.create_all(engine)
    engine.dispose()
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with TestClient(app.create_app(database, envelope)) as client:
        client.post("/users", auth=ADA)
        client.post("/circles", auth=ADA, json={"book": "Middlemarch"})
        comment = client.post("/circles/1/comments", auth=ADA, json={"text": "Dorothea!"})
        quote = client.put("/comments/1/quote", auth=ADA, json={"text": "If we had a keen vision"})
    return comment.status_code, quote.status_code


def test_no_example_shows_where_a_page_cuts_it() -> None:
    """A page cuts an example at its code: a marker in brackets would stand in what a reader sees."""
    marked = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "examples").rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if re.match(r"\s*# \[", line)
    ]

    assert marked == []
