"""The Python in README.md and docs/ is run as tests: each page from top to bottom, in one namespace. And what
is collected at all: everything with `--all`; else neither long repetitions nor, where the database makes no
difference, PostgreSQL.
"""

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from sqlalchemy_envelope.orm.current.policy import ENVELOPES

_others: list[Any] = []


def setup(_: dict[str, Any]) -> None:
    """A page is an application of its own: the envelopes that other tests keep are none of its process."""
    _others.append(ENVELOPES.policies)
    ENVELOPES.policies = WeakSet()


def teardown(_: dict[str, Any]) -> None:
    """Put them back."""
    ENVELOPES.policies = _others.pop()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/index.md", "docs/tutorial/*.md", "docs/how-to/*.md"],
    setup=setup,
    teardown=teardown,
).pytest()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run all repetitions, and all tests on all databases")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """What asks for `both_lines` alone imports no file without that word."""
    asked = config.option.markexpr.startswith("both_lines") and collection_path.is_file()
    return True if asked and "both_lines" not in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only `--all` runs."""
    if config.getoption("all"):
        return
    left_out = [item for item in items if item.get_closest_marker("thorough") or _is_double(item)]
    config.hook.pytest_deselected(items=left_out)
    out = set(left_out)
    items[:] = [item for item in items if item not in out]


def _is_double(item: pytest.Item) -> bool:
    """Whether a test that says the same of every database would run on another than SQLite."""
    call = getattr(item, "callspec", None)
    if call is None or not item.get_closest_marker("any_database"):
        return False
    return any(value in ("postgres", "asyncpg") for value in call.params.values() if isinstance(value, str))
