"""Messages are English: one row, two rows, an Engine."""

import re
from pathlib import Path

import sqlalchemy_envelope
from sqlalchemy_envelope.words import counted, with_article


def test_counted_nouns() -> None:
    """A noun is singular after one and nothing else, and a verb goes along."""
    rows = [counted(count, "row") for count in (0, 1, 1200)]
    owners = [counted(count, "owner has", "owners have") for count in (1, 2)]

    assert rows == ["0 rows", "1 row", "1,200 rows"]
    assert owners == ["1 owner has", "2 owners have"]


def test_articles() -> None:
    """The article goes by the first letter."""
    found = [with_article(name) for name in ("Engine", "int", "Migrator", "User")]

    assert found == ["an Engine", "an int", "a Migrator", "a User"]


def test_no_message_counts_by_hand() -> None:
    """No text of the package picks a plural itself."""
    by_hand = re.compile(r"""["']s["'] if |if count [!=]= 1 else ["']s|\(s\)""")
    folder = Path(sqlalchemy_envelope.__file__).parent
    found = [path.name for path in folder.rglob("*.py") if by_hand.search(path.read_text(encoding="utf-8"))]

    assert found == []
