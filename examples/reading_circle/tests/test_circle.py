"""The application, asked over HTTP, on a database that the migrations made."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from fastapi.testclient import TestClient

from circle.app import create_app
from sqlalchemy_envelope import Envelope, KdfProfile

ADA, BOB, EVE = (("ada", "ada's secret"), ("bob", "bob's secret"), ("eve", "eve's secret"))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "circle.db"


@pytest.fixture
def migrations(database: Path) -> Config:
    config = Config(Path(__file__).parent.parent / "alembic.ini")
    config.set_main_option("sqlalchemy.url", f"sqlite:///{database}")
    return config


@pytest.fixture
def client(database: Path, migrations: Config) -> Iterator[TestClient]:
    command.upgrade(migrations, "head")
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())  # a real derivation takes too long here
    with TestClient(create_app(f"sqlite:///{database}", envelope)) as client:
        for user in (ADA, BOB, EVE):
            assert client.post("/users", auth=user).status_code == 201
        yield client


def test_a_wrong_secret_is_refused(client: TestClient) -> None:
    """A wrong secret and an unknown user get one and the same answer."""
    wrong = client.get("/diary", auth=("ada", "bob's secret"))
    unknown = client.get("/diary", auth=("nobody", "bob's secret"))

    assert (wrong.status_code, wrong.json()) == (401, {"detail": "Unknown email or wrong secret."})
    assert (unknown.status_code, unknown.json()) == (wrong.status_code, wrong.json())


def test_a_secret_in_any_alphabet(client: TestClient) -> None:
    """A secret may have letters that ASCII has not. Without credentials nobody logs in."""
    zoe = ("zoe", "the café at the river".encode())

    assert client.post("/users", auth=zoe).status_code == 201
    assert client.get("/diary", auth=zoe).status_code == 200
    assert client.get("/diary").status_code == 401


def test_members_read_and_nobody_else_does(client: TestClient) -> None:
    """A new member reads what was written before. Somebody who is no member gets 423."""
    client.post("/circles", auth=ADA, json={"book": "Middlemarch"})
    client.post("/circles/1/comments", auth=ADA, json={"text": "Dorothea!"})
    client.post("/circles/1/members", auth=ADA, json={"email": "bob"})

    assert client.get("/circles/1/comments", auth=BOB).json() == ["Dorothea!"]
    assert client.get("/circles/1/comments", auth=EVE).status_code == 423


def test_a_member_is_added_once(client: TestClient) -> None:
    """Adding a member again is a plain answer, also when a member adds herself."""
    client.post("/circles", auth=ADA, json={"book": "Middlemarch"})
    client.post("/circles/1/members", auth=ADA, json={"email": "bob"})
    again = [client.post("/circles/1/members", auth=ADA, json={"email": who}) for who in ("bob", "ada")]

    assert [answer.status_code for answer in again] == [409, 409]
    assert again[0].json() == {"detail": "This user is a member already."}


def test_a_quote_is_the_circles(client: TestClient) -> None:
    """A member reads the quote in a comment. Somebody who is no member gets 423."""
    client.post("/circles", auth=ADA, json={"book": "Middlemarch"})
    client.post("/circles/1/comments", auth=ADA, json={"text": "Dorothea!"})
    client.put("/comments/1/quote", auth=ADA, json={"text": "If we had a keen vision"})

    assert client.get("/comments/1/quote", auth=ADA).json() == "If we had a keen vision"
    assert client.get("/comments/1/quote", auth=EVE).status_code == 423


def test_a_member_who_left_reads_nothing_new(client: TestClient) -> None:
    """After Bob leaves, a comment is under a key that he never had."""
    client.post("/circles", auth=ADA, json={"book": "Middlemarch"})
    client.post("/circles/1/members", auth=ADA, json={"email": "bob"})
    assert client.delete("/circles/1/members/me", auth=BOB).status_code == 204
    client.post("/circles/1/comments", auth=ADA, json={"text": "Is he gone?"})

    assert client.get("/circles/1/comments", auth=ADA).json() == ["Is he gone?"]
    assert client.get("/circles/1/comments", auth=BOB).status_code == 423


def test_the_file_holds_no_plaintext(client: TestClient, database: Path) -> None:
    """What Ada wrote is in no page of the database's file."""
    client.put("/diary", auth=ADA, json={"text": "Casaubon is a bore."})

    assert client.get("/diary", auth=ADA).json() == "Casaubon is a bore."
    assert b"Casaubon" not in database.read_bytes()


def test_the_second_revision_keeps_what_is_there(database: Path, migrations: Config) -> None:
    """The models and the revisions agree, and the new column is added to rows that are there already."""
    command.upgrade(migrations, "0001")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "INSERT INTO circles VALUES (1, ?)", [b"\x01" + bytes(44)]
        )  # as a ciphertext looks
    connection.close()
    command.upgrade(migrations, "head")
    command.check(migrations)
