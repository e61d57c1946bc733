"""The FastAPI example under real HTTP: nobody ever sees a foreign value, and no key outlives its request.

uvicorn runs in a thread of this process, so that what is left in memory at the end can be looked at.
"""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from contextvars import Context
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from examples import fastapi_app as example
from examples.fastapi_app import (
    DbAsync,
    DbSync,
    Note,
    StreamedUser,
    UnlockedUser,
    UnlockedUserSync,
    create_app,
)
from sqlalchemy_envelope import Envelope, KdfProfile, LockedError
from sqlalchemy_envelope.orm.current.context import CURRENT
from tests.integrations.traffic import ROUNDS, USERS, Living, interleave, together

ADA = httpx.BasicAuth("ada@example.org", "correct horse battery staple")
THREADS = 40
"""Worker threads that Starlette has at most."""
LONG = 100_000
"""More lines than are ever sent."""


class CancelOnDisconnect:
    """Cancels the handler when the client hangs up: uvicorn and Starlette by themselves let it run on."""

    def __init__(self, app: Any) -> None:
        self.app, self.cancelled = app, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: asyncio.Queue[Any] = asyncio.Queue()
        answered = False

        async def listen() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                messages.put_nowait(message)
            messages.put_nowait(message)
            if not answered:
                self.cancelled += 1
                handling.cancel_scope.cancel()

        async def note_end(message: Any) -> None:
            nonlocal answered
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        async with anyio.create_task_group() as handling:
            handling.start_soon(listen)
            await self.app(scope, messages.get, note_end)
            handling.cancel_scope.cancel()


class Server:
    """uvicorn in a thread, on the loopback interface."""

    client: httpx.AsyncClient

    def __init__(self, app: Any, listening: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none"))
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [listening]})
        self._thread.start()

    async def idle(self) -> bool:
        """Whether every handler has come to its end, those without a client too; waited for."""
        for _ in range(200):
            if not self._uvicorn.server_state.tasks:
                return True
            await asyncio.sleep(0.02)
        return False

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()


@contextmanager
def serve(app: Any) -> Iterator[Server]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        server = Server(app, listening)
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """The example, with the cheapest key derivation and nothing else changed."""
    return create_app(str(tmp_path / "notes.db"), Envelope(kdf_profile=KdfProfile.unsafe_for_tests()))


@pytest.fixture
async def server(app: FastAPI) -> AsyncIterator[Server]:
    """The app being served, with Ada and her note in it. Tests add routes while it runs."""
    # A connection for each request: uvicorn closes one when an error comes after its response.
    limits = httpx.Limits(max_keepalive_connections=0)
    with serve(app) as server:
        async with httpx.AsyncClient(base_url=server.url, auth=ADA, limits=limits) as client:
            await client.post("/users", json={"phone": "+44 20"})
            await client.post("/notes", json={"body": "hello"})
            server.client = client
            yield server


def test_living_finds_what_is_left(sqlite_engine: Engine) -> None:
    """The measure itself: an unlocked session that is not left is found, and one that was left is not."""
    living = Living()
    example.Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        user = example.User(email="ada@example.org")
        with Envelope(kdf_profile=KdfProfile.unsafe_for_tests()).enroll(
            session, user, secret="hello"
        ) as unlocked:
            session.add(example.Note(user_id=user.id, body="hello"))
            session.commit()
            left = living()

            assert {"KeyBytes", "UnlockedSession", "ValueCipher"} == {type(one).__name__ for one in left}
        del left
        assert living() == []
        assert not unlocked.is_open


