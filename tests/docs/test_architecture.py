"""docs/architecture.md is true: its walks name the functions that are called, in their order, and its
pictures are the contracts that hold the rooms apart."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docs.walks import walks

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CALLS = walks()


def section(heading: str) -> str:
    """The text below a heading of the third level."""
    return re.split(r"^##+ ", PAGE.split(f"### {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def named(text: str) -> list[str]:
    """The functions and classes that a text names."""
    return re.findall(r"`((?:orm|keys|crypto|migration)(?:\.\w+){2,})`", text)


@pytest.mark.parametrize("heading", CALLS)
def test_a_walk_is_what_is_called(heading: str) -> None:
    """Each function that a walk names is called, after the ones that are named before it."""
    calls = iter(enumerate(CALLS[heading]))
    names = named(section(heading))
    called = set(CALLS[heading])
    for name in names:
        found = next((at for at, call in calls if call in (name, f"{name}.__init__")), None)
        if found is None:
            kind = "is called earlier" if {name, f"{name}.__init__"} & called else "is not called"
            last = name.rpartition(".")[2]
            alike = sorted(call for call in called if call.rpartition(".")[2] == last)
            pytest.fail(f"In '{heading}', {name} {kind}. Functions of this name that are called: {alike}")

    assert len(names) >= 10


def rooms(caption: str) -> Iterator[set[str]]:
    """The names of a drawn picture, row by row, from the top."""
    picture = PAGE.split(f"```{{drawn}} {caption}\n", 1)[1].split("```", 1)[0]
    for row in picture.splitlines():
        yield set(re.findall(r"\[(\w+)[:!]", row))


@pytest.mark.parametrize(
    ("contract", "caption"),
    [
        ("layers", "The rooms of the package: each may use any room below it, and none above"),
        ("orm-rooms", "The rooms of orm"),
        ("migration-rooms", "The rooms of migration"),
    ],
)
def test_a_picture_is_the_contract(contract: str, caption: str) -> None:
    """The rows of a picture are the layers that import-linter holds."""
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = {one["id"]: one for one in settings["tool"]["importlinter"]["contracts"]}
    package = ROOT / "sqlalchemy_envelope"
    layers = [
        {
            room.strip("() ")
            for room in layer.split("|")
            # One in brackets may be missing.
            if "(" not in room or any(package.glob(f"{room.strip('() ')}*"))
        }
        for layer in contracts[contract]["layers"]
    ]

    assert [layer for layer in layers if layer] == list(rooms(caption))


def test_each_module_that_is_named_is_there() -> None:
    """Every module, class and function of the package that the page names is where the page says."""
    rooms_of_package = "orm|keys|crypto|migration|campaign|alembic|cli"
    names = set(re.findall(rf"`((?:{rooms_of_package})(?:\.\w+)+)`", PAGE))
    missing = []
    for name in names:
        path, parts = ROOT / "sqlalchemy_envelope", name.split(".")
        while parts and (path / parts[0]).is_dir():
            path /= parts.pop(0)
        if parts and (path / f"{parts[0]}.py").is_file():
            path /= f"{parts.pop(0)}.py"
        text = path.read_text("utf-8") if path.is_file() else ""
        missing += [name for part in parts if not re.search(rf"\b{part}\b", text)]

    assert len(names) > 100
    assert missing == []
