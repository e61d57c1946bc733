"""An application that was written for one master key, under server mode over real HTTP: its start-up code
alone was changed, and each user's rows are under keys of their own.

uvicorn runs in a thread of this process, with asynchronous and synchronous handlers on many threads.
"""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import uvicorn
from fastapi import FastAPI
from sqlalchemy import URL, Engine, create_engine, event, select
from sqlalchemy.orm import Session

from examples import server_keys_app as example
from examples.server_keys_app import Note, User, create_app
from sqlalchemy_envelope import ConfigurationError, LockedError, ServerKeyring
from sqlalchemy_envelope.orm.current.context import NOTHING

USERS = 16
KEYS = example.Base.metadata.tables["users_key"]
SLOTS = example.Base.metadata.tables["users_keyslot"]


@pytest.fixture
def server_key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The operator's key, in the environment."""
    key = ServerKeyring.generate_key()
    monkeypatch.setenv("ENVELOPE_SERVER_KEYS", key)
    return key


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.backend)])
def databases(request: pytest.FixtureRequest) -> tuple[URL, URL]:
    """The address of a fresh database, for the synchronous and for the asynchronous driver."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    if request.param == "sqlite":
        with create_engine(url).connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        return url.set(drivername="sqlite+pysqlite"), url.set(drivername="sqlite+aiosqlite")
    return url.set(drivername="postgresql+psycopg"), url.set(drivername="postgresql+asyncpg")


@pytest.fixture
def app(server_key: str, databases: tuple[URL, URL]) -> FastAPI:
    """The example as it is."""
    return create_app(*databases)


@contextmanager
def serve(app: Any) -> Iterator[str]:
    """uvicorn in a thread, on the loopback interface; its address."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application being served."""
    with serve(app) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            (await client.get("/openapi.json")).raise_for_status()  # its start-up code has run
            yield client


def test_only_the_start_up_code_knows_of_keys() -> None:
    """Between the models and the start-up code the example says nothing of envelopes, keys or unlocking."""
    source = Path(example.__file__).read_text(encoding="utf-8")
    handlers = source.split("class SignUp")[1].split("def create_app")[0].lower()

    for word in ("envelope", "unlock", "key", "enroll", "secret", "server_mode"):
        assert word not in handlers


