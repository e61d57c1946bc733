"""The pages keep what they promise a reader: whole imports, words that a search finds, counted costs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import sqlalchemy
import sqlalchemy.orm

import sqlalchemy_envelope
from benchmarks import designs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUN = [ROOT / "README.md", DOCS / "index.md", *DOCS.glob("tutorial/*.md"), *DOCS.glob("how-to/*.md")]
PUBLIC = {
    name
    for of in (sqlalchemy, sqlalchemy.orm, sqlalchemy_envelope)
    for name, what in vars(of).items()
    if not name.startswith("_") and not isinstance(what, ModuleType)
}


def blocks(page: Path) -> Iterator[ast.Module]:
    """The Python that a reader sees on a page."""
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL):
        yield ast.parse(code)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_what_is_used_was_imported(page: Path) -> None:
    """A name of SQLAlchemy or of this library is imported on the page, where the reader sees it, before it is
    used."""
    known: set[str] = set()
    missing: list[str] = []
    for block in blocks(page):
        for node in ast.walk(block):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                known |= {one.asname or one.name for one in node.names}
            elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                known.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                known.add(node.id)
        used = {node.id for node in ast.walk(block) if isinstance(node, ast.Name)}
        missing += sorted((used & PUBLIC) - known)

    assert missing == []


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_tests_are_whole(page: Path) -> None:
    """A block for a file of tests imports pytest itself. What it calls `test_...` asserts something, since
    pytest collects each function of that name."""
    for block in blocks(page):
        nodes = list(ast.walk(block))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        imported = {one.name for node in nodes if isinstance(node, ast.Import) for one in node.names}
        tests = [
            node for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]

        assert "pytest" not in names or "pytest" in imported
        assert all("raises" in ast.dump(test) or "Assert(" in ast.dump(test) for test in tests)


WORDS = """
password forgot reset recovery logout login session token search email index
test pytest fixture performance slow fast forgotten removing restore leave deadlock audit backup file
"""


@pytest.mark.parametrize("word", WORDS.split())
def test_a_search_finds(word: str) -> None:
    """What a team types into the search is a word of a heading or of an index entry."""
    found = [
        line
        for page in DOCS.rglob("*.md")
        for line in page.read_text("utf-8").splitlines()
        if re.match(r"#+ |```\{index\}", line) and re.search(rf"\b{word}", line, re.IGNORECASE)
    ]

    assert found != []


@pytest.mark.parametrize(
    "query",
    [
        "password reset",
        "forgotten password",
        "login session",
        "search email",
        "blind index",
        "slow tests",
        "run tests fast",
        "removing a member",
        "restore a backup",
    ],
)
def test_a_search_for_two_words_finds(query: str) -> None:
    """The search of the built pages finds a page that has all words of a query."""
    texts = [set(re.findall(r"\w+", page.read_text("utf-8").lower())) for page in DOCS.rglob("*.md")]

    assert any(set(query.split()) <= text for text in texts)


def test_the_counts_of_the_designs() -> None:
    """What the page says that a design costs in statements and key rows is what is counted."""
    page = (DOCS / "how-to" / "choose-a-design.md").read_text("utf-8")
    told = {}
    for line in page.splitlines():
        step, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if step in designs.STEPS:
            told[step] = (cells[0], cells[3])

    assert designs.counts() == told
