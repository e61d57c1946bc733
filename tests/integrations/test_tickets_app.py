"""The example whose users stay logged in: with cookies, and without the secret after the log-in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from examples import tickets_app as example
from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring

ADA = {"email": "ada@example.org", "secret": "correct horse battery staple"}
BEN = {"email": "ben@example.org", "secret": "another one, of ben"}


def browser(app: example.FastAPI, user: dict[str, str], name: str = "browser") -> TestClient:
    """A browser in which a user has logged in."""
    client = TestClient(app, base_url="https://notes.example", headers={"User-Agent": name})
    assert client.post("/log-in", json=user).status_code == 204
    return client


@pytest.fixture
def app(tmp_path: Path) -> Iterator[example.FastAPI]:
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    app = example.create_app(f"sqlite+aiosqlite:///{tmp_path / 'notes.db'}", envelope, session_key="x" * 32)
    with TestClient(app, base_url="https://notes.example") as client:
        for user in (ADA, BEN):
            assert client.post("/sign-up", json=user).status_code == 201
        yield app


def test_a_browser_stays_logged_in(app: example.FastAPI) -> None:
    """Each user writes and reads notes, and sees nobody else's."""
    ada, ben = browser(app, ADA), browser(app, BEN)
    for client, body in ((ada, "ada's note"), (ben, "ben's note")):
        assert client.post("/notes", json={"body": body}).status_code == 201

    assert ada.get("/notes").json() == ["ada's note"]
    assert ben.get("/notes").json() == ["ben's note"]


def test_log_out(app: example.FastAPI) -> None:
    """After the log-out, the cookie from before opens nothing; another browser of the same user goes on."""
    ada, phone = browser(app, ADA), browser(app, ADA, "phone")
    cookie = dict(ada.cookies)
    assert ada.post("/log-out").status_code == 204
    thief = TestClient(app, base_url="https://notes.example", cookies=cookie)

    assert [client.get("/notes").status_code for client in (ada, thief, phone)] == [401, 401, 200]
    assert "session" not in ada.cookies


def test_your_devices(app: example.FastAPI) -> None:
    """A lost phone is logged out from another browser."""
    ada, phone = browser(app, ADA), browser(app, ADA, "phone")
    listed = {one["browser"]: one["id"] for one in ada.get("/devices").json()}
    assert ada.delete(f"/devices/{listed['phone']}").status_code == 204

    assert set(listed) == {"browser", "phone"}
    assert [client.get("/notes").status_code for client in (ada, phone)] == [200, 401]


def test_nobody_is_let_in_otherwise(app: example.FastAPI) -> None:
    """A wrong secret, an unknown email, no cookie: 401."""
    client = TestClient(app, base_url="https://notes.example")
    for given in ({**ADA, "secret": "wrong"}, {**ADA, "email": "nobody@example.org"}):
        assert client.post("/log-in", json=given).status_code == 401

    assert client.get("/notes").status_code == 401
