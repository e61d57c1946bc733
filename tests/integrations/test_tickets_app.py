"""The example whose users stay logged in: with cookies, and without the secret after the log-in."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, delete, text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from examples import tickets_app as example
from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring, enforce_foreign_keys

ADA = {"email": "ada@example.org", "secret": "correct horse battery staple"}
BEN = {"email": "ben@example.org", "secret": "another one, of ben"}
NOBODY = {"email": "nobody@example.org", "secret": "correct horse battery staple"}
HOME, ELSEWHERE = "203.0.113.7", "198.51.100.9"


def visitor(app: example.FastAPI, address: str = HOME, name: str = "browser") -> TestClient:
    """A browser in which nobody has logged in."""
    headers = {"User-Agent": name}
    return TestClient(app, base_url="https://notes.example", headers=headers, client=(address, 50_000))


def browser(
    app: example.FastAPI, user: dict[str, str], name: str = "browser", address: str = HOME
) -> TestClient:
    """A browser in which a user has logged in."""
    client = visitor(app, address, name)
    assert client.post("/log-in", json=user).status_code == 200
    return client


class Notes(NamedTuple):
    """The application, and the recovery code of each user."""

    app: example.FastAPI
    codes: dict[str, str]
    engine: Engine
    envelope: Envelope


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Notes]:
    envelope = example.make_envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32])
    )
    file = tmp_path / "notes.db"
    app = example.create_app(f"sqlite+aiosqlite:///{file}", envelope, session_key="x" * 32)
    engine = create_engine(f"sqlite:///{file}")
    enforce_foreign_keys(engine)
    with TestClient(app, base_url="https://notes.example") as client:
        answers = {user["email"]: client.post("/sign-up", json=user) for user in (ADA, BEN)}
        codes = {name: one.json()["recovery code"] for name, one in answers.items()}
        yield Notes(app, codes, engine, envelope)
    engine.dispose()


@pytest.fixture
def app(notes: Notes) -> example.FastAPI:
    return notes.app


def test_a_browser_stays_logged_in(app: example.FastAPI) -> None:
    """Each user writes and reads notes, and sees nobody else's."""
    ada, ben = browser(app, ADA), browser(app, BEN)
    for client, body in ((ada, "ada's note"), (ben, "ben's note")):
        assert client.post("/notes", json={"body": body}).status_code == 201

    assert ada.get("/notes").json() == ["ada's note"]
    assert ben.get("/notes").json() == ["ben's note"]


def test_the_email_is_found_and_not_stored(notes: Notes) -> None:
    """Users log in by their email, in any case, of which nobody has a second account; the database has no
    address."""
    loud = {**ADA, "email": ADA["email"].upper()}
    assert browser(notes.app, loud).get("/export").json()["email"] == ADA["email"]
    for user in (ADA, loud):
        again = {**user, "secret": "other words of ada"}
        assert visitor(notes.app).post("/sign-up", json=again).status_code == 409
    assert visitor(notes.app).post("/sign-up", json={**NOBODY, "email": "nobody"}).status_code == 422
    assert visitor(notes.app).post("/log-in", json={**NOBODY, "email": "nobody"}).status_code == 401
    with notes.engine.connect() as connection:
        stored = [value for row in connection.execute(text("SELECT * FROM users")) for value in row]
    (database,) = Path(str(notes.engine.url.database)).parent.glob("*.db")

    assert not any("example" in str(value) for value in stored)
    assert b"ada@" not in database.read_bytes()


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
    listed = {one["browser"]: one for one in ada.get("/devices").json()}
    assert ada.delete(f"/devices/{listed['phone']['id']}").status_code == 204

    assert {name: one["this"] for name, one in listed.items()} == {"browser": True, "phone": False}
    assert [client.get("/notes").status_code for client in (ada, phone)] == [200, 401]


def test_log_out_all_others(app: example.FastAPI) -> None:
    """This browser stays logged in, and so does everybody else."""
    ada, phone, tablet, ben = (
        browser(app, ADA),
        browser(app, ADA, "phone"),
        browser(app, ADA, "tablet"),
        browser(app, BEN),
    )
    assert ada.post("/devices/log-out-others").status_code == 204

    assert [one.get("/notes").status_code for one in (ada, phone, tablet, ben)] == [200, 401, 401, 200]


@pytest.mark.parametrize("secret", ["wrong", "", "a\nb", "x" * 5_000])
@pytest.mark.parametrize("user", [ADA, NOBODY])
def test_nobody_is_let_in_otherwise(app: example.FastAPI, user: dict[str, str], secret: str) -> None:
    """A wrong secret, an empty one, one that cannot be a secret: one answer, whether the account is there or
    not."""
    client = visitor(app)
    answer = client.post("/log-in", json={**user, "secret": secret})

    assert (answer.status_code, answer.json()) == (401, {"detail": example.WRONG})
    assert client.get("/notes").status_code == 401


def test_a_sign_up_that_is_refused(app: example.FastAPI) -> None:
    """An email that is taken, a weak secret, none: told as such, and nothing is left behind."""
    client = visitor(app)
    answers = [client.post("/sign-up", json=user) for user in (ADA, {**NOBODY, "secret": "short"})]
    empty = client.post("/sign-up", json={**NOBODY, "secret": ""})

    assert [one.status_code for one in (*answers, empty)] == [409, 422, 422]
    assert answers[1].json() == {"detail": "Take 15 characters or more."}
    assert client.post("/log-in", json=ADA).status_code == 200
    assert client.post("/sign-up", json=NOBODY).status_code == 201


