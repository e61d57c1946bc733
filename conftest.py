"""The Python in README.md and docs/ is run as tests: each page from top to bottom, in one namespace."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/tutorial/*.md", "docs/how-to/*.md"],
).pytest()
