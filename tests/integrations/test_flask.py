"""The Flask example under real HTTP: nobody ever sees a foreign value, and no key outlives its request.

The server is the standard library's, with a pool of four threads: what a request leaves in its thread, the
next one in that thread would find.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import httpx
import pytest
from flask import Flask, Response
from sqlalchemy import select

from examples import flask_app as example
from examples.flask_app import Note, create_app, new_session, unlocked, unlocked_user
from sqlalchemy_envelope import Envelope, KdfProfile, LockedError, UnflushedError
from sqlalchemy_envelope.orm.current.context import CURRENT
from tests.integrations.traffic import ROUNDS, USERS, Living, interleave

ADA = httpx.BasicAuth("ada@example.org", "correct horse battery staple")
THREADS = 4
LONG = 100_000
"""More lines than are ever sent."""


class Handler(WSGIRequestHandler):
    """Does not print a line for each request."""

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


class PooledServer(WSGIServer):
    """Every request in one of a few threads, which are used again."""

    request_queue_size = 128

    def __init__(self, app: Flask) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.set_app(app)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.pool = ThreadPoolExecutor(THREADS)
        self.requests: Counter[int] = Counter()
        """How many each thread has served."""
        self.unclean: list[object] = []
        """What requests left in the contexts of their threads."""

    def process_request(self, request: Any, client_address: Any) -> None:
        self.pool.submit(self._serve, request, client_address)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except ConnectionError:
            pass  # the client has hung up
        finally:
            self.shutdown_request(request)
            self.requests[threading.get_ident()] += 1
            if CURRENT.get() is not NOTHING:
                self.unclean.append(CURRENT.get())

    def contexts(self) -> set[tuple[int, bool]]:
        """Each thread of the pool, and whether it finds nothing unlocked. Waits for earlier requests."""
        barrier = threading.Barrier(THREADS)

        def look() -> tuple[int, bool]:
            barrier.wait(20)
            return threading.get_ident(), CURRENT.get() is NOTHING

        return {one.result() for one in [self.pool.submit(look) for _ in range(THREADS)]}


NOTHING = CURRENT.get()


@contextmanager
def serve(app: Flask) -> Iterator[PooledServer]:
    with PooledServer(app) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.pool.shutdown()


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """The example, with the cheapest key derivation and nothing else changed."""
    app = create_app(str(tmp_path / "notes.db"), Envelope(kdf_profile=KdfProfile.unsafe_for_tests()))
    yield app
    app.extensions["sessions"].kw["bind"].dispose()


@pytest.fixture
def ada(app: Flask) -> Iterator[httpx.Client]:
    """Ada, who has a note, before an app that is being served. Tests add routes before they ask for her."""
    with serve(app) as server, httpx.Client(base_url=server.url, auth=ADA) as client:
        client.post("/users", json={"phone": "+44 20"})
        client.post("/notes", json={"body": "hello"})
        yield client


@ROUNDS
async def test_nobody_sees_a_foreign_value_and_no_key_is_left(app: Flask, rounds: int) -> None:
    """Of interleaved requests none shows a foreign value, all show their own, and no key survives."""
    living, started = Living(), time.perf_counter()
    with serve(app) as server:
        figures, complaints = await interleave(server.url, [""], rounds)
        contexts = await asyncio.to_thread(server.contexts)
        left = living()
    print(dict(figures), f"keys left: {len(left)}, requests by thread: {sorted(server.requests.values())}")
    print(f"{time.perf_counter() - started:.1f} s")

    assert complaints == []
    assert figures["foreign values"] == 0
    assert figures["requests"] == USERS * (rounds + 2)
    assert figures["cancelled"] >= rounds
    assert figures["wrong secrets"] >= rounds
    assert left == []
    assert server.unclean == []
    assert len(contexts) == THREADS
    assert all(clean for _, clean in contexts)
    assert min(server.requests.values()) >= rounds


def test_a_wrong_secret_an_unknown_email_and_none_look_alike(ada: httpx.Client) -> None:
    """Status, headers and body of a refusal do not tell who has an account here."""
    given = [("ada@example.org", "wrong"), ("eve@example.org", "wrong"), ("ada@example.org", "")]
    answers = [ada.get(path, auth=auth) for auth in given for path in ("/notes", "/notes/stream")]
    answers.append(httpx.get(ada.base_url.join("/notes")))

    assert {one.status_code for one in answers} == {401}
    assert {one.headers["WWW-Authenticate"] for one in answers} == {'Basic charset="UTF-8"'}
    assert len({one.text for one in answers}) == 1


def test_a_secret_that_cannot_be_used_and_an_email_that_is_taken_are_told(ada: httpx.Client) -> None:
    """Sign-up answers 422 and 409."""
    empty = ada.post("/users", json={}, auth=("eve@example.org", ""))
    taken = ada.post("/users", json={})

    assert (empty.status_code, taken.status_code) == (422, 409)


def test_a_forgotten_unlock_is_423(app: Flask, request: pytest.FixtureRequest) -> None:
    """A view that touches an encrypted attribute without `unlocked` answers 423."""

    @app.get("/forgotten")
    def forgotten() -> list[str]:
        with new_session() as session:
            return [note.body for note in session.scalars(select(Note))]

    answer = request.getfixturevalue("ada").get("/forgotten")

    assert (answer.status_code, answer.text) == (423, "This is locked.\n")


def test_a_forgotten_commit_is_500(app: Flask, request: pytest.FixtureRequest) -> None:
    """The UnflushedError of the decorator comes in time to be the answer."""

    @app.post("/uncommitted")
    @unlocked
    def uncommitted(session: Any, user: example.User) -> str:
        session.add(Note(user_id=user.id, body="lost"))
        return ""

    app.register_error_handler(UnflushedError, lambda error: ("Not saved.", 500))
    ada = request.getfixturevalue("ada")

    assert ada.post("/uncommitted").text == "Not saved."
    assert ada.get("/notes").json() == ["hello"]


def test_a_body_made_after_the_view_is_locked(app: Flask, request: pytest.FixtureRequest) -> None:
    """A generator returned from an `unlocked` view runs after its `with`: hence the one in the example."""

    @app.get("/late")
    @unlocked
    def late(session: Any, user: example.User) -> Response:
        inside = session.scalars(select(Note)).one().body

        def lines() -> Iterator[str]:
            try:
                yield f"{inside}, {session.scalars(select(Note)).one().body}"
            except LockedError as error:
                yield f"{inside}, {type(error).__name__}"

        return Response(lines())

    answer = request.getfixturevalue("ada").get("/late")

    assert answer.text == "hello, LockedError"


def test_a_client_that_leaves_during_a_stream_ends_it(app: Flask) -> None:
    """The server closes the body where it is, in its thread; nothing is left there, and no key."""
    living, sent = Living(), []

    @app.get("/long")
    def long() -> Response:
        def lines() -> Iterator[str]:
            with unlocked_user() as (session, _):
                yield ""
                for number in range(LONG):
                    sent.append(number)
                    yield session.scalars(select(Note)).one().body * 10_000

        body = lines()
        next(body)
        return Response(body)

    with serve(app) as server, httpx.Client(base_url=server.url, auth=ADA) as client:
        client.post("/users", json={})
        client.post("/notes", json={"body": "hello"})
        with client.stream("GET", "/long") as answer:
            first = next(answer.iter_text())
        contexts = server.contexts()
        left = living()

    assert first.startswith("hello")
    assert 0 < len(sent) < LONG
    assert left == []
    assert all(clean for _, clean in contexts)
    assert server.unclean == []


def test_a_thread_started_by_a_view_is_locked(app: Flask, request: pytest.FixtureRequest) -> None:
    """A new thread has an empty context; what it is to use is unlocked there, or through a bound Session."""

    @app.get("/thread")
    @unlocked
    def thread(session: Any, user: example.User) -> list[str]:
        sessions, seen = app.extensions["sessions"], []

        def work() -> None:
            with sessions() as other:
                try:
                    seen.append(other.scalars(select(Note)).one().body)
                except LockedError as error:
                    seen.append(type(error).__name__)

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        return seen

    answer = request.getfixturevalue("ada").get("/thread")

    assert answer.json() == ["LockedError"]
