"""The Python in README.md and docs/ is run as tests: each page from top to bottom, in one namespace."""

from typing import Any
from weakref import WeakSet

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
