"""The pages keep what they promise a reader: whole imports, words that a search finds, counted costs."""

import ast
import builtins
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


@pytest.mark.parametrize("room", ["how-to", "tutorial", "explanation"])
def test_each_page_is_in_the_toctree(room: str) -> None:
    """A reader finds every page in the navigation, and every task on the page of tasks."""
    index = (DOCS / "index.md").read_text("utf-8")
    listed = re.findall(rf"^{room}/(\S+)$", index, flags=re.MULTILINE)
    pages = {page.stem for page in (DOCS / room).glob("*.md")}
    tasks = set(re.findall(r"\]\(([\w-]+)\.md", (DOCS / "how-to" / "index.md").read_text("utf-8")))

    assert sorted(pages) == sorted(listed)
    assert pages - {"index"} <= tasks or room != "how-to"


def test_each_public_name_is_in_the_reference() -> None:
    """Whatever can be imported from the package has its entry on the page of the API."""
    page = (DOCS / "reference" / "api.md").read_text("utf-8")
    entries = re.findall(r"^\.\. auto\w+:: (?:\w+\.)*(\w+)", page, flags=re.MULTILINE)

    assert [
        name for name in sqlalchemy_envelope.__all__ if name not in entries and name != "__version__"
    ] == []
    assert [name for name in entries if entries.count(name) > 1 and name in sqlalchemy_envelope.__all__] == []


LIFE_OF_A_KEY = "log-in stay-logged-in secrets recover pepper escrow emergency erase rotate"


@pytest.mark.parametrize("name", LIFE_OF_A_KEY.split())
def test_what_a_block_takes_for_given_is_explained(name: str) -> None:
    """A name that a page's code uses was made in code that the reader sees, or is explained before it. It is
    not made in an invisible block alone."""
    text = (DOCS / "how-to" / f"{name}.md").read_text("utf-8")
    text = re.sub(r"<!---.*?-->", "", text, flags=re.DOTALL)
    known, told, missing = set(dir(builtins)), "", []
    for at, part in enumerate(re.split(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)):
        if at % 2 == 0:
            told += part
            continue
        nodes = list(ast.walk(ast.parse(part)))
        known |= {made for node in nodes for made in _made_by(node)}
        used = {node.id for node in nodes if isinstance(node, ast.Name)}
        missing += sorted(one for one in used - known if f"`{one}`" not in told)

    assert missing == []


def _made_by(node: ast.AST) -> list[str]:
    """The names that a piece of code makes."""
    match node:
        case ast.Import() | ast.ImportFrom():
            return [one.asname or one.name.partition(".")[0] for one in node.names]
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return [node.name]
        case ast.ExceptHandler(name=str(name)) | ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()):
            return [name]
    return []


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
