"""Members who join, leave, post and read at once over HTTP, and at the end nobody is locked out, and nobody
who left reads what was written later.

`ENVELOPE_LIVE_SECONDS=60` runs it for a minute.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL, select
from sqlalchemy.orm import Session

from examples.groups_app import Post, User, create_app
from sqlalchemy_envelope import Envelope, KdfProfile, LockedError
from tests.integrations.test_server_mode_app import serve

SECONDS = float(os.environ.get("ENVELOPE_LIVE_SECONDS", "0.5"))
USERS = 16
GROUPS = 2


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.backend)])
def app(request: pytest.FixtureRequest) -> Iterator[FastAPI]:
    """The example as it is, with a cheap key derivation."""
    url: URL = request.getfixturevalue(f"{request.param}_url")
    driver = "sqlite+pysqlite" if request.param == "sqlite" else "postgresql+psycopg"
    app = create_app(url.set(drivername=driver), Envelope(kdf_profile=KdfProfile.unsafe_for_tests()))
    yield app
    app.state.engine.dispose()


@dataclass
class Model:
    """Who is a member, and when each post was sent, by what the answers said."""

    members: list[set[int]]
    sent: dict[str, float] = field(default_factory=dict)
    posted: list[set[str]] = field(default_factory=lambda: [set() for _ in range(GROUPS)])
    answers: Counter[str] = field(default_factory=Counter)
    read_too_late: list[str] = field(default_factory=list)
    looks: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Person:
    """A user with a browser, and with keys that are kept from when they were a member."""

    def __init__(self, address: str, app: FastAPI, model: Model, number: int) -> None:
        self.number, self._model, self._app = number, model, app
        self._random, self._posts = random.Random(number), 0
        self._client = httpx.Client(base_url=address, timeout=60, auth=(email(number), secret(number)))
        self.close = self._client.close

    def ask(self, method: str, path: str, json: object = None, by: int | None = None) -> httpx.Response:
        auth = (email(by), secret(by)) if by is not None else httpx.USE_CLIENT_DEFAULT
        answer = self._client.request(method, path, json=json, auth=auth)
        with self._model.lock:
            self._model.answers[f"{method} {path.rpartition('/')[2]} {answer.status_code}"] += 1
        return answer

    def live(self, until: float) -> None:
        """Join a group, post and read, leave, and look at what is written later."""
        group = self.number % GROUPS
        while time.monotonic() < until:
            if self.number < GROUPS:  # founders stay
                self.post(group)
                self.read(group)
                continue
            if not self.join(group):
                continue
            with Session(self._app.state.engine) as session:
                user = session.scalars(select(User).where(User.email == email(self.number))).one()
                with self._app.state.envelope.unlock(session, user, secret=secret(self.number)):
                    read_all(session)
                    session.commit()
                    for _ in range(self._random.randrange(4)):
                        self._random.choice([self.post, self.read])(group)
                    if self._random.random() < 0.8:
                        self.leave_and_look(group, session)
                    else:
                        self.ask("POST", "/login")
                        self.leave(group)
        if self._random.random() < 0.7:
            self.join(group)

    def join(self, group: int) -> bool:
        if self.number in self._model.members[group]:
            return True
        with self._model.lock:
            by = self._random.choice(sorted(self._model.members[group] - {self.number}))
        path, new = f"/groups/{group + 1}/members", {"email": email(self.number)}
        answer = self.ask("POST", path, new, by=by)
        if answer.status_code != 201:
            return False
        with self._model.lock:
            self._model.members[group].add(self.number)
        return True

    def leave(self, group: int) -> float:
        with self._model.lock:
            self._model.members[group].discard(self.number)
        assert self.ask("DELETE", f"/groups/{group + 1}/members/me").status_code == 204
        return time.monotonic()

    def leave_and_look(self, group: int, kept: Session) -> None:
        """What was sent after the answer to the leaving opens neither over HTTP nor with the keys kept."""
        left = self.leave(group)
        time.sleep(self._random.uniform(0, 0.3))
        answer = self.ask("GET", f"/groups/{group + 1}/posts")
        seen = set(answer.json() if answer.status_code == 200 else []) | read_all(kept)
        with self._model.lock:
            self._model.looks += 1
            self._model.read_too_late += [text for text in seen if self._model.sent[text] > left]

    def post(self, group: int) -> None:
        self._posts += 1
        text = f"post {self._posts} of {self.number}"
        with self._model.lock:
            self._model.sent[text] = time.monotonic()
        if self.ask("POST", f"/groups/{group + 1}/posts", {"text": text}).status_code == 201:
            with self._model.lock:
                self._model.posted[group].add(text)

    def read(self, group: int) -> set[str]:
        answer = self.ask("GET", f"/groups/{group + 1}/posts")
        return set(answer.json()) if answer.status_code == 200 else set()


def email(number: int) -> str:
    return f"{number}@example.org"


def secret(number: int) -> str:
    return f"the secret of {number}"


def read_all(session: Session) -> set[str]:
    seen = set()
    for post in session.scalars(select(Post).order_by(Post.id.desc()).limit(200)).all():
        with suppress(LockedError):
            seen.add(post.text)
    session.rollback()
    return seen


def test_sixteen_users_at_once(app: FastAPI) -> None:
    """No answer of 500, no member locked out of anything, nothing read by somebody who had left before."""
    model = Model([{group} for group in range(GROUPS)])
    with serve(app) as address, ExitStack() as stack:
        people = [Person(address, app, model, number) for number in range(USERS)]
        for person in people:
            stack.callback(person.close)
        for person in people:
            assert person.ask("POST", "/users").status_code == 201
        for group in range(GROUPS):
            assert people[group].ask("POST", "/groups", {"name": "g"}).json() == {"id": group + 1}
        until = time.monotonic() + SECONDS
        with ThreadPoolExecutor(USERS) as threads:
            for done in [threads.submit(person.live, until) for person in people]:
                done.result()
        for group in range(GROUPS):
            assert people[group].ask("POST", "/login").status_code == 204
        locked_out = [
            (group, number)
            for group, members in enumerate(model.members)
            for number in sorted(members)
            if people[number].read(group) != model.posted[group]
        ]
    print(
        model.looks, "looks after leaving;", sum(model.answers.values()), dict(sorted(model.answers.items()))
    )

    assert sum(count for what, count in model.answers.items() if what.endswith((" 500", " 503"))) == 0
    assert locked_out == []
    assert model.read_too_late == []
    assert model.looks > 0 or SECONDS < 5  # by chance nobody leaves in a short run
