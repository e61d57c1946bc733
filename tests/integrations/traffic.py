"""Users of the example applications over real HTTP, and what is left in the server's memory after them."""

import asyncio
import gc
import json
import os
import random
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from sqlalchemy_envelope import UnlockedSession
from sqlalchemy_envelope.crypto.aead import ValueCipher
from sqlalchemy_envelope.crypto.secret import KeyBytes

USERS = 20
MANY = int(os.environ.get("ENVELOPE_ROUNDS", "23"))
ROUNDS = pytest.mark.parametrize("rounds", [6, pytest.param(MANY, marks=pytest.mark.thorough)])
"""How many requests each user sends, beside signing up and a last look."""
MARK = re.compile(r"user\d\d")
"""Every plaintext and every secret holds its owner's."""


class Living:
    """Keys, ciphers and open unlocked sessions in this process, but for those that were there before."""

    def __init__(self) -> None:
        self._before = self._all()

    @staticmethod
    def _all() -> list[Any]:
        gc.collect()
        return [
            one
            for one in gc.get_objects()
            if type(one) is ValueCipher
            or (type(one) is KeyBytes and any(one.buffer))
            or (type(one) is UnlockedSession and one.is_open)
        ]

    def __call__(self) -> list[Any]:
        before = {id(one) for one in self._before}
        return [one for one in self._all() if id(one) not in before]


@dataclass
class User:
    """One user of the application: what it sends, what it may be shown, and what was wrong."""

    number: int
    client: httpx.AsyncClient
    prefixes: Sequence[str]
    figures: Counter[str]
    complaints: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    """Notes whose request was given up: they may be there."""

    def __post_init__(self) -> None:
        self.name = f"user{self.number:02}"
        self.secret = f"{self.name} läßt niemanden herein"
        self.chance = random.Random(self.number)

    async def send(self, method: str, path: str, secret: str | None = None, **given: Any) -> httpx.Response:
        self.figures["requests"] += 1
        auth = httpx.BasicAuth(f"{self.name}@example.org", secret or self.secret)
        answer = await self.client.request(method, path, auth=auth, **given)
        self.figures["foreign values"] += len(set(MARK.findall(answer.text)) - {self.name})
        return answer

    def expect(self, what: str, expected: Any, got: Any) -> None:
        if expected != got:
            self.complaints.append(f"{self.name}, {what}: expected {expected!r}, got {got!r}")

    async def sign_up(self) -> None:
        answer = await self.send("POST", "/users", json={"phone": f"+1 {self.name}"})
        self.expect("sign up", 201, answer.status_code)

    async def create(self) -> None:
        body = f"{self.name}, note {len(self.written) + len(self.unsure)}"
        self.unsure.add(body)
        answer = await self.send("POST", self.prefix() + "/notes", json={"body": body})
        self.expect("create", 201, answer.status_code)
        self.unsure.remove(body)
        self.written.append(body)

    async def list(self) -> None:
        answer = await self.send("GET", self.prefix() + "/notes")
        self.expect("list", 200, answer.status_code)
        self.expect("list", self.written, [body for body in answer.json() if body not in self.unsure])

    async def stream(self) -> None:
        answer = await self.send("GET", "/notes/stream")
        self.expect("stream", 200, answer.status_code)
        bodies = [json.loads(line) for line in answer.text.splitlines()]
        self.expect("stream", self.written, [body for body in bodies if body not in self.unsure])

    async def digest(self) -> None:
        answer = await self.send("GET", "/notes/digest", params={"wait": self.chance.uniform(0, 0.1)})
        count = answer.json()["notes"]
        self.expect(
            "digest", count, sorted((len(self.written), count, len(self.written) + len(self.unsure)))[1]
        )

    async def profile(self) -> None:
        answer = await self.send("GET", "/me")
        self.expect("profile", f"+1 {self.name}", answer.json()["phone"])

    async def change_secret(self) -> None:
        new = f"{self.name} ändert {self.chance.random()}"
        answer = await self.send("PUT", "/secret", json={"secret": new})
        self.expect("change", 204, answer.status_code)
        self.secret = new

    async def guess(self) -> None:
        other = f"user{(self.number + 1) % USERS:02} läßt niemanden herein"
        secret = self.chance.choice([other, "wrong", self.secret + " "])
        self.figures["wrong secrets"] += 1
        answer = await self.send("GET", self.prefix() + "/notes", secret)
        self.expect("guess", 401, answer.status_code)

    async def give_up(self) -> None:
        """Hang up at a random moment of a random request, or at the first byte of its answer.

        On a bare socket: httpx, cancelled while it connects, leaves the connection open and sends nothing.
        """
        method, path = self.chance.choice(
            [("POST", self.prefix() + "/notes"), ("GET", self.prefix() + "/notes"), ("GET", "/notes/stream"),
             ("GET", "/notes/digest?wait=0.1"), ("GET", "/me")]
        )  # fmt: skip
        body = f"{self.name}, note {len(self.written) + len(self.unsure)}" if method == "POST" else None
        if body is not None:
            self.unsure.add(body)
        request = self.client.build_request(method, path, json=body and {"body": body})
        request.headers["Authorization"] = (
            "Basic " + b64encode(f"{self.name}@example.org:{self.secret}".encode()).decode()
        )
        headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self.figures["requests"] += 1
        reader, writer = await asyncio.open_connection(request.url.host, request.url.port)
        try:
            writer.write(f"{method} {path} HTTP/1.1\r\n{headers}\r\n".encode() + request.content)
            async with asyncio.timeout(self.chance.uniform(0.001, 0.06)):
                start = await reader.readexactly(12)
            self.expect("give up", b"20", start[9:11])
        except TimeoutError:
            self.figures["cancelled"] += 1
        finally:
            writer.transport.abort()

    def prefix(self) -> str:
        return self.chance.choice(self.prefixes)

    async def run(self, rounds: int) -> None:
        """What a user does, in random order; every step checks what it is shown."""
        steps = {self.create: 5, self.list: 5, self.stream: 2, self.digest: 1, self.profile: 2}
        steps |= {self.change_secret: 1, self.guess: 2, self.give_up: 7}
        for step in self.chance.choices(list(steps), list(steps.values()), k=rounds):
            await step()


async def interleave(url: str, prefixes: Sequence[str], rounds: int) -> tuple[Counter[str], list[str]]:
    """All users at once. Returns the figures, and what was not as it should be."""
    figures: Counter[str] = Counter({"cancelled": 0, "foreign values": 0, "wrong secrets": 0})
    async with httpx.AsyncClient(base_url=url, timeout=20, limits=httpx.Limits()) as client:
        users = [User(number, client, prefixes, figures) for number in range(USERS)]
        await together(one.sign_up() for one in users)
        await together(one.run(rounds) for one in users)
        await together(one.list() for one in users)
    return figures, [complaint for one in users for complaint in one.complaints]


async def together(steps: Iterable[Awaitable[Any]]) -> list[Any]:
    return await asyncio.gather(*steps)