async def test_users_of_sync_and_async_handlers(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Interleaved users on many threads write and read their own; at rest each is under keys of their own."""

    async def one(number: int) -> list[Any]:
        prefix = "/sync" if number % 2 else ""
        other = "" if number % 2 else "/sync"
        made = await client.post(
            f"{prefix}/users",
            json={"email": f"{number}@example.org", "phone": f"+{number}", "notes": [f"first {number}"]},
        )
        assert made.status_code == 201, made.text
        user = made.json()["id"]
        for turn in range(3):
            path = f"{(prefix, other)[turn % 2]}/users/{user}/notes"
            answer = await client.post(path, json={"body": f"note {number} {turn}", "stars": turn})
            assert answer.status_code == 201, answer.text
        changed = await client.put(
            f"/sync/notes/{answer.json()['id']}", json={"body": f"changed {number}", "stars": 5}
        )
        assert changed.json() == {"body": f"changed {number}", "stars": 5}
        lists = [(await client.get(f"{path}/users/{user}/notes")).json() for path in ("", "/sync")]
        return [user, (await client.get(f"/users/{user}")).json(), *lists]

    found = await asyncio.gather(*(one(number) for number in range(USERS)))

    for number, (_, user, by_async, by_sync) in enumerate(found):
        expected = [f"first {number}", f"note {number} 0", f"note {number} 1", f"changed {number}"]
        assert {"email": f"{number}@example.org", "phone": f"+{number}"} == user
        assert expected == by_async == by_sync
    with app.state.engine.connect() as connection:
        owners = connection.execute(
            select(KEYS.c.owner_id, KEYS.c.key_id).where(KEYS.c.purpose == "data")
        ).all()
        notes = sa.table("notes", sa.column("user_id"), sa.column("body", sa.LargeBinary))
        stored = connection.execute(select(notes.c.user_id, notes.c.body)).all()
    assert len({owner for owner, _ in owners}) == len(owners) == USERS
    keys = {owner: key.bytes for owner, key in owners}
    assert len(stored) == 4 * USERS
    assert all(bytes(body)[1:17] == keys[owner] and b"note" not in bytes(body) for owner, body in stored)


async def test_the_export_of_everybody(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A stream over all users' notes opens every one, with no query for a row."""
    made = [
        client.post("/users", json={"email": f"{n}@example.org", "notes": [f"{n} {i}" for i in range(5)]})
        for n in range(USERS)
    ]
    for one in made:
        assert (await one).status_code == 201
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        answer = await client.get("/export")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    lines = [json.loads(line) for line in answer.text.splitlines()]

    assert [(f"{n}@example.org", f"{n} {i}") for n in range(USERS) for i in range(5)] == [
        (line["email"], line["body"]) for line in lines
    ]
    assert len(sent) <= 8


async def test_users_from_before_get_keys_at_their_first_write(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    """Users whose rows are older than the library, and have no keys, are served like the others."""
    with app.state.engine.begin() as connection:
        connection.execute(
            sa.insert(User.__table__),
            [{"id": n, "email": f"old {n}"} for n in range(1, 21)],  # type: ignore[arg-type]
        )
    answer = await client.post("/sync/broadcast", json={"body": "welcome"})

    assert answer.json() == 20
    lists = await asyncio.gather(*(client.get(f"/users/{n}/notes") for n in range(1, 21)))
    assert [one.json() for one in lists] == [["welcome"]] * 20
    with app.state.engine.connect() as connection:
        assert connection.scalar(select(sa.func.count()).select_from(SLOTS)) == 20


async def test_a_refused_request_leaves_nothing(client: httpx.AsyncClient, app: FastAPI) -> None:
    """A taken email is refused with its keys; the next request goes on."""
    assert (await client.post("/users", json={"email": "ada", "phone": "1"})).status_code == 201
    assert (await client.post("/users", json={"email": "ada", "phone": "2"})).status_code == 409
    assert (await client.post("/users", json={"email": "ben", "phone": "3"})).status_code == 201
    with app.state.engine.connect() as connection:
        assert connection.scalar(select(sa.func.count()).select_from(KEYS)) == 4
    assert (await client.get("/users/1")).json() == {"email": "ada", "phone": "1"}


async def test_a_user_who_leaves_takes_the_keys_along(client: httpx.AsyncClient, app: FastAPI) -> None:
    """Deleting a user deletes its keys, and one who comes later, perhaps with the same id, gets others."""
    ada = (await client.post("/users", json={"email": "ada", "notes": ["old"]})).json()["id"]
    assert (await client.get(f"/users/{ada}/notes")).json() == ["old"]
    assert (await client.delete(f"/users/{ada}")).status_code == 204
    ben = (await client.post("/sync/users", json={"email": "ben"})).json()["id"]
    await client.post(f"/users/{ben}/notes", json={"body": "new"})

    assert (await client.get(f"/sync/users/{ben}/notes")).json() == ["new"]
    with app.state.engine.connect() as connection:
        assert connection.scalars(select(KEYS.c.owner_id).distinct()).all() == [ben]


async def test_after_a_restart_with_a_new_key_first(
    server_key: str,
    databases: tuple[URL, URL],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The application stops and starts with another server key before the old one: everything is read."""
    caplog.set_level(logging.INFO, "sqlalchemy_envelope.audit")
    with serve(create_app(*databases)) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            await client.post("/users", json={"email": "ada", "notes": ["old"]})
    assert NOTHING.server is None
    engine = create_engine(databases[0])
    with Session(engine) as session:
        note = session.scalars(select(Note)).one()
        with pytest.raises(LockedError):
            _ = note.body
    engine.dispose()
    monkeypatch.setenv("ENVELOPE_SERVER_KEYS", f"{ServerKeyring.generate_key()},{server_key}")
    with serve(create_app(*databases)) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            await client.post("/users/1/notes", json={"body": "new"})
            assert (await client.get("/users/1/notes")).json() == ["old", "new"]

    assert "reason='web application'" in caplog.text
    assert "server_opened" in caplog.text


def test_it_does_not_start_without_its_keys(
    databases: tuple[URL, URL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no server key in the environment the start-up code says which variable is missing."""
    monkeypatch.delenv("ENVELOPE_SERVER_KEYS", raising=False)
    with pytest.raises(ConfigurationError, match="ENVELOPE_SERVER_KEYS"):
        create_app(*databases)