@pytest.mark.parametrize("user", [ADA, NOBODY])
def test_guesses_slow_down(app: example.FastAPI, user: dict[str, str]) -> None:
    """A stranger has to wait after five guesses, whether the account is there or not. Its owner does not
    wait at home, neither to log in nor to confirm something with the secret."""
    ada, stranger = browser(app, ADA), visitor(app, ELSEWHERE)
    guesses = [stranger.post("/log-in", json={**user, "secret": f"guess {at}"}) for at in range(6)]

    assert [one.status_code for one in guesses] == [401] * 5 + [429]
    assert guesses[5].headers["Retry-After"] == "1"
    assert visitor(app).post("/log-in", json=ADA).status_code == 200
    assert ada.post("/ways-in/acknowledge", json={"secret": ADA["secret"]}).status_code == 204


def test_a_reset(notes: Notes) -> None:
    """The code gives a new secret and a new code, and logs every device out. The used code opens nothing."""
    ada, new = browser(notes.app, ADA), "the new words of ada"
    assert ada.post("/notes", json={"body": "before"}).status_code == 201
    given = {"email": ADA["email"], "recovery_code": notes.codes[ADA["email"]].lower(), "new": new}
    answer = visitor(notes.app).post("/reset", json=given)

    assert answer.status_code == 200
    assert ada.get("/notes").status_code == 401
    assert visitor(notes.app).post("/log-in", json=ADA).status_code == 401
    assert browser(notes.app, {**ADA, "secret": new}).get("/notes").json() == ["before"]
    assert visitor(notes.app).post("/reset", json=given).status_code == 401
    again = {**given, "recovery_code": answer.json()["recovery code"]}
    assert visitor(notes.app).post("/reset", json=again).status_code == 200


@pytest.mark.parametrize("new", ["the new words of ada", "short", ""])
@pytest.mark.parametrize("code", ["of ben", "1234", ""])
def test_a_reset_tells_not_who_has_an_account(notes: Notes, code: str, new: str) -> None:
    """A code that is not right, or none: one answer, whether the account is there or not."""
    typed = notes.codes[BEN["email"]] if code == "of ben" else code
    answers = [
        visitor(notes.app).post("/reset", json={"email": user["email"], "recovery_code": typed, "new": new})
        for user in (ADA, NOBODY)
    ]

    assert len({(one.status_code, one.text) for one in answers}) == 1
    assert answers[0].status_code == (401 if code == "of ben" else 422)


def test_a_weak_new_secret_is_told_to_who_has_the_code(notes: Notes) -> None:
    """And the code stays."""
    given = {"email": ADA["email"], "recovery_code": notes.codes[ADA["email"]], "new": "short"}
    weak = visitor(notes.app).post("/reset", json=given)

    assert (weak.status_code, weak.json()) == (422, {"detail": "Take 15 characters or more."})
    assert visitor(notes.app).post("/reset", json={**given, "new": "x" * 15}).status_code == 200


def test_was_this_you(app: example.FastAPI) -> None:
    """What was printed at sign-up is acknowledged; a code that was added later is asked about at the next
    log-in, until the user says yes with the secret, or takes it out. That logs the other devices out."""
    confirm = {"secret": ADA["secret"]}
    ada = browser(app, ADA)
    assert visitor(app).post("/log-in", json=ADA).json() == {"was this you?": []}
    assert ada.post("/ways-in/recovery-code", json={"secret": "wrong"}).status_code == 401
    assert ada.post("/ways-in/recovery-code", json=confirm).status_code == 201
    (asked,) = visitor(app).post("/log-in", json=ADA).json()["was this you?"]
    assert ada.post("/ways-in/acknowledge", json=confirm).status_code == 204
    after = visitor(app).post("/log-in", json=ADA).json()
    phone = browser(app, ADA, "phone")
    (later,) = (one for one in ada.get("/ways-in").json()["ways"] if one["label"] == "printed later")
    assert ada.post(f"/ways-in/{later['id']}/remove", json=confirm).status_code == 204

    assert (asked["kind"], asked["label"]) == ("recovery", "printed later")
    assert after == {"was this you?": []}
    assert {one["label"] for one in ada.get("/ways-in").json()["ways"]} == {None, "printed at sign-up"}
    assert phone.get("/notes").status_code == 401


def test_a_new_secret(app: example.FastAPI) -> None:
    """It needs the old one, logs the other devices out, and this one stays logged in."""
    ada, phone, new = browser(app, ADA), browser(app, ADA, "phone"), "the new words of ada"
    assert ada.post("/secret", json={"secret": "wrong", "new": new}).status_code == 401
    assert ada.post("/secret", json={"secret": ADA["secret"], "new": "short"}).status_code == 422
    assert ada.post("/secret", json={"secret": ADA["secret"], "new": new}).status_code == 204

    assert [one.get("/notes").status_code for one in (ada, phone)] == [200, 401]
    assert browser(app, {**ADA, "secret": new}).get("/notes").status_code == 200


def test_who_forgot_everything_and_is_logged_in_somewhere(notes: Notes) -> None:
    """What support can do: the device that is logged in downloads everything; the account is deleted, and
    made again with a new secret."""
    ada, new = browser(notes.app, ADA), {**ADA, "secret": "the new words of ada"}
    ada.post("/notes", json={"body": "before"})
    kept = ada.get("/export").json()
    with Session(notes.engine) as session:  # the support's own tool
        notes.envelope.attach(session)
        session.execute(delete(example.User).where(example.User.email == ADA["email"]))
        session.commit()
    assert ada.get("/export").status_code == 401
    assert visitor(notes.app).post("/sign-up", json=new).status_code == 201
    again = browser(notes.app, new)
    for body in kept["notes"]:
        again.post("/notes", json={"body": body})

    assert again.get("/export").json() == kept