@pytest.mark.parametrize("cancelling", [False, True], ids=["run-on", "cancelled"])
@ROUNDS
async def test_nobody_sees_a_foreign_value_and_no_key_is_left(
    app: FastAPI, cancelling: bool, rounds: int
) -> None:
    """Of interleaved requests none shows a foreign value, all show their own, and no key survives."""
    barrier = threading.Barrier(THREADS)

    @app.get("/debug/thread")
    def thread() -> tuple[int, bool]:
        barrier.wait(10)
        return threading.get_ident(), CURRENT.get().is_open

    @app.get("/debug/loop")
    async def loop() -> bool:
        return CURRENT.get().is_open

    living, started, outermost = Living(), time.perf_counter(), CancelOnDisconnect(app)
    with serve(outermost if cancelling else app) as server:
        figures, complaints = await interleave(server.url, ["", "/sync"], rounds)
        idle = await server.idle()
        left = living()
        async with httpx.AsyncClient(base_url=server.url, timeout=20, limits=httpx.Limits()) as client:
            threads = await together(client.get("/debug/thread") for _ in range(THREADS))
            open_in_loop = (await client.get("/debug/loop")).json()
    print(dict(figures), f"cancelled in the server: {outermost.cancelled}, keys left: {len(left)}")
    print(f"{time.perf_counter() - started:.1f} s")

    assert complaints == []
    assert figures["foreign values"] == 0
    assert figures["requests"] == USERS * (rounds + 2)
    assert figures["cancelled"] >= rounds
    assert figures["wrong secrets"] >= rounds
    assert (outermost.cancelled >= rounds // 2) is cancelling
    assert idle
    assert left == []
    assert len({one.json()[0] for one in threads}) == THREADS
    assert not any(one.json()[1] for one in threads)
    assert open_in_loop is False


async def test_a_wrong_secret_an_unknown_email_and_none_look_alike(server: Server) -> None:
    """Status, headers and body of a refusal do not tell who has an account here."""
    given = [("ada@example.org", "wrong"), ("eve@example.org", "wrong"), ("ada@example.org", ""), None]
    async with httpx.AsyncClient(base_url=server.url) as client:
        answers = [await client.get("/notes", auth=auth) for auth in given]

    assert {401} == {one.status_code for one in answers}
    assert {'Basic charset="UTF-8"'} == {one.headers["WWW-Authenticate"] for one in answers}
    assert len({one.text for one in answers}) == 1


async def test_a_secret_that_cannot_be_used_and_an_email_that_is_taken_are_told(server: Server) -> None:
    """Sign-up answers 422 and 409, and what it says holds no secret."""
    empty = await server.client.post("/users", json={}, auth=("eve@example.org", ""))
    taken = await server.client.post("/users", json={})

    assert (empty.status_code, taken.status_code) == (422, 409)


async def test_a_forgotten_unlock_is_423(app: FastAPI, server: Server) -> None:
    """An endpoint that touches an encrypted attribute without the dependency answers 423."""

    @app.get("/forgotten")
    async def forgotten(session: DbAsync) -> list[str]:
        return [note.body for note in await session.scalars(select(Note))]

    answer = await server.client.get("/forgotten")

    assert (answer.status_code, answer.json()) == (423, {"detail": "This is locked."})


async def test_a_locked_value_handed_to_the_encoder_is_423(app: FastAPI, server: Server) -> None:
    """FastAPI's own encoder takes a sealed value apart; the error that it meets reaches the handler."""

    @app.get("/columns")
    async def columns(session: DbAsync):  # type: ignore[no-untyped-def]  # with a type, pydantic is asked
        return (await session.scalars(select(Note.body))).all()

    answer = await server.client.get("/columns")

    assert (answer.status_code, answer.json()) == (423, {"detail": "This is locked."})


async def test_a_locked_object_handed_to_the_encoder_loses_the_value(app: FastAPI, server: Server) -> None:
    """Without a response model the encoder takes what an object has loaded, and a locked value is not."""

    @app.get("/objects")
    async def objects(session: DbAsync):  # type: ignore[no-untyped-def]  # as above
        return (await session.scalars(select(Note))).all()

    answer = await server.client.get("/objects")

    assert answer.status_code == 200
    assert {True} == {"id" in one and "body" not in one for one in answer.json()}


async def test_a_locked_row_handed_to_a_response_model_is_500(app: FastAPI, server: Server) -> None:
    """pydantic turns the LockedError into its own; still nothing leaks. Read attributes in the endpoint."""

    class NoteOut(BaseModel):
        model_config = ConfigDict(from_attributes=True)
        body: str

    @app.get("/rows", response_model=list[NoteOut])
    async def rows(session: DbAsync) -> list[Note]:
        return list(await session.scalars(select(Note)))

    answer = await server.client.get("/rows")

    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def read(session: Session) -> str:
    """The note, or the name of the error that a caller meets."""
    try:
        return session.scalars(select(Note)).one().body
    except LockedError as error:
        return type(error).__name__


def read_elsewhere(app: FastAPI) -> str:
    """As `read`, through a Session with no unlocked session bound to it: only the context can help."""
    with app.state.sessions() as session:
        return read(session)


StreamedUserSync = Annotated[example.User, Depends(example.unlocked_user_sync)]


async def test_what_comes_after_the_handler_is_unlocked_too(app: FastAPI, server: Server) -> None:
    """Streamed bodies and background tasks run before the `with` of a dependency ends: still unlocked."""
    seen = []

    @app.get("/async/after")
    async def after(session: DbAsync, user: StreamedUser, tasks: BackgroundTasks) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            yield await session.run_sync(read)

        async def work() -> None:
            seen.append((await session.run_sync(read), await asyncio.to_thread(read_elsewhere, app)))

        tasks.add_task(work)
        return StreamingResponse(lines(), background=tasks)

    @app.get("/sync/after")
    def after_sync(session: DbSync, user: StreamedUserSync, tasks: BackgroundTasks) -> StreamingResponse:
        def lines() -> Iterator[str]:
            yield read(session)

        tasks.add_task(lambda: seen.append((read(session), read_elsewhere(app))))
        return StreamingResponse(lines(), background=tasks)

    answers = [await server.client.get(path) for path in ("/async/after", "/sync/after")]

    assert await server.idle()
    assert [one.text for one in answers] == ["hello", "hello"]
    # The synchronous dependency ran in another context: there, the keys are found through its Session only.
    assert seen == [("hello", "hello"), ("hello", "LockedError")]


async def test_scope_function_locks_when_the_handler_returns(app: FastAPI, server: Server) -> None:
    """With `scope="function"` streamed bodies and background tasks find the user locked."""
    seen = []

    @app.get("/async/early")
    async def early(user: UnlockedUser, session: DbAsync, tasks: BackgroundTasks) -> StreamingResponse:
        inside = await session.run_sync(read)

        async def lines() -> AsyncIterator[str]:
            yield inside + ", " + await session.run_sync(read)

        async def work() -> None:
            seen.append(await session.run_sync(read))

        tasks.add_task(work)
        return StreamingResponse(lines(), background=tasks)

    @app.get("/sync/early")
    def early_sync(user: UnlockedUserSync, session: DbSync, tasks: BackgroundTasks) -> StreamingResponse:
        inside = read(session)

        def lines() -> Iterator[str]:
            yield inside + ", " + read(session)

        tasks.add_task(lambda: seen.append(read(session)))
        return StreamingResponse(lines(), background=tasks)

    answers = [await server.client.get(path) for path in ("/async/early", "/sync/early")]

    assert await server.idle()
    assert [one.text for one in answers] == ["hello, LockedError", "hello, LockedError"]
    assert seen == ["LockedError", "LockedError"]


@pytest.mark.parametrize("path", ["/async/long", "/sync/long"])
async def test_a_client_that_leaves_during_a_stream_ends_it(app: FastAPI, server: Server, path: str) -> None:
    """The body is cancelled where it is, the dependencies come to their end, and no key is left."""
    living, sent = Living(), []

    @app.get("/async/long")
    async def long(session: DbAsync, user: StreamedUser) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for number in range(LONG):
                sent.append(number)
                yield await session.run_sync(read) * 10_000

        return StreamingResponse(lines())

    @app.get("/sync/long")
    def long_sync(session: DbSync, user: StreamedUserSync) -> StreamingResponse:
        def lines() -> Iterator[str]:
            for number in range(LONG):
                sent.append(number)
                yield read(session) * 10_000

        return StreamingResponse(lines())

    async with server.client.stream("GET", path) as answer:
        first = await anext(answer.aiter_text())

    assert await server.idle()
    assert first.startswith("hello")
    assert 0 < len(sent) < LONG
    assert living() == []


async def test_a_forgotten_commit_is_told_in_time_only_with_scope_function(
    app: FastAPI, server: Server
) -> None:
    """The UnflushedError of a dependency that ends after the response comes too late for the client."""

    @app.post("/request/forgotten")
    async def after_response(session: DbAsync, user: StreamedUser) -> None:
        session.add(Note(user_id=user.id, body="lost"))

    @app.post("/function/forgotten")
    async def before_response(user: UnlockedUser, session: DbAsync) -> None:
        session.add(Note(user_id=user.id, body="lost"))

    answers = [await server.client.post(f"/{scope}/forgotten") for scope in ("request", "function")]
    notes = await server.client.get("/notes")

    assert [one.status_code for one in answers] == [200, 500]
    assert notes.json() == ["hello"]


async def test_which_ways_out_of_the_handler_carry_the_context(app: FastAPI, server: Server) -> None:
    """`to_thread` and tasks do, `run_in_executor` does not; a task that outlives its request is locked."""
    gate, late = asyncio.Event(), []

    @app.get("/ways")
    async def ways(user: UnlockedUser) -> dict[str, str]:
        async def outlive() -> None:
            await gate.wait()
            late.append(await asyncio.to_thread(read_elsewhere, app))

        app.state.outliving = asyncio.create_task(outlive())
        return {
            "to_thread": await asyncio.to_thread(read_elsewhere, app),
            "run_in_executor": await asyncio.get_running_loop().run_in_executor(None, read_elsewhere, app),
        }

    @app.get("/wait")
    async def wait() -> None:
        gate.set()
        await app.state.outliving

    answer = await server.client.get("/ways")
    assert await server.idle()
    await server.client.get("/wait")

    assert answer.json() == {"to_thread": "hello", "run_in_executor": "LockedError"}
    assert late == ["SessionLeftError"]


async def test_asgi_transport_lends_the_app_the_context_of_the_test(app: FastAPI, server: Server) -> None:
    """An unlock in the test hides that an endpoint forgot its own; in a task or under a server it shows."""

    @app.get("/elsewhere")
    async def elsewhere() -> str:
        return await asyncio.to_thread(read_elsewhere, app)

    with app.state.sessions() as session:
        user = session.scalars(select(example.User)).one()
        unlocked = app.state.envelope.unlock(session, user, secret="correct horse battery staple")
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            with unlocked:
                lent = await client.get("/elsewhere")
                own = await asyncio.create_task(client.get("/elsewhere"), context=Context())
                real = await server.client.get("/elsewhere")

    assert [one.json() for one in (lent, own, real)] == ["hello", "LockedError", "LockedError"]
