"""`sqlalchemy-envelope leakage` tells in words, JSON and a picture what indexes give away; a threshold fails
a build."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, String
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, KeyOwner, token_index
from sqlalchemy_envelope.cli.group import commands
from sqlalchemy_envelope.migration import Migrator
from tests.orm.indexes.leaking_models import ENVELOPE, Base, drawn, fill, zipf

NAMES = zipf(60)


class Texts(DeclarativeBase):
    pass


class Writer(KeyOwner, Texts):
    __tablename__ = "writers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))
    name_words = token_index("name", scope="server")
    name_index: Mapped[bytes | None] = mapped_column(BlindIndex("name", scope="server"))


class Nothing(DeclarativeBase):
    pass


@pytest.fixture
def public(sqlite_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application with a column by Zipf's law, and a file of public figures."""
    fill(sqlite_engine, name=drawn(NAMES, 600), town=drawn(NAMES, 600, 8))
    app = ModuleType("app_that_leaks")
    app.migrator = Migrator(sqlite_engine, ENVELOPE, Base)  # type: ignore[attr-defined]
    app.texts = Migrator(sqlite_engine, ENVELOPE, Texts)  # type: ignore[attr-defined]
    app.empty = Migrator(sqlite_engine, ENVELOPE, Nothing)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "app_that_leaks", app)
    file = tmp_path / "names.csv"
    file.write_text("".join(f"{name},{weight}\n" for name, weight in NAMES.items()))
    return file


def leakage(*arguments: str, app: str = "app_that_leaks:migrator") -> Result:
    return CliRunner().invoke(commands, ["leakage", "--app", app, *arguments])


def test_it_says_what_the_index_gives_away(public: Path) -> None:
    """The exit code is 1 above the threshold, and 0 below. No value is printed."""
    name = "records.name_index"
    above = leakage(name, "--public", f"{name}={public}")
    below = leakage(name, "--public", f"{name}={public}", "--threshold", "0.9")

    assert above.exit_code == 1, above.output
    assert "600 rows" in above.output
    assert "change something" in above.output
    assert below.exit_code == 0
    assert "nothing has to change" in below.output
    assert "town-" not in above.output


def test_every_index_is_told_as_json(public: Path) -> None:
    """Without names it is each index of the models: those without figures have the worst case."""
    ran = leakage("--json", "--public", f"records.name_index={public}")
    found = {one["index"]: one for one in json.loads(ran.output)}

    assert ran.exit_code == 1
    assert sorted(found) == [
        f"records.{name}_index" for name in ("both", "code", "first", "name", "own", "smokes", "town")
    ]
    assert found["records.name_index"]["recovered"] > found["records.name_index"]["guessed"]
    assert found["records.town_index"]["recovered"] is None
    assert found["records.smokes_index"]["rows"] == 0
    assert found["records.name_index"]["is_above"]


def test_it_works_with_an_asynchronous_engine(public: Path, sqlite_engine: Engine) -> None:
    """An application on asyncio has the same command."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{sqlite_engine.url.database}")
    sys.modules["app_that_leaks"].later = Migrator(engine, ENVELOPE, Base)  # type: ignore[attr-defined]
    ran = leakage("records.name_index", "--json", app="app_that_leaks:later")

    assert json.loads(ran.output)[0]["rows"] == 600


def test_it_draws_a_picture(public: Path, tmp_path: Path) -> None:
    """It is an SVG or a PNG, by the file's name, and shows no value."""
    pytest.importorskip("matplotlib")
    name = "records.name_index"
    for file in ("one.svg", "one.png"):
        leakage(name, "--public", f"{name}={public}", "--plot", str(tmp_path / file))

    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (tmp_path / "one.svg").read_text()
    assert "town-" not in (tmp_path / "one.svg").read_text()


def test_the_picture_needs_an_extra(public: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without matplotlib a line says what to install."""
    monkeypatch.delitem(sys.modules, "sqlalchemy_envelope.cli.leakage_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = leakage("--plot", str(tmp_path / "one.svg"))

    assert ran.exit_code == 2
    assert "sqlalchemy-envelope[plot]" in ran.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["records.name"], "there is no index 'records.name'"),
        (["--public", "names.csv"], "write INDEX=FILE"),
        (["--public", "records.x=names.csv"], "there is no index"),
        (["--public", "records.name_index=nowhere.csv"], "cannot be read"),
        (["--threshold", "2"], "not in the range"),
        (["--threshold", "nan"], "finite"),
        (["--plot", "picture.jpg"], ".svg or .png"),
    ],
)
def test_wrong_usage_is_told(public: Path, arguments: list[str], said: str) -> None:
    """The exit code is 2."""
    ran = leakage(*arguments)

    assert ran.exit_code == 2
    assert said in ran.output


def test_models_without_an_index(public: Path) -> None:
    """That is said, and is no success."""
    ran = leakage(app="app_that_leaks:empty")

    assert ran.exit_code == 2


@pytest.mark.usefixtures("public")
def test_token_indexes_are_not_measured(sqlite_engine: Engine) -> None:
    """A run without names says so in a line beside the report, and a run with their name is refused."""
    Texts.metadata.create_all(sqlite_engine)
    ran = leakage("--json", app="app_that_leaks:texts")
    named = leakage("writers.name_words", app="app_that_leaks:texts")

    assert [one["index"] for one in json.loads(ran.stdout)] == ["writers.name_index"]
    assert ran.stderr == "Token indexes are not measured: writers.name_words.\n"
    assert named.exit_code == 2
    assert "writers.name_words is a token index. Token indexes are not measured." in one_line(named.output)


@pytest.mark.usefixtures("public")
def test_a_column_that_the_database_lacks_is_named(sqlite_engine: Engine) -> None:
    """As before the revision that adds the index."""
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE writers (id INTEGER PRIMARY KEY, name BLOB)")

    ran = leakage("writers.name_index", app="app_that_leaks:texts")

    assert ran.exit_code == 4
    assert "The database has no column writers.name_index: create it first" in ran.output


def one_line(text: str) -> str:
    """What a terminal broke into lines."""
    return " ".join(text.replace("\u2502", " ").split())
